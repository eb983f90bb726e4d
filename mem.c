#include "mem.h"

#include <assert.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/sysinfo.h>

/* What libc's allocator adds to a block, so that the ledger follows the
 * resident memory; 16 is right for glibc and near enough for musl. */
#define OVERHEAD 16

/* Less than this is not worth a mem_trim. */
#define TRIM_MIN (1u << 20)

static struct {
	size_t used;
	size_t peak;
	size_t trim_peak;       /* since the last mem_trim */
	size_t limit;
	bool use_last;
} ledger;

static bool
under(size_t ceiling, size_t n)
{
	return ledger.limit == 0 ||
	    (ledger.used <= ceiling && n <= ceiling - ledger.used);
}

bool
mem_fits(size_t n)
{
	return under(ledger.use_last ? ledger.limit :
	    ledger.limit - ledger.limit / 8, n);
}

static void
book(size_t n)
{
	ledger.used += n;
	if (ledger.used > ledger.peak)
		ledger.peak = ledger.used;
	if (ledger.used > ledger.trim_peak)
		ledger.trim_peak = ledger.used;
}

/* The block of n bytes that an allocator gave, or NULL, and its place in the
 * ledger. */
static void *
booked(void *p, size_t n)
{
	if (p)
		book(n + OVERHEAD);
	return p;
}

void *
mem_alloc(size_t n)
{
	return mem_fits(n + OVERHEAD) ? booked(malloc(n), n) : NULL;
}

void *
mem_alloc_passing(size_t n)
{
	return under(ledger.limit, n + OVERHEAD) ? booked(malloc(n), n) :
	    NULL;
}

void *
mem_zalloc(size_t n)
{
	return mem_fits(n + OVERHEAD) ? booked(calloc(1, n), n) : NULL;
}

void *
mem_zalloc_passing(size_t n)
{
	return under(ledger.limit, n + OVERHEAD) ? booked(calloc(1, n), n) :
	    NULL;
}

void *
mem_resize(void *p, size_t old_n, size_t n)
{
	void *q;

	if (!p)
		return mem_alloc(n);
	if (n > old_n && !mem_fits(n - old_n))
		return NULL;
	q = realloc(p, n);
	if (!q)
		return NULL;
	assert(ledger.used >= old_n);
	ledger.used -= old_n;
	book(n);
	return q;
}

void
mem_free(void *p, size_t n)
{
	if (!p)
		return;
	assert(ledger.used >= n + OVERHEAD);
	ledger.used -= n + OVERHEAD;
	free(p);
}

void
mem_use_last(bool on)
{
	ledger.use_last = on;
}

bool
mem_above(unsigned n)
{
	return ledger.limit && ledger.used > ledger.limit / 32 * n;
}

bool
mem_can_trim(void)
{
	size_t freed = ledger.trim_peak - ledger.used;

	return freed >= TRIM_MIN && freed >= ledger.trim_peak / 8;
}

void
mem_trim(void)
{
#ifdef __GLIBC__
	/* It keeps free memory that lies between blocks in use until it is told
	 * to give it back; other C libraries have no such call and need none. */
	malloc_trim(0);
#endif
	ledger.trim_peak = ledger.used;
}

size_t
mem_default_limit(void)
{
	struct sysinfo si;
	uint64_t n;

	if (sysinfo(&si) < 0)
		return 0;
	n = (uint64_t)si.totalram * si.mem_unit / 4;
	return n < SIZE_MAX / 4 ? (size_t)n : SIZE_MAX / 4;
}

void
mem_set_limit(size_t limit)
{
	ledger.limit = limit;
}

size_t
mem_limit(void)
{
	return ledger.limit;
}

size_t
mem_used(void)
{
	return ledger.used;
}

size_t
mem_peak(void)
{
	return ledger.peak;
}
