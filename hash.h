/* hash - a keyed hash and a table of links that live in their objects.
 *
 * Client ids, topics and filters come from peers, so the hash is keyed with
 * random bytes of this process: nobody can choose names that collide.
 */
#ifndef HASH_H
#define HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash_link {
	struct hash_link *next;
	uint32_t hash;
};

/* A table of links; all zero is an empty one. It owns only its buckets. */
struct hash {
	struct hash_link **bucket;
	uint32_t mask;          /* buckets - 1, a power of two less one */
	uint32_t n;             /* links in the table */
};

/* Takes the key from the system. Once, before the first hash. */
void hash_seed(void);

/* SipHash-1-3 of n bytes, folded to 32 bits; more is mixed in first, for keys
 * of two parts (a parent and a name, two pointers). */
uint32_t hash_bytes(const void *p, size_t n, uint64_t more);

/* Adds a link under a hash. false: no memory, nothing changed. */
bool hash_put(struct hash *h, struct hash_link *l, uint32_t hash);

/* Removes a link that is in the table. */
void hash_remove(struct hash *h, struct hash_link *l);

/* Gives back buckets that are no longer needed. Not while somebody walks through
 * them. */
void hash_fit(struct hash *h);

/* The first link under a hash, and the one after l under the same hash;
 * NULL when there is none. The caller compares the keys. */
struct hash_link *hash_first(const struct hash *h, uint32_t hash);
struct hash_link *hash_next(const struct hash_link *l);

/* Gives the buckets back; the links are the caller's. */
void hash_fini(struct hash *h);

/* The object of type T that holds link L as its member M. */
#define HASH_OBJECT(L, T, M) ((T *)(void *)((char *)(L) - offsetof(T, M)))

#endif
