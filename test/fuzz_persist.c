/* Fuzzer of the replay: any records, in any order, make a state without
 * contradictions; its snapshot makes the same state again; nothing is kept when
 * it is gone. A record is a type, two bytes of length and a body. */
#include "journal.h"
#include "mem.h"
#include "persist.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NOW_MS 1000000

static struct config conf;
static struct guard guards[2];

static void
start(struct broker *b)
{
	memset(b, 0, sizeof *b);
	b->conf = &conf;
	b->now_ms = NOW_MS;
	b->auth = (struct auth){ guards, 2 };
	b->persist.on = true;
	/* Later than the clock, which stands still for that. */
	b->persist.wall_floor = MIDGE_TIME + (1LL << 31);
	b->sessions = (struct sessions){ .topics = &b->topics,
	    .timers = &b->timers };
	assert(topics_init(&b->topics, &b->timers, 1));
}

static void
stop(struct broker *b)
{
	struct hash *h = &b->sessions.by_id;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		while (h->bucket[i])
			session_free(&b->sessions, HASH_OBJECT(h->bucket[i],
			    struct session, link));
	hash_fini(h);
	topics_fini(&b->topics);
	assert(b->timers.owners == 0);
	timers_fini(&b->timers);
}

/* ---- what holds in each state ---- */

static void
check_msg(struct msg *m)
{
	assert(m->refs > 0 && m->recorded > 0 && m->no > 0 && !m->dumped);
	assert(m->qos < 3 && !mqtt_topic_fault(msg_topic(m)));
	assert(mqtt_forward_valid((struct mqtt_str){ m->bytes + m->topic_len,
	    m->props_len }));
}

static void
check_delivery(const struct broker *b, const struct session *s,
    const struct delivery *d)
{
	assert(d->recorded && d->no > 0 && d->no <= b->persist.last_delivery);
	assert(d->qos == 1 || d->qos == 2);
	assert(d->state == WAITING || d->state == TO_RELEASE);
	assert(!d->msg == (d->state == TO_RELEASE));
	assert(d->msg || (d->qos == 2 && d->id));
	assert(!d->id || s->out->ring[d->id & (s->out->ring_size - 1)] == d);
	assert(d->sent == (d->id > 0));
	for (unsigned i = 0; i < d->n_subids; i++)
		assert(d->subids[i] > 0 && d->subids[i] <= 268435455);
	if (d->msg)
		check_msg(d->msg);
	for (const struct delivery *e = d->next; e; e = e->next)
		assert(e->no != d->no);
}

static void
check_session(const struct broker *b, struct session *s)
{
	assert(s->no > 0 && s->no <= b->persist.last_session);
	assert(!s->client && s->id_len > 0);
	assert(session_find(&b->sessions, session_id(s)) == s);
	if (s->will) {
		assert(s->will->due_ms != TIMER_NEVER);
		check_msg(s->will->msg);
	}
	for (unsigned i = 1; i < session_n_received(s); i++)
		assert(s->received->id[i - 1] < s->received->id[i]);
	if (!s->out)
		return;
	assert(!s->out->qos0.first && s->out->unsent == s->out->acked.first);
	assert(s->out->in_flight == 0);
	for (struct delivery *d = s->out->acked.first; d; d = d->next)
		check_delivery(b, s, d);
}

/* To all messages, from what the journal knows. */
static uint32_t
references(const struct broker *b)
{
	uint32_t n = b->topics.n_retained;
	const struct hash *h = &b->sessions.by_id;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			n += s->will != NULL;
			for (struct delivery *d = s->out ?
			    s->out->acked.first : NULL; d; d = d->next)
				n += d->msg != NULL;
		}
	return n;
}

/* The sum of what messages say, each once. */
static uint32_t
said(struct msg *m)
{
	if (m->dumped)
		return 0;
	m->dumped = true;
	assert(m->recorded == m->refs);
	return m->recorded;
}

static void
check(struct broker *b)
{
	uint32_t n = 0;
	const struct node *at = NULL;
	const struct hash *h = &b->sessions.by_id;

	while ((at = topic_next_retained(&b->topics, at)))
		check_msg(at->retained);
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next)
			check_session(b, HASH_OBJECT(l, struct session,
			    link));
	while ((at = topic_next_retained(&b->topics, at)))
		n += said(at->retained);
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			n += s->will ? said(s->will->msg) : 0;
			for (struct delivery *d = s->out ?
			    s->out->acked.first : NULL; d; d = d->next)
				n += d->msg ? said(d->msg) : 0;
		}
	assert(n == references(b));
}

/* ---- there and back ---- */

static void
forget_dumped(struct broker *b)
{
	const struct node *at = NULL;
	const struct hash *h = &b->sessions.by_id;

	while ((at = topic_next_retained(&b->topics, at)))
		at->retained->dumped = false;
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			if (s->will)
				s->will->msg->dumped = false;
			for (struct delivery *d = s->out ?
			    s->out->acked.first : NULL; d; d = d->next)
				if (d->msg)
					d->msg->dumped = false;
		}
}

static int
by_bytes(const void *a, const void *b)
{
	const struct journal_record *x = a, *y = b;
	uint32_t n = x->n < y->n ? x->n : y->n;
	int r = x->type != y->type ? x->type - y->type :
	    memcmp(x->body, y->body, n);

	return r ? r : (x->n > y->n) - (x->n < y->n);
}

/* The snapshot of b, in the journal, its order as dumped. */
static void
dump(struct broker *b)
{
	forget_dumped(b);
	journal_forget();
	assert(persist_dump(b, &b->persist.store));
	assert(journal.n == journal.complete);
}

static void
check_snapshot(struct broker *b)
{
	static struct broker again;
	struct replay r = { .b = &again };
	struct journal_record *first;
	size_t n;

	dump(b);
	start(&again);
	for (size_t i = 0; i < journal.n; i++)
		assert(persist_read(&r, journal.records[i].type,
		    journal.records[i].body, journal.records[i].n));
	assert(r.ignored == 0);
	persist_settle(&r);
	check(&again);
	first = journal.records;
	n = journal.n;
	journal.records = NULL;
	journal.n = 0;
	dump(&again);
	assert(journal.n == n);
	qsort(first, n, sizeof *first, by_bytes);
	qsort(journal.records, n, sizeof *first, by_bytes);
	for (size_t i = 0; i < n; i++) {
		assert(by_bytes(&first[i], &journal.records[i]) == 0);
		free(first[i].body);
	}
	free(first);
	journal_forget();
	stop(&again);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct broker b;
	struct replay r = { .b = &b };
	const uint8_t *end = data + size;
	size_t used = mem_used();
	uint32_t n;
	bool ok = true;

	start(&b);
	while (ok && end - data >= 3) {
		n = (uint32_t)(data[1] | data[2] << 8);
		if ((size_t)(end - data - 3) < n)
			n = (uint32_t)(end - data - 3);
		ok = persist_read(&r, data[0], data + 3, n);
		data += 3 + n;
	}
	assert(ok);
	persist_settle(&r);
	check(&b);
	check_snapshot(&b);
	stop(&b);
	assert(mem_used() == used && msg_count() == 0);
	return 0;
}
