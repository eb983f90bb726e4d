#include "session.h"
#include "mem.h"

#include <assert.h>
#include <stddef.h>
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
	return offsetof(struct session, id) + s->id_len + 1u;
}

struct session *
session_new(struct sessions *ss, struct mqtt_str id)
{
	struct session *s = mem_zalloc(offsetof(struct session, id) +
	    id.len + 1);

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
	s->expires_ms = TIMER_NEVER;
	if (ss->by_id.n > ss->maximum)
		ss->maximum = ss->by_id.n;
	return s;
}

static void
free_user(struct session *s)
{
	if (s->user)
		mem_free(s->user, sizeof *s->user + s->user->len);
	s->user = NULL;
}

bool
session_set_user(struct session *s, struct mqtt_str user)
{
	struct session_user *copy = NULL;

	if (user.p) {
		copy = mem_alloc(sizeof *copy + user.len);
		if (!copy)
			return false;
		copy->len = (uint16_t)user.len;
		memcpy(copy->name, user.p, user.len);
	}
	free_user(s);
	s->user = copy;
	return true;
}

void
session_free_will(struct session *s)
{
	if (!s->will)
		return;
	msg_unref(s->will->msg);
	mem_free(s->will, sizeof *s->will);
	s->will = NULL;
}

static void
drop_qos0(struct session *s, struct topics *t)
{
	while (session_qos0(s))
		session_drop(s, t, session_qos0(s));
}

static void
free_ring(struct outbox *o)
{
	mem_free(o->ring, o->ring_size * sizeof *o->ring);
	o->ring = NULL;
	o->ring_size = 0;
}

static void free_received(struct session *s);

void
session_free(struct sessions *ss, struct session *s)
{
	drop_qos0(s, ss->topics);
	while (s->out)
		session_drop(s, ss->topics, s->out->acked.first);
	while (s->subs)
		topic_unsubscribe(ss->topics, s->subs);
	session_free_will(s);
	free_user(s);
	free_received(s);
	timer_fini(ss->timers, &s->timer);
	hash_remove(&ss->by_id, &s->link);
	mem_free(s, size_of(s));
}

void
session_set_timer(struct sessions *ss, struct session *s)
{
	timer_set(ss->timers, &s->timer, s->will && s->will->due_ms <
	    s->expires_ms ? s->will->due_ms : s->expires_ms);
}

struct sub *
session_subscribe(struct session *s, struct topics *t,
    const struct mqtt_filter *f, uint32_t id, bool *is_new)
{
	struct sub *sub = topic_subscribe(t, s, &s->subs, f, id, is_new);

	if (sub && *is_new)
		s->sub_weight += topic_sub_weight(sub);
	return sub;
}

void
session_unsubscribe(struct session *s, struct topics *t, struct sub *sub)
{
	s->sub_weight -= topic_sub_weight(sub);
	topic_unsubscribe(t, sub);
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
	    .retain = retain, .weight = msg_weight(m) +
	    n_subids * (uint32_t)sizeof *subids,
	    .n_subids = (uint16_t)n_subids };
	if (g)
		group_ref(g);
	if (n_subids)
		memcpy(d->subids, subids, n_subids * sizeof *subids);
	return d;
}

struct delivery *
delivery_released(uint8_t qos)
{
	struct delivery *d = mem_zalloc(sizeof *d);

	if (!d)
		return NULL;
	d->qos = qos;
	d->state = TO_RELEASE;
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

static struct line *
line_of(struct outbox *o, const struct delivery *d)
{
	return d->qos == 0 ? &o->qos0 : &o->acked;
}

bool
session_queue(struct session *s, struct delivery *d)
{
	struct line *l;

	if (!s->out && !(s->out = mem_zalloc(sizeof *s->out)))
		return false;
	l = line_of(s->out, d);
	d->prev = l->first ? l->last : NULL;
	if (d->prev)
		d->prev->next = d;
	else
		l->first = d;
	l->last = d;
	l->n++;
	l->bytes += d->weight;
	if (d->qos > 0 && !s->out->unsent)
		s->out->unsent = d;
	return true;
}

static struct delivery **
slot(const struct outbox *o, uint16_t id)
{
	return &o->ring[id & (o->ring_size - 1)];
}

static void
free_id(struct outbox *o, const struct delivery *d)
{
	*slot(o, d->id) = NULL;
	if (--o->n_ids == 0)
		free_ring(o);
}

void
session_drop(struct session *s, struct topics *t, struct delivery *d)
{
	struct outbox *o = s->out;
	struct line *l = line_of(o, d);

	if (d->prev)
		d->prev->next = d->next;
	else
		l->first = d->next;
	if (d->next)
		d->next->prev = d->prev;
	else
		l->last = d->prev;
	if (o->unsent == d)
		o->unsent = d->next;
	if (d->id) {
		free_id(o, d);
	} else {
		l->n--;
		l->bytes -= d->weight;
	}
	delivery_free(t, d);
	if (!o->qos0.first && !o->acked.first) {
		mem_free(o, sizeof *o);
		s->out = NULL;
	}
}

/* Twice as many slots. */
static bool
double_ring(struct outbox *o)
{
	uint32_t size = o->ring_size ? o->ring_size * 2 : RING_MIN;
	struct delivery **p = mem_alloc_passing(size * sizeof *p);

	if (!p)
		return false;
	memset(p, 0, size * sizeof *p);
	for (uint32_t i = 0; i < o->ring_size; i++)
		if (o->ring[i])
			p[o->ring[i]->id & (size - 1)] = o->ring[i];
	free_ring(o);
	o->ring = p;
	o->ring_size = size;
	return true;
}

/* Twice as many slots as ids in use, so that a free one is soon found. */
static bool
grow_ring(struct outbox *o)
{
	if (o->ring_size > o->n_ids * 2 || o->ring_size > UINT16_MAX)
		return o->n_ids < UINT16_MAX;
	return double_ring(o) || o->n_ids < o->ring_size;
}

static void
set_id(struct outbox *o, struct delivery *d, uint16_t id)
{
	d->id = id;
	*slot(o, id) = d;
	o->n_ids++;
	o->acked.n--;
	o->acked.bytes -= d->weight;
}

/* An identifier not in use towards this client [MQTT-2.3.1-4]. */
bool
session_give_id(struct session *s, struct delivery *d)
{
	struct outbox *o = s->out;

	if (d->id)
		return true;
	if (!grow_ring(o))
		return false;
	do
		s->last_id++;
	while (s->last_id == 0 || *slot(o, s->last_id));
	set_id(o, d, s->last_id);
	return true;
}

bool
session_restore_id(struct session *s, struct delivery *d, uint16_t id)
{
	struct outbox *o = s->out;

	if (id == 0 || d->id || !grow_ring(o))
		return false;
	while (*slot(o, id))
		if ((*slot(o, id))->id == id || !double_ring(o))
			return false;
	set_id(o, d, id);
	s->last_id = id;
	return true;
}

bool
session_sent(struct session *s, struct delivery *d)
{
	assert(d == s->out->unsent);
	if (!session_give_id(s, d))
		return false;
	d->state = SENT;
	d->sent = true;
	s->out->in_flight++;
	s->out->in_flight_bytes += d->weight;
	s->out->unsent = d->next;
	return true;
}

void
session_resent(struct session *s)
{
	s->out->unsent->state = RELEASED;
	s->out->in_flight++;
	s->out->in_flight_bytes += s->out->unsent->weight;
	s->out->unsent = s->out->unsent->next;
}

struct delivery *
session_in_flight(const struct session *s, uint16_t id)
{
	struct delivery *d = s->out && s->out->ring ? *slot(s->out, id) : NULL;

	return d && d->id == id && (d->state == SENT || d->state == RELEASED) ?
	    d : NULL;
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
	s->out->in_flight--;
	s->out->in_flight_bytes -= d->weight;
	session_drop(s, t, d);
}

void
session_rewind(struct session *s, struct topics *t, bool keep_qos0)
{
	struct outbox *o;

	if (!keep_qos0)
		drop_qos0(s, t);
	o = s->out;
	if (!o)
		return;
	for (struct delivery *d = o->acked.first; d != o->unsent; d = d->next)
		d->state = d->state == RELEASED ? TO_RELEASE : WAITING;
	o->unsent = o->acked.first;
	o->in_flight = 0;
	o->in_flight_bytes = 0;
}

/* ---- received QoS 2 identifiers ---- */

/* The place of id in the sorted array, or where it would go. */
static unsigned
place(const struct session *s, uint16_t id)
{
	unsigned lo = 0, hi = session_n_received(s);

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (s->received->id[mid] < id)
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

	return i < session_n_received(s) && s->received->id[i] == id;
}

static size_t
received_size(unsigned cap)
{
	return sizeof(struct received) + cap * sizeof(uint16_t);
}

static void
free_received(struct session *s)
{
	if (s->received)
		mem_free(s->received, received_size(s->received->cap));
	s->received = NULL;
}

static bool
grow_received(struct session *s)
{
	struct received *r = s->received;
	unsigned cap = r ? r->cap * 2u : 8;

	if (cap > UINT16_MAX)
		cap = UINT16_MAX;
	r = mem_resize(r, r ? received_size(r->cap) : 0, received_size(cap));
	if (!r)
		return false;
	if (!s->received)
		r->n = 0;
	r->cap = (uint16_t)cap;
	s->received = r;
	return true;
}

bool
session_put_received(struct session *s, uint16_t id)
{
	unsigned i = place(s, id);
	struct received *r = s->received;

	if ((!r || r->n == r->cap) && !grow_received(s))
		return false;
	r = s->received;
	memmove(r->id + i + 1, r->id + i, (r->n - i) * sizeof *r->id);
	r->id[i] = id;
	r->n++;
	return true;
}

bool
session_take_received(struct session *s, uint16_t id)
{
	unsigned i = place(s, id);
	struct received *r = s->received;

	if (!r || i == r->n || r->id[i] != id)
		return false;
	r->n--;
	memmove(r->id + i, r->id + i + 1, (r->n - i) * sizeof *r->id);
	if (r->n == 0)
		free_received(s);
	return true;
}
