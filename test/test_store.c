/* Tests of store: what is appended comes back, in order, whole or not at all,
 * whatever happens to the files. */
#include "check.h"
#include "log.h"
#include "mem.h"
#include "numbers.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

#define SEGMENT 8192

/* ---- a directory that is removed at the end ---- */

static char dir[64];
static pid_t owner;

static int
remove_one(const char *path, const struct stat *sb, int type, struct FTW *f)
{
	(void)sb, (void)type, (void)f;
	return remove(path);
}

static void
remove_dir(void)
{
	if (getpid() == owner)
		nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void
make_dir(void)
{
	struct log_config quiet = { .types = 0 };

	log_open(&quiet);
	owner = getpid();
	/* In memory if possible: the syncs need no disk to be slow. */
	snprintf(dir, sizeof dir, "%s/test_store.XXXXXX",
	    access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	CHECK(mkdtemp(dir));
	atexit(remove_dir);
}

static int64_t
clock_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct store_config
config(struct numbers *s)
{
	return (struct store_config){ .dir = dir, .name = "t",
	    .segment_size = SEGMENT, .dump = numbers_dump, .dump_arg = s };
}

static bool
opened(struct store *st, struct numbers *s, struct store_report *rp)
{
	struct store_config c = config(s);
	bool good;

	*s = (struct numbers){ .fail_at = s->fail_at };
	good = store_open(st, &c, numbers_read, s, rp);
	CHECK(!s->wrong);
	return good;
}

static void
turn(struct store *st, int64_t now_ms)
{
	int64_t due;

	store_commit(st, now_ms);
	due = store_due(st);
	if (due > now_ms && store_fd(st) >= 0) {
		struct pollfd p = { .fd = store_fd(st), .events = POLLIN };

		/* Not for as long as a clock that a test moves would have. */
		poll(&p, 1, due - now_ms > 50 ? 50 : (int)(due - now_ms));
	}
	store_event(st);
}

static void
until_durable(struct store *st)
{
	while (store_durable(st) < store_position(st))
		turn(st, clock_ms());
}

static void
add(struct store *st, struct numbers *s, uint32_t n)
{
	for (; n > 0; n--) {
		CHECK(numbers_append(st, s->last + 1, STORE_NOW));
		numbers_set(s, s->last + 1);
	}
}

static void
compact_now(struct store *st)
{
	while (st->snapshot_no)
		turn(st, clock_ms());
	store_compact(st);
	while (st->compact_wanted || st->snapshot_no)
		turn(st, clock_ms());
}

/* ---- files ---- */

/* The last file whose name has part in it; false: there is none. */
static bool
file_with(const char *part, char out[PATH_MAX])
{
	DIR *d = opendir(dir);
	struct dirent *de;
	char best[NAME_MAX + 1] = "";

	CHECK(d);
	while ((de = readdir(d)))
		if (strstr(de->d_name, part) && strcmp(de->d_name, best) > 0)
			strcpy(best, de->d_name);
	closedir(d);
	snprintf(out, PATH_MAX, "%s/%s", dir, best);
	return best[0];
}

static size_t
read_file(const char *path, uint8_t *buf, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size);

	CHECK(n >= 0);
	close(fd);
	return (size_t)n;
}

static void
write_file(const char *path, const uint8_t *buf, size_t n)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && write(fd, buf, n) == (ssize_t)n);
	close(fd);
}

static bool
count_one(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	(void)type, (void)body, (void)n;
	(*(uint32_t *)arg)++;
	return true;
}

/* ---- tests ---- */

TEST(crc_is_castagnoli)
{
	uint8_t zeros[32] = { 0 };

	CHECK(store_crc(0, "123456789", 9) == 0xe3069283);
	CHECK(store_crc(0, zeros, 32) == 0x8a9136aa);
	CHECK(store_crc(store_crc(0, "1234", 4), "56789", 5) == 0xe3069283);
}

TEST(what_is_appended_comes_back)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;

	make_dir();
	CHECK(opened(&st, &s, &rp) && s.n == 0 && !rp.damage);
	add(&st, &s, 10);
	CHECK(store_durable(&st) == 0 && store_position(&st) > 0);
	until_durable(&st);
	CHECK(store_due(&st) == STORE_NEVER);
	add(&st, &s, 5);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.n == 15 && s.last == 15);
	CHECK(rp.records == 15 && !rp.damage);
	add(&st, &s, 1);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.last == 16 && !rp.damage);
	CHECK(store_close(&st));
	CHECK(mem_used() == 0);
}

TEST(many_segments_and_snapshots)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	char path[PATH_MAX];

	make_dir();
	CHECK(opened(&st, &s, &rp));
	for (int i = 0; i < 300; i++) {
		add(&st, &s, 7);
		until_durable(&st);
	}
	compact_now(&st);
	CHECK(file_with(".snapshot-0", path));
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.last == 2100 && !rp.damage);
	CHECK(s.n == NUMBERS_ALIVE);
	CHECK(store_close(&st));
	CHECK(mem_used() == 0);
}

TEST(a_killed_broker_loses_only_what_was_not_written)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	int status;
	pid_t pid;

	make_dir();
	pid = fork();
	if (pid == 0) {
		CHECK(opened(&st, &s, &rp));
		add(&st, &s, 100);
		until_durable(&st);
		add(&st, &s, 100);
		raise(SIGKILL);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
	CHECK(opened(&st, &s, &rp) && s.last == 100 && !rp.damage);
	CHECK(store_close(&st));
}

TEST(a_group_is_whole_or_not_there)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;

	make_dir();
	CHECK(opened(&st, &s, &rp));
	CHECK(numbers_append(&st, 1, STORE_NOW));
	until_durable(&st);
	CHECK(numbers_append(&st, 2, STORE_MORE));
	CHECK(numbers_append(&st, 3, STORE_MORE));
	CHECK(store_begin(&st, 1, 5000));       /* in another block */
	store_drop(&st);
	CHECK(numbers_append(&st, 2, STORE_MORE));
	CHECK(numbers_append(&st, 3, STORE_NOW));
	CHECK(numbers_append(&st, 4, STORE_MORE));
	store_drop(&st);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.last == 3 && !rp.damage);
	CHECK(store_close(&st));
	CHECK(mem_used() == 0);
}

TEST(one_record_longer_than_a_segment)
{
	struct store_report rp;
	struct numbers s = { 0 };
	struct store_config c = config(&s);
	struct store st;
	uint32_t n = 0;
	uint8_t *p;

	make_dir();
	CHECK(store_open(&st, &c, count_one, &n, &rp) && n == 0);
	for (int i = 0; i < 3; i++) {
		p = store_begin(&st, 1, 3000000);
		CHECK(p);
		memset(p, 'a' + i, 3000000);
		store_end(&st, STORE_NOW);
		until_durable(&st);
	}
	CHECK(!store_begin(&st, 1, STORE_BODY_MAX + 1));
	CHECK(store_close(&st));
	CHECK(store_open(&st, &c, count_one, &n, &rp) && n == 3);
	CHECK(!rp.damage && rp.bytes == 3 * 3000009);
	CHECK(store_close(&st));
}

TEST(pending_bytes_have_a_limit)
{
	struct numbers s = { 0 };
	struct store_config c = config(&s);
	struct store st;
	uint32_t n = 0;

	make_dir();
	c.pending_max = 4000;
	CHECK(store_open(&st, &c, numbers_read, &s, NULL));
	while (numbers_append(&st, n + 1, STORE_NOW))
		n++;
	CHECK(store_position(&st) <= 4000 && store_position(&st) > 3700);
	until_durable(&st);
	CHECK(numbers_append(&st, ++n, STORE_NOW));
	until_durable(&st);
	mem_set_limit(mem_used() + 1);
	CHECK(!numbers_append(&st, n + 1, STORE_NOW));
	mem_set_limit(0);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, NULL) && s.n == n);
	CHECK(store_close(&st));
}

TEST(lazy_records_wait_and_syncs_keep_their_distance)
{
	struct numbers s = { 0 };
	struct store_config c = config(&s);
	struct store st;
	uint64_t pos;

	make_dir();
	c.lazy_ms = 1000;
	c.sync_interval_ms = 300;
	CHECK(store_open(&st, &c, numbers_read, &s, NULL));
	CHECK(store_due(&st) == STORE_NEVER);
	CHECK(numbers_append(&st, 1, STORE_LAZY));
	store_commit(&st, 5000);
	CHECK(store_due(&st) == 6000);
	store_commit(&st, 5999);
	CHECK(st.written == 0);
	store_commit(&st, 6000);
	CHECK(st.written == store_position(&st));
	until_durable(&st);
	pos = store_position(&st);
	CHECK(numbers_append(&st, 2, STORE_NOW));
	store_commit(&st, 6100);
	CHECK(st.written == pos && store_due(&st) == 6300);
	store_commit(&st, 6300);
	CHECK(st.written == store_position(&st));
	CHECK(store_close(&st));
}

TEST(a_start_without_changes_takes_no_space)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	char path[PATH_MAX];

	make_dir();
	for (int i = 0; i < 5; i++) {
		CHECK(opened(&st, &s, &rp) && !rp.damage);
		CHECK(store_close(&st));
	}
	CHECK(!file_with(".spare", path) && !file_with(".damaged", path));
	CHECK(file_with(".journal", path) && strstr(path, "-00000005"));
}

TEST(two_brokers)
{
	struct numbers s = { 0 };
	struct store st, other;
	int status;
	pid_t pid;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	pid = fork();
	if (pid == 0)
		_exit(opened(&other, &s, NULL));
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	add(&st, &s, 3);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, NULL) && s.last == 3);
	CHECK(store_close(&st));
}

TEST(no_memory_for_what_is_read)
{
	struct numbers s = { 0 };
	struct store st;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	add(&st, &s, 10);
	CHECK(store_close(&st));
	s.fail_at = 5;
	CHECK(!opened(&st, &s, NULL));
	s.fail_at = 0;
	CHECK(opened(&st, &s, NULL) && s.last == 10);
	CHECK(store_close(&st));
}

TEST(what_is_not_ours_is_not_touched)
{
	const char *names[] = { "t.journal-00000001", "t.snapshot-00000007",
	    "t.spare-00000001", "t.journal-new", "t.snapshot-new" };
	const uint8_t text[] = "somebody else's notes, which are dear to them";
	uint8_t back[100];
	struct numbers s = { 0 };
	struct store st;
	char path[PATH_MAX];

	make_dir();
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, names[i]);
		write_file(path, text, sizeof text);
		CHECK(!opened(&st, &s, NULL));
		CHECK(read_file(path, back, sizeof back) == sizeof text);
		CHECK(memcmp(back, text, sizeof text) == 0);
		unlink(path);
	}
	snprintf(path, sizeof path, "%s/t.journal-00000001", dir);
	CHECK(mkfifo(path, 0600) == 0);
	CHECK(!opened(&st, &s, NULL));
	unlink(path);
	/* Names that only look like ours are nobody's business. */
	snprintf(path, sizeof path, "%s/t.journal-1.txt", dir);
	write_file(path, text, sizeof text);
	CHECK(opened(&st, &s, NULL));
	CHECK(store_close(&st));
	CHECK(read_file(path, back, sizeof back) == sizeof text);
}

/* A journal of records 1 to 40 with groups of 1 to 4; where[i] is where the
 * group ends that record i belongs to. */
static size_t
recorded(uint8_t *buf, size_t size, char path[PATH_MAX], size_t where[41])
{
	struct numbers s = { 0 };
	struct store st;
	size_t base = 32 + 9 + 12;
	uint32_t open = 1;

	CHECK(opened(&st, &s, NULL));
	for (uint32_t i = 1; i <= 40; i++) {
		bool more = i % 7 != 0 && i % 2 != 0;

		CHECK(numbers_append(&st, i, more ? STORE_MORE : STORE_NOW));
		for (; !more && open <= i; open++)
			where[open] = base + store_position(&st);
	}
	CHECK(store_close(&st));
	CHECK(file_with(".journal", path));
	return read_file(path, buf, size);
}

static uint32_t
records_before(const size_t where[41], size_t at)
{
	uint32_t n = 0;

	while (n < 40 && where[n + 1] <= at)
		n++;
	return n;
}

static bool
zeros(const uint8_t *p, size_t n)
{
	while (n > 0 && *p == 0)
		p++, n--;
	return n == 0;
}

TEST(cut_at_every_byte)
{
	uint8_t buf[SEGMENT];
	size_t where[41], n;
	struct store_report rp;
	char path[PATH_MAX];

	make_dir();
	n = recorded(buf, sizeof buf, path, where);
	CHECK(n == SEGMENT);
	for (size_t at = 0; at <= n; at += at < where[40] + 9 ? 1 : 61) {
		struct numbers s = { 0 };
		uint32_t want = records_before(where, at);

		write_file(path, buf, at);
		CHECK(store_walk(dir, NULL, numbers_read, &s, &rp));
		CHECK(!s.wrong && s.n == want && s.last == want);
		CHECK(rp.records == want);
		/* A whole end is not damage, anything else is. */
		if (at >= where[40])
			CHECK(!rp.damage);
		else if (want > 0 && !zeros(buf + where[want],
		    at - where[want]))          /* a salted frame may begin so */
			CHECK(rp.damage && rp.offset == where[want]);
	}
}

TEST(damage_at_every_byte)
{
	uint8_t buf[SEGMENT];
	size_t where[41], n;
	struct store_report rp;
	char path[PATH_MAX];

	make_dir();
	n = recorded(buf, sizeof buf, path, where);
	for (size_t at = 0; at < n; at += at < where[40] + 9 ? 1 : 61) {
		for (int bit = 3; bit < 9; bit += 5) {
			struct numbers s = { 0 };
			uint32_t want = records_before(where, at);
			uint8_t was = buf[at];

			buf[at] ^= (uint8_t)(bit == 8 ? 0xff : 1 << bit);
			write_file(path, buf, n);
			buf[at] = was;
			CHECK(store_walk(dir, NULL, numbers_read, &s, &rp));
			CHECK(!s.wrong && s.n == want && s.last == want);
			if (want > 0 && want < 40)
				CHECK(rp.damage && rp.offset == where[want]);
			/* The last frame is followed by zeros, then by
			 * anything. */
			if (at >= where[40] + 9)
				CHECK(!rp.damage);
		}
	}
}

/* Start, go on, start again, for a sample of damages. */
TEST(life_goes_on_after_damage)
{
	uint8_t buf[SEGMENT], rest[SEGMENT];
	size_t where[41], n;
	struct store_report rp;
	char path[PATH_MAX], aside[PATH_MAX];

	make_dir();
	n = recorded(buf, sizeof buf, path, where);
	for (size_t at = 0; at < where[40]; at += 97) {
		struct numbers s = { 0 };
		struct store st;
		uint32_t want = records_before(where, at);

		remove_dir();
		CHECK(mkdir(dir, 0700) == 0);
		buf[at] ^= 0x10;
		write_file(path, buf, n);
		buf[at] ^= 0x10;
		CHECK(opened(&st, &s, &rp));
		CHECK(s.last == want && rp.damage);
		CHECK(file_with(".damaged-1", aside));
		CHECK(store_close(&st));
		CHECK(opened(&st, &s, &rp));
		CHECK(s.last == want && !rp.damage);
		CHECK(!file_with(".damaged-2", path));
		snprintf(path, sizeof path, "%s/t.journal-00000001", dir);
		CHECK(read_file(aside, rest, sizeof rest) > 0);
		add(&st, &s, 100);
		CHECK(store_close(&st));
		CHECK(opened(&st, &s, &rp));
		CHECK(s.last == want + 100 && !rp.damage);
		add(&st, &s, 1);
		CHECK(store_close(&st));
		CHECK(opened(&st, &s, &rp) && s.last == want + 101);
		CHECK(store_close(&st));
	}
}

TEST(a_damaged_snapshot_keeps_its_beginning)
{
	uint8_t buf[SEGMENT];
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	char path[PATH_MAX];
	size_t n;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	add(&st, &s, 50);
	compact_now(&st);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.n == NUMBERS_ALIVE && s.last == 50);
	CHECK(store_close(&st));
	CHECK(file_with(".snapshot-", path));
	n = read_file(path, buf, sizeof buf);
	buf[n / 2] ^= 1;
	write_file(path, buf, n);
	CHECK(opened(&st, &s, &rp) && rp.damage && strstr(path, rp.file));
	CHECK(s.n > 5 && s.n < 15 && s.first == 31);
	/* Nothing counts as durable before there is a new snapshot. */
	st.c.dump = NULL;
	add(&st, &s, 10);
	while (st.durable < store_position(&st))
		turn(&st, clock_ms());
	CHECK(store_durable(&st) == 0);
	st.c.dump = numbers_dump;
	CHECK(store_close(&st) && !st.orphan);
	n = s.last;
	CHECK(opened(&st, &s, &rp) && s.last == n && !rp.damage);
	CHECK(store_close(&st));
}

TEST(the_first_file_missing)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	char path[PATH_MAX];

	make_dir();
	CHECK(opened(&st, &s, NULL));
	add(&st, &s, 200);
	CHECK(store_close(&st));
	snprintf(path, sizeof path, "%s/t.journal-00000001", dir);
	CHECK(unlink(path) == 0);
	CHECK(opened(&st, &s, &rp) && s.n == 0);
	CHECK(file_with(".damaged-", path));
	add(&st, &s, 3);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.last == 3 && !rp.damage);
	CHECK(store_close(&st));
}

/* What changed without a record holds up all that comes behind it, until a
 * snapshot has it; one that was begun before does not do. */
TEST(a_state_that_is_incomplete)
{
	struct numbers s = { 0 };
	struct store st;
	uint64_t before;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	add(&st, &s, 30);
	until_durable(&st);
	store_compact(&st);
	while (!st.snapshot_no)
		turn(&st, clock_ms());
	before = store_durable(&st);
	store_incomplete(&st);
	add(&st, &s, 3);
	while (st.snapshot_no) {
		CHECK(store_durable(&st) == before);
		turn(&st, clock_ms());
	}
	CHECK(store_durable(&st) == before && st.compact_wanted);
	until_durable(&st);
	CHECK(!st.compact_wanted && !st.snapshot_no);
	CHECK(store_close(&st));
}

static bool
dump_fails(void *arg, struct store *st)
{
	(void)arg, (void)st;
	return false;
}

TEST(a_snapshot_that_fails_is_tried_again_later)
{
	struct numbers s = { 0 };
	struct store st;
	int64_t now;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	st.c.dump = dump_fails;
	add(&st, &s, 30);
	store_compact(&st);
	do {
		now = clock_ms();
		turn(&st, now);
	} while (st.compact_after_ms == 0);
	CHECK(st.compact_wanted && !st.snapshot_no && !st.child);
	while (store_due(&st) < st.compact_after_ms)
		turn(&st, clock_ms());
	CHECK(store_due(&st) == st.compact_after_ms);
	st.c.dump = numbers_dump;
	while (st.compact_wanted || st.snapshot_no)
		turn(&st, st.compact_after_ms + clock_ms());
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, NULL) && s.last == 30 && s.n == NUMBERS_ALIVE);
	CHECK(store_close(&st));
}

TEST(the_helper_is_killed_now_and_then)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	for (int i = 0; i < 40; i++) {
		add(&st, &s, 5);
		for (int k = 0; k < i % 5; k++)
			turn(&st, clock_ms());
		if (st.helper_fd >= 0)
			CHECK(kill(st.helper, SIGKILL) == 0);
		add(&st, &s, 5);
		/* Its end is seen when it is; the clock makes retries due. */
		for (int64_t t = 1; store_durable(&st) < store_position(&st);
		    t++)
			turn(&st, clock_ms() + t * 70000);
	}
	CHECK(!store_failed(&st));
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, &rp) && s.last == 400 && !rp.damage);
	CHECK(store_close(&st));
	CHECK(mem_used() == 0);
}

TEST(the_directory_is_taken_away)
{
	struct numbers s = { 0 };
	struct store_report rp;
	struct store st;
	int64_t now = 0;
	uint64_t held;

	make_dir();
	CHECK(opened(&st, &s, NULL));
	add(&st, &s, 30);
	until_durable(&st);
	remove_dir();
	/* A file that is gone can still be written: a new one is needed. */
	while (!store_failed(&st)) {
		add(&st, &s, 10);
		turn(&st, now += 1000);
	}
	held = store_durable(&st);
	for (int i = 0; i < 5; i++)
		turn(&st, now += 70000);
	CHECK(store_failed(&st) && store_durable(&st) == held);
	CHECK(mkdir(dir, 0700) == 0);
	while (store_durable(&st) < store_position(&st))
		turn(&st, now += 70000);
	CHECK(!store_failed(&st));
	CHECK(store_close(&st));
	held = s.last;
	CHECK(opened(&st, &s, &rp) && s.last == held && !rp.damage);
	CHECK(s.last - s.first == NUMBERS_ALIVE - 1);
	CHECK(store_close(&st));
}

TEST(nothing_spins_while_the_disk_is_slow)
{
	struct numbers s = { 0 };
	struct store st;
	int64_t now = clock_ms();

	make_dir();
	CHECK(opened(&st, &s, NULL));
	CHECK(kill(st.helper, SIGSTOP) == 0);
	add(&st, &s, 30);
	for (int i = 0; i < 5; i++) {
		store_commit(&st, now);
		store_event(&st);
	}
	CHECK(store_durable(&st) == 0 && store_due(&st) == STORE_NEVER);
	add(&st, &s, 200);      /* more than the segment holds */
	store_compact(&st);
	for (int i = 0; i < 5; i++) {
		store_commit(&st, now);
		store_event(&st);
	}
	CHECK(store_durable(&st) == 0 && store_due(&st) == STORE_NEVER);
	CHECK(kill(st.helper, SIGCONT) == 0);
	until_durable(&st);
	compact_now(&st);
	while (st.preparing)
		turn(&st, now);
	CHECK(store_due(&st) == STORE_NEVER);
	CHECK(store_close(&st));
	CHECK(opened(&st, &s, NULL) && s.last == 230);
	CHECK(store_close(&st));
}
