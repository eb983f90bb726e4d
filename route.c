#include "route.h"
#include "auth.h"
#include "mem.h"
#include "persist.h"
#include "relief.h"
#include "send.h"

/* Messages that one pump moves, and nodes that it looks at for retained ones,
 * before others get their turn. */
#define PUMP_MAX 4096
#define SCAN_STEPS 8192

/* Work (see state.h) to find others for the messages of one who leaves; what is
 * not handed over then stays with its session. */
#define LEAVE_WORK 20000

/* Bytes that an output may have when memory is short. */
#define SHORT_WATER 8192

/* Members of a group that are asked for one message. */
#define GROUP_TRIES 10000

/* What one session gets of a message. */
struct offer {
	struct session *s;
	struct group *group;
	uint8_t qos;
	bool retain;
	uint32_t n_subids;              /* in b->subids */
};

static struct msg *
routed_msg(struct routed *r)
{
	if (!r->msg)
		r->msg = msg_new(&r->p, r->expires_ms);
	return r->msg;
}

/* ---- one session ---- */

static void
drop(struct broker *b, struct session *s, struct delivery *d)
{
	persist_done(b, s, d);
	session_drop(s, &b->topics, d);
}

/* Whether c's output may grow by a message. A full one is written first: the
 * kernel may have room. When memory is short an output gets none that it could
 * not have (conn.c), as that would end the connection. */
static bool
has_room(struct broker *b, struct client *c)
{
	uint32_t most = CONN_LOW_WATER;

	if (c->mute)
		return false;
	if (c->conn.out_len >= SHORT_WATER && relief_is_short())
		most = SHORT_WATER;
	if (c->conn.out_len >= most)
		send_flush(b, c);
	return c->conn.out_len < most && !c->failed;
}

static void
dropped(struct broker *b, struct session *s)
{
	b->stats.publish_dropped++;
	if (s->dropping)
		return;
	s->dropping = true;
	log_notice("Outgoing messages are being dropped for client %s.",
	    s->id);
}

static bool
queue_full(const struct broker *b, const struct session *s, uint8_t qos,
    uint32_t weight)
{
	const struct config *k = b->conf;
	const struct line *l;

	if (!s->out)
		return false;
	l = qos == 0 ? &s->out->qos0 : &s->out->acked;
	return (k->max_queued_messages > 0 &&
	    l->n >= (uint32_t)k->max_queued_messages) ||
	    (k->max_queued_bytes > 0 &&
	    l->bytes + weight > (uint64_t)k->max_queued_bytes);
}

/* A new delivery at the end of its session's queue. */
static bool
append(struct broker *b, struct routed *r, const struct offer *o)
{
	struct delivery *d = routed_msg(r) ? delivery_new(r->msg, o->group,
	    o->qos, o->retain, b->subids, o->n_subids) : NULL;

	if (d && session_queue(o->s, d)) {
		persist_queue(b, o->s, d);
		o->s->dropping = false;
		return true;
	}
	if (d)
		delivery_free(&b->topics, d);
	r->lost |= o->qos > 0;
	dropped(b, o->s);
	return false;
}

static bool
queue(struct broker *b, struct routed *r, const struct offer *o)
{
	if (!(o->qos == 0 && relief_needs(b, RELIEF_QOS0)) &&
	    routed_msg(r) && !queue_full(b, o->s, o->qos,
	    msg_weight(r->msg) + o->n_subids * (uint32_t)sizeof *b->subids))
		return append(b, r, o);
	dropped(b, o->s);
	return false;
}

static bool
offer_qos0(struct broker *b, struct routed *r, const struct offer *o)
{
	struct client *c = o->s->client;
	struct mqtt_publish p;

	if (!c && !b->conf->queue_qos0_messages)
		return false;
	if (!c || session_qos0(o->s) || !has_room(b, c) ||
	    (r->p.payload.len >= SEND_BY_REFERENCE && !routed_msg(r)))
		return queue(b, r, o);
	p = r->p;
	p.qos = 0;
	p.id = 0;
	p.dup = false;                  /* [MQTT-3.3.1-3] */
	p.retain = o->retain;
	p.subids = b->subids;
	p.n_subids = o->n_subids;
	o->s->dropping = false;
	if (!send_publish(b, c, &p, r->msg))
		b->stats.publish_dropped++;
	return true;
}

static bool send_next(struct broker *b, struct client *c);

/* QoS 1 and 2 go through the queue always, and leave it at once if nothing is
 * in the way: then the limits of the queue do not matter. */
static bool
offer_acked(struct broker *b, struct routed *r, const struct offer *o)
{
	struct client *c = o->s->client;

	if (!c || session_unsent(o->s) || !session_window_open(o->s) ||
	    !has_room(b, c))
		return queue(b, r, o);
	if (!append(b, r, o))
		return false;
	send_next(b, c);
	return true;
}

/* false: it was dropped. */
static bool
offer(struct broker *b, struct routed *r, const struct offer *o)
{
	b->work++;
	return o->qos == 0 ? offer_qos0(b, r, o) : offer_acked(b, r, o);
}

/* The QoS at which a subscription gets a message: never raised
 * [MQTT-3.8.4-6], unless the operator wants it so. */
static uint8_t
granted(const struct broker *b, uint8_t published, uint8_t subscribed)
{
	return b->conf->upgrade_outgoing_qos || subscribed < published ?
	    subscribed : published;
}

/* ---- all sessions ---- */

/* Notes a Subscription Identifier; without memory the message goes without. */
static void
add_subid(struct broker *b, uint32_t id, struct offer *o)
{
	if (o->n_subids == b->subids_cap) {
		uint32_t cap = b->subids_cap ? b->subids_cap * 2 : 16;
		void *p = cap > SUBIDS_MAX + 1 ? NULL : mem_resize(b->subids,
		    b->subids_cap * sizeof id, cap * sizeof id);

		if (!p)
			return;
		b->subids = p;
		b->subids_cap = cap;
	}
	if (o->n_subids < SUBIDS_MAX)
		b->subids[o->n_subids++] = id;
}

static void
add_sub(struct broker *b, const struct routed *r, const struct sub *sub,
    struct offer *o)
{
	uint8_t qos = granted(b, r->p.qos, sub->qos);

	if (qos > o->qos)
		o->qos = qos;
	o->retain |= r->p.retain && sub->retain_as_published;
	if (sub->id)
		add_subid(b, sub->id, o);
}

enum { MARK_UNKNOWN, MARK_READABLE, MARK_HIDDEN };

/* The match remembers the answer, so that rules are searched once per topic
 * and session. */
static bool
may_read(const struct match *m, uint32_t i, const struct session *s,
    struct mqtt_str topic)
{
	uint8_t *mark;

	if (!s->rules)
		return true;
	mark = match_mark(m, i);
	if (*mark == MARK_UNKNOWN)
		*mark = auth_may_read(s, topic) ? MARK_READABLE : MARK_HIDDEN;
	return *mark == MARK_READABLE;
}

/* The subscriptions of one session, from the i-th on, give one copy at the
 * highest QoS with all identifiers [MQTT-3.3.5-1], [MQTT5-3.3.4-4]; those with
 * No Local are left out for the publisher [MQTT5-3.8.3-3]. The index after
 * them. */
static uint32_t
to_session(struct broker *b, struct routed *r, const struct match *m,
    uint32_t i, uint32_t *receivers)
{
	struct offer o = { .s = match_sub(m, i)->session };
	bool readable = may_read(m, i, o.s, r->p.topic), any = false;

	for (; i < m->n_subs && match_sub(m, i)->session == o.s; i++) {
		if (match_sub(m, i)->no_local && o.s == r->from)
			continue;
		any = true;
		add_sub(b, r, match_sub(m, i), &o);
	}
	if (any && readable) {
		(*receivers)++;
		offer(b, r, &o);
	}
	return i;
}

/* How well a member can take a message now: 3 at once, 2 connected, 1 has a
 * session that keeps it, 0 not at all. */
static int
fitness(const struct broker *b, const struct sub *sub,
    const struct mqtt_publish *p)
{
	const struct session *s = sub->session;
	uint8_t qos = granted(b, p->qos, sub->qos);

	if (!auth_may_read(s, p->topic))
		return 0;
	if (s->client && !s->client->failed && !session_qos0(s) &&
	    !session_unsent(s) && (qos == 0 || session_window_open(s)))
		return 3;
	if (queue_full(b, s, qos, p->topic.len + p->props.len + p->payload.len))
		return 0;
	return s->client ? 2 : qos > 0 || b->conf->queue_qos0_messages;
}

/* The member of a group that gets the next message: in turn, and one that can
 * take it before others. NULL: none with at least this fitness. */
static struct sub *
choose(struct broker *b, struct group *g, const struct mqtt_publish *p,
    const struct session *not, int least)
{
	struct sub *s = g->turn ? g->turn : g->members, *best = NULL;
	int best_fit = least - 1, fit;

	for (unsigned i = 0; s && i < GROUP_TRIES; i++) {
		b->work++;
		fit = s->session == not ? 0 : fitness(b, s, p);
		if (fit > best_fit) {
			best = s;
			best_fit = fit;
		}
		s = s->next ? s->next : g->members;
		if (best_fit == 3 || s == (g->turn ? g->turn : g->members))
			break;
	}
	g->turn = best ? best->next : s;
	return best;
}

/* One member gets it, as chosen. false: it was dropped. */
static bool
to_member(struct broker *b, struct routed *r, const struct sub *sub)
{
	struct offer o = { .s = sub->session, .group = sub->group };

	add_sub(b, r, sub, &o);
	return offer(b, r, &o);
}

/* Only where there are rules it matters who published what is retained. */
static bool
note_source(struct broker *b, const struct routed *r)
{
	const struct session *s = r->from;

	return !s || !s->rules || topic_note_source(&b->topics, r->p.topic,
	    s->guard, session_user(s), session_id(s));
}

/* [MQTT-3.3.1-5], [MQTT-3.3.1-10]: keeps it for later subscribers; an empty
 * payload removes what is kept. */
static bool
retain(struct broker *b, struct routed *r)
{
	struct msg *m = r->p.payload.len ? routed_msg(r) : NULL, *old;
	bool ok;

	if (!m && r->p.payload.len)
		return false;
	old = topic_retained(&b->topics, r->p.topic);
	if (m && r->from && (!old || m->payload_len > old->payload_len) &&
	    relief_needs(b, RELIEF_LASTING))
		return false;
	if (old)
		msg_ref(old);
	ok = topic_retain(&b->topics, r->p.topic, m);
	if (ok && m && !note_source(b, r)) {
		topic_retain(&b->topics, r->p.topic, NULL);
		persist_retain(b, r->p.topic, NULL, old);
		ok = false;
	} else if (ok) {
		persist_retain(b, r->p.topic, m, old);
	}
	msg_unref(old);
	return ok;
}

/* check_retain_source: whether the publisher of a retained message might still
 * publish it. */
static bool
source_may(const struct broker *b, const struct node *n, const struct msg *m)
{
	const struct source *s = b->conf->check_retain_source ?
	    topic_source(&b->topics, n) : NULL;
	struct acl_client who;

	if (!s)
		return true;
	who.user = (struct mqtt_str){ s->has_user ? s->names : NULL,
	    s->user_len };
	who.id = (struct mqtt_str){ s->names + s->user_len, s->id_len };
	return auth_may_write_as(&b->auth.guards[s->guard], &who,
	    msg_topic(m));
}

/* Memory for all that a message needs, so that it reaches all or none. */
static bool
affordable(struct routed *r, const struct match *m)
{
	uint32_t n = m->n_subs + m->n_groups;

	if (n == 0 || (r->p.qos == 0 && r->p.payload.len < SEND_BY_REFERENCE))
		return true;
	return routed_msg(r) && mem_fits(n * (sizeof(struct delivery) +
	    sizeof(struct outbox) + 64));
}

static bool
any_lasts(const struct match *m)
{
	for (uint32_t i = 0; i < m->n_subs; i++)
		if (match_sub(m, i)->session->no)
			return true;
	for (uint32_t i = 0; i < m->n_groups; i++)
		for (const struct sub *s = match_group(m, i)->members; s;
		    s = s->next)
			if (s->session->no)
				return true;
	return false;
}

/* With a disk in trouble nothing is promised that would have to be on it. */
static bool
can_promise(const struct broker *b, const struct routed *r,
    const struct match *m)
{
	return r->p.qos == 0 || !persist_failed(b) ||
	    !(r->p.retain || any_lasts(m));
}

enum mqtt_reason
route_publish(struct broker *b, struct routed *r, uint32_t *receivers)
{
	const struct match *m = topic_match(&b->topics, r->p.topic);

	*receivers = 0;
	if (m)
		b->work += (b->topics.visits + m->n_subs) / 8;
	if (!m || !can_promise(b, r, m))
		return MQTT_QUOTA;
	if (!affordable(r, m)) {
		relief_gave(b, r->p.qos ? RELIEF_ACKED : RELIEF_QOS0);
		return MQTT_QUOTA;
	}
	if (r->p.retain && !retain(b, r))
		return MQTT_QUOTA;
	for (uint32_t i = 0; i < m->n_subs; )
		i = to_session(b, r, m, i, receivers);
	for (uint32_t i = 0; i < m->n_groups; i++) {
		const struct sub *sub = choose(b, match_group(m, i), &r->p,
		    NULL, 1);

		if (sub)
			to_member(b, r, sub);
		else
			b->stats.publish_dropped++;
	}
	*receivers += m->n_groups;
	return persist_lost(b) || r->lost ? MQTT_QUOTA : MQTT_OK;
}

void
route_msg(struct broker *b, struct msg *m, int64_t expires_ms,
    const struct session *from)
{
	struct routed r = { .p = msg_publish(m, b->now_ms),
	    .expires_ms = expires_ms, .from = from };
	uint32_t receivers;

	if (expires_ms == m->expires_ms) {
		r.msg = msg_ref(m);
	} else {
		r.p.has_expiry = true;
		r.p.expiry = (uint32_t)((expires_ms - b->now_ms) / 1000);
	}
	route_publish(b, &r, &receivers);
	msg_unref(r.msg);
}

/* ---- what waits ---- */

static void
recheck_line(struct broker *b, struct session *s, struct delivery *d)
{
	struct delivery *next;

	for (; d; d = next) {
		next = d->next;
		if (d->id || !d->msg || auth_may_read(s, msg_topic(d->msg)))
			continue;
		b->stats.publish_dropped++;
		drop(b, s, d);
	}
}

void
route_recheck(struct broker *b, struct session *s)
{
	if (s->out && s->rules)
		recheck_line(b, s, s->out->qos0.first);
	if (s->out && s->rules)
		recheck_line(b, s, s->out->acked.first);
}

/* Those behind one that waits for its name to be on the disk get theirs too, as
 * far as the window reaches: one commit is for all. */
static void
name_followers(struct broker *b, struct session *s, struct delivery *d)
{
	uint16_t room = (uint16_t)(s->window - s->out->in_flight);

	while (--room > 0 && (d = d->next))
		if (d->qos == 2 && !d->id && session_give_id(s, d))
			persist_sent(b, s, d);
}

/* Gives d its packet identifier. One of QoS 2 does not leave before that is on
 * the disk: the client will know it by this name. false: it has to wait. */
static bool
name_delivery(struct broker *b, struct client *c, struct delivery *d)
{
	if (!session_give_id(c->session, d)) {
		c->failed = true;       /* no memory */
		todo(b, c);
		return false;
	}
	persist_sent(b, c->session, d);
	if (d->qos == 1 || persist_reached(b, d->pos))
		return true;
	name_followers(b, c->session, d);
	send_hold(b, c);
	return false;
}

/* Sends the first unsent delivery. false: it has to wait. */
static bool
send_next(struct broker *b, struct client *c)
{
	struct session *s = c->session;
	struct delivery *d = session_unsent(s);
	struct mqtt_publish p;

	if (!persist_reached(b, d->pos) && (d->qos == 2 && d->id)) {
		send_hold(b, c);
		return false;
	}
	/* In its order among the others, so behind a closed window it waits. */
	if (d->state == TO_RELEASE) {
		session_resent(s);
		send_ack(b, c, MQTT_PUBREL, d->id, MQTT_OK);
		return true;
	}
	if (!session_window_open(s))
		return false;
	/* One that was sent before is finished, expired or not
	 * [MQTT5-4.3.3-7]. */
	if (!d->sent && msg_expired(d->msg, b->now_ms)) {
		drop(b, s, d);
		return true;
	}
	p = msg_publish(d->msg, b->now_ms);
	p.qos = d->qos;
	p.dup = d->sent;                /* [MQTT-3.3.1-1] */
	p.retain = d->retain;
	p.subids = d->subids;
	p.n_subids = d->n_subids;
	if (!send_fits(c, &p)) {
		b->stats.publish_dropped++;
		drop(b, s, d);
		return true;
	}
	if (d->id == 0 && !name_delivery(b, c, d))
		return false;
	session_sent(s, d);
	p.id = d->id;
	send_publish(b, c, &p, d->msg);
	return true;
}

static void
send_waiting_qos0(struct broker *b, struct client *c)
{
	struct session *s = c->session;
	struct delivery *d = session_qos0(s);
	struct mqtt_publish p = msg_publish(d->msg, b->now_ms);

	p.qos = 0;
	p.retain = d->retain;
	p.subids = d->subids;
	p.n_subids = d->n_subids;
	if (msg_expired(d->msg, b->now_ms) || !send_publish(b, c, &p, d->msg))
		b->stats.publish_dropped++;
	session_drop(s, &b->topics, d);
}

/* Sends the next retained message of a scan. false: no more for now. */
static bool
send_retained(struct broker *b, struct session *s, uint32_t *steps)
{
	struct scan *scan = s->scans;
	struct msg *m = scan_next(&b->topics, scan, steps);
	struct routed r = { .from = NULL };
	struct offer o = { .s = s };

	if (!m) {
		if (!scan->at)
			scan_end(&b->topics, scan);
		return *steps > 0;
	}
	if (msg_expired(m, b->now_ms) || !auth_may_read(s, msg_topic(m)) ||
	    !source_may(b, scan->at, m))
		return true;
	r.p = msg_publish(m, b->now_ms);
	r.expires_ms = m->expires_ms;
	r.msg = msg_ref(m);
	add_sub(b, &r, scan->sub, &o);
	o.retain = true;                /* [MQTT-3.3.1-8] */
	offer(b, &r, &o);
	msg_unref(r.msg);
	return true;
}

/* Whether retained messages can go out now: nothing is before them, and the
 * window takes them. */
static bool
can_scan(const struct session *s)
{
	return s->scans && !session_qos0(s) && !session_unsent(s) &&
	    (s->scans->sub->qos == 0 || session_window_open(s));
}

void
route_pump(struct broker *b, struct client *c)
{
	struct session *s = c->session;
	uint32_t steps = SCAN_STEPS;
	unsigned n = 0;

	for (; session_qos0(s) && n < PUMP_MAX && has_room(b, c); n++)
		send_waiting_qos0(b, c);
	for (; session_unsent(s) && n < PUMP_MAX && has_room(b, c); n++)
		if (!send_next(b, c))
			break;
	for (; can_scan(s) && n < PUMP_MAX && has_room(b, c); n++)
		if (!send_retained(b, s, &steps))
			break;
	b->work += (SCAN_STEPS - steps) / 8;
	/* Stopped by our own bounds, not by the client's: go on next turn. */
	if (n == PUMP_MAX || steps == 0)
		todo(b, c);
}

bool
route_waits(const struct broker *b, const struct client *c)
{
	const struct session *s = c->session;
	const struct delivery *d = session_unsent(s);
	bool held = d && d->qos == 2 && !persist_reached(b, d->pos);

	return !c->mute && c->conn.out_len < CONN_LOW_WATER &&
	    (session_qos0(s) || can_scan(s) || (d && !held &&
	    (d->state == TO_RELEASE || session_window_open(s))));
}

/* ---- shared subscriptions whose member leaves ---- */

static bool
hand_over(struct broker *b, struct session *s, const struct delivery *d,
    bool ended)
{
	struct routed r = { .p = msg_publish(d->msg, b->now_ms),
	    .expires_ms = d->msg->expires_ms, .msg = msg_ref(d->msg) };
	/* While it has its session it is safe where it is: then only to one
	 * who takes it at once. */
	const struct sub *sub = choose(b, d->group, &r.p, s, ended ? 1 : 3);
	bool ok = sub && to_member(b, &r, sub);

	msg_unref(r.msg);
	return ok;
}

void
route_leave(struct broker *b, struct session *s, bool ended)
{
	struct delivery *d, *next;
	uint32_t limit = b->work + LEAVE_WORK;

	for (d = s->out ? s->out->acked.first : NULL; d && b->work < limit;
	    d = next) {
		next = d->next;
		if (!d->group || !d->msg)
			continue;
		if (d->id && (!ended || d->qos == 2))
			continue;
		if (hand_over(b, s, d, ended))
			drop(b, s, d);
	}
}
