/* journal - store.h without a disk: records in memory, in their order, for tests
 * of persist, which are linked without store.c.
 *
 * A record is on the disk once journal_synced is called. With journal_full set
 * no record is taken. */
#ifndef JOURNAL_H
#define JOURNAL_H

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

struct journal_record {
	uint32_t n;
	uint8_t type;
	uint8_t *body;
};

static struct {
	struct journal_record *records;
	size_t n, complete;             /* records; of whole groups */
	uint64_t durable;
	bool full, compact;
} journal;

static inline void
journal_forget(void)
{
	for (size_t i = 0; i < journal.n; i++)
		free(journal.records[i].body);
	free(journal.records);
	memset(&journal, 0, sizeof journal);
}

static inline void
journal_synced(void)
{
	journal.durable = journal.complete;
}

uint8_t *
store_begin(struct store *st, uint8_t type, size_t n)
{
	struct journal_record *r;

	(void)st;
	if (journal.full)
		return NULL;
	journal.records = realloc(journal.records,
	    (journal.n + 1) * sizeof *r);
	assert(journal.records);
	r = &journal.records[journal.n];
	*r = (struct journal_record){ (uint32_t)n, type, malloc(n + 1) };
	assert(r->body);
	/* What the caller does not fill in shows. */
	memset(r->body, 0xa5, n + 1);
	return r->body;
}

void
store_end(struct store *st, enum store_class class)
{
	(void)st;
	journal.n++;
	if (class != STORE_MORE)
		journal.complete = journal.n;
}

void
store_drop(struct store *st)
{
	(void)st;
	while (journal.n > journal.complete)
		free(journal.records[--journal.n].body);
}

uint64_t
store_position(const struct store *st)
{
	(void)st;
	return journal.complete;
}

uint64_t
store_end_position(const struct store *st)
{
	(void)st;
	return journal.n;
}

uint64_t
store_durable(const struct store *st)
{
	(void)st;
	return journal.durable;
}

void
store_compact(struct store *st)
{
	(void)st;
	journal.compact = true;
}

void
store_incomplete(struct store *st)
{
	(void)st;
	journal.compact = true;
}

/* What opening needs: never called here. */

bool
store_open(struct store *st, const struct store_config *c, store_record_fn *fn,
    void *arg, struct store_report *report)
{
	(void)st, (void)c, (void)fn, (void)arg, (void)report;
	abort();
}

bool
store_walk(const char *path, const char *name, store_record_fn *fn, void *arg,
    struct store_report *report)
{
	(void)path, (void)name, (void)fn, (void)arg, (void)report;
	abort();
}

bool
store_close(struct store *st)
{
	(void)st;
	abort();
}

void
store_commit(struct store *st, int64_t now_ms)
{
	(void)st, (void)now_ms;
	abort();
}

int64_t
store_due(const struct store *st)
{
	(void)st;
	return STORE_NEVER;
}

int
store_fd(const struct store *st)
{
	(void)st;
	return -1;
}

void
store_event(struct store *st)
{
	(void)st;
}

int
store_failed(const struct store *st)
{
	(void)st;
	return 0;
}

#endif
