/* disk - a shim (LD_PRELOAD) that makes the disk slow or bad and moves the
 * clock, for a broker that is not built for it. Beside it in the tests:
 * disk.py. The folder $DISK_TRICKS says what is to happen at the moment:
 *
 *   slow        milliseconds that each fdatasync takes
 *   hold        fdatasync waits while this file is there
 *   syncs       gets a byte per fdatasync that has begun
 *   CALL        errno that this call returns: fdatasync, fsync, pwrite,
 *               pwritev, fallocate
 *
 * $DISK_CLOCK: seconds by which time() is off.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The number in a file of the folder; -1: it is not there. */
static int
trick(const char *name)
{
	const char *dir = getenv("DISK_TRICKS");
	char path[512], text[16] = "";
	ssize_t n;
	int fd;

	if (!dir)
		return -1;
	snprintf(path, sizeof path, "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	return n > 0 ? atoi(text) : 0;
}

static int
fails(const char *call)
{
	int error = trick(call);

	if (error <= 0)
		return 0;
	errno = error;
	return 1;
}

static void
pause_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

static void
count_sync(void)
{
	const char *dir = getenv("DISK_TRICKS");
	char path[512];
	int fd;

	snprintf(path, sizeof path, "%s/syncs", dir ? dir : "");
	fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "s", 1) < 0)
		abort();
	close(fd);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int
fdatasync(int fd)
{
	int slow = trick("slow");

	count_sync();
	if (slow > 0)
		pause_ms(slow);
	while (trick("hold") >= 0)
		pause_ms(1);
	return fails("fdatasync") ? -1 : REAL(fdatasync)(fd);
}

int
fsync(int fd)
{
	return fails("fsync") ? -1 : REAL(fsync)(fd);
}

ssize_t
pwrite(int fd, const void *p, size_t n, off_t off)
{
	return fails("pwrite") ? -1 : REAL(pwrite)(fd, p, n, off);
}

ssize_t
pwritev(int fd, const struct iovec *v, int n, off_t off)
{
	return fails("pwritev") ? -1 : REAL(pwritev)(fd, v, n, off);
}

int
fallocate(int fd, int mode, off_t off, off_t len)
{
	return fails("fallocate") ? -1 : REAL(fallocate)(fd, mode, off, len);
}

time_t
time(time_t *out)
{
	const char *moved = getenv("DISK_CLOCK");
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += moved ? atol(moved) : 0;
	if (out)
		*out = t.tv_sec;
	return t.tv_sec;
}
