/* timer - all deadlines of the broker in one heap, the nearest on top.
 *
 * A timer lives in the object that it belongs to; kind says what that object
 * is. Times are milliseconds of CLOCK_MONOTONIC. Room in the heap is taken
 * when an object is made, so setting a deadline never fails.
 */
#ifndef TIMER_H
#define TIMER_H

#include <stdbool.h>
#include <stdint.h>

struct timer {
	int64_t due_ms;
	uint32_t pos;           /* index in the heap + 1; 0 = not set */
	uint32_t kind;          /* the owner's type, for whoever handles it */
};

struct timers {
	struct timer **heap;
	uint32_t n;             /* timers that are set */
	uint32_t owners;        /* timers that exist: the room needed */
	uint32_t cap;
};

#define TIMER_NEVER INT64_MAX

/* Makes room for one more timer and initialises it as not set.
 * false: no memory. */
bool timer_init(struct timers *ts, struct timer *t, uint32_t kind);

/* Takes the timer out and gives its room back. */
void timer_fini(struct timers *ts, struct timer *t);

/* Sets or moves the deadline; TIMER_NEVER takes it out. */
void timer_set(struct timers *ts, struct timer *t, int64_t due_ms);

/* The nearest deadline, TIMER_NEVER if none. */
int64_t timer_next(const struct timers *ts);

/* Takes out and returns one timer that is due at now_ms, NULL if none. */
struct timer *timer_due(struct timers *ts, int64_t now_ms);

/* Gives the heap back; no timer may be set any more. */
void timers_fini(struct timers *ts);

#endif
