/* Tests of mqtt: the wire format and the rules for names. */
#include "check.h"
#include "mqtt.h"

#include <sys/mman.h>

#define N(array) (sizeof(array) / sizeof *(array))
#define S(text) { (const uint8_t *)(text), sizeof(text) - 1 }
#define STR(text) ((struct mqtt_str)S(text))

static bool
is(struct mqtt_str s, struct mqtt_str want)
{
	return mqtt_str_eq(s, want);
}

/* A copy of s that ends at a page which cannot be read: a decoder that looks
 * behind its input dies here. It is overwritten by the next copy. */
static struct mqtt_in
fenced(struct mqtt_str s)
{
	enum { ROOM = 128 * 1024 };
	static uint8_t *fence;
	uint8_t *p;

	if (!fence) {
		p = mmap(NULL, 2 * ROOM, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(p != MAP_FAILED);
		CHECK(mprotect(p + ROOM, ROOM, PROT_NONE) == 0);
		fence = p + ROOM;
	}
	CHECK(s.len <= ROOM);
	if (s.len)
		memcpy(fence - s.len, s.p, s.len);
	return (struct mqtt_in){ .p = fence - s.len, .end = fence };
}

/* Decodes a whole body, for those who want to know only how that ends. */
static enum mqtt_reason
decode(enum mqtt_type t, uint8_t flags, enum mqtt_version v,
    struct mqtt_str body)
{
	struct mqtt_in in = fenced(body);
	struct mqtt_connect c;
	struct mqtt_publish p;
	struct mqtt_filter f;
	struct mqtt_props pr;
	struct mqtt_ack a;
	uint16_t id;
	uint8_t r;

	switch (t) {
	case MQTT_CONNECT:
		return mqtt_get_connect(&in, &c);
	case MQTT_PUBLISH:
		return mqtt_get_publish(&in, flags, v, &p);
	case MQTT_SUBSCRIBE:
	case MQTT_UNSUBSCRIBE:
		mqtt_get_subscribe(&in, t, v, &id, &pr);
		while (in.p < in.end)
			mqtt_get_filter(&in, t, v, &f);
		return in.err;
	case MQTT_DISCONNECT:
		return mqtt_get_disconnect(&in, v, &r, &pr);
	default:
		return mqtt_get_ack(&in, t, v, &a);
	}
}

/* ---- variable byte integers and the fixed header ---- */

static const struct {
	uint32_t value;
	struct mqtt_str bytes;
} varints[] = {
	{ 0, S("\x00") },
	{ 1, S("\x01") },
	{ 127, S("\x7f") },
	{ 128, S("\x80\x01") },
	{ 16383, S("\xff\x7f") },
	{ 16384, S("\x80\x80\x01") },
	{ 2097151, S("\xff\xff\x7f") },
	{ 2097152, S("\x80\x80\x80\x01") },
	{ 268435455, S("\xff\xff\xff\x7f") },
};

TEST(varint_is_encoded)
{
	uint8_t b[8];

	for (size_t i = 0; i < N(varints); i++) {
		uint8_t *end = mqtt_put_varint(b, varints[i].value);
		struct mqtt_str got = { b, (uint32_t)(end - b) };

		CHECK(is(got, varints[i].bytes));
		CHECK(mqtt_varint_size(varints[i].value) == got.len);
	}
}

TEST(header_is_read)
{
	struct mqtt_header h;
	uint8_t b[5] = { 0x3d };

	for (size_t i = 0; i < N(varints); i++) {
		struct mqtt_str s = varints[i].bytes;

		memcpy(b + 1, s.p, s.len);
		for (uint32_t n = 0; n <= s.len; n++) {
			struct mqtt_in in = fenced((struct mqtt_str){ b, n });

			CHECK(mqtt_get_header(in.p, n, true, &h) == 0);
			CHECK(mqtt_get_header(in.p, n, false, &h) == 0);
		}
		CHECK(mqtt_get_header(b, 1 + s.len, true, &h) == 1);
		CHECK(h.type == MQTT_PUBLISH && h.flags == 0x0d);
		CHECK(h.len == varints[i].value);
		CHECK(h.size == 1 + s.len + h.len);
	}
}

TEST(header_may_be_padded_before_5)
{
	static const struct mqtt_str padded[] = {
		S("\xc0\x80\x00"), S("\xc0\x80\x80\x00"),
		S("\xc0\x80\x80\x80\x00"), S("\xc0\x85\x00"),
		S("\xc0\x85\x80\x80\x00"),
	};
	struct mqtt_header h;

	for (size_t i = 0; i < N(padded); i++) {
		struct mqtt_str s = padded[i];

		CHECK(mqtt_get_header(s.p, s.len, false, &h) == 1);
		CHECK(h.len == (s.p[1] & 0x7fu));
		CHECK(h.size == s.len + h.len);
		CHECK(mqtt_get_header(s.p, s.len, true, &h) == -1);
	}
}

TEST(header_of_five_length_bytes)
{
	static const uint8_t b[] = { 0x30, 0xff, 0xff, 0xff, 0xff, 0x01 };
	struct mqtt_header h;

	for (size_t n = 0; n <= sizeof b; n++)
		CHECK(mqtt_get_header(b, n, false, &h) == (n < 5 ? 0 : -1));
}

/* Table 2-2 of both standards. */
TEST(header_flags)
{
	struct mqtt_header h = { 0 };

	for (unsigned i = 0; i < 256; i++) {
		bool two = i >> 4 == MQTT_PUBREL || i >> 4 == MQTT_SUBSCRIBE ||
		    i >> 4 == MQTT_UNSUBSCRIBE;
		bool right = i >> 4 == MQTT_PUBLISH || (i & 15) == (two ? 2 : 0);

		h.type = (uint8_t)(i >> 4);
		h.flags = i & 15;
		CHECK(mqtt_flags_valid(&h, MQTT_311) == right);
		CHECK(mqtt_flags_valid(&h, MQTT_5) == right);
		CHECK(mqtt_flags_valid(&h, MQTT_31));
	}
}

/* ---- UTF-8 ---- */

/* The grammar of RFC 3629, section 4, read literally; U+0000 is left out. */
static bool
utf8_by_rfc(const uint8_t *p, size_t n)
{
	while (n > 0) {
		unsigned lo = 0x80, hi = 0xbf;
		size_t len = *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : *p >= 0x80 ? 2 : 1;

		if (*p == 0 || (*p >= 0x80 && *p < 0xc2) || *p > 0xf4 ||
		    len > n)
			return false;
		lo = *p == 0xe0 ? 0xa0 : *p == 0xf0 ? 0x90 : lo;
		hi = *p == 0xed ? 0x9f : *p == 0xf4 ? 0x8f : hi;
		for (size_t i = 1; i < len; i++, lo = 0x80, hi = 0xbf)
			if (p[i] < lo || p[i] > hi)
				return false;
		p += len;
		n -= len;
	}
	return true;
}

TEST(utf8_all_beginnings)
{
	static const uint8_t ends[] = { 0, 'a', 0x7f, 0x80, 0xbf, 0xc0, 0xff };
	uint8_t b[4];

	for (unsigned i = 0; i < 65536 * N(ends) * N(ends); i++) {
		b[0] = (uint8_t)i;
		b[1] = (uint8_t)(i >> 8);
		b[2] = ends[(i >> 16) % N(ends)];
		b[3] = ends[(i >> 16) / N(ends)];
		CHECK(mqtt_utf8_valid(b, 4) == utf8_by_rfc(b, 4));
		if (i < 65536 * N(ends))
			CHECK(mqtt_utf8_valid(b, 3) == utf8_by_rfc(b, 3));
		if (i < 65536)
			CHECK(mqtt_utf8_valid(b, 2) == utf8_by_rfc(b, 2));
		if (i < 256)
			CHECK(mqtt_utf8_valid(b, 1) == utf8_by_rfc(b, 1));
	}
	CHECK(mqtt_utf8_valid(b, 0));
}

static const struct {
	bool good;
	struct mqtt_str s;
} utf8[] = {
	{ true, S("\x01") },
	{ true, S("\x7f") },
	{ true, S("\xc2\x80") },                /* U+0080 */
	{ true, S("\xdf\xbf") },                /* U+07FF */
	{ true, S("\xe0\xa0\x80") },            /* U+0800 */
	{ true, S("\xed\x9f\xbf") },            /* U+D7FF */
	{ true, S("\xee\x80\x80") },            /* U+E000 */
	{ true, S("\xef\xbb\xbf") },            /* U+FEFF, a BOM */
	{ true, S("\xef\xbf\xbf") },            /* U+FFFF */
	{ true, S("\xf0\x90\x80\x80") },        /* U+10000 */
	{ true, S("\xf4\x8f\xbf\xbf") },        /* U+10FFFF */
	{ false, S("\x00") },
	{ false, S("\x80") },                   /* continuation alone */
	{ false, S("\xbf") },
	{ false, S("\xc0\x80") },               /* U+0000, overlong */
	{ false, S("\xc1\xbf") },               /* U+007F, overlong */
	{ false, S("\xe0\x80\xaf") },           /* '/', overlong */
	{ false, S("\xe0\x9f\xbf") },           /* U+07FF, overlong */
	{ false, S("\xf0\x80\x80\xaf") },
	{ false, S("\xf0\x8f\xbf\xbf") },       /* U+FFFF, overlong */
	{ false, S("\xed\xa0\x80") },           /* U+D800, a surrogate */
	{ false, S("\xed\xbf\xbf") },           /* U+DFFF */
	{ false, S("\xed\xa0\x80\xed\xb0\x80") },       /* CESU-8 */
	{ false, S("\xf4\x90\x80\x80") },       /* U+110000 */
	{ false, S("\xf5\x80\x80\x80") },
	{ false, S("\xf8\x88\x80\x80\x80") },
	{ false, S("\xfe") },
	{ false, S("\xff") },
	{ false, S("\xc3(") },                  /* no continuation */
	{ false, S("\xe2\x82(") },
	{ false, S("\xf0\x9f\x98(") },
};

/* Eight plain bytes are passed at a time, so the place matters. */
TEST(utf8_at_every_place)
{
	uint8_t b[32];

	for (size_t i = 0; i < N(utf8); i++) {
		struct mqtt_str s = utf8[i].s;

		for (uint32_t at = 0; at + s.len <= sizeof b; at++) {
			memset(b, 'a', sizeof b);
			memcpy(b + at, s.p, s.len);
			CHECK(mqtt_utf8_valid(b, sizeof b) == utf8[i].good);
			CHECK(mqtt_utf8_valid(b, at + s.len) == utf8[i].good);
		}
	}
}

TEST(utf8_cut_short)
{
	for (size_t i = 0; i < N(utf8); i++) {
		struct mqtt_str s = utf8[i].s;

		for (uint32_t n = 1; utf8[i].good && n < s.len; n++) {
			struct mqtt_in in = fenced((struct mqtt_str){ s.p, n });

			CHECK(!mqtt_utf8_valid(in.p, n));
		}
	}
}

/* ---- names ---- */

TEST(topic_names)
{
	static const struct mqtt_str good[] = {
		S("a"), S("/"), S("//"), S("a/b"), S("/a/"), S(" "),
		S("$SYS/x"), S("a b"), S("$share/g/t"), S("\xc3\xa9"),
	};
	static const struct mqtt_str bad[] = {
		S(""), S("+"), S("#"), S("a/+"), S("a/#"), S("a+"), S("#a"),
		S("a/b+c/d"),
	};

	for (size_t i = 0; i < N(good); i++)
		CHECK(!mqtt_topic_fault(good[i]));
	for (size_t i = 0; i < N(bad); i++)
		CHECK(mqtt_topic_fault(bad[i]));
}

TEST(topic_filters)
{
	static const struct mqtt_str good[] = {
		S("#"), S("+"), S("/"), S("a"), S("a/#"), S("/#"), S("+/+"),
		S("+/#"), S("/+"), S("+/"), S("a/+/b/#"), S("sport/+/player1"),
		S("$SYS/#"), S("//"), S("+//#"),
	};
	static const struct mqtt_str bad[] = {
		S(""), S("a#"), S("#/"), S("#/a"), S("a/#/b"), S("a/b#"),
		S("##"), S("a+"), S("+a"), S("a/+b"), S("a/b+/c"), S("++"),
		S("+#"), S("#+"), S("sport+"), S("sport/tennis#"),
		S("sport/tennis/#/ranking"),
	};

	for (size_t i = 0; i < N(good); i++)
		CHECK(!mqtt_filter_fault(good[i]));
	for (size_t i = 0; i < N(bad); i++)
		CHECK(mqtt_filter_fault(bad[i]));
}

TEST(levels_have_a_limit)
{
	uint8_t b[MQTT_LEVELS_MAX + 8];
	struct mqtt_str s = { b, MQTT_LEVELS_MAX - 1 };

	memset(b, '/', sizeof b);
	CHECK(!mqtt_topic_fault(s));
	CHECK(!mqtt_filter_fault(s));
	s.len++;
	CHECK(mqtt_topic_fault(s));
	CHECK(mqtt_filter_fault(s));
}

TEST(shared_filters)
{
	static const struct {
		struct mqtt_str filter;
		bool shared;
		struct mqtt_str name, rest;     /* no name: it does not split */
	} table[] = {
		{ S("$share/g/t"), true, S("g"), S("t") },
		{ S("$share/g/a/b"), true, S("g"), S("a/b") },
		{ S("$share/g//"), true, S("g"), S("/") },
		{ S("$share/g/#"), true, S("g"), S("#") },
		{ S("$share/a b/+/c"), true, S("a b"), S("+/c") },
		{ S("$share/$share/$share"), true, S("$share"), S("$share") },
		{ S("$share"), true, S(""), S("") },
		{ S("$share/"), true, S(""), S("") },
		{ S("$share/g"), true, S(""), S("") },
		{ S("$share/g/"), true, S(""), S("") },
		{ S("$share//t"), true, S(""), S("") },
		{ S("$share/g+/t"), true, S(""), S("") },
		{ S("$share/#/t"), true, S(""), S("") },
		{ S("$share/+/t"), true, S(""), S("") },
		{ S("$shared/g/t"), false, S(""), S("") },
		{ S("$shar"), false, S(""), S("") },
		{ S("/$share/g/t"), false, S(""), S("") },
		{ S("share/g/t"), false, S(""), S("") },
		{ S("$SHARE/g/t"), false, S(""), S("") },
		{ S("a"), false, S(""), S("") },
	};

	for (size_t i = 0; i < N(table); i++) {
		struct mqtt_in in = fenced(table[i].filter);
		struct mqtt_str f = { in.p, table[i].filter.len }, name, rest;
		bool split = table[i].name.len > 0;

		CHECK(mqtt_is_shared(f) == table[i].shared);
		if (!table[i].shared)
			continue;
		CHECK(mqtt_split_shared(f, &name, &rest) == split);
		CHECK(!split || is(name, table[i].name));
		CHECK(!split || is(rest, table[i].rest));
	}
}

/* ---- encoding ---- */

TEST(numbers_and_strings_are_encoded)
{
	uint8_t b[16];

	CHECK(mqtt_put_u16(b, 0x1234) == b + 2);
	CHECK(memcmp(b, "\x12\x34", 2) == 0);
	CHECK(mqtt_put_u32(b, 0x12345678) == b + 4);
	CHECK(memcmp(b, "\x12\x34\x56\x78", 4) == 0);
	CHECK(mqtt_put_u32(b, UINT32_MAX) == b + 4);
	CHECK(memcmp(b, "\xff\xff\xff\xff", 4) == 0);
	CHECK(mqtt_put_str(b, STR("MQTT")) == b + 6);
	CHECK(memcmp(b, "\x00\x04MQTT", 6) == 0);
	CHECK(mqtt_put_str(b, (struct mqtt_str){ NULL, 0 }) == b + 2);
	CHECK(memcmp(b, "\x00\x00", 2) == 0);
}

TEST(acks_are_encoded)
{
	static const struct {
		enum mqtt_type t;
		enum mqtt_version v;
		enum mqtt_reason r;
		struct mqtt_str bytes;
	} table[] = {
		{ MQTT_PUBACK, MQTT_31, MQTT_OK, S("\x40\x02\x12\x34") },
		{ MQTT_PUBREC, MQTT_31, MQTT_OK, S("\x50\x02\x12\x34") },
		{ MQTT_PUBREL, MQTT_31, MQTT_OK, S("\x62\x02\x12\x34") },
		{ MQTT_PUBCOMP, MQTT_31, MQTT_OK, S("\x70\x02\x12\x34") },
		{ MQTT_PUBACK, MQTT_311, MQTT_OK, S("\x40\x02\x12\x34") },
		{ MQTT_PUBREL, MQTT_311, MQTT_OK, S("\x62\x02\x12\x34") },
		{ MQTT_PUBACK, MQTT_311, MQTT_NOT_AUTHORIZED,
		    S("\x40\x02\x12\x34") },
		{ MQTT_PUBACK, MQTT_5, MQTT_OK, S("\x40\x02\x12\x34") },
		{ MQTT_PUBREL, MQTT_5, MQTT_OK, S("\x62\x02\x12\x34") },
		{ MQTT_PUBACK, MQTT_5, MQTT_NO_MATCHING_SUBSCRIBERS,
		    S("\x40\x03\x12\x34\x10") },
		{ MQTT_PUBREC, MQTT_5, MQTT_NOT_AUTHORIZED,
		    S("\x50\x03\x12\x34\x87") },
		{ MQTT_PUBREL, MQTT_5, MQTT_ID_NOT_FOUND,
		    S("\x62\x03\x12\x34\x92") },
		{ MQTT_PUBCOMP, MQTT_5, MQTT_ID_NOT_FOUND,
		    S("\x70\x03\x12\x34\x92") },
	};
	uint8_t b[MQTT_ACK_MAX];

	for (size_t i = 0; i < N(table); i++) {
		uint8_t *end = mqtt_put_ack(b, table[i].t, table[i].v, 0x1234,
		    table[i].r);
		struct mqtt_str got = { b, (uint32_t)(end - b) };

		CHECK(is(got, table[i].bytes));
	}
}

/* The head as encoded; the size must be its length and the payload's. */
static struct mqtt_str
head(const struct mqtt_publish *p, enum mqtt_version v)
{
	static uint8_t b[4096];
	uint8_t *end = mqtt_put_publish_head(b, p, v);

	CHECK(mqtt_publish_size(p, v) == (uint32_t)(end - b) + p->payload.len);
	return (struct mqtt_str){ b, (uint32_t)(end - b) };
}

TEST(publish_is_encoded)
{
	static const uint32_t subids[] = { 1, 128, 268435455 };
	struct mqtt_publish p = { .topic = S("a/b"), .payload = S("hello") };

	CHECK(is(head(&p, MQTT_31), STR("\x30\x0a\x00\x03" "a/b")));
	CHECK(is(head(&p, MQTT_311), STR("\x30\x0a\x00\x03" "a/b")));
	CHECK(is(head(&p, MQTT_5), STR("\x30\x0b\x00\x03" "a/b\x00")));
	p.qos = 1;
	p.id = 0x1234;
	CHECK(is(head(&p, MQTT_311), STR("\x32\x0c\x00\x03" "a/b\x12\x34")));
	p.qos = 2;
	p.dup = p.retain = true;
	CHECK(is(head(&p, MQTT_311), STR("\x3d\x0c\x00\x03" "a/b\x12\x34")));
	CHECK(is(head(&p, MQTT_5), STR("\x3d\x0d\x00\x03" "a/b\x12\x34\x00")));
	p.has_expiry = true;
	p.expiry = 0x01020304;
	p.alias = 0x0506;
	p.subids = subids;
	p.n_subids = 3;
	p.props = STR("\x26\x00\x01" "k\x00\x01" "v");
	p.topic.len = 0;
	CHECK(is(head(&p, MQTT_5), STR("\x3d\x23\x00\x00\x12\x34\x19"
	    "\x02\x01\x02\x03\x04" "\x23\x05\x06" "\x0b\x01" "\x0b\x80\x01"
	    "\x0b\xff\xff\xff\x7f" "\x26\x00\x01" "k\x00\x01" "v")));
	/* Nothing of 5.0 shows before it. */
	CHECK(is(head(&p, MQTT_311), STR("\x3d\x09\x00\x00\x12\x34")));
}

TEST(publish_length_has_borders)
{
	/* The Remaining Length is 3 more than the payload here. */
	struct mqtt_publish p = { .topic = S("t") };
	struct mqtt_header h;
	struct mqtt_str s;

	for (size_t i = 2; i < N(varints); i++) {
		p.payload.len = varints[i].value - 3;
		s = head(&p, MQTT_311);
		CHECK(mqtt_get_header(s.p, s.len, true, &h) == 1);
		CHECK(h.len == varints[i].value);
		CHECK(s.len == 1 + varints[i].bytes.len + 3);
	}
}

TEST(publish_with_long_properties)
{
	uint32_t subids[64];
	struct mqtt_publish p = { .topic = S("t"), .subids = subids };

	for (unsigned i = 0; i < 64; i++)
		subids[i] = 268435455;
	for (p.n_subids = 1; p.n_subids <= 64; p.n_subids++) {
		struct mqtt_str s = head(&p, MQTT_5);
		uint32_t props = 5 * p.n_subids;
		uint32_t sizes = mqtt_varint_size(props) +
		    mqtt_varint_size(3 + mqtt_varint_size(props) + props);

		CHECK(s.len == 1 + 3 + props + sizes);
	}
}

/* ---- CONNECT ---- */

static enum mqtt_reason
get_connect(struct mqtt_str body, struct mqtt_connect *c)
{
	struct mqtt_in in = fenced(body);
	enum mqtt_reason r = mqtt_get_connect(&in, c);

	CHECK(r == in.err);
	CHECK(!r == !in.why);
	return r;
}

TEST(connect_of_31)
{
	struct mqtt_connect c;

	CHECK(!get_connect(STR("\x00\x06MQIsdp\x03\xee\x01\x02\x00\x02id"
	    "\x00\x01t\x00\x03" "a\x00" "b\x00\x04user\x00\x02pw"), &c));
	CHECK(c.version == MQTT_31 && !c.bridge && c.clean);
	CHECK(c.will && c.will_retain && c.will_qos == 1);
	CHECK(c.has_user && c.has_password && c.keepalive == 0x0102);
	CHECK(is(c.id, STR("id")) && is(c.user, STR("user")));
	CHECK(is(c.password, STR("pw")) && is(c.will_topic, STR("t")));
	CHECK(is(c.will_payload, STR("a\0b")));
	/* Flags may promise more than there is. */
	CHECK(!get_connect(STR("\x00\x06MQIsdp\x03\xc2\x00\x00\x00\x01i"), &c));
	CHECK(!c.has_user && !c.has_password);
	CHECK(!get_connect(STR("\x00\x06MQIsdp\x03\xc2\x00\x00\x00\x01i"
	    "\x00\x01u"), &c));
	CHECK(c.has_user && !c.has_password);
}

TEST(connect_of_311)
{
	struct mqtt_connect c;

	CHECK(!get_connect(STR("\x00\x04MQTT\x04\xf4\x00\x3c\x00\x00"
	    "\x00\x01t\x00\x00\x00\x00\x00\x00"), &c));
	CHECK(c.version == MQTT_311 && !c.clean && c.keepalive == 60);
	CHECK(c.will && c.will_retain && c.will_qos == 2);
	CHECK(c.has_user && c.has_password);
	CHECK(c.id.len == 0 && c.user.len == 0 && c.password.len == 0);
	CHECK(is(c.will_topic, STR("t")) && c.will_payload.len == 0);
	CHECK(!get_connect(STR("\x00\x04MQTT\x04\x02\x00\x00\x00\x00"), &c));
	CHECK(c.clean && !c.will && !c.has_user && !c.has_password);
}

TEST(connect_of_5)
{
	struct mqtt_connect c;

	CHECK(!get_connect(STR("\x00\x04MQTT\x05\xc6\x00\x0a"
	    "\x1b\x11\x00\x00\x00\x05\x21\x00\x06\x27\x00\x00\x07\x00"
	    "\x22\x00\x08\x19\x01\x17\x00\x15\x00\x01m\x16\x00\x00"
	    "\x00\x01i" "\x0c\x18\x00\x00\x00\x09\x01\x01\x02\x00\x00\x00\x0a"
	    "\x00\x01t\x00\x01p\x00\x01u\x00\x01w"), &c));
	CHECK(c.version == MQTT_5 && c.clean && c.will && c.will_qos == 0);
	CHECK(c.props.session_expiry == 5 && c.props.receive_max == 6);
	CHECK(c.props.packet_max == 0x700 && c.props.alias_max == 8);
	CHECK(mqtt_has(&c.props, MQTT_P_AUTH_DATA));
	CHECK(mqtt_has(&c.props, MQTT_P_REQUEST_RESPONSE));
	CHECK(!mqtt_has(&c.props, MQTT_P_WILL_DELAY));
	CHECK(c.will_props.will_delay == 9);
	CHECK(mqtt_has(&c.will_props, MQTT_P_MESSAGE_EXPIRY));
	CHECK(c.will_props.message_expiry == 10);
	CHECK(is(c.will_props.forward, STR("\x01\x01")));
	CHECK(is(c.id, STR("i")) && is(c.will_topic, STR("t")));
	CHECK(is(c.will_payload, STR("p")));
	CHECK(is(c.user, STR("u")) && is(c.password, STR("w")));
}

TEST(connect_has_defaults)
{
	struct mqtt_connect c;

	CHECK(!get_connect(STR("\x00\x04MQTT\x05\x40\x00\x00\x00\x00\x00"
	    "\x00\x01w"), &c));
	CHECK(c.has_password && !c.has_user && is(c.password, STR("w")));
	CHECK(c.props.have == 0 && c.props.session_expiry == 0);
	CHECK(c.props.receive_max == 65535 && c.props.alias_max == 0);
	CHECK(c.props.packet_max == UINT32_MAX);
	CHECK(!get_connect(STR("\x00\x04MQTT\x04\x02\x00\x00\x00\x00"), &c));
	CHECK(c.props.receive_max == 65535);
	CHECK(c.props.packet_max == UINT32_MAX && c.props.alias_max == 0);
}

TEST(connect_versions)
{
	static const struct {
		struct mqtt_str name;
		uint8_t level;
		enum mqtt_reason r;
		uint8_t version;
		bool bridge;
	} table[] = {
		{ S("\x00\x04MQTT"), 4, MQTT_OK, 4, false },
		{ S("\x00\x04MQTT"), 5, MQTT_OK, 5, false },
		{ S("\x00\x04MQTT"), 0x84, MQTT_OK, 4, true },
		{ S("\x00\x06MQIsdp"), 3, MQTT_OK, 3, false },
		{ S("\x00\x06MQIsdp"), 0x83, MQTT_OK, 3, true },
		{ S("\x00\x04MQTT"), 3, MQTT_BAD_VERSION, 3, false },
		{ S("\x00\x04MQTT"), 6, MQTT_BAD_VERSION, 6, false },
		{ S("\x00\x04MQTT"), 0, MQTT_BAD_VERSION, 0, false },
		{ S("\x00\x04MQTT"), 0x85, MQTT_BAD_VERSION, 0x85, true },
		{ S("\x00\x06MQIsdp"), 4, MQTT_BAD_VERSION, 3, false },
		{ S("\x00\x04mqtt"), 4, MQTT_MALFORMED, 0, false },
		{ S("\x00\x04MQTt"), 4, MQTT_MALFORMED, 0, false },
		{ S("\x00\x05MQTT "), 4, MQTT_MALFORMED, 0, false },
		{ S("\x00\x03MQT"), 4, MQTT_MALFORMED, 0, false },
		{ S("\x00\x00"), 4, MQTT_MALFORMED, 0, false },
	};
	struct mqtt_connect c;
	uint8_t b[32];

	for (size_t i = 0; i < N(table); i++) {
		uint32_t n = table[i].name.len;

		memcpy(b, table[i].name.p, n);
		b[n++] = table[i].level;
		memcpy(b + n, "\x02\x00\x00\x00\x00\x00", 6);
		n += table[i].version == 5 ? 6 : 5;
		CHECK(get_connect((struct mqtt_str){ b, n }, &c) == table[i].r);
		CHECK(c.version == table[i].version);
		CHECK(table[i].r || c.bridge == table[i].bridge);
	}
}

/* All 256 connect flags: [MQTT-3.1.2-3], [MQTT-3.1.2-13], [MQTT-3.1.2-14],
 * [MQTT-3.1.2-15], [MQTT-3.1.2-22]. Strings are empty. */
TEST(connect_flags)
{
	for (unsigned f = 0; f < 256; f++) {
		bool will = f & 4, user = f & 0x80, password = f & 0x40;
		unsigned qos = f >> 3 & 3;
		bool good = !(f & 1) && (will || (qos == 0 && !(f & 0x20))) &&
		    qos < 3;
		uint8_t b[32] = "\x00\x04MQTT\x04";
		uint32_t n = 10 + 2;

		b[7] = (uint8_t)f;
		n += (will ? 4u : 0) + (user ? 2u : 0) + (password ? 2u : 0);
		CHECK(decode(MQTT_CONNECT, 0, MQTT_311,
		    (struct mqtt_str){ b, n }) ==
		    (good && (user || !password) ? MQTT_OK : MQTT_MALFORMED));
		b[6] = 5;
		n += will ? 2 : 1;      /* empty properties */
		CHECK(decode(MQTT_CONNECT, 0, MQTT_5,
		    (struct mqtt_str){ b, n }) ==
		    (good ? MQTT_OK : MQTT_MALFORMED));
	}
}

TEST(connect_strings_are_utf8)
{
	CHECK(decode(MQTT_CONNECT, 0, MQTT_311,
	    STR("\x00\x04MQTT\x04\x02\x00\x00\x00\x01\xff")) == MQTT_MALFORMED);
	CHECK(decode(MQTT_CONNECT, 0, MQTT_311,
	    STR("\x00\x04MQTT\x04\x06\x00\x00\x00\x00\x00\x01\xff\x00\x00")) ==
	    MQTT_MALFORMED);
	CHECK(decode(MQTT_CONNECT, 0, MQTT_311,
	    STR("\x00\x04MQTT\x04\x82\x00\x00\x00\x00\x00\x01\x00")) ==
	    MQTT_MALFORMED);
	/* A will's payload and a password are bytes. */
	CHECK(decode(MQTT_CONNECT, 0, MQTT_311,
	    STR("\x00\x04MQTT\x04\xc6\x00\x00\x00\x00\x00\x01t\x00\x01\xff"
	    "\x00\x01u\x00\x01\xff")) == MQTT_OK);
}

/* User properties are read past, other properties stay what they were. */
TEST(connect_properties_before_user_properties)
{
	struct mqtt_connect c;

	CHECK(!get_connect(STR("\x00\x04MQTT\x05\x02\x00\x00"
	    "\x0e\x15\x00\x04" "DIGE" "\x26\x00\x01k\x00\x01v" "\x00\x01i"),
	    &c));
	CHECK(mqtt_has(&c.props, MQTT_P_AUTH_METHOD));
	CHECK(is(c.id, STR("i")));
}

/* ---- PUBLISH ---- */

static enum mqtt_reason
get_publish(struct mqtt_str body, uint8_t flags, enum mqtt_version v,
    struct mqtt_publish *p)
{
	struct mqtt_in in = fenced(body);

	return mqtt_get_publish(&in, flags, v, p);
}

TEST(publish_is_decoded)
{
	struct mqtt_publish p;

	CHECK(!get_publish(STR("\x00\x01thello"), 0, MQTT_311, &p));
	CHECK(is(p.topic, STR("t")) && is(p.payload, STR("hello")));
	CHECK(p.qos == 0 && p.id == 0 && !p.dup && !p.retain);
	CHECK(p.props.len == 0 && p.alias == 0 && !p.has_expiry);
	CHECK(!get_publish(STR("\x00\x01t\x12\x34"), 0x0d, MQTT_31, &p));
	CHECK(p.qos == 2 && p.id == 0x1234 && p.dup && p.retain);
	CHECK(p.payload.len == 0);
	CHECK(!get_publish(STR("\x00\x00\x00\x01\x08\x23\x00\x07"
	    "\x02\x00\x00\x00\x3c\x00"), 0x02, MQTT_5, &p));
	CHECK(p.topic.len == 0 && p.qos == 1 && p.id == 1 && p.alias == 7);
	CHECK(p.has_expiry && p.expiry == 60 && p.props.len == 0);
	CHECK(is(p.payload, STR("\x00")));
}

TEST(publish_faults)
{
	static const struct {
		uint8_t flags;
		enum mqtt_reason r31, r311, r5;
		struct mqtt_str body;
	} table[] = {
		/* [MQTT-3.3.1-4] */
		{ 0x06, MQTT_MALFORMED, MQTT_MALFORMED, MQTT_MALFORMED,
		    S("\x00\x01t\x00\x01\x00") },
		/* [MQTT-3.3.1-2] */
		{ 0x08, MQTT_OK, MQTT_MALFORMED, MQTT_MALFORMED,
		    S("\x00\x01t\x00") },
		/* [MQTT-2.3.1-1] */
		{ 0x02, MQTT_PROTOCOL_ERROR, MQTT_PROTOCOL_ERROR,
		    MQTT_PROTOCOL_ERROR, S("\x00\x01t\x00\x00\x00") },
		{ 0x00, MQTT_MALFORMED, MQTT_MALFORMED, MQTT_MALFORMED,
		    S("\x00\x01\xff\x00") },
		{ 0x00, MQTT_MALFORMED, MQTT_MALFORMED, MQTT_MALFORMED,
		    S("\x00\x01\x00\x00") },
	};

	for (size_t i = 0; i < N(table); i++) {
		uint8_t f = table[i].flags;
		struct mqtt_str body = table[i].body;

		CHECK(decode(MQTT_PUBLISH, f, MQTT_31, body) == table[i].r31);
		CHECK(decode(MQTT_PUBLISH, f, MQTT_311, body) == table[i].r311);
		CHECK(decode(MQTT_PUBLISH, f, MQTT_5, body) == table[i].r5);
	}
}

TEST(publish_survives_a_round_trip)
{
	static uint8_t b[512];
	struct mqtt_publish p = { .topic = S("a/b"), .payload = S("pay"),
	    .props = S("\x01\x01\x26\x00\x01k\x00\x01v"), .retain = true,
	    .dup = true, .qos = 2, .id = 65535, .alias = 9, .expiry = 0,
	    .has_expiry = true }, q;
	struct mqtt_header h;
	uint8_t *end = mqtt_put_publish_head(b, &p, MQTT_5);

	memcpy(end, p.payload.p, p.payload.len);
	end += p.payload.len;
	CHECK(mqtt_get_header(b, sizeof b, true, &h) == 1);
	CHECK(h.size == (uint32_t)(end - b));
	CHECK(!get_publish((struct mqtt_str){ end - h.len, h.len }, h.flags,
	    MQTT_5, &q));
	CHECK(is(q.topic, p.topic) && is(q.payload, p.payload));
	CHECK(is(q.props, p.props) && q.id == p.id && q.alias == p.alias);
	CHECK(q.qos == 2 && q.dup && q.retain && q.has_expiry && !q.expiry);
}

/* ---- acks, DISCONNECT, SUBSCRIBE ---- */

TEST(acks_are_decoded)
{
	struct mqtt_in in;
	struct mqtt_ack a;

	for (enum mqtt_type t = MQTT_PUBACK; t <= MQTT_PUBCOMP; t++) {
		bool late = t == MQTT_PUBREL || t == MQTT_PUBCOMP;

		for (enum mqtt_version v = MQTT_31; v <= MQTT_5; v++) {
			in = fenced(STR("\x12\x34"));
			CHECK(!mqtt_get_ack(&in, t, v, &a));
			CHECK(a.id == 0x1234 && a.reason == MQTT_OK);
			CHECK(decode(t, 0, v, STR("\x00\x00")) ==
			    MQTT_PROTOCOL_ERROR);
		}
		CHECK(decode(t, 0, MQTT_311, STR("\x00\x01\x00")) ==
		    MQTT_MALFORMED);
		in = fenced(late ? STR("\x00\x01\x92") : STR("\x00\x01\x87"));
		CHECK(!mqtt_get_ack(&in, t, MQTT_5, &a));
		CHECK(a.id == 1 && a.reason == (late ? 0x92 : 0x87));
		in = fenced(STR("\x00\x01\x00\x0b\x1f\x00\x01r"
		    "\x26\x00\x01k\x00\x01v"));
		CHECK(!mqtt_get_ack(&in, t, MQTT_5, &a));
		CHECK(a.reason == MQTT_OK);
	}
}

/* Which of the 256 codes are in the tables 3-4 to 3-7 and 3-10. */
TEST(reason_codes)
{
	static const uint8_t pub[] = "\x10\x80\x83\x87\x90\x91\x97\x99";
	static const uint8_t bye[] = "\x04\x80\x81\x82\x83\x90\x93\x94\x95\x96"
	    "\x97\x98\x99\x9b";

	for (unsigned r = 0; r < 256; r++) {
		uint8_t b[3] = { 0, 1, (uint8_t)r };
		struct mqtt_str ack = { b, 3 }, last = { b + 2, 1 };
		bool in_pub = r == 0 || strchr((const char *)pub, (int)r);
		bool in_bye = r == 0 || strchr((const char *)bye, (int)r);

		for (enum mqtt_type t = MQTT_PUBACK; t <= MQTT_PUBCOMP; t++) {
			bool good = t == MQTT_PUBACK || t == MQTT_PUBREC ?
			    in_pub : r == 0 || r == 0x92;

			CHECK(decode(t, 0, MQTT_5, ack) ==
			    (good ? MQTT_OK : MQTT_PROTOCOL_ERROR));
		}
		CHECK(decode(MQTT_DISCONNECT, 0, MQTT_5, last) ==
		    (in_bye ? MQTT_OK : MQTT_PROTOCOL_ERROR));
	}
}

TEST(disconnect_is_decoded)
{
	struct mqtt_in in = fenced(STR("\x04\x05\x11\x00\x00\x00\x3c"));
	struct mqtt_props pr;
	uint8_t r;

	CHECK(!mqtt_get_disconnect(&in, MQTT_5, &r, &pr));
	CHECK(r == MQTT_DISCONNECT_WITH_WILL && pr.session_expiry == 60);
	CHECK(mqtt_has(&pr, MQTT_P_SESSION_EXPIRY));
	for (enum mqtt_version v = MQTT_31; v <= MQTT_5; v++) {
		in = fenced(STR(""));
		CHECK(!mqtt_get_disconnect(&in, v, &r, &pr));
		CHECK(r == MQTT_OK && pr.have == 0);
	}
	CHECK(decode(MQTT_DISCONNECT, 0, MQTT_311, STR("\x00")) ==
	    MQTT_MALFORMED);
}

TEST(subscribe_is_decoded)
{
	struct mqtt_in in = fenced(STR("\x00\x07\x03\x0b\x80\x01"
	    "\x00\x01" "a\x2e" "\x00\x03" "b/#\x11"));
	struct mqtt_props pr;
	struct mqtt_filter f;
	uint16_t id;

	CHECK(!mqtt_get_subscribe(&in, MQTT_SUBSCRIBE, MQTT_5, &id, &pr));
	CHECK(id == 7 && pr.subscription_id == 128);
	CHECK(!mqtt_get_filter(&in, MQTT_SUBSCRIBE, MQTT_5, &f));
	CHECK(is(f.filter, STR("a")) && f.qos == 2 && f.no_local);
	CHECK(f.retain_as_published && f.retain_handling == 2);
	CHECK(!mqtt_get_filter(&in, MQTT_SUBSCRIBE, MQTT_5, &f));
	CHECK(is(f.filter, STR("b/#")) && f.qos == 1 && !f.no_local);
	CHECK(!f.retain_as_published && f.retain_handling == 1);
	CHECK(in.p == in.end);
}

TEST(unsubscribe_is_decoded)
{
	struct mqtt_in in = fenced(STR("\x00\x07\x00\x01" "a\x00\x00"));
	struct mqtt_props pr;
	struct mqtt_filter f;
	uint16_t id;

	CHECK(!mqtt_get_subscribe(&in, MQTT_UNSUBSCRIBE, MQTT_31, &id, &pr));
	CHECK(id == 7 && pr.have == 0);
	CHECK(!mqtt_get_filter(&in, MQTT_UNSUBSCRIBE, MQTT_31, &f));
	CHECK(is(f.filter, STR("a")));
	CHECK(!mqtt_get_filter(&in, MQTT_UNSUBSCRIBE, MQTT_31, &f));
	CHECK(f.filter.len == 0 && in.p == in.end);
}

/* Nothing to subscribe to, [MQTT-3.8.3-3] and [MQTT-3.10.3-2]; id 0. */
TEST(subscribe_faults)
{
	for (enum mqtt_version v = MQTT_31; v <= MQTT_5; v++) {
		uint32_t n = v == MQTT_5 ? 3 : 2;
		struct mqtt_str none = { (const uint8_t *)"\x00\x01", n };
		struct mqtt_str zero = { (const uint8_t *)
		    "\x00\x00\x00\x00\x01" "a", 7 };

		CHECK(decode(MQTT_SUBSCRIBE, 2, v, none) ==
		    MQTT_PROTOCOL_ERROR);
		CHECK(decode(MQTT_UNSUBSCRIBE, 2, v, none) ==
		    MQTT_PROTOCOL_ERROR);
		CHECK(decode(MQTT_SUBSCRIBE, 2, v, zero) ==
		    MQTT_PROTOCOL_ERROR);
	}
	CHECK(decode(MQTT_UNSUBSCRIBE, 2, MQTT_311,
	    STR("\x00\x01\x00\x01\xff")) == MQTT_MALFORMED);
}

/* All 256 options bytes, section 3.8.3.1 of both standards. */
TEST(subscribe_options)
{
	for (unsigned o = 0; o < 256; o++) {
		uint8_t b5[] = { 0, 1, 0, 0, 1, 'a', (uint8_t)o };
		uint8_t b3[] = { 0, 1, 0, 1, 'a', (uint8_t)o };
		struct mqtt_str s5 = { b5, sizeof b5 }, s3 = { b3, sizeof b3 };
		bool wrong = (o & 3) == 3 || (o & 0x30) == 0x30;

		CHECK(decode(MQTT_SUBSCRIBE, 2, MQTT_5, s5) ==
		    (o & 0xc0 ? MQTT_MALFORMED :
		    wrong ? MQTT_PROTOCOL_ERROR : MQTT_OK));
		CHECK(decode(MQTT_SUBSCRIBE, 2, MQTT_311, s3) ==
		    (o > 2 ? MQTT_MALFORMED : MQTT_OK));
		CHECK(decode(MQTT_SUBSCRIBE, 2, MQTT_31, s3) ==
		    ((o & 3) == 3 ? MQTT_MALFORMED : MQTT_OK));
	}
}

/* ---- properties ---- */

struct buf {
	uint8_t b[1024];
	uint32_t n;
};

static void
add(struct buf *b, struct mqtt_str s)
{
	CHECK(s.len <= sizeof b->b - b->n);
	memcpy(b->b + b->n, s.p, s.len);
	b->n += s.len;
}

static void
add_props(struct buf *b, struct mqtt_str props)
{
	b->n = (uint32_t)(mqtt_put_varint(b->b + b->n, props.len) - b->b);
	add(b, props);
}

#define WILL 0

/* A packet of type t (or the Will of a CONNECT) of 5.0 with these properties.
 * Returns what decoding it says. */
static enum mqtt_reason
with_props(enum mqtt_type t, struct mqtt_str props)
{
	struct buf b = { .n = 0 };

	switch ((int)t) {
	case MQTT_CONNECT:
		add(&b, STR("\x00\x04MQTT\x05\x02\x00\x00"));
		add_props(&b, props);
		add(&b, STR("\x00\x01i"));
		break;
	case WILL:
		add(&b, STR("\x00\x04MQTT\x05\x06\x00\x00\x00\x00\x01i"));
		add_props(&b, props);
		add(&b, STR("\x00\x01t\x00\x01p"));
		t = MQTT_CONNECT;
		break;
	case MQTT_PUBLISH:
		add(&b, STR("\x00\x01t"));
		add_props(&b, props);
		break;
	case MQTT_SUBSCRIBE:
		add(&b, STR("\x00\x01"));
		add_props(&b, props);
		add(&b, STR("\x00\x01t\x00"));
		break;
	case MQTT_UNSUBSCRIBE:
		add(&b, STR("\x00\x01"));
		add_props(&b, props);
		add(&b, STR("\x00\x01t"));
		break;
	case MQTT_DISCONNECT:
		add(&b, STR("\x00"));
		add_props(&b, props);
		break;
	default:
		add(&b, STR("\x00\x01\x00"));
		add_props(&b, props);
		break;
	}
	return decode(t, 0, MQTT_5, (struct mqtt_str){ b.b, b.n });
}

/* Table 2-4: what a client may send, and in which packet. */
#define IN(t) (1u << (t))
#define ACKS (IN(MQTT_PUBACK) | IN(MQTT_PUBREC) | IN(MQTT_PUBREL) | \
	IN(MQTT_PUBCOMP))
#define MSG (IN(MQTT_PUBLISH) | IN(WILL))

static const struct {
	struct mqtt_str bytes;
	unsigned where;
} props[] = {
	{ S("\x01\x01"), MSG },
	{ S("\x02\x00\x00\x00\x00"), MSG },
	{ S("\x03\x00\x02" "ct"), MSG },
	{ S("\x08\x00\x03r/t"), MSG },
	{ S("\x09\x00\x02\xff\x00"), MSG },
	{ S("\x0b\x01"), IN(MQTT_SUBSCRIBE) },
	{ S("\x11\x00\x00\x00\x00"), IN(MQTT_CONNECT) | IN(MQTT_DISCONNECT) },
	{ S("\x12\x00\x01i"), 0 },
	{ S("\x13\x00\x01"), 0 },
	{ S("\x15\x00\x01m"), IN(MQTT_CONNECT) },
	{ S("\x17\x00"), IN(MQTT_CONNECT) },
	{ S("\x18\x00\x00\x00\x00"), IN(WILL) },
	{ S("\x19\x01"), IN(MQTT_CONNECT) },
	{ S("\x1a\x00\x01r"), 0 },
	{ S("\x1c\x00\x01r"), 0 },
	{ S("\x1f\x00\x01r"), ACKS | IN(MQTT_DISCONNECT) },
	{ S("\x21\x00\x01"), IN(MQTT_CONNECT) },
	{ S("\x22\x00\x00"), IN(MQTT_CONNECT) },
	{ S("\x23\x00\x01"), IN(MQTT_PUBLISH) },
	{ S("\x24\x00"), 0 },
	{ S("\x25\x00"), 0 },
	{ S("\x26\x00\x01k\x00\x01v"), ACKS | MSG | IN(MQTT_CONNECT) |
	    IN(MQTT_SUBSCRIBE) | IN(MQTT_UNSUBSCRIBE) | IN(MQTT_DISCONNECT) },
	{ S("\x27\x00\x00\x00\x01"), IN(MQTT_CONNECT) },
	{ S("\x28\x00"), 0 },
	{ S("\x29\x00"), 0 },
	{ S("\x2a\x00"), 0 },
};

static const enum mqtt_type carriers[] = { (enum mqtt_type)WILL, MQTT_CONNECT,
    MQTT_PUBLISH, MQTT_PUBACK, MQTT_PUBREC, MQTT_PUBREL, MQTT_PUBCOMP,
    MQTT_SUBSCRIBE, MQTT_UNSUBSCRIBE, MQTT_DISCONNECT };

TEST(property_belongs_into_packet)
{
	for (size_t i = 0; i < N(props); i++) {
		for (size_t k = 0; k < N(carriers); k++) {
			enum mqtt_type t = carriers[k];
			enum mqtt_reason want = props[i].where & IN(t) ?
			    MQTT_OK : MQTT_MALFORMED;

			/* [MQTT5-3.3.4-6] */
			if (t == MQTT_PUBLISH && props[i].bytes.p[0] == 0x0b)
				want = MQTT_PROTOCOL_ERROR;
			CHECK(with_props(t, props[i].bytes) == want);
		}
	}
}

TEST(property_twice)
{
	for (size_t i = 0; i < N(props); i++) {
		for (size_t k = 0; k < N(carriers); k++) {
			enum mqtt_type t = carriers[k];
			struct buf b = { .n = 0 };

			if (!(props[i].where & IN(t)))
				continue;
			add(&b, props[i].bytes);
			add(&b, props[i].bytes);
			CHECK(with_props(t, (struct mqtt_str){ b.b, b.n }) ==
			    (b.b[0] == MQTT_P_USER ? MQTT_OK :
			    MQTT_PROTOCOL_ERROR));
		}
	}
}

/* The property's field ends with the properties, not with the packet. */
TEST(property_cut_short)
{
	for (size_t i = 0; i < N(props); i++) {
		for (size_t k = 0; k < N(carriers); k++) {
			struct mqtt_str s = props[i].bytes;

			if (!(props[i].where & IN(carriers[k])))
				continue;
			for (s.len--; s.len > 0; s.len--)
				CHECK(with_props(carriers[k], s) ==
				    MQTT_MALFORMED);
		}
	}
}

TEST(property_unknown)
{
	uint8_t b[8] = { 0 };

	for (uint32_t id = 0; id < 300; id++) {
		bool known = false;
		struct mqtt_str s = { b, 0 };

		for (size_t i = 0; i < N(props); i++)
			known = known || props[i].bytes.p[0] == id;
		if (known || id == MQTT_P_AUTH_DATA)
			continue;
		s.len = (uint32_t)(mqtt_put_varint(b, id) - b);
		for (size_t k = 0; k < N(carriers); k++)
			CHECK(with_props(carriers[k], s) == MQTT_MALFORMED);
	}
	/* A padded identifier, and one that does not end. */
	CHECK(with_props(MQTT_PUBLISH, STR("\x81\x00\x01")) == MQTT_MALFORMED);
	CHECK(with_props(MQTT_PUBLISH, STR("\xff\xff\xff\xff\x7f")) ==
	    MQTT_MALFORMED);
}

TEST(property_values)
{
	static const struct {
		enum mqtt_type t;
		enum mqtt_reason r;
		struct mqtt_str props;
	} table[] = {
		{ MQTT_PUBLISH, MQTT_OK, S("\x01\x00") },
		{ MQTT_PUBLISH, MQTT_PROTOCOL_ERROR, S("\x01\x02") },
		{ MQTT_CONNECT, MQTT_PROTOCOL_ERROR, S("\x17\x02") },
		{ MQTT_CONNECT, MQTT_PROTOCOL_ERROR, S("\x19\xff") },
		{ MQTT_CONNECT, MQTT_PROTOCOL_ERROR, S("\x21\x00\x00") },
		{ MQTT_CONNECT, MQTT_OK, S("\x21\xff\xff") },
		{ MQTT_CONNECT, MQTT_PROTOCOL_ERROR, S("\x27\x00\x00\x00\x00") },
		{ MQTT_CONNECT, MQTT_OK, S("\x11\xff\xff\xff\xff") },
		{ MQTT_SUBSCRIBE, MQTT_PROTOCOL_ERROR, S("\x0b\x00") },
		{ MQTT_SUBSCRIBE, MQTT_OK, S("\x0b\xff\xff\xff\x7f") },
		{ MQTT_SUBSCRIBE, MQTT_MALFORMED, S("\x0b\xff\xff\xff\xff\x7f") },
		{ MQTT_SUBSCRIBE, MQTT_MALFORMED, S("\x0b\x81\x00") },
		{ MQTT_PUBLISH, MQTT_BAD_ALIAS, S("\x23\x00\x00") },
		/* [MQTT5-3.3.2-14] */
		{ MQTT_PUBLISH, MQTT_PROTOCOL_ERROR, S("\x08\x00\x01+") },
		{ MQTT_PUBLISH, MQTT_PROTOCOL_ERROR, S("\x08\x00\x03" "a/#") },
		{ MQTT_PUBLISH, MQTT_MALFORMED, S("\x08\x00\x01\xff") },
		{ MQTT_PUBLISH, MQTT_MALFORMED, S("\x03\x00\x01\xff") },
		{ MQTT_PUBLISH, MQTT_MALFORMED, S("\x03\x00\x01\x00") },
		{ MQTT_PUBLISH, MQTT_OK, S("\x03\x00\x00") },
		{ MQTT_PUBLISH, MQTT_OK, S("\x09\x00\x00") },
		{ MQTT_PUBLISH, MQTT_OK, S("\x26\x00\x00\x00\x00") },
		{ MQTT_PUBLISH, MQTT_MALFORMED, S("\x26\x00\x01\xff\x00\x00") },
		{ MQTT_PUBLISH, MQTT_MALFORMED, S("\x26\x00\x00\x00\x01\xff") },
		{ MQTT_PUBACK, MQTT_MALFORMED, S("\x1f\x00\x01\xff") },
		/* Authentication data needs a method, before or behind. */
		{ MQTT_CONNECT, MQTT_PROTOCOL_ERROR, S("\x16\x00\x01" "d") },
		{ MQTT_CONNECT, MQTT_OK, S("\x16\x00\x00\x15\x00\x01m") },
		{ MQTT_CONNECT, MQTT_OK, S("\x15\x00\x00\x16\x00\x01" "d") },
	};

	for (size_t i = 0; i < N(table); i++)
		CHECK(with_props(table[i].t, table[i].props) == table[i].r);
}

TEST(property_length)
{
	/* Longer than the packet, five bytes, padded, missing. */
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t\x01")) ==
	    MQTT_MALFORMED);
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t\xff\xff\xff\x7f"
	    "\x01")) == MQTT_MALFORMED);
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t\xff\xff\xff\xff"
	    "\x01")) == MQTT_MALFORMED);
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t\x80\x00")) ==
	    MQTT_MALFORMED);
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t")) ==
	    MQTT_MALFORMED);
	CHECK(decode(MQTT_PUBLISH, 0, MQTT_5, STR("\x00\x01t\x00")) == MQTT_OK);
}

/* In any order: what is handed on stays in its order, the rest is gone, and
 * the payload behind is untouched. [MQTT5-3.3.2-17] [MQTT5-3.3.2-18] */
TEST(properties_are_handed_on)
{
	static const struct {
		bool forward;
		struct mqtt_str bytes;
	} parts[] = {
		{ true, S("\x26\x00\x01" "a\x00\x01" "1") },
		{ true, S("\x26\x00\x01" "a\x00\x01" "2") },
		{ true, S("\x26\x00\x00\x00\x00") },
		{ true, S("\x01\x01") }, { true, S("\x03\x00\x04text") },
		{ true, S("\x08\x00\x03r/t") },
		{ true, S("\x09\x00\x03\x00\xff\x00") },
		{ false, S("\x02\x01\x02\x03\x04") }, { false, S("\x23\x00\x09") },
	};
	size_t order[N(parts)];

	srand(1);
	for (int round = 0; round < 5000; round++) {
		struct buf all = { .n = 0 }, want = { .n = 0 }, b = { .n = 0 };
		struct mqtt_publish p;

		for (size_t i = 0; i < N(parts); i++) {
			size_t at = (size_t)rand() % (i + 1);

			order[i] = order[at];
			order[at] = i;
		}
		for (size_t i = 0; i < N(parts); i++) {
			add(&all, parts[order[i]].bytes);
			if (parts[order[i]].forward)
				add(&want, parts[order[i]].bytes);
		}
		add(&b, STR("\x00\x01t"));
		add_props(&b, (struct mqtt_str){ all.b, all.n });
		add(&b, STR("payload"));
		CHECK(!get_publish((struct mqtt_str){ b.b, b.n }, 0, MQTT_5,
		    &p));
		CHECK(is(p.props, (struct mqtt_str){ want.b, want.n }));
		CHECK(is(p.topic, STR("t")) && is(p.payload, STR("payload")));
		CHECK(p.has_expiry && p.expiry == 0x01020304 && p.alias == 9);
	}
}

/* ---- damaged packets ---- */

/* Whole packets; ends: shorter lengths at which they are whole, too. */
static const struct {
	enum mqtt_type t;
	uint8_t flags;
	enum mqtt_version v;
	struct mqtt_str body;
	uint32_t ends[2];
} samples[] = {
	{ MQTT_CONNECT, 0, MQTT_31, S("\x00\x06MQIsdp\x03\xee\x00\x0a\x00\x02id"
	    "\x00\x01t\x00\x01p\x00\x04user\x00\x02pw"), { 22, 28 } },
	{ MQTT_CONNECT, 0, MQTT_311, S("\x00\x04MQTT\x04\xee\x00\x0a\x00\x02id"
	    "\x00\x01t\x00\x01p\x00\x04user\x00\x02pw"), { 0 } },
	{ MQTT_CONNECT, 0, MQTT_5, S("\x00\x04MQTT\x05\xee\x00\x0a"
	    "\x22\x11\x00\x00\x00\x05\x21\x00\x06\x27\x00\x00\x07\x00"
	    "\x22\x00\x08\x19\x01\x17\x00\x15\x00\x01m\x16\x00\x00"
	    "\x26\x00\x01k\x00\x01v\x00\x02id"
	    "\x25\x18\x00\x00\x00\x09\x01\x01\x02\x00\x00\x00\x0a"
	    "\x03\x00\x02" "ct\x08\x00\x02rt\x09\x00\x02" "cd"
	    "\x26\x00\x02k1\x00\x03v11"
	    "\x00\x01t\x00\x01p\x00\x04user\x00\x02pw"), { 0 } },
	{ MQTT_PUBLISH, 0x03, MQTT_311, S("\x00\x03" "a/b\x12\x34"), { 0 } },
	{ MQTT_PUBLISH, 0, MQTT_31, S("\x00\x03" "a/b"), { 0 } },
	{ MQTT_PUBLISH, 0x05, MQTT_5, S("\x00\x03" "a/b\x12\x34\x21"
	    "\x23\x00\x01\x01\x01\x02\x00\x00\x00\x0a\x03\x00\x02" "ct"
	    "\x08\x00\x02rt\x09\x00\x02" "cd\x26\x00\x01k\x00\x02v1"), { 0 } },
	{ MQTT_PUBACK, 0, MQTT_311, S("\x00\x01"), { 0 } },
	{ MQTT_PUBACK, 0, MQTT_5, S("\x00\x01\x10\x0b\x1f\x00\x01r"
	    "\x26\x00\x01k\x00\x01v"), { 2, 3 } },
	{ MQTT_PUBREC, 0, MQTT_5, S("\x00\x01\x80\x04\x1f\x00\x01r"), { 2, 3 } },
	{ MQTT_PUBREL, 2, MQTT_5, S("\x00\x01\x92\x04\x1f\x00\x01r"), { 2, 3 } },
	{ MQTT_PUBCOMP, 0, MQTT_5, S("\x00\x01\x92\x04\x1f\x00\x01r"), { 2, 3 } },
	{ MQTT_SUBSCRIBE, 2, MQTT_31, S("\x00\x01\x00\x01" "a\x01\x00\x03"
	    "b/#\x02"), { 6 } },
	{ MQTT_SUBSCRIBE, 2, MQTT_311, S("\x00\x01\x00\x01" "a\x01\x00\x03"
	    "b/#\x02"), { 6 } },
	{ MQTT_SUBSCRIBE, 2, MQTT_5, S("\x00\x01\x09\x0b\x05\x26\x00\x01k\x00"
	    "\x01v\x00\x01" "a\x01\x00\x03" "b/#\x2d"), { 16 } },
	{ MQTT_UNSUBSCRIBE, 2, MQTT_311, S("\x00\x01\x00\x01" "a\x00\x03"
	    "b/#"), { 5 } },
	{ MQTT_UNSUBSCRIBE, 2, MQTT_5, S("\x00\x01\x07\x26\x00\x01k\x00\x01v"
	    "\x00\x01" "a\x00\x03" "b/#"), { 13 } },
	{ MQTT_DISCONNECT, 0, MQTT_5, S("\x04\x10\x11\x00\x00\x00\x01"
	    "\x1f\x00\x01r\x26\x00\x01k\x00\x01v"), { 0, 1 } },
};

static bool
is_whole(size_t i, uint32_t n)
{
	bool empty_ok = samples[i].t == MQTT_DISCONNECT;

	return n == samples[i].body.len || (n == 0 && empty_ok) ||
	    (n > 0 && (n == samples[i].ends[0] || n == samples[i].ends[1]));
}

TEST(packets_cut_short)
{
	for (size_t i = 0; i < N(samples); i++) {
		struct mqtt_str s = samples[i].body;

		for (s.len = 0; s.len <= samples[i].body.len; s.len++)
			CHECK(!decode(samples[i].t, samples[i].flags,
			    samples[i].v, s) == is_whole(i, s.len));
	}
}

TEST(packets_with_a_byte_too_many)
{
	for (size_t i = 0; i < N(samples); i++) {
		struct buf b = { .n = 0 };

		add(&b, samples[i].body);
		add(&b, STR("\x00"));
		CHECK(decode(samples[i].t, samples[i].flags, samples[i].v,
		    (struct mqtt_str){ b.b, b.n }) ==
		    (samples[i].t == MQTT_PUBLISH ? MQTT_OK : MQTT_MALFORMED));
	}
}

/* No single wrong byte may lead outside; the fence is the check. */
TEST(packets_with_a_wrong_byte)
{
	for (size_t i = 0; i < N(samples); i++) {
		struct buf b = { .n = 0 };
		struct mqtt_str s = { b.b, samples[i].body.len };

		add(&b, samples[i].body);
		for (uint32_t at = 0; at < s.len; at++) {
			for (int x = 0; x < 256; x++) {
				b.b[at] = (uint8_t)x;
				decode(samples[i].t, samples[i].flags,
				    samples[i].v, s);
			}
			b.b[at] = samples[i].body.p[at];
		}
		CHECK(!decode(samples[i].t, samples[i].flags, samples[i].v, s));
	}
}

/* ---- names of things ---- */

TEST(connack_codes)
{
	CHECK(mqtt_connack_code(MQTT_BAD_VERSION) == 1);
	CHECK(mqtt_connack_code(MQTT_BAD_CLIENT_ID) == 2);
	CHECK(mqtt_connack_code(MQTT_UNAVAILABLE) == 3);
	CHECK(mqtt_connack_code(MQTT_BAD_LOGIN) == 4);
	CHECK(mqtt_connack_code(MQTT_NOT_AUTHORIZED) == 5);
	for (unsigned r = 0; r < 256; r++)
		CHECK(mqtt_connack_code((enum mqtt_reason)r) <= 5);
	CHECK(mqtt_connack_code(MQTT_MALFORMED) == 0);
	CHECK(mqtt_connack_code(MQTT_PROTOCOL_ERROR) == 0);
}

TEST(everything_has_a_name)
{
	for (unsigned r = 0; r < 256; r++)
		CHECK(strlen(mqtt_reason_name((enum mqtt_reason)r)) > 3);
	for (unsigned t = 0; t < 256; t++)
		CHECK(strlen(mqtt_type_name(t)) > 3);
	CHECK(strcmp(mqtt_type_name(MQTT_PUBLISH), "PUBLISH") == 0);
	CHECK(strcmp(mqtt_type_name(MQTT_AUTH), "AUTH") == 0);
}
