#include "mem.h"

#include <assert.h>
#include <stdlib.h>

/* What libc's allocator adds to a block, so that the ledger follows the
 * resident memory; 16 is right for glibc and near enough for musl. */
#define OVERHEAD 16

static struct {
	size_t used;
	size_t peak;
	size_t limit;
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
	return under(ledger.limit - ledger.limit / 8, n);
}

static void
book(size_t n)
{
	ledger.used += n;
	if (ledger.used > ledger.peak)
		ledger.peak = ledger.used;
}

static void *
take(size_t n)
{
	void *p = malloc(n);

	if (p)
		book(n + OVERHEAD);
	return p;
}

void *
mem_alloc(size_t n)
{
	return mem_fits(n + OVERHEAD) ? take(n) : NULL;
}

void *
mem_alloc_passing(size_t n)
{
	return under(ledger.limit, n + OVERHEAD) ? take(n) : NULL;
}

void *
mem_zalloc(size_t n)
{
	void *p;

	if (!mem_fits(n + OVERHEAD))
		return NULL;
	p = calloc(1, n);
	if (p)
		book(n + OVERHEAD);
	return p;
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
