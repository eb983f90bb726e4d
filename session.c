#include "session.h"
#include "mem.h"

#include <assert.h>
#include <string.h>

#define RING_MIN 4

/* ---- the table of sessions ---- */

static uint32_t
id_hash(struct mqtt_str id)
{
	return hash_bytes(id.p, id.len, 0);
}

struct session *
session_find(const struct sessions *ss, struct mqtt_str id)
{
	struct hash_link *l;

	for (l = hash_first(&ss->by_id, id_hash(id)); l; l = hash_next(l)) {
		struct session *s = HASH_OBJECT(l, struct session, link);

		if (mqtt_str_eq(session_id(s), id))
			return s;
	}
	return NULL;
}

static size_t
size_of(const struct session *s)
{
	return sizeof *s + s->id_len + 1u;
}

struct session *
session_new(struct sessions *ss, struct mqtt_str id)
{
	struct session *s = mem_zalloc(sizeof *s + id.len + 1);

	if (!s)
		return NULL;
	s->id_len = (uint16_t)id.len;
	memcpy(s->id, id.p, id.len);
	if (!timer_init(ss->timers, &s->timer, ss->timer_kind)) {
		mem_free(s, size_of(s));
		return NULL;
	}
	if (!hash_put(&ss->by_id, &s->link, id_hash(id))) {
		timer_fini(ss->timers, &s->timer);
		mem_free(s, size_of(s));
		return NULL;
	}
	s->will_ms = s->expires_ms = TIMER_NEVER;
	if (ss->by_id.n > ss->maximum)
		ss->maximum = ss->by_id.n;
	return s;
}

void
session_free_will(struct session *s)
{
	if (!s->will)
		return;
	msg_unref(s->will->msg);
	mem_free(s->will, sizeof *s->will);
	s->will = NULL;
	s->will_ms = TIMER_NEVER;
}

static void
drop_qos0(struct session *s, struct topics *t)
{
	while (s->qos0)
		session_drop(s, t, s->qos0);
}

static void
free_ring(struct session *s)
{
	mem_free(s->ring, s->ring_size * sizeof *s->ring);
	s->ring = NULL;
	s->ring_size = 0;
}

void
session_free(struct sessions *ss, struct session *s)
{
	session_end_scans(s, ss->topics, NULL);
	drop_qos0(s, ss->topics);
	while (s->first)
		session_drop(s, ss->topics, s->first);
	while (s->subs)
		topic_unsubscribe(ss->topics, s->subs);
	session_free_will(s);
	free_ring(s);
	mem_free(s->received, s->received_cap * sizeof *s->received);
	timer_fini(ss->timers, &s->timer);
	hash_remove(&ss->by_id, &s->link);
	mem_free(s, size_of(s));
}

void
session_set_timer(struct sessions *ss, struct session *s)
{
	timer_set(ss->timers, &s->timer, s->will_ms < s->expires_ms ?
	    s->will_ms : s->expires_ms);
}

/* ---- deliveries ---- */

static size_t
delivery_size(const struct delivery *d)
{
	return sizeof *d + d->n_subids * sizeof *d->subids;
}

struct delivery *
delivery_new(struct msg *m, struct group *g, uint8_t qos, bool retain,
    const uint32_t *subids, uint32_t n_subids)
{
	struct delivery *d = mem_alloc(sizeof *d + n_subids * sizeof *subids);

	if (!d)
		return NULL;
	*d = (struct delivery){ .msg = msg_ref(m), .group = g, .qos = qos,
	    .retain = retain, .weight = msg_weight(m),
	    .n_subids = (uint8_t)n_subids };
	if (g)
		group_ref(g);
	if (n_subids)
		memcpy(d->subids, subids, n_subids * sizeof *subids);
	return d;
}

void
delivery_free(struct topics *t, struct delivery *d)
{
	msg_unref(d->msg);
	if (d->group)
		group_unref(t, d->group);
	mem_free(d, delivery_size(d));
}

static void
count_waiting(struct session *s, const struct delivery *d, bool more)
{
	struct queued *q = &s->queued[d->qos > 0];

	q->n += more ? 1u : -1u;
	q->bytes += more ? d->weight : -(uint64_t)d->weight;
}

void
session_queue(struct session *s, struct delivery *d)
{
	bool zero = d->qos == 0;
	struct delivery **first = zero ? &s->qos0 : &s->first;
	struct delivery **last = zero ? &s->qos0_last : &s->last;

	d->prev = *first ? *last : NULL;
	if (d->prev)
		d->prev->next = d;
	else
		*first = d;
	*last = d;
	if (!zero && !s->unsent)
		s->unsent = d;
	count_waiting(s, d, true);
}

static struct delivery **
slot(const struct session *s, uint16_t id)
{
	return &s->ring[id & (s->ring_size - 1)];
}

/* Whether d stands before s->unsent: it is in flight on this connection. */
static bool
is_out(const struct delivery *d)
{
	return d->state != WAITING;
}

void
session_drop(struct session *s, struct topics *t, struct delivery *d)
{
	bool zero = d->qos == 0;
	struct delivery **first = zero ? &s->qos0 : &s->first;
	struct delivery **last = zero ? &s->qos0_last : &s->last;

	if (d->prev)
		d->prev->next = d->next;
	else
		*first = d->next;
	if (d->next)
		d->next->prev = d->prev;
	else
		*last = d->prev;
	if (s->unsent == d)
		s->unsent = d->next;
	if (!is_out(d) && d->id == 0)
		count_waiting(s, d, false);
	if (d->id) {
		*slot(s, d->id) = NULL;
		if (--s->n_ids == 0)
			free_ring(s);
	}
	delivery_free(t, d);
}

/* Twice as many slots as ids in use, so that a free one is soon found. */
static bool
grow_ring(struct session *s)
{
	uint32_t size = s->ring_size ? s->ring_size * 2 : RING_MIN;
	struct delivery **old = s->ring, **p;

	if (s->ring_size > s->n_ids * 2 || s->ring_size > UINT16_MAX)
		return s->n_ids < UINT16_MAX;
	p = mem_zalloc(size * sizeof *p);
	if (!p)
		return false;
	for (uint32_t i = 0; i < s->ring_size; i++)
		if (old[i])
			p[old[i]->id & (size - 1)] = old[i];
	free_ring(s);
	s->ring = p;
	s->ring_size = size;
	return true;
}

/* An identifier not in use towards this client [MQTT-2.3.1-4]. */
static bool
give_id(struct session *s, struct delivery *d)
{
	if (!grow_ring(s))
		return false;
	do
		s->last_id++;
	while (s->last_id == 0 || *slot(s, s->last_id));
	d->id = s->last_id;
	*slot(s, d->id) = d;
	s->n_ids++;
	count_waiting(s, d, false);
	return true;
}

bool
session_sent(struct session *s, struct delivery *d)
{
	assert(d == s->unsent);
	if (d->id == 0 && !give_id(s, d))
		return false;
	d->state = SENT;
	s->in_flight++;
	s->unsent = d->next;
	return true;
}

void
session_resent(struct session *s)
{
	s->in_flight++;
	s->unsent = s->unsent->next;
}

struct delivery *
session_in_flight(const struct session *s, uint16_t id)
{
	struct delivery *d = s->ring_size ? *slot(s, id) : NULL;

	return d && d->id == id && is_out(d) ? d : NULL;
}

void
delivery_release(struct delivery *d)
{
	d->state = RELEASED;
	msg_unref(d->msg);
	d->msg = NULL;
}

void
session_done(struct session *s, struct topics *t, struct delivery *d)
{
	if (s->in_flight)
		s->in_flight--;
	session_drop(s, t, d);
}

void
session_rewind(struct session *s, struct topics *t, bool keep_qos0)
{
	if (!keep_qos0)
		drop_qos0(s, t);
	for (struct delivery *d = s->first; d != s->unsent; d = d->next)
		if (d->state == SENT)
			d->state = WAITING;
	s->unsent = s->first;
	s->in_flight = 0;
}

/* ---- received QoS 2 identifiers ---- */

/* The place of id in the sorted array, or where it would go. */
static unsigned
place(const struct session *s, uint16_t id)
{
	unsigned lo = 0, hi = s->n_received;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (s->received[mid] < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool
session_received(const struct session *s, uint16_t id)
{
	unsigned i = place(s, id);

	return i < s->n_received && s->received[i] == id;
}

bool
session_put_received(struct session *s, uint16_t id)
{
	unsigned i = place(s, id);

	if (s->n_received == s->received_cap) {
		unsigned cap = s->received_cap ? s->received_cap * 2u : 8;
		void *p;

		if (cap > UINT16_MAX)
			cap = UINT16_MAX;
		p = mem_resize(s->received,
		    s->received_cap * sizeof *s->received,
		    cap * sizeof *s->received);
		if (!p)
			return false;
		s->received = p;
		s->received_cap = (uint16_t)cap;
	}
	memmove(s->received + i + 1, s->received + i,
	    (s->n_received - i) * sizeof *s->received);
	s->received[i] = id;
	s->n_received++;
	return true;
}

bool
session_take_received(struct session *s, uint16_t id)
{
	unsigned i = place(s, id);

	if (i == s->n_received || s->received[i] != id)
		return false;
	s->n_received--;
	memmove(s->received + i, s->received + i + 1,
	    (s->n_received - i) * sizeof *s->received);
	if (s->n_received == 0) {
		mem_free(s->received, s->received_cap * sizeof *s->received);
		s->received = NULL;
		s->received_cap = 0;
	}
	return true;
}

/* ---- scans ---- */

void
session_end_scans(struct session *s, struct topics *t, const struct sub *sub)
{
	struct scan **p = &s->scans, *gone;

	while (*p) {
		if (sub && (*p)->sub != sub) {
			p = &(*p)->next;
			continue;
		}
		gone = *p;
		*p = gone->next;
		scan_free(t, gone);
	}
}
