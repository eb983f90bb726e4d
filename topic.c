#include "topic.h"
#include "mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An expiry of a retained message. */
struct lapse {
	struct timer timer;
	struct node *node;
};

/* The cache of matches is emptied when it has grown to this; with a memory
 * limit, to a sixteenth of that. One match may be larger. */
#define CACHE_BYTES (4u << 20)

struct levels {
	unsigned n;
	struct mqtt_str at[MQTT_LEVELS_MAX];
};

static void
split(struct mqtt_str s, struct levels *l)
{
	const uint8_t *p = s.p, *end = s.p + s.len, *slash;

	for (l->n = 0; l->n < MQTT_LEVELS_MAX; p = slash + 1) {
		slash = memchr(p, '/', (size_t)(end - p));
		l->at[l->n++] = (struct mqtt_str){ p,
		    (uint32_t)((slash ? slash : end) - p) };
		if (!slash)
			return;
	}
}

static bool
is(struct mqtt_str s, char c)
{
	return s.len == 1 && s.p[0] == c;
}

/* ---- nodes ---- */

static uint32_t
node_hash(const struct node *parent, struct mqtt_str name)
{
	return hash_bytes(name.p, name.len, (uintptr_t)parent);
}

static struct node *
child(const struct tree *t, const struct node *parent, struct mqtt_str name)
{
	struct hash_link *l;

	if (!parent->child)
		return NULL;
	for (l = hash_first(&t->nodes, node_hash(parent, name)); l;
	    l = hash_next(l)) {
		struct node *n = HASH_OBJECT(l, struct node, link);

		if (n->parent == parent && n->name_len == name.len &&
		    memcmp(n->name, name.p, name.len) == 0)
			return n;
	}
	return NULL;
}

static struct node *
add_child(struct tree *t, struct node *parent, struct mqtt_str name)
{
	struct node *n = mem_zalloc(sizeof *n + name.len);

	if (!n)
		return NULL;
	if (!hash_put(&t->nodes, &n->link, node_hash(parent, name))) {
		mem_free(n, sizeof *n + name.len);
		return NULL;
	}
	n->parent = parent;
	n->name_len = (uint16_t)name.len;
	memcpy(n->name, name.p, name.len);
	n->next = parent->child;
	if (n->next)
		n->next->prev = &n->next;
	n->prev = &parent->child;
	parent->child = n;
	return n;
}

/* Frees n and its parents as far as nothing needs them any more. */
static void
prune(struct tree *t, struct node *n)
{
	struct node *parent;

	for (; n != t->root && !n->child && !n->subs && !n->groups &&
	    !n->pins; n = parent) {
		parent = n->parent;
		hash_remove(&t->nodes, &n->link);
		*n->prev = n->next;
		if (n->next)
			n->next->prev = n->prev;
		mem_free(n, sizeof *n + n->name_len);
	}
}

static struct node *
find(const struct tree *t, struct mqtt_str path)
{
	const struct node *n = t->root;
	struct levels l;

	split(path, &l);
	for (unsigned i = 0; i < l.n && n; i++)
		n = child(t, n, l.at[i]);
	return (struct node *)(uintptr_t)n;
}

static struct node *
find_or_add(struct tree *t, struct mqtt_str path)
{
	struct node *n = t->root, *next;
	struct levels l;

	split(path, &l);
	for (unsigned i = 0; i < l.n; i++, n = next) {
		next = child(t, n, l.at[i]);
		if (!next)
			next = add_child(t, n, l.at[i]);
		if (!next) {
			prune(t, n);
			return NULL;
		}
	}
	return n;
}

/* The path of a node as text; the number of bytes, cut at size. */
static size_t
path_text(const struct node *n, char *out, size_t size)
{
	size_t len = 0;

	if (n->parent->parent) {
		len = path_text(n->parent, out, size);
		if (len < size)
			out[len++] = '/';
	}
	for (unsigned i = 0; i < n->name_len && len < size; i++)
		out[len++] = (char)n->name[i];
	return len;
}

/* ---- subscriptions ---- */

static uint32_t
group_hash(const struct node *n, struct mqtt_str name)
{
	return hash_bytes(name.p, name.len, (uintptr_t)n);
}

static struct group *
find_group(struct topics *t, const struct node *n, struct mqtt_str name)
{
	struct hash_link *l;

	for (l = hash_first(&t->groups, group_hash(n, name)); l;
	    l = hash_next(l)) {
		struct group *g = HASH_OBJECT(l, struct group, link);

		if (g->node == n && g->name_len == name.len &&
		    memcmp(g->name, name.p, name.len) == 0)
			return g;
	}
	return NULL;
}

static struct group *
add_group(struct topics *t, struct node *n, struct mqtt_str name)
{
	struct group *g = mem_zalloc(sizeof *g + name.len);

	if (!g)
		return NULL;
	if (!hash_put(&t->groups, &g->link, group_hash(n, name))) {
		mem_free(g, sizeof *g + name.len);
		return NULL;
	}
	g->node = n;
	g->name_len = (uint16_t)name.len;
	memcpy(g->name, name.p, name.len);
	g->next = n->groups;
	if (g->next)
		g->next->prev = &g->next;
	g->prev = &n->groups;
	n->groups = g;
	return g;
}

void
group_ref(struct group *g)
{
	g->refs++;
}

void
group_unref(struct topics *t, struct group *g)
{
	if (--g->refs)
		return;
	hash_remove(&t->groups, &g->link);
	*g->prev = g->next;
	if (g->next)
		g->next->prev = g->prev;
	t->generation++;
	prune(&t->filters, g->node);
	mem_free(g, sizeof *g + g->name_len);
}

static uint32_t
sub_hash(const struct session *s, const void *place)
{
	uintptr_t k[2] = { (uintptr_t)s, (uintptr_t)place };

	return hash_bytes(k, sizeof k, 0);
}

/* place: the node of a plain subscription, the group of a shared one. */
static struct sub *
sub_at(const struct topics *t, const struct session *s, const void *place)
{
	struct hash_link *l;

	for (l = hash_first(&t->subs, sub_hash(s, place)); l;
	    l = hash_next(l)) {
		struct sub *sub = HASH_OBJECT(l, struct sub, link);
		const void *at = sub->group ? (void *)sub->group :
		    (void *)sub->node;

		if (sub->session == s && at == place)
			return sub;
	}
	return NULL;
}

static void
link_sub(struct sub **head, struct sub *sub)
{
	sub->next = *head;
	if (sub->next)
		sub->next->prev = &sub->next;
	sub->prev = head;
	*head = sub;
}

static void
link_mine(struct sub **head, struct sub *sub)
{
	sub->mine_next = *head;
	if (sub->mine_next)
		sub->mine_next->mine_prev = &sub->mine_next;
	sub->mine_prev = head;
	*head = sub;
}

static struct sub *
add_sub(struct topics *t, struct session *s, struct sub **mine,
    struct node *node, struct group *g)
{
	struct sub *sub = mem_zalloc(sizeof *sub);

	if (!sub)
		return NULL;
	if (!hash_put(&t->subs, &sub->link, sub_hash(s, g ? (void *)g :
	    (void *)node))) {
		mem_free(sub, sizeof *sub);
		return NULL;
	}
	sub->session = s;
	sub->node = node;
	sub->group = g;
	link_sub(g ? &g->members : &node->subs, sub);
	link_mine(mine, sub);
	if (g) {
		group_ref(g);
		t->n_shared++;
	}
	t->n_subs++;
	return sub;
}

/* Where a filter's subscriptions stand: its node, and its group if it is
 * shared. Makes both if add is set. */
static bool
place_of(struct topics *t, struct mqtt_str filter, bool add,
    struct node **node, struct group **g)
{
	struct mqtt_str name, rest = filter;
	bool shared = mqtt_is_shared(filter);

	*g = NULL;
	if (shared && !mqtt_split_shared(filter, &name, &rest))
		return false;
	*node = add ? find_or_add(&t->filters, rest) : find(&t->filters, rest);
	if (!*node)
		return false;
	if (!shared)
		return true;
	*g = find_group(t, *node, name);
	if (!*g && add)
		*g = add_group(t, *node, name);
	if (!*g && add)
		prune(&t->filters, *node);
	return *g != NULL;
}

struct sub *
topic_subscribe(struct topics *t, struct session *s, struct sub **mine,
    const struct mqtt_filter *f, uint32_t id, bool *is_new)
{
	struct node *node;
	struct group *g;
	struct sub *sub;

	if (!place_of(t, f->filter, true, &node, &g))
		return NULL;
	sub = sub_at(t, s, g ? (void *)g : (void *)node);
	*is_new = !sub;
	if (!sub)
		sub = add_sub(t, s, mine, node, g);
	if (!sub) {
		if (g && g->refs == 0) {
			group_ref(g);
			group_unref(t, g);
		} else {
			prune(&t->filters, node);
		}
		return NULL;
	}
	sub->id = id;
	sub->qos = f->qos;
	sub->no_local = f->no_local;
	sub->retain_as_published = f->retain_as_published;
	t->generation++;
	return sub;
}

struct sub *
topic_find_sub(struct topics *t, const struct session *s,
    struct mqtt_str filter)
{
	struct node *node;
	struct group *g;

	if (!place_of(t, filter, false, &node, &g))
		return NULL;
	return sub_at(t, s, g ? (void *)g : (void *)node);
}

void
topic_unsubscribe(struct topics *t, struct sub *sub)
{
	struct group *g = sub->group;

	if (sub->scan)
		scan_end(t, sub->scan);
	hash_remove(&t->subs, &sub->link);
	if (g && g->turn == sub)
		g->turn = sub->next;
	*sub->prev = sub->next;
	if (sub->next)
		sub->next->prev = sub->prev;
	*sub->mine_prev = sub->mine_next;
	if (sub->mine_next)
		sub->mine_next->mine_prev = sub->mine_prev;
	t->generation++;
	t->n_subs--;
	if (g) {
		t->n_shared--;
		group_unref(t, g);
	} else {
		prune(&t->filters, sub->node);
	}
	mem_free(sub, sizeof *sub);
}

uint32_t
topic_sub_weight(const struct sub *sub)
{
	uint32_t levels = 0, bytes = sub->group ? sub->group->name_len : 0;

	for (const struct node *n = sub->node; n->parent; n = n->parent) {
		levels++;
		bytes += n->name_len;
	}
	return 1 + levels / 16 + bytes / 1024;
}

void
topic_filter_text(const struct sub *sub, char *out, size_t size)
{
	size_t n = 0;

	if (sub->group)
		n = (size_t)snprintf(out, size, "$share/%.*s/",
		    sub->group->name_len, (const char *)sub->group->name);
	if (n + 1 > size)
		n = size - 1;
	n += path_text(sub->node, out + n, size - 1 - n);
	out[n] = 0;
}

/* ---- matching ---- */

static bool
collect_one(struct topics *t, void *p)
{
	if (t->found_n == t->found_cap) {
		uint32_t cap = t->found_cap ? t->found_cap * 2 : 64;
		void *q = mem_resize(t->found, t->found_cap * sizeof p,
		    cap * sizeof p);

		if (!q)
			return false;
		t->found = q;
		t->found_cap = cap;
	}
	t->found[t->found_n++] = p;
	return true;
}

/* A node whose filter matches: its subscriptions, or (pass 2) its groups. */
static bool
collect(struct topics *t, const struct node *n, bool groups)
{
	if (!n)
		return true;
	for (struct sub *s = groups ? NULL : n->subs; s; s = s->next)
		if (!collect_one(t, s))
			return false;
	for (struct group *g = groups ? n->groups : NULL; g; g = g->next)
		if (g->members && !collect_one(t, g))
			return false;
	return true;
}

/* Section 4.7.1: n matches the first i levels. # matches the rest, and also
 * none; wildcards in the first level do not match $... [MQTT-4.7.2-1]. */
static bool
walk(struct topics *t, const struct node *n, const struct levels *l,
    unsigned i, bool groups)
{
	const struct tree *f = &t->filters;
	bool wild = i > 0 || l->at[0].len == 0 || l->at[0].p[0] != '$';
	const struct node *next;

	t->visits++;
	if (wild && !collect(t, child(f, n, (struct mqtt_str){
	    (const uint8_t *)"#", 1 }), groups))
		return false;
	if (i == l->n)
		return collect(t, n, groups);
	next = child(f, n, l->at[i]);
	if (next && !walk(t, next, l, i + 1, groups))
		return false;
	next = wild ? child(f, n, (struct mqtt_str){
	    (const uint8_t *)"+", 1 }) : NULL;
	return !next || walk(t, next, l, i + 1, groups);
}

static int
by_session(const void *a, const void *b)
{
	const struct sub *x = *(struct sub *const *)a;
	const struct sub *y = *(struct sub *const *)b;

	return (x->session > y->session) - (x->session < y->session);
}

/* Whether subscriptions of more than one node were found: only then can a
 * session stand in the list twice. */
static bool
overlap(const struct topics *t, uint32_t n)
{
	const struct sub *const *s = (const struct sub *const *)t->found;

	for (uint32_t i = 1; i < n; i++)
		if (s[i]->node != s[0]->node)
			return true;
	return false;
}

static size_t
match_size(const struct match *m)
{
	return sizeof *m + ((size_t)m->n_subs + m->n_groups) * sizeof(void *) +
	    m->topic_len + m->n_subs;
}

static uint8_t *
match_topic(const struct match *m)
{
	return (uint8_t *)(uintptr_t)(m->who + m->n_subs + m->n_groups);
}

static struct match *
resolve(struct topics *t, struct mqtt_str topic, uint32_t hash)
{
	struct match head = { .hash = hash, .generation = t->generation,
	    .topic_len = topic.len }, *m;
	struct levels l;

	split(topic, &l);
	t->found_n = 0;
	if (!walk(t, t->filters.root, &l, 0, false))
		return NULL;
	head.n_subs = t->found_n;
	if (overlap(t, head.n_subs))
		qsort(t->found, head.n_subs, sizeof *t->found, by_session);
	if (t->groups.n && !walk(t, t->filters.root, &l, 0, true))
		return NULL;
	head.n_groups = t->found_n - head.n_subs;
	m = mem_alloc_passing(match_size(&head));
	if (!m)
		return NULL;
	*m = head;
	if (t->found_n)
		memcpy(m->who, t->found, t->found_n * sizeof *t->found);
	memcpy(match_topic(m), topic.p, topic.len);
	if (m->n_subs)
		memset(match_mark(m, 0), 0, m->n_subs);
	return m;
}

void
topic_forget_marks(struct topics *t)
{
	t->generation++;
}

static bool
match_is(const struct match *m, struct mqtt_str topic, uint32_t hash)
{
	return m && m->hash == hash && m->topic_len == topic.len &&
	    memcmp(match_topic(m), topic.p, topic.len) == 0;
}

static void
drop_match(struct topics *t, struct match **m)
{
	if (!*m)
		return;
	t->cached -= match_size(*m);
	mem_free(*m, match_size(*m));
	*m = NULL;
}

static void
empty_cache(struct topics *t)
{
	for (uint32_t i = 0; t->cache && i < TOPIC_CACHE; i++)
		drop_match(t, &t->cache[i]);
}

const struct match *
topic_match(struct topics *t, struct mqtt_str topic)
{
	uint32_t hash = hash_bytes(topic.p, topic.len, 0);
	struct match **set = &t->cache[hash % TOPIC_CACHE & ~1u], *m;

	t->visits = 0;
	for (int i = 0; i < 2; i++)
		if (match_is(set[i], topic, hash) &&
		    set[i]->generation == t->generation)
			return set[i];
	m = resolve(t, topic, hash);
	if (!m) {
		empty_cache(t);
		m = resolve(t, topic, hash);
	}
	if (!m)
		return NULL;
	if (t->cached + match_size(m) > t->cache_max)
		empty_cache(t);
	/* Replace our own old entry, else the older place of the two. */
	if (!match_is(set[0], topic, hash)) {
		struct match *old = set[1];

		set[1] = set[0];
		set[0] = old;
	}
	drop_match(t, &set[0]);
	set[0] = m;
	t->cached += match_size(m);
	return m;
}

/* ---- retained messages ---- */

static bool
set_lapse(struct topics *t, struct node *n, const struct msg *m)
{
	struct lapse *l = n->lapse;

	if (!l && m->expires_ms != MSG_NEVER) {
		l = mem_alloc(sizeof *l);
		if (!l)
			return false;
		if (!timer_init(t->timers, &l->timer, t->timer_kind)) {
			mem_free(l, sizeof *l);
			return false;
		}
		l->node = n;
		n->lapse = l;
	}
	if (l)
		timer_set(t->timers, &l->timer, m->expires_ms);
	return true;
}

static void
drop_lapse(struct topics *t, struct node *n)
{
	if (!n->lapse)
		return;
	timer_fini(t->timers, &n->lapse->timer);
	mem_free(n->lapse, sizeof *n->lapse);
	n->lapse = NULL;
}

static uint32_t
source_hash(const struct node *n)
{
	return hash_bytes(&n, sizeof n, 0);
}

const struct source *
topic_source(const struct topics *t, const struct node *n)
{
	struct hash_link *l;

	if (t->sources.n == 0)
		return NULL;
	for (l = hash_first(&t->sources, source_hash(n)); l; l = hash_next(l)) {
		struct source *s = HASH_OBJECT(l, struct source, link);

		if (s->node == n)
			return s;
	}
	return NULL;
}

static void
drop_source(struct topics *t, const struct node *n)
{
	struct source *s = (struct source *)(uintptr_t)topic_source(t, n);

	if (!s)
		return;
	hash_remove(&t->sources, &s->link);
	mem_free(s, sizeof *s + s->user_len + s->id_len);
}

bool
topic_note_source(struct topics *t, struct mqtt_str topic, uint8_t guard,
    struct mqtt_str user, struct mqtt_str id)
{
	size_t size = sizeof(struct source) + user.len + id.len;
	const struct node *n = find(&t->topics, topic);
	struct source *s = mem_alloc(size);

	if (!s)
		return false;
	if (!hash_put(&t->sources, &s->link, source_hash(n))) {
		mem_free(s, size);
		return false;
	}
	s->node = n;
	s->guard = guard;
	s->has_user = user.p != NULL;
	s->user_len = (uint16_t)user.len;
	s->id_len = (uint16_t)id.len;
	if (user.p)
		memcpy(s->names, user.p, user.len);
	memcpy(s->names + user.len, id.p, id.len);
	return true;
}

static void
drop_retained(struct topics *t, struct node *n)
{
	drop_lapse(t, n);
	drop_source(t, n);
	msg_unref(n->retained);
	n->retained = NULL;
	t->n_retained--;
}

bool
topic_retain(struct topics *t, struct mqtt_str topic, struct msg *m)
{
	struct node *n;

	if (!m) {
		n = find(&t->topics, topic);
		if (n && n->retained) {
			drop_retained(t, n);
			prune(&t->topics, n);
		}
		return true;
	}
	n = find_or_add(&t->topics, topic);
	if (!n)
		return false;
	if (!set_lapse(t, n, m)) {
		prune(&t->topics, n);
		return false;
	}
	if (!n->retained)
		t->n_retained++;
	drop_source(t, n);
	msg_ref(m);
	msg_unref(n->retained);
	n->retained = m;
	if (m->expires_ms == MSG_NEVER)
		drop_lapse(t, n);
	return true;
}

const struct node *
topic_find(const struct topics *t, struct mqtt_str topic)
{
	return find(&t->topics, topic);
}

struct msg *
topic_retained(struct topics *t, struct mqtt_str topic)
{
	struct node *n = find(&t->topics, topic);

	return n ? n->retained : NULL;
}

static const struct node *
next_node(const struct node *n)
{
	if (n->child)
		return n->child;
	while (n && !n->next)
		n = n->parent;
	return n ? n->next : NULL;
}

const struct node *
topic_next_retained(const struct topics *t, const struct node *n)
{
	n = next_node(n ? n : t->topics.root);
	while (n && !n->retained)
		n = next_node(n);
	return n;
}

void
topic_text(const struct node *n, char *out, size_t size)
{
	out[path_text(n, out, size - 1)] = 0;
}

void
topic_lapse(struct topics *t, struct timer *timer)
{
	struct lapse *l = (struct lapse *)(void *)((char *)timer -
	    offsetof(struct lapse, timer));
	struct node *n = l->node;

	drop_retained(t, n);
	prune(&t->topics, n);
}

/* ---- scans ---- */

bool
scan_start(struct topics *t, struct sub *sub, struct mqtt_str filter,
    struct scan **list)
{
	struct scan *s;

	if (sub->scan)
		scan_end(t, sub->scan);
	s = mem_alloc(sizeof *s + filter.len);
	if (!s)
		return false;
	*s = (struct scan){ .sub = sub, .at = t->topics.root, .next = *list,
	    .prev = list, .filter_len = filter.len };
	memcpy(s->filter, filter.p, filter.len);
	if (s->next)
		s->next->prev = &s->next;
	*list = s;
	sub->scan = s;
	s->at->pins++;
	return true;
}

static void
move(struct topics *t, struct scan *s, struct node *to)
{
	struct node *from = s->at;

	s->at = to;
	if (to)
		to->pins++;
	from->pins--;
	prune(&t->topics, from);
}

void
scan_end(struct topics *t, struct scan *s)
{
	if (s->at)
		move(t, s, NULL);
	*s->prev = s->next;
	if (s->next)
		s->next->prev = s->prev;
	s->sub->scan = NULL;
	mem_free(s, sizeof *s + s->filter_len);
}

/* Whether level i of the filter, or the # that ends it, takes any name. */
static bool
any_name(const struct levels *l, unsigned i)
{
	return i < l->n ? is(l->at[i], '+') || is(l->at[i], '#') :
	    is(l->at[l->n - 1], '#');
}

/* Whether the walk stands at a topic in $... that a wildcard in the first level
 * does not match: it goes no deeper there. */
static bool
hidden(const struct scan *s, const struct levels *l)
{
	return s->depth == 1 && any_name(l, 0) && s->at->name_len > 0 &&
	    s->at->name[0] == '$';
}

/* The node after s->at in the walk, depth first; NULL at the end. */
static struct node *
successor(struct topics *t, struct scan *s, const struct levels *l)
{
	struct node *n = s->at, *to = NULL;

	if (hidden(s, l))
		to = NULL;
	else if (any_name(l, s->depth))
		to = n->child;
	else if (s->depth < l->n)
		to = child(&t->topics, n, l->at[s->depth]);
	if (to) {
		s->depth++;
		return to;
	}
	for (; n != t->topics.root; n = n->parent, s->depth--)
		if (any_name(l, s->depth - 1) && n->next)
			return n->next;
	return NULL;
}

struct msg *
scan_next(struct topics *t, struct scan *s, uint32_t *steps)
{
	struct mqtt_str filter = { s->filter, s->filter_len };
	struct levels l;
	bool hash;

	split(filter, &l);
	hash = is(l.at[l.n - 1], '#');
	while (s->at && *steps > 0) {
		(*steps)--;
		move(t, s, successor(t, s, &l));
		if (s->at && s->at->retained && !hidden(s, &l) &&
		    (hash ? s->depth >= l.n - 1 : s->depth == l.n))
			return s->at->retained;
	}
	return NULL;
}

/* ---- life ---- */

bool
topics_init(struct topics *t, struct timers *timers, uint32_t kind)
{
	size_t part = mem_limit() / 16;

	*t = (struct topics){ .timers = timers, .timer_kind = kind,
	    .generation = 1, .cache_max = part && part < CACHE_BYTES ? part :
	    CACHE_BYTES };
	t->cache = mem_zalloc(TOPIC_CACHE * sizeof *t->cache);
	t->filters.root = mem_zalloc(sizeof(struct node));
	t->topics.root = mem_zalloc(sizeof(struct node));
	return t->cache && t->filters.root && t->topics.root;
}

void
topics_slim(struct topics *t)
{
	empty_cache(t);
	hash_fit(&t->filters.nodes);
	hash_fit(&t->topics.nodes);
	hash_fit(&t->subs);
	hash_fit(&t->groups);
	hash_fit(&t->sources);
}

static void
free_below(struct topics *t, struct node *n)
{
	struct node *c, *next;

	n->pins++;              /* pruning a child must not take it along */
	for (c = n->child; c; c = next) {
		next = c->next;
		free_below(t, c);
		if (c->retained)
			drop_retained(t, c);
		prune(&t->topics, c);
	}
	n->pins--;
}

void
topics_fini(struct topics *t)
{
	if (t->topics.root)
		free_below(t, t->topics.root);
	empty_cache(t);
	mem_free(t->cache, TOPIC_CACHE * sizeof *t->cache);
	mem_free(t->filters.root, sizeof(struct node));
	mem_free(t->topics.root, sizeof(struct node));
	mem_free(t->found, t->found_cap * sizeof *t->found);
	hash_fini(&t->filters.nodes);
	hash_fini(&t->topics.nodes);
	hash_fini(&t->subs);
	hash_fini(&t->groups);
	hash_fini(&t->sources);
}
