/* Fuzzer of topic: bytes as a list of operations, each of them checked
 * against a naive model. Memory may run out in any of them. */
#include "mem.h"
#include "model.h"
#include "topic.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define N(array) (sizeof(array) / sizeof *(array))

/* Subscribers are opaque to topic, so here they are only two lists. */
struct session {
	struct sub *subs;
	struct scan *scans;
};

/* A subscription; sub NULL: the row is free. While a scan goes on for it: was
 * that leaf retained all the time, was it found? */
struct row {
	char path[24];                  /* the filter without $share */
	const char *group;              /* "": not shared */
	struct session *who;
	struct sub *sub;
	bool scanning, always[64], found[64];
};

/* A topic that was retained at some time; topic "": the leaf is free. */
struct leaf {
	char topic[24];
	struct msg *now;                /* NULL: not retained */
};

static struct session people[4];
static struct timers timers;
static struct topics topics;
static struct row rows[48];
static struct leaf leaves[64];
static const uint8_t *at, *end;

static unsigned
get(unsigned n)
{
	return at < end ? *at++ % n : 0;
}

static struct mqtt_str
str(const char *text)
{
	return (struct mqtt_str){ (const uint8_t *)text,
	    (uint32_t)strlen(text) };
}

/* A filter or topic of up to four short levels. */
static void
get_name(char *out, bool filter)
{
	static const char *const names[] = { "a", "b", "", "aa", "$", "+", "#" };
	unsigned levels = 1 + get(4), kinds = filter ? N(names) : N(names) - 2;
	const char *name;

	*out = 0;
	for (unsigned i = 0; i < levels; i++) {
		name = names[get(kinds)];
		strcat(strcat(out, i ? "/" : ""), name);
		if (*name == '#')
			break;
	}
	if (!*out)
		strcpy(out, "/");
}

/* ---- subscriptions ---- */

static void
row_text(const struct row *r, char *out, size_t size)
{
	if (*r->group)
		snprintf(out, size, "$share/%s/%s", r->group, r->path);
	else
		snprintf(out, size, "%s", r->path);
}

/* The row that is like r, else a free one, else NULL. */
static struct row *
find_row(const struct row *r)
{
	struct row *free_row = NULL;

	for (size_t i = 0; i < N(rows); i++) {
		struct row *x = &rows[i];

		if (!x->sub)
			free_row = free_row ? free_row : x;
		else if (x->who == r->who && strcmp(x->path, r->path) == 0 &&
		    strcmp(x->group, r->group) == 0)
			return x;
	}
	return free_row;
}

static void
subscribe(void)
{
	static const char *const groups[] = { "", "", "g", "h" };
	struct row want = { .group = groups[get(4)],
	    .who = &people[get(N(people))] }, *r;
	struct mqtt_filter f = { .qos = (uint8_t)get(3) };
	char text[48], back[48];
	bool is_new;

	get_name(want.path, true);
	row_text(&want, text, sizeof text);
	f.filter = str(text);
	r = find_row(&want);
	if (!r)
		return;
	assert(topic_find_sub(&topics, want.who, f.filter) == r->sub);
	want.sub = topic_subscribe(&topics, want.who, &want.who->subs, &f, 1,
	    &is_new);
	if (!want.sub) {
		assert(!r->sub);        /* replacing needs no memory */
		return;
	}
	assert(is_new == !r->sub && (is_new || want.sub == r->sub));
	assert(want.sub->session == want.who && want.sub->qos == f.qos);
	topic_filter_text(want.sub, back, sizeof back);
	assert(strcmp(text, back) == 0);
	if (is_new)
		*r = want;
}

static void
unsubscribe(struct row *r)
{
	char text[48];

	if (!r->sub)
		return;
	row_text(r, text, sizeof text);
	topic_unsubscribe(&topics, r->sub);
	r->sub = NULL;
	r->scanning = false;
	assert(!topic_find_sub(&topics, r->who, str(text)));
}

/* Whether an earlier row is of the same group as row i. */
static bool
group_seen(size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (rows[k].sub && rows[k].sub->group == rows[i].sub->group)
			return true;
	return false;
}

static void
match(void)
{
	char topic[24];
	const struct match *m;
	uint32_t subs = 0, groups = 0;

	get_name(topic, false);
	m = topic_match(&topics, str(topic));
	if (!m)
		return;
	for (size_t i = 0; i < N(rows); i++) {
		struct row *r = &rows[i];
		uint32_t found = 0;

		if (!r->sub)
			continue;
		for (uint32_t k = 0; k < m->n_subs; k++)
			found += match_sub(m, k) == r->sub;
		for (uint32_t k = 0; k < m->n_groups; k++)
			found += match_group(m, k) == r->sub->group;
		assert(found == matches(r->path, topic));
		subs += found && !*r->group;
		groups += found && *r->group && !group_seen(i);
	}
	assert(m->n_subs == subs && m->n_groups == groups);
	for (uint32_t i = 2; i < m->n_subs; i++)        /* side by side */
		for (uint32_t k = 0; k + 1 < i; k++)
			assert(match_sub(m, i)->session !=
			    match_sub(m, k)->session ||
			    match_sub(m, i - 1)->session ==
			    match_sub(m, k)->session);
}

/* ---- retained messages ---- */

static struct leaf *
get_leaf(void)
{
	char topic[24];

	get_name(topic, false);
	for (size_t i = 0; i < N(leaves); i++) {
		if (!leaves[i].topic[0])
			strcpy(leaves[i].topic, topic);
		if (strcmp(leaves[i].topic, topic) == 0)
			return &leaves[i];
	}
	return NULL;
}

static void
unretain(struct leaf *l)
{
	assert(topic_retain(&topics, str(l->topic), NULL));
	l->now = NULL;
	for (size_t i = 0; i < N(rows); i++)
		rows[i].always[l - leaves] = false;
}

static void
retain(bool remove)
{
	struct leaf *l = get_leaf();
	struct mqtt_publish p = { .qos = 0 };
	struct msg *m;

	if (!l)
		return;
	assert(topic_retained(&topics, str(l->topic)) == l->now);
	if (remove) {
		unretain(l);
		return;
	}
	p.topic = str(l->topic);
	m = msg_new(&p, get(2) ? 1000 + get(8) : MSG_NEVER);
	if (m && topic_retain(&topics, p.topic, m))
		l->now = m;
	msg_unref(m);
	assert(topic_retained(&topics, p.topic) == l->now);
}

static void
lapse(void)
{
	int64_t now = 1000 + (int64_t)get(8);
	struct timer *t;

	while ((t = timer_due(&timers, now)))
		topic_lapse(&topics, t);
	for (size_t i = 0; i < N(leaves); i++)
		if (leaves[i].now && !topic_retained(&topics,
		    str(leaves[i].topic)))
			unretain(&leaves[i]);
	assert(timer_next(&timers) > now);
}

/* ---- scans ---- */

static void
begin_scan(struct row *r)
{
	if (!r->sub || *r->group)
		return;
	r->scanning = scan_start(&topics, r->sub, str(r->path),
	    &r->who->scans);
	assert(!r->scanning || r->who->scans == r->sub->scan);
	for (size_t i = 0; i < N(leaves); i++) {
		r->always[i] = leaves[i].now;
		r->found[i] = false;
	}
}

static void
scan(struct row *r)
{
	uint32_t most = get(16), steps = most;
	struct msg *m;
	size_t i = 0;

	if (!r->scanning)
		return;
	m = scan_next(&topics, r->sub->scan, &steps);
	assert(steps <= most && (!m || steps < most));
	if (m) {
		while (i < N(leaves) && leaves[i].now != m)
			i++;
		assert(i < N(leaves) && !r->found[i]);
		assert(matches(r->path, leaves[i].topic));
		r->found[i] = true;
	} else if (steps > 0) {
		for (; i < N(leaves); i++)
			assert(!r->always[i] || r->found[i] ||
			    !matches(r->path, leaves[i].topic));
		scan_end(&topics, r->sub->scan);
		r->scanning = false;
	}
}

/* ---- the whole ---- */

static void
operation(void)
{
	unsigned what = get(32);

	/* One in four has only little memory: 0, 16, 32... bytes more. */
	if (what >= 24)
		mem_set_limit(mem_used() + 1 + 16u * get(64));
	switch (what % 8) {
	case 0:
		subscribe();
		break;
	case 1:
		unsubscribe(&rows[get(N(rows))]);
		break;
	case 2:
		match();
		break;
	case 3:
	case 4:
		retain(what % 8 == 4);
		break;
	case 5:
		begin_scan(&rows[get(N(rows))]);
		break;
	case 6:
		scan(&rows[get(N(rows))]);
		break;
	default:
		lapse();
	}
	mem_set_limit(0);
}

static void
check_counts(void)
{
	uint32_t subs = 0, shared = 0, retained = 0;

	for (size_t i = 0; i < N(rows); i++) {
		subs += rows[i].sub != NULL;
		shared += rows[i].sub && *rows[i].group;
		assert(!rows[i].sub ||
		    rows[i].scanning == (rows[i].sub->scan != NULL));
	}
	for (size_t i = 0; i < N(leaves); i++)
		retained += leaves[i].now != NULL;
	assert(topics.n_subs == subs && topics.n_shared == shared);
	assert(topics.subs.n == subs && topics.n_retained == retained);
	assert(msg_count() == retained);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	assert(topics_init(&topics, &timers, 1));
	at = data;
	end = data + size;
	while (at < end) {
		operation();
		check_counts();
	}
	for (size_t i = 0; i < N(rows); i++)
		unsubscribe(&rows[i]);
	for (size_t i = 0; i < N(people); i++)
		assert(!people[i].subs && !people[i].scans);
	assert(topics.filters.nodes.n == 0 && topics.groups.n == 0);
	/* Every second input leaves its messages to topics_fini. */
	for (size_t i = 0; size % 2 && i < N(leaves) && leaves[i].topic[0]; i++)
		unretain(&leaves[i]);
	assert(size % 2 == 0 || topics.topics.nodes.n == 0);
	topics_fini(&topics);
	timers_fini(&timers);
	timers = (struct timers){ 0 };
	memset(leaves, 0, sizeof leaves);
	assert(mem_used() == 0 && msg_count() == 0);
	return 0;
}
