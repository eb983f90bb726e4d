/* Fuzzer of mosqdb: arbitrary bytes as a mosquitto.db. What is handed out must
 * be what a packet could have brought. */
#include "mosqdb.h"

#include <assert.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads all of it, for the sanitizer to see. */
static uint8_t
touch(struct mqtt_str s)
{
	uint8_t sum = 0;

	for (uint32_t i = 0; i < s.len; i++)
		sum ^= s.p[i];
	return sum;
}

static bool
named(struct mqtt_str id)
{
	return id.len > 0 && mqtt_utf8_valid(id.p, id.len);
}

static bool
on_client(void *arg, const struct mosqdb_client *c)
{
	(void)arg;
	assert(named(c->id) && (c->user.len == 0 || named(c->user)));
	return true;
}

static bool
on_subscription(void *arg, const struct mosqdb_subscription *s)
{
	(void)arg;
	assert(named(s->id) && named(s->filter.filter) && s->filter.qos < 3);
	assert(!mqtt_filter_fault(s->filter.filter));
	return true;
}

static bool
on_message(void *arg, const struct mosqdb_message *m)
{
	static volatile uint8_t sink;

	(void)arg;
	assert(named(m->p.topic) && !mqtt_topic_fault(m->p.topic));
	assert(m->p.qos < 3 && !m->p.has_expiry && m->p.alias == 0);
	sink = touch(m->p.payload) ^ touch(m->p.props);
	return true;
}

static bool
on_client_message(void *arg, const struct mosqdb_client_message *m)
{
	(void)arg;
	assert(named(m->id) && m->qos < 3 && m->state <= MOSQDB_QUEUED);
	for (uint32_t i = 0; i < m->n_subids; i++)
		assert(m->subids[i] > 0);
	return true;
}

/* A few of them, so that the end by a call is tried as well. */
static bool
on_retained(void *arg, uint64_t store_id)
{
	(void)store_id;
	return ++*(unsigned *)arg < 5;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	static char path[32];
	unsigned n = 0;
	const struct mosqdb_calls calls = { .arg = &n, .client = on_client,
	    .subscription = on_subscription, .message = on_message,
	    .client_message = on_client_message, .retained = on_retained };
	struct mosqdb_report rp;

	if (fd < 0) {
		fd = memfd_create("mosquitto.db", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	assert(ftruncate(fd, 0) == 0);
	assert(pwrite(fd, data, size, 0) == (ssize_t)size);
	mosqdb_read(path, &calls, &rp);
	assert(rp.offset <= size);
	return 0;
}
