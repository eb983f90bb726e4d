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

struct stranger {
	struct client *client;
	struct stranger *older, *newer;
	uint32_t keeps;                 /* bytes */
};

bool
strangers_add(struct broker *b, struct client *c)
{
	struct strangers *s = &b->strangers;
	struct stranger *k = mem_alloc_passing(sizeof *k);

	if (!k)
		return false;
	*k = (struct stranger){ .client = c, .older = s->newest };
	*(k->older ? &k->older->newer : &s->oldest) = k;
	s->newest = k;
	s->n++;
	c->is_stranger = true;
	c->stranger = k;
	return true;
}

void
strangers_remove(struct broker *b, struct client *c)
{
	struct strangers *s = &b->strangers;
	struct stranger *k = c->stranger;

	if (!c->is_stranger)
		return;
	*(k->older ? &k->older->newer : &s->oldest) = k->newer;
	*(k->newer ? &k->newer->older : &s->newest) = k->older;
	s->n--;
	assert(s->bytes >= k->keeps);
	s->bytes -= k->keeps;
	mem_free(k, sizeof *k);
	c->is_stranger = false;
	c->aliases = NULL;              /* the same place in memory */
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
	struct stranger *me = c->stranger, *most = me;

	if (!c->is_stranger)
		return NULL;
	s->bytes -= me->keeps;
	me->keeps = c->conn.in_cap + (c->login ? c->login->len : 0) +
	    (c->conn.tls ? (uint32_t)tls_keeps(c->conn.tls) : 0);
	s->bytes += me->keeps;
	if (s->bytes <= max_bytes())
		return NULL;
	for (struct stranger *k = s->oldest; k; k = k->newer)
		if (k->keeps > most->keeps)
			most = k;
	return most->client;
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
	struct stranger *k = s->oldest;
	uint32_t max = max_strangers(b);

	if (s->n < max) {
		s->told = s->told && s->n > max / 2;
		return false;
	}
	while (k && waits_for_us(k->client))
		k = k->newer;
	if (k && b->now_ms - k->client->last_in_ms < GRACE_MS)
		k = NULL;
	*oldest = k ? k->client : NULL;
	if (k && !s->told) {
		s->told = true;
		log_warning("Warning: %u connections have not logged in "
		    "(max_connecting); for each one more the oldest of them "
		    "is closed.", s->n);
	}
	return true;
}
