#include "strangers.h"
#include "mem.h"

#include <assert.h>
#include <sys/resource.h>

/* What they may keep: a sixteenth of memory_limit, and without one this. */
#define BYTES_PART 16
#define BYTES_MAX (16u << 20)

/* What a CONNECT may take on its way: nobody goes before. A crowd that comes
 * back all at once waits a little to be let in instead. */
#define GRACE_MS 300

void
strangers_add(struct broker *b, struct client *c)
{
	struct strangers *s = &b->strangers;

	c->stranger = true;
	c->older = s->newest;
	c->newer = NULL;
	*(c->older ? &c->older->newer : &s->oldest) = c;
	s->newest = c;
	s->n++;
}

void
strangers_remove(struct broker *b, struct client *c)
{
	struct strangers *s = &b->strangers;

	if (!c->stranger)
		return;
	*(c->older ? &c->older->newer : &s->oldest) = c->newer;
	*(c->newer ? &c->newer->older : &s->newest) = c->older;
	s->n--;
	assert(s->bytes >= c->keeps);
	s->bytes -= c->keeps;
	c->keeps = 0;
	c->stranger = false;
	/* The same place in memory, see state.h. */
	c->aliases = NULL;
}

static uint32_t
max_bytes(void)
{
	size_t part = mem_limit() / BYTES_PART;

	return part && part < BYTES_MAX ? (uint32_t)part : BYTES_MAX;
}

struct client *
strangers_weigh(struct broker *b, struct client *c)
{
	struct strangers *s = &b->strangers;
	struct client *most = c;

	if (!c->stranger)
		return NULL;
	s->bytes -= c->keeps;
	c->keeps = c->conn.in_cap + (c->login ? c->login->len : 0) +
	    (c->conn.tls ? (uint32_t)tls_keeps(c->conn.tls) : 0);
	s->bytes += c->keeps;
	if (s->bytes <= max_bytes())
		return NULL;
	for (struct client *k = s->oldest; k; k = k->newer)
		if (k->keeps > most->keeps)
			most = k;
	return most;
}

/* What is to be done next is our part. */
static bool
waits_for_us(const struct client *c)
{
	return c->conn.ready || (c->conn.tls && !tls_wants_input(c->conn.tls)) ||
	    (c->state == CLIENT_LOGIN && !c->login->why);
}

static uint32_t
max_strangers(const struct broker *b)
{
	uint32_t max = (uint32_t)b->conf->max_connecting;
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur / 4 < max)
		max = (uint32_t)(r.rlim_cur / 4);
	return max > 0 ? max : 1;
}

bool
strangers_full(struct broker *b, struct client **oldest)
{
	struct strangers *s = &b->strangers;
	struct client *c = s->oldest;
	uint32_t max = max_strangers(b);

	if (s->n < max) {
		s->told = s->told && s->n > max / 2;
		return false;
	}
	while (c && waits_for_us(c))
		c = c->newer;
	if (c && b->now_ms - c->last_in_ms < GRACE_MS)
		c = NULL;
	*oldest = c;
	if (c && !s->told) {
		s->told = true;
		log_warning("Warning: %u connections have not logged in "
		    "(max_connecting); for each one more the oldest of them "
		    "is closed.", s->n);
	}
	return true;
}
