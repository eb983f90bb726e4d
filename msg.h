/* msg - one published message: immutable, shared by reference, one block.
 *
 * Queues, in-flight windows, the retained tree, wills and outgoing buffers
 * each hold a reference; the last one to let go frees it.
 */
#ifndef MSG_H
#define MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "mqtt.h"

struct msg {
	uint32_t refs;
	uint32_t payload_len;
	uint32_t props_len;
	uint16_t topic_len;
	uint8_t qos;            /* as published */
	bool retain;            /* as published */
	bool dumped;            /* it is in the snapshot that is being made */
	uint32_t recorded;      /* references to it that the journal knows */
	uint64_t no;            /* its number in the journal */
	int64_t expires_ms;     /* on the monotonic clock; MSG_NEVER */
	uint8_t bytes[];        /* topic, properties, payload */
};

#define MSG_NEVER INT64_MAX

/* Copies topic, properties and payload of p; one reference, the caller's.
 * NULL: no memory. */
struct msg *msg_new(const struct mqtt_publish *p, int64_t expires_ms);

struct msg *msg_ref(struct msg *m);
void msg_unref(struct msg *m);  /* m may be NULL */

/* Messages that exist, and the bytes of their payloads. */
uint32_t msg_count(void);
uint64_t msg_bytes(void);

/* The message as a PUBLISH at its own QoS, with what is left of its expiry at
 * now_ms [MQTT5-3.3.2-6]: views into m. */
struct mqtt_publish msg_publish(const struct msg *m, int64_t now_ms);

static inline struct mqtt_str
msg_topic(const struct msg *m)
{
	return (struct mqtt_str){ m->bytes, m->topic_len };
}

static inline bool
msg_expired(const struct msg *m, int64_t now_ms)
{
	return m->expires_ms < now_ms;
}

/* Bytes that count against max_queued_bytes. */
static inline uint32_t
msg_weight(const struct msg *m)
{
	return m->topic_len + m->props_len + m->payload_len;
}

/* The moment at which an expiry interval ends; seconds as in the packet. */
static inline int64_t
msg_expiry(const struct mqtt_publish *p, int64_t now_ms)
{
	return p->has_expiry ? now_ms + (int64_t)p->expiry * 1000 : MSG_NEVER;
}

#endif
