/* mosqdb - see mosqdb.h.
 *
 * The file is a dump of C structs: numbers that are marked BE below were
 * brought into network order, the 64-bit ones were not; they are little endian
 * where Mosquitto usually runs. A big endian file shows in the size of its
 * ids, which then has the wrong place in the first chunk.
 *
 *	15 bytes 00 B5 00 "mosquitto db", 4 bytes 0, 4 bytes version BE
 *	then chunks: 4 bytes type BE, 4 bytes length BE, so many bytes
 *
 * The fixed part of each chunk is described at the function that reads it.
 */
#include "mosqdb.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER 23
#define SUBIDS_MAX 64

enum chunk { CONFIG = 1, MESSAGE, CLIENT_MESSAGE, RETAINED, SUBSCRIPTION,
	CLIENT };

/* What reading one chunk came to. */
enum outcome { DONE, SKIP, MALFORMED, NO_MEMORY };

struct mosqdb {
	int fd;
	uint64_t size;
	uint64_t off;           /* of the next byte to be read */
	int err;                /* of a read that failed */
	const struct mosqdb_calls *calls;
	struct mosqdb_report *report;
	uint8_t *buf, *packet;  /* one chunk, and the same as a PUBLISH */
	size_t cap, packet_cap;
};

/* ---- a chunk, read from front to back ---- */

struct cursor {
	const uint8_t *p;
	size_t left;
	bool bad;               /* something was longer than what is left */
};

static const uint8_t *
take(struct cursor *c, size_t n)
{
	static const uint8_t none[8];
	const uint8_t *p = c->p;

	if (n > c->left) {
		c->bad = true;
		c->left = 0;
		return none;    /* numbers are 0 then */
	}
	c->p += n;
	c->left -= n;
	return p;
}

static uint8_t
take8(struct cursor *c)
{
	return *take(c, 1);
}

static uint16_t
take16(struct cursor *c)
{
	const uint8_t *p = take(c, 2);

	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t
take32(struct cursor *c)
{
	uint32_t high = take16(c);

	return high << 16 | take16(c);
}

static uint64_t
take64(struct cursor *c)
{
	const uint8_t *p = take(c, 8);
	uint64_t v = 0;

	for (int i = 0; i < 8; i++)
		v |= (uint64_t)p[i] << 8 * i;
	return v;
}

static struct mqtt_str
take_str(struct cursor *c, size_t n)
{
	const uint8_t *p = take(c, n);

	return (struct mqtt_str){ p, c->bad ? 0 : (uint32_t)n };
}

static uint32_t
take_varint(struct cursor *c)
{
	uint32_t v = 0;
	uint8_t b;

	for (int i = 0; i < 4; i++) {
		b = take8(c);
		v |= (uint32_t)(b & 0x7f) << 7 * i;
		if (!(b & 0x80))
			return v;
	}
	c->bad = true;
	return 0;
}

static bool
valid_id(struct mqtt_str id)
{
	return id.len > 0 && mqtt_utf8_valid(id.p, id.len);
}

static enum outcome
called(bool good)
{
	return good ? DONE : NO_MEMORY;
}

/* ---- the chunks ---- */

/* 0 last store id u64; 8 clean shutdown u8; 9 size of store ids u8 */
static enum outcome
read_config(struct mosqdb *db, struct cursor *c)
{
	take(c, 9);
	if (take8(c) == 8 && !c->bad)
		return DONE;
	db->report->why = "it was written by a machine of another byte order";
	return MALFORMED;
}

static bool
grow(uint8_t **buf, size_t *cap, size_t n)
{
	uint8_t *p;

	if (n <= *cap)
		return true;
	p = realloc(*buf, n);
	if (!p)
		return false;
	*buf = p;
	*cap = n;
	return true;
}

/* The message as the body of a PUBLISH with QoS 0, so that it is checked as
 * one from a peer would be; m->p views db->packet. */
static enum outcome
as_publish(struct mosqdb *db, struct mosqdb_message *m, struct mqtt_str topic,
    struct mqtt_str props, struct mqtt_str payload)
{
	struct mqtt_in in;
	uint8_t *p;

	if (!grow(&db->packet, &db->packet_cap, (size_t)topic.len + props.len +
	    payload.len + 3))
		return NO_MEMORY;
	p = mqtt_put_str(db->packet, topic);
	if (props.len > 0)
		memcpy(p, props.p, props.len);
	else
		*p = 0;         /* no properties */
	p += props.len > 0 ? props.len : 1;
	if (payload.len > 0)
		memcpy(p, payload.p, payload.len);
	in = (struct mqtt_in){ .p = db->packet, .end = p + payload.len };
	if (mqtt_get_publish(&in, 0, MQTT_5, &m->p) != MQTT_OK ||
	    m->p.topic.len == 0 || mqtt_topic_fault(m->p.topic))
		return SKIP;
	m->p.has_expiry = false;
	m->p.alias = 0;
	return DONE;
}

/* 0 store id u64; 8 expiry i64; 16 payload length u32 BE; 20 packet id, 22
 * length of source id, 24 of source user, 26 of topic, 28 port, all u16 BE;
 * 30 QoS u8; 31 retain u8; source id, user, topic, payload; properties */
static enum outcome
read_message(struct mosqdb *db, struct cursor *c)
{
	struct mosqdb_message m = { .store_id = take64(c) };
	struct mqtt_str topic, payload, props;
	uint32_t payload_len;
	uint16_t id_len, user_len, topic_len;
	uint8_t qos, retain;
	enum outcome o;

	m.expires = (int64_t)take64(c);
	payload_len = take32(c);
	take16(c);
	id_len = take16(c);
	user_len = take16(c);
	topic_len = take16(c);
	take16(c);
	qos = take8(c);
	retain = take8(c);
	take(c, id_len);
	take(c, user_len);
	topic = take_str(c, topic_len);
	payload = take_str(c, payload_len);
	props = take_str(c, c->left);
	if (c->bad)
		return MALFORMED;
	if (qos > 2)
		return SKIP;
	o = as_publish(db, &m, topic, props, payload);
	if (o != DONE)
		return o;
	m.p.qos = qos;
	m.p.retain = retain;
	return called(db->calls->message(db->calls->arg, &m));
}

/* Subscription Identifiers, the only property that is kept here. */
static uint32_t
take_subids(struct cursor *c, uint32_t ids[SUBIDS_MAX])
{
	uint32_t n = 0, len;

	if (c->left == 0)
		return 0;
	len = take_varint(c);
	if (len != c->left)
		c->bad = true;
	while (!c->bad && c->left > 0 && n < SUBIDS_MAX) {
		if (take8(c) != MQTT_P_SUBSCRIPTION_ID)
			break;
		ids[n] = take_varint(c);
		if (!c->bad && ids[n] > 0)
			n++;
	}
	return n;
}

/* 0 store id u64; 8 packet id u16 BE; 10 length of id u16 BE; 12 QoS u8; 13
 * state u8; 14 retain in the high, dup in the low half u8; 15 direction u8;
 * id; properties */
static enum outcome
read_client_message(struct mosqdb *db, struct cursor *c)
{
	struct mosqdb_client_message m = { .store_id = take64(c) };
	uint32_t subids[SUBIDS_MAX];
	uint16_t id_len;
	uint8_t state, flags, direction;

	m.mid = take16(c);
	id_len = take16(c);
	m.qos = take8(c);
	state = take8(c);
	flags = take8(c);
	direction = take8(c);
	m.id = take_str(c, id_len);
	m.subids = subids;
	m.n_subids = take_subids(c, subids);
	if (c->bad)
		return MALFORMED;
	if (m.qos > 2 || state < MOSQDB_PUBLISH_QOS0 ||
	    state > MOSQDB_QUEUED || direction > 1 || !valid_id(m.id))
		return SKIP;
	m.state = (enum mosqdb_state)state;
	m.retain = flags >> 4;
	m.dup = flags & 0x0f;
	m.outgoing = direction == 1;
	return called(db->calls->client_message(db->calls->arg, &m));
}

/* 0 store id u64 */
static enum outcome
read_retained(struct mosqdb *db, struct cursor *c)
{
	uint64_t store_id = take64(c);

	if (c->bad)
		return MALFORMED;
	return called(db->calls->retained(db->calls->arg, store_id));
}

/* 0 identifier u32 BE; 4 length of id, 6 of filter, u16 BE; 8 QoS u8; 9
 * options u8; 10 padding; 12 id, filter */
static enum outcome
read_subscription(struct mosqdb *db, struct cursor *c)
{
	struct mosqdb_subscription s = { .subid = take32(c) };
	uint16_t id_len = take16(c), filter_len = take16(c);
	struct mqtt_str filter;
	uint8_t options;

	s.filter.qos = take8(c);
	options = take8(c);
	take(c, 2);
	s.id = take_str(c, id_len);
	s.filter.filter = filter = take_str(c, filter_len);
	if (c->bad)
		return MALFORMED;
	s.filter.no_local = options & 0x04;
	s.filter.retain_as_published = options & 0x08;
	s.filter.retain_handling = options >> 4 & 3;
	if (s.filter.qos > 2 || !valid_id(s.id) || filter.len == 0 ||
	    !mqtt_utf8_valid(filter.p, filter.len) ||
	    mqtt_filter_fault(filter))
		return SKIP;
	return called(db->calls->subscription(db->calls->arg, &s));
}

/* 0 end of the session i64; 8 interval u32 BE; 12 last packet id, 14 length of
 * id, u16 BE; in format 6: 16 port, 18 length of user name, u16 BE, 20
 * padding; id, user name. The padding is as long as 64-bit members demand on
 * the machine that wrote it: what is left over tells. */
static enum outcome
read_client(struct mosqdb *db, struct cursor *c)
{
	struct mosqdb_client cl = { .expires = (int64_t)take64(c) };
	uint16_t id_len, user_len = 0;
	size_t names;

	cl.expiry = take32(c);
	cl.last_mid = take16(c);
	id_len = take16(c);
	if (db->report->version >= 6) {
		take16(c);
		user_len = take16(c);
		names = (size_t)id_len + user_len;
		take(c, c->left == names ? 0 : 4);
	}
	cl.id = take_str(c, id_len);
	cl.user = take_str(c, user_len);
	if (c->bad)
		return MALFORMED;
	if (!valid_id(cl.id) || (cl.user.len > 0 &&
	    !mqtt_utf8_valid(cl.user.p, cl.user.len)))
		return SKIP;
	return called(db->calls->client(db->calls->arg, &cl));
}

/* ---- the file ---- */

static enum outcome
read_chunk(struct mosqdb *db, uint32_t type, struct cursor c)
{
	switch (type) {
	case CONFIG:
		return read_config(db, &c);
	case MESSAGE:
		return read_message(db, &c);
	case CLIENT_MESSAGE:
		return read_client_message(db, &c);
	case RETAINED:
		return read_retained(db, &c);
	case SUBSCRIPTION:
		return read_subscription(db, &c);
	case CLIENT:
		return read_client(db, &c);
	default:
		return DONE;    /* of a later version, and not for us */
	}
}

/* false: the file is shorter, or cannot be read. */
static bool
read_bytes(struct mosqdb *db, uint8_t *p, size_t n)
{
	ssize_t got;

	while (n > 0) {
		got = pread(db->fd, p, n, (off_t)db->off);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			db->err = got < 0 ? errno : 0;
			return false;
		}
		p += got;
		n -= (size_t)got;
		db->off += (uint64_t)got;
	}
	return true;
}

static enum mosqdb_result
cut(struct mosqdb *db, const char *why)
{
	if (!db->report->why)
		db->report->why = why;
	return MOSQDB_CUT;
}

static enum mosqdb_result
read_chunks(struct mosqdb *db)
{
	uint8_t head[8];
	struct cursor c;
	uint32_t type, len;

	while (db->off < db->size) {
		db->report->offset = db->off;
		c = (struct cursor){ head, sizeof head, false };
		if (db->size - db->off < sizeof head ||
		    !read_bytes(db, head, sizeof head))
			return cut(db, "it ends within a chunk");
		type = take32(&c);
		len = take32(&c);
		if (len > db->size - db->off)
			return cut(db, "it ends within a chunk");
		if (type == 0)
			return cut(db, "a chunk has no type");
		if (!grow(&db->buf, &db->cap, len ? len : 1))
			return MOSQDB_NO_MEMORY;
		if (!read_bytes(db, db->buf, len))
			return cut(db, "it cannot be read");
		switch (read_chunk(db, type,
		    (struct cursor){ db->buf, len, false })) {
		case DONE:
			break;
		case SKIP:
			db->report->skipped++;
			break;
		case MALFORMED:
			return cut(db, "a length in a chunk is wrong");
		case NO_MEMORY:
			return MOSQDB_NO_MEMORY;
		}
	}
	db->report->offset = db->off;
	return MOSQDB_READ;
}

static enum mosqdb_result
read_header(struct mosqdb *db)
{
	static const uint8_t magic[15] = "\x00\xb5\x00mosquitto db";
	uint8_t head[HEADER];
	struct cursor c = { head + 19, 4, false };

	db->report->why = "it is not a database of Mosquitto";
	if (!read_bytes(db, head, sizeof head) ||
	    memcmp(head, magic, sizeof magic) != 0)
		return MOSQDB_NOT;
	db->report->version = take32(&c);
	db->report->why = "it is of a version before Mosquitto 1.6: start any "
	    "Mosquitto from 1.6 to 2.0 with it and stop it again, then it is "
	    "converted";
	if (db->report->version < 5)
		return MOSQDB_NOT;
	db->report->why = "it is of a version after Mosquitto 2.1";
	if (db->report->version > 6)
		return MOSQDB_NOT;
	db->report->why = NULL;
	return read_chunks(db);
}

enum mosqdb_result
mosqdb_read(const char *path, const struct mosqdb_calls *calls,
    struct mosqdb_report *report)
{
	struct mosqdb db = { .calls = calls, .report = report };
	enum mosqdb_result r;
	struct stat sb;

	memset(report, 0, sizeof *report);
	db.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (db.fd < 0)
		return MOSQDB_NO_FILE;
	if (fstat(db.fd, &sb) < 0 || !S_ISREG(sb.st_mode)) {
		report->why = "it is not a file";
		r = MOSQDB_NOT;
	} else {
		db.size = (uint64_t)sb.st_size;
		r = read_header(&db);
	}
	close(db.fd);
	free(db.buf);
	free(db.packet);
	errno = db.err;
	return db.err ? MOSQDB_NO_FILE : r;
}
