/* Tests of session: packet identifiers, order, what survives a connection. */
#include "check.h"
#include "mem.h"
#include "session.h"

#define STR(text) ((struct mqtt_str){ (const uint8_t *)(text), \
	sizeof(text) - 1 })

/* The world that sessions live in, and one session with one message. */
static struct timers timers;
static struct topics topics;
static struct sessions all = { .topics = &topics, .timers = &timers };
static struct session *s;
static struct msg *hello;

static void
begin(void)
{
	struct mqtt_publish p = { .topic = STR("t"), .payload = STR("hello") };

	CHECK(topics_init(&topics, &timers, 1));
	s = session_new(&all, STR("me"));
	hello = msg_new(&p, MSG_NEVER);
	CHECK(s && hello);
	s->window = UINT16_MAX;
}

/* Everything must have been given back. */
static void
end(void)
{
	if (s)
		session_free(&all, s);
	CHECK(hello->refs == 1);
	msg_unref(hello);
	topics_fini(&topics);
	CHECK(timers.owners == 0);
	timers_fini(&timers);
	hash_fini(&all.by_id);
	CHECK(mem_used() == 0);
}

static struct delivery *
queue(uint8_t qos)
{
	struct delivery *d = delivery_new(hello, NULL, qos, false, NULL, 0);

	CHECK(d && session_queue(s, d));
	return d;
}

static struct delivery *
send_new(uint8_t qos)
{
	struct delivery *d = queue(qos);

	CHECK(session_unsent(s) == d && session_sent(s, d));
	return d;
}

static void
subscribe(const char *filter, struct sub **sub)
{
	struct mqtt_filter f = { .filter = { (const uint8_t *)filter,
	    (uint32_t)strlen(filter) } };
	bool is_new;

	*sub = topic_subscribe(&topics, s, &s->subs, &f, 0, &is_new);
	CHECK(*sub);
}

/* ---- the table ---- */

TEST(sessions_are_found)
{
	struct session *empty, *nul, *twin;

	begin();
	CHECK(session_find(&all, STR("me")) == s);
	CHECK(!session_find(&all, STR("m")) && !session_find(&all, STR("me2")));
	CHECK(!session_find(&all, STR("")) && !session_find(&all, STR("ME")));
	empty = session_new(&all, STR(""));
	nul = session_new(&all, STR("me\0"));
	twin = session_new(&all, STR("me\0x"));
	CHECK(session_find(&all, STR("")) == empty);
	CHECK(session_find(&all, STR("me\0")) == nul);
	CHECK(session_find(&all, STR("me\0x")) == twin);
	CHECK(strcmp((char *)twin->id, "me") == 0 && twin->id_len == 4);
	session_free(&all, nul);
	CHECK(!session_find(&all, STR("me\0")));
	CHECK(session_find(&all, STR("me")) == s);
	CHECK(all.maximum == 4 && all.by_id.n == 3);
	session_free(&all, empty);
	session_free(&all, twin);
	end();
}

TEST(sessions_in_number)
{
	static struct session *many[5000];
	char id[16];

	begin();
	for (int i = 0; i < 5000; i++) {
		int n = snprintf(id, sizeof id, "client%d", i);

		many[i] = session_new(&all, (struct mqtt_str){
		    (uint8_t *)id, (uint32_t)n });
		CHECK(many[i]);
	}
	for (int i = 0; i < 5000; i++) {
		CHECK(session_find(&all, session_id(many[i])) == many[i]);
		session_free(&all, many[i]);
	}
	CHECK(all.by_id.n == 1 && all.maximum == 5001);
	end();
}

TEST(session_is_fresh)
{
	begin();
	CHECK(!s->client && !s->subs && !s->out && !s->scans && !s->will);
	CHECK(!session_qos0(s) && !session_unsent(s) && session_window_open(s));
	CHECK(s->expires_ms == TIMER_NEVER);
	CHECK(!session_received(s, 1) && !session_take_received(s, 1));
	CHECK(!session_in_flight(s, 0) && !session_in_flight(s, 1));
	session_rewind(s, &topics, false);
	end();
}

/* Whatever there is no room for, the session or the first place in one of the
 * tables: there is no session, and no trace of one. */
TEST(session_without_memory)
{
	size_t used;

	CHECK(topics_init(&topics, &timers, 1));
	used = mem_used();
	for (size_t more = 1; !s; more += 8) {
		mem_set_limit(used + more);
		s = session_new(&all, STR("me"));
		CHECK(s || !session_find(&all, STR("me")));
		CHECK(s || (all.by_id.n == 0 && timers.owners == 0));
	}
	CHECK(session_find(&all, STR("me")) == s && all.maximum == 1);
	session_free(&all, s);
}

TEST(session_timer)
{
	struct will will = { .due_ms = 500 };

	begin();
	s->will = &will;
	session_set_timer(&all, s);
	CHECK(timer_next(&timers) == 500);
	s->expires_ms = 300;
	session_set_timer(&all, s);
	CHECK(timer_next(&timers) == 300);
	s->expires_ms = TIMER_NEVER;
	session_set_timer(&all, s);
	CHECK(timer_next(&timers) == 500);
	will.due_ms = TIMER_NEVER;
	session_set_timer(&all, s);
	s->will = NULL;
	CHECK(timer_next(&timers) == TIMER_NEVER);
	s->expires_ms = 10;
	session_set_timer(&all, s);
	end();                          /* takes a set timer along */
}

/* ---- packet identifiers ---- */

/* [MQTT-2.3.1-1], [MQTT-2.3.1-4] */
TEST(ids_go_round)
{
	struct delivery *kept[3];

	begin();
	kept[0] = send_new(1);
	CHECK(kept[0]->id != 0);
	for (uint32_t i = 0; i < 140000; i++) {
		struct delivery *d = send_new(1 + (uint8_t)(i % 2));

		CHECK(d->id != 0 && d->id != kept[0]->id);
		CHECK(session_in_flight(s, d->id) == d);
		if (i == 70000)
			kept[1] = d;
		else if (i == 100000)
			kept[2] = d;
		else
			session_done(s, &topics, d);
	}
	for (int i = 0; i < 3; i++)
		CHECK(session_in_flight(s, kept[i]->id) == kept[i]);
	CHECK(kept[0]->id != kept[1]->id && kept[1]->id != kept[2]->id);
	end();
}

TEST(ids_run_out)
{
	static bool used[65536];
	static struct delivery *sent[65536];
	struct delivery *d;
	uint16_t id;

	begin();
	for (int i = 0; i < 65535; i++) {
		d = send_new(1);
		CHECK(d->id != 0 && !used[d->id]);
		used[d->id] = true;
		sent[d->id] = d;
	}
	CHECK(!session_window_open(s));
	d = queue(2);
	CHECK(!session_sent(s, d) && !session_sent(s, d));
	CHECK(d->id == 0 && d->state == WAITING && session_unsent(s) == d);
	CHECK(!session_in_flight(s, 0));
	for (unsigned i = 1; i < 65536; i++)
		CHECK(session_in_flight(s, (uint16_t)i) == sent[i]);
	/* One that comes free is the next one given. */
	for (unsigned i = 1; i < 65536; i += 13107) {
		id = sent[i]->id;
		session_done(s, &topics, sent[i]);
		CHECK(!session_in_flight(s, id) && session_sent(s, d));
		CHECK(d->id == id && session_in_flight(s, id) == d);
		d = queue(1);
		CHECK(!session_sent(s, d));
	}
	end();
}

/* An acknowledgement may name any number. */
TEST(ids_not_in_use)
{
	struct delivery *d[20];

	begin();
	for (int i = 0; i < 20; i++)
		d[i] = send_new(1);
	queue(1);
	for (unsigned id = 0; id < 65536; id++) {
		struct delivery *found = session_in_flight(s, (uint16_t)id);

		CHECK(!found || found->id == id);
		CHECK(!found == (id < d[0]->id || id > d[19]->id));
	}
	end();
}

TEST(ids_at_random)
{
	static struct delivery *by_id[65536];
	unsigned n = 0;

	begin();
	srand(3);
	for (int i = 0; i < 100000; i++) {
		uint16_t id = (uint16_t)rand();
		struct delivery *d = session_in_flight(s, id);

		CHECK(d == by_id[id]);
		if (d) {
			session_done(s, &topics, d);
			by_id[id] = NULL;
			n--;
			continue;
		}
		d = send_new(2);
		CHECK(d->id && !by_id[d->id]);
		by_id[d->id] = d;
		n++;
		CHECK(s->out->in_flight == n && s->out->n_ids == n);
	}
	end();
}

/* ---- order ---- */

TEST(queue_keeps_order)
{
	struct delivery *d[4];

	begin();
	for (int i = 0; i < 4; i++)
		d[i] = queue(1 + (uint8_t)(i & 1));
	for (int i = 0; i < 4; i++) {
		CHECK(session_unsent(s) == d[i] && d[i]->id == 0);
		CHECK(session_sent(s, d[i]) && d[i]->state == SENT);
		CHECK(s->out->in_flight == i + 1);
	}
	CHECK(!session_unsent(s));
	CHECK(queue(1) == session_unsent(s));
	end();
}

/* [MQTT-4.4.0-1], [MQTT-4.6.0-1]: again, with their identifiers, in order. */
TEST(rewind_sends_again)
{
	struct delivery *d[6];
	uint16_t id[6];

	begin();
	for (int i = 0; i < 5; i++) {
		d[i] = i < 4 ? send_new(2) : queue(2);
		id[i] = d[i]->id;
	}
	delivery_release(d[1]);
	session_done(s, &topics, d[2]);
	session_rewind(s, &topics, false);
	d[5] = queue(1);
	CHECK(s->out->in_flight == 0 && session_unsent(s) == d[0]);
	/* What waits is not to be acknowledged. */
	CHECK(!session_in_flight(s, id[0]) && !session_in_flight(s, id[2]));
	CHECK(!session_in_flight(s, id[3]));

	CHECK(d[0]->state == WAITING && d[0]->msg == hello);
	CHECK(session_sent(s, d[0]) && d[0]->id == id[0]);
	CHECK(!session_in_flight(s, id[1]));
	CHECK(session_unsent(s) == d[1] && d[1]->state == TO_RELEASE);
	CHECK(!d[1]->msg && d[1]->id == id[1]);
	session_resent(s);
	CHECK(session_unsent(s) == d[3] && session_sent(s, d[3]));
	CHECK(d[3]->id == id[3] && s->out->in_flight == 3);
	CHECK(session_unsent(s) == d[4] && d[4]->id == 0);
	CHECK(session_sent(s, d[4]) && d[4]->id != 0);
	for (int i = 0; i < 4; i++)
		CHECK(d[4]->id != id[i] || i == 2);
	CHECK(session_unsent(s) == d[5]);
	CHECK(session_in_flight(s, id[0]) == d[0]);
	end();
}

/* A connection that is lost while messages are sent again. */
TEST(rewind_half_way)
{
	struct delivery *d[4];

	begin();
	for (int i = 0; i < 4; i++)
		d[i] = send_new(1);
	session_rewind(s, &topics, false);
	CHECK(session_sent(s, d[0]) && session_sent(s, d[1]));
	session_rewind(s, &topics, false);
	session_rewind(s, &topics, false);
	for (int i = 0; i < 4; i++) {
		CHECK(session_unsent(s) == d[i]);
		CHECK(session_sent(s, d[i]));
	}
	CHECK(s->out->in_flight == 4 && !session_unsent(s));
	end();
}

TEST(qos0_waits_apart)
{
	struct delivery *a, *b, *c;

	begin();
	a = queue(0);
	b = queue(1);
	c = queue(0);
	CHECK(session_qos0(s) == a && a->next == c && !c->next);
	CHECK(session_unsent(s) == b && !b->next);
	CHECK(s->out->qos0.n == 2 && s->out->acked.n == 1);
	CHECK(s->out->qos0.bytes == 2 * msg_weight(hello));
	session_rewind(s, &topics, true);
	CHECK(session_qos0(s) == a && s->out->qos0.n == 2);
	session_drop(s, &topics, a);
	CHECK(session_qos0(s) == c && s->out->qos0.n == 1);
	session_rewind(s, &topics, false);
	CHECK(!session_qos0(s) && s->out->qos0.n == 0);
	CHECK(s->out->qos0.bytes == 0 && session_unsent(s) == b);
	session_drop(s, &topics, b);
	CHECK(!s->out);
	queue(0);
	session_rewind(s, &topics, false);
	CHECK(!s->out);
	end();
}

TEST(window_counts_what_is_out)
{
	struct delivery *a, *b;

	begin();
	s->window = 2;
	a = send_new(1);
	CHECK(session_window_open(s));
	b = send_new(2);
	CHECK(!session_window_open(s));
	delivery_release(b);            /* a PUBREC makes no room */
	CHECK(!session_window_open(s));
	session_done(s, &topics, a);
	CHECK(session_window_open(s));
	session_done(s, &topics, b);
	CHECK(session_window_open(s) && !s->out);
	s->window = 0;
	CHECK(!session_window_open(s));
	end();
}

TEST(only_what_was_never_sent_counts_as_queued)
{
	uint32_t w;
	struct delivery *d;

	begin();
	w = msg_weight(hello);
	d = queue(1);
	queue(2);
	CHECK(s->out->acked.n == 2 && s->out->acked.bytes == 2 * w);
	CHECK(session_sent(s, d) && s->out->acked.n == 1);
	session_rewind(s, &topics, false);
	CHECK(s->out->acked.n == 1 && s->out->acked.bytes == w);
	session_drop(s, &topics, d);
	CHECK(s->out->acked.n == 1 && s->out->n_ids == 0);
	session_drop(s, &topics, session_unsent(s));
	CHECK(!s->out);
	end();
}

/* A delivery holds its message, group and identifiers; a released one only
 * its place. */
TEST(delivery_holds_what_it_needs)
{
	static const uint32_t subids[] = { 1, 268435455, 7 };
	struct sub *sub;
	struct group *g;
	struct delivery *d;

	begin();
	subscribe("$share/g/t", &sub);
	g = sub->group;
	d = delivery_new(hello, g, 2, true, subids, 3);
	CHECK(d && hello->refs == 2 && d->qos == 2 && d->retain);
	CHECK(d->n_subids == 3 && memcmp(d->subids, subids, 12) == 0);
	CHECK(d->weight == msg_weight(hello) + 12 && d->state == WAITING);
	CHECK(session_queue(s, d) && session_sent(s, d));
	topic_unsubscribe(&topics, sub);
	CHECK(g->refs == 1 && !g->members);
	delivery_release(d);
	CHECK(!d->msg && hello->refs == 1 && d->id != 0);
	session_done(s, &topics, d);
	CHECK(topics.groups.n == 0 && topics.filters.nodes.n == 0);
	delivery_free(&topics, delivery_new(hello, NULL, 0, false, NULL, 0));
	end();
}

TEST(delivery_with_many_identifiers)
{
	static uint32_t subids[SUBIDS_MAX];
	struct delivery *d;

	begin();
	for (uint32_t i = 0; i < SUBIDS_MAX; i++)
		subids[i] = i + 1;
	d = delivery_new(hello, NULL, 1, false, subids, SUBIDS_MAX);
	CHECK(d && d->n_subids == SUBIDS_MAX);
	CHECK(d->subids[SUBIDS_MAX - 1] == SUBIDS_MAX);
	CHECK(session_queue(s, d));
	end();
}

TEST(queue_without_memory)
{
	struct delivery *d[8], *more;
	size_t used;
	int n = 0;

	begin();
	used = mem_used();
	mem_set_limit(used + 1);
	CHECK(!delivery_new(hello, NULL, 1, false, NULL, 0));
	CHECK(hello->refs == 1 && mem_used() == used);
	mem_set_limit(0);
	more = delivery_new(hello, NULL, 1, false, NULL, 0);
	mem_set_limit(mem_used());
	CHECK(!session_queue(s, more) && !s->out);
	mem_set_limit(0);
	CHECK(session_queue(s, more));

	/* No room for the first identifiers, later for more of them. */
	mem_set_limit(1);
	CHECK(!session_sent(s, more) && more->id == 0);
	CHECK(more->state == WAITING && session_unsent(s) == more);
	CHECK(s->out->acked.n == 1 && s->out->in_flight == 0);
	mem_set_limit(0);
	CHECK(session_sent(s, more));
	for (int i = 0; i < 8; i++)
		d[i] = queue(1);
	mem_set_limit(1);
	while (n < 8 && session_sent(s, d[n]))
		n++;
	CHECK(n < 8 && session_unsent(s) == d[n] && s->out->in_flight == n + 1);
	mem_set_limit(0);
	CHECK(session_sent(s, d[n]) && d[n]->id != 0);
	end();
}

/* ---- the whole outbox against a model ---- */

enum { MANY = 60 };

struct row {
	struct delivery *d;
	uint16_t id;
	uint8_t state;
};

/* The list as it should be; those before row `unsent` are in flight. */
static struct {
	struct row row[MANY];
	int n, unsent, in_flight, waiting;
} model;

static int
row_of(bool in_flight)
{
	int n = in_flight ? model.unsent : model.n;

	return n > 0 ? rand() % n : -1;
}

static void
forget(int i)
{
	if (model.row[i].id == 0)
		model.waiting--;
	memmove(model.row + i, model.row + i + 1,
	    (size_t)(model.n - i - 1) * sizeof *model.row);
	model.n--;
	if (i < model.unsent)
		model.unsent--;
}

static void
model_send(void)
{
	struct row *r = &model.row[model.unsent];

	if (model.unsent == model.n)
		return;
	if (r->state == TO_RELEASE) {
		r->state = RELEASED;
		session_resent(s);
	} else {
		CHECK(session_sent(s, r->d));
		CHECK(r->id ? r->d->id == r->id : r->d->id != 0);
		for (int i = 0; i < model.n; i++)
			CHECK(r->id || model.row[i].id != r->d->id);
		model.waiting -= r->id == 0;
		r->id = r->d->id;
		r->state = SENT;
	}
	model.unsent++;
	model.in_flight++;
}

static void
model_answer(int i)
{
	struct row *r;

	if (i < 0)
		return;
	r = &model.row[i];
	CHECK(session_in_flight(s, r->id) == r->d);
	if (r->d->qos == 2 && r->state == SENT && rand() % 2) {
		delivery_release(r->d);
		r->state = RELEASED;
	} else {
		session_done(s, &topics, r->d);
		forget(i);
		model.in_flight--;
	}
}

static void
model_rewind(void)
{
	session_rewind(s, &topics, rand() % 2);
	for (int i = 0; i < model.n; i++)
		if (model.row[i].state == SENT)
			model.row[i].state = WAITING;
		else if (model.row[i].state == RELEASED)
			model.row[i].state = TO_RELEASE;
	model.unsent = model.in_flight = 0;
}

static void
model_compare(void)
{
	struct delivery *d = s->out ? s->out->acked.first : NULL, *prev = NULL;

	for (int i = 0; i < model.n; i++, prev = d, d = d->next) {
		CHECK(d == model.row[i].d && d->prev == prev);
		CHECK(d->id == model.row[i].id);
		CHECK(d->state == model.row[i].state);
		CHECK((session_unsent(s) == d) == (i == model.unsent));
	}
	CHECK(!d);
	if (!s->out)
		return;
	CHECK(s->out->in_flight == model.in_flight);
	CHECK((int)s->out->acked.n == model.waiting);
	CHECK(s->out->acked.bytes == s->out->acked.n * msg_weight(hello));
}

TEST(outbox_against_a_model)
{
	int i;

	begin();
	srand(4);
	for (int step = 0; step < 100000; step++) {
		int what = rand() % 100;

		if (what < 35 && model.n < MANY) {
			model.row[model.n++] = (struct row){
			    .d = queue(1 + (uint8_t)(rand() % 2)) };
			model.waiting++;
		} else if (what < 65) {
			model_send();
		} else if (what < 92) {
			model_answer(row_of(true));
		} else if (what < 96) {
			i = row_of(false);
			if (i >= 0 && model.row[i].state == WAITING) {
				session_drop(s, &topics, model.row[i].d);
				forget(i);
			}
		} else if (what < 97) {
			queue(0);
		} else if (step % 10 == 0) {
			model_rewind();
		}
		model_compare();
	}
	end();
}

/* ---- received QoS 2 identifiers ---- */

TEST(received_ids)
{
	begin();
	CHECK(session_put_received(s, 7) && session_put_received(s, 65535));
	CHECK(session_put_received(s, 1));
	CHECK(session_received(s, 1) && session_received(s, 7));
	CHECK(session_received(s, 65535) && !session_received(s, 2));
	CHECK(session_take_received(s, 7) && !session_take_received(s, 7));
	CHECK(!session_received(s, 7) && session_received(s, 1));
	session_rewind(s, &topics, false);      /* they outlive a connection */
	CHECK(session_received(s, 65535) && session_n_received(s) == 2);
	end();
}

TEST(received_all_ids)
{
	begin();
	/* 40503 is odd, so this passes through all of them. */
	for (unsigned i = 0, id = 0; i < 65536; i++, id = (id + 40503) % 65536)
		CHECK(id == 0 || session_put_received(s, (uint16_t)id));
	CHECK(session_n_received(s) == 65535);
	for (unsigned id = 1; id < 65536; id++)
		CHECK(session_received(s, (uint16_t)id));
	CHECK(!session_received(s, 0));
	for (unsigned i = 0, id = 0; i < 65536; i++, id = (id + 40503) % 65536)
		CHECK(session_take_received(s, (uint16_t)id) == (id != 0));
	CHECK(session_n_received(s) == 0 && !s->received);
	end();
}

TEST(received_at_random)
{
	static bool have[65536];
	unsigned n = 0;

	begin();
	srand(5);
	for (int i = 0; i < 200000; i++) {
		uint16_t id = (uint16_t)(1 + rand() % 3000);

		CHECK(session_received(s, id) == have[id]);
		if (have[id])
			CHECK(session_take_received(s, id));
		else
			CHECK(session_put_received(s, id));
		have[id] = !have[id];
		n += have[id] ? 1u : -1u;
		CHECK(session_n_received(s) == n);
	}
	end();
}

TEST(received_without_memory)
{
	uint16_t n;

	begin();
	mem_set_limit(1);
	CHECK(!session_put_received(s, 1) && !session_received(s, 1));
	mem_set_limit(0);
	CHECK(session_put_received(s, 1));
	mem_set_limit(1);
	for (n = 2; session_put_received(s, n); n++)
		CHECK(n < 1000);
	CHECK(!session_received(s, n) && session_n_received(s) == n - 1u);
	CHECK(session_received(s, 1) && session_take_received(s, 1));
	CHECK(session_put_received(s, n) && session_received(s, n));
	mem_set_limit(0);
	end();
}

/* ---- the end ---- */

TEST(will_is_freed)
{
	begin();
	session_free_will(s);
	s->will = mem_zalloc(sizeof *s->will);
	s->will->msg = msg_ref(hello);
	s->will->due_ms = 100;
	session_free_will(s);
	CHECK(!s->will && hello->refs == 1);
	end();
}

/* A session with all that it can have leaves nothing. */
TEST(session_takes_all_along)
{
	struct sub *sub;
	struct delivery *d;

	begin();
	subscribe("a/+", &sub);
	CHECK(scan_start(&topics, sub, STR("a/+"), &s->scans));
	subscribe("$share/g/x/#", &sub);
	CHECK(topic_retain(&topics, STR("a/b"), hello));
	d = delivery_new(hello, sub->group, 1, false, NULL, 0);
	CHECK(d && session_queue(s, d) && session_sent(s, d));
	delivery_release(send_new(2));
	send_new(2);
	session_rewind(s, &topics, false);
	queue(0);
	queue(1);
	CHECK(session_put_received(s, 9));
	s->will = mem_zalloc(sizeof *s->will);
	s->will->msg = msg_ref(hello);
	s->expires_ms = 5;
	session_set_timer(&all, s);
	session_free(&all, s);
	s = NULL;
	CHECK(topics.n_subs == 0 && topics.groups.n == 0);
	CHECK(topics.filters.nodes.n == 0);
	CHECK(timer_next(&timers) == TIMER_NEVER);
	CHECK(topic_retain(&topics, STR("a/b"), NULL));
	CHECK(topics.topics.nodes.n == 0);
	end();
}
