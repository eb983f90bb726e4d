#include "msg.h"
#include "mem.h"

#include <string.h>

static struct {
	uint32_t n;
	uint64_t bytes;
} count;

static size_t
size_of(const struct msg *m)
{
	return sizeof *m + m->topic_len + m->props_len + m->payload_len;
}

static uint8_t *
append(uint8_t *out, struct mqtt_str s)
{
	if (s.len)
		memcpy(out, s.p, s.len);
	return out + s.len;
}

struct msg *
msg_new(const struct mqtt_publish *p, int64_t expires_ms)
{
	struct msg *m = mem_alloc(sizeof *m + p->topic.len + p->props.len +
	    p->payload.len);

	if (!m)
		return NULL;
	*m = (struct msg){
		.refs = 1, .payload_len = p->payload.len,
		.props_len = p->props.len,
		.topic_len = (uint16_t)p->topic.len, .qos = p->qos,
		.retain = p->retain, .expires_ms = expires_ms,
	};
	count.n++;
	count.bytes += m->payload_len;
	append(append(append(m->bytes, p->topic), p->props), p->payload);
	return m;
}

struct msg *
msg_ref(struct msg *m)
{
	m->refs++;
	return m;
}

void
msg_unref(struct msg *m)
{
	if (!m || --m->refs)
		return;
	count.n--;
	count.bytes -= m->payload_len;
	mem_free(m, size_of(m));
}

uint32_t
msg_count(void)
{
	return count.n;
}

uint64_t
msg_bytes(void)
{
	return count.bytes;
}

struct mqtt_publish
msg_publish(const struct msg *m, int64_t now_ms)
{
	const uint8_t *p = m->bytes;
	struct mqtt_publish out = {
		.topic = { p, m->topic_len },
		.props = { p + m->topic_len, m->props_len },
		.payload = { p + m->topic_len + m->props_len, m->payload_len },
		.qos = m->qos, .retain = m->retain,
	};

	if (m->expires_ms != MSG_NEVER) {
		int64_t left = m->expires_ms - now_ms;

		out.has_expiry = true;
		out.expiry = left > 0 ? (uint32_t)((left + 999) / 1000) : 0;
	}
	return out;
}
