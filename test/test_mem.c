/* Tests of mem, the ledger: who may take how much of it; and of hash_fit, which
 * gives a part of it back. */
#include "check.h"
#include "hash.h"
#include "mem.h"

#define LIMIT 3200000u
#define PART (LIMIT / 32)

TEST(no_limit)
{
	mem_set_limit(0);
	CHECK(mem_fits(SIZE_MAX / 2) && !mem_above(1));
}

TEST(the_last_eighth)
{
	const size_t big = 28 * PART - 1000, more = 3 * PART;
	void *p, *q;

	mem_set_limit(LIMIT);
	p = mem_alloc(big);
	CHECK(p && mem_above(27) && !mem_above(28));
	CHECK(!mem_alloc(more) && !mem_zalloc(more));
	q = mem_alloc_passing(more);
	CHECK(q && mem_above(30));
	mem_free(q, more);
	q = mem_zalloc_passing(more);
	CHECK(q && *(char *)q == 0);
	CHECK(!mem_alloc_passing(more));
	mem_free(q, more);
	mem_use_last(true);
	q = mem_alloc(more);
	mem_use_last(false);
	CHECK(q && !mem_alloc(more));
	mem_free(q, more);
	mem_free(p, big);
	CHECK(mem_used() == 0);
}

TEST(what_is_worth_a_trim)
{
	void *p = mem_alloc(4u << 20), *q = mem_alloc(1000);

	CHECK(!mem_can_trim());
	mem_free(q, 1000);
	CHECK(!mem_can_trim());
	mem_free(p, 4u << 20);
	CHECK(mem_can_trim());
	mem_trim();
	CHECK(!mem_can_trim());
}

TEST(a_table_gets_smaller)
{
	static struct hash_link links[1000];
	struct hash h = { 0 };
	uint32_t mask;

	for (uint32_t i = 0; i < 1000; i++)
		CHECK(hash_put(&h, &links[i], i * 7));
	mask = h.mask;
	hash_fit(&h);
	CHECK(h.mask == mask);
	for (uint32_t i = 10; i < 1000; i++)
		hash_remove(&h, &links[i]);
	hash_fit(&h);
	CHECK(h.mask < 64 && h.n == 10);
	for (uint32_t i = 0; i < 10; i++)
		CHECK(hash_first(&h, i * 7) == &links[i]);
	hash_fini(&h);
	CHECK(mem_used() == 0);
}
