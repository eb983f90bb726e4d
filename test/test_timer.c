/* Tests of the small modules at the bottom: timer, hash, mem, msg. */
#include "check.h"
#include "hash.h"
#include "mem.h"
#include "msg.h"
#include "timer.h"

#define N(array) (sizeof(array) / sizeof *(array))
#define STR(text) ((struct mqtt_str){ (const uint8_t *)(text), \
	sizeof(text) - 1 })

static unsigned
chance(unsigned n)
{
	return (unsigned)rand() % n;
}

/* ---- timer ---- */

TEST(timer_none)
{
	struct timers ts = { 0 };

	CHECK(timer_next(&ts) == TIMER_NEVER);
	CHECK(!timer_due(&ts, 0));
	CHECK(!timer_due(&ts, INT64_MAX - 1));
	timers_fini(&ts);
}

TEST(timer_one)
{
	struct timers ts = { 0 };
	struct timer t;

	CHECK(timer_init(&ts, &t, 7));
	CHECK(t.kind == 7 && timer_next(&ts) == TIMER_NEVER);
	timer_set(&ts, &t, 100);
	CHECK(timer_next(&ts) == 100 && !timer_due(&ts, 99));
	timer_set(&ts, &t, 50);
	CHECK(timer_next(&ts) == 50);
	timer_set(&ts, &t, 200);
	CHECK(timer_next(&ts) == 200 && !timer_due(&ts, 199));
	timer_set(&ts, &t, TIMER_NEVER);
	CHECK(timer_next(&ts) == TIMER_NEVER);
	timer_set(&ts, &t, TIMER_NEVER);
	timer_set(&ts, &t, -5);
	CHECK(timer_next(&ts) == -5);
	CHECK(timer_due(&ts, -5) == &t && t.kind == 7);
	CHECK(!timer_due(&ts, 1000) && timer_next(&ts) == TIMER_NEVER);
	timer_set(&ts, &t, 1);          /* it may be set again */
	CHECK(timer_due(&ts, 1) == &t);
	timer_fini(&ts, &t);
	timers_fini(&ts);
	CHECK(mem_used() == 0);
}

TEST(timer_of_the_same_time)
{
	struct timers ts = { 0 };
	struct timer t[40];
	bool seen[N(t)] = { false };

	for (size_t i = 0; i < N(t); i++) {
		CHECK(timer_init(&ts, &t[i], 0));
		timer_set(&ts, &t[i], 10);
	}
	for (size_t i = 0; i < N(t); i++) {
		struct timer *due = timer_due(&ts, 10);

		CHECK(due >= t && due < t + N(t) && !seen[due - t]);
		seen[due - t] = true;
	}
	CHECK(!timer_due(&ts, 10));
	timers_fini(&ts);
}

/* What the model knows of 300 timers: whether they exist, and when they are
 * due. */
struct model {
	bool there[300];
	int64_t due[300];
};

static int64_t
nearest(const struct model *m)
{
	int64_t min = TIMER_NEVER;

	for (size_t i = 0; i < N(m->due); i++)
		if (m->there[i] && m->due[i] < min)
			min = m->due[i];
	return min;
}

static void
change(struct timers *ts, struct timer *t, struct model *m, size_t i)
{
	m->due[i] = chance(4) ? (int64_t)chance(1000) - 100 : TIMER_NEVER;
	if (!m->there[i]) {
		CHECK(timer_init(ts, &t[i], (uint32_t)i));
		m->there[i] = true;
	}
	if (chance(10) == 0) {
		timer_fini(ts, &t[i]);
		m->there[i] = false;
	} else {
		timer_set(ts, &t[i], m->due[i]);
	}
}

static void
expire(struct timers *ts, struct timer *t, struct model *m)
{
	int64_t now = (int64_t)chance(300) - 100, next;
	struct timer *due;

	while ((due = timer_due(ts, now))) {
		next = nearest(m);
		CHECK(due == &t[due->kind] && m->there[due->kind]);
		CHECK(m->due[due->kind] == next && next <= now);
		m->due[due->kind] = TIMER_NEVER;
	}
	CHECK(nearest(m) > now);
}

TEST(timer_against_a_model)
{
	static struct timer t[300];
	static struct model m;
	struct timers ts = { 0 };

	srand(2);
	for (int step = 0; step < 60000; step++) {
		if (chance(50) == 0)
			expire(&ts, t, &m);
		else
			change(&ts, t, &m, chance(N(t)));
		if (step % 8 == 0)
			CHECK(timer_next(&ts) == nearest(&m));
	}
	for (size_t i = 0; i < N(t); i++)
		if (m.there[i])
			timer_fini(&ts, &t[i]);
	CHECK(timer_next(&ts) == TIMER_NEVER && ts.owners == 0);
	timers_fini(&ts);
	CHECK(mem_used() == 0);
}

/* Room is taken when a timer is made: after that nothing can fail. */
TEST(timer_without_memory)
{
	struct timers ts = { 0 };
	struct timer t[100];
	size_t n = 0;

	mem_set_limit(200);
	while (n < N(t) && timer_init(&ts, &t[n], 0))
		n++;
	CHECK(n > 0 && n < N(t));
	CHECK(ts.owners == n && !timer_init(&ts, &t[n], 0));
	for (size_t i = 0; i < n; i++)
		timer_set(&ts, &t[i], -(int64_t)i);
	CHECK(timer_next(&ts) == 1 - (int64_t)n);
	timer_fini(&ts, &t[0]);
	CHECK(timer_init(&ts, &t[n], 0));
	timers_fini(&ts);
}

/* ---- hash ---- */

struct thing {
	int before;
	struct hash_link link;
	uint32_t value;
};

static struct thing *
find(const struct hash *h, uint32_t hash, uint32_t value)
{
	for (struct hash_link *l = hash_first(h, hash); l; l = hash_next(l)) {
		struct thing *t = HASH_OBJECT(l, struct thing, link);

		CHECK(l->hash == hash);
		if (t->value == value)
			return t;
	}
	return NULL;
}

TEST(hash_grows)
{
	enum { MANY = 20000 };
	static struct thing t[MANY];
	struct hash h = { 0 };

	CHECK(!hash_first(&h, 0) && !hash_first(&h, 77));
	for (uint32_t i = 0; i < MANY; i++) {
		t[i].value = i;
		CHECK(hash_put(&h, &t[i].link, i * 2654435761u));
		CHECK(h.n == i + 1);
	}
	CHECK(h.mask >= MANY / 2);      /* chains stay short */
	for (uint32_t i = 0; i < MANY; i += 2)
		hash_remove(&h, &t[i].link);
	CHECK(h.n == MANY / 2);
	for (uint32_t i = 0; i < MANY; i++)
		CHECK(find(&h, i * 2654435761u, i) == (i % 2 ? &t[i] : NULL));
	hash_fini(&h);
	CHECK(mem_used() == 0);
}

static unsigned
count(const struct hash *h, uint32_t hash)
{
	unsigned n = 0;

	for (struct hash_link *l = hash_first(h, hash); l; l = hash_next(l))
		n++;
	return n;
}

/* Links under one hash are one chain; others may share its bucket. */
TEST(hash_of_equals)
{
	static struct thing t[300];
	struct hash h = { 0 };
	unsigned left = 100;

	for (uint32_t i = 0; i < N(t); i++) {
		t[i].value = i;
		CHECK(hash_put(&h, &t[i].link, 5 + (i % 3 << 24)));
	}
	CHECK(count(&h, 5) == 100 && count(&h, 5 + (1 << 24)) == 100);
	CHECK(count(&h, 6) == 0 && count(&h, 5 + (3 << 24)) == 0);
	/* From both ends and the middle. */
	for (uint32_t i = 0; i < 150; i += 3) {
		hash_remove(&h, &t[i].link);
		hash_remove(&h, &t[297 - i].link);
		left -= 2;
		CHECK(count(&h, 5) == left && !find(&h, 5, i));
		CHECK(count(&h, 5 + (2 << 24)) == 100);
	}
	CHECK(left == 0);
	hash_fini(&h);
}

TEST(hash_without_memory)
{
	static struct thing t[100];
	struct hash h = { 0 };

	mem_set_limit(16);
	CHECK(!hash_put(&h, &t[0].link, 1));
	CHECK(h.n == 0 && !hash_first(&h, 1) && mem_used() == 0);
	mem_set_limit(100);
	/* It cannot grow beyond its first buckets, and works all the same. */
	for (uint32_t i = 0; i < N(t); i++) {
		t[i].value = i;
		CHECK(hash_put(&h, &t[i].link, i % 50));
	}
	for (uint32_t i = 0; i < N(t); i++)
		CHECK(find(&h, i % 50, i) == &t[i] && count(&h, i % 50) == 2);
	mem_set_limit(0);
	hash_remove(&h, &t[7].link);
	CHECK(hash_put(&h, &t[7].link, 7));
	CHECK(h.mask >= 15 && count(&h, 7) == 2);
	hash_fini(&h);
}

TEST(hash_is_keyed)
{
	uint32_t before = hash_bytes("topic", 5, 0);

	CHECK(hash_bytes("topic", 5, 0) == before);
	hash_seed();
	CHECK(hash_bytes("topic", 5, 0) != before);
}

/* Each byte, the length and the second part of the key count; the place in
 * memory does not. */
TEST(hash_of_every_byte)
{
	uint8_t a[40] = { 0 }, b[48] = { 0 };

	for (size_t n = 0; n < sizeof a; n++) {
		uint32_t h = hash_bytes(a, n, 3);

		CHECK(hash_bytes(b + 1 + n % 7, n, 3) == h);
		CHECK(hash_bytes(a, n, 4) != h);
		CHECK(hash_bytes(a, n + 1, 3) != h || n + 1 == sizeof a);
		for (size_t i = 0; i < n; i++) {
			a[i] = 1;
			CHECK(hash_bytes(a, n, 3) != h);
			a[i] = 0;
		}
	}
}

/* Names that differ little fill the buckets as random numbers would: of 4096
 * about 63 % get at least one of 4096 names. */
TEST(hash_spreads)
{
	static bool taken[4096];
	unsigned n = 0;
	char name[16];

	for (int i = 0; i < 4096; i++) {
		int len = snprintf(name, sizeof name, "sensor/%d", i);
		bool *b = &taken[hash_bytes(name, (size_t)len, 0) % 4096];

		n += !*b;
		*b = true;
	}
	CHECK(n > 2400 && n < 2800);
}

/* ---- mem ---- */

TEST(mem_is_booked)
{
	char *a = mem_alloc(100), *b = mem_zalloc(1000);
	size_t both = mem_used();

	CHECK(a && b && both >= 1100 && mem_peak() == both);
	for (int i = 0; i < 1000; i++)
		CHECK(b[i] == 0);
	memset(a, 'x', 100);
	a = mem_resize(a, 100, 5000);
	CHECK(a && a[0] == 'x' && a[99] == 'x');
	CHECK(mem_used() == both + 4900 && mem_peak() == mem_used());
	a = mem_resize(a, 5000, 10);
	CHECK(a && a[9] == 'x' && mem_used() == both - 90);
	CHECK(mem_peak() == both + 4900);
	mem_free(a, 10);
	mem_free(b, 1000);
	mem_free(NULL, 50);
	CHECK(mem_used() == 0);
	a = mem_resize(NULL, 0, 100);
	CHECK(a && mem_used() >= 100);
	mem_free(a, 100);
	CHECK(mem_used() == 0 && mem_peak() == both + 4900);
}

/* The limit that leaves n bytes for what stays: an eighth is kept for the rest. */
static size_t
limit_for(size_t n)
{
	size_t limit = n;

	while (limit - limit / 8 < n)
		limit++;
	return limit;
}

TEST(mem_keeps_an_eighth_for_what_passes)
{
	void *p;

	mem_set_limit(8000);
	CHECK(mem_fits(7000) && !mem_fits(7001) && !mem_alloc(7001));
	p = mem_alloc_passing(7500);
	CHECK(p && !mem_alloc_passing(500) && mem_limit() == 8000);
	mem_free(p, 7500);
	CHECK(mem_used() == 0);
}

TEST(mem_has_a_limit)
{
	char *a, *b;
	size_t block;

	CHECK(mem_fits(SIZE_MAX));
	a = mem_alloc(1000);
	block = mem_used();
	mem_set_limit(limit_for(2 * block));
	CHECK(mem_fits(block) && !mem_fits(block + 1));
	CHECK(!mem_alloc(1001) && !mem_zalloc(1001) && mem_used() == block);
	b = mem_zalloc(1000);
	CHECK(b && mem_used() == 2 * block && mem_fits(0) && !mem_fits(1));
	memset(b, 'x', 1000);
	CHECK(!mem_resize(b, 1000, 1001) && mem_used() == 2 * block);
	CHECK(b[999] == 'x');
	CHECK(!mem_resize(NULL, 0, 1));
	/* What is taken stays when the limit sinks, and may shrink. */
	mem_set_limit(limit_for(10));
	CHECK(!mem_fits(0) && !mem_alloc(0) && mem_used() == 2 * block);
	b = mem_resize(b, 1000, 500);
	CHECK(b && b[499] == 'x' && mem_used() == 2 * block - 500);
	mem_free(b, 500);
	mem_free(a, 1000);
	CHECK(mem_used() == 0 && mem_fits(10) && !mem_fits(11));
}

/* ---- msg ---- */

TEST(msg_is_a_copy)
{
	char topic[] = "a/b", payload[] = "hello";
	struct mqtt_publish p = { .topic = { (uint8_t *)topic, 3 },
	    .payload = { (uint8_t *)payload, 5 },
	    .props = STR("\x01\x01"), .qos = 2, .retain = true }, q;
	struct msg *m = msg_new(&p, MSG_NEVER);

	CHECK(m && msg_count() == 1 && msg_bytes() == 5);
	memset(topic, 'x', 3);
	memset(payload, 'x', 5);
	q = msg_publish(m, 0);
	CHECK(mqtt_str_eq(q.topic, STR("a/b")));
	CHECK(mqtt_str_eq(q.payload, STR("hello")));
	CHECK(mqtt_str_eq(q.props, STR("\x01\x01")));
	CHECK(q.qos == 2 && q.retain && !q.has_expiry && !q.dup && q.id == 0);
	CHECK(msg_weight(m) == 10 && !msg_expired(m, INT64_MAX - 1));
	CHECK(msg_ref(m) == m);
	msg_unref(m);
	CHECK(msg_count() == 1);
	msg_unref(m);
	msg_unref(NULL);
	CHECK(msg_count() == 0 && msg_bytes() == 0 && mem_used() == 0);
}

TEST(msg_of_nothing)
{
	struct mqtt_publish p = { .qos = 0 }, q;
	struct msg *m = msg_new(&p, MSG_NEVER);

	q = msg_publish(m, 0);
	CHECK(q.topic.len == 0 && q.payload.len == 0 && q.props.len == 0);
	msg_unref(m);
	mem_set_limit(8);
	CHECK(!msg_new(&p, MSG_NEVER) && msg_count() == 0 && mem_used() == 0);
}

/* [MQTT5-3.3.2-6]: what is left of the interval, in begun seconds. */
TEST(msg_expires)
{
	struct mqtt_publish p = { .topic = STR("t"), .has_expiry = true,
	    .expiry = 10 };
	int64_t due = msg_expiry(&p, 5000);
	struct msg *m = msg_new(&p, due);

	CHECK(due == 15000);
	CHECK(msg_publish(m, 5000).expiry == 10);
	CHECK(msg_publish(m, 5001).expiry == 10);
	CHECK(msg_publish(m, 6000).expiry == 9);
	CHECK(msg_publish(m, 14999).expiry == 1);
	CHECK(msg_publish(m, 15000).expiry == 0);
	CHECK(msg_publish(m, 99999).expiry == 0);
	CHECK(msg_publish(m, 99999).has_expiry);
	CHECK(!msg_expired(m, 15000) && msg_expired(m, 15001));
	msg_unref(m);
	p.expiry = UINT32_MAX;
	m = msg_new(&p, msg_expiry(&p, 1));
	CHECK(msg_publish(m, 1).expiry == UINT32_MAX);
	msg_unref(m);
	p.has_expiry = false;
	CHECK(msg_expiry(&p, 5000) == MSG_NEVER);
}
