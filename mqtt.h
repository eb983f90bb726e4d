/* mqtt - the wire format of MQTT 3.1, 3.1.1 and 5.0, and the rules for names.
 *
 * Pure: no I/O, no allocation, no state. Decoders give views into the bytes
 * that they were handed; encoders write into room that the caller measured
 * first. Every length from a peer is checked in one bounded reader
 * (struct mqtt_in), nowhere else.
 */
#ifndef MQTT_H
#define MQTT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mqtt_version { MQTT_31 = 3, MQTT_311 = 4, MQTT_5 = 5 };

enum mqtt_type {
	MQTT_CONNECT = 1, MQTT_CONNACK, MQTT_PUBLISH, MQTT_PUBACK, MQTT_PUBREC,
	MQTT_PUBREL, MQTT_PUBCOMP, MQTT_SUBSCRIBE, MQTT_SUBACK,
	MQTT_UNSUBSCRIBE, MQTT_UNSUBACK, MQTT_PINGREQ, MQTT_PINGRESP,
	MQTT_DISCONNECT, MQTT_AUTH,
};

/* Reason codes of 5.0, section 2.4. Success is 0 for all packets. */
enum mqtt_reason {
	MQTT_OK = 0x00,
	MQTT_DISCONNECT_WITH_WILL = 0x04,
	MQTT_NO_MATCHING_SUBSCRIBERS = 0x10,
	MQTT_NO_SUBSCRIPTION_EXISTED = 0x11,
	MQTT_UNSPECIFIED = 0x80,
	MQTT_MALFORMED = 0x81,
	MQTT_PROTOCOL_ERROR = 0x82,
	MQTT_IMPLEMENTATION = 0x83,
	MQTT_BAD_VERSION = 0x84,
	MQTT_BAD_CLIENT_ID = 0x85,
	MQTT_BAD_LOGIN = 0x86,
	MQTT_NOT_AUTHORIZED = 0x87,
	MQTT_UNAVAILABLE = 0x88,
	MQTT_BUSY = 0x89,
	MQTT_BAD_AUTH_METHOD = 0x8c,
	MQTT_KEEP_ALIVE_TIMEOUT = 0x8d,
	MQTT_TAKEN_OVER = 0x8e,
	MQTT_BAD_FILTER = 0x8f,
	MQTT_BAD_TOPIC = 0x90,
	MQTT_ID_NOT_FOUND = 0x92,
	MQTT_RECEIVE_MAX_EXCEEDED = 0x93,
	MQTT_BAD_ALIAS = 0x94,
	MQTT_TOO_LARGE = 0x95,
	MQTT_QUOTA = 0x97,
	MQTT_BAD_PAYLOAD_FORMAT = 0x99,
	MQTT_NO_RETAIN = 0x9a,
	MQTT_NO_QOS = 0x9b,
};

/* A view: bytes that belong to somebody else. */
struct mqtt_str {
	const uint8_t *p;
	uint32_t len;
};

/* The bounded reader. The first error sticks: later reads give zeros, so a
 * decoder reads on and looks at err once. */
struct mqtt_in {
	uint8_t *p;
	uint8_t *end;
	enum mqtt_reason err;   /* MQTT_OK so far */
	const char *why;        /* what was wrong, in plain words */
};

struct mqtt_header {
	uint8_t type;           /* enum mqtt_type, 0 and 15 included */
	uint8_t flags;
	uint32_t len;           /* Remaining Length */
	uint32_t size;          /* of the whole packet */
};

/* Reads a fixed header. 1: h is filled (the body may not be there yet);
 * 0: more bytes are needed; -1: the length is malformed. minimal: a padded
 * length is malformed, as 5.0 has it [MQTT5-1.5.5-1]. */
int mqtt_get_header(const uint8_t *p, size_t n, bool minimal,
    struct mqtt_header *h);

/* Whether the fixed header's flags are right for its type
 * [MQTT-2.2.2-2]; 3.1 does not use them outside PUBLISH. */
bool mqtt_flags_valid(const struct mqtt_header *h, enum mqtt_version v);

/* Properties of one packet, as received. */
struct mqtt_props {
	uint64_t have;          /* bit = property identifier */
	uint32_t session_expiry;
	uint32_t packet_max;
	uint32_t message_expiry;
	uint32_t will_delay;
	uint32_t subscription_id;
	uint16_t receive_max;
	uint16_t alias_max;
	uint16_t alias;
	/* What a PUBLISH or Will hands on unchanged and in order: payload
	 * format, content type, response topic, correlation data and user
	 * properties, still encoded. */
	struct mqtt_str forward;
};

enum mqtt_prop {
	MQTT_P_PAYLOAD_FORMAT = 0x01, MQTT_P_MESSAGE_EXPIRY = 0x02,
	MQTT_P_CONTENT_TYPE = 0x03, MQTT_P_RESPONSE_TOPIC = 0x08,
	MQTT_P_CORRELATION_DATA = 0x09, MQTT_P_SUBSCRIPTION_ID = 0x0b,
	MQTT_P_SESSION_EXPIRY = 0x11, MQTT_P_ASSIGNED_CLIENT_ID = 0x12,
	MQTT_P_SERVER_KEEP_ALIVE = 0x13, MQTT_P_AUTH_METHOD = 0x15,
	MQTT_P_AUTH_DATA = 0x16, MQTT_P_REQUEST_PROBLEM = 0x17,
	MQTT_P_WILL_DELAY = 0x18, MQTT_P_REQUEST_RESPONSE = 0x19,
	MQTT_P_REASON_STRING = 0x1f,
	MQTT_P_RECEIVE_MAX = 0x21, MQTT_P_ALIAS_MAX = 0x22,
	MQTT_P_ALIAS = 0x23, MQTT_P_MAX_QOS = 0x24,
	MQTT_P_RETAIN_AVAILABLE = 0x25, MQTT_P_USER = 0x26,
	MQTT_P_PACKET_MAX = 0x27,
};

static inline bool
mqtt_has(const struct mqtt_props *pr, enum mqtt_prop id)
{
	return pr->have >> id & 1;
}

struct mqtt_connect {
	uint8_t version;        /* enum mqtt_version, bridge bit removed; 0:
	                         * it did not even say MQTT */
	bool bridge;            /* the 0x80 bit was set in the level */
	bool clean;             /* Clean Session, Clean Start */
	bool will, will_retain;
	bool has_user, has_password;
	uint8_t will_qos;
	uint16_t keepalive;     /* seconds */
	struct mqtt_str id, user, password, will_topic, will_payload;
	struct mqtt_props props, will_props;
};

/* One PUBLISH, received or to be sent. */
struct mqtt_publish {
	struct mqtt_str topic;  /* empty when only the alias is given */
	struct mqtt_str payload;
	struct mqtt_str props;  /* forwarded properties, encoded */
	const uint32_t *subids; /* Subscription Identifiers, outgoing only */
	uint32_t n_subids;
	uint32_t expiry;        /* seconds, with has_expiry */
	uint16_t id;            /* 0 with QoS 0 */
	uint16_t alias;         /* 0: none */
	uint8_t qos;
	bool dup, retain, has_expiry;
};

struct mqtt_ack {
	uint16_t id;
	uint8_t reason;
};

/* One filter of a SUBSCRIBE. */
struct mqtt_filter {
	struct mqtt_str filter;
	uint8_t qos;
	uint8_t retain_handling;
	bool no_local, retain_as_published;
};

/* Decoders of a packet's body. in spans the body; PUBLISH and Will properties
 * are compacted in place, so the bytes must be writable. Each returns in->err;
 * MQTT_BAD_VERSION from a CONNECT means that c->version is one we do not
 * speak. All strings are checked as sections 1.5.3 / 1.5.4 demand; topics and
 * filters are not judged here (see below). */
enum mqtt_reason mqtt_get_connect(struct mqtt_in *in, struct mqtt_connect *c);
enum mqtt_reason mqtt_get_publish(struct mqtt_in *in, uint8_t flags,
    enum mqtt_version v, struct mqtt_publish *p);
enum mqtt_reason mqtt_get_ack(struct mqtt_in *in, enum mqtt_type t,
    enum mqtt_version v, struct mqtt_ack *a);
enum mqtt_reason mqtt_get_disconnect(struct mqtt_in *in, enum mqtt_version v,
    uint8_t *reason, struct mqtt_props *props);

/* The head of a SUBSCRIBE or UNSUBSCRIBE: packet id and properties; then one
 * call per filter until in->p == in->end. */
enum mqtt_reason mqtt_get_subscribe(struct mqtt_in *in, enum mqtt_type t,
    enum mqtt_version v, uint16_t *id, struct mqtt_props *props);
enum mqtt_reason mqtt_get_filter(struct mqtt_in *in, enum mqtt_type t,
    enum mqtt_version v, struct mqtt_filter *f);

/* Encoding. mqtt_publish_size: the whole packet's size for this version.
 * mqtt_put_publish_head writes all but the payload and returns the end. */
uint32_t mqtt_publish_size(const struct mqtt_publish *p, enum mqtt_version v);
uint8_t *mqtt_put_publish_head(uint8_t *out, const struct mqtt_publish *p,
    enum mqtt_version v);

#define MQTT_ACK_MAX 6          /* bytes of the largest ack without strings */

/* PUBACK, PUBREC, PUBREL, PUBCOMP; the reason only where 5.0 needs it. */
uint8_t *mqtt_put_ack(uint8_t *out, enum mqtt_type t, enum mqtt_version v,
    uint16_t id, enum mqtt_reason reason);

uint8_t *mqtt_put_u16(uint8_t *out, uint16_t v);
uint8_t *mqtt_put_u32(uint8_t *out, uint32_t v);
uint8_t *mqtt_put_varint(uint8_t *out, uint32_t v);
uint8_t *mqtt_put_str(uint8_t *out, struct mqtt_str s);
unsigned mqtt_varint_size(uint32_t v);

/* Names. Section 4.7. Levels are limited, so that no walk over a tree of
 * topics can be made deep by a peer. */
#define MQTT_LEVELS_MAX 200

bool mqtt_utf8_valid(const uint8_t *p, size_t n);

/* Whether s is what PUBLISH or a Will may hand on: properties without a length
 * before them, none that is between client and server alone. */
bool mqtt_forward_valid(struct mqtt_str s);

/* The highest Subscription Identifier. */
#define MQTT_SUBID_MAX 268435455u

/* NULL, or what is wrong with it. Both assume valid UTF-8. */
const char *mqtt_topic_fault(struct mqtt_str topic);
const char *mqtt_filter_fault(struct mqtt_str filter);

/* The parts of $share/NAME/FILTER [MQTT5-4.8.2-1]. false: not of that form
 * (then it is an ordinary filter unless it starts with $share/). */
bool mqtt_is_shared(struct mqtt_str filter);
bool mqtt_split_shared(struct mqtt_str filter, struct mqtt_str *name,
    struct mqtt_str *rest);

/* The CONNACK code of 3.x for a reason of 5.0; 0 when none fits, then the
 * connection is closed without one [MQTT-3.2.2-6]. */
uint8_t mqtt_connack_code(enum mqtt_reason r);

const char *mqtt_reason_name(enum mqtt_reason r);
const char *mqtt_type_name(unsigned type);

static inline bool
mqtt_str_eq(struct mqtt_str a, struct mqtt_str b)
{
	return a.len == b.len && (a.len == 0 ||
	    __builtin_memcmp(a.p, b.p, a.len) == 0);
}

#endif
