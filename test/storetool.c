/* storetool - store and mosqdb for the tests in Python.
 *
 *	storetool run DIR N SEED    opens the journal in DIR, adds N numbers
 *	                            (numbers.h) in groups, closes it
 *	storetool check             reads names of directories, says for each
 *	                            which numbers are in the journal there
 *	storetool bench DIR N SIZE SYNCS    how fast it is
 *	storetool mosqdb FILE       prints a mosquitto.db
 *
 * run is linked with test/faults.c in place of the calls that touch the disk,
 * and moves its clock by itself, a second per turn: nothing waits for time.
 */
#include "faults.h"
#include "log.h"
#include "mosqdb.h"
#include "numbers.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SEGMENT 8192

/* ---- run ---- */

/* Numbers 1 and 2, 6 and 7, ... are followed by more of their group. */
static bool
more(uint32_t i)
{
	return i % 5 == 1 || i % 5 == 2;
}

struct run {
	struct store st;
	struct numbers s;
	uint32_t end;           /* the last number that is to be added */
	uint32_t acked;
	uint64_t waiting[4096]; /* positions after each number, from acked on */
	int64_t now_ms;
	uint32_t turns;
	uint32_t idle;          /* turns since the last was acknowledged */
};

static void
add(struct run *r, uint32_t n)
{
	uint32_t i = r->s.last + 1;

	if (store_failed(&r->st))
		return;
	for (; n > 0 && i <= r->end; n--, i++) {
		while (more(i))
			numbers_append(&r->st, i++, STORE_MORE);
		if (!numbers_append(&r->st, i, i % 11 ? STORE_NOW : STORE_LAZY))
			abort();
		while (r->s.last < i) {
			numbers_set(&r->s, r->s.last + 1);
			r->waiting[r->s.last % 4096] = store_position(&r->st);
		}
	}
}

static void
acknowledge(struct run *r)
{
	uint32_t was = r->acked;

	while (r->acked < r->s.last && r->waiting[(r->acked + 1) % 4096] <=
	    store_durable(&r->st))
		r->acked++;
	r->idle++;
	if (r->acked == was)
		return;
	r->idle = 0;
	faults_mark(r->acked);
	printf("acked %u\n", r->acked);
}

static void
turn(struct run *r)
{
	struct pollfd p = { .fd = store_fd(&r->st), .events = POLLIN };
	int64_t due;

	store_commit(&r->st, r->now_ms += 1000);
	due = store_due(&r->st);
	if (p.fd >= 0 && due > r->now_ms)
		poll(&p, 1, 5);
	store_event(&r->st);
	acknowledge(r);
	if (++r->turns == 50 && r->acked == 0)
		puts("50 turns");
}

static int
run(const char *dir, uint32_t n, unsigned seed)
{
	static struct run r;
	struct store_config c = { .dir = dir, .name = "t",
	    .segment_size = SEGMENT, .lazy_ms = 3000, .dump = numbers_dump,
	    .dump_arg = &r.s };

	srand(seed);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!store_open(&r.st, &c, numbers_read, &r.s, NULL))
		return 2;
	r.acked = r.s.last;
	r.end = r.s.last + n;
	while (more(r.end))
		r.end++;
	printf("found %u %u\n", r.s.last, r.s.wrong);
	faults_gate();
	while (r.acked < r.end && r.idle < 300) {
		add(&r, (unsigned)rand() % 4);
		if (rand() % 40 == 0)
			store_compact(&r.st);
		turn(&r);
	}
	printf("trouble %d\n", store_failed(&r.st));
	printf("closed %d\n", store_close(&r.st));
	log_close();
	return 0;
}

/* ---- check ---- */

static int
check(void)
{
	char line[4096];
	struct store_report rp;
	bool good;

	while (fgets(line, sizeof line, stdin)) {
		struct numbers s = { 0 };

		line[strcspn(line, "\n")] = '\0';
		good = store_walk(line, "t", numbers_read, &s, &rp) &&
		    !s.wrong && !more(s.last);
		printf("%s %u %u %s\n", good ? "good" : "bad", s.first, s.last,
		    rp.damage ? rp.damage : "-");
	}
	return 0;
}

/* ---- bench ---- */

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool
count(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	(void)type, (void)body, (void)n;
	(*(uint32_t *)arg)++;
	return true;
}

static void
wait_durable(struct store *st)
{
	struct pollfd p = { .events = POLLIN };

	while (store_durable(st) < store_position(st)) {
		store_commit(st, 1);
		p.fd = store_fd(st);
		if (store_due(st) > 1)
			poll(&p, 1, -1);
		store_event(st);
	}
}

static void
bench_add(struct store *st, size_t size)
{
	uint8_t *p = store_begin(st, 1, size);

	if (!p)
		abort();
	memset(p, 'x', size);
	store_end(st, STORE_NOW);
}

static int
bench(const char *dir, uint32_t n, size_t size, uint32_t syncs)
{
	struct store_config c = { .dir = dir, .name = "t",
	    .pending_max = 64u << 20 };
	struct store_report rp;
	struct store st;
	uint32_t got = 0;
	double t;

	if (!store_open(&st, &c, count, &got, &rp))
		return 2;
	t = seconds();
	for (uint32_t i = 0; i < n; i++)
		bench_add(&st, size);
	wait_durable(&st);
	printf("%u records of %zu bytes appended in %.3f s\n", n, size,
	    seconds() - t);
	t = seconds();
	for (uint32_t i = 0; i < syncs; i++) {
		bench_add(&st, size);
		wait_durable(&st);
	}
	printf("%u commits of one: %.1f us each\n", syncs,
	    (seconds() - t) * 1e6 / syncs);
	store_close(&st);
	t = seconds();
	if (!store_open(&st, &c, count, &got, &rp))
		return 2;
	printf("%u records read in %.3f s\n", got, seconds() - t);
	store_close(&st);
	return 0;
}

/* ---- mosqdb ---- */

static bool
print_client(void *arg, const struct mosqdb_client *c)
{
	(void)arg;
	printf("client %.*s user %.*s expires %lld interval %u mid %u\n",
	    (int)c->id.len, c->id.p, (int)c->user.len, c->user.p,
	    (long long)c->expires, c->expiry, c->last_mid);
	return true;
}

static bool
print_subscription(void *arg, const struct mosqdb_subscription *s)
{
	(void)arg;
	printf("subscription %.*s %.*s qos %u nolocal %d rap %d id %u\n",
	    (int)s->id.len, s->id.p, (int)s->filter.filter.len,
	    s->filter.filter.p, s->filter.qos, s->filter.no_local,
	    s->filter.retain_as_published, s->subid);
	return true;
}

static bool
print_message(void *arg, const struct mosqdb_message *m)
{
	(void)arg;
	printf("message %llx %.*s payload %.*s qos %u retain %d expires %lld "
	    "props ", (unsigned long long)m->store_id, (int)m->p.topic.len,
	    m->p.topic.p, (int)m->p.payload.len, m->p.payload.p, m->p.qos,
	    m->p.retain, (long long)m->expires);
	for (uint32_t i = 0; i < m->p.props.len; i++)
		printf("%02x", m->p.props.p[i]);
	puts("");
	return true;
}

static bool
print_client_message(void *arg, const struct mosqdb_client_message *m)
{
	(void)arg;
	printf("queued %s %.*s %llx mid %u qos %u state %u dup %d retain %d",
	    m->outgoing ? "to" : "from", (int)m->id.len, m->id.p,
	    (unsigned long long)m->store_id, m->mid, m->qos, m->state, m->dup,
	    m->retain);
	for (uint32_t i = 0; i < m->n_subids; i++)
		printf(" id %u", m->subids[i]);
	puts("");
	return true;
}

static bool
print_retained(void *arg, uint64_t store_id)
{
	(void)arg;
	printf("retained %llx\n", (unsigned long long)store_id);
	return true;
}

static int
print_mosqdb(const char *path)
{
	const struct mosqdb_calls calls = { .client = print_client,
	    .subscription = print_subscription, .message = print_message,
	    .client_message = print_client_message,
	    .retained = print_retained };
	struct mosqdb_report rp;
	enum mosqdb_result r = mosqdb_read(path, &calls, &rp);

	printf("result %d version %u offset %llu skipped %u %s\n", r,
	    rp.version, (unsigned long long)rp.offset, rp.skipped,
	    rp.why ? rp.why : "-");
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "run") == 0)
		return run(argv[2], (uint32_t)atoi(argv[3]),
		    (unsigned)atoi(argv[4]));
	if (argc == 2 && strcmp(argv[1], "check") == 0)
		return check();
	if (argc == 6 && strcmp(argv[1], "bench") == 0)
		return bench(argv[2], (uint32_t)atoi(argv[3]),
		    (size_t)atoi(argv[4]), (uint32_t)atoi(argv[5]));
	if (argc == 3 && strcmp(argv[1], "mosqdb") == 0)
		return print_mosqdb(argv[2]);
	fprintf(stderr, "see test/storetool.c\n");
	return 2;
}
