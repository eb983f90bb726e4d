#include "watch.h"
#include "mem.h"

#include <fcntl.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define BELL (SIGRTMIN + 1)

/* A hot connection that was not heard for one to two ticks goes quiet, a quiet
 * one that rings again within that time gets hot. With few connections the
 * list is short enough as it is. */
#define TICK_MS 100
#define SHORT_LIST 16

/* Bells read per turn, in groups: the rest of a storm waits for the next. */
#define BELLS 64
#define BELL_READS 16

int64_t
watch_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void
look_at_clock(struct watch *w)
{
	w->now_ms = watch_clock();
	w->tick = (uint32_t)(w->now_ms / TICK_MS);
}

/* musl keeps WATCH_RTMIN for its threads and sigaddset() refuses it; we have no
 * threads, and it would end us. Its sets, too, are words of the kernel's. */
static void
add_signal(sigset_t *set, int signo)
{
	unsigned long *word = (unsigned long *)(void *)set;
	unsigned bit = (unsigned)signo - 1, bits = 8 * sizeof *word;

	word[bit / bits] |= 1ul << bit % bits;
}

bool
watch_init(struct watch *w)
{
	static const int taken[] = {
		SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGIO, SIGCHLD,
	};
	sigset_t set;

	*w = (struct watch){ .sigfd = -1 };
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
		sigaddset(&set, taken[i]);
	sigaddset(&set, SIGRTMIN);
	add_signal(&set, WATCH_RTMIN);
	sigaddset(&set, BELL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);       /* a file at its limit is a full disk */
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return false;
	w->sigfd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	look_at_clock(w);
	return w->sigfd >= 0 && watch_fixed(w, w->sigfd);
}

void
watch_fini(struct watch *w)
{
	close(w->sigfd);
	mem_free(w->pfd, w->cap * sizeof *w->pfd);
	mem_free(w->who, w->cap * sizeof *w->who);
	mem_free(w->by_fd, w->n_fds * sizeof *w->by_fd);
}

/* Room for every connection on the hot list, taken when it is added: getting
 * hot again cannot fail. */
static bool
make_room(struct watch *w, uint32_t need)
{
	uint32_t cap = w->cap ? w->cap * 2 : 16;
	struct pollfd *pfd;
	struct conn **who;

	if (need <= w->cap)
		return true;
	pfd = mem_alloc(cap * sizeof *pfd);
	who = mem_alloc(cap * sizeof *who);
	if (!pfd || !who) {
		mem_free(pfd, cap * sizeof *pfd);
		mem_free(who, cap * sizeof *who);
		return false;
	}
	if (w->n) {
		memcpy(pfd, w->pfd, w->n * sizeof *pfd);
		memcpy(who, w->who, w->n * sizeof *who);
	}
	mem_free(w->pfd, w->cap * sizeof *pfd);
	mem_free(w->who, w->cap * sizeof *who);
	w->pfd = pfd;
	w->who = who;
	w->cap = cap;
	return true;
}

static void
push(struct watch *w, int fd, struct conn *c)
{
	w->pfd[w->n] = (struct pollfd){ .fd = fd, .events = POLLIN };
	w->who[w->n] = c;
	if (c)
		c->hot = (int)w->n;
	w->n++;
}

bool
watch_fixed(struct watch *w, int fd)
{
	if (!make_room(w, w->n_fixed + 1))
		return false;
	push(w, fd, NULL);
	w->n_fixed++;
	return true;
}

void
watch_fixed_enable(struct watch *w, int fd, bool on)
{
	for (uint32_t i = 0; i < w->n_fixed; i++)
		if (w->pfd[i].fd == fd)
			w->pfd[i].events = on ? POLLIN : 0;
}

void
watch_fixed_change(struct watch *w, int fd, int to)
{
	for (uint32_t i = 0; i < w->n_fixed; i++) {
		if (w->pfd[i].fd == fd) {
			w->pfd[i].fd = to;
			return;
		}
	}
}

bool
watch_add(struct watch *w, struct conn *c)
{
	uint32_t fd = (uint32_t)c->fd, n = w->n_fds ? w->n_fds : 64;
	void *p;

	while (n <= fd)
		n *= 2;
	if (n > w->n_fds) {
		p = mem_resize(w->by_fd, w->n_fds * sizeof *w->by_fd,
		    n * sizeof *w->by_fd);
		if (!p)
			return false;
		w->by_fd = p;
		memset(w->by_fd + w->n_fds, 0,
		    (n - w->n_fds) * sizeof *w->by_fd);
		w->n_fds = n;
	}
	if (!make_room(w, w->n_fixed + w->n_conns + 1))
		return false;
	push(w, c->fd, c);
	w->n_conns++;
	w->by_fd[fd] = c;
	c->heard = w->tick;
	return true;
}

static void
cool(struct watch *w, struct conn *c)
{
	uint32_t i = (uint32_t)c->hot, last = --w->n;

	c->hot = -1;
	if (i == last)
		return;
	w->pfd[i] = w->pfd[last];
	w->who[i] = w->who[last];
	w->who[i]->hot = (int)i;
}

void
watch_remove(struct watch *w, struct conn *c)
{
	if (c->hot >= 0)
		cool(w, c);
	w->n_conns--;
	w->by_fd[c->fd] = NULL;
}

static void
set_bell(struct conn *c, bool on)
{
	int flags = O_RDWR | O_NONBLOCK | (on ? O_ASYNC : 0);

	if (c->bell == on)
		return;
	if (!c->owned) {
		fcntl(c->fd, F_SETOWN, getpid());
		fcntl(c->fd, F_SETSIG, BELL);
		c->owned = true;
	}
	if (fcntl(c->fd, F_SETFL, flags) == 0)
		c->bell = on;
}

static void
heat(struct watch *w, struct conn *c)
{
	push(w, c->fd, c);
	set_bell(c, false);
}

void
watch_want(struct watch *w, struct conn *c, bool read)
{
	if (c->hot < 0 && (c->out_len > 0 || !read))
		heat(w, c);
	if (c->hot >= 0)
		w->pfd[c->hot].events = (short)((read ? POLLIN : 0) |
		    (c->out_len > 0 ? POLLOUT : 0));
}

/* A bell rings once for what arrives: if the handler left input in the socket
 * the connection must be polled. So it is when it rings often. */
static void
answer(struct watch *w, struct conn *c, const struct watch_calls *to)
{
	bool often = w->tick - c->heard < 2;

	c->got = 0;
	c->more = false;
	to->conn(to->arg, c, POLLIN);
	if (c->got > 0)
		c->heard = w->tick;
	if (c->hot < 0 && (c->more || (often && c->got > 0)))
		heat(w, c);
}

static void
look_at_all(struct watch *w, const struct watch_calls *to)
{
	for (uint32_t fd = 0; fd < w->n_fds; fd++)
		if (w->by_fd[fd] && w->by_fd[fd]->hot < 0)
			answer(w, w->by_fd[fd], to);
}

static void
ring(struct watch *w, int fd, const struct watch_calls *to)
{
	struct conn *c;

	if (fd < 0 || (uint32_t)fd >= w->n_fds || !(c = w->by_fd[fd]))
		return;
	/* A hot one may have an old ring in the queue: poll tells better. */
	if (c->hot < 0)
		answer(w, c, to);
}

static void
take_signals(struct watch *w, const struct watch_calls *to)
{
	struct signalfd_siginfo s[BELLS];
	ssize_t n = sizeof s;

	for (int k = 0; k < BELL_READS && n == (ssize_t)sizeof s; k++) {
		n = read(w->sigfd, s, sizeof s);
		for (ssize_t i = 0; i * (ssize_t)sizeof *s < n; i++) {
			if ((int)s[i].ssi_signo == BELL)
				ring(w, s[i].ssi_fd, to);
			else if (s[i].ssi_signo == SIGIO)
				look_at_all(w, to);
			else
				to->signal(to->arg, (int)s[i].ssi_signo);
		}
	}
}

void
watch_run(struct watch *w, int timeout_ms, const struct watch_calls *to)
{
	uint32_t n = w->n;
	int left = poll(w->pfd, n, timeout_ms);
	bool bells = left > 0 && w->pfd[0].revents;

	look_at_clock(w);
	/* Hot connections first: a bell may put more of them on the list. */
	for (uint32_t i = 1; i < n && left > 0; i++) {
		short ev = w->pfd[i].revents;

		if (!ev)
			continue;
		left--;
		if (!w->who[i]) {
			to->fixed(to->arg, w->pfd[i].fd);
		} else {
			if (ev & POLLIN)
				w->who[i]->heard = w->tick;
			to->conn(to->arg, w->who[i], ev);
		}
	}
	if (bells)
		take_signals(w, to);
}

/* Arms the bell and looks once more: what came before is not rung for. */
static bool
go_quiet(struct conn *c)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };

	set_bell(c, true);
	if (c->bell && poll(&p, 1, 0) == 0)
		return true;
	set_bell(c, false);
	return false;
}

void
watch_sweep(struct watch *w)
{
	if (w->swept == w->tick || w->n <= w->n_fixed + SHORT_LIST)
		return;
	w->swept = w->tick;
	for (uint32_t i = w->n; i-- > w->n_fixed; ) {
		struct conn *c = w->who[i];

		if (w->tick - c->heard > 1 && c->out_len == 0 && !c->ready &&
		    w->pfd[i].events == POLLIN && go_quiet(c))
			cool(w, c);
	}
}
