/* mem - the ledger: every byte that is kept because of a peer.
 *
 * All memory that a peer can make the broker keep (connections, buffers,
 * sessions, queues, subscriptions, retained messages) is taken here and given
 * back with its size, so that the sum is known and can have a ceiling
 * (memory_limit). An allocation fails, never the process: each caller lets
 * the connection that asked pay for it.
 */
#ifndef MEM_H
#define MEM_H

#include <stdbool.h>
#include <stddef.h>

/* n bytes, not initialised. NULL: over the ceiling or the system has none. */
void *mem_alloc(size_t n);

/* The same, all zero. */
void *mem_zalloc(size_t n);

/* Grows or shrinks p from old_n to n bytes; p may be NULL with old_n 0.
 * NULL: not done, p is still valid. */
void *mem_resize(void *p, size_t old_n, size_t n);

/* Gives back p, which was taken with n bytes. p may be NULL. */
void mem_free(void *p, size_t n);

/* Whether n more bytes are under the ceiling: asked before work that must not
 * stop half way. */
bool mem_fits(size_t n);

/* The same, but the last eighth of the ceiling may be used: for what is soon
 * given back and without which a connection cannot be served, such as its
 * output. Whoever fills the memory with what stays does not silence others. */
void *mem_alloc_passing(size_t n);

/* The same, all zero. */
void *mem_zalloc_passing(size_t n);

/* From here on, until it is called with false, everything may use the last
 * eighth: for what the broker tells about itself, which counts most when memory
 * is short. */
void mem_use_last(bool on);

/* Whether more than so many 32nds of the ceiling are taken. */
bool mem_above(unsigned n);

/* Whether so much was given back since the last mem_trim that it is worth the
 * time to let the system have it. mem_trim takes a millisecond for some hundred
 * megabytes. */
bool mem_can_trim(void);
void mem_trim(void);

/* The ceiling for a machine like this one: a quarter of its memory, and what a
 * process of 32 bits can have. 0: it is not known. */
size_t mem_default_limit(void);

/* The ceiling, 0 = none. */
size_t mem_limit(void);

/* limit in bytes, 0 = none. What is already taken stays. */
void mem_set_limit(size_t limit);

/* Bytes taken now, and the most there ever were. */
size_t mem_used(void);
size_t mem_peak(void);

#endif
