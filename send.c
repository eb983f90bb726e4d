#include "send.h"
#include "mem.h"
#include "persist.h"

#include <string.h>

/* Room for a packet of up to n bytes; NULL marks the client. */
static uint8_t *
start(struct broker *b, struct client *c, size_t n)
{
	uint8_t *p = conn_reserve(&c->conn, n);

	todo(b, c);
	if (!p)
		c->failed = true;
	return p;
}

static void
finish(struct broker *b, struct client *c, const uint8_t *begin,
    const uint8_t *end)
{
	conn_commit(&c->conn, (size_t)(end - begin));
	b->stats.messages_sent++;
}

/* ---- what waits for the disk ---- */

/* A packet that is not to leave before the journal has reached pos. */
struct held {
	struct held *next;
	uint64_t pos;
	uint32_t len, cap;
	bool soft;              /* leaves if the disk is in trouble, too */
	uint8_t bytes[];
};

/* A client for which something waits, in the broker's list. */
struct holder {
	struct client *client;
	struct holder *next, **prev;
	struct held *first, *last;      /* may be none: a message in its queue
	                                 * waits too */
	uint32_t n;                     /* of them */
};

/* Acknowledgements of one client that wait; then no more is read from it. */
#define HELD_MAX 1000

/* NULL marks the client: there is no memory to let it wait. */
static struct holder *
holder_of(struct broker *b, struct client *c)
{
	struct holder *h = c->holder;

	if (h)
		return h;
	h = mem_alloc_passing(sizeof *h);
	if (!h) {
		c->failed = true;
		todo(b, c);
		return NULL;
	}
	*h = (struct holder){ .client = c, .next = b->holders,
	    .prev = &b->holders };
	if (h->next)
		h->next->prev = &h->next;
	b->holders = h;
	c->holder = h;
	return h;
}

void
send_hold(struct broker *b, struct client *c)
{
	holder_of(b, c);
}

/* Room for an acknowledgement of up to n bytes. It waits until what the packet
 * at hand has caused is on the disk, and behind those that wait already: they
 * keep their order [MQTT-4.6.0-2]. NULL marks the client. */
static uint8_t *
start_ack(struct broker *b, struct client *c, size_t n)
{
	uint64_t pos = persist_awaited(b);
	struct holder *h = c->holder;
	struct held *k;

	if (!(h && h->first) && persist_reached(b, pos))
		return start(b, c, n);
	h = holder_of(b, c);
	k = h ? mem_alloc_passing(sizeof *k + n) : NULL;
	if (!k) {
		c->failed = true;
		todo(b, c);
		return NULL;
	}
	*k = (struct held){ .pos = pos, .cap = (uint32_t)n };
	if (h->first)
		h->last->next = k;
	else
		h->first = k;
	h->last = k;
	h->n++;
	return k->bytes;
}

static void
finish_ack(struct broker *b, struct client *c, const uint8_t *begin,
    const uint8_t *end)
{
	struct held *k = c->holder && c->holder->first ? c->holder->last :
	    NULL;

	if (k && begin == k->bytes)
		k->len = (uint32_t)(end - begin);
	else
		finish(b, c, begin, end);
}

static void
drop_first(struct holder *h)
{
	struct held *k = h->first;

	h->first = k->next;
	h->n--;
	mem_free(k, sizeof *k + k->cap);
}

bool
send_choked(const struct broker *b, const struct client *c)
{
	const struct holder *h = c->holder;

	return h && h->first && (h->n >= HELD_MAX || persist_busy(b));
}

void
send_forget_held(struct client *c)
{
	struct holder *h = c->holder;

	if (!h)
		return;
	while (h->first)
		drop_first(h);
	*h->prev = h->next;
	if (h->next)
		h->next->prev = h->prev;
	mem_free(h, sizeof *h);
	c->holder = NULL;
}

/* What may leave now. */
static void
let_go(struct broker *b, struct client *c)
{
	struct holder *h = c->holder;
	uint8_t *p;

	while (h->first && (persist_reached(b, h->first->pos) ||
	    (h->first->soft && persist_failed(b)))) {
		p = start(b, c, h->first->len);
		if (!p)
			return;
		memcpy(p, h->first->bytes, h->first->len);
		finish(b, c, p, p + h->first->len);
		drop_first(h);
		c->mute = false;        /* CONNACK is the first */
	}
	if (!h->first)
		send_forget_held(c);
}

void
send_held(struct broker *b)
{
	struct holder *h, *next;

	for (h = b->holders; h; h = next) {
		next = h->next;
		todo(b, h->client);
		let_go(b, h->client);
	}
}

void
send_flush(struct broker *b, struct client *c)
{
	uint32_t before = c->conn.out_len;

	if (before == 0 || c->blocked || c->failed)
		return;
	if (!conn_flush(&c->conn))
		c->failed = true;
	b->stats.bytes_sent += before - c->conn.out_len;
	c->blocked = c->conn.out_len > 0;
}

/* ---- PUBLISH ---- */

/* The largest packet that Remaining Length can tell of. */
#define SIZE_MAX_MQTT (5 + 268435455u)

/* The topic as c knows it: without the mount point of its listener. */
static struct mqtt_str
topic_for(const struct client *c, struct mqtt_str topic)
{
	const char *point = c->listener->conf->mount_point;
	size_t n = point ? strlen(point) : 0;

	if (n == 0 || topic.len <= n || memcmp(topic.p, point, n) != 0)
		return topic;
	return (struct mqtt_str){ topic.p + n, topic.len - (uint32_t)n };
}

bool
send_fits(const struct client *c, const struct mqtt_publish *p)
{
	struct mqtt_publish q = *p;
	uint32_t size;

	q.topic = topic_for(c, p->topic);
	size = mqtt_publish_size(&q, c->version);
	return size <= c->packet_max && size <= SIZE_MAX_MQTT;
}

/* Puts an alias in place of the topic, or beside it where it is used for the
 * first time; only the first topics of a connection get one. */
static void
use_alias(struct aliases *a, struct mqtt_publish *p)
{
	uint8_t *copy;

	for (uint16_t i = 0; i < a->n; i++) {
		if (!mqtt_str_eq(a->topic[i], p->topic))
			continue;
		p->alias = (uint16_t)(i + 1);
		p->topic.len = 0;
		return;
	}
	if (a->n == a->max || !(copy = mem_alloc(p->topic.len)))
		return;
	memcpy(copy, p->topic.p, p->topic.len);
	a->topic[a->n] = (struct mqtt_str){ copy, p->topic.len };
	p->alias = ++a->n;
}

static void
log_publish(const struct client *c, const struct mqtt_publish *p)
{
	log_debug("Sending PUBLISH to %s (d%d, q%d, r%d, m%d, '%.*s', ... "
	    "(%u bytes))", client_id(c), p->dup, p->qos, p->retain, p->id,
	    (int)p->topic.len, (const char *)p->topic.p, p->payload.len);
}

bool
send_publish(struct broker *b, struct client *c, struct mqtt_publish *p,
    struct msg *m)
{
	bool copied = p->payload.len < SEND_BY_REFERENCE;
	uint8_t *begin, *end;
	uint32_t size;

	if (!send_fits(c, p))
		return false;
	p->topic = topic_for(c, p->topic);
	log_publish(c, p);
	size = mqtt_publish_size(p, c->version);
	/* An alias beside a topic adds three bytes, and perhaps one to each of
	 * two lengths: not at the limit. */
	if (c->aliases && c->aliases->to_client && size <= SIZE_MAX_MQTT - 5 &&
	    size + 5 <= c->packet_max) {
		use_alias(c->aliases->to_client, p);
		size = mqtt_publish_size(p, c->version);
	}
	begin = start(b, c, copied ? size : size - p->payload.len);
	if (!begin)
		return true;
	end = mqtt_put_publish_head(begin, p, c->version);
	if (copied && p->payload.len) {
		memcpy(end, p->payload.p, p->payload.len);
		end += p->payload.len;
	}
	finish(b, c, begin, end);
	if (!copied && !conn_put_payload(&c->conn, m))
		c->failed = true;
	b->stats.publish_sent++;
	b->stats.publish_bytes_sent += p->payload.len;
	return true;
}

/* ---- acknowledgements ---- */

void
send_ack(struct broker *b, struct client *c, enum mqtt_type t, uint16_t id,
    enum mqtt_reason reason)
{
	uint8_t *begin = start_ack(b, c, MQTT_ACK_MAX);

	if (!begin)
		return;
	if (t == MQTT_PUBACK || t == MQTT_PUBREC)
		log_debug("Sending %s to %s (m%d, rc%d)", mqtt_type_name(t),
		    client_id(c), id, reason);
	else
		log_debug("Sending %s to %s (m%d)", mqtt_type_name(t),
		    client_id(c), id);
	finish_ack(b, c, begin, mqtt_put_ack(begin, t, c->version, id,
	    reason));
}

bool
send_suback(struct broker *b, struct client *c, enum mqtt_type t, uint16_t id,
    const uint8_t *codes, uint32_t n)
{
	bool v5 = c->version == MQTT_5;
	/* Before 5.0 UNSUBACK has no codes. */
	uint32_t n_codes = v5 || t == MQTT_SUBACK ? n : 0;
	uint32_t len = 2 + v5 + n_codes;
	uint8_t *begin, *p;

	if (1 + mqtt_varint_size(len) + len > c->packet_max)
		return false;
	begin = p = start_ack(b, c, 5 + len);
	if (!p)
		return true;
	log_debug("Sending %s to %s", mqtt_type_name(t), client_id(c));
	*p++ = (uint8_t)(t << 4);
	p = mqtt_put_varint(p, len);
	p = mqtt_put_u16(p, id);
	if (v5)
		*p++ = 0;
	memcpy(p, codes, n_codes);
	finish_ack(b, c, begin, p + n_codes);
	return true;
}

void
send_pingresp(struct broker *b, struct client *c)
{
	uint8_t *begin = c->mute ? start_ack(b, c, 2) : start(b, c, 2);

	if (!begin)
		return;
	log_debug("Sending PINGRESP to %s", client_id(c));
	begin[0] = MQTT_PINGRESP << 4;
	begin[1] = 0;
	finish_ack(b, c, begin, begin + 2);
}

/* ---- CONNACK and DISCONNECT ---- */

static uint8_t *
prop_u16(uint8_t *p, enum mqtt_prop id, int v)
{
	*p++ = (uint8_t)id;
	return mqtt_put_u16(p, (uint16_t)v);
}

static uint8_t *
prop_u32(uint8_t *p, enum mqtt_prop id, uint32_t v)
{
	*p++ = (uint8_t)id;
	return mqtt_put_u32(p, v);
}

static uint8_t *
prop_u8(uint8_t *p, enum mqtt_prop id, int v)
{
	*p++ = (uint8_t)id;
	*p++ = (uint8_t)v;
	return p;
}

static uint8_t *
prop_text(uint8_t *p, enum mqtt_prop id, const char *text)
{
	struct mqtt_str s = { (const uint8_t *)text, (uint32_t)strlen(text) };

	*p++ = (uint8_t)id;
	return mqtt_put_str(p, s);
}

/* In Mosquitto's order, what differs from the standard's defaults. */
static uint8_t *
connack_props(uint8_t *p, const struct broker *b, const struct client *c,
    const struct connack *k)
{
	const struct config_listener *l = c->listener->conf;

	if (l->max_topic_alias > 0)
		p = prop_u16(p, MQTT_P_ALIAS_MAX, l->max_topic_alias);
	if (k->assigned_id)
		p = prop_text(p, MQTT_P_ASSIGNED_CLIENT_ID, k->assigned_id);
	if (k->tell_keepalive)
		p = prop_u16(p, MQTT_P_SERVER_KEEP_ALIVE, c->keepalive);
	if (k->tell_expiry)
		p = prop_u32(p, MQTT_P_SESSION_EXPIRY, c->session->expiry);
	if (!b->conf->retain_available)
		p = prop_u8(p, MQTT_P_RETAIN_AVAILABLE, 0);
	p = prop_u32(p, MQTT_P_PACKET_MAX, (uint32_t)b->conf->max_packet_size);
	if (b->conf->max_inflight_messages > 0)
		p = prop_u16(p, MQTT_P_RECEIVE_MAX,
		    b->conf->max_inflight_messages);
	if (l->max_qos < 2)
		p = prop_u8(p, MQTT_P_MAX_QOS, l->max_qos);
	return p;
}

static void
put_connack(struct broker *b, struct client *c, bool present, uint8_t code,
    const uint8_t *props, uint32_t n)
{
	bool v5 = c->version == MQTT_5;
	uint32_t len = 2 + (v5 ? mqtt_varint_size(n) + n : 0);
	uint8_t *begin, *p;

	/* [MQTT5-3.1.2-24] */
	if (1 + mqtt_varint_size(len) + len > c->packet_max) {
		c->failed = true;
		todo(b, c);
		return;
	}
	begin = p = code ? start(b, c, 5 + len) : start_ack(b, c, 5 + len);
	if (!p)
		return;
	c->mute = c->holder && c->holder->first;
	/* A session that was there goes on, whatever the disk does. */
	if (c->mute && present)
		c->holder->last->soft = true;
	*p++ = MQTT_CONNACK << 4;
	p = mqtt_put_varint(p, len);
	*p++ = present;
	*p++ = code;
	if (v5) {
		p = mqtt_put_varint(p, n);
		memcpy(p, props, n);
		p += n;
	}
	finish_ack(b, c, begin, p);
}

void
send_connack(struct broker *b, struct client *c, const struct connack *k)
{
	uint8_t props[64 + CONFIG_ID_MAX], *end = props;

	/* Before 3.1.1 the first byte was reserved. */
	bool present = k->session_present && c->version != MQTT_31;

	log_debug("Sending CONNACK to %s (%d, 0)", client_id(c), present);
	if (c->version == MQTT_5)
		end = connack_props(props, b, c, k);
	put_connack(b, c, present, 0, props,
	    (uint32_t)(end - props));
}

/* A Reason String helps where the code alone does not tell what was wrong. */
static bool
worth_saying(enum mqtt_reason r, const char *why)
{
	return why && (r == MQTT_MALFORMED || r == MQTT_PROTOCOL_ERROR ||
	    r == MQTT_BAD_FILTER || r == MQTT_BAD_TOPIC ||
	    r == MQTT_BAD_CLIENT_ID || r == MQTT_BAD_ALIAS);
}

#define WHY_MAX 100

void
send_refusal(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why)
{
	uint8_t props[WHY_MAX + 3], *end = props;
	uint8_t code = c->version == MQTT_5 ? (uint8_t)reason :
	    mqtt_connack_code(reason);
	char name[CONN_NAME];

	if (!code)
		return;
	if (c->version == MQTT_5 && worth_saying(reason, why) &&
	    strlen(why) <= WHY_MAX && strlen(why) + 10 <= c->packet_max)
		end = prop_text(props, MQTT_P_REASON_STRING, why);
	log_debug("Sending CONNACK to %s (0, %d)",
	    conn_name(&c->conn.peer, name), code);
	put_connack(b, c, false, code, props, (uint32_t)(end - props));
}

void
send_disconnect(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why)
{
	uint8_t *begin, *p;
	uint32_t n = worth_saying(reason, why) ? (uint32_t)strlen(why) : 0;

	/* [MQTT5-3.14.0-1]: not before CONNACK */
	if (c->version != MQTT_5 || c->mute)
		return;
	if (n > WHY_MAX || n + 7 > c->packet_max)
		n = 0;
	begin = p = start(b, c, 7 + n);
	if (!p)
		return;
	log_debug("Sending DISCONNECT to %s (rc%d)", client_id(c), reason);
	*p++ = MQTT_DISCONNECT << 4;
	*p++ = (uint8_t)(n ? n + 5 : 1);
	*p++ = (uint8_t)reason;
	if (n) {
		*p++ = (uint8_t)(n + 3);
		p = prop_text(p, MQTT_P_REASON_STRING, why);
	}
	finish(b, c, begin, p);
}
