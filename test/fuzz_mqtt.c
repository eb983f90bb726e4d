/* Fuzzer of mqtt: arbitrary bytes as the body of any packet of any version.
 * Beyond the sanitizers: views stay inside the input, strings are UTF-8, what
 * is handed on can be read again, and a PUBLISH survives a round trip. */
#include "mqtt.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *body, *body_end;

static void
bytes(struct mqtt_str s)
{
	assert(s.len == 0 || (s.p >= body && s.p <= body_end &&
	    s.len <= (size_t)(body_end - s.p)));
}

static void
text(struct mqtt_str s)
{
	bytes(s);
	assert(mqtt_utf8_valid(s.p, s.len));
}

static void
result(const struct mqtt_in *in, enum mqtt_reason r)
{
	assert(r == in->err && !r == !in->why);
	assert(in->p >= body && in->p <= in->end && in->end == body_end);
}

/* Forwarded properties are those of a PUBLISH, and nothing else. */
static void
forwarded(struct mqtt_str s)
{
	uint8_t *b = malloc(s.len + 8u), *end;
	struct mqtt_publish p, q = { .topic = { (const uint8_t *)"t", 1 },
	    .props = s };
	struct mqtt_in in;

	bytes(s);
	assert(b);
	end = mqtt_put_publish_head(b, &q, MQTT_5);
	if (s.len)
		memcpy(end - s.len, s.p, s.len);
	in = (struct mqtt_in){ .p = end - s.len, .end = end };
	in.p -= mqtt_varint_size(s.len) + 3;
	assert(!mqtt_get_publish(&in, 0, MQTT_5, &p));
	assert(mqtt_str_eq(p.props, s) && !p.alias && !p.has_expiry);
	assert(p.payload.len == 0);
	free(b);
}

static void
connect_packet(struct mqtt_in *in)
{
	struct mqtt_connect c;

	result(in, mqtt_get_connect(in, &c));
	if (in->err)
		return;
	assert(c.version >= MQTT_31 && c.version <= MQTT_5);
	assert((!c.will || c.will_qos < 3) &&
	    (c.version == MQTT_5 || c.props.have == 0));
	assert(c.props.receive_max && c.props.packet_max);
	assert(c.has_user || !c.has_password || c.version == MQTT_5);
	text(c.id);
	text(c.user);
	text(c.will_topic);
	bytes(c.password);
	bytes(c.will_payload);
	forwarded(c.will_props.forward);
	assert(in->p == in->end);
}

static bool
same(const struct mqtt_publish *p, const struct mqtt_publish *q)
{
	return mqtt_str_eq(p->topic, q->topic) &&
	    mqtt_str_eq(p->payload, q->payload) &&
	    mqtt_str_eq(p->props, q->props) && p->id == q->id &&
	    p->alias == q->alias && p->has_expiry == q->has_expiry &&
	    p->expiry == q->expiry && p->qos == q->qos && p->dup == q->dup &&
	    p->retain == q->retain;
}

static void
round_trip(const struct mqtt_publish *p, enum mqtt_version v)
{
	uint32_t size = mqtt_publish_size(p, v);
	uint8_t *b = malloc(size), *end;
	struct mqtt_header h;
	struct mqtt_publish q;
	struct mqtt_in in;

	assert(b);
	end = mqtt_put_publish_head(b, p, v);
	assert(size == (size_t)(end - b) + p->payload.len);
	if (p->payload.len)
		memcpy(end, p->payload.p, p->payload.len);
	assert(mqtt_get_header(b, size, true, &h) == 1);
	assert(h.type == MQTT_PUBLISH && h.size == size);
	assert(mqtt_flags_valid(&h, v));
	in = (struct mqtt_in){ .p = b + size - h.len, .end = b + size };
	assert(!mqtt_get_publish(&in, h.flags, v, &q));
	assert(same(p, &q));
	free(b);
}

static void
publish_packet(struct mqtt_in *in, uint8_t flags, enum mqtt_version v)
{
	struct mqtt_publish p;

	result(in, mqtt_get_publish(in, flags, v, &p));
	if (in->err)
		return;
	text(p.topic);
	bytes(p.payload);
	assert(p.qos < 3 && !p.id == (p.qos == 0) && p.n_subids == 0);
	assert(v == MQTT_5 || (!p.props.len && !p.alias && !p.has_expiry));
	forwarded(p.props);
	round_trip(&p, v);
}

static void
subscribe_packet(struct mqtt_in *in, enum mqtt_type t, enum mqtt_version v)
{
	struct mqtt_props pr;
	struct mqtt_filter f;
	uint16_t id;

	result(in, mqtt_get_subscribe(in, t, v, &id, &pr));
	assert(in->err || (id && in->p < in->end));
	while (in->p < in->end) {
		const uint8_t *before = in->p;

		result(in, mqtt_get_filter(in, t, v, &f));
		assert(in->err || in->p > before);
		if (in->err)
			return;
		text(f.filter);
		assert(f.qos < 3 && f.retain_handling < 3);
	}
}

static void
ack_packet(struct mqtt_in *in, enum mqtt_type t, enum mqtt_version v)
{
	uint8_t b[MQTT_ACK_MAX], *end;
	struct mqtt_ack a, again;
	struct mqtt_in in2;

	result(in, mqtt_get_ack(in, t, v, &a));
	if (in->err)
		return;
	assert(a.id && in->p == in->end && (v == MQTT_5 || !a.reason));
	end = mqtt_put_ack(b, t, v, a.id, (enum mqtt_reason)a.reason);
	assert(b[0] >> 4 == (int)t && end == b + 2 + b[1]);
	in2 = (struct mqtt_in){ .p = b + 2, .end = end };
	assert(!mqtt_get_ack(&in2, t, v, &again));
	assert(again.id == a.id && again.reason == a.reason);
}

static void
header(const uint8_t *p, size_t n)
{
	struct mqtt_header h, strict;
	int lax = mqtt_get_header(p, n, false, &h);
	int r = mqtt_get_header(p, n, true, &strict);
	uint8_t b[4];

	assert(r == lax || (lax == 1 && r == -1));
	if (lax < 1)
		return;
	assert(h.len < 1u << 28 && h.size > h.len && h.size <= h.len + 5);
	assert(h.type == p[0] >> 4 && h.flags == (p[0] & 15));
	/* Padded is what is longer than our own encoding. */
	mqtt_put_varint(b, h.len);
	assert((r == 1) == (h.size - h.len - 1 == mqtt_varint_size(h.len)));
	assert(r == -1 || memcmp(b, p + 1, h.size - h.len - 1) == 0);
}

static void
names(struct mqtt_str s)
{
	struct mqtt_str name = { 0 }, rest = { 0 };

	if (!mqtt_utf8_valid(s.p, s.len))
		return;
	/* A name without a fault is a filter without one. */
	assert(mqtt_topic_fault(s) || !mqtt_filter_fault(s));
	if (!mqtt_is_shared(s) || !mqtt_split_shared(s, &name, &rest))
		return;
	bytes(name);
	bytes(rest);
	assert(name.len && rest.len && name.len + rest.len + 8 == s.len);
	assert(!mqtt_topic_fault(name) && !memchr(name.p, '/', name.len));
	assert(mqtt_filter_fault(s) || !mqtt_filter_fault(rest));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum mqtt_version v;
	enum mqtt_type t;
	struct mqtt_in in;

	if (size < 1)
		return 0;
	v = (enum mqtt_version)(MQTT_31 + data[0] % 3);
	t = (enum mqtt_type)(data[0] >> 4);
	header(data + 1, size - 1);
	/* Exactly as large as needed, so that the sanitizer sees every step
	 * outside; a copy, because decoders write into it. */
	body = malloc(size);
	assert(body);
	memcpy(body, data + 1, size - 1);
	body_end = body + size - 1;
	names((struct mqtt_str){ body, (uint32_t)(size - 1) });
	in = (struct mqtt_in){ .p = body, .end = body_end };
	if (t == MQTT_CONNECT)
		connect_packet(&in);
	else if (t == MQTT_SUBSCRIBE || t == MQTT_UNSUBSCRIBE)
		subscribe_packet(&in, t, v);
	else if (t >= MQTT_PUBACK && t <= MQTT_PUBCOMP)
		ack_packet(&in, t, v);
	else if (t == MQTT_DISCONNECT)
		result(&in, mqtt_get_disconnect(&in, v, &(uint8_t){ 0 },
		    &(struct mqtt_props){ 0 }));
	else
		publish_packet(&in, data[0] >> 2 & 15, v);
	free(body);
	return 0;
}
