#include "auth.h"
#include "file.h"
#include "hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* Refusals from one address before there are delays: a mistyped password
 * should not be punished. */
#define FREE_REFUSALS 5

/* After this long without refusals an address begins anew. */
#define FORGET_MS (15 * 60 * 1000)

struct user {
	struct hash_link link;
	struct pwhash hash;
	uint32_t name_len;
	char name[];
};

/* A password file. */
struct users {
	struct hash by_name;
	uint32_t rounds;        /* the usual number of them */
};

/* ---- password files ---- */

static struct user *
find_user(const struct users *us, const void *name, size_t len)
{
	struct hash_link *l;

	for (l = hash_first(&us->by_name, hash_bytes(name, len, 0)); l;
	    l = hash_next(l)) {
		struct user *u = HASH_OBJECT(l, struct user, link);

		if (u->name_len == len && memcmp(u->name, name, len) == 0)
			return u;
	}
	return NULL;
}

static void
free_users(struct users *us)
{
	struct hash_link *l;

	if (!us)
		return;
	for (uint32_t i = 0; us->by_name.bucket && i <= us->by_name.mask;
	    i++) {
		while ((l = us->by_name.bucket[i])) {
			hash_remove(&us->by_name, l);
			free(HASH_OBJECT(l, struct user, link));
		}
	}
	hash_fini(&us->by_name);
	free(us);
}

static bool
bad_line(const char *path, unsigned line, const char *why)
{
	log_error("Error: Invalid line in password_file: %s.", why);
	log_error("Error found at %s:%u.", path, line);
	return false;
}

static bool
bad_hash(const char *path, unsigned line, const char *name, const char *why,
    bool plain)
{
	log_error("Error: User %s %s.", name, why);
	log_error("Error found at %s:%u. Mend it with: midge passwd %s%s%s%s",
	    path, line, plain ? "-U " : "", path, plain ? "" : " ",
	    plain ? "" : name);
	return false;
}

/* NAME:HASH; what has no colon is left out, as in Mosquitto. */
static bool
add_user(struct users *us, char *line, const char *path, unsigned number)
{
	char *colon = strchr(line, ':'), *name, *text;
	const char *why;
	struct user *u;
	size_t len;

	if (line[0] == '#' || !colon)
		return true;
	*colon = 0;
	name = file_trim(line);
	text = file_trim(colon + 1);
	len = strlen(name);
	if (len == 0 || len > UINT16_MAX)
		return bad_line(path, number,
		    "the user name is empty or too long");
	if (find_user(us, name, len))
		return bad_line(path, number, "this user stands there twice");
	u = malloc(sizeof *u + len);
	if (!u)
		return bad_line(path, number, strerror(ENOMEM));
	why = pwhash_parse(&u->hash, text);
	if (why) {
		free(u);
		return bad_hash(path, number, name, why, text[0] != '$');
	}
	u->name_len = (uint32_t)len;
	memcpy(u->name, name, len);
	if (!hash_put(&us->by_name, &u->link, hash_bytes(name, len, 0))) {
		free(u);
		return bad_line(path, number, strerror(ENOMEM));
	}
	return true;
}

static int
by_rounds(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* What most users have, so that the time for an unknown one tells nothing. */
static bool
find_usual_rounds(struct users *us)
{
	uint32_t *all, n = 0, best = 0, same = 0;

	us->rounds = PWHASH_ROUNDS;
	if (us->by_name.n == 0)
		return true;
	all = malloc(us->by_name.n * sizeof *all);
	if (!all) {
		log_error("Error: Out of memory for the users.");
		return false;
	}
	for (uint32_t i = 0; i <= us->by_name.mask; i++)
		for (struct hash_link *l = us->by_name.bucket[i]; l;
		    l = l->next)
			all[n++] = HASH_OBJECT(l, struct user, link)->
			    hash.rounds;
	qsort(all, n, sizeof *all, by_rounds);
	for (uint32_t i = 0; i < n; i++) {
		same = i > 0 && all[i] == all[i - 1] ? same + 1 : 1;
		if (same >= best) {
			best = same;
			us->rounds = all[i];
		}
	}
	free(all);
	return true;
}

static void
warn_of_mode(const struct file *f, const char *path)
{
	if (f->mode & 04)
		log_warning("Warning: File %s can be read by everybody. Mend "
		    "it with: chmod o= %s", path, path);
	if (f->uid != geteuid() && f->uid != 0)
		log_warning("Warning: File %s belongs to somebody else, who "
		    "can let in whom he likes.", path);
}

static struct users *
load_users(const char *path)
{
	struct users *us = calloc(1, sizeof *us);
	struct file f;
	const char *why = us ? file_read(&f, path) : strerror(ENOMEM);
	bool ok = true;
	char *line;

	if (!us || why) {
		log_error("Error: Unable to open pwfile \"%s\": %s.%s", path,
		    why, strstr(path, " #") ?
		    " (What stands behind # belongs to the name.)" : "");
		free(us);
		return NULL;
	}
	warn_of_mode(&f, path);
	while (ok && (line = file_line(&f)))
		ok = add_user(us, line, path, f.line);
	file_free(&f);
	if (ok && find_usual_rounds(us))
		return us;
	free_users(us);
	return NULL;
}

/* ---- guards ---- */

static bool
same_path(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

/* Fills guard i; what an earlier one has loaded is shared. */
static bool
load_guard(struct auth *a, unsigned i)
{
	struct guard *g = &a->guards[i];
	const struct config_security *k = g->conf;

	for (unsigned j = 0; j < i; j++) {
		const struct guard *o = &a->guards[j];

		if (same_path(k->password_file, o->conf->password_file))
			g->users = o->users;
		if (same_path(k->acl_file, o->conf->acl_file))
			g->acl = o->acl;
	}
	if (k->password_file && !g->users &&
	    !(g->users = load_users(k->password_file)))
		return false;
	return !k->acl_file || g->acl || (g->acl = acl_load(k->acl_file));
}

bool
auth_load(struct auth *a, const struct config *c)
{
	*a = (struct auth){ .n = c->n_listeners };
	a->guards = calloc(a->n, sizeof *a->guards);
	if (!a->guards) {
		log_error("Error: Out of memory.");
		return false;
	}
	for (unsigned i = 0; i < a->n; i++)
		a->guards[i].conf = &c->listeners[i].security;
	for (unsigned i = 0; i < a->n; i++) {
		if (!load_guard(a, i)) {
			auth_fini(a);
			return false;
		}
	}
	return true;
}

void
auth_fini(struct auth *a)
{
	for (unsigned i = 0; i < a->n; i++) {
		struct guard *g = &a->guards[i];

		for (unsigned j = i + 1; j < a->n; j++) {
			if (a->guards[j].users == g->users)
				a->guards[j].users = NULL;
			if (a->guards[j].acl == g->acl)
				a->guards[j].acl = NULL;
		}
		free_users(g->users);
		acl_free(g->acl);
	}
	free(a->guards);
	a->guards = NULL;
	a->n = 0;
}

static void
doubt_rules(void *arg, struct mqtt_str name)
{
	const struct guard *g = arg;

	if (!name.p && !g->conf->allow_anonymous)
		log_warning("Warning: The topic lines above the first user of "
		    "%s are for clients without a user name, which "
		    "allow_anonymous false keeps out. 'user NAME' above them "
		    "says whom they are for.", g->conf->acl_file);
	if (name.p && g->users && !find_user(g->users, name.p, name.len))
		log_warning("Warning: The rules of user %.*s in %s can never "
		    "count: %s does not have that user. 'midge passwd %s "
		    "%.*s' adds it.", (int)name.len, (const char *)name.p,
		    g->conf->acl_file, g->conf->password_file,
		    g->conf->password_file, (int)name.len,
		    (const char *)name.p);
}

void
auth_doubt(const struct auth *a, const struct config *c)
{
	for (unsigned i = 0; i < a->n; i++) {
		const struct config_listener *l = &c->listeners[i];
		struct guard *g = &a->guards[i];
		bool told = !g->acl || l->use_identity_as_username ||
		    l->use_subject_as_username;

		for (unsigned j = 0; j < i; j++)
			told |= a->guards[j].acl == g->acl;
		if (!told)
			acl_each_user(g->acl, doubt_rules, g);
	}
}

/* ---- who may connect ---- */

/* Why somebody who needs no password is not let in; NULL: he is. */
static const char *
unchecked_fault(const struct config_security *k, bool has_user)
{
	if (k->allow_anonymous || (k->any_user && has_user))
		return NULL;
	return has_user ?
	    "there is no password file to look the user up in; "
	    "allow_anonymous true lets everybody in" :
	    "the client gave no user name; "
	    "allow_anonymous true lets everybody in";
}

enum auth_answer
auth_login(const struct guard *g, const struct mqtt_connect *k,
    bool certified, struct auth_check *check, const char **why)
{
	const struct user *u;

	if (certified)
		return AUTH_YES;
	if (!k->has_user || !g->users) {
		*why = unchecked_fault(g->conf, k->has_user);
		return *why ? AUTH_NO : AUTH_YES;
	}
	if (!k->has_password) {
		*why = "the client gave a user name but no password";
		return AUTH_NO;
	}
	u = find_user(g->users, k->user.p, k->user.len);
	check->started = false;
	check->known = u != NULL;
	if (u)
		check->hash = u->hash;
	else
		check->hash = (struct pwhash){ .rounds = g->users->rounds,
		    .salt_len = PWHASH_SALT };
	return AUTH_CHECK;
}

enum auth_answer
auth_check_go(struct auth_check *c, struct mqtt_str password, uint32_t rounds,
    const char **why)
{
	bool ok;

	if (!c->started) {
		pwwork_start(&c->work, &c->hash, password.p, password.len);
		c->started = true;
	}
	if (!pwwork_go(&c->work, rounds))
		return AUTH_CHECK;
	ok = pwwork_is(&c->work, &c->hash) & c->known;
	explicit_bzero(&c->work, sizeof c->work);
	*why = c->known ? "wrong password; 'midge passwd FILE USER' sets a new "
	    "one" : "the user is not in the password file; 'midge passwd FILE "
	    "USER' adds one";
	return ok ? AUTH_YES : AUTH_NO;
}

const char *
auth_outdated(const struct guard *was, const struct guard *now,
    struct mqtt_str user)
{
	const struct user *u, *old;

	if (!user.p || !now->users)
		return unchecked_fault(now->conf, user.p != NULL);
	u = find_user(now->users, user.p, user.len);
	if (!u)
		return "the user is no longer in the password file";
	old = was->users ? find_user(was->users, user.p, user.len) : NULL;
	return old && pwhash_same(&old->hash, &u->hash) ? NULL :
	    "the user has a new password";
}

/* ---- delays ---- */

static struct conn_addr
source_of(const struct conn_addr *from)
{
	struct conn_addr a = { .family = from->family };

	memcpy(a.ip, from->ip, a.family == AF_INET6 ? 8 : sizeof a.ip);
	return a;
}

/* The place of an address, or the free or oldest one; *found tells which. */
static unsigned
find_source(const struct auth_delays *d, const struct conn_addr *a,
    bool *found)
{
	unsigned best = 0;

	for (unsigned i = 0; i < AUTH_SOURCES; i++) {
		*found = d->source[i].family == a->family &&
		    memcmp(d->source[i].ip, a->ip, sizeof a->ip) == 0;
		if (*found)
			return i;
		if (d->source[i].last_ms < d->source[best].last_ms)
			best = i;
	}
	return best;
}

int64_t
auth_delay(struct auth_delays *d, const struct conn_addr *from, int max_s,
    int64_t now_ms)
{
	struct conn_addr a = source_of(from);
	bool found;
	unsigned i = find_source(d, &a, &found), n;

	if (max_s == 0)
		return 0;
	if (!found || now_ms - d->source[i].last_ms > FORGET_MS) {
		memcpy(d->source[i].ip, a.ip, sizeof a.ip);
		d->source[i].family = a.family;
		d->source[i].n = 0;
	}
	d->source[i].last_ms = now_ms;
	if (d->source[i].n < FREE_REFUSALS + 20)
		d->source[i].n++;
	if (d->source[i].n <= FREE_REFUSALS)
		return 0;
	n = d->source[i].n - FREE_REFUSALS - 1u;
	return 1 << n < max_s ? 1000LL << n : max_s * 1000LL;
}

void
auth_forgive(struct auth_delays *d, const struct conn_addr *from)
{
	struct conn_addr a = source_of(from);
	bool found;
	unsigned i = find_source(d, &a, &found);

	if (found)
		d->source[i].family = 0;
	if (found)
		d->source[i].last_ms = 0;
}

/* ---- topics ---- */

static bool
starts(struct mqtt_str s, const char *prefix)
{
	size_t n = strlen(prefix);

	return s.len >= n && memcmp(s.p, prefix, n) == 0;
}

/* $SYS/broker/connection/+/state */
static bool
is_bridge_state(struct mqtt_str t)
{
	static const char head[] = "$SYS/broker/connection/", tail[] = "/state";
	size_t fixed = sizeof head - 1 + sizeof tail - 1;

	return starts(t, head) && t.len > fixed &&
	    memcmp(t.p + t.len - (sizeof tail - 1), tail,
	    sizeof tail - 1) == 0 &&
	    !memchr(t.p + sizeof head - 1, '/', t.len - fixed);
}

static struct acl_client
client_of(const struct session *s)
{
	return (struct acl_client){ .user = session_user(s),
	    .id = session_id(s) };
}

void
auth_bind(const struct auth *a, struct session *s)
{
	const struct acl *acl = a->guards[s->guard].acl;

	s->rules = acl ? acl_find(acl, session_user(s)) : NULL;
}

static bool
may_write(const struct acl_user *rules, const struct acl_client *c,
    struct mqtt_str topic)
{
	if (starts(topic, "$SYS/") && !is_bridge_state(topic))
		return false;
	return !rules || acl_may(rules, c, topic, ACL_WRITE);
}

bool
auth_may_write(const struct session *s, struct mqtt_str topic)
{
	struct acl_client c = client_of(s);

	return may_write(s->rules, &c, topic);
}

bool
auth_may_write_as(const struct guard *g, const struct acl_client *c,
    struct mqtt_str topic)
{
	return may_write(g->acl ? acl_find(g->acl, c->user) : NULL, c, topic);
}

bool
auth_may_read_by_rule(const struct session *s, struct mqtt_str topic)
{
	struct acl_client c = client_of(s);

	return acl_may(s->rules, &c, topic, ACL_READ);
}

bool
auth_could_read(const struct session *s, struct mqtt_str filter)
{
	struct acl_client c = client_of(s);
	struct mqtt_str name, rest = filter;

	if (!s->rules)
		return true;
	if (mqtt_is_shared(filter) && !mqtt_split_shared(filter, &name, &rest))
		return false;
	return acl_could_read(s->rules, &c, rest);
}

bool
auth_is_dangerous(const struct session *s)
{
	struct acl_client c = client_of(s);

	return s->rules && acl_is_dangerous(s->rules, &c);
}
