/* Fuzzer of store's reading: arbitrary bytes as a journal, a snapshot, or a
 * directory of both. The first byte says how to cut the rest into files; the
 * checksums are made right, or nothing would get past them. */
#include "store.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64];

static bool
on_record(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	static volatile uint8_t sink;

	for (uint32_t i = 0; i < n; i++)
		sink ^= body[i];
	assert(type > 0 && type <= STORE_TYPE_MAX);
	return ++*(unsigned *)arg < 10000;
}

static void
remove_dir(void)
{
	DIR *d = opendir(dir);
	struct dirent *de;

	while (d && (de = readdir(d)))
		unlinkat(dirfd(d), de->d_name, 0);
	if (d)
		closedir(d);
	rmdir(dir);
}

static void
put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t
get32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	    (uint32_t)p[3] << 24;
}

/* Makes the header and the checksums of p right, as far as the lengths in it
 * lead; every 16th is left wrong. */
static void
mend(uint8_t *p, size_t n, uint8_t kind, uint32_t no)
{
	size_t at, len;

	if (n < 32)
		return;
	memcpy(p, "MIDGEJNL", 8);
	put32(p + 8, 1);
	put32(p + 12, kind);
	put32(p + 16, no);
	put32(p + 28, store_crc(0, p, 28));
	for (at = 32; at + 9 <= n; at += 9 + len) {
		p[at + 6] = 0;  /* lengths that can be inside */
		p[at + 7] &= 0x80;
		len = get32(p + at + 4) & 0x7fffffff;
		if (len > n - at - 9)
			return;
		if (p[at] % 16)
			put32(p + at, get32(p + 20) ^
			    store_crc(0, p + at + 4, 5 + len));
	}
}

static void
put_file(const char *name, const uint8_t *p, size_t n)
{
	char path[128];
	int fd;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert(fd >= 0 && write(fd, p, n) == (ssize_t)n);
	close(fd);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t buf[3][65536];
	static const char *const names[3] = { "t.journal-00000001",
	    "t.journal-00000002", "t.snapshot-00000002" };
	struct store_report rp;
	unsigned n = 0;
	size_t part;
	char path[128];

	if (!dir[0]) {
		snprintf(dir, sizeof dir, "/dev/shm/fuzz_store.%ld",
		    (long)getpid());
		assert(mkdir(dir, 0700) == 0);
		atexit(remove_dir);
	}
	if (size < 2 || size > 3 * 65536)
		return 0;
	part = (size - 1) / 3;
	for (int i = 0; i < 3; i++) {
		memcpy(buf[i], data + 1 + (size_t)i * part, part);
		if (data[0] & 1 << i)
			mend(buf[i], part, i == 2 ? 2 : 1, i ? 2 : 1);
		put_file(names[i], buf[i], data[0] & 16 << i ? part : 0);
		snprintf(path, sizeof path, "%s/%s", dir, names[i]);
		n = 0;
		store_walk(path, NULL, on_record, &n, &rp);
		assert(rp.records == n);
	}
	n = 0;
	store_walk(dir, NULL, on_record, &n, &rp);
	assert(rp.records == n);
	return 0;
}
