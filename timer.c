#include "timer.h"
#include "mem.h"

#include <stddef.h>

bool
timer_init(struct timers *ts, struct timer *t, uint32_t kind)
{
	if (ts->owners == ts->cap) {
		uint32_t cap = ts->cap ? ts->cap * 2 : 16;
		void *p = mem_resize(ts->heap, ts->cap * sizeof *ts->heap,
		    cap * sizeof *ts->heap);

		if (!p)
			return false;
		ts->heap = p;
		ts->cap = cap;
	}
	ts->owners++;
	*t = (struct timer){ .kind = kind };
	return true;
}

static void
place(struct timers *ts, struct timer *t, uint32_t i)
{
	ts->heap[i] = t;
	t->pos = i + 1;
}

/* Moves t, which may stand wrong at i, to its place. */
static void
sift(struct timers *ts, struct timer *t, uint32_t i)
{
	uint32_t child;

	while (i > 0 && ts->heap[(i - 1) / 2]->due_ms > t->due_ms) {
		place(ts, ts->heap[(i - 1) / 2], i);
		i = (i - 1) / 2;
	}
	while ((child = 2 * i + 1) < ts->n) {
		if (child + 1 < ts->n &&
		    ts->heap[child + 1]->due_ms < ts->heap[child]->due_ms)
			child++;
		if (ts->heap[child]->due_ms >= t->due_ms)
			break;
		place(ts, ts->heap[child], i);
		i = child;
	}
	place(ts, t, i);
}

static void
take_out(struct timers *ts, struct timer *t)
{
	uint32_t i = t->pos - 1;

	t->pos = 0;
	ts->n--;
	if (i < ts->n)
		sift(ts, ts->heap[ts->n], i);
}

void
timer_set(struct timers *ts, struct timer *t, int64_t due_ms)
{
	if (due_ms == TIMER_NEVER) {
		if (t->pos)
			take_out(ts, t);
		return;
	}
	t->due_ms = due_ms;
	if (!t->pos)
		t->pos = ++ts->n;
	sift(ts, t, t->pos - 1);
}

void
timer_fini(struct timers *ts, struct timer *t)
{
	if (t->pos)
		take_out(ts, t);
	ts->owners--;
}

int64_t
timer_next(const struct timers *ts)
{
	return ts->n ? ts->heap[0]->due_ms : TIMER_NEVER;
}

struct timer *
timer_due(struct timers *ts, int64_t now_ms)
{
	struct timer *t;

	if (ts->n == 0 || timer_next(ts) > now_ms)
		return NULL;
	t = ts->heap[0];
	take_out(ts, t);
	return t;
}

void
timers_fini(struct timers *ts)
{
	mem_free(ts->heap, ts->cap * sizeof *ts->heap);
}
