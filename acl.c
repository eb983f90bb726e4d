#include "acl.h"
#include "file.h"
#include "hash.h"
#include "log.h"

#include <stdlib.h>
#include <string.h>

/* One rule; access 0 is deny. */
struct rule {
	struct rule *next;
	unsigned access;
	uint32_t fixed;         /* bytes that its topics begin with */
	uint32_t len;
	bool has_user;          /* %u */
	char filter[];
};

/* Deny comes first; beyond that the order does not matter. */
struct rules {
	struct rule *first, **end;      /* end: where grants are appended */
};

struct acl_user {
	struct hash_link link;
	const struct acl *acl;
	struct rules topics;
	uint32_t name_len;
	char name[];
};

struct acl {
	struct hash users;
	struct rules patterns;
	struct acl_user *anonymous;
	struct acl_user *others;        /* who is not listed: no rules */
};

/* ---- filters ---- */

/* A filter that is read char by char, names put in for %u and %c. */
struct text {
	const char *p, *end;
	const char *sub, *sub_end;      /* the name being read */
	const struct acl_client *client;/* NULL: nothing is put in */
};

static struct text
text_of(struct mqtt_str s)
{
	const char *p = (const char *)s.p;

	return (struct text){ .p = p, .end = p + s.len };
}

static struct text
text_of_rule(const struct rule *r, const struct acl_client *c)
{
	return (struct text){ .p = r->filter, .end = r->filter + r->len,
	    .client = c };
}

/* The char at hand, -1 at the end. */
static int
peek(struct text *t)
{
	while (t->sub == t->sub_end) {
		struct mqtt_str name;

		if (t->p == t->end)
			return -1;
		if (!t->client || *t->p != '%' || t->end - t->p < 2 ||
		    (t->p[1] != 'u' && t->p[1] != 'c'))
			return (unsigned char)*t->p;
		name = t->p[1] == 'u' ? t->client->user : t->client->id;
		t->p += 2;
		t->sub = (const char *)name.p;
		t->sub_end = name.len ? t->sub + name.len : t->sub;
	}
	return (unsigned char)*t->sub;
}

static void
step(struct text *t)
{
	if (t->sub != t->sub_end)
		t->sub++;
	else
		t->p++;
}

static void
skip_level(struct text *t)
{
	int c;

	while ((c = peek(t)) != -1 && c != '/')
		step(t);
}

static bool
is_wild(int c)
{
	return c == '+' || c == '#';
}

/* What is left matches "nothing more" too: /# */
static bool
ends_in_all(struct text *t)
{
	if (peek(t) != '/')
		return false;
	step(t);
	return peek(t) == '#';
}

/* The rest of covers, from the same place in both on. */
static bool
covers_on(struct text wide, struct text narrow)
{
	for (;;) {
		int w = peek(&wide), n = peek(&narrow);

		if (w == '#')
			return true;
		if (w == '+' && n != '#') {
			skip_level(&wide);
			skip_level(&narrow);
			continue;
		}
		if (n == -1)
			return w == -1 || ends_in_all(&wide);
		if (w != n || is_wild(n))
			return false;
		step(&wide);
		step(&narrow);
	}
}

/* Whether wide matches every topic that narrow matches; narrow may be a topic.
 * Wildcards in the first level do not match $... [MQTT-4.7.2-1]. */
static bool
covers(struct text wide, struct text narrow)
{
	if (is_wild(peek(&wide)) && peek(&narrow) == '$')
		return false;
	return covers_on(wide, narrow);
}

/* Whether a topic can match both. */
static bool
meet(struct text a, struct text b)
{
	int ca = peek(&a), cb = peek(&b);

	if ((is_wild(ca) && cb == '$') || (is_wild(cb) && ca == '$'))
		return false;
	for (;; ca = peek(&a), cb = peek(&b)) {
		if (ca == '#' || cb == '#')
			return true;
		if (ca == '+' || cb == '+') {
			skip_level(&a);
			skip_level(&b);
			continue;
		}
		if (ca == -1)
			return cb == -1 || ends_in_all(&b);
		if (cb == -1)
			return ends_in_all(&a);
		if (ca != cb)
			return false;
		step(&a);
		step(&b);
	}
}

/* ---- questions ---- */

enum verdict { NO_RULE, GRANTED, DENIED };

/* A pattern with %u says nothing about clients without a name. */
static bool
applies(const struct rule *r, const struct acl_client *c)
{
	return !c || c->user.p || !r->has_user;
}

/* Most rules are sorted out by how they begin. */
static bool
matches(const struct rule *r, const struct acl_client *c,
    struct mqtt_str topic)
{
	struct text filter = text_of_rule(r, c), t = text_of(topic);

	if (r->fixed == 0)
		return covers(filter, t);
	if (topic.len < r->fixed || memcmp(topic.p, r->filter, r->fixed))
		return false;
	filter.p += r->fixed;
	t.p += r->fixed;
	return covers_on(filter, t);
}

/* c is NULL where rules are not patterns. */
static enum verdict
judge(const struct rules *rs, const struct acl_client *c,
    struct mqtt_str topic, enum acl_access access)
{
	for (const struct rule *r = rs->first; r; r = r->next) {
		if ((r->access && !(r->access & access)) ||
		    !matches(r, c, topic) || !applies(r, c))
			continue;
		return r->access ? GRANTED : DENIED;
	}
	return NO_RULE;
}

static bool
has_wildcard(struct mqtt_str s)
{
	return s.len && (memchr(s.p, '+', s.len) || memchr(s.p, '#', s.len));
}

bool
acl_is_dangerous(const struct acl_user *u, const struct acl_client *c)
{
	return u->acl->patterns.first &&
	    (has_wildcard(c->user) || has_wildcard(c->id));
}

bool
acl_may(const struct acl_user *u, const struct acl_client *c,
    struct mqtt_str topic, enum acl_access access)
{
	enum verdict v = judge(&u->topics, NULL, topic, access);

	if (v == NO_RULE && !acl_is_dangerous(u, c))
		v = judge(&u->acl->patterns, c, topic, access);
	return v == GRANTED;
}

/* Whether a deny of these rules leaves nothing of a grant, or of the filter. */
static bool
all_denied(const struct rules *rs, const struct acl_client *c,
    struct text what)
{
	for (const struct rule *r = rs->first; r && !r->access; r = r->next)
		if (applies(r, c) && covers(text_of_rule(r, c), what))
			return true;
	return false;
}

static bool
could(const struct acl_user *u, const struct rules *rs,
    const struct acl_client *c, struct mqtt_str filter)
{
	for (const struct rule *r = rs->first; r; r = r->next) {
		struct text t = text_of_rule(r, c);

		if ((r->access & ACL_READ) && applies(r, c) &&
		    meet(t, text_of(filter)) &&
		    !all_denied(&u->topics, NULL, t) &&
		    !all_denied(rs, c, t))
			return true;
	}
	return false;
}

bool
acl_could_read(const struct acl_user *u, const struct acl_client *c,
    struct mqtt_str filter)
{
	struct text t = text_of(filter);

	if (all_denied(&u->topics, NULL, t))
		return false;
	if (could(u, &u->topics, NULL, filter))
		return true;
	return !acl_is_dangerous(u, c) &&
	    !all_denied(&u->acl->patterns, c, t) &&
	    could(u, &u->acl->patterns, c, filter);
}

/* ---- tables ---- */

static struct acl_user *
new_user(const struct acl *a, const char *name, size_t len)
{
	struct acl_user *u = calloc(1, sizeof *u + len);

	if (!u)
		return NULL;
	u->acl = a;
	u->topics.end = &u->topics.first;
	u->name_len = (uint32_t)len;
	memcpy(u->name, name, len);
	return u;
}

static struct acl_user *
find(const struct acl *a, const void *name, size_t len)
{
	struct hash_link *l;

	for (l = hash_first(&a->users, hash_bytes(name, len, 0)); l;
	    l = hash_next(l)) {
		struct acl_user *u = HASH_OBJECT(l, struct acl_user, link);

		if (u->name_len == len && memcmp(u->name, name, len) == 0)
			return u;
	}
	return NULL;
}

void
acl_each_user(const struct acl *a, void (*fn)(void *arg, struct mqtt_str name),
    void *arg)
{
	const struct hash *h = &a->users;

	if (a->anonymous->topics.first)
		fn(arg, (struct mqtt_str){ 0 });
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			const struct acl_user *u = HASH_OBJECT(l,
			    struct acl_user, link);

			fn(arg, (struct mqtt_str){ (const uint8_t *)u->name,
			    u->name_len });
		}
	}
}

const struct acl_user *
acl_find(const struct acl *a, struct mqtt_str user)
{
	const struct acl_user *u;

	if (!user.p)
		return a->anonymous;
	u = find(a, user.p, user.len);
	return u ? u : a->others;
}

static bool
add_rule(struct rules *rs, unsigned access, const char *filter, size_t len)
{
	struct rule *r = malloc(sizeof *r + len);
	struct rule **at = access ? rs->end : &rs->first;
	size_t fixed = strcspn(filter, "+#%");

	if (!r)
		return false;
	r->access = access;
	/* a/# matches a as well. */
	r->fixed = (uint32_t)(fixed > 0 && filter[fixed] == '#' ? fixed - 1 :
	    fixed);
	r->len = (uint32_t)len;
	r->has_user = strstr(filter, "%u") != NULL;
	memcpy(r->filter, filter, len);
	r->next = *at;
	*at = r;
	if (at == rs->end)
		rs->end = &r->next;
	return true;
}

static void
free_rules(struct rules *rs)
{
	struct rule *r, *next;

	for (r = rs->first; r; r = next) {
		next = r->next;
		free(r);
	}
}

static void
free_user(struct acl_user *u)
{
	if (u)
		free_rules(&u->topics);
	free(u);
}

void
acl_free(struct acl *a)
{
	struct hash_link *l;

	if (!a)
		return;
	for (uint32_t i = 0; a->users.bucket && i <= a->users.mask; i++) {
		while ((l = a->users.bucket[i])) {
			hash_remove(&a->users, l);
			free_user(HASH_OBJECT(l, struct acl_user, link));
		}
	}
	hash_fini(&a->users);
	free_user(a->anonymous);
	free_user(a->others);
	free_rules(&a->patterns);
	free(a);
}

/* ---- the file ---- */

static const char no_memory[] = "out of memory";

static const char *
read_user(struct acl *a, const char *name, struct acl_user **cur)
{
	size_t len = strlen(name);

	if (len == 0 || len > UINT16_MAX)
		return "user needs a name behind it";
	*cur = find(a, name, len);
	if (*cur)
		return NULL;
	*cur = new_user(a, name, len);
	if (!*cur)
		return no_memory;
	if (!hash_put(&a->users, &(*cur)->link, hash_bytes(name, len, 0))) {
		free_user(*cur);
		return no_memory;
	}
	return NULL;
}

/* [ACCESS] FILTER; the filter may hold blanks only where the word for the
 * access stands before it. */
static const char *
read_rule(struct rules *rs, char *s)
{
	static const struct { const char *word; unsigned access; } words[] = {
		{ "read", ACL_READ }, { "write", ACL_WRITE },
		{ "readwrite", ACL_READ | ACL_WRITE }, { "deny", 0 },
	};
	unsigned access = ACL_READ | ACL_WRITE;
	size_t len = strcspn(s, " \t"), i;
	struct mqtt_str f;
	const char *why;

	if (s[len]) {
		s[len++] = 0;
		for (i = 0; i < 4 && strcmp(s, words[i].word); i++)
			continue;
		if (i == 4)
			return "before a topic with a blank in it stands read, "
			    "write, readwrite or deny";
		access = words[i].access;
		s += len + strspn(s + len, " \t");
	}
	len = strlen(s);
	if (len == 0 || len > UINT16_MAX)
		return "the topic is missing or too long";
	f = (struct mqtt_str){ (const uint8_t *)s, (uint32_t)len };
	if (!mqtt_utf8_valid(f.p, f.len))
		return "the topic is not UTF-8";
	why = mqtt_filter_fault(f);
	if (why)
		return why;
	return add_rule(rs, access, s, len) ? NULL : no_memory;
}

static const char *
read_line(struct acl *a, char *line, struct acl_user **cur)
{
	char *word = file_trim(line), *rest = word + strcspn(word, " \t");

	if (*rest)
		*rest++ = 0;
	rest += strspn(rest, " \t");
	if (!*word)
		return NULL;
	if (!strcmp(word, "user"))
		return read_user(a, rest, cur);
	if (!strcmp(word, "topic"))
		return read_rule(&(*cur)->topics, rest);
	if (!strcmp(word, "pattern"))
		return read_rule(&a->patterns, rest);
	return "a line begins with user, topic, pattern or #";
}

static bool
read_lines(struct acl *a, struct file *f, const char *path)
{
	struct acl_user *cur = a->anonymous;
	const char *why;
	char *line;

	while ((line = file_line(f))) {
		why = line[0] == '#' ? NULL : read_line(a, line, &cur);
		if (why) {
			log_error("Error: Invalid line in acl_file: %s.", why);
			log_error("Error found at %s:%u.", path, f->line);
			return false;
		}
	}
	return true;
}

static struct acl *
new_acl(void)
{
	struct acl *a = calloc(1, sizeof *a);

	if (!a)
		return NULL;
	a->patterns.end = &a->patterns.first;
	a->anonymous = new_user(a, "", 0);
	a->others = new_user(a, "", 0);
	if (a->anonymous && a->others)
		return a;
	acl_free(a);
	return NULL;
}

struct acl *
acl_load(const char *path)
{
	struct acl *a = new_acl();
	struct file f;
	const char *why = a ? file_read(&f, path) : no_memory;
	bool ok;

	if (why) {
		log_error("Error: Unable to open acl_file \"%s\": %s.", path,
		    why);
		acl_free(a);
		return NULL;
	}
	ok = read_lines(a, &f, path);
	file_free(&f);
	if (ok)
		return a;
	acl_free(a);
	return NULL;
}
