#include "persist.h"
#include "auth.h"
#include "mem.h"
#include "mosqdb.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum record {
	MSG = 1, SESSION, GONE, WILL, END, SUB, UNSUB, QUEUE, SENT_AS,
	RELEASE, DONE, GOT, LET_GO, RETAIN, UNRETAIN, TIME,
};

/* ---- writing ---- */

static uint8_t *
put8(uint8_t *p, unsigned v)
{
	*p = (uint8_t)v;
	return p + 1;
}

static uint8_t *
put16(uint8_t *p, unsigned v)
{
	return put8(put8(p, v & 0xff), v >> 8);
}

static uint8_t *
put32(uint8_t *p, uint32_t v)
{
	return put16(put16(p, v & 0xffff), v >> 16);
}

static uint8_t *
put64(uint8_t *p, int64_t v)
{
	return put32(put32(p, (uint32_t)v), (uint32_t)((uint64_t)v >> 32));
}

/* The number of a message or delivery: 64 bits, since a busy broker has given
 * 2^32 of them within weeks. */
static uint8_t *
put_no(uint8_t *p, uint64_t no)
{
	return put64(p, (int64_t)no);
}

static uint8_t *
put_bytes(uint8_t *p, const void *s, size_t n)
{
	if (n)
		memcpy(p, s, n);
	return p + n;
}

/* Room for a record. NULL: it cannot be taken; then the state is written anew
 * as soon as that is possible, nothing is acknowledged before, and who asked
 * for it is refused. */
static uint8_t *
begin(struct broker *b, enum record type, size_t n)
{
	uint8_t *p = store_begin(&b->persist.store, (uint8_t)type, n);

	if (!p) {
		b->persist.lost = true;
		store_incomplete(&b->persist.store);
	}
	return p;
}

/* With autosave_on_changes so many lazy records make one that is not. */
static bool
enough_changes(struct broker *b)
{
	const struct config *c = b->conf;

	if (!c->autosave_on_changes || c->autosave_interval == 0 ||
	    ++b->persist.changes < (uint32_t)c->autosave_interval)
		return false;
	b->persist.changes = 0;
	return true;
}

static void
finish(struct broker *b, enum store_class class)
{
	struct persist *p = &b->persist;

	if (p->group)
		class = STORE_MORE;
	else if (class == STORE_LAZY && enough_changes(b))
		class = STORE_NOW;
	store_end(&p->store, class);
	if (class != STORE_LAZY)
		p->pos = store_end_position(&p->store);
}

/* The time that is later than all that was recorded, whatever the clock. */
static int64_t
wall(struct broker *b)
{
	int64_t now = (int64_t)time(NULL);

	if (now > b->persist.wall_floor)
		b->persist.wall_floor = now;
	return b->persist.wall_floor;
}

static uint32_t
seconds_left(const struct broker *b, int64_t due_ms)
{
	int64_t left = (due_ms - b->now_ms + 999) / 1000;

	return left < 0 ? 0 : left > UINT32_MAX ? UINT32_MAX : (uint32_t)left;
}

#define EXPIRES 0x08

/* Has m in the journal before a record that refers to it. */
static void
put_msg(struct broker *b, struct msg *m, enum store_class class)
{
	bool expires = m->expires_ms != MSG_NEVER;
	size_t body = (size_t)m->topic_len + m->props_len + m->payload_len;
	uint8_t *p = begin(b, MSG, 15u + (expires ? 12u : 0u) + body);

	if (!p)
		return;
	p = put_no(p, m->no);
	p = put8(p, m->qos | (unsigned)m->retain << 2 |
	    (expires ? EXPIRES : 0u));
	if (expires) {
		p = put64(p, wall(b));
		p = put32(p, seconds_left(b, m->expires_ms));
	}
	p = put16(p, m->topic_len);
	p = put32(p, m->props_len);
	put_bytes(p, m->bytes, body);
	finish(b, class);
}

static void
refer_to(struct broker *b, struct msg *m, enum store_class class)
{
	if (m->recorded++ > 0)
		return;
	m->no = ++b->persist.last_msg;
	put_msg(b, m, class);
}

static void
let_go_of(struct delivery *d)
{
	if (d->recorded && d->msg)
		d->msg->recorded--;
	d->recorded = false;
}

static bool
is_sys(struct mqtt_str topic)
{
	return topic.len >= 5 && memcmp(topic.p, "$SYS/", 5) == 0;
}

/* ---- sessions ---- */

static void
put_session(struct broker *b, const struct session *s)
{
	struct mqtt_str user = session_user(s);
	uint8_t *p = begin(b, SESSION, 22u + s->id_len + user.len);

	if (!p)
		return;
	p = put32(p, s->no);
	p = put32(p, s->expiry);
	p = put8(p, s->guard);
	p = put8(p, user.p != NULL);
	p = put64(p, wall(b));
	p = put16(p, s->id_len);
	p = put_bytes(p, s->id, s->id_len);
	p = put16(p, user.len);
	put_bytes(p, user.p, user.len);
	finish(b, STORE_NOW);
}

void
persist_session(struct broker *b, struct session *s)
{
	if (!b->persist.on)
		return;
	if (s->expiry == 0) {
		persist_end(b, s);
		return;
	}
	if (s->no == 0)
		s->no = ++b->persist.last_session;
	put_session(b, s);
}

static void
put_gone(struct broker *b, const struct session *s)
{
	uint8_t *p = begin(b, GONE, 16);

	if (!p)
		return;
	p = put32(p, s->no);
	/* DISCONNECT may have changed the expiry that SESSION told. */
	p = put32(p, s->expires_ms == TIMER_NEVER ? SESSION_FOREVER :
	    seconds_left(b, s->expires_ms));
	put64(p, wall(b));
	finish(b, STORE_LAZY);
}

static void
put_will(struct broker *b, const struct session *s)
{
	const struct will *w = s->will;
	uint8_t *p = begin(b, WILL, 29);

	if (!p)
		return;
	p = put32(p, s->no);
	p = put_no(p, w ? w->msg->no : 0);
	p = put32(p, w ? seconds_left(b, w->due_ms) : 0);
	p = put64(p, wall(b));
	p = put32(p, w ? w->expiry : 0);
	put8(p, w && w->has_expiry);
	finish(b, STORE_NOW);
}

void
persist_gone(struct broker *b, struct session *s)
{
	if (s->no == 0)
		return;
	if (s->will) {
		refer_to(b, s->will->msg, STORE_NOW);
		put_will(b, s);
	}
	put_gone(b, s);
}

bool
persist_will_goes(struct broker *b, struct session *s)
{
	/* That of a client that is connected was not recorded. */
	if (s->no == 0 || !s->will || !s->will->msg->recorded)
		return false;
	s->will->msg->recorded--;
	b->persist.group = true;
	return true;
}

void
persist_will_gone(struct broker *b, const struct session *s)
{
	uint8_t *p;

	b->persist.group = false;
	p = begin(b, WILL, 29);
	if (!p) {
		persist_drop_group(b);
		return;
	}
	memset(put32(p, s->no), 0, 25);
	finish(b, STORE_NOW);
}

void
persist_end(struct broker *b, struct session *s)
{
	uint8_t *p;

	if (s->no == 0)
		return;
	for (struct delivery *d = s->out ? s->out->acked.first : NULL; d;
	    d = d->next)
		let_go_of(d);
	p = begin(b, END, 4);
	if (p) {
		put32(p, s->no);
		finish(b, STORE_NOW);
	}
	s->no = 0;
}

static void
put_sub(struct broker *b, uint32_t no, const struct mqtt_filter *f,
    uint32_t id)
{
	uint8_t *p = begin(b, SUB, 9u + f->filter.len);

	if (!p)
		return;
	p = put32(p, no);
	p = put8(p, f->qos | (unsigned)f->no_local << 2 |
	    (unsigned)f->retain_as_published << 3);
	p = put32(p, id);
	put_bytes(p, f->filter.p, f->filter.len);
	finish(b, STORE_NOW);
}

void
persist_sub(struct broker *b, const struct session *s,
    const struct mqtt_filter *f, uint32_t id)
{
	if (s->no)
		put_sub(b, s->no, f, id);
}

void
persist_unsub(struct broker *b, const struct session *s,
    struct mqtt_str filter)
{
	uint8_t *p = s->no ? begin(b, UNSUB, 4u + filter.len) : NULL;

	if (!p)
		return;
	put_bytes(put32(p, s->no), filter.p, filter.len);
	finish(b, STORE_NOW);
}

/* ---- messages on their way ---- */

static void
put_queue(struct broker *b, uint32_t no, const struct delivery *d)
{
	/* What the message was sent with went with it. */
	unsigned n = d->msg ? d->n_subids : 0;
	bool retain = d->msg && d->retain;
	uint8_t *p = begin(b, QUEUE, 21 + 4u * n);

	if (!p)
		return;
	p = put32(p, no);
	p = put_no(p, d->no);
	p = put_no(p, d->msg ? d->msg->no : 0);
	p = put8(p, d->qos | (unsigned)retain << 2);
	for (unsigned i = 0; i < n; i++)
		p = put32(p, d->subids[i]);
	finish(b, STORE_NOW);
}

/* A record that has only the numbers of session and delivery. */
static uint8_t *
put_numbers(struct broker *b, enum record type, uint32_t no,
    const struct delivery *d, size_t more)
{
	uint8_t *p = begin(b, type, 12 + more);

	return p ? put_no(put32(p, no), d->no) : NULL;
}

void
persist_queue(struct broker *b, struct session *s, struct delivery *d)
{
	if (s->no == 0 || d->qos == 0 || is_sys(msg_topic(d->msg)))
		return;
	d->no = ++b->persist.last_delivery;
	d->recorded = true;
	refer_to(b, d->msg, STORE_NOW);
	put_queue(b, s->no, d);
	d->pos = b->persist.pos;
}

static void
put_sent(struct broker *b, uint32_t no, const struct delivery *d,
    enum store_class class)
{
	uint8_t *p = put_numbers(b, SENT_AS, no, d, 2);

	if (!p)
		return;
	put16(p, d->id);
	finish(b, class);
}

void
persist_sent(struct broker *b, const struct session *s, struct delivery *d)
{
	if (!d->recorded)
		return;
	/* One of QoS 1 may come again under another identifier. */
	put_sent(b, s->no, d, d->qos == 2 ? STORE_NOW : STORE_LAZY);
	if (d->qos == 2)
		d->pos = b->persist.pos;
}

void
persist_released(struct broker *b, const struct session *s,
    struct delivery *d)
{
	if (!d->recorded || !d->msg)
		return;
	d->msg->recorded--;
	if (put_numbers(b, RELEASE, s->no, d, 0))
		finish(b, STORE_NOW);
	d->pos = b->persist.pos;
}

void
persist_done(struct broker *b, const struct session *s, struct delivery *d)
{
	if (!d->recorded)
		return;
	let_go_of(d);
	if (put_numbers(b, DONE, s->no, d, 0))
		finish(b, STORE_LAZY);
}

static void
put_id(struct broker *b, enum record type, uint32_t no, uint16_t id)
{
	uint8_t *p = begin(b, type, 6);

	if (!p)
		return;
	put16(put32(p, no), id);
	finish(b, STORE_NOW);
}

void
persist_group(struct broker *b, const struct session *from)
{
	b->persist.group = from->no != 0;
}

void
persist_got(struct broker *b, const struct session *s, uint16_t id)
{
	b->persist.group = false;
	if (s->no)
		put_id(b, GOT, s->no, id);
	if (b->persist.lost)
		persist_drop_group(b);
}

void
persist_drop_group(struct broker *b)
{
	b->persist.group = false;
	if (!b->persist.on || store_end_position(&b->persist.store) ==
	    store_position(&b->persist.store))
		return;
	store_drop(&b->persist.store);
	b->persist.pos = store_end_position(&b->persist.store);
	store_incomplete(&b->persist.store);
}

void
persist_let_go(struct broker *b, const struct session *s, uint16_t id)
{
	if (s->no)
		put_id(b, LET_GO, s->no, id);
}

/* ---- retained messages ---- */

/* With the one who published it, where that matters. */
static void
put_retain(struct broker *b, const struct msg *m, const struct source *s,
    enum store_class class)
{
	uint8_t *p = begin(b, RETAIN, 8 + (s ? 4u + s->user_len + s->id_len :
	    0u));

	if (!p)
		return;
	p = put_no(p, m->no);
	if (s) {
		p = put8(p, s->guard);
		p = put8(p, s->has_user);
		p = put16(p, s->user_len);
		put_bytes(p, s->names, (size_t)s->user_len + s->id_len);
	}
	finish(b, class);
}

void
persist_retain(struct broker *b, struct mqtt_str topic, struct msg *m,
    struct msg *old)
{
	enum store_class class = m && m->qos == 0 ? STORE_LAZY : STORE_NOW;
	uint8_t *p;

	if (!b->persist.on || is_sys(topic) || (!m && !old))
		return;
	if (old && old->recorded)
		old->recorded--;
	if (m) {
		refer_to(b, m, class);
		put_retain(b, m, topic_source(&b->topics, topic_find(
		    &b->topics, topic)), class);
		return;
	}
	p = begin(b, UNRETAIN, topic.len);
	if (!p)
		return;
	put_bytes(p, topic.p, topic.len);
	finish(b, class);
}

/* ---- the whole state ---- */

static void
put_time(struct broker *b, enum store_class class)
{
	uint8_t *p = begin(b, TIME, 8);

	if (!p)
		return;
	put64(p, wall(b));
	finish(b, class);
}

static void
dump_msg(struct broker *b, struct msg *m)
{
	if (m->dumped)
		return;
	m->dumped = true;
	put_msg(b, m, STORE_NOW);
}

static void
dump_delivery(struct broker *b, const struct session *s,
    const struct delivery *d)
{
	if (!d->recorded)
		return;
	if (d->msg)
		dump_msg(b, d->msg);
	put_queue(b, s->no, d);
	if (d->id)
		put_sent(b, s->no, d, STORE_NOW);
	if (d->state == RELEASED || d->state == TO_RELEASE)
		if (put_numbers(b, RELEASE, s->no, d, 0))
			finish(b, STORE_NOW);
}

static void
dump_session(struct broker *b, const struct session *s)
{
	char filter[2 * 65536 + 16];
	struct mqtt_filter f = { .filter.p = (uint8_t *)filter };

	put_session(b, s);
	for (const struct sub *sub = s->subs; sub; sub = sub->mine_next) {
		topic_filter_text(sub, filter, sizeof filter);
		f.filter.len = (uint32_t)strlen(filter);
		f.qos = sub->qos;
		f.no_local = sub->no_local;
		f.retain_as_published = sub->retain_as_published;
		put_sub(b, s->no, &f, sub->id);
	}
	for (unsigned i = 0; i < session_n_received(s); i++)
		put_id(b, GOT, s->no, s->received->id[i]);
	for (const struct delivery *d = s->out ? s->out->acked.first : NULL;
	    d; d = d->next)
		dump_delivery(b, s, d);
	if (s->client)
		return;
	if (s->will && s->will->due_ms != TIMER_NEVER) {
		dump_msg(b, s->will->msg);
		put_will(b, s);
	}
	put_gone(b, s);
}

static void
dump_retained(struct broker *b, const struct node *n)
{
	if (n->retained->recorded == 0)
		return;                 /* $SYS */
	dump_msg(b, n->retained);
	put_retain(b, n->retained, topic_source(&b->topics, n), STORE_NOW);
}

/* b->persist.lost tells whether a record was missing. */
static void
dump_all(struct broker *b)
{
	const struct hash *h = &b->topics.topics.nodes;

	b->persist.lost = false;
	put_time(b, STORE_NOW);
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct node *n = HASH_OBJECT(l, struct node, link);

			if (n->retained)
				dump_retained(b, n);
		}
	h = &b->sessions.by_id;
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			if (s->no)
				dump_session(b, s);
		}
}

bool
persist_dump(void *arg, struct store *st)
{
	struct broker *b = arg;

	(void)st;                       /* it is b's */
	b->persist.group = false;
	dump_all(b);
	return !b->persist.lost;
}

/* ---- reading ---- */

/* The one bounded reader of bodies: bad once a field is not there. */
struct reader {
	const uint8_t *p, *end;
	bool bad;
};

static uint64_t
get(struct reader *r, unsigned bytes)
{
	uint64_t v = 0;

	if ((size_t)(r->end - r->p) < bytes) {
		r->bad = true;
		r->p = r->end;
		return 0;
	}
	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)r->p[i] << 8 * i;
	r->p += bytes;
	return v;
}

static uint32_t
get32(struct reader *r)
{
	return (uint32_t)get(r, 4);
}

static uint64_t
get_no(struct reader *r)
{
	return get(r, 8);
}

static struct mqtt_str
get_bytes(struct reader *r, size_t n)
{
	struct mqtt_str s = { r->p, (uint32_t)n };

	if ((size_t)(r->end - r->p) < n) {
		r->bad = true;
		return (struct mqtt_str){ 0 };
	}
	r->p += n;
	return s;
}

static struct mqtt_str
get_rest(struct reader *r)
{
	return get_bytes(r, (size_t)(r->end - r->p));
}

/* Something that was found under its number. */
struct numbered {
	struct hash_link link;
	uint64_t no;
	void *p;
	uint32_t of;                    /* session of a delivery, else 0 */
	bool connected;                 /* a session without GONE */
};

static uint32_t
number_hash(uint32_t of, uint64_t no)
{
	return hash_bytes(&no, sizeof no, of);
}

static struct numbered *
find_of(const struct hash *h, uint32_t of, uint64_t no)
{
	struct hash_link *l;

	for (l = hash_first(h, number_hash(of, no)); l; l = hash_next(l)) {
		struct numbered *n = HASH_OBJECT(l, struct numbered, link);

		if (n->no == no && n->of == of)
			return n;
	}
	return NULL;
}

static struct numbered *
find(const struct hash *h, uint64_t no)
{
	return find_of(h, 0, no);
}

static void *
find_object(const struct hash *h, uint64_t no)
{
	struct numbered *n = find(h, no);

	return n ? n->p : NULL;
}

static struct numbered *
add_of(struct hash *h, uint32_t of, uint64_t no, void *p)
{
	struct numbered *n = mem_zalloc(sizeof *n);

	if (!n)
		return NULL;
	n->no = no;
	n->of = of;
	n->p = p;
	if (hash_put(h, &n->link, number_hash(of, no)))
		return n;
	mem_free(n, sizeof *n);
	return NULL;
}

static struct numbered *
add(struct hash *h, uint64_t no, void *p)
{
	return add_of(h, 0, no, p);
}

static void
take_out(struct hash *h, struct numbered *n)
{
	hash_remove(h, &n->link);
	mem_free(n, sizeof *n);
}

/* The last reference to a message is gone: nothing can refer to it later. */
static void
forget_msg(struct replay *r, struct msg *m)
{
	struct numbered *n;

	if (!m || m->recorded == 0 || --m->recorded > 0)
		return;
	n = find(&r->msgs, m->no);
	if (n)
		take_out(&r->msgs, n);
	msg_unref(m);
}

/* The moment that was so many seconds after a time of then. */
static int64_t
due(const struct replay *r, int64_t then, uint32_t seconds)
{
	int64_t passed = then < 0 ? 0 : wall(r->b) - then;

	if (passed < 0)
		passed = 0;
	return r->b->now_ms + ((int64_t)seconds - passed) * 1000;
}

static int64_t
get_wall(struct replay *r, struct reader *in)
{
	int64_t t = (int64_t)get(in, 8);

	/* A damaged one must not move the clock to the end of days. */
	if (t > r->b->persist.wall_floor && t < MIDGE_TIME + (1LL << 31))
		r->b->persist.wall_floor = t;
	return t;
}

/* One that was never given: others will be above it. */
static bool
bad_no(uint64_t no)
{
	return no == 0 || no > INT64_MAX;
}

static bool
read_msg(struct replay *r, struct reader *in)
{
	uint64_t no = get_no(in);
	unsigned flags = (unsigned)get(in, 1);
	uint32_t props_len;
	int64_t expires = MSG_NEVER, then;
	struct mqtt_publish p = { .qos = flags & 3, .retain = flags >> 2 & 1 };
	struct msg *m;

	if (flags & EXPIRES) {
		then = get_wall(r, in);
		expires = due(r, then, get32(in));
	}
	p.topic.len = (uint32_t)get(in, 2);
	props_len = get32(in);
	p.topic = get_bytes(in, p.topic.len);
	p.props = get_bytes(in, props_len);
	p.payload = get_rest(in);
	in->bad |= bad_no(no) || p.qos > 2 ||
	    !mqtt_utf8_valid(p.topic.p, p.topic.len) ||
	    mqtt_topic_fault(p.topic) || !mqtt_forward_valid(p.props) ||
	    find(&r->msgs, no);
	if (in->bad)
		return true;
	m = msg_new(&p, expires);
	if (!m || !add(&r->msgs, no, m)) {
		msg_unref(m);
		return false;
	}
	m->no = no;
	if (no > r->b->persist.last_msg)
		r->b->persist.last_msg = no;
	return true;
}

static void
drop_delivery(struct replay *r, struct session *s, struct delivery *d)
{
	struct numbered *n = find_of(&r->deliveries, s->no, d->no);
	struct msg *m = d->msg ? msg_ref(d->msg) : NULL;

	take_out(&r->deliveries, n);
	session_drop(s, &r->b->topics, d);
	forget_msg(r, m);
	msg_unref(m);
}

static void
drop_will(struct replay *r, struct session *s)
{
	if (s->will)
		forget_msg(r, s->will->msg);
	session_free_will(s);
}

static void
end_session(struct replay *r, struct numbered *n)
{
	struct session *s = n->p;

	drop_will(r, s);
	while (s->out)
		drop_delivery(r, s, s->out->acked.first);
	session_free(&r->b->sessions, s);
	take_out(&r->sessions, n);
}

static bool
read_session(struct replay *r, struct reader *in)
{
	struct persist *p = &r->b->persist;
	uint32_t no = get32(in), expiry = get32(in);
	uint8_t guard = (uint8_t)get(in, 1);
	bool has_user = get(in, 1);
	struct mqtt_str id, user;
	struct numbered *n;
	struct session *s;

	get_wall(r, in);
	id = get_bytes(in, (size_t)get(in, 2));
	user = get_bytes(in, (size_t)get(in, 2));
	if (!has_user)
		user.p = NULL;
	if (in->bad || id.len == 0 || no == 0 || no > INT32_MAX) {
		in->bad = true;
		return true;
	}
	n = find(&r->sessions, no);
	s = session_find(&r->b->sessions, id);
	if (n && n->p != s) {
		in->bad = true;         /* somebody else's number */
		return true;
	}
	if (!n && s)
		end_session(r, find(&r->sessions, s->no));
	if (!n) {
		s = session_new(&r->b->sessions, id);
		n = s ? add(&r->sessions, no, s) : NULL;
	}
	if (!n)
		return false;
	n->connected = true;
	s->no = no;
	s->expiry = expiry;
	s->expires_ms = TIMER_NEVER;
	s->guard = guard < r->b->auth.n ? guard : 0;
	drop_will(r, s);
	if (no > p->last_session)
		p->last_session = no;
	return session_set_user(s, user);
}

static void
read_gone(struct replay *r, struct reader *in, struct numbered *n)
{
	struct session *s = n->p;
	uint32_t expiry = get32(in);
	int64_t then = get_wall(r, in);

	if (in->bad)
		return;
	n->connected = false;
	s->expires_ms = expiry == SESSION_FOREVER ? TIMER_NEVER :
	    due(r, then, expiry);
}

static bool
read_will(struct replay *r, struct reader *in, struct session *s)
{
	struct msg *m = find_object(&r->msgs, get_no(in));
	uint32_t wait = get32(in), expiry;
	int64_t then = get_wall(r, in);
	struct will *w;
	bool has_expiry;

	expiry = get32(in);
	has_expiry = get(in, 1);
	if (in->bad)
		return true;
	if (!m) {
		drop_will(r, s);
		return true;
	}
	w = mem_alloc(sizeof *w);
	if (!w)
		return false;
	*w = (struct will){ .msg = msg_ref(m), .expiry = expiry,
	    .due_ms = due(r, then, wait), .has_expiry = has_expiry };
	m->recorded++;                  /* it may be that of the will before */
	drop_will(r, s);
	s->will = w;
	return true;
}

static bool
read_sub(struct replay *r, struct reader *in, struct session *s)
{
	unsigned opts = (unsigned)get(in, 1);
	uint32_t id = get32(in);
	struct mqtt_filter f = { .filter = get_rest(in), .qos = opts & 3,
	    .no_local = opts >> 2 & 1, .retain_as_published = opts >> 3 & 1 };
	struct mqtt_str name, rest = f.filter;
	bool fresh;

	in->bad |= f.qos > 2 || id > MQTT_SUBID_MAX ||
	    !mqtt_utf8_valid(f.filter.p, f.filter.len) ||
	    (mqtt_is_shared(f.filter) &&
	    !mqtt_split_shared(f.filter, &name, &rest)) ||
	    mqtt_filter_fault(rest);
	return in->bad || session_subscribe(s, &r->b->topics, &f, id, &fresh);
}

static void
read_unsub(struct replay *r, struct reader *in, struct session *s)
{
	struct sub *sub = topic_find_sub(&r->b->topics, s, get_rest(in));

	if (sub)
		session_unsubscribe(s, &r->b->topics, sub);
}

/* The Subscription Identifiers at the end of a record; *ids is the caller's. */
static bool
read_subids(struct reader *in, uint32_t **ids, uint32_t *n)
{
	*n = (uint32_t)((size_t)(in->end - in->p) / 4);
	*ids = NULL;
	in->bad |= *n > SUBIDS_MAX || (in->end - in->p) % 4;
	if (in->bad || *n == 0)
		return true;
	*ids = mem_alloc(*n * sizeof **ids);
	if (!*ids)
		return false;
	for (uint32_t i = 0; i < *n; i++) {
		(*ids)[i] = get32(in);
		in->bad |= (*ids)[i] - 1 >= MQTT_SUBID_MAX;
	}
	return true;
}

static bool
queue_again(struct replay *r, struct session *s, struct delivery *d,
    uint64_t no)
{
	if (!d || !add_of(&r->deliveries, s->no, no, d)) {
		if (d)
			delivery_free(&r->b->topics, d);
		return false;
	}
	if (!session_queue(s, d)) {
		take_out(&r->deliveries, find_of(&r->deliveries, s->no, no));
		delivery_free(&r->b->topics, d);
		return false;
	}
	d->no = no;
	d->recorded = true;
	if (d->msg)
		d->msg->recorded++;
	if (no > r->b->persist.last_delivery)
		r->b->persist.last_delivery = no;
	return true;
}

static bool
read_queue(struct replay *r, struct reader *in, struct session *s)
{
	uint64_t no = get_no(in), msg_no = get_no(in);
	struct msg *m = find_object(&r->msgs, msg_no);
	unsigned flags = (unsigned)get(in, 1), qos = flags & 3;
	uint32_t *subids, n;
	bool ok = read_subids(in, &subids, &n);

	in->bad |= bad_no(no) || qos == 0 || qos > 2 || (msg_no && !m) ||
	    (!m && qos == 1) || find_of(&r->deliveries, s->no, no);
	if (ok && !in->bad)
		ok = queue_again(r, s, m ? delivery_new(m, NULL, (uint8_t)qos,
		    flags >> 2 & 1, subids, n) : delivery_released(2), no);
	mem_free(subids, n * sizeof *subids);
	return ok;
}

/* What happened to a message that was queued before. */
static bool
read_progress(struct replay *r, struct reader *in, struct session *s,
    enum record type)
{
	struct numbered *n = find_of(&r->deliveries, s->no, get_no(in));
	struct delivery *d = n ? n->p : NULL;

	if (in->bad || !d) {
		in->bad = true;
		return true;
	}
	if (type == DONE) {
		drop_delivery(r, s, d);
	} else if (type == SENT_AS) {
		if (session_restore_id(s, d, (uint16_t)get(in, 2)))
			d->sent = true;
		else
			in->bad = true;
	} else if (d->qos == 1 || !d->id) {
		in->bad = true;
	} else if (d->msg) {
		struct msg *m = msg_ref(d->msg);

		delivery_release(d);
		d->state = TO_RELEASE;
		forget_msg(r, m);
		msg_unref(m);
	}
	return true;
}

static bool
read_got(struct reader *in, struct session *s, enum record type)
{
	uint16_t id = (uint16_t)get(in, 2);

	if (in->bad)
		return true;
	if (type == LET_GO)
		session_take_received(s, id);
	else if (!session_received(s, id))
		return session_put_received(s, id);
	return true;
}

static bool
read_source(struct replay *r, struct reader *in, struct mqtt_str topic)
{
	uint8_t guard = (uint8_t)get(in, 1);
	bool has_user = get(in, 1);
	struct mqtt_str user = get_bytes(in, (size_t)get(in, 2)), id;

	id = get_rest(in);
	if (!has_user)
		user = (struct mqtt_str){ 0 };
	in->bad |= guard >= r->b->auth.n || id.len > UINT16_MAX;
	return in->bad || topic_note_source(&r->b->topics, topic, guard, user,
	    id);
}

static bool
read_retain(struct replay *r, struct reader *in)
{
	struct msg *m = find_object(&r->msgs, get_no(in)), *old;
	bool ok;

	if (in->bad || !m) {
		in->bad = true;
		return true;
	}
	old = topic_retained(&r->b->topics, msg_topic(m));
	if (old)
		msg_ref(old);
	ok = topic_retain(&r->b->topics, msg_topic(m), m);
	if (ok)
		m->recorded++;
	forget_msg(r, old);
	msg_unref(old);
	return ok && (in->p == in->end || read_source(r, in, msg_topic(m)));
}

static void
read_unretain(struct replay *r, struct reader *in)
{
	struct mqtt_str topic = get_rest(in);
	struct msg *old = topic_retained(&r->b->topics, topic);

	if (!old)
		return;
	msg_ref(old);
	topic_retain(&r->b->topics, topic, NULL);
	forget_msg(r, old);
	msg_unref(old);
}

/* Records of a session that is there. */
static bool
read_of_session(struct replay *r, struct reader *in, enum record type)
{
	struct numbered *n = find(&r->sessions, get32(in));
	struct session *s = n ? n->p : NULL;

	if (!s) {
		in->bad = true;
		return true;
	}
	switch (type) {
	case GONE:
		read_gone(r, in, n);
		return true;
	case WILL:
		return read_will(r, in, s);
	case END:
		end_session(r, n);
		return true;
	case SUB:
		return read_sub(r, in, s);
	case UNSUB:
		read_unsub(r, in, s);
		return true;
	case QUEUE:
		return read_queue(r, in, s);
	case GOT:
	case LET_GO:
		return read_got(in, s, type);
	default:
		return read_progress(r, in, s, type);
	}
}

bool
persist_read(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	struct replay *r = arg;
	struct reader in = { body, body + n, false };
	bool ok = true;

	if (type == MSG)
		ok = read_msg(r, &in);
	else if (type == SESSION)
		ok = read_session(r, &in);
	else if (type == RETAIN)
		ok = read_retain(r, &in);
	else if (type == UNRETAIN)
		read_unretain(r, &in);
	else if (type == TIME)
		get_wall(r, &in);
	else if (type > MSG && type < TIME)
		ok = read_of_session(r, &in, type);
	else
		in.bad = true;
	r->ignored += in.bad;
	return ok;
}

/* A PUBREL that nobody could be sent. */
static void
drop_nameless(struct replay *r, struct session *s)
{
	struct delivery *d, *next;

	for (d = s->out ? s->out->acked.first : NULL; d; d = next) {
		next = d->next;
		if (!d->msg && !d->id)
			drop_delivery(r, s, d);
	}
}

/* Those who were connected when it ended are away from now on. */
static void
settle_sessions(struct replay *r)
{
	struct hash *h = &r->sessions;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct numbered *n = HASH_OBJECT(l, struct numbered,
			    link);
			struct session *s = n->p;

			drop_nameless(r, s);
			if (n->connected && s->expiry != SESSION_FOREVER)
				s->expires_ms = r->b->now_ms +
				    (int64_t)s->expiry * 1000;
			session_set_timer(&r->b->sessions, s);
			auth_bind(&r->b->auth, s);
		}
}

static void
forget_numbers(struct hash *h, bool msgs)
{
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		while (h->bucket[i]) {
			struct numbered *n = HASH_OBJECT(h->bucket[i],
			    struct numbered, link);

			if (msgs)
				msg_unref(n->p);
			take_out(h, n);
		}
	hash_fini(h);
}

void
persist_settle(struct replay *r)
{
	settle_sessions(r);
	forget_numbers(&r->sessions, false);
	forget_numbers(&r->deliveries, false);
	forget_numbers(&r->msgs, true);
}

/* ---- what Mosquitto left ---- */

/* That of a time since 1970, which may be any number. */
static int64_t
moment(const struct replay *r, int64_t t)
{
	int64_t left = t < 0 ? -1 : t - wall(r->b);

	return r->b->now_ms + (left > UINT32_MAX ? UINT32_MAX : left) * 1000;
}

static bool
import_client(void *arg, const struct mosqdb_client *c)
{
	struct replay *r = arg;
	struct session *s = session_find(&r->b->sessions, c->id);

	if (!s)
		s = session_new(&r->b->sessions, c->id);
	if (!s)
		return false;
	if (s->no == 0)
		s->no = ++r->b->persist.last_session;
	s->expiry = c->expiry;
	s->expires_ms = c->expires ? moment(r, c->expires) : c->expiry == SESSION_FOREVER ?
	    TIMER_NEVER : r->b->now_ms + (int64_t)c->expiry * 1000;
	s->last_id = c->last_mid;
	session_set_timer(&r->b->sessions, s);
	if (c->user.len > 0 && !session_set_user(s, c->user))
		return false;
	auth_bind(&r->b->auth, s);
	return true;
}

/* Clients may come behind what they have. */
static struct session *
client_of(struct replay *r, struct mqtt_str id)
{
	struct session *s = session_find(&r->b->sessions, id);
	struct mosqdb_client c = { .id = id, .expiry = SESSION_FOREVER };

	if (!s && import_client(r, &c))
		s = session_find(&r->b->sessions, id);
	return s;
}

static bool
import_subscription(void *arg, const struct mosqdb_subscription *sub)
{
	struct replay *r = arg;
	struct session *s = client_of(r, sub->id);
	bool fresh;

	return s && session_subscribe(s, &r->b->topics, &sub->filter,
	    sub->subid, &fresh);
}

static bool
import_message(void *arg, const struct mosqdb_message *m)
{
	struct replay *r = arg;
	struct msg *msg = msg_new(&m->p, m->expires ?
	    moment(r, m->expires) : MSG_NEVER);

	if (msg && add(&r->msgs, m->store_id, msg))
		return true;
	msg_unref(msg);
	return false;
}

struct imported {
	struct imported *next;
	struct msg *msg;
};

struct msg *
persist_imported(struct broker *b)
{
	struct imported *i = b->persist.imported;
	struct msg *m;

	if (!i)
		return NULL;
	m = i->msg;
	b->persist.imported = i->next;
	mem_free(i, sizeof *i);
	return m;
}

/* A message from the client that was not released. Mosquitto hands it on when
 * it is, we did when it came. */
static bool
import_incoming(struct replay *r, struct session *s,
    const struct mosqdb_client_message *m)
{
	struct msg *msg = find_object(&r->msgs, m->store_id);
	struct imported **last = &r->b->persist.imported, *i;

	if (m->qos != 2 || session_received(s, m->mid))
		return true;
	if (!session_put_received(s, m->mid))
		return false;
	if (!msg)
		return true;
	i = mem_alloc(sizeof *i);
	if (!i)
		return false;
	*i = (struct imported){ .msg = msg_ref(msg) };
	while (*last)
		last = &(*last)->next;
	*last = i;
	return true;
}

static bool
import_client_message(void *arg, const struct mosqdb_client_message *m)
{
	struct replay *r = arg;
	struct session *s = client_of(r, m->id);
	struct msg *msg = find_object(&r->msgs, m->store_id);
	struct delivery *d;
	bool released = m->state == MOSQDB_WAIT_PUBCOMP ||
	    m->state == MOSQDB_RESEND_PUBREL;

	if (!s)
		return false;
	if (!m->outgoing)
		return import_incoming(r, s, m);
	if (m->qos == 0 || (!msg && !released))
		return true;
	d = released ? delivery_released(m->qos) : delivery_new(msg, NULL,
	    m->qos, m->retain, m->subids, m->n_subids);
	if (!d || !session_queue(s, d)) {
		if (d)
			delivery_free(&r->b->topics, d);
		return false;
	}
	d->no = ++r->b->persist.last_delivery;
	d->recorded = true;
	if (d->msg && d->msg->recorded++ == 0)
		d->msg->no = ++r->b->persist.last_msg;
	if (released)
		d->state = TO_RELEASE;
	if (m->mid && m->state != MOSQDB_QUEUED)
		d->sent = session_restore_id(s, d, m->mid);
	return true;
}

static bool
import_retained(void *arg, uint64_t store_id)
{
	struct replay *r = arg;
	struct msg *m = find_object(&r->msgs, store_id);

	if (!m || is_sys(msg_topic(m)))
		return true;
	r->n_retained++;
	if (m->recorded++ == 0)
		m->no = ++r->b->persist.last_msg;
	return topic_retain(&r->b->topics, msg_topic(m), m);
}

/* All of it together and before anything else: with a part of it, or with what
 * comes later alone, the next start would not read the database again. What is
 * too large to wait for the disk is in the snapshot only. */
static void
record_import(struct replay *r)
{
	struct broker *b = r->b;
	const struct hash *h = &r->msgs;

	b->persist.group = true;
	dump_all(b);
	b->persist.group = false;
	/* Without a record in it the journal is new to the next start too. */
	if (b->persist.lost)
		persist_drop_group(b);
	else
		put_time(b, STORE_NOW);
	store_compact(&b->persist.store);
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++)
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct msg *m = HASH_OBJECT(l, struct numbered,
			    link)->p;

			m->dumped = false;
		}
}

static bool
import(struct broker *b, struct replay *r, const char *path)
{
	const struct mosqdb_calls calls = { r, import_client,
	    import_subscription, import_message, import_client_message,
	    import_retained };
	struct mosqdb_report report;
	enum mosqdb_result res;

	if (access(path, F_OK) < 0 && errno == ENOENT)
		return true;
	res = mosqdb_read(path, &calls, &report);
	if (res == MOSQDB_NO_MEMORY) {
		log_error("Error: Out of memory while %s is taken over "
		    "(memory_limit).", path);
		return false;
	}
	if (res == MOSQDB_NO_FILE) {
		log_error("Error: %s cannot be taken over: %s. Let the broker's "
		    "user read it, or move it away to begin without it.", path,
		    strerror(errno));
		return false;
	}
	if (res == MOSQDB_NOT) {
		log_warning("Warning: %s was not taken over: %s.", path,
		    report.why);
		return true;
	}
	if (res == MOSQDB_CUT)
		log_warning("Warning: %s is damaged from byte %llu on: what "
		    "comes before is taken over.", path,
		    (unsigned long long)report.offset);
	log_notice("Taken over from %s: %u sessions, %u subscriptions, %u "
	    "retained messages. The file stays as it is and is not read "
	    "again.", path, b->sessions.by_id.n, b->topics.n_subs,
	    r->n_retained);
	record_import(r);
	return true;
}

/* ---- opening and the turns of the loop ---- */

static int64_t
lazy_ms(const struct config *c)
{
	return c->autosave_interval == 0 || c->autosave_on_changes ?
	    STORE_NEVER / 4 : (int64_t)c->autosave_interval * 1000;
}

static void
start_reading(struct broker *b)
{
	b->persist.on = true;
	b->persist.fd = -1;
	b->persist.wall_floor = MIDGE_TIME;
}

bool
persist_open(struct broker *b)
{
	const struct config *c = b->conf;
	struct store_config sc = { .dir = c->persistence_location ?
	    c->persistence_location : ".", .name = c->persistence_file ?
	    c->persistence_file : "midge", .lazy_ms = lazy_ms(c),
	    .sync_interval_ms = c->persistence_sync_interval,
	    .dump = persist_dump, .dump_arg = b };
	struct replay r = { .b = b };
	struct store_report report;
	char path[4200];
	bool ok;

	/* One large packet is not refused because others wait. */
	sc.pending_max = 2 * PERSIST_BUSY + 2 * (size_t)c->max_packet_size;
	start_reading(b);
	ok = store_open(&b->persist.store, &sc, persist_read, &r, &report);
	if (!ok)
		b->persist.on = false;
	if (ok && report.records == 0) {
		snprintf(path, sizeof path, "%s/%s", sc.dir,
		    c->persistence_file ? c->persistence_file :
		    "mosquitto.db");
		ok = import(b, &r, path);
	}
	if (r.ignored)
		log_warning("Warning: %u records of the journal made no sense "
		    "and were left out.", r.ignored);
	persist_settle(&r);
	if (ok) {
		if (!b->persist.lost)
			put_time(b, STORE_LAZY);
		persist_commit(b);
	}
	if (b->tls.clock_floor < b->persist.wall_floor)
		b->tls.clock_floor = b->persist.wall_floor;
	return ok;
}

void
persist_close(struct broker *b)
{
	if (b->persist.on)
		store_close(&b->persist.store);
	b->persist.on = false;
}

/* The store's descriptor changes when its helper is replaced. */
static void
watch_store(struct broker *b)
{
	int fd = store_fd(&b->persist.store);

	if (fd == b->persist.fd)
		return;
	watch_fixed_change(&b->watch, b->persist.fd, fd);
	b->persist.fd = fd;
}

void
persist_commit(struct broker *b)
{
	if (!b->persist.on)
		return;
	store_commit(&b->persist.store, b->now_ms);
	if (!store_failed(&b->persist.store))
		b->persist.failed_ms = 0;
	else if (b->persist.failed_ms == 0)
		b->persist.failed_ms = b->now_ms;
	watch_store(b);
}

int64_t
persist_due(const struct broker *b)
{
	int64_t due_ms, patience_ms = b->persist.failed_ms +
	    PERSIST_PATIENCE_MS + 1;

	if (!b->persist.on)
		return TIMER_NEVER;
	due_ms = store_due(&b->persist.store);
	return b->persist.failed_ms && !persist_failed(b) &&
	    patience_ms < due_ms ? patience_ms : due_ms;
}

void
persist_event(struct broker *b)
{
	if (b->persist.on)
		store_event(&b->persist.store);
}

void
persist_save(struct broker *b)
{
	if (b->persist.on)
		store_compact(&b->persist.store);
}

void
persist_reload(struct broker *b)
{
	if (!b->persist.on)
		return;
	b->persist.store.c.lazy_ms = lazy_ms(b->conf);
	b->persist.store.c.sync_interval_ms =
	    b->conf->persistence_sync_interval;
}

/* ---- midge store ---- */

static const char *
printable(struct mqtt_str s, char out[200])
{
	size_t n = 0;

	for (uint32_t i = 0; i < s.len && n < 190; i++) {
		uint8_t c = s.p[i];

		if (c >= 0x20 && c != 0x7f && c != '\\')
			out[n++] = (char)c;
		else
			n += (size_t)sprintf(out + n, "\\x%02x", c);
	}
	out[n] = 0;
	return out;
}

static void
print_time(struct reader *in)
{
	time_t t = (time_t)get(in, 8);
	char text[40];
	struct tm tm;

	if (gmtime_r(&t, &tm) && strftime(text, sizeof text,
	    "%Y-%m-%dT%H:%M:%SZ", &tm))
		printf(" at %s", text);
}

static void
print_msg(struct reader *in)
{
	unsigned long long no = get_no(in);
	unsigned flags = (unsigned)get(in, 1), topic;
	uint32_t props;
	char text[200];

	printf(" %llu qos %u%s", no, flags & 3, flags & 4 ? " retain" : "");
	if (flags & EXPIRES) {
		print_time(in);
		printf(" expires in %u s", get32(in));
	}
	topic = (unsigned)get(in, 2);
	props = get32(in);
	printf(" topic '%s'", printable(get_bytes(in, topic), text));
	get_bytes(in, props);
	if (props)
		printf(" properties of %u bytes", props);
	printf(" payload of %zu bytes", (size_t)(in->end - in->p));
}

static void
print_session(struct reader *in)
{
	uint32_t no = get32(in), expiry = get32(in);
	unsigned guard = (unsigned)get(in, 1), has_user = (unsigned)get(in, 1);
	char text[200];

	printf(" %u listener %u", no, guard);
	print_time(in);
	printf(" '%s'", printable(get_bytes(in, (size_t)get(in, 2)), text));
	if (expiry == SESSION_FOREVER)
		printf(" never expires");
	else
		printf(" expires %u s after its end", expiry);
	if (has_user)
		printf(" user '%s'", printable(get_bytes(in,
		    (size_t)get(in, 2)), text));
}

static void
print_no(const char *of, struct reader *in)
{
	printf(" %s %llu", of, (unsigned long long)get_no(in));
}

static void
print_numbers(struct reader *in, enum record type)
{
	char text[200];
	unsigned opts;

	if (type != RETAIN)
		printf(" session %u", get32(in));
	switch (type) {
	case GONE:
		printf(" expires in %u s", get32(in));
		print_time(in);
		break;
	case WILL:
		print_no("message", in);
		printf(" in %u s", get32(in));
		print_time(in);
		break;
	case SUB:
		opts = (unsigned)get(in, 1);
		printf(" qos %u%s%s", opts & 3, opts & 4 ? " no-local" : "",
		    opts & 8 ? " retain-as-published" : "");
		printf(" id %u", get32(in));
		printf(" '%s'", printable(get_rest(in), text));
		break;
	case UNSUB:
		printf(" '%s'", printable(get_rest(in), text));
		break;
	case QUEUE:
		print_no("delivery", in);
		print_no("message", in);
		opts = (unsigned)get(in, 1);
		printf(" qos %u%s", opts & 3, opts & 4 ? " retain" : "");
		break;
	case SENT_AS:
		print_no("delivery", in);
		printf(" packet %u", (unsigned)get(in, 2));
		break;
	case RELEASE:
	case DONE:
		print_no("delivery", in);
		break;
	case GOT:
	case LET_GO:
		printf(" packet %u", (unsigned)get(in, 2));
		break;
	case RETAIN:
		print_no("message", in);
		break;
	default:
		break;
	}
}

static bool
print_record(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	static const char *const names[] = { "?", "message", "session",
	    "gone", "will", "end", "subscribe", "unsubscribe", "queue",
	    "sent", "released", "done", "got", "let-go", "retain",
	    "unretain", "time" };
	struct reader in = { body, body + n, false };
	char text[200];
	unsigned *bad = arg;

	fputs(names[type <= TIME ? type : 0], stdout);
	if (type == MSG)
		print_msg(&in);
	else if (type == SESSION)
		print_session(&in);
	else if (type == UNRETAIN)
		printf(" '%s'", printable(get_rest(&in), text));
	else if (type == TIME)
		print_time(&in);
	else
		print_numbers(&in, type);
	puts(in.bad || type > TIME || type == 0 ? " (damaged)" : "");
	*bad += in.bad || type > TIME || type == 0;
	return true;
}

int
persist_main(int argc, char **argv)
{
	struct store_report report;
	unsigned bad = 0;
	bool ok;

	if (argc != 2 || argv[1][0] == '-') {
		puts("Usage: midge store FILE | FOLDER\n\n"
		    "Prints the records of a journal, of one file or of all "
		    "in their order, and\nverifies them. Exit code: 0 all is "
		    "well, 1 damaged, 3 not readable.");
		return argc == 2 && (!strcmp(argv[1], "-h") ||
		    !strcmp(argv[1], "--help")) ? 0 : EXIT_CONFIG;
	}
	ok = store_walk(argv[1], NULL, print_record, &bad, &report);
	if (!ok) {
		fprintf(stderr, "Error: %s: %s.\n", argv[1], report.damage);
		return EXIT_CONFIG;
	}
	printf("%llu records, %llu bytes in %u files.\n",
	    (unsigned long long)report.records,
	    (unsigned long long)report.bytes, report.files);
	if (report.damage)
		printf("Damaged: %s at byte %llu: %s; %llu bytes cannot be "
		    "used.\n", report.file, (unsigned long long)report.offset,
		    report.damage, (unsigned long long)report.cut);
	if (bad)
		printf("Records that make no sense: %u.\n", bad);
	return report.damage || bad ? 1 : 0;
}
