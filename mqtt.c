#include "mqtt.h"

#include <string.h>

/* ---- the bounded reader ---- */

static void
fault(struct mqtt_in *in, enum mqtt_reason r, const char *why)
{
	if (in->err)
		return;
	in->err = r;
	in->why = why;
	in->p = in->end;
}

static uint8_t *
take(struct mqtt_in *in, size_t n)
{
	uint8_t *p = in->p;

	if ((size_t)(in->end - in->p) < n) {
		fault(in, MQTT_MALFORMED, "packet ends in the middle of a field");
		return NULL;
	}
	in->p += n;
	return p;
}

static uint8_t
get_u8(struct mqtt_in *in)
{
	uint8_t *p = take(in, 1);

	return p ? p[0] : 0;
}

static uint16_t
get_u16(struct mqtt_in *in)
{
	uint8_t *p = take(in, 2);

	return (uint16_t)(p ? p[0] << 8 | p[1] : 0);
}

static uint32_t
get_u32(struct mqtt_in *in)
{
	uint8_t *p = take(in, 4);

	return p ? (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
	    (uint32_t)p[2] << 8 | p[3] : 0;
}

/* Section 1.5.5: at most four bytes, the shortest form. */
static uint32_t
get_varint(struct mqtt_in *in)
{
	uint32_t v = 0;

	for (int i = 0; i < 4; i++) {
		uint8_t b = get_u8(in);

		v |= (uint32_t)(b & 0x7f) << (7 * i);
		if (b & 0x80)
			continue;
		if (i > 0 && b == 0)
			fault(in, MQTT_MALFORMED, "padded variable byte integer");
		return v;
	}
	fault(in, MQTT_MALFORMED, "variable byte integer of five bytes");
	return 0;
}

static struct mqtt_str
get_bin(struct mqtt_in *in)
{
	uint16_t n = get_u16(in);
	uint8_t *p = take(in, n);

	return p ? (struct mqtt_str){ p, n } : (struct mqtt_str){ in->end, 0 };
}

static struct mqtt_str
get_str(struct mqtt_in *in)
{
	struct mqtt_str s = get_bin(in);

	if (!mqtt_utf8_valid(s.p, s.len))
		fault(in, MQTT_MALFORMED, "string is not UTF-8 or holds U+0000");
	return s;
}

/* ---- fixed header ---- */

int
mqtt_get_header(const uint8_t *p, size_t n, bool minimal, struct mqtt_header *h)
{
	h->len = 0;
	for (unsigned i = 1; i <= 4; i++) {
		if (i >= n)
			return 0;
		h->len |= (uint32_t)(p[i] & 0x7f) << (7 * (i - 1));
		if (p[i] & 0x80)
			continue;
		if (minimal && i > 1 && p[i] == 0)
			return -1;
		h->type = p[0] >> 4;
		h->flags = p[0] & 0x0f;
		h->size = 1 + i + h->len;
		return 1;
	}
	return -1;
}

bool
mqtt_flags_valid(const struct mqtt_header *h, enum mqtt_version v)
{
	switch (h->type) {
	case MQTT_PUBLISH:
		return true;    /* DUP, QoS, RETAIN: checked with the packet */
	case MQTT_PUBREL:
	case MQTT_SUBSCRIBE:
	case MQTT_UNSUBSCRIBE:
		return v == MQTT_31 || h->flags == 0x02;
	default:
		return v == MQTT_31 || h->flags == 0;
	}
}

/* ---- properties ---- */

#define IN(type) (1u << (type))
#define IN_WILL IN(0)
#define IN_ACKS (IN(MQTT_PUBACK) | IN(MQTT_PUBREC) | IN(MQTT_PUBREL) | \
	IN(MQTT_PUBCOMP))

enum prop_form { NONE, FLAG, U16, U32, VARINT, STR, BIN, PAIR };

/* Section 2.2.2.2: what a client may send, and where. */
static const struct {
	uint8_t form;           /* enum prop_form */
	uint16_t where;
	bool forward;           /* handed on with the message */
} prop_rules[] = {
	[MQTT_P_PAYLOAD_FORMAT] = { FLAG, IN(MQTT_PUBLISH) | IN_WILL, true },
	[MQTT_P_MESSAGE_EXPIRY] = { U32, IN(MQTT_PUBLISH) | IN_WILL, false },
	[MQTT_P_CONTENT_TYPE] = { STR, IN(MQTT_PUBLISH) | IN_WILL, true },
	[MQTT_P_RESPONSE_TOPIC] = { STR, IN(MQTT_PUBLISH) | IN_WILL, true },
	[MQTT_P_CORRELATION_DATA] = { BIN, IN(MQTT_PUBLISH) | IN_WILL, true },
	[MQTT_P_SUBSCRIPTION_ID] = { VARINT,
	    IN(MQTT_PUBLISH) | IN(MQTT_SUBSCRIBE), false },
	[MQTT_P_SESSION_EXPIRY] = { U32,
	    IN(MQTT_CONNECT) | IN(MQTT_DISCONNECT), false },
	[MQTT_P_AUTH_METHOD] = { STR, IN(MQTT_CONNECT), false },
	[MQTT_P_AUTH_DATA] = { BIN, IN(MQTT_CONNECT), false },
	[MQTT_P_REQUEST_PROBLEM] = { FLAG, IN(MQTT_CONNECT), false },
	[MQTT_P_WILL_DELAY] = { U32, IN_WILL, false },
	[MQTT_P_REQUEST_RESPONSE] = { FLAG, IN(MQTT_CONNECT), false },
	[MQTT_P_REASON_STRING] = { STR, IN_ACKS | IN(MQTT_DISCONNECT), false },
	[MQTT_P_RECEIVE_MAX] = { U16, IN(MQTT_CONNECT), false },
	[MQTT_P_ALIAS_MAX] = { U16, IN(MQTT_CONNECT), false },
	[MQTT_P_ALIAS] = { U16, IN(MQTT_PUBLISH), false },
	[MQTT_P_USER] = { PAIR, IN_WILL | IN(MQTT_CONNECT) | IN(MQTT_PUBLISH) |
	    IN_ACKS | IN(MQTT_SUBSCRIBE) | IN(MQTT_UNSUBSCRIBE) |
	    IN(MQTT_DISCONNECT), true },
	[MQTT_P_PACKET_MAX] = { U32, IN(MQTT_CONNECT), false },
};

/* The rules for values that hold wherever the property stands. */
static void
check_value(struct mqtt_in *in, uint32_t id, uint32_t num, struct mqtt_str s)
{
	bool zero_is_wrong = id == MQTT_P_RECEIVE_MAX ||
	    id == MQTT_P_PACKET_MAX || id == MQTT_P_SUBSCRIPTION_ID;

	if (zero_is_wrong && num == 0)
		fault(in, MQTT_PROTOCOL_ERROR, "property must not be 0");
	if (prop_rules[id].form == FLAG && num > 1)
		fault(in, MQTT_PROTOCOL_ERROR, "property must be 0 or 1");
	if (id == MQTT_P_ALIAS && num == 0)
		fault(in, MQTT_BAD_ALIAS, "topic alias 0");
	/* [MQTT5-3.3.2-14] */
	if (id == MQTT_P_RESPONSE_TOPIC && mqtt_topic_fault(s))
		fault(in, MQTT_PROTOCOL_ERROR,
		    "response topic is empty or holds a wildcard");
}

static void
keep_value(struct mqtt_props *pr, uint32_t id, uint32_t num)
{
	pr->have |= UINT64_C(1) << id;
	switch (id) {
	case MQTT_P_SESSION_EXPIRY:
		pr->session_expiry = num;
		break;
	case MQTT_P_PACKET_MAX:
		pr->packet_max = num;
		break;
	case MQTT_P_MESSAGE_EXPIRY:
		pr->message_expiry = num;
		break;
	case MQTT_P_WILL_DELAY:
		pr->will_delay = num;
		break;
	case MQTT_P_SUBSCRIPTION_ID:
		pr->subscription_id = num;
		break;
	case MQTT_P_RECEIVE_MAX:
		pr->receive_max = (uint16_t)num;
		break;
	case MQTT_P_ALIAS_MAX:
		pr->alias_max = (uint16_t)num;
		break;
	case MQTT_P_ALIAS:
		pr->alias = (uint16_t)num;
		break;
	default:
		break;
	}
}

static void
get_prop(struct mqtt_in *in, unsigned where, struct mqtt_props *pr, uint32_t id)
{
	struct mqtt_str s = { NULL, 0 };
	uint32_t num = 0;

	switch (prop_rules[id].form) {
	case FLAG:
		num = get_u8(in);
		break;
	case U16:
		num = get_u16(in);
		break;
	case U32:
		num = get_u32(in);
		break;
	case VARINT:
		num = get_varint(in);
		break;
	case STR:
		s = get_str(in);
		break;
	case BIN:
		s = get_bin(in);
		break;
	case PAIR:
		get_str(in);
		get_str(in);
		return;         /* the only one that may be repeated */
	default:
		break;
	}
	if (in->err)
		return;
	if (pr->have >> id & 1)
		fault(in, MQTT_PROTOCOL_ERROR, "property given twice");
	/* [MQTT5-3.3.4-6] */
	if (where == MQTT_PUBLISH && id == MQTT_P_SUBSCRIPTION_ID)
		fault(in, MQTT_PROTOCOL_ERROR,
		    "subscription identifier in a client's PUBLISH");
	check_value(in, id, num, s);
	keep_value(pr, id, num);
}

/* Reads the properties of packet type where (0: a Will). In a message, what is
 * not handed on is squeezed out of the bytes, so that the rest is one view. */
static void
get_props(struct mqtt_in *in, unsigned where, struct mqtt_props *pr)
{
	bool message = where == 0 || where == MQTT_PUBLISH;
	uint32_t len = get_varint(in), id;
	struct mqtt_in sub = { .p = in->p };
	uint8_t *start, *kept = in->p;

	*pr = (struct mqtt_props){ .receive_max = UINT16_MAX,
	    .packet_max = UINT32_MAX };
	if (!take(in, len))
		return;
	sub.end = in->p;
	while (sub.p < sub.end) {
		start = sub.p;
		id = get_varint(&sub);
		if (sub.err)
			break;
		if (id >= sizeof prop_rules / sizeof *prop_rules ||
		    !(prop_rules[id].where & IN(where))) {
			fault(&sub, MQTT_MALFORMED,
			    "property that does not belong into this packet");
			break;
		}
		get_prop(&sub, where, pr, id);
		if (sub.err || !message || !prop_rules[id].forward)
			continue;
		if (kept != start)
			memmove(kept, start, (size_t)(sub.p - start));
		kept += sub.p - start;
	}
	pr->forward.p = in->p - len;
	pr->forward.len = (uint32_t)(kept - pr->forward.p);
	if (sub.err)
		fault(in, sub.err, sub.why);
}

bool
mqtt_forward_valid(struct mqtt_str s)
{
	uint8_t *p = (uint8_t *)(uintptr_t)s.p;
	struct mqtt_in in = { .p = p, .end = s.len ? p + s.len : p };
	struct mqtt_props pr = { 0 };
	uint32_t id;

	while (in.p < in.end && !in.err) {
		id = get_varint(&in);
		if (in.err)
			break;
		if (id >= sizeof prop_rules / sizeof *prop_rules ||
		    !prop_rules[id].forward)
			return false;
		get_prop(&in, MQTT_PUBLISH, &pr, id);
	}
	return !in.err;
}

/* ---- packets from clients ---- */

static void
at_end(struct mqtt_in *in)
{
	if (in->p != in->end)
		fault(in, MQTT_MALFORMED, "bytes left over after the last field");
}

static bool
is(struct mqtt_str s, const char *text)
{
	return s.len == strlen(text) && memcmp(s.p, text, s.len) == 0;
}

/* Protocol name and level. 0x80 in the level is the convention by which
 * Mosquitto's and RSMB's bridges say what they are. */
static void
get_protocol(struct mqtt_in *in, struct mqtt_connect *c)
{
	struct mqtt_str name = get_bin(in);
	uint8_t level = get_u8(in);

	if (in->err)
		return;
	c->version = level & 0x7f;
	c->bridge = level & 0x80;
	if (is(name, "MQTT")) {
		if (c->version == MQTT_311 ||
		    (c->version == MQTT_5 && !c->bridge))
			return;
		c->version = level;
	} else if (is(name, "MQIsdp")) {
		if (c->version == MQTT_31)
			return;
		c->version = MQTT_31;
	} else {
		c->version = 0;
		fault(in, MQTT_MALFORMED, "protocol name is not MQTT");
		return;
	}
	fault(in, MQTT_BAD_VERSION, "protocol version is not 3.1, 3.1.1 or 5.0");
}

/* The fields that the connect flags announce. */
static void
get_connect_payload(struct mqtt_in *in, uint8_t flags, struct mqtt_connect *c)
{
	/* 3.1 allows the flags to be set with the strings missing. */
	bool lax = c->version == MQTT_31;

	c->id = get_str(in);
	if (c->will) {
		if (c->version == MQTT_5)
			get_props(in, 0, &c->will_props);
		c->will_topic = get_str(in);
		c->will_payload = get_bin(in);
	}
	if (flags & 0x80 && !(lax && in->p == in->end)) {
		c->has_user = true;
		c->user = get_str(in);
	}
	if (flags & 0x40 && !(lax && in->p == in->end)) {
		c->has_password = true;
		c->password = get_bin(in);
	}
	at_end(in);
}

static void
check_connect_flags(struct mqtt_in *in, uint8_t flags, enum mqtt_version v)
{
	if (v != MQTT_31) {
		/* [MQTT-3.1.2-3] */
		if (flags & 0x01)
			fault(in, MQTT_MALFORMED, "reserved connect flag is set");
		/* [MQTT-3.1.2-11], [MQTT-3.1.2-13], [MQTT-3.1.2-15] */
		if (!(flags & 0x04) && flags & 0x38)
			fault(in, MQTT_MALFORMED,
			    "will QoS or will retain without will flag");
	}
	/* [MQTT-3.1.2-14] */
	if (flags & 0x04 && (flags & 0x18) == 0x18)
		fault(in, MQTT_MALFORMED, "will QoS 3");
	/* [MQTT-3.1.2-22]; legal from 5.0 on */
	if (v != MQTT_5 && (flags & 0xc0) == 0x40)
		fault(in, MQTT_MALFORMED, "password without user name");
}

enum mqtt_reason
mqtt_get_connect(struct mqtt_in *in, struct mqtt_connect *c)
{
	uint8_t flags;

	*c = (struct mqtt_connect){ 0 };
	get_protocol(in, c);
	if (in->err)
		return in->err;
	flags = get_u8(in);
	c->keepalive = get_u16(in);
	check_connect_flags(in, flags, c->version);
	c->clean = flags & 0x02;
	c->will = flags & 0x04;
	c->will_qos = flags >> 3 & 3;
	c->will_retain = flags & 0x20;
	c->props = (struct mqtt_props){ .receive_max = UINT16_MAX,
	    .packet_max = UINT32_MAX };
	if (c->version == MQTT_5)
		get_props(in, MQTT_CONNECT, &c->props);
	get_connect_payload(in, flags, c);
	if (mqtt_has(&c->props, MQTT_P_AUTH_DATA) &&
	    !mqtt_has(&c->props, MQTT_P_AUTH_METHOD))
		fault(in, MQTT_PROTOCOL_ERROR,
		    "authentication data without a method");
	return in->err;
}

enum mqtt_reason
mqtt_get_publish(struct mqtt_in *in, uint8_t flags, enum mqtt_version v,
    struct mqtt_publish *p)
{
	struct mqtt_props pr;

	*p = (struct mqtt_publish){ .qos = flags >> 1 & 3,
	    .dup = flags & 8, .retain = flags & 1 };
	if (p->qos == 3)
		fault(in, MQTT_MALFORMED, "QoS 3");     /* [MQTT-3.3.1-4] */
	if (p->qos == 0 && p->dup && v != MQTT_31)
		fault(in, MQTT_MALFORMED, "DUP with QoS 0"); /* [MQTT-3.3.1-2] */
	p->topic = get_str(in);
	if (p->qos > 0 && (p->id = get_u16(in)) == 0)
		fault(in, MQTT_PROTOCOL_ERROR, "packet identifier 0");
	if (v == MQTT_5) {
		get_props(in, MQTT_PUBLISH, &pr);
		p->props = pr.forward;
		p->alias = pr.alias;
		p->has_expiry = mqtt_has(&pr, MQTT_P_MESSAGE_EXPIRY);
		p->expiry = pr.message_expiry;
	}
	p->payload = (struct mqtt_str){ in->p, (uint32_t)(in->end - in->p) };
	return in->err;
}

/* The codes that a client may send in an ack, sections 3.4.2 to 3.7.2. */
static bool
ack_reason_valid(enum mqtt_type t, uint8_t r)
{
	if (t == MQTT_PUBREL || t == MQTT_PUBCOMP)
		return r == MQTT_OK || r == MQTT_ID_NOT_FOUND;
	switch (r) {
	case MQTT_OK:
	case MQTT_NO_MATCHING_SUBSCRIBERS:
	case MQTT_UNSPECIFIED:
	case MQTT_IMPLEMENTATION:
	case MQTT_NOT_AUTHORIZED:
	case MQTT_BAD_TOPIC:
	case 0x91:              /* packet identifier in use */
	case MQTT_QUOTA:
	case MQTT_BAD_PAYLOAD_FORMAT:
		return true;
	default:
		return false;
	}
}

enum mqtt_reason
mqtt_get_ack(struct mqtt_in *in, enum mqtt_type t, enum mqtt_version v,
    struct mqtt_ack *a)
{
	struct mqtt_props pr;

	a->id = get_u16(in);
	a->reason = MQTT_OK;
	if (v == MQTT_5 && in->p < in->end) {
		a->reason = get_u8(in);
		if (in->p < in->end)
			get_props(in, t, &pr);
	}
	at_end(in);
	if (!in->err && a->id == 0)
		fault(in, MQTT_PROTOCOL_ERROR, "packet identifier 0");
	if (!in->err && !ack_reason_valid(t, a->reason))
		fault(in, MQTT_PROTOCOL_ERROR, "reason code not allowed here");
	return in->err;
}

/* The codes of table 3-10 that a client may send [MQTT5-3.14.2-1]. */
static bool
disconnect_reason_valid(uint8_t r)
{
	switch (r) {
	case MQTT_OK:
	case MQTT_DISCONNECT_WITH_WILL:
	case MQTT_UNSPECIFIED:
	case MQTT_MALFORMED:
	case MQTT_PROTOCOL_ERROR:
	case MQTT_IMPLEMENTATION:
	case MQTT_BAD_TOPIC:
	case MQTT_RECEIVE_MAX_EXCEEDED:
	case MQTT_BAD_ALIAS:
	case MQTT_TOO_LARGE:
	case 0x96:              /* message rate too high */
	case MQTT_QUOTA:
	case 0x98:              /* administrative action */
	case MQTT_BAD_PAYLOAD_FORMAT:
	case MQTT_NO_QOS:       /* section 3.3.4 lets a client use it */
		return true;
	default:
		return false;
	}
}

enum mqtt_reason
mqtt_get_disconnect(struct mqtt_in *in, enum mqtt_version v, uint8_t *reason,
    struct mqtt_props *props)
{
	*props = (struct mqtt_props){ 0 };
	*reason = MQTT_OK;
	if (v == MQTT_5 && in->p < in->end) {
		*reason = get_u8(in);
		if (in->p < in->end)
			get_props(in, MQTT_DISCONNECT, props);
	}
	at_end(in);
	if (!in->err && !disconnect_reason_valid(*reason))
		fault(in, MQTT_PROTOCOL_ERROR, "reason code not allowed here");
	return in->err;
}

enum mqtt_reason
mqtt_get_subscribe(struct mqtt_in *in, enum mqtt_type t, enum mqtt_version v,
    uint16_t *id, struct mqtt_props *props)
{
	*props = (struct mqtt_props){ 0 };
	*id = get_u16(in);
	if (!in->err && *id == 0)
		fault(in, MQTT_PROTOCOL_ERROR, "packet identifier 0");
	if (v == MQTT_5)
		get_props(in, t, props);
	if (!in->err && in->p == in->end)
		fault(in, MQTT_PROTOCOL_ERROR, "no topic filter");
	return in->err;
}

/* The options byte of SUBSCRIBE, section 3.8.3.1. */
static void
get_options(struct mqtt_in *in, enum mqtt_version v, struct mqtt_filter *f)
{
	uint8_t o = get_u8(in);

	f->qos = o & 3;
	if (v == MQTT_5) {
		f->no_local = o & 0x04;
		f->retain_as_published = o & 0x08;
		f->retain_handling = o >> 4 & 3;
	}
	/* [MQTT5-3.8.3-5], [MQTT-3.8.3-4]; 3.1 ignores the upper bits */
	if ((v == MQTT_5 && o & 0xc0) || (v == MQTT_311 && o & 0xfc))
		fault(in, MQTT_MALFORMED, "reserved bits in the options");
	if (f->qos == 3)
		fault(in, v == MQTT_5 ? MQTT_PROTOCOL_ERROR : MQTT_MALFORMED,
		    "QoS 3");
	if (f->retain_handling == 3)
		fault(in, MQTT_PROTOCOL_ERROR, "retain handling 3");
}

enum mqtt_reason
mqtt_get_filter(struct mqtt_in *in, enum mqtt_type t, enum mqtt_version v,
    struct mqtt_filter *f)
{
	*f = (struct mqtt_filter){ .filter = get_str(in) };
	if (t == MQTT_SUBSCRIBE)
		get_options(in, v, f);
	return in->err;
}

/* ---- encoding ---- */

uint8_t *
mqtt_put_u16(uint8_t *out, uint16_t v)
{
	out[0] = (uint8_t)(v >> 8);
	out[1] = (uint8_t)v;
	return out + 2;
}

uint8_t *
mqtt_put_u32(uint8_t *out, uint32_t v)
{
	return mqtt_put_u16(mqtt_put_u16(out, (uint16_t)(v >> 16)),
	    (uint16_t)v);
}

unsigned
mqtt_varint_size(uint32_t v)
{
	return v < 1u << 7 ? 1 : v < 1u << 14 ? 2 : v < 1u << 21 ? 3 : 4;
}

uint8_t *
mqtt_put_varint(uint8_t *out, uint32_t v)
{
	for (; v >= 0x80; v >>= 7)
		*out++ = (uint8_t)(v | 0x80);
	*out++ = (uint8_t)v;
	return out;
}

static uint8_t *
put_bytes(uint8_t *out, struct mqtt_str s)
{
	if (s.len)
		memcpy(out, s.p, s.len);
	return out + s.len;
}

uint8_t *
mqtt_put_str(uint8_t *out, struct mqtt_str s)
{
	return put_bytes(mqtt_put_u16(out, (uint16_t)s.len), s);
}

static uint32_t
publish_props_size(const struct mqtt_publish *p)
{
	uint32_t n = p->props.len;

	if (p->has_expiry)
		n += 5;
	if (p->alias)
		n += 3;
	for (uint32_t i = 0; i < p->n_subids; i++)
		n += 1 + mqtt_varint_size(p->subids[i]);
	return n;
}

static uint32_t
publish_len(const struct mqtt_publish *p, enum mqtt_version v, uint32_t props)
{
	uint32_t n = 2 + p->topic.len + p->payload.len;

	if (p->qos > 0)
		n += 2;
	if (v == MQTT_5)
		n += mqtt_varint_size(props) + props;
	return n;
}

uint32_t
mqtt_publish_size(const struct mqtt_publish *p, enum mqtt_version v)
{
	uint32_t n = publish_len(p, v, v == MQTT_5 ? publish_props_size(p) : 0);

	return 1 + mqtt_varint_size(n) + n;
}

static uint8_t *
put_publish_props(uint8_t *out, const struct mqtt_publish *p, uint32_t len)
{
	out = mqtt_put_varint(out, len);
	if (p->has_expiry) {
		*out++ = MQTT_P_MESSAGE_EXPIRY;
		out = mqtt_put_u32(out, p->expiry);
	}
	if (p->alias) {
		*out++ = MQTT_P_ALIAS;
		out = mqtt_put_u16(out, p->alias);
	}
	for (uint32_t i = 0; i < p->n_subids; i++) {
		*out++ = MQTT_P_SUBSCRIPTION_ID;
		out = mqtt_put_varint(out, p->subids[i]);
	}
	return put_bytes(out, p->props);
}

uint8_t *
mqtt_put_publish_head(uint8_t *out, const struct mqtt_publish *p,
    enum mqtt_version v)
{
	uint32_t props = v == MQTT_5 ? publish_props_size(p) : 0;

	*out++ = (uint8_t)(MQTT_PUBLISH << 4 | p->dup << 3 | p->qos << 1 |
	    p->retain);
	out = mqtt_put_varint(out, publish_len(p, v, props));
	out = mqtt_put_str(out, p->topic);
	if (p->qos > 0)
		out = mqtt_put_u16(out, p->id);
	if (v == MQTT_5)
		out = put_publish_props(out, p, props);
	return out;
}

uint8_t *
mqtt_put_ack(uint8_t *out, enum mqtt_type t, enum mqtt_version v, uint16_t id,
    enum mqtt_reason reason)
{
	bool with_reason = v == MQTT_5 && reason != MQTT_OK;

	*out++ = (uint8_t)(t << 4 | (t == MQTT_PUBREL ? 2 : 0));
	*out++ = with_reason ? 3 : 2;
	out = mqtt_put_u16(out, id);
	if (with_reason)
		*out++ = (uint8_t)reason;
	return out;
}

/* ---- names ---- */

/* One multi-byte sequence at p; its length, 0 if it is not UTF-8: no overlong
 * form, no surrogate, nothing above U+10FFFF. */
static size_t
utf8_sequence(const uint8_t *p, size_t n)
{
	uint32_t c;
	size_t len;

	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if ((p[0] & 0xf0) == 0xe0)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (n < len)
		return 0;
	c = p[0] & (0x7fu >> len);
	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if ((len == 3 && (c < 0x800 || (c >= 0xd800 && c <= 0xdfff))) ||
	    (len == 4 && (c < 0x10000 || c > 0x10ffff)))
		return 0;
	return len;
}

/* Eight bytes that are all plain ASCII and not 0? */
static bool
eight_ascii(const uint8_t *p)
{
	uint64_t w;

	memcpy(&w, p, 8);
	return ((w | (w - 0x0101010101010101u)) & 0x8080808080808080u) == 0;
}

bool
mqtt_utf8_valid(const uint8_t *p, size_t n)
{
	size_t i = 0, len;

	while (i < n) {
		if (n - i >= 8 && eight_ascii(p + i)) {
			i += 8;
			continue;
		}
		if (p[i] == 0)
			return false;
		len = p[i] < 0x80 ? 1 : utf8_sequence(p + i, n - i);
		if (len == 0)
			return false;
		i += len;
	}
	return true;
}

const char *
mqtt_topic_fault(struct mqtt_str t)
{
	unsigned levels = 1;

	if (t.len == 0)
		return "topic is empty";
	for (uint32_t i = 0; i < t.len; i++) {
		if (t.p[i] == '+' || t.p[i] == '#')
			return "wildcard in a topic";
		levels += t.p[i] == '/';
	}
	return levels > MQTT_LEVELS_MAX ? "topic has more than 200 levels" :
	    NULL;
}

const char *
mqtt_filter_fault(struct mqtt_str f)
{
	unsigned levels = 1;

	if (f.len == 0)
		return "topic filter is empty";
	for (uint32_t i = 0; i < f.len; i++) {
		bool first = i == 0 || f.p[i - 1] == '/';
		bool last = i + 1 == f.len;

		levels += f.p[i] == '/';
		if (f.p[i] == '#' && !(first && last))
			return "# is not alone in the last level";
		if (f.p[i] == '+' && !(first && (last || f.p[i + 1] == '/')))
			return "+ is not alone in its level";
	}
	return levels > MQTT_LEVELS_MAX ?
	    "topic filter has more than 200 levels" : NULL;
}

bool
mqtt_is_shared(struct mqtt_str f)
{
	return f.len >= 6 && memcmp(f.p, "$share", 6) == 0 &&
	    (f.len == 6 || f.p[6] == '/');
}

bool
mqtt_split_shared(struct mqtt_str f, struct mqtt_str *name,
    struct mqtt_str *rest)
{
	const uint8_t *slash;

	if (f.len < 7)
		return false;
	name->p = f.p + 7;
	slash = memchr(name->p, '/', f.len - 7);
	if (!slash)
		return false;
	name->len = (uint32_t)(slash - name->p);
	rest->p = slash + 1;
	rest->len = f.len - 7 - name->len - 1;
	return name->len > 0 && rest->len > 0 &&
	    !memchr(name->p, '+', name->len) &&
	    !memchr(name->p, '#', name->len);
}

uint8_t
mqtt_connack_code(enum mqtt_reason r)
{
	switch (r) {
	case MQTT_BAD_VERSION:
		return 1;
	case MQTT_BAD_CLIENT_ID:
		return 2;
	case MQTT_UNAVAILABLE:
	case MQTT_BUSY:
	case MQTT_QUOTA:
		return 3;
	case MQTT_BAD_LOGIN:
		return 4;
	case MQTT_NOT_AUTHORIZED:
		return 5;
	default:
		return 0;
	}
}

const char *
mqtt_reason_name(enum mqtt_reason r)
{
	switch (r) {
	case MQTT_OK:
		return "success";
	case MQTT_DISCONNECT_WITH_WILL:
		return "disconnect with will message";
	case MQTT_NO_MATCHING_SUBSCRIBERS:
		return "no matching subscribers";
	case MQTT_NO_SUBSCRIPTION_EXISTED:
		return "no subscription existed";
	case MQTT_UNSPECIFIED:
		return "unspecified error";
	case MQTT_MALFORMED:
		return "malformed packet";
	case MQTT_PROTOCOL_ERROR:
		return "protocol error";
	case MQTT_IMPLEMENTATION:
		return "implementation specific error";
	case MQTT_BAD_VERSION:
		return "unsupported protocol version";
	case MQTT_BAD_CLIENT_ID:
		return "client identifier not valid";
	case MQTT_BAD_LOGIN:
		return "bad user name or password";
	case MQTT_NOT_AUTHORIZED:
		return "not authorised";
	case MQTT_UNAVAILABLE:
		return "server unavailable";
	case MQTT_BUSY:
		return "server busy";
	case MQTT_BAD_AUTH_METHOD:
		return "bad authentication method";
	case MQTT_KEEP_ALIVE_TIMEOUT:
		return "exceeded timeout";
	case MQTT_TAKEN_OVER:
		return "session taken over";
	case MQTT_BAD_FILTER:
		return "topic filter invalid";
	case MQTT_BAD_TOPIC:
		return "topic name invalid";
	case MQTT_ID_NOT_FOUND:
		return "packet identifier not found";
	case MQTT_RECEIVE_MAX_EXCEEDED:
		return "receive maximum exceeded";
	case MQTT_BAD_ALIAS:
		return "topic alias invalid";
	case MQTT_TOO_LARGE:
		return "oversize packet";
	case MQTT_QUOTA:
		return "quota exceeded";
	case MQTT_BAD_PAYLOAD_FORMAT:
		return "payload format invalid";
	case MQTT_NO_RETAIN:
		return "retain not supported";
	case MQTT_NO_QOS:
		return "QoS not supported";
	}
	return "other reason";
}

const char *
mqtt_type_name(unsigned type)
{
	static const char *const names[16] = {
		"reserved packet 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK",
		"PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
		"UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT",
		"AUTH",
	};

	return names[type & 15];
}
