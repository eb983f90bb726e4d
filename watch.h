/* watch - which descriptors the loop waits for.
 *
 * poll() costs time for each descriptor that it is given, so only a short hot
 * list is polled: a few fixed ones (listeners, the signal descriptor) and the
 * connections with recent traffic or output that the kernel did not take. A
 * connection that has been quiet leaves the list and rings a bell instead:
 * with O_ASYNC the kernel queues a real-time signal that carries its
 * descriptor, and the signalfd in the poll set delivers it. If the kernel runs
 * out of room for signals it sends a plain SIGIO, and every quiet connection
 * is looked at once.
 */
#ifndef WATCH_H
#define WATCH_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "conn.h"

struct watch {
	struct pollfd *pfd;     /* the fixed ones, then the hot list */
	struct conn **who;      /* NULL for the fixed ones */
	uint32_t n, n_fixed, cap;
	struct conn **by_fd;    /* every open connection */
	uint32_t n_fds, n_conns;
	int sigfd;
	int64_t now_ms;         /* CLOCK_MONOTONIC, read once per turn */
	uint32_t tick;          /* the same, coarse: the age of traffic */
	uint32_t swept;         /* the tick of the last sweep */
};

/* Called by watch_run. events: POLLIN, POLLOUT and so on. */
struct watch_calls {
	void *arg;
	void (*fixed)(void *arg, int fd);
	void (*conn)(void *arg, struct conn *c, short events);
	void (*signal)(void *arg, int signo);
};

/* CLOCK_MONOTONIC in milliseconds. */
int64_t watch_clock(void);

/* What programs with the usual C library send as SIGRTMIN: ours may count from
 * another number. */
#define WATCH_RTMIN 34

/* Blocks the signals that the loop takes over and makes the signalfd.
 * false with errno: not possible. */
bool watch_init(struct watch *w);
void watch_fini(struct watch *w);

/* Adds a descriptor that is polled for input always. Before any connection.
 * false: no memory. */
bool watch_fixed(struct watch *w, int fd);

/* Puts another fixed descriptor in the place of one; -1 for none. */
void watch_fixed_change(struct watch *w, int fd, int to);

/* Switches polling of a fixed descriptor off and on again. */
void watch_fixed_enable(struct watch *w, int fd, bool on);

/* A new connection, hot. false: no memory. */
bool watch_add(struct watch *w, struct conn *c);
void watch_remove(struct watch *w, struct conn *c);

/* Tells what to wait for: input as long as read is true, room for output
 * while there is some. Brings a quiet connection back to the hot list where
 * that is needed. */
void watch_want(struct watch *w, struct conn *c, bool read);

/* Waits until something happens or timeout_ms has passed (-1: for ever), takes
 * the time and makes the calls. No connection may be added or removed inside a
 * call. */
void watch_run(struct watch *w, int timeout_ms, const struct watch_calls *to);

/* Lets connections go that were quiet for a while; once per turn, after the
 * output was written. */
void watch_sweep(struct watch *w);

#endif
