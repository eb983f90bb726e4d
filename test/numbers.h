/* numbers - a state to try store with: numbers that count on, of which the
 * last NUMBERS_ALIVE are alive. One record is one number and bytes that follow
 * from it, so that anything lost, doubled or out of order shows. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <string.h>

#include "store.h"

#define NUMBERS_ALIVE 20

struct numbers {
	uint32_t first, last;   /* alive; 0: none */
	uint32_t n;             /* records delivered */
	uint32_t fail_at;       /* the record that there is no memory for */
	bool wrong;
};

static inline uint32_t
numbers_len(uint32_t i)
{
	return 4 + i * 7919 % 190;
}

static inline void
numbers_fill(uint8_t *p, uint32_t i)
{
	for (uint32_t k = 0; k < numbers_len(i); k++)
		p[k] = (uint8_t)(k < 4 ? i >> 8 * k : i + k);
}

static inline void
numbers_set(struct numbers *s, uint32_t i)
{
	if (s->last == 0)
		s->first = i;
	s->last = i;
	if (s->last - s->first >= NUMBERS_ALIVE)
		s->first = s->last - NUMBERS_ALIVE + 1;
}

/* A store_record_fn. */
static inline bool
numbers_read(void *arg, uint8_t type, const uint8_t *body, uint32_t n)
{
	struct numbers *s = arg;
	uint8_t want[256];
	uint32_t i = n < 4 ? 0 : body[0] | (uint32_t)body[1] << 8 |
	    (uint32_t)body[2] << 16 | (uint32_t)body[3] << 24;

	s->n++;
	if (s->n == s->fail_at)
		return false;
	numbers_fill(want, i);
	if (i == 0 || type != 1 + i % 3 || n != numbers_len(i) ||
	    memcmp(body, want, n) != 0 || (s->last && i != s->last + 1))
		s->wrong = true;
	numbers_set(s, i);
	return true;
}

static inline bool
numbers_append(struct store *st, uint32_t i, enum store_class class)
{
	uint8_t *p = store_begin(st, (uint8_t)(1 + i % 3), numbers_len(i));

	if (!p)
		return false;
	numbers_fill(p, i);
	store_end(st, class);
	return true;
}

/* A store_dump_fn. */
static inline bool
numbers_dump(void *arg, struct store *st)
{
	struct numbers *s = arg;

	for (uint32_t i = s->first; s->last && i <= s->last; i++)
		if (!numbers_append(st, i, STORE_LAZY))
			return false;
	return true;
}

#endif
