/* Tests of persist: records of the journal and the state that they make. */
#include "check.h"
#include "journal.h"
#include "mem.h"
#include "persist.h"

#define STR(text) ((struct mqtt_str){ (const uint8_t *)(text), \
	sizeof(text) - 1 })

static struct config conf;
static struct guard guard;

static void
start(struct broker *b)
{
	memset(b, 0, sizeof *b);
	b->conf = &conf;
	b->now_ms = 5000;
	b->auth = (struct auth){ &guard, 1 };
	b->persist.on = true;
	b->persist.wall_floor = MIDGE_TIME + (1LL << 31);
	b->sessions = (struct sessions){ .topics = &b->topics,
	    .timers = &b->timers };
	CHECK(topics_init(&b->topics, &b->timers, 1));
}

static struct session *
begin_session(struct broker *b, uint32_t expiry)
{
	struct session *s = session_new(&b->sessions, STR("me"));

	CHECK(s);
	s->expiry = expiry;
	persist_session(b, s);
	return s;
}

static struct session *
the_session(const struct broker *b)
{
	return session_find(&b->sessions, STR("me"));
}

static void
go_away(struct broker *b, struct session *s, uint32_t expiry)
{
	s->expiry = expiry;
	s->expires_ms = expiry == SESSION_FOREVER ? TIMER_NEVER :
	    b->now_ms + (int64_t)expiry * 1000;
	persist_gone(b, s);
}

static struct msg *
message(const char *text)
{
	struct mqtt_publish p = { .topic = STR("t"), .qos = 2, .payload = {
	    (const uint8_t *)text, (uint32_t)strlen(text) } };
	struct msg *m = msg_new(&p, MSG_NEVER);

	CHECK(m);
	return m;
}

/* Takes the reference to m. */
static struct delivery *
queue(struct broker *b, struct session *s, struct msg *m, uint8_t qos)
{
	struct delivery *d = delivery_new(m, NULL, qos, false, NULL, 0);

	msg_unref(m);
	CHECK(d && session_queue(s, d));
	persist_queue(b, s, d);
	return d;
}

static void
send_as(struct broker *b, struct session *s, struct delivery *d, uint16_t id)
{
	CHECK(session_restore_id(s, d, id));
	persist_sent(b, s, d);
}

static bool
is(const struct msg *m, const char *text)
{
	return m && m->payload_len == strlen(text) && memcmp(m->bytes +
	    m->topic_len + m->props_len, text, m->payload_len) == 0;
}

/* The broker after a crash: from the records so far. The number of those that
 * made no sense. */
static uint32_t
again(struct broker *b)
{
	struct replay r = { .b = b };

	start(b);
	for (size_t i = 0; i < journal.complete; i++)
		CHECK(persist_read(&r, journal.records[i].type,
		    journal.records[i].body, journal.records[i].n));
	persist_settle(&r);
	return r.ignored;
}

/* The same from a snapshot. */
static uint32_t
again_from_snapshot(struct broker *b, struct broker *from)
{
	journal_forget();
	CHECK(persist_dump(from, &from->persist.store));
	return again(b);
}

static struct broker b, c, third;

TEST(numbers_beyond_32_bits)
{
	struct msg *kept, *m;
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	kept = message("kept");
	CHECK(topic_retain(&b.topics, STR("t"), kept));
	persist_retain(&b, STR("t"), kept, NULL);
	queue(&b, s, message("first"), 1);
	b.persist.last_msg = b.persist.last_delivery = UINT32_MAX;
	queue(&b, s, message("next"), 1);
	queue(&b, s, message("last"), 1);
	CHECK(again(&c) == 0);
	s = the_session(&c);
	CHECK(is(topic_retained(&c.topics, STR("t")), "kept"));
	m = s->out->acked.last->msg;
	CHECK(is(s->out->acked.first->msg, "first") && is(m, "last"));
	CHECK(is(s->out->acked.first->next->msg, "next"));
	msg_unref(kept);
}

/* What GONE said does not hold any more once the client was there again. */
TEST(expiry_of_an_earlier_end)
{
	struct session *s;

	start(&b);
	s = begin_session(&b, 10);
	go_away(&b, s, 10);
	s->expiry = SESSION_FOREVER;
	persist_session(&b, s);
	CHECK(again(&c) == 0);
	CHECK(the_session(&c)->expires_ms == TIMER_NEVER);
}

/* DISCONNECT of 5.0 may change the expiry: it counts in a snapshot, too. */
TEST(expiry_changed_at_the_end)
{
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	go_away(&b, s, 10);
	CHECK(again(&c) == 0);
	CHECK(the_session(&c)->expires_ms == c.now_ms + 10000);
	CHECK(again_from_snapshot(&third, &c) == 0);
	CHECK(the_session(&third)->expires_ms == third.now_ms + 10000);
}

TEST(more_identifiers_than_usual)
{
	static uint32_t ids[1000];
	struct delivery *d;
	struct session *s;
	struct msg *m;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	m = message("m");
	for (uint32_t i = 0; i < 1000; i++)
		ids[i] = i + 1;
	d = delivery_new(m, NULL, 1, false, ids, 1000);
	CHECK(d && session_queue(s, d));
	persist_queue(&b, s, d);
	CHECK(again(&c) == 0);
	d = the_session(&c)->out->acked.first;
	CHECK(d->n_subids == 1000 && memcmp(d->subids, ids, sizeof ids) == 0);
	msg_unref(m);
}

/* In whatever order it is acknowledged. */
TEST(window_of_both_kinds)
{
	struct delivery *d[6];
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	for (int i = 0; i < 6; i++) {
		d[i] = queue(&b, s, message("m"), (uint8_t)(1 + i % 2));
		send_as(&b, s, d[i], (uint16_t)(7 + i));
	}
	persist_done(&b, s, d[4]);
	persist_released(&b, s, d[3]);
	persist_done(&b, s, d[0]);
	CHECK(again(&c) == 0);
	s = the_session(&c);
	CHECK(s->out->acked.first->id == 8 && s->out->acked.last->id == 12);
	CHECK(s->out->acked.first->next->id == 9);
	CHECK(s->out->acked.first->next->next->id == 10);
	CHECK(s->out->acked.first->next->next->state == TO_RELEASE);
	CHECK(s->out->acked.first->next->next->next->id == 12);
}

/* ---- records that nobody wrote like that ---- */

static void
put(uint8_t type, const void *body, size_t n)
{
	struct store *st = &b.persist.store;

	memcpy(store_begin(st, type, n), body, n);
	store_end(st, STORE_NOW);
}

enum { WILL = 4, QUEUE = 8, SENT_AS = 9, RELEASE = 10 };

TEST(will_of_the_same_message_twice)
{
	struct will *w = mem_zalloc(sizeof *w);
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	w->msg = message("bye");
	s->will = w;
	w->due_ms = b.now_ms + 1000;
	go_away(&b, s, SESSION_FOREVER);
	for (size_t i = 0; i < 3; i++)
		if (journal.records[i].type == WILL)
			put(WILL, journal.records[i].body,
			    journal.records[i].n);
	CHECK(journal.records[journal.n - 1].type == WILL);
	CHECK(again(&c) == 0);
	CHECK(is(the_session(&c)->will->msg, "bye"));
	CHECK(the_session(&c)->will->msg->recorded == 1);
}

/* No PUBREL for QoS 1, for a message without a name, or with id 0. */
TEST(release_of_what_was_not_sent)
{
	uint8_t nobody[21] = { [0] = 1, [4] = 9, [20] = 2 };
	struct delivery *d;
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	d = queue(&b, s, message("one"), 1);
	send_as(&b, s, d, 5);
	queue(&b, s, message("two"), 2);
	put(RELEASE, "\1\0\0\0" "\1\0\0\0\0\0\0", 12);
	put(RELEASE, "\1\0\0\0" "\2\0\0\0\0\0\0", 12);
	put(QUEUE, nobody, sizeof nobody);
	put(SENT_AS, "\1\0\0\0" "\2\0\0\0\0\0\0\0" "\0\0", 14);
	put(SENT_AS, "\1\0\0\0" "\2\0\0\0\0\0\0\0" "\5", 14);
	CHECK(again(&c) == 4);
	s = the_session(&c);
	CHECK(is(s->out->acked.first->msg, "one"));
	CHECK(is(s->out->acked.last->msg, "two"));
	CHECK(s->out->acked.last->prev == s->out->acked.first);
	CHECK(s->out->acked.last->id == 0 && !s->out->acked.last->sent);
}

TEST(delivery_number_twice)
{
	struct session *s;

	start(&b);
	s = begin_session(&b, SESSION_FOREVER);
	queue(&b, s, message("one"), 1);
	put(QUEUE, journal.records[journal.n - 1].body,
	    journal.records[journal.n - 1].n);
	CHECK(again(&c) == 1);
	s = the_session(&c);
	CHECK(s->out->acked.first == s->out->acked.last);
	CHECK(s->out->acked.first->msg->recorded == 1);
}
