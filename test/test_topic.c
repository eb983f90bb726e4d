/* Tests of topic: matching, shared subscriptions, retained messages, scans. */
#include "check.h"
#include "mem.h"
#include "model.h"
#include "topic.h"

#define N(array) (sizeof(array) / sizeof *(array))

/* Subscribers are opaque to topic, so here they are only two lists. */
struct session {
	struct sub *subs;
	struct scan *scans;
};

static struct session people[8];
static struct timers timers;
static struct topics topics;

static struct mqtt_str
str(const char *text)
{
	return (struct mqtt_str){ (const uint8_t *)text,
	    (uint32_t)strlen(text) };
}

static unsigned
chance(unsigned n)
{
	return (unsigned)rand() % n;
}

static void
begin(void)
{
	CHECK(topics_init(&topics, &timers, 42));
}

/* Both trees must be empty by now, and all memory given back. */
static void
end(void)
{
	CHECK(topics.n_subs == 0 && topics.n_shared == 0);
	CHECK(topics.subs.n == 0 && topics.groups.n == 0);
	CHECK(topics.sources.n == 0);
	CHECK(topics.filters.nodes.n == 0 && topics.topics.nodes.n == 0);
	CHECK(topics.n_retained == 0);
	CHECK(msg_count() == 0 && timers.owners == 0);
	topics_fini(&topics);
	timers_fini(&timers);
	CHECK(mem_used() == 0);
}

static struct sub *
subscribe(struct session *s, const char *filter)
{
	struct mqtt_filter f = { .filter = str(filter) };
	bool is_new;

	return topic_subscribe(&topics, s, &s->subs, &f, 0, &is_new);
}

static void
unsubscribe_all(void)
{
	for (size_t i = 0; i < N(people); i++) {
		while (people[i].subs)
			topic_unsubscribe(&topics, people[i].subs);
		CHECK(!people[i].scans);
	}
}

/* A scan on behalf of a new subscription, or of the one there is. */
static struct scan *
scan(struct session *s, const char *filter)
{
	struct sub *sub = subscribe(s, filter);

	CHECK(sub && scan_start(&topics, sub, str(filter), &s->scans));
	CHECK(s->scans == sub->scan && sub->scan->sub == sub);
	return sub->scan;
}

/* Retains a message with this payload; NULL removes. */
static bool
retain(const char *topic, const char *payload, int64_t expires_ms)
{
	struct mqtt_publish p = { .topic = str(topic) };
	struct msg *m;
	bool ok;

	if (!payload)
		return topic_retain(&topics, p.topic, NULL);
	p.payload = str(payload);
	m = msg_new(&p, expires_ms);
	ok = m && topic_retain(&topics, p.topic, m);
	msg_unref(m);
	return ok;
}

/* ---- which filter matches which topic ---- */

/* The examples of section 4.7 and what they leave open. [MQTT-4.7.1-2]
 * [MQTT-4.7.1-3] [MQTT-4.7.2-1] [MQTT-4.7.3-4] */
static const struct {
	const char *filter, *topic;
	bool match;
} matrix[] = {
	{ "sport/tennis/player1/#", "sport/tennis/player1", true },
	{ "sport/tennis/player1/#", "sport/tennis/player1/ranking", true },
	{ "sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon",
	    true },
	{ "sport/tennis/player1/#", "sport/tennis/player2", false },
	{ "sport/tennis/player1/#", "sport/tennis", false },
	{ "sport/#", "sport", true },
	{ "sport/#", "sports", false },
	{ "#", "sport", true },
	{ "#", "sport/tennis", true },
	{ "#", "/", true },
	{ "sport/tennis/+", "sport/tennis/player1", true },
	{ "sport/tennis/+", "sport/tennis/player1/ranking", false },
	{ "sport/+", "sport", false },
	{ "sport/+", "sport/", true },
	{ "+/+", "/finance", true },
	{ "/+", "/finance", true },
	{ "+", "/finance", false },
	{ "+", "finance", true },
	{ "+/tennis/#", "sport/tennis", true },
	{ "+/tennis/#", "sport/tennis/a/b", true },
	{ "sport/+/player1", "sport/tennis/player1", true },
	{ "sport/+/player1", "sport//player1", true },
	{ "sport/+/player1", "sport/player1", false },
	{ "+/+/+", "a/b/c", true },
	{ "+/+/+", "a/b", false },
	{ "+/+/+", "//", true },
	{ "/", "/", true },
	{ "/", "//", false },
	{ "//", "/", false },
	{ "/#", "/", true },
	{ "/#", "a", false },
	{ "//#", "/", true },
	{ "a", "a", true },
	{ "a", "A", false },
	{ "a", "/a", false },
	{ "a", "a/", false },
	{ "a/", "a", false },
	{ "a b", "a b", true },
	{ "+/#", "a", true },
	{ "+/#", "/a/b", true },
	{ "a/+/#", "a", false },
	{ "a/+/#", "a/b", true },
	{ "a/+/#", "a/b/c/d", true },
	{ "#", "$SYS", false },
	{ "#", "$SYS/monitor/Clients", false },
	{ "+/monitor/Clients", "$SYS/monitor/Clients", false },
	{ "+", "$SYS", false },
	{ "+/#", "$SYS/a", false },
	{ "$SYS/#", "$SYS/monitor/Clients", true },
	{ "$SYS/#", "$SYS", true },
	{ "$SYS/monitor/+", "$SYS/monitor/Clients", true },
	{ "$SYS/+/Clients", "$SYS/monitor/Clients", true },
	{ "$", "$", true },
	{ "#", "$", false },
	{ "a/#", "a/$SYS", true },
	{ "a/+", "a/$SYS", true },
	{ "#", "a/$SYS", true },
	{ "/#", "/$SYS", true },
	{ "+/+", "/$SYS", true },
	{ "$share", "$share", true },
};

TEST(match_matrix)
{
	begin();
	for (size_t i = 0; i < N(matrix); i++) {
		const char *f = matrix[i].filter, *t = matrix[i].topic;
		struct sub *sub;
		const struct match *m;

		CHECK(matches(f, t) == matrix[i].match);
		if (strcmp(f, "$share") == 0)
			continue;       /* no filter for topic_subscribe */
		sub = subscribe(people, f);
		m = topic_match(&topics, str(t));
		CHECK(m->n_subs == matrix[i].match && m->n_groups == 0);
		CHECK(m->n_subs == 0 || match_sub(m, 0) == sub);
		topic_unsubscribe(&topics, sub);
	}
	end();
}

/* The same by way of a retained message. */
TEST(scan_matrix)
{
	begin();
	for (size_t i = 0; i < N(matrix); i++) {
		struct scan *s;
		uint32_t steps = 1000;

		if (strcmp(matrix[i].filter, "$share") == 0)
			continue;       /* no filter for topic_subscribe */
		s = scan(people, matrix[i].filter);
		CHECK(retain(matrix[i].topic, "x", MSG_NEVER));
		CHECK(scan_next(&topics, s, &steps) ==
		    (matrix[i].match ? topic_retained(&topics,
		    str(matrix[i].topic)) : NULL));
		CHECK(!scan_next(&topics, s, &steps) && steps > 0 && !s->at);
		retain(matrix[i].topic, NULL, 0);
		unsubscribe_all();
	}
	end();
}

TEST(match_the_deepest)
{
	char topic[2 * MQTT_LEVELS_MAX], filter[2 * MQTT_LEVELS_MAX];
	struct scan *s;
	uint32_t steps = 1000;

	memset(topic, '/', sizeof topic);
	memset(filter, '/', sizeof filter);
	for (int i = 0; i < MQTT_LEVELS_MAX; i++) {
		topic[2 * i] = 'a';
		filter[2 * i] = i % 2 ? '+' : 'a';
	}
	topic[sizeof topic - 1] = filter[sizeof filter - 1] = 0;
	begin();
	CHECK(subscribe(people, filter) && subscribe(people, topic));
	CHECK(topic_match(&topics, str(topic))->n_subs == 2);
	CHECK(retain(topic, "x", MSG_NEVER));
	s = scan(people, filter);
	CHECK(scan_next(&topics, s, &steps));
	filter[sizeof filter - 2] = '#';
	CHECK(subscribe(people, filter));
	topic[sizeof topic - 3] = 0;
	CHECK(topic_match(&topics, str(topic))->n_subs == 1);
	topic[sizeof topic - 3] = '/';
	retain(topic, NULL, 0);
	unsubscribe_all();
	end();
}

/* ---- subscriptions ---- */

TEST(subscribing_again_replaces)
{
	struct mqtt_filter f = { .filter = str("a/b"), .qos = 2,
	    .no_local = true, .retain_as_published = true };
	struct session *s = people;
	struct sub *sub;
	bool is_new = false;

	begin();
	sub = topic_subscribe(&topics, s, &s->subs, &f, 7, &is_new);
	CHECK(sub && is_new && sub->session == s && sub->id == 7);
	CHECK(sub->qos == 2 && sub->no_local && sub->retain_as_published);
	f = (struct mqtt_filter){ .filter = str("a/b"), .qos = 1 };
	CHECK(topic_subscribe(&topics, s, &s->subs, &f, 0, &is_new) == sub);
	CHECK(!is_new && sub->id == 0 && sub->qos == 1 && !sub->no_local);
	CHECK(!sub->retain_as_published && topics.n_subs == 1);
	CHECK(s->subs == sub && !sub->mine_next);
	f.filter = str("$share/g/a/b");
	CHECK(topic_subscribe(&topics, s, &s->subs, &f, 0, &is_new) != sub);
	CHECK(is_new && topics.n_subs == 2 && topics.n_shared == 1);
	topic_subscribe(&topics, s, &s->subs, &f, 0, &is_new);
	CHECK(!is_new && topics.n_subs == 2 && topics.n_shared == 1);
	unsubscribe_all();
	end();
}

TEST(subscriptions_are_found)
{
	struct sub *a, *b, *c, *d;

	begin();
	a = subscribe(&people[0], "a/+");
	b = subscribe(&people[1], "a/+");
	c = subscribe(&people[0], "$share/g/a/+");
	d = subscribe(&people[0], "$share/h/a/+");
	CHECK(topic_find_sub(&topics, &people[0], str("a/+")) == a);
	CHECK(topic_find_sub(&topics, &people[1], str("a/+")) == b);
	CHECK(topic_find_sub(&topics, &people[0], str("$share/g/a/+")) == c);
	CHECK(topic_find_sub(&topics, &people[0], str("$share/h/a/+")) == d);
	CHECK(!topic_find_sub(&topics, &people[1], str("$share/g/a/+")));
	CHECK(!topic_find_sub(&topics, &people[0], str("$share/i/a/+")));
	CHECK(!topic_find_sub(&topics, &people[0], str("a")));
	CHECK(!topic_find_sub(&topics, &people[0], str("a/b")));
	CHECK(!topic_find_sub(&topics, &people[0], str("a/+/b")));
	/* These cannot be subscribed to; asking for them is harmless. */
	CHECK(!topic_find_sub(&topics, &people[0], str("$share/g")));
	CHECK(!topic_find_sub(&topics, &people[0], str("$share/")));
	CHECK(!topic_find_sub(&topics, &people[0], str("$share//a")));
	CHECK(topics.filters.nodes.n == 2);
	unsubscribe_all();
	end();
}

TEST(filters_as_text)
{
	static const char *const filters[] = { "a", "/", "a/b/+/#", "//", "+",
	    "$share/group/a/b", "$share/g/#", "$share/g//" };
	char out[64], want[64];

	begin();
	for (size_t i = 0; i < N(filters); i++) {
		struct sub *sub = subscribe(people, filters[i]);

		for (size_t size = 1; size < sizeof out; size++) {
			memset(out, 'x', sizeof out);
			snprintf(want, size, "%s", filters[i]);
			topic_filter_text(sub, out, size);
			CHECK(strcmp(out, want) == 0 && out[size] == 'x');
		}
	}
	unsubscribe_all();
	end();
}

/* Subscriptions of one session stand side by side, so that it can be given
 * one copy with all identifiers. */
TEST(match_overlapping)
{
	static const char *const filters[] = { "a/b", "a/+", "+/b", "a/#", "#",
	    "+/+/#" };
	const struct match *m;
	unsigned changes = 0;

	begin();
	for (size_t f = 0; f < N(filters); f++)
		for (size_t i = 0; i < N(people); i++)
			CHECK(subscribe(&people[(i + f) % N(people)],
			    filters[f]));
	m = topic_match(&topics, str("a/b"));
	CHECK(m->n_subs == N(filters) * N(people));
	for (uint32_t i = 1; i < m->n_subs; i++)
		changes += match_sub(m, i)->session !=
		    match_sub(m, i - 1)->session;
	CHECK(changes == N(people) - 1);
	unsubscribe_all();
	CHECK(topic_match(&topics, str("a/b"))->n_subs == 0);
	end();
}

TEST(match_again)
{
	const struct match *m;

	begin();
	subscribe(people, "a");
	m = topic_match(&topics, str("a"));
	CHECK(topic_match(&topics, str("a")) == m && m->n_subs == 1);
	subscribe(&people[1], "+");
	CHECK(topic_match(&topics, str("a"))->n_subs == 2);
	topic_unsubscribe(&topics, people[0].subs);
	m = topic_match(&topics, str("a"));
	CHECK(m->n_subs == 1 && match_sub(m, 0)->session == &people[1]);
	unsubscribe_all();
	CHECK(topic_match(&topics, str("a"))->n_subs == 0);
	end();
}

/* More topics than the cache has places: never a wrong answer, and the memory
 * stays bounded. */
TEST(match_many_topics)
{
	size_t used = 0;
	char topic[16];

	begin();
	subscribe(people, "t/+/0");
	subscribe(people, "t/7/#");
	for (unsigned i = 0; i < 200000; i++) {
		unsigned a = (i / 10) % 20000, b = chance(10);
		int n = snprintf(topic, sizeof topic, "t/%05u/%u", a, b);

		CHECK(n == 9);
		CHECK(topic_match(&topics, str(topic))->n_subs == (b == 0));
		if (i == 150000)
			used = mem_used();
	}
	CHECK(mem_used() < used + 4096 * 16);
	CHECK(topic_match(&topics, str("t/7/0"))->n_subs == 2);
	unsubscribe_all();
	end();
}

/* ---- shared subscriptions ---- */

static bool
group_is(const struct group *g, const char *name)
{
	return g->name_len == strlen(name) &&
	    memcmp(g->name, name, g->name_len) == 0;
}

TEST(group_is_matched_once)
{
	const struct match *m;
	struct sub *a, *b, *c;

	begin();
	a = subscribe(&people[0], "$share/g/a/+");
	b = subscribe(&people[1], "$share/g/a/+");
	c = subscribe(&people[1], "a/b");
	CHECK(a->group == b->group && !c->group && topics.groups.n == 1);
	m = topic_match(&topics, str("a/b"));
	CHECK(m->n_subs == 1 && match_sub(m, 0) == c);
	CHECK(m->n_groups == 1 && match_group(m, 0) == a->group);
	CHECK(group_is(a->group, "g") && a->group->refs == 2);
	/* Another name or another filter is another group. */
	subscribe(&people[0], "$share/h/a/+");
	subscribe(&people[0], "$share/g/#");
	m = topic_match(&topics, str("a/b"));
	CHECK(m->n_subs == 1 && m->n_groups == 3);
	CHECK(match_group(m, 0) != match_group(m, 1));
	CHECK(match_group(m, 1) != match_group(m, 2));
	CHECK(topic_match(&topics, str("$SYS/x"))->n_groups == 0);
	unsubscribe_all();
	end();
}

TEST(group_turn_survives_who_leaves)
{
	struct sub *sub[3];
	struct group *g;

	begin();
	for (int i = 0; i < 3; i++)
		sub[i] = subscribe(&people[i], "$share/g/a");
	g = sub[0]->group;
	g->turn = g->members->next;
	for (int left = 3; left > 0; left--) {
		struct sub *turn = g->turn ? g->turn : g->members;
		struct sub *next = turn->next;

		CHECK(g->refs == (uint32_t)left);
		group_ref(g);
		topic_unsubscribe(&topics, turn);
		CHECK(g->turn == next);
		if (left > 1)
			group_unref(&topics, g);
	}
	CHECK(!g->members && g->refs == 1);
	group_unref(&topics, g);
	end();
}

/* A group whose members have left stays while a message refers to it, but
 * gets no more of them; who comes back finds it. */
TEST(group_without_members)
{
	struct sub *sub;
	struct group *g;

	begin();
	sub = subscribe(people, "$share/g/a");
	g = sub->group;
	group_ref(g);
	topic_unsubscribe(&topics, sub);
	CHECK(topic_match(&topics, str("a"))->n_groups == 0);
	CHECK(!topic_find_sub(&topics, people, str("$share/g/a")));
	CHECK(topics.groups.n == 1);
	sub = subscribe(people, "$share/g/a");
	CHECK(sub->group == g && g->refs == 2);
	CHECK(topic_match(&topics, str("a"))->n_groups == 1);
	group_unref(&topics, g);
	topic_unsubscribe(&topics, sub);
	end();
}

/* ---- subscriptions against a model ---- */

/* A filter or topic of up to five short levels. */
static void
random_name(char *out, bool filter)
{
	static const char *const names[] = { "a", "b", "", "aa", "$", "$a",
	    "+", "+", "#" };
	unsigned levels = 1 + chance(5), kinds = filter ? N(names) : 6;
	const char *name;

	*out = 0;
	for (unsigned i = 0; i < levels; i++) {
		name = names[chance(kinds)];
		strcat(strcat(out, i ? "/" : ""), name);
		if (*name == '#')
			break;
	}
	if (!*out)
		strcpy(out, "/");
}

/* "", "g" or "h": the group; path: the filter without $share. */
static struct row {
	char path[32];
	const char *group;
	struct session *who;
	struct sub *sub;
} rows[150];

static void
row_text(const struct row *r, char *out)
{
	if (*r->group)
		sprintf(out, "$share/%s/%s", r->group, r->path);
	else
		strcpy(out, r->path);
}

static struct row *
find_row(const struct row *like)
{
	for (struct row *r = rows; r < rows + N(rows); r++)
		if (r->sub && r->who == like->who &&
		    strcmp(r->group, like->group) == 0 &&
		    strcmp(r->path, like->path) == 0)
			return r;
	return NULL;
}

/* Subscribes as want says, into the free row r unless it is there already. */
static void
subscribe_row(struct row want, struct row *r)
{
	struct mqtt_filter f = { .qos = (uint8_t)chance(3) };
	struct row *old = find_row(&want);
	char text[64], back[64];
	bool is_new;

	row_text(&want, text);
	f.filter = str(text);
	CHECK(topic_find_sub(&topics, want.who, f.filter) ==
	    (old ? old->sub : NULL));
	want.sub = topic_subscribe(&topics, want.who, &want.who->subs, &f, 5,
	    &is_new);
	CHECK(want.sub && is_new == !old && (!old || old->sub == want.sub));
	CHECK(want.sub->session == want.who);
	CHECK(want.sub->qos == f.qos && want.sub->id == 5);
	topic_filter_text(want.sub, back, sizeof back);
	CHECK(strcmp(back, text) == 0);
	*(old ? old : r) = want;
}

static void
random_subscribe(struct row *r)
{
	static const char *const groups[] = { "", "", "g", "h" };
	struct row want = { .group = groups[chance(4)],
	    .who = &people[chance(N(people))] };

	random_name(want.path, true);
	subscribe_row(want, r);
}

/* The distinct groups that match by the model. */
static unsigned
groups_wanted(const char *topic)
{
	unsigned n = 0;

	for (size_t i = 0; i < N(rows); i++) {
		bool first = rows[i].sub && *rows[i].group &&
		    matches(rows[i].path, topic);

		for (size_t k = 0; k < i && first; k++)
			first = !rows[k].sub || !*rows[k].group ||
			    rows[k].sub->group != rows[i].sub->group;
		n += first;
	}
	return n;
}

static void
check_match(void)
{
	char topic[32];
	const struct match *m;
	unsigned n = 0;

	random_name(topic, false);
	m = topic_match(&topics, str(topic));
	for (size_t i = 0; i < N(rows); i++) {
		struct row *r = &rows[i];
		uint32_t found = 0;

		if (!r->sub)
			continue;
		for (uint32_t k = 0; k < m->n_subs; k++)
			found += match_sub(m, k) == r->sub;
		for (uint32_t k = 0; k < m->n_groups; k++)
			found += match_group(m, k) == r->sub->group;
		CHECK(found == matches(r->path, topic));
		n += found && !*r->group;
	}
	CHECK(m->n_subs == n && m->n_groups == groups_wanted(topic));
}

static void
change(struct row *r)
{
	if (!r->sub) {
		random_subscribe(r);
	} else if (chance(20) == 0) {
		subscribe_row(*r, NULL);
	} else {
		topic_unsubscribe(&topics, r->sub);
		r->sub = NULL;
	}
}

TEST(match_against_a_model)
{
	begin();
	srand(6);
	for (int step = 0; step < 20000; step++) {
		change(&rows[chance(N(rows))]);
		check_match();
		check_match();
		if (step % 5000 == 0) {
			unsubscribe_all();
			memset(rows, 0, sizeof rows);
		}
	}
	CHECK(topics.n_subs > N(rows) / 4);
	unsubscribe_all();
	end();
}

/* ---- retained messages ---- */

static bool
retained_is(const char *topic, const char *payload)
{
	struct msg *m = topic_retained(&topics, str(topic));

	return m && payload ? mqtt_str_eq(msg_publish(m, 0).payload,
	    str(payload)) : !m && !payload;
}

TEST(retained_messages)
{
	begin();
	CHECK(retained_is("a/b", NULL) && retain("a/b", NULL, 0));
	CHECK(retain("a/b", "1", MSG_NEVER) && retained_is("a/b", "1"));
	CHECK(retained_is("a", NULL) && retained_is("a/b/c", NULL));
	CHECK(retain("a/b", "2", MSG_NEVER) && retained_is("a/b", "2"));
	CHECK(topics.n_retained == 1 && msg_count() == 1);
	CHECK(retain("a", "3", MSG_NEVER) && retain("/", "4", MSG_NEVER));
	CHECK(topics.n_retained == 3 && retained_is("/", "4"));
	CHECK(retain("a", NULL, 0) && retained_is("a", NULL));
	CHECK(retained_is("a/b", "2") && retain("a/b/c", NULL, 0));
	CHECK(retain("a/b", NULL, 0) && retain("a/b", NULL, 0));
	CHECK(topics.n_retained == 1 && retain("/", NULL, 0));
	end();
}

/* [MQTT5-3.3.2-5] */
TEST(retained_messages_lapse)
{
	struct timer *t;

	begin();
	CHECK(retain("a/b", "1", 1000) && timer_next(&timers) == 1000);
	CHECK(retain("a", "2", 2000) && timer_next(&timers) == 1000);
	CHECK(retain("a/b", "3", 3000) && timer_next(&timers) == 2000);
	t = timer_due(&timers, 2000);
	CHECK(t && t->kind == 42);
	topic_lapse(&topics, t);
	CHECK(retained_is("a", NULL) && retained_is("a/b", "3"));
	CHECK(topics.n_retained == 1 && timers.owners == 1);
	CHECK(retain("a/b", "4", MSG_NEVER));   /* it does not expire now */
	CHECK(timer_next(&timers) == TIMER_NEVER && timers.owners == 0);
	CHECK(retain("a/b", "5", 5000) && retain("a/b", NULL, 0));
	CHECK(timer_next(&timers) == TIMER_NEVER && timers.owners == 0);
	CHECK(retain("a/b", "6", 6000));
	topic_lapse(&topics, timer_due(&timers, 7000));
	end();
}

/* Who published it is known as long as the message is there. */
TEST(sources_of_retained_messages)
{
	const struct node *a, *b;

	begin();
	CHECK(retain("a", "1", MSG_NEVER) && retain("b", "2", 5000));
	a = topic_next_retained(&topics, NULL);
	b = topic_next_retained(&topics, a);
	CHECK(a && b && !topic_next_retained(&topics, b));
	CHECK(!topic_source(&topics, a) && !topic_source(&topics, b));
	if (a->name[0] == 'b') {
		const struct node *n = a;

		a = b;
		b = n;
	}
	CHECK(topic_note_source(&topics, str("a"), 3, str("user"), str("id")));
	CHECK(topic_note_source(&topics, str("b"), 0, (struct mqtt_str){ 0 },
	    str("x")));
	CHECK(topic_source(&topics, a)->guard == 3);
	CHECK(topic_source(&topics, a)->has_user);
	CHECK(memcmp(topic_source(&topics, a)->names, "userid", 6) == 0);
	CHECK(!topic_source(&topics, b)->has_user);
	/* Another message: nobody knows. */
	CHECK(retain("a", "3", MSG_NEVER) && !topic_source(&topics, a));
	CHECK(topic_source(&topics, b));
	topic_lapse(&topics, timer_due(&timers, 6000));
	CHECK(topics.sources.n == 0);
	CHECK(retain("b", "4", MSG_NEVER));
	CHECK(topic_note_source(&topics, str("b"), 0, str("u"), str("x")));
	CHECK(retain("b", NULL, 0) && topics.sources.n == 0);
	CHECK(topic_note_source(&topics, str("a"), 0, str("u"), str("x")));
	CHECK(retain("a", NULL, 0) && topics.sources.n == 0);
	end();
}

TEST(fini_frees_retained_messages)
{
	char topic[32];

	begin();
	srand(7);
	for (int i = 0; i < 1000; i++) {
		random_name(topic, false);
		CHECK(retain(topic, "x", chance(2) ? 1000 : MSG_NEVER));
	}
	CHECK(topics.n_retained == msg_count());
	topics_fini(&topics);
	CHECK(msg_count() == 0 && timers.owners == 0);
	timers_fini(&timers);
	CHECK(mem_used() == 0);
}

/* ---- scans ---- */

/* Goes on with a scan a few nodes at a time; its next message, NULL at the
 * end. */
static struct msg *
next(struct scan *s, uint32_t at_a_time)
{
	struct msg *m;
	uint32_t steps;

	do {
		steps = at_a_time;
		m = scan_next(&topics, s, &steps);
		CHECK(steps <= at_a_time && (!m || steps < at_a_time));
	} while (!m && steps == 0);
	return m;
}

static bool
topic_is(const struct msg *m, const char *topic)
{
	return m && mqtt_str_eq(msg_publish(m, 0).topic, str(topic));
}

TEST(scan_stops_after_its_steps)
{
	struct scan *s;
	uint32_t steps;
	char topic[16];

	begin();
	for (int i = 0; i < 100; i++) {
		sprintf(topic, "a/%d/x", i);
		CHECK(retain(topic, "x", MSG_NEVER));
	}
	s = scan(people, "a/+");
	steps = 0;
	CHECK(!scan_next(&topics, s, &steps) && steps == 0);
	for (int i = 0; i < 10; i++) {
		steps = 10;
		CHECK(!scan_next(&topics, s, &steps) && steps == 0);
	}
	steps = 10;                     /* a and its 100 children are done */
	CHECK(!scan_next(&topics, s, &steps) && steps == 8);
	CHECK(!scan_next(&topics, s, &steps) && steps == 8);
	for (int i = 0; i < 100; i++) {
		sprintf(topic, "a/%d/x", i);
		retain(topic, NULL, 0);
	}
	unsubscribe_all();
	end();
}

/* What the scan stands on goes away, with all around it. */
TEST(scan_over_deleted)
{
	struct scan *s;
	struct msg *m;

	begin();
	retain("a/1", "x", MSG_NEVER);
	retain("a/2", "x", MSG_NEVER);
	retain("a/3", "x", MSG_NEVER);
	s = scan(people, "a/+");
	m = next(s, 1);
	CHECK(topic_is(m, "a/3"));      /* the newest comes first */
	retain("a/3", NULL, 0);
	retain("a/2", NULL, 0);
	CHECK(topic_is(next(s, 1), "a/1"));
	retain("a/1", NULL, 0);
	CHECK(!next(s, 1));
	CHECK(topics.topics.nodes.n == 0);      /* nothing is pinned any more */

	retain("a/1", "x", MSG_NEVER);
	s = scan(people, "#");
	CHECK(topic_is(next(s, 9), "a/1"));
	retain("a/1", NULL, 0);
	CHECK(topics.topics.nodes.n == 2);      /* the scan stands there */
	scan_end(&topics, s);
	CHECK(topics.topics.nodes.n == 0);
	unsubscribe_all();
	end();
}

/* A message that comes back to the node that the scan stands on. */
TEST(scan_over_replaced)
{
	struct scan *s;

	begin();
	retain("a/1", "x", MSG_NEVER);
	retain("a/2", "x", MSG_NEVER);
	s = scan(people, "a/#");
	CHECK(topic_is(next(s, 1), "a/2"));
	retain("a/2", NULL, 0);
	retain("a/2", "y", MSG_NEVER);
	retain("a/3", "y", MSG_NEVER);
	retain("a/2/x", "y", MSG_NEVER);        /* below: still to come */
	CHECK(topic_is(next(s, 1), "a/2/x"));
	CHECK(topic_is(next(s, 1), "a/1") && !next(s, 1));
	retain("a/1", NULL, 0);
	retain("a/2", NULL, 0);
	retain("a/3", NULL, 0);
	retain("a/2/x", NULL, 0);
	unsubscribe_all();
	end();
}

TEST(scan_many_at_one_place)
{
	struct scan *s[16];

	begin();
	retain("a", "x", MSG_NEVER);
	for (size_t i = 0; i < N(s); i++) {
		s[i] = scan(&people[i / 2], i % 2 ? "#" : "+");
		CHECK(topic_is(next(s[i], 1), "a"));
	}
	retain("a", NULL, 0);
	for (size_t i = 0; i < N(s); i += 2)
		CHECK(!next(s[i], 1));
	CHECK(topics.topics.nodes.n == 1);
	unsubscribe_all();
	end();
}

TEST(scan_ends_with_its_subscription)
{
	struct scan *a, *b, *c;
	struct sub *sub;

	begin();
	a = scan(people, "a");
	b = scan(people, "b");
	c = scan(people, "c");
	CHECK(people->scans == c && c->next == b && b->next == a && !a->next);
	sub = b->sub;
	scan_end(&topics, b);
	CHECK(!sub->scan && people->scans == c && c->next == a);
	topic_unsubscribe(&topics, sub);
	topic_unsubscribe(&topics, c->sub);
	CHECK(people->scans == a && !a->next);
	topic_unsubscribe(&topics, a->sub);
	CHECK(!people->scans);
	end();
}

/* Subscribing again begins again. */
TEST(scan_starts_anew)
{
	struct scan *s;

	begin();
	retain("a/1", "x", MSG_NEVER);
	retain("a/2", "x", MSG_NEVER);
	s = scan(people, "a/#");
	CHECK(topic_is(next(s, 1), "a/2"));
	retain("a/2", NULL, 0);
	s = scan(people, "a/#");
	CHECK(people->scans == s && !s->next && topics.n_subs == 1);
	CHECK(topics.topics.nodes.n == 2);      /* the old place is free */
	CHECK(topic_is(next(s, 1), "a/1") && !next(s, 1));
	retain("a/1", NULL, 0);
	unsubscribe_all();
	end();
}

/* One topic of the random scan test: whether it is retained, since before the
 * scan began, and how often the scan found it. */
static struct leaf {
	char topic[32];
	bool now, always;
	int found;
} leaves[200];

static void
random_retain(void)
{
	struct leaf *l = &leaves[chance(N(leaves))];

	for (size_t i = 0; i < N(leaves); i++)
		if (strcmp(leaves[i].topic, l->topic) == 0)
			l = &leaves[i];         /* the last of its name */
	l->now = chance(2);
	if (!l->now)
		l->always = false;
	CHECK(retain(l->topic, l->now ? l->topic : NULL, MSG_NEVER));
	CHECK(retained_is(l->topic, l->now ? l->topic : NULL));
}

static void
found(const char *filter, struct msg *m)
{
	struct leaf *l = NULL;

	for (size_t i = 0; i < N(leaves); i++)
		if (topic_is(m, leaves[i].topic))
			l = &leaves[i];
	CHECK(l && l->now && matches(filter, l->topic));
	CHECK(++l->found == 1);
}

/* changes: how many retained messages come or go per message found. */
static void
random_scan(unsigned changes)
{
	char filter[32];
	struct scan *s;
	struct msg *m;

	random_name(filter, true);
	s = scan(people, filter);
	for (size_t i = 0; i < N(leaves); i++) {
		leaves[i].always = leaves[i].now;
		leaves[i].found = 0;
	}
	while ((m = next(s, 1 + chance(10)))) {
		found(filter, m);
		for (unsigned i = chance(1 + 2 * changes); i > 0; i--)
			random_retain();
		if (changes && chance(50) == 0)
			break;          /* its session ends */
	}
	for (size_t i = 0; !m && i < N(leaves); i++)
		CHECK(!leaves[i].always || leaves[i].found ||
		    !matches(filter, leaves[i].topic));
	topic_unsubscribe(&topics, s->sub);
}

TEST(scan_against_a_model)
{
	begin();
	srand(8);
	for (size_t i = 0; i < N(leaves); i++)
		random_name(leaves[i].topic, false);
	for (int round = 0; round < 3000; round++) {
		for (int i = 0; i < 20; i++)
			random_retain();
		random_scan((unsigned)round % 4);
	}
	for (size_t i = 0; i < N(leaves); i++)
		retain(leaves[i].topic, NULL, 0);
	end();
}

/* ---- no memory ---- */

/* A table that has no room to grow still works; what is asked for here is
 * that nothing is half done. The tables have their buckets already. */
TEST(subscribe_without_memory)
{
	static const char *const filters[] = { "x/y/z", "$share/g/x/y/z" };

	begin();
	for (size_t i = 0; i < N(filters); i++) {
		size_t used;

		subscribe(people, filters[i]);
		unsubscribe_all();
		used = mem_used();
		for (size_t more = 1; !people[0].subs; more += 8) {
			mem_set_limit(used + more);
			if (subscribe(people, filters[i]))
				break;
			CHECK(mem_used() == used && topics.n_subs == 0);
			CHECK(topics.filters.nodes.n == 0);
			CHECK(topics.groups.n == 0 && topics.subs.n == 0);
		}
		mem_set_limit(0);
		CHECK(topic_find_sub(&topics, people, str(filters[i])));
		unsubscribe_all();
	}
	end();
}

/* The first subscription of all: there are no buckets yet. */
TEST(subscribe_without_memory_for_tables)
{
	size_t used;

	begin();
	used = mem_used();
	for (size_t more = 1; !people[0].subs; more += 8) {
		mem_set_limit(used + more);
		if (subscribe(people, "$share/g/x/y"))
			break;
		CHECK(topics.n_subs == 0 && topics.filters.nodes.n == 0);
		CHECK(topics.groups.n == 0 && topics.subs.n == 0);
	}
	mem_set_limit(0);
	unsubscribe_all();
	end();
}

TEST(match_without_memory)
{
	static const char *const filters[] = { "a/b", "a/+", "+/b", "a/#", "#",
	    "+/+", "+/#", "a/b/#", "a/+/#", "+/b/#", "+/+/#" };
	const struct match *m = NULL;
	char shared[32];
	size_t used;

	begin();
	for (size_t i = 0; i < N(filters); i++)
		for (size_t k = 0; k < N(people); k++)
			subscribe(&people[k], filters[i]);
	for (int i = 0; i < 100; i++) {
		sprintf(shared, "$share/%d/+/b", i);
		subscribe(people, shared);
	}
	used = mem_used();
	for (size_t more = 1; !m; more += 8) {
		mem_set_limit(used + more);
		m = topic_match(&topics, str("a/b"));
	}
	CHECK(m->n_subs == N(filters) * N(people) && m->n_groups == 100);
	mem_set_limit(1);               /* what is known needs no memory */
	CHECK(topic_match(&topics, str("a/b")) == m);
	CHECK(!topic_match(&topics, str("a/c")));
	mem_set_limit(0);               /* the cache was given up for it */
	CHECK(topic_match(&topics, str("a/b"))->n_groups == 100);
	CHECK(topic_match(&topics, str("a/c"))->n_groups == 0);
	unsubscribe_all();
	end();
}

TEST(retain_without_memory)
{
	struct mqtt_publish p = { .topic = str("x/y/z") };
	struct msg *m, *old;
	size_t used;
	bool ok = false;

	begin();
	m = msg_new(&p, 1000);
	old = msg_new(&p, MSG_NEVER);
	for (int round = 0; round < 2; round++, ok = false) {
		used = mem_used();
		for (size_t more = 1; !ok; more += 8) {
			mem_set_limit(used + more);
			ok = topic_retain(&topics, p.topic, m);
			CHECK(ok || (topics.n_retained == 0 && m->refs == 1));
			CHECK(ok || topics.topics.nodes.n == 0);
		}
		mem_set_limit(0);
		CHECK(timer_next(&timers) == 1000);
		CHECK(topic_retain(&topics, p.topic, NULL));
	}
	/* The old message stays when there is no room for a new expiry. */
	CHECK(topic_retain(&topics, p.topic, old));
	mem_set_limit(1);
	CHECK(!topic_retain(&topics, p.topic, m));
	CHECK(topic_retained(&topics, p.topic) == old && m->refs == 1);
	mem_set_limit(0);
	CHECK(topics.n_retained == 1);
	CHECK(topic_retain(&topics, p.topic, NULL) && old->refs == 1);
	msg_unref(m);
	msg_unref(old);
	end();
}

TEST(scan_without_memory)
{
	struct scan *s;
	struct sub *sub;

	begin();
	CHECK(retain("a", "x", MSG_NEVER));
	s = scan(people, "#");
	sub = s->sub;
	CHECK(topic_is(next(s, 1), "a"));
	mem_set_limit(1);
	CHECK(!scan_start(&topics, sub, str("#"), &people->scans));
	CHECK(!sub->scan && !people->scans);
	mem_set_limit(0);
	CHECK(retain("a", NULL, 0) && topics.topics.nodes.n == 0);
	CHECK(scan_start(&topics, sub, str("#"), &people->scans));
	unsubscribe_all();
	end();
}

TEST(topics_without_memory)
{
	mem_set_limit(100);
	CHECK(!topics_init(&topics, &timers, 1));
}
