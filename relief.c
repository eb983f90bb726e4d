#include "relief.h"
#include "mem.h"
#include "persist.h"

/* In 32nds of memory_limit, see above; the last two follow from mem_alloc. */
static const uint8_t level[] = {
	[RELIEF_LASTING] = 24, [RELIEF_NEWCOMERS] = 26, [RELIEF_QOS0] = 27,
};

#define LEVEL_OVER 20

/* Between two looks for the slowest reader while memory is short, and how long
 * freed memory may be in use again before the system gets it. */
#define SHORT_MS 100
#define TRIM_MS 1000

/* A reader for whom less than this waits is not slow. */
#define SLOW_MIN (64 * 1024)

static const char *const words[] = {
	[RELIEF_LASTING] =
	    "new retained messages and subscriptions are refused",
	[RELIEF_NEWCOMERS] = "clients without a session are refused",
	[RELIEF_QOS0] = "messages of QoS 0 that would have to wait are dropped",
	[RELIEF_ACKED] = "messages of QoS 1 and 2 are refused",
	[RELIEF_READER] = "the slowest readers are disconnected",
};

bool
relief_init(struct broker *b)
{
	return timer_init(&b->timers, &b->relief.timer, TIMER_RELIEF);
}

void
relief_fini(struct broker *b)
{
	timer_fini(&b->timers, &b->relief.timer);
}

void
relief_gave(struct broker *b, enum relief_step step)
{
	struct relief *r = &b->relief;

	r->count[step]++;
	r->wanting |= step == RELIEF_ACKED;
	if (r->told >> step & 1)
		return;
	r->told |= 1u << step;
	log_warning("Warning: Memory is short (%zu of %zu bytes, "
	    "memory_limit): %s.", mem_used(), mem_limit(), words[step]);
}

bool
relief_is_short(void)
{
	return mem_above(level[RELIEF_QOS0]);
}

bool
relief_needs(struct broker *b, enum relief_step step)
{
	if (!mem_above(level[step]))
		return false;
	relief_gave(b, step);
	return true;
}

void
relief_turn(struct broker *b)
{
	struct relief *r = &b->relief;

	if (r->told && !mem_above(LEVEL_OVER)) {
		log_notice("Memory is no longer short: %zu of %zu bytes.",
		    mem_used(), mem_limit());
		r->told = 0;
	}
	if (r->timer.pos)
		return;
	if (r->wanting || relief_is_short())
		timer_set(&b->timers, &r->timer, b->now_ms + SHORT_MS);
	else if (mem_can_trim())
		timer_set(&b->timers, &r->timer, b->now_ms + TRIM_MS);
}

/* ---- the slowest reader ---- */

static uint64_t
qos0_bytes(const struct client *c)
{
	return c->session->out ? c->session->out->qos0.bytes : 0;
}

/* What waits for one whom it is no use to wait for. */
static uint64_t
stalled_bytes(const struct client *c)
{
	const struct outbox *o = c->session->out;

	if (!c->blocked && session_window_open(c->session))
		return 0;
	return c->conn.out_len + (o ? o->qos0.bytes + o->acked.bytes +
	    o->in_flight_bytes : 0);
}

/* The client for whom most waits, by one of these measures; NULL: nobody has
 * much. */
static struct client *
slowest(const struct broker *b, uint64_t (*bytes)(const struct client *))
{
	struct client *found = NULL;
	uint64_t most = SLOW_MIN;

	for (uint32_t fd = 0; fd < b->watch.n_fds; fd++) {
		struct client *c = (struct client *)b->watch.by_fd[fd];

		if (!c || c->state != CLIENT_UP || bytes(c) <= most)
			continue;
		found = c;
		most = bytes(c);
	}
	return found;
}

static void
drop_qos0(struct broker *b, struct session *s)
{
	while (session_qos0(s)) {
		struct delivery *d = session_qos0(s);

		b->stats.publish_dropped++;
		relief_gave(b, RELIEF_QOS0);
		persist_done(b, s, d);
		session_drop(s, &b->topics, d);
	}
}

struct client *
relief_timer(struct broker *b)
{
	struct client *c = NULL;
	bool wanting = b->relief.wanting;

	b->relief.wanting = false;
	if (relief_is_short() && (c = slowest(b, qos0_bytes))) {
		drop_qos0(b, c->session);
		c = NULL;
	} else if (wanting && (c = slowest(b, stalled_bytes))) {
		relief_gave(b, RELIEF_READER);
	}
	if (mem_can_trim()) {
		/* Small blocks here and there would keep whole pages. */
		topics_slim(&b->topics);
		hash_fit(&b->sessions.by_id);
		mem_trim();
	}
	return c;
}
