/* faults - see faults.h. */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define WRAPPED(type, name, ...) \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)

/* Shared with the processes that are forked. */
static struct shared {
	atomic_flag lock;
	atomic_int calls;       /* of the name that is to fail */
	atomic_bool gated;
} *shared;

static char fail_name[32];
static int fail_from, fail_n, fail_errno;
static const char *gate, *trace;

__attribute__((constructor)) static void
faults_init(void)
{
	const char *fail = getenv("FAULTS_FAIL");

	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || (fail && sscanf(fail, "%31[^:]:%d:%d:%d",
	    fail_name, &fail_from, &fail_n, &fail_errno) != 4))
		abort();
	gate = getenv("FAULTS_GATE");
	trace = getenv("FAULTS_TRACE");
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
pid_t __real_fork(void);
pid_t __wrap_fork(void);

static void
note(char type, uint64_t ino, uint64_t off, const void *a, size_t na,
    const void *b, size_t nb)
{
	struct iovec iov[3];
	uint8_t head[25];
	uint32_t n1 = (uint32_t)na, n2 = (uint32_t)nb;
	int fd;

	if (!trace)
		return;
	head[0] = (uint8_t)type;
	memcpy(head + 1, &ino, 8);
	memcpy(head + 9, &off, 8);
	memcpy(head + 17, &n1, 4);
	memcpy(head + 21, &n2, 4);
	iov[0] = (struct iovec){ head, sizeof head };
	iov[1] = (struct iovec){ (void *)(uintptr_t)a, na };
	iov[2] = (struct iovec){ (void *)(uintptr_t)b, nb };
	fd = __real_open(trace, O_WRONLY | O_APPEND | O_CREAT, 0600);
	if (fd < 0 || writev(fd, iov, 3) != (ssize_t)(sizeof head + na + nb))
		abort();
	close(fd);
}

static uint64_t
inode(int fd)
{
	struct stat sb;

	return fstat(fd, &sb) < 0 ? 0 : sb.st_ino;
}

/* A call and its note are one step. */
static void
enter(void)
{
	while (trace && atomic_flag_test_and_set(&shared->lock))
		sched_yield();
}

static void
leave(void)
{
	int e = errno;

	if (trace)
		atomic_flag_clear(&shared->lock);
	errno = e;
}

static int
fails(const char *name)
{
	int n;

	if (strcmp(name, fail_name) != 0)
		return 0;
	n = atomic_fetch_add(&shared->calls, 1) + 1;
	if (n < fail_from || n >= fail_from + fail_n)
		return 0;
	errno = fail_errno;
	return 1;
}

void
faults_mark(uint32_t number)
{
	enter();
	note('a', 0, number, NULL, 0, NULL, 0);
	leave();
}

void
faults_gate(void)
{
	atomic_store(&shared->gated, true);
}

WRAPPED(ssize_t, pwrite, int fd, const void *p, size_t n, off_t off)
{
	ssize_t w;

	if (fails("pwrite"))
		return -1;
	enter();
	w = __real_pwrite(fd, p, n, off);
	if (w > 0)
		note('w', inode(fd), (uint64_t)off, p, (size_t)w, NULL, 0);
	leave();
	return w;
}

WRAPPED(ssize_t, pwritev, int fd, const struct iovec *iov, int n, off_t off)
{
	ssize_t w;
	size_t at = 0;

	if (fails("pwritev"))
		return -1;
	enter();
	w = __real_pwritev(fd, iov, n, off);
	for (int i = 0; w > 0 && i < n && at < (size_t)w; i++) {
		size_t len = iov[i].iov_len < (size_t)w - at ?
		    iov[i].iov_len : (size_t)w - at;

		note('w', inode(fd), (uint64_t)off + at, iov[i].iov_base, len,
		    NULL, 0);
		at += len;
	}
	leave();
	return w;
}

static int
synced(int fd, int (*sync)(int))
{
	int r;

	enter();
	r = sync(fd);
	if (r == 0)
		note('s', inode(fd), 0, NULL, 0, NULL, 0);
	leave();
	return r;
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);

int
__wrap_fdatasync(int fd)
{
	int wait;

	if (gate && atomic_load(&shared->gated)) {
		wait = __real_open(gate, O_RDONLY);
		close(wait);
	}
	return fails("fdatasync") ? -1 : synced(fd, __real_fdatasync);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);

int
__wrap_fsync(int fd)
{
	return fails("fsync") ? -1 : synced(fd, __real_fsync);
}

WRAPPED(int, ftruncate, int fd, off_t size)
{
	int r;

	if (fails("ftruncate"))
		return -1;
	enter();
	r = __real_ftruncate(fd, size);
	if (r == 0)
		note('z', inode(fd), (uint64_t)size, NULL, 0, NULL, 0);
	leave();
	return r;
}

WRAPPED(int, fallocate, int fd, int mode, off_t off, off_t len)
{
	int r;

	if (fails("fallocate"))
		return -1;
	enter();
	r = __real_fallocate(fd, mode, off, len);
	if (r == 0)
		note('z', inode(fd), (uint64_t)(off + len), NULL, 0, NULL, 0);
	leave();
	return r;
}

WRAPPED(int, rename, const char *from, const char *to)
{
	int r;

	if (fails("rename"))
		return -1;
	enter();
	r = __real_rename(from, to);
	if (r == 0)
		note('r', 0, 0, from, strlen(from), to, strlen(to));
	leave();
	return r;
}

WRAPPED(int, unlink, const char *path)
{
	int r;

	enter();
	r = __real_unlink(path);
	if (r == 0)
		note('u', 0, 0, path, strlen(path), NULL, 0);
	leave();
	return r;
}

int
__wrap_open(const char *path, int flags, ...)
{
	va_list ap;
	mode_t mode = 0;
	int fd;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	if (fails("open"))
		return -1;
	enter();
	fd = __real_open(path, flags, mode);
	if (fd >= 0 && flags & O_CREAT)
		note('c', inode(fd), flags & O_TRUNC ? 1 : 0, path,
		    strlen(path), NULL, 0);
	leave();
	return fd;
}

WRAPPED(ssize_t, pread, int fd, void *p, size_t n, off_t off)
{
	return fails("pread") ? -1 : __real_pread(fd, p, n, off);
}

void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);

void *
__wrap_realloc(void *p, size_t n)
{
	return fails("realloc") ? NULL : __real_realloc(p, n);
}

pid_t
__wrap_fork(void)
{
	return fails("fork") ? -1 : __real_fork();
}
