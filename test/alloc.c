/* alloc - allocations made to fail. midge is linked with this and
 * -Wl,--wrap=CALL for each of the calls below; a test maps the file that
 * ALLOC_CONTROL names and says there, while the broker runs, what is to happen.
 * Calls of all its processes are counted.
 */
#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WRAPPED(type, name, ...) \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)

/* The file: calls so far; the first and the last one that fail, 0 for none;
 * how many have failed. */
static struct control {
	_Atomic uint32_t calls, first, last, failed;
} *control;

__attribute__((constructor)) static void
alloc_init(void)
{
	const char *path = getenv("ALLOC_CONTROL");
	void *first;
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE,
	    MAP_SHARED, fd, 0);
	close(fd);
	if (control == MAP_FAILED)
		abort();
	backtrace(&first, 1);   /* which takes memory the first time */
}

/* Who asked for the first one that fails, for a look at what came of it:
 * addresses for addr2line -fpe midge-alloc. */
static void
tell(void)
{
	void *calls[12];

	backtrace_symbols_fd(calls, backtrace(calls, 12), STDERR_FILENO);
}

static int
fails(void)
{
	uint32_t n;

	if (!control)
		return 0;
	n = atomic_fetch_add(&control->calls, 1) + 1;
	if (n < control->first || n > control->last)
		return 0;
	if (atomic_fetch_add(&control->failed, 1) == 0)
		tell();
	errno = ENOMEM;
	return 1;
}

WRAPPED(void *, malloc, size_t n)
{
	return fails() ? NULL : __real_malloc(n);
}

WRAPPED(void *, calloc, size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

WRAPPED(void *, realloc, void *p, size_t n)
{
	return fails() ? NULL : __real_realloc(p, n);
}

WRAPPED(char *, strdup, const char *s)
{
	return fails() ? NULL : __real_strdup(s);
}

WRAPPED(DIR *, opendir, const char *path)
{
	return fails() ? NULL : __real_opendir(path);
}

WRAPPED(FILE *, fdopen, int fd, const char *mode)
{
	return fails() ? NULL : __real_fdopen(fd, mode);
}

WRAPPED(ssize_t, getline, char **line, size_t *size, FILE *f)
{
	return fails() ? -1 : __real_getline(line, size, f);
}

WRAPPED(int, scandir, const char *path, struct dirent ***list,
    int (*filter)(const struct dirent *),
    int (*order)(const struct dirent **, const struct dirent **))
{
	return fails() ? -1 : __real_scandir(path, list, filter, order);
}
