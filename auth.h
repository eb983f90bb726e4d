/* auth - who may connect, and who may read or write what.
 *
 * Holds the password and ACL files that the configuration names and answers
 * plain questions; no connection and no packet is touched here. Which files and
 * settings go for a client is told by its listener: its guard.
 */
#ifndef AUTH_H
#define AUTH_H

#include <stdbool.h>
#include <stdint.h>

#include "acl.h"
#include "config.h"
#include "conn.h"
#include "mqtt.h"
#include "pwhash.h"
#include "session.h"

struct users;

/* What a client of one configured listener has to pass. */
struct guard {
	const struct config_security *conf;
	struct users *users;            /* NULL: no password file */
	struct acl *acl;                /* NULL: no ACL file, all is allowed */
};

/* The guards of all listeners, by their place in the configuration: sessions
 * and sockets know them by it, so it may not change while the broker runs. A
 * file that several of them name is loaded once. */
struct auth {
	struct guard *guards;
	unsigned n;
};

/* Loads all files that c names; c must outlive a. false: one of them cannot be
 * used; file, line and reason are logged, and there is nothing to free. */
bool auth_load(struct auth *a, const struct config *c);
void auth_fini(struct auth *a);

/* For a check: warns of rules that can never count, because nobody can log in
 * under the name that they are for. */
void auth_doubt(const struct auth *a, const struct config *c);

/* ---- who may connect ---- */

enum auth_answer { AUTH_YES, AUTH_NO, AUTH_CHECK };

/* A password that is being checked. It does not refer to the tables, which may
 * be loaded anew meanwhile. */
struct auth_check {
	struct pwhash hash;
	struct pwwork work;
	bool known;             /* the user is in the file */
	bool started;
};

/* Judges a CONNECT. certified: its user name is that of a certificate that was
 * verified, and no password is asked for. AUTH_NO: *why says the reason and
 * what to do. AUTH_CHECK: check is filled and auth_check_go tells more. */
enum auth_answer auth_login(const struct guard *g,
    const struct mqtt_connect *k, bool certified,
    struct auth_check *check, const char **why);

/* Goes on for at most so many rounds. AUTH_CHECK: there are more to do. An
 * unknown user takes the same work as a wrong password. */
enum auth_answer auth_check_go(struct auth_check *check,
    struct mqtt_str password, uint32_t rounds, const char **why);

/* Whether a client that was let in by was, with this user name (p NULL: none),
 * would still be by now; NULL if so, or why not. */
const char *auth_outdated(const struct guard *was, const struct guard *now,
    struct mqtt_str user);

/* ---- delays after refused logins ---- */

#define AUTH_SOURCES 128

/* What is remembered of the addresses that gave wrong passwords: the latest
 * ones. IPv6 counts by networks of 64 bits, a unix socket as one address. */
struct auth_delays {
	struct {
		uint8_t ip[16];
		uint16_t family;        /* 0: free */
		uint16_t n;             /* refusals */
		int64_t last_ms;
	} source[AUTH_SOURCES];
};

/* A login from there is refused: for how long, in ms, the answer is to be held
 * back. max_s: the longest delay in seconds, 0: none ever. */
int64_t auth_delay(struct auth_delays *d, const struct conn_addr *from,
    int max_s, int64_t now_ms);

/* A login from there was good: all is forgotten. */
void auth_forgive(struct auth_delays *d, const struct conn_addr *from);

/* ---- who may read or write what ---- */

/* Has s judged by the rules that a's guard s->guard has for its user. To be
 * called when it gets its user, and after the files were loaded anew. */
void auth_bind(const struct auth *a, struct session *s);

/* Whether s may publish to a topic. $SYS belongs to the server (section
 * 4.7.2), but a bridge tells its state there. */
bool auth_may_write(const struct session *s, struct mqtt_str topic);

/* The same for somebody who may be gone, by the guard of its listener. */
bool auth_may_write_as(const struct guard *g, const struct acl_client *c,
    struct mqtt_str topic);

/* Whether s may get a message of this topic. Without an ACL file this is to
 * cost nothing. */
bool auth_may_read_by_rule(const struct session *s, struct mqtt_str topic);

static inline bool
auth_may_read(const struct session *s, struct mqtt_str topic)
{
	return !s->rules || auth_may_read_by_rule(s, topic);
}

/* Whether there can be a topic under this filter that s may read; $share/NAME/
 * is looked through. */
bool auth_could_read(const struct session *s, struct mqtt_str filter);

/* Whether s's names keep it from all patterns of its ACL file. */
bool auth_is_dangerous(const struct session *s);

#endif
