#include "hash.h"
#include "mem.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static uint64_t key[2];

void
hash_seed(void)
{
	struct timespec t;

	if (getrandom(key, sizeof key, GRND_NONBLOCK) == sizeof key)
		return;
	/* A kernel without the call, or one too early in its boot to have
	 * random bytes: the clock and our addresses have to do. */
	clock_gettime(CLOCK_REALTIME, &t);
	key[0] = (uint64_t)t.tv_nsec << 32 ^ (uint64_t)t.tv_sec;
	key[1] = (uint64_t)(uintptr_t)&t << 16 ^ (uint64_t)getpid();
}

static uint64_t
rotl(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

static void
sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotl(v[1], 13) ^ v[0];
	v[3] = rotl(v[3], 16) ^ v[2];
	v[0] = rotl(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = rotl(v[1], 17) ^ v[2];
	v[3] = rotl(v[3], 21) ^ v[0];
	v[2] = rotl(v[2], 32);
}

uint32_t
hash_bytes(const void *p, size_t n, uint64_t more)
{
	const uint8_t *s = p;
	size_t left = n;
	uint64_t w, v[4] = {
		key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
		key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u,
	};

	v[3] ^= more;
	sip_round(v);
	v[0] ^= more;
	for (; left >= 8; left -= 8, s += 8) {
		memcpy(&w, s, 8);
		v[3] ^= w;
		sip_round(v);
		v[0] ^= w;
	}
	w = (uint64_t)n << 56;
	for (size_t i = 0; i < left; i++)
		w |= (uint64_t)s[i] << (8 * i);
	v[3] ^= w;
	sip_round(v);
	v[0] ^= w;
	v[2] ^= 0xff;
	for (int i = 0; i < 3; i++)
		sip_round(v);
	w = v[0] ^ v[1] ^ v[2] ^ v[3];
	return (uint32_t)(w ^ w >> 32);
}

/* Without memory the chains just get longer. */
static void
set_buckets(struct hash *h, uint32_t mask)
{
	struct hash_link **b, *l, *next;

	b = mem_zalloc(((size_t)mask + 1) * sizeof *b);
	if (!b)
		return;
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (l = h->bucket[i]; l; l = next) {
			next = l->next;
			l->next = b[l->hash & mask];
			b[l->hash & mask] = l;
		}
	}
	hash_fini(h);
	h->bucket = b;
	h->mask = mask;
}

bool
hash_put(struct hash *h, struct hash_link *l, uint32_t hash)
{
	struct hash_link **b;

	if (!h->bucket || h->n > h->mask)
		set_buckets(h, h->bucket ? h->mask * 2 + 1 : 7);
	if (!h->bucket)
		return false;
	b = &h->bucket[hash & h->mask];
	l->hash = hash;
	l->next = *b;
	*b = l;
	h->n++;
	return true;
}

void
hash_remove(struct hash *h, struct hash_link *l)
{
	struct hash_link **p = &h->bucket[l->hash & h->mask];

	while (*p != l)
		p = &(*p)->next;
	*p = l->next;
	h->n--;
}

void
hash_fit(struct hash *h)
{
	uint32_t mask = h->mask;

	while (mask > 7 && h->n < mask / 4)
		mask /= 2;
	if (h->bucket && mask < h->mask)
		set_buckets(h, mask);
}

static struct hash_link *
same(struct hash_link *l, uint32_t hash)
{
	while (l && l->hash != hash)
		l = l->next;
	return l;
}

struct hash_link *
hash_first(const struct hash *h, uint32_t hash)
{
	return h->bucket ? same(h->bucket[hash & h->mask], hash) : NULL;
}

struct hash_link *
hash_next(const struct hash_link *l)
{
	return same(l->next, l->hash);
}

void
hash_fini(struct hash *h)
{
	if (h->bucket)
		mem_free(h->bucket, ((size_t)h->mask + 1) * sizeof *h->bucket);
	h->bucket = NULL;
}
