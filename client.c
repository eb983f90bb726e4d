#include "client.h"
#include "auth.h"
#include "mem.h"
#include "persist.h"
#include "relief.h"
#include "route.h"
#include "send.h"
#include "strangers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Work (see state.h) that one connection may cause in one turn. */
#define WORK_MAX 20000

/* The time for passwords in one turn, and the rounds between two looks at the
 * clock: on the slowest Pi these take half a millisecond. */
#define LOGIN_TURN_US 300
#define LOGIN_ROUNDS 16

/* What a CONNECT with a password counts as work of a turn. */
#define LOGIN_WORK 50

/* How long the last packet may take to leave, and then the peer to hang up. */
#define LINGER_MS 5000

/* Seconds that a TLS handshake may take, if connect_timeout is not less. */
#define HANDSHAKE_S 15
/* Connections that take each other's identifier: so many in such a time are
 * two devices. */
#define TAKEOVERS_MAX 5
#define TAKEOVERS_MS 60000

/* Filters in one SUBSCRIBE that are looked at; what is beyond is refused, so
 * that no packet takes the loop for long. */
#define FILTERS_MAX 10000

/* ---- mount_point ---- */

/* Puts the listener's mount point in front of a topic or filter, behind $share
 * and its name if that is there. *own is the memory that s shows then, of
 * s->len bytes and the caller's, or NULL. false: no memory, or too long. */
static bool
mount_behind(const struct client *c, uint32_t head, struct mqtt_str *s,
    uint8_t **own)
{
	const char *point = c->listener->conf->mount_point;
	uint32_t n = point ? (uint32_t)strlen(point) : 0;

	*own = NULL;
	if (n == 0)
		return true;
	if (s->len + n > UINT16_MAX || !(*own = mem_alloc(s->len + n)))
		return false;
	memcpy(*own, s->p, head);
	memcpy(*own + head, point, n);
	memcpy(*own + head + n, s->p + head, s->len - head);
	*s = (struct mqtt_str){ *own, s->len + n };
	return true;
}

static bool
mount(const struct client *c, struct mqtt_str *topic, uint8_t **own)
{
	return mount_behind(c, 0, topic, own);
}

static bool
mount_filter(const struct client *c, struct mqtt_str *filter, uint8_t **own)
{
	struct mqtt_str name, rest = *filter;

	if (mqtt_is_shared(*filter) &&
	    !mqtt_split_shared(*filter, &name, &rest))
		return false;
	return mount_behind(c, filter->len - rest.len, filter, own);
}

/* ---- the end of sessions and connections ---- */

static void
publish_will(struct broker *b, struct session *s)
{
	struct will *w = s->will;
	struct msg *m = w->msg;
	int64_t expires_ms = w->has_expiry ?
	    b->now_ms + (int64_t)w->expiry * 1000 : MSG_NEVER;
	bool recorded = persist_will_goes(b, s);

	msg_ref(m);
	session_free_will(s);           /* never twice [MQTT-3.1.2-10] */
	if (auth_may_write(s, msg_topic(m)))
		route_msg(b, m, expires_ms, s);
	if (recorded)
		persist_will_gone(b, s);
	msg_unref(m);
}

void
client_end_session(struct broker *b, struct session *s)
{
	if (s->will)
		publish_will(b, s);
	while (s->subs)
		topic_unsubscribe(&b->topics, s->subs);
	route_leave(b, s, true);
	persist_end(b, s);
	session_free(&b->sessions, s);
}

/* Section 3.1.3.2.2 of 5.0: the will waits for its delay, but not beyond the
 * end of the session. */
static void
leave_will(struct broker *b, struct session *s)
{
	uint32_t wait = s->will->delay < s->expiry ? s->will->delay :
	    s->expiry;

	if (wait == 0)
		publish_will(b, s);
	else
		s->will->due_ms = b->now_ms + (int64_t)wait * 1000;
}

/* Parts connection and session; the session goes on alone or ends. */
static void
detach(struct broker *b, struct client *c, bool with_will)
{
	struct session *s = c->session;

	c->session = NULL;
	s->client = NULL;
	b->sessions.n_connected--;
	session_rewind(s, &b->topics, b->conf->queue_qos0_messages);
	if (s->will && with_will)
		leave_will(b, s);
	else
		session_free_will(s);
	if (s->expiry == 0) {
		client_end_session(b, s);
		return;
	}
	s->expires_ms = s->expiry == SESSION_FOREVER ? TIMER_NEVER :
	    b->now_ms + (int64_t)s->expiry * 1000;
	session_set_timer(&b->sessions, s);
	persist_gone(b, s);
	route_leave(b, s, false);
}

void
client_session_timer(struct broker *b, struct session *s)
{
	if (s->expires_ms <= b->now_ms) {
		log_notice("Expiring client %s due to timeout.", s->id);
		b->sessions.expired++;
		client_end_session(b, s);
		return;
	}
	if (s->will && s->will->due_ms <= b->now_ms)
		publish_will(b, s);
	session_set_timer(&b->sessions, s);
}

static void
log_disconnect(struct broker *b, struct client *c, const char *reason,
    const char *why)
{
	char name[CONN_NAME];

	if (!b->conf->connection_messages && !why)
		return;
	conn_name(&c->conn.peer, name);
	if (!reason)
		log_notice("Client %s [%s] disconnected.", client_id(c), name);
	else
		log_notice("Client %s [%s] disconnected: %s.%s%s%s",
		    client_id(c), name, reason, why ? " Cause: " : "",
		    why ? why : "", why ? "." : "");
}

static void
unlink_login(struct broker *b, struct login *l)
{
	*(l->prev ? &l->prev->next : &b->logins) = l->next;
	*(l->next ? &l->next->prev : &b->logins_last) = l->prev;
	l->next = l->prev = NULL;
}

static void
link_login(struct broker *b, struct login *l)
{
	l->prev = b->logins_last;
	l->next = NULL;
	*(l->prev ? &l->prev->next : &b->logins) = l;
	b->logins_last = l;
}

static void
free_login(struct login *l)
{
	size_t size = sizeof *l + l->len;

	explicit_bzero(l, size);
	mem_free(l, size);
}

static void
drop_login(struct broker *b, struct client *c)
{
	struct login *l = c->login;

	if (!l)
		return;
	if (!l->why)
		unlink_login(b, l);
	free_login(l);
	c->login = NULL;
}

/* What stands in the output goes out, then the connection ends. */
static void
hang_up(struct broker *b, struct client *c)
{
	if (c->conn.tls)
		tls_give_up(c->conn.tls);
	send_forget_held(c);
	c->state = CLIENT_CLOSING;
	timer_set(&b->timers, &c->timer, b->now_ms + LINGER_MS);
	todo(b, c);
}

void
client_close(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why)
{
	if (c->state >= CLIENT_CLOSING)
		return;
	drop_login(b, c);
	log_disconnect(b, c, reason ? mqtt_reason_name(reason) : NULL, why);
	if (c->state == CLIENT_UP) {
		if (reason)
			send_disconnect(b, c, reason, why);
		detach(b, c, reason != MQTT_OK);
	}
	hang_up(b, c);
}

void
client_cut_off(struct broker *b, struct client *c, const char *reason)
{
	if (c->state < CLIENT_CLOSING)
		log_disconnect(b, c, reason, NULL);
	drop_login(b, c);
	if (c->state == CLIENT_UP)
		detach(b, c, true);
	if (c->conn.tls)
		tls_give_up(c->conn.tls);
	strangers_remove(b, c);
	c->state = CLIENT_DEAD;
	todo(b, c);
}

/* TLS does not work with this peer, or no more; what is to be said to it stands
 * in the output already. */
static void
client_broken(struct broker *b, struct client *c)
{
	log_disconnect(b, c, "TLS error", tls_fault(c->conn.tls));
	if (c->state == CLIENT_UP)
		detach(b, c, true);
	hang_up(b, c);
}

/* Nobody is told what could not be recorded: whoever asked for it has to come
 * again. */
static void
drop_unrecorded(struct broker *b, struct client *c)
{
	if (!persist_lost(b))
		return;
	log_notice("Client %s gets no answer: the journal cannot take what it "
	    "asked for now.", client_id(c));
	c->failed = true;
	todo(b, c);
}

/* ---- CONNECT ---- */

/* Refuses a CONNECT: with a CONNACK where the version has a code for it, and
 * no DISCONNECT before a successful CONNACK [MQTT5-3.14.0-1]. */
static void
refuse(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why)
{
	send_refusal(b, c, reason, why);
	client_close(b, c, reason, why);
}

static const struct guard *
guard_of(const struct broker *b, const struct client *c)
{
	return &b->auth.guards[c->listener->guard];
}

/* A UUID behind the prefix, as Mosquitto makes them, that is no session's. */
static void
make_id(struct broker *b, const struct client *c, char out[CONFIG_ID_MAX + 1])
{
	const char *conf = guard_of(b, c)->conf->auto_id_prefix;
	const char *prefix = conf ? conf : "auto-";
	/* For early at boot, when there are no random bytes: unique will do. */
	uint64_t unique[2] = { b->stats.connections, (uint64_t)b->now_ms };
	uint8_t r[sizeof unique];
	struct mqtt_str id = { (uint8_t *)out, 0 };
	int n;

	do {
		if (getrandom(r, sizeof r, GRND_NONBLOCK) != sizeof r) {
			memcpy(r, unique, sizeof r);
			unique[1]++;
		}
		n = snprintf(out, CONFIG_ID_MAX + 1, "%s%02X%02X%02X%02X-"
		    "%02X%02X-%02X%02X-%02X%02X-%02X%02X%02X%02X%02X%02X",
		    prefix, r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7],
		    r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]);
		id.len = (uint32_t)n;
	} while (session_find(&b->sessions, id));
}

static enum mqtt_reason
check_id(const struct broker *b, const struct client *c,
    const struct mqtt_connect *k, const char **why)
{
	const char *prefix = b->conf->clientid_prefixes;

	if (k->id.len == 0) {
		/* [MQTT-3.1.3-8]; 3.1 knows no empty ones at all */
		if (k->version == MQTT_31 ||
		    (k->version == MQTT_311 && !k->clean)) {
			*why = "empty client identifier";
			return MQTT_BAD_CLIENT_ID;
		}
		if (!guard_of(b, c)->conf->allow_zero_length_clientid) {
			*why = "empty client identifier; "
			    "allow_zero_length_clientid is false";
			return MQTT_BAD_CLIENT_ID;
		}
		return MQTT_OK;
	}
	if (prefix && (k->id.len < strlen(prefix) ||
	    memcmp(k->id.p, prefix, strlen(prefix)) != 0)) {
		*why = "client identifier does not start with "
		    "clientid_prefixes";
		return MQTT_BAD_CLIENT_ID;
	}
	return MQTT_OK;
}

/* Sessions of clients that are away count too. */
static enum mqtt_reason
check_room(struct broker *b, const struct mqtt_connect *k, const char **why)
{
	int max = b->conf->global_max_clients;

	if (k->id.len > 0 && session_find(&b->sessions, k->id))
		return MQTT_OK;
	*why = "memory is short (memory_limit)";
	if (relief_needs(b, RELIEF_NEWCOMERS))
		return MQTT_QUOTA;
	*why = "global_max_clients exceeded";
	return max < 0 || b->sessions.by_id.n < (uint32_t)max ? MQTT_OK :
	    MQTT_QUOTA;
}

static enum mqtt_reason
check_will(const struct broker *b, const struct client *c,
    const struct mqtt_connect *k, const char **why)
{
	if (!k->will)
		return MQTT_OK;
	*why = mqtt_topic_fault(k->will_topic);
	if (*why)
		return MQTT_BAD_TOPIC;
	if (k->will_qos > c->listener->conf->max_qos) {
		*why = "will QoS above max_qos";
		return MQTT_NO_QOS;     /* [MQTT5-3.2.2-12] */
	}
	if (k->will_retain && !b->conf->retain_available) {
		*why = "will with retain, but retain_available is false";
		return MQTT_NO_RETAIN;  /* [MQTT5-3.2.2-13] */
	}
	return MQTT_OK;
}

/* Before 5.0 a server cannot name another keep alive, only refuse. */
static enum mqtt_reason
check_keepalive(const struct broker *b, const struct mqtt_connect *k,
    const char **why)
{
	int max = b->conf->max_keepalive;

	if (max == 0 || k->version == MQTT_5 ||
	    (k->keepalive > 0 && k->keepalive <= max))
		return MQTT_OK;
	*why = "keep alive above max_keepalive";
	return MQTT_BAD_CLIENT_ID;
}

/* What is judged before the login. */
static enum mqtt_reason
check_connect(const struct broker *b, const struct client *c,
    const struct mqtt_connect *k, const char **why)
{
	if (mqtt_has(&k->props, MQTT_P_AUTH_METHOD)) {
		*why = "no authentication method is supported";
		return MQTT_BAD_AUTH_METHOD;    /* [MQTT5-4.12.0-1] */
	}
	return check_will(b, c, k, why);
}

static struct will *
new_will(const struct client *c, const struct mqtt_connect *k)
{
	struct mqtt_publish p = { .topic = k->will_topic,
	    .payload = k->will_payload, .props = k->will_props.forward,
	    .qos = k->will_qos, .retain = k->will_retain };
	struct will *w = mem_alloc(sizeof *w);
	uint8_t *own;

	if (!w)
		return NULL;
	*w = (struct will){ .due_ms = TIMER_NEVER,
	    .delay = k->will_props.will_delay,
	    .expiry = k->will_props.message_expiry,
	    .has_expiry = mqtt_has(&k->will_props, MQTT_P_MESSAGE_EXPIRY) };
	if (mount(c, &p.topic, &own)) {
		w->msg = msg_new(&p, MSG_NEVER);
		mem_free(own, p.topic.len);
	}
	if (!w->msg) {
		mem_free(w, sizeof *w);
		return NULL;
	}
	return w;
}

/* How long the session lives after its connection: 3.x knows only not at all
 * and for ever, the operator may set a limit. */
static uint32_t
session_expiry(const struct broker *b, uint8_t version, bool clean,
    uint32_t asked)
{
	int64_t max = b->conf->persistent_client_expiration;
	uint32_t e = version == MQTT_5 ? asked : clean ? 0 : SESSION_FOREVER;

	return max >= 0 && e > max ? (uint32_t)max : e;
}

/* What this listener asks of a CONNECT. */
static enum mqtt_reason
check_listener(const struct client *c, const struct mqtt_connect *k,
    const char **why)
{
	if (c->listener->conf->versions >> k->version & 1)
		return MQTT_OK;
	*why = "accept_protocol_versions does not have this version";
	return MQTT_BAD_VERSION;
}

/* The entry for a session's identifier, or that of the one longest ago. */
static struct takeovers *
find_takeovers(struct broker *b, uint32_t hash)
{
	struct takeovers *t = &b->takeovers[0];

	for (int i = 0; i < TAKEOVERS_WATCHED; i++) {
		if (b->takeovers[i].hash == hash && b->takeovers[i].n)
			return &b->takeovers[i];
		if (b->takeovers[i].last_ms < t->last_ms)
			t = &b->takeovers[i];
	}
	*t = (struct takeovers){ .hash = hash, .start_ms = b->now_ms };
	return t;
}

/* c takes the session of s->client. */
static void
note_takeover(struct broker *b, const struct session *s,
    const struct client *c)
{
	struct takeovers *t = find_takeovers(b, s->link.hash);
	char old[CONN_NAME], new[CONN_NAME];

	if (b->now_ms - t->last_ms > TAKEOVERS_MS)
		t->told = false;
	if (b->now_ms - t->start_ms > TAKEOVERS_MS) {
		t->start_ms = b->now_ms;
		t->n = 0;
	}
	t->last_ms = b->now_ms;
	if (++t->n < TAKEOVERS_MAX || t->told)
		return;
	t->told = true;
	log_warning("Warning: Two devices seem to use the client id %s: %s and "
	    "%s have taken it from each other %u times within a minute. Give "
	    "each device an id of its own.", s->id,
	    conn_name(&s->client->conn.peer, old),
	    conn_name(&c->conn.peer, new), t->n);
}

/* The session for an accepted CONNECT: [MQTT-3.1.4-2] whoever is connected
 * under this id has to go, then [MQTT-3.1.2-4], [MQTT-3.1.2-6]. */
static struct session *
take_session(struct broker *b, const struct client *c,
    const struct mqtt_connect *k, struct mqtt_str id, bool *present)
{
	struct session *s = session_find(&b->sessions, id);

	if (s && s->client) {
		log_error("Client %s already connected, closing old "
		    "connection.", s->id);
		note_takeover(b, s, c);
		client_close(b, s->client, MQTT_TAKEN_OVER, NULL);
		s = session_find(&b->sessions, id);
	}
	if (s && k->clean) {
		client_end_session(b, s);
		s = NULL;
	}
	*present = s != NULL;
	return s ? s : session_new(&b->sessions, id);
}

/* The session's user, rules and guard are those of c. If it was somebody
 * else's, what waits in it is judged anew. false: no memory. */
static bool
give_session(struct broker *b, struct client *c, struct session *s,
    const struct mqtt_connect *k)
{
	static const uint8_t none[1];
	struct mqtt_str user = k->user, old = session_user(s);
	bool other;

	if (!k->has_user)
		user.p = NULL;
	else if (!user.p)
		user.p = none;
	other = !user.p != !old.p || !mqtt_str_eq(user, old);
	if (other && !session_set_user(s, user))
		return false;
	if (s->subs && (other || s->guard != c->listener->guard))
		topic_forget_marks(&b->topics);
	s->guard = c->listener->guard;
	auth_bind(&b->auth, s);
	route_recheck(b, s);
	if (auth_is_dangerous(s))
		log_notice("Client %s: the wildcard in its client id or user "
		    "name keeps it from all patterns of the acl_file.", s->id);
	return true;
}

static struct aliases *
new_aliases(uint16_t max)
{
	struct aliases *a = max ? mem_zalloc(sizeof *a +
	    max * sizeof *a->topic) : NULL;

	if (a)
		a->max = max;
	return a;
}

static struct alias_tables *
alias_tables(struct client *c)
{
	if (!c->aliases)
		c->aliases = mem_zalloc(sizeof *c->aliases);
	return c->aliases;
}

static void
free_aliases(struct aliases *a)
{
	if (!a)
		return;
	for (uint16_t i = 0; i < a->max; i++)
		if (a->topic[i].p)
			mem_free((void *)(uintptr_t)a->topic[i].p,
			    a->topic[i].len);
	mem_free(a, sizeof *a + a->max * sizeof *a->topic);
}

static void
attach(struct broker *b, struct client *c, struct session *s,
    const struct mqtt_connect *k, struct will *w)
{
	int window = b->conf->max_inflight_messages;
	int aliases = c->listener->conf->max_topic_alias_broker;

	strangers_remove(b, c);
	if (persist_will_goes(b, s))    /* back in time: not sent */
		persist_will_gone(b, s);
	session_free_will(s);
	s->will = w;
	s->client = c;
	s->expires_ms = TIMER_NEVER;
	session_set_timer(&b->sessions, s);
	s->expiry = session_expiry(b, k->version, k->clean,
	    k->props.session_expiry);
	s->window = window == 0 || window > k->props.receive_max ?
	    k->props.receive_max : (uint16_t)window;
	s->window_bytes = (uint32_t)b->conf->max_inflight_bytes;
	s->dropping = false;
	c->session = s;
	c->state = CLIENT_UP;
	c->clean = k->clean;
	c->zero_expiry = k->version == MQTT_5 && k->props.session_expiry == 0;
	c->packet_max = k->props.packet_max;
	if (k->props.alias_max < aliases)
		aliases = k->props.alias_max;
	if (aliases > 0 && alias_tables(c))
		c->aliases->to_client = new_aliases((uint16_t)aliases);
	b->sessions.n_connected++;
	persist_session(b, s);
}

/* An ample 1.5 times the keep alive [MQTT-3.1.2-24]. */
static void
set_keepalive(struct broker *b, struct client *c)
{
	timer_set(&b->timers, &c->timer, c->keepalive == 0 ? TIMER_NEVER :
	    c->last_in_ms + c->keepalive * 1500);
}

static void
log_connected(const struct broker *b, const struct client *c,
    const struct mqtt_connect *k)
{
	char name[CONN_NAME];
	int shown = c->version == MQTT_5 ? 5 : c->version - 2;

	if (!b->conf->connection_messages)
		return;
	conn_name(&c->conn.peer, name);
	log_notice("New %s connected from %s as %s (p%d, c%d, k%d%s%.*s%s).",
	    c->bridge ? "bridge" : "client", name, client_id(c), shown,
	    k->clean, k->keepalive, k->has_user ? ", u'" : "",
	    (int)k->user.len, (const char *)k->user.p,
	    k->has_user ? "'" : "");
}

static void
log_will(const struct mqtt_connect *k)
{
	if (!k->will) {
		log_debug("No will message specified.");
		return;
	}
	log_debug("Will message specified (%u bytes) (r%d, q%d).",
	    k->will_payload.len, k->will_retain, k->will_qos);
	log_debug("\t%.*s", (int)k->will_topic.len,
	    (const char *)k->will_topic.p);
}

static void
free_will(struct will *w)
{
	if (!w)
		return;
	msg_unref(w->msg);
	mem_free(w, sizeof *w);
}

static void
accept_connect(struct broker *b, struct client *c,
    const struct mqtt_connect *k)
{
	char assigned[CONFIG_ID_MAX + 1];
	struct connack ack = { 0 };
	struct mqtt_str id = k->id;
	struct session *s = NULL;
	struct will *w = k->will ? new_will(c, k) : NULL;
	int max = b->conf->max_keepalive;

	if (id.len == 0) {
		make_id(b, c, assigned);
		id = (struct mqtt_str){ (uint8_t *)assigned,
		    (uint32_t)strlen(assigned) };
		ack.assigned_id = assigned;
	}
	if (persist_failed(b) &&
	    session_expiry(b, k->version, k->clean, k->props.session_expiry)) {
		free_will(w);
		refuse(b, c, MQTT_UNAVAILABLE, "the disk does not take the "
		    "session; see the log");
		return;
	}
	if (w || !k->will)
		s = take_session(b, c, k, id, &ack.session_present);
	if (s && !give_session(b, c, s, k)) {
		if (!ack.session_present)
			client_end_session(b, s);
		s = NULL;
	}
	if (!s) {
		free_will(w);
		refuse(b, c, MQTT_QUOTA, "out of memory for the session");
		return;
	}
	attach(b, c, s, k, w);
	c->keepalive = k->keepalive;
	if (max > 0 && (k->keepalive == 0 || k->keepalive > max)) {
		c->keepalive = (uint16_t)max;
		ack.tell_keepalive = true;
	}
	ack.tell_expiry = s->expiry != k->props.session_expiry;
	set_keepalive(b, c);
	log_connected(b, c, k);
	if (c->conn.tls && b->conf->connection_messages)
		log_notice("Client %s negotiated TLSv1.2 cipher %s",
		    client_id(c), tls_cipher(c->conn.tls));
	log_will(k);
	send_connack(b, c, &ack);
}

/* The login was good. */
static void
enter(struct broker *b, struct client *c, struct mqtt_connect *k)
{
	const char *why = NULL;
	enum mqtt_reason r;

	if (c->listener->conf->use_username_as_clientid) {
		if (!k->has_user || k->user.len == 0) {
			refuse(b, c, MQTT_NOT_AUTHORIZED, "no user name, but "
			    "use_username_as_clientid is true");
			return;
		}
		k->id = k->user;
	}
	r = check_id(b, c, k, &why);
	if (r == MQTT_OK)
		r = check_room(b, k, &why);
	if (r == MQTT_OK)
		r = check_keepalive(b, k, &why);
	if (r != MQTT_OK)
		refuse(b, c, r, why);
	else
		accept_connect(b, c, k);
}

/* One line that begins with "Login refused: ADDRESS:PORT, ", which other
 * programs rely on: what follows are words of the client. */
static void
refuse_login(struct broker *b, struct client *c, const struct mqtt_connect *k,
    enum mqtt_reason reason, const char *why)
{
	char name[CONN_NAME];

	log_notice("Login refused: %s, client '%.*s', %s%.*s%s: %s.",
	    conn_name(&c->conn.peer, name), (int)k->id.len,
	    (const char *)k->id.p, k->has_user ? "user '" : "no user",
	    (int)k->user.len, (const char *)k->user.p, k->has_user ? "'" : "",
	    why);
	refuse(b, c, reason, NULL);
}

/* With use_identity_as_username or use_subject_as_username the name is that of
 * the certificate, whatever CONNECT says. false: there is none, and c is
 * refused. */
static bool
take_identity(struct broker *b, struct client *c, struct mqtt_connect *k)
{
	const struct config_listener *l = c->listener->conf;
	const char *id = c->conn.tls ? tls_identity(c->conn.tls) : NULL;

	if (!l->use_identity_as_username && !l->use_subject_as_username)
		return true;
	if (!id) {
		refuse_login(b, c, k, MQTT_BAD_LOGIN, l->require_certificate ?
		    "its certificate has no Common Name that can be a user "
		    "name" : "user names come from certificates here, and "
		    "none was asked for; set require_certificate true");
		return false;
	}
	c->certified = true;
	k->has_user = true;
	k->user = (struct mqtt_str){ (const uint8_t *)id,
	    (uint32_t)strlen(id) };
	k->password = (struct mqtt_str){ 0 };
	return true;
}

/* A wrong password: the more of them an address has given, the later it gets
 * the answer, but within connect_timeout. */
static void
hold_back(struct broker *b, struct client *c, const char *why)
{
	struct login *l = c->login;
	int64_t due = b->now_ms + auth_delay(&b->delays, &c->conn.peer,
	    b->conf->login_delay_max, b->now_ms);

	if (due == b->now_ms) {
		refuse_login(b, c, &l->k, MQTT_NOT_AUTHORIZED, why);
		return;
	}
	unlink_login(b, l);
	l->why = why;
	if (due < c->timer.due_ms)
		timer_set(&b->timers, &c->timer, due);
}

/* The password is right. What came behind the CONNECT is due now. */
static void
leave_login(struct broker *b, struct client *c)
{
	struct login *l = c->login;

	auth_forgive(&b->delays, &c->conn.peer);
	unlink_login(b, l);
	c->login = NULL;
	c->state = CLIENT_NEW;
	c->last_in_ms = b->now_ms;
	persist_mark(b);
	enter(b, c, &l->k);
	drop_unrecorded(b, c);
	free_login(l);
	c->conn.ready = c->conn.in_len > 0;
	todo(b, c);
}

/* Has what was decoded refer to l's own copy of the packet. */
static void
rebase(struct login *l, const uint8_t *from)
{
	struct mqtt_str *views[] = { &l->k.id, &l->k.user, &l->k.password,
	    &l->k.will_topic, &l->k.will_payload, &l->k.props.forward,
	    &l->k.will_props.forward };

	for (size_t i = 0; i < sizeof views / sizeof *views; i++)
		if (views[i]->p)
			views[i]->p = l->packet + (views[i]->p - from);
}

/* Has the password of a CONNECT checked, turn by turn. body: the packet's, of
 * which a copy is kept. */
static void
begin_login(struct broker *b, struct client *c, const struct mqtt_connect *k,
    const struct auth_check *check, const uint8_t *body, size_t len)
{
	struct login *l = mem_alloc(sizeof *l + len);

	if (!l) {
		refuse(b, c, MQTT_QUOTA, "out of memory for the login");
		return;
	}
	*l = (struct login){ .client = c, .check = *check, .k = *k,
	    .len = (uint32_t)len };
	memcpy(l->packet, body, len);
	rebase(l, body);
	link_login(b, l);
	c->login = l;
	c->state = CLIENT_LOGIN;
	b->work += LOGIN_WORK;
	todo(b, c);
}

static int64_t
clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void
client_check_passwords(struct broker *b)
{
	int64_t end = b->logins ? clock_us() + LOGIN_TURN_US : 0;
	const char *why;

	while (b->logins && clock_us() < end) {
		struct login *l = b->logins;

		switch (auth_check_go(&l->check, l->k.password, LOGIN_ROUNDS,
		    &why)) {
		case AUTH_YES:
			leave_login(b, l->client);
			break;
		case AUTH_NO:
			hold_back(b, l->client, why);
			break;
		case AUTH_CHECK:
			unlink_login(b, l);
			link_login(b, l);
		}
	}
}

static void
log_in(struct broker *b, struct client *c, struct mqtt_connect *k,
    const uint8_t *body, size_t len)
{
	struct auth_check check;
	const char *why;

	if (!take_identity(b, c, k))
		return;
	switch (auth_login(guard_of(b, c), k, c->certified, &check, &why)) {
	case AUTH_YES:
		enter(b, c, k);
		break;
	case AUTH_NO:
		refuse_login(b, c, k, MQTT_NOT_AUTHORIZED, why);
		break;
	case AUTH_CHECK:
		begin_login(b, c, k, &check, body, len);
	}
	if (c->certified)
		tls_forget_identity(c->conn.tls);       /* the session has it */
}

/* ---- everybody is judged anew ---- */

static void
judge_login(struct broker *b, struct client *c)
{
	struct login *l = c->login;
	const char *why;

	switch (auth_login(guard_of(b, c), &l->k, false, &l->check, &why)) {
	case AUTH_YES:
		leave_login(b, c);
		break;
	case AUTH_NO:
		refuse_login(b, c, &l->k, MQTT_NOT_AUTHORIZED, why);
		break;
	case AUTH_CHECK:
		break;          /* it begins anew */
	}
}

static void
judge_client(struct broker *b, struct client *c, const struct auth *old)
{
	const struct guard *was = &old->guards[c->listener->guard];
	const char *why;

	if (c->state == CLIENT_LOGIN && !c->login->why)
		judge_login(b, c);
	if (c->state != CLIENT_UP || c->certified)
		return;
	why = auth_outdated(was, guard_of(b, c), session_user(c->session));
	if (why)
		client_close(b, c, MQTT_NOT_AUTHORIZED, why);
}

void
client_rules_changed(struct broker *b, const struct auth *old)
{
	const struct hash *h = &b->sessions.by_id;

	topic_forget_marks(&b->topics);
	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			auth_bind(&b->auth, s);
			route_recheck(b, s);
		}
	}
	for (uint32_t fd = 0; fd < b->watch.n_fds; fd++)
		if (b->watch.by_fd[fd])
			judge_client(b, (struct client *)b->watch.by_fd[fd],
			    old);
}

/* ---- CONNECT as it comes ---- */

static void
on_connect(struct broker *b, struct client *c, struct mqtt_in *in,
    uint8_t flags)
{
	const uint8_t *body = in->p;
	size_t len = (size_t)(in->end - in->p);
	struct mqtt_connect k;
	const char *why = NULL;
	enum mqtt_reason r;

	if (c->state == CLIENT_UP) {
		/* [MQTT-3.1.0-2] */
		client_close(b, c, MQTT_PROTOCOL_ERROR, "second CONNECT");
		return;
	}
	r = mqtt_get_connect(in, &k);
	why = in->why;
	if (r == MQTT_MALFORMED && k.version == 0) {
		client_close(b, c, r, why);     /* [MQTT-3.1.2-1] */
		return;
	}
	/* The answer to a version that we do not know has the form that its
	 * number suggests. */
	c->version = k.version <= MQTT_5 ? k.version : MQTT_5;
	if (c->version < MQTT_31)
		c->version = MQTT_311;
	c->bridge = k.bridge;
	if (r == MQTT_OK && flags != 0 && k.version != MQTT_31) {
		r = MQTT_MALFORMED;
		why = "reserved bits in the fixed header";
	}
	if (r == MQTT_OK) {
		c->packet_max = k.props.packet_max;
		r = check_listener(c, &k, &why);
	}
	if (r == MQTT_OK)
		r = check_connect(b, c, &k, &why);
	if (r != MQTT_OK)
		refuse(b, c, r, why);
	else
		log_in(b, c, &k, body, len);
	/* The shared buffer would keep it for long. */
	if (k.password.len)
		explicit_bzero((void *)(uintptr_t)k.password.p, k.password.len);
}

/* ---- PUBLISH ---- */

/* Puts the topic in for its alias, or remembers it under the alias. */
static enum mqtt_reason
resolve_alias(struct client *c, struct mqtt_publish *p, const char **why)
{
	int max = c->listener->conf->max_topic_alias;
	struct mqtt_str *t;
	uint8_t *copy;

	if (p->alias == 0)
		return MQTT_OK;
	if (p->alias > max) {
		*why = "topic alias above the maximum";
		return MQTT_BAD_ALIAS;  /* [MQTT5-3.3.2-9] */
	}
	if (alias_tables(c) && !c->aliases->from_client)
		c->aliases->from_client = new_aliases((uint16_t)max);
	if (!c->aliases || !c->aliases->from_client)
		return MQTT_QUOTA;
	t = &c->aliases->from_client->topic[p->alias - 1];
	p->alias = 0;
	if (p->topic.len == 0) {
		p->topic = *t;
		*why = "topic alias that stands for no topic";
		return t->p ? MQTT_OK : MQTT_PROTOCOL_ERROR;
	}
	copy = mem_alloc(p->topic.len);
	if (!copy)
		return MQTT_QUOTA;
	memcpy(copy, p->topic.p, p->topic.len);
	if (t->p)
		mem_free((void *)(uintptr_t)t->p, t->len);
	*t = (struct mqtt_str){ copy, p->topic.len };
	return MQTT_OK;
}

/* What ends the connection, whatever the message. */
static enum mqtt_reason
check_publish(const struct broker *b, struct client *c,
    struct mqtt_publish *p, const char **why)
{
	enum mqtt_reason r = resolve_alias(c, p, why);

	if (r != MQTT_OK)
		return r;
	*why = mqtt_topic_fault(p->topic);
	if (*why)
		return p->topic.len ? MQTT_BAD_TOPIC : MQTT_PROTOCOL_ERROR;
	if (p->qos > c->listener->conf->max_qos) {
		*why = "QoS above max_qos";
		return MQTT_NO_QOS;     /* [MQTT5-3.2.2-11] */
	}
	if (p->retain && !b->conf->retain_available) {
		*why = "retain, but retain_available is false";
		return MQTT_NO_RETAIN;  /* [MQTT5-3.2.2-14] */
	}
	/* [MQTT5-3.3.4-7]; the count starts anew with each connection, and
	 * what was received twice counts once */
	if (p->qos == 2 && c->version == MQTT_5 &&
	    b->conf->max_inflight_messages > 0 &&
	    c->unreleased >= b->conf->max_inflight_messages &&
	    !session_received(c->session, p->id)) {
		*why = "more QoS 2 messages than the receive maximum allows";
		return MQTT_RECEIVE_MAX_EXCEEDED;
	}
	return MQTT_OK;
}

/* Hands the message on. A reason from 0x80 on means that it went nowhere. */
static enum mqtt_reason
hand_on_mounted(struct broker *b, struct client *c, struct mqtt_publish *p)
{
	struct routed r = { .p = *p, .from = c->session,
	    .expires_ms = msg_expiry(p, b->now_ms) };
	int limit = b->conf->message_size_limit;
	enum mqtt_reason reason;
	uint32_t receivers;

	if (!auth_may_write(c->session, p->topic)) {
		log_debug("Denied PUBLISH from %s (d%d, q%d, r%d, m%d, "
		    "'%.*s', ... (%u bytes))", client_id(c), p->dup, p->qos,
		    p->retain, p->id, (int)p->topic.len,
		    (const char *)p->topic.p, p->payload.len);
		return MQTT_NOT_AUTHORIZED;
	}
	if (limit > 0 && p->payload.len > (uint32_t)limit) {
		log_notice("Dropped too large PUBLISH from %s (%u bytes, "
		    "message_size_limit is %d)", client_id(c),
		    p->payload.len, limit);
		return MQTT_IMPLEMENTATION;
	}
	reason = route_publish(b, &r, &receivers);
	msg_unref(r.msg);
	if (reason == MQTT_OK && receivers == 0)
		return MQTT_NO_MATCHING_SUBSCRIBERS;
	return reason;
}

static enum mqtt_reason
hand_on(struct broker *b, struct client *c, const struct mqtt_publish *p)
{
	struct mqtt_publish m = *p;
	enum mqtt_reason r;
	uint8_t *own;

	if (!mount(c, &m.topic, &own))
		return MQTT_QUOTA;
	r = hand_on_mounted(b, c, &m);
	mem_free(own, m.topic.len);
	return r;
}

/* An answer that repeats one waits as long as that one. */
static void
await_all(struct broker *b, const struct client *c)
{
	if (c->session->no)
		persist_await_all(b);
}

static const char *
why_not_taken(const struct broker *b)
{
	return persist_failed(b) ? "the disk does not take the message, as an "
	    "earlier line says" : "out of memory";
}

/* QoS 2, method B of section 4.3.3: the message is handed on at once, and its
 * id is kept until PUBREL, so that a repeat is not handed on again. */
static void
publish_qos2(struct broker *b, struct client *c, struct mqtt_publish *p)
{
	enum mqtt_reason r;

	if (session_received(c->session, p->id)) {
		await_all(b, c);
		send_ack(b, c, MQTT_PUBREC, p->id, MQTT_OK);
		return;
	}
	if (!session_put_received(c->session, p->id)) {
		client_close(b, c, MQTT_QUOTA, "out of memory");
		return;
	}
	persist_group(b, c->session);
	r = hand_on(b, c, p);
	if (r == MQTT_NO_MATCHING_SUBSCRIBERS)
		r = MQTT_OK;
	if (r == MQTT_QUOTA && c->version != MQTT_5) {
		persist_drop_group(b);
		session_take_received(c->session, p->id);
		client_close(b, c, r, why_not_taken(b));
		return;
	}
	/* [MQTT5-4.3.3-9]: a refusal ends the exchange. 3.x has none. */
	if (r != MQTT_OK && c->version == MQTT_5) {
		persist_drop_group(b);
		session_take_received(c->session, p->id);
	} else {
		persist_got(b, c->session, p->id);
		c->unreleased++;
	}
	send_ack(b, c, MQTT_PUBREC, p->id, r);
}

static void
on_publish(struct broker *b, struct client *c, struct mqtt_in *in,
    uint8_t flags)
{
	struct mqtt_publish p;
	const char *why = NULL;
	enum mqtt_reason r = mqtt_get_publish(in, flags, c->version, &p);

	if (r != MQTT_OK) {
		client_close(b, c, r, in->why);
		return;
	}
	log_debug("Received PUBLISH from %s (d%d, q%d, r%d, m%d, '%.*s', ... "
	    "(%u bytes))", client_id(c), p.dup, p.qos, p.retain, p.id,
	    (int)p.topic.len, (const char *)p.topic.p, p.payload.len);
	b->stats.publish_received++;
	b->stats.publish_bytes_received += p.payload.len;
	r = check_publish(b, c, &p, &why);
	if (r != MQTT_OK) {
		client_close(b, c, r, why);
		return;
	}
	if (p.qos == 2) {
		publish_qos2(b, c, &p);
		return;
	}
	r = hand_on(b, c, &p);
	/* Before 5.0 an acknowledgement cannot say no: without memory the
	 * client has to come again [MQTT-4.8.0-2]. Of QoS 0 nothing was
	 * promised. */
	if (r == MQTT_QUOTA && p.qos == 0)
		b->stats.publish_dropped++;
	else if (r == MQTT_QUOTA && c->version != MQTT_5)
		client_close(b, c, r, why_not_taken(b));
	else if (p.qos == 1)
		send_ack(b, c, MQTT_PUBACK, p.id, r);
}

/* ---- acknowledgements ---- */

/* The exchange is over: there is room for another. */
static void
done(struct broker *b, struct client *c, struct delivery *d)
{
	persist_done(b, c->session, d);
	session_done(c->session, &b->topics, d);
	route_pump(b, c);
}

static void
on_puback(struct broker *b, struct client *c, const struct mqtt_ack *a)
{
	struct delivery *d = session_in_flight(c->session, a->id);

	log_debug("Received PUBACK from %s (Mid: %d, RC:%d)", client_id(c),
	    a->id, a->reason);
	if (!d)
		return;
	if (d->qos != 1) {
		client_close(b, c, MQTT_PROTOCOL_ERROR,
		    "PUBACK for a message of QoS 2");
		return;
	}
	done(b, c, d);
}

static void
on_pubrec(struct broker *b, struct client *c, const struct mqtt_ack *a)
{
	struct delivery *d = session_in_flight(c->session, a->id);

	log_debug("Received PUBREC from %s (Mid: %d)", client_id(c), a->id);
	if (!d) {
		if (a->reason < 0x80)
			send_ack(b, c, MQTT_PUBREL, a->id, MQTT_ID_NOT_FOUND);
		return;
	}
	if (d->qos != 2) {
		client_close(b, c, MQTT_PROTOCOL_ERROR,
		    "PUBREC for a message of QoS 1");
		return;
	}
	if (a->reason >= 0x80) {
		/* [MQTT5-4.4.0-2] */
		done(b, c, d);
		return;
	}
	if (d->state == RELEASED)
		await_all(b, c);
	persist_released(b, c->session, d);
	delivery_release(d);
	send_ack(b, c, MQTT_PUBREL, a->id, MQTT_OK);
}

static void
on_pubrel(struct broker *b, struct client *c, const struct mqtt_ack *a)
{
	log_debug("Received PUBREL from %s (Mid: %d)", client_id(c), a->id);
	bool found = session_take_received(c->session, a->id);

	if (c->unreleased > 0)
		c->unreleased--;
	if (found)
		persist_let_go(b, c->session, a->id);
	else
		await_all(b, c);
	send_ack(b, c, MQTT_PUBCOMP, a->id, found ? MQTT_OK :
	    MQTT_ID_NOT_FOUND);
}

static void
on_pubcomp(struct broker *b, struct client *c, const struct mqtt_ack *a)
{
	struct delivery *d = session_in_flight(c->session, a->id);

	log_debug("Received PUBCOMP from %s (Mid: %d, RC:%d)", client_id(c),
	    a->id, a->reason);
	if (!d || d->state != RELEASED)
		return;
	done(b, c, d);
}

static void
on_ack(struct broker *b, struct client *c, struct mqtt_in *in,
    enum mqtt_type t)
{
	struct mqtt_ack a;
	enum mqtt_reason r = mqtt_get_ack(in, t, c->version, &a);

	if (r != MQTT_OK)
		client_close(b, c, r, in->why);
	else if (t == MQTT_PUBACK)
		on_puback(b, c, &a);
	else if (t == MQTT_PUBREC)
		on_pubrec(b, c, &a);
	else if (t == MQTT_PUBREL)
		on_pubrel(b, c, &a);
	else
		on_pubcomp(b, c, &a);
}

/* ---- SUBSCRIBE and UNSUBSCRIBE ---- */

static enum mqtt_reason
check_filter(const struct mqtt_filter *f, const char **why)
{
	struct mqtt_str name, rest = f->filter;

	*why = "$share needs a name and a filter behind it";
	if (mqtt_is_shared(f->filter) &&
	    !mqtt_split_shared(f->filter, &name, &rest))
		return MQTT_BAD_FILTER;
	*why = mqtt_filter_fault(rest);
	if (*why)
		return MQTT_BAD_FILTER;
	if (rest.p != f->filter.p && f->no_local) {
		*why = "No Local on a shared subscription";
		return MQTT_PROTOCOL_ERROR;     /* [MQTT5-3.8.3-4] */
	}
	return MQTT_OK;
}

/* Reads a whole SUBSCRIBE or UNSUBSCRIBE once before anything is done, so that
 * a bad one changes nothing. *n: the filters in it. */
static enum mqtt_reason
check_filters(struct mqtt_in in, enum mqtt_type t, enum mqtt_version v,
    uint32_t *n, const char **why)
{
	struct mqtt_filter f;
	enum mqtt_reason r;

	for (*n = 0; in.p < in.end; (*n)++) {
		r = mqtt_get_filter(&in, t, v, &f);
		*why = in.why;
		if (r == MQTT_OK)
			r = check_filter(&f, why);
		if (r != MQTT_OK)
			return r;
	}
	return in.err;
}

/* A subscription that can never bring a message is refused, so that its client
 * learns of it; 3.1 has no code for that. */
static bool
may_subscribe(const struct broker *b, const struct client *c,
    struct mqtt_str filter)
{
	if (!b->conf->acl_check_subscribe || c->version == MQTT_31 ||
	    auth_could_read(c->session, filter))
		return true;
	log_debug("\t%.*s (denied)", (int)filter.len,
	    (const char *)filter.p);
	log_notice("Denied SUBSCRIBE from %s ('%.*s'): no rule of the acl_file "
	    "lets it read any such topic.", client_id(c), (int)filter.len,
	    (const char *)filter.p);
	return false;
}

/* Whether s may have this subscription too; one that it has may always be
 * replaced. The last one may weigh more than what is left. */
static bool
may_have_more(struct broker *b, struct session *s, struct mqtt_str filter)
{
	uint32_t max = (uint32_t)b->conf->max_subscriptions;

	if (topic_find_sub(&b->topics, s, filter))
		return true;
	if (max > 0 && s->sub_weight >= max) {
		log_notice("Denied SUBSCRIBE from %s: it has as many "
		    "subscriptions as max_subscriptions allows (%u).", s->id,
		    max);
		return false;
	}
	return !relief_needs(b, RELIEF_LASTING);
}

/* One filter; the code for SUBACK. */
static uint8_t
subscribe(struct broker *b, struct client *c, struct mqtt_filter *f,
    uint32_t id)
{
	bool fresh, again = f->retain_handling == 0;
	struct session *s = c->session;
	struct sub *sub;

	/* A bridge gets what it needs without the options of 5.0. */
	f->no_local |= c->bridge && !mqtt_is_shared(f->filter);
	f->retain_as_published |= c->bridge;
	if (f->qos > c->listener->conf->max_qos)
		f->qos = (uint8_t)c->listener->conf->max_qos;
	if (!may_subscribe(b, c, f->filter))
		return c->version == MQTT_5 ? MQTT_NOT_AUTHORIZED :
		    MQTT_UNSPECIFIED;
	log_debug("\t%.*s (QoS %d)", (int)f->filter.len,
	    (const char *)f->filter.p, f->qos);
	if (s->no && persist_failed(b))
		return c->version == MQTT_5 ? MQTT_QUOTA : MQTT_UNSPECIFIED;
	sub = may_have_more(b, s, f->filter) ? session_subscribe(s, &b->topics,
	    f, id, &fresh) : NULL;
	if (sub)
		persist_sub(b, s, f, id);
	if (!sub)
		return c->version == MQTT_5 ? MQTT_QUOTA : MQTT_UNSPECIFIED;
	if (log_on(LOG_T_SUBSCRIBE))
		log_line(LOG_T_SUBSCRIBE, "%s %d %.*s", client_id(c), f->qos,
		    (int)f->filter.len, (const char *)f->filter.p);
	if (!sub->group && (again || (fresh && f->retain_handling == 1)) &&
	    !scan_start(&b->topics, sub, f->filter, &s->scans))
		log_warning("Out of memory for the retained messages of %s.",
		    client_id(c));
	return f->qos;
}

static uint8_t
unsubscribe(struct broker *b, struct client *c, const struct mqtt_filter *f)
{
	struct sub *sub = topic_find_sub(&b->topics, c->session, f->filter);

	log_debug("\t%.*s", (int)f->filter.len, (const char *)f->filter.p);
	if (log_on(LOG_T_UNSUBSCRIBE))
		log_line(LOG_T_UNSUBSCRIBE, "%s %.*s", client_id(c),
		    (int)f->filter.len, (const char *)f->filter.p);
	if (!sub)
		return MQTT_NO_SUBSCRIPTION_EXISTED;
	session_unsubscribe(c->session, &b->topics, sub);
	persist_unsub(b, c->session, f->filter);
	return MQTT_OK;
}

static uint8_t
change_sub(struct broker *b, struct client *c, enum mqtt_type t,
    struct mqtt_filter *f, uint32_t id)
{
	uint8_t *own, code;

	if (!mount_filter(c, &f->filter, &own))
		return c->version == MQTT_5 ? MQTT_QUOTA : MQTT_UNSPECIFIED;
	code = t == MQTT_UNSUBSCRIBE ? unsubscribe(b, c, f) :
	    subscribe(b, c, f, id);
	mem_free(own, f->filter.len);
	return code;
}

/* Each filter in turn, like that many packets with one answer
 * [MQTT-3.8.4-4], [MQTT-3.10.4-6]. */
static void
each_filter(struct broker *b, struct client *c, struct mqtt_in *in,
    enum mqtt_type t, uint32_t id, uint8_t *codes)
{
	struct mqtt_filter f;

	for (uint32_t i = 0; in->p < in->end; i++) {
		mqtt_get_filter(in, t, c->version, &f);
		b->work++;
		if (t == MQTT_UNSUBSCRIBE || i < FILTERS_MAX)
			codes[i] = change_sub(b, c, t, &f, id);
		else
			codes[i] = c->version == MQTT_5 ? MQTT_QUOTA :
			    MQTT_UNSPECIFIED;
	}
}

static void
on_subscribe(struct broker *b, struct client *c, struct mqtt_in *in,
    enum mqtt_type t)
{
	struct mqtt_props pr;
	uint16_t id;
	uint32_t n;
	uint8_t *codes;
	const char *why = NULL;
	enum mqtt_reason r = mqtt_get_subscribe(in, t, c->version, &id, &pr);

	if (r != MQTT_OK)
		why = in->why;
	else
		r = check_filters(*in, t, c->version, &n, &why);
	if (r != MQTT_OK) {
		client_close(b, c, r, why);
		return;
	}
	codes = mem_alloc_passing(n);
	if (!codes) {
		client_close(b, c, MQTT_QUOTA, "out of memory");
		return;
	}
	log_debug("Received %s from %s", mqtt_type_name(t), client_id(c));
	if (!persist_failed(b))
		await_all(b, c);        /* one that is gone is gone */
	each_filter(b, c, in, t, pr.subscription_id, codes);
	if (!send_suback(b, c, t == MQTT_SUBSCRIBE ? MQTT_SUBACK :
	    MQTT_UNSUBACK, id, codes, n))
		client_close(b, c, MQTT_TOO_LARGE,
		    "the answer is larger than the client takes");
	mem_free(codes, n);
}

/* ---- the rest ---- */

static void
on_disconnect(struct broker *b, struct client *c, struct mqtt_in *in)
{
	struct mqtt_props pr;
	uint8_t reason;
	enum mqtt_reason r = mqtt_get_disconnect(in, c->version, &reason, &pr);

	if (r != MQTT_OK) {
		client_close(b, c, r, in->why);
		return;
	}
	log_debug("Received DISCONNECT from %s", client_id(c));
	if (mqtt_has(&pr, MQTT_P_SESSION_EXPIRY)) {
		/* Section 3.14.2.2.2 */
		if (c->zero_expiry && pr.session_expiry > 0) {
			client_close(b, c, MQTT_PROTOCOL_ERROR,
			    "session expiry after CONNECT had none");
			return;
		}
		c->session->expiry = session_expiry(b, c->version, c->clean,
		    pr.session_expiry);
	}
	log_disconnect(b, c, NULL, NULL);
	/* Only 0 takes the will back [MQTT5-3.14.4-3]. */
	detach(b, c, reason != MQTT_OK);
	hang_up(b, c);
}

static void
on_pingreq(struct broker *b, struct client *c, const struct mqtt_in *in)
{
	if (in->p != in->end) {
		client_close(b, c, MQTT_MALFORMED, "PINGREQ with a body");
		return;
	}
	log_debug("Received PINGREQ from %s", client_id(c));
	send_pingresp(b, c);
}

static void
on_packet(struct broker *b, struct client *c, const struct mqtt_header *h,
    uint8_t *body)
{
	struct mqtt_in in = { .p = body, .end = body + h->len };

	b->stats.messages_received++;
	persist_mark(b);
	switch (h->type) {
	case MQTT_CONNECT:
		on_connect(b, c, &in, h->flags);
		break;
	case MQTT_PUBLISH:
		on_publish(b, c, &in, h->flags);
		break;
	case MQTT_PUBACK:
	case MQTT_PUBREC:
	case MQTT_PUBREL:
	case MQTT_PUBCOMP:
		on_ack(b, c, &in, h->type);
		break;
	case MQTT_SUBSCRIBE:
	case MQTT_UNSUBSCRIBE:
		on_subscribe(b, c, &in, h->type);
		break;
	case MQTT_PINGREQ:
		on_pingreq(b, c, &in);
		break;
	case MQTT_DISCONNECT:
		on_disconnect(b, c, &in);
		break;
	default:
		/* AUTH without a method in CONNECT [MQTT5-4.12.0-7], what
		 * only servers send, and the reserved types. */
		client_close(b, c, MQTT_PROTOCOL_ERROR,
		    "packet type that a client may not send here");
	}
	drop_unrecorded(b, c);
}

/* ---- input ---- */

/* One stable line for each handshake that fails; why may be NULL: no word was
 * spoken yet. */
static void
log_refused_tls(const struct client *c, const char *why)
{
	char name[CONN_NAME];

	if (why)
		log_notice("TLS handshake with %s on port %d failed: %s.",
		    conn_name(&c->conn.peer, name), c->listener->conf->port,
		    why);
}

/* What the fixed header alone tells, before the body is waited for. */
static bool
header_ok(struct broker *b, struct client *c, const struct mqtt_header *h)
{
	if (c->state == CLIENT_NEW && h->type != MQTT_CONNECT) {
		/* [MQTT-3.1.0-1]: nothing is sent */
		client_close(b, c, MQTT_PROTOCOL_ERROR,
		    "first packet is not CONNECT");
		return false;
	}
	if (h->size > (uint32_t)b->conf->max_packet_size) {
		client_close(b, c, MQTT_TOO_LARGE,
		    "packet larger than max_packet_size");
		return false;
	}
	if (c->state != CLIENT_NEW && !mqtt_flags_valid(h, c->version)) {
		client_close(b, c, MQTT_MALFORMED,
		    "reserved bits in the fixed header");
		return false;
	}
	return true;
}

/* Whether c has to wait: it does not take our answers, or the disk is behind
 * with what it causes. */
static bool
choked(const struct broker *b, const struct client *c)
{
	return conn_choked(&c->conn) || send_choked(b, c);
}

/* The head of a record with a handshake; no CONNECT begins like that. */
static bool
looks_like_tls(const uint8_t *p, size_t n)
{
	return n >= 3 && p[0] == 0x16 && p[1] == 3 && p[2] <= 4;
}

/* Handles the packets in data; the bytes that are done with. *whole: the size
 * of a packet that is not complete yet, if known. */
static size_t
handle(struct broker *b, struct client *c, uint8_t *data, size_t n,
    size_t *whole)
{
	uint32_t limit = b->work + WORK_MAX;
	size_t done = 0;
	struct mqtt_header h;
	int r;

	*whole = 0;
	if (c->state == CLIENT_NEW && looks_like_tls(data, n)) {
		client_close(b, c, MQTT_PROTOCOL_ERROR, "the client appears "
		    "to be using TLS to connect to a non-TLS listener; tell "
		    "it not to, or give the listener certfile and keyfile");
		return n;
	}
	while (done < n && c->state < CLIENT_CLOSING &&
	    c->state != CLIENT_LOGIN) {
		if (b->work > limit || choked(b, c)) {
			c->conn.ready = true;
			return done;
		}
		r = mqtt_get_header(data + done, n - done,
		    c->version == MQTT_5, &h);
		if (r == 0)
			return done;
		if (r < 0) {
			client_close(b, c, MQTT_MALFORMED,
			    "remaining length is malformed");
			break;
		}
		if (!header_ok(b, c, &h))
			break;
		if (n - done < h.size) {
			*whole = h.size;
			return done;
		}
		b->work++;
		c->last_in_ms = b->now_ms;
		on_packet(b, c, &h, data + done + (h.size - h.len));
		done += h.size;
	}
	return c->state < CLIENT_CLOSING ? done : n;
}

/* The connection does not exist any more. */
static void
lost(struct broker *b, struct client *c, const char *reason)
{
	if (!conn_open(&c->conn) && c->state < CLIENT_CLOSING)
		log_refused_tls(c, tls_hung_up(c->conn.tls));
	client_cut_off(b, c, reason);
}

/* Those who have not logged in may keep only so much together. */
static void
weigh(struct broker *b, struct client *c)
{
	struct client *heavy = strangers_weigh(b, c);

	if (!heavy)
		return;
	client_cut_off(b, heavy, "the connections that have not logged in "
	    "hold too much input, and it most");
	conn_keep(&heavy->conn, NULL, 0, 0);    /* others need it this turn */
}

void
client_input(struct broker *b, struct client *c)
{
	uint8_t *data;
	size_t n, done, whole;
	int r;

	if (c->state == CLIENT_DEAD || c->state == CLIENT_LOGIN)
		return;
	r = conn_read(&c->conn, b->buf, &data, &n);
	if (c->conn.tls && c->conn.out_len > 0)
		todo(b, c);             /* an alert */
	if (r == 0) {
		weigh(b, c);
		return;
	}
	if (r < 0 && errno == EPROTO && c->state < CLIENT_CLOSING) {
		client_broken(b, c);
		return;
	}
	if (r < 0) {
		lost(b, c, errno == 0 ? "connection closed by client" :
		    errno == ENOMEM ? "out of memory" : "connection lost");
		return;
	}
	if (c->state >= CLIENT_CLOSING) {
		conn_keep(&c->conn, data, 0, 0);
		return;
	}
	b->stats.bytes_received += c->conn.got;
	done = handle(b, c, data, n, &whole);
	if (!conn_keep(&c->conn, data + done, n - done, whole))
		client_cut_off(b, c, "out of memory");
	weigh(b, c);
	if (c->conn.ready)
		todo(b, c);
	else if (c->state < CLIENT_CLOSING && c->conn.tls &&
	    tls_is_over(c->conn.tls))
		client_input(b, c);     /* nothing more will wake it */
}

void
client_event(struct broker *b, struct client *c, short events)
{
	if (events & POLLOUT) {
		c->blocked = false;
		todo(b, c);
	}
	if (events & POLLIN)
		client_input(b, c);
	else if (events & (POLLERR | POLLHUP))
		lost(b, c, "connection lost");
}

/* ---- the disk ---- */

void
client_disk_done(struct broker *b)
{
	uint64_t durable = store_durable(&b->persist.store);
	bool failed = persist_failed(b);

	if (!b->holders || (durable == b->persist.told &&
	    failed == b->persist.told_failed))
		return;
	b->persist.told = durable;
	b->persist.told_failed = failed;
	send_held(b);
}

/* ---- TLS ---- */

void
client_shake(struct broker *b, struct client *c)
{
	const char *words;
	char name[CONN_NAME];

	switch (conn_shake(&c->conn, b->now_ms, &words)) {
	case TLS_GOES_ON:
		todo(b, c);
		break;
	case TLS_DONE:
		log_debug("TLS handshake with %s on port %d succeeded: %s.",
		    conn_name(&c->conn.peer, name), c->listener->conf->port,
		    words);
		timer_set(&b->timers, &c->timer,
		    b->now_ms + b->conf->connect_timeout * 1000);
		todo(b, c);
		client_input(b, c);     /* what came with it */
		break;
	case TLS_FAILED:
		log_refused_tls(c, words);
		hang_up(b, c);
	}
}

/* ---- life ---- */

/* false: no memory; c has nothing then. */
static bool
client_init(struct broker *b, struct client *c, struct listener *l, int fd,
    const struct conn_addr *peer)
{
	if (!timer_init(&b->timers, &c->timer, TIMER_CLIENT))
		return false;
	conn_init(&c->conn, fd, peer);
	c->listener = l;
	c->last_in_ms = b->now_ms;
	c->packet_max = UINT32_MAX;
	if ((!*l->tls || (c->conn.tls = tls_new(*l->tls, c))) &&
	    strangers_add(b, c) && watch_add(&b->watch, &c->conn))
		return true;
	strangers_remove(b, c);
	tls_free(c->conn.tls);
	timer_fini(&b->timers, &c->timer);
	return false;
}

bool
client_make_room(struct broker *b)
{
	struct client *oldest;

	if (!strangers_full(b, &oldest))
		return true;
	if (oldest)
		client_cut_off(b, oldest, "too many connections that have not "
		    "logged in");
	return oldest;
}

void
client_new(struct broker *b, struct listener *l, int fd,
    const struct conn_addr *peer)
{
	struct client *c = mem_zalloc_passing(sizeof *c);
	char name[CONN_NAME];

	conn_name(peer, name);
	if (!c || !client_init(b, c, l, fd, peer)) {
		log_error("Client connection from %s denied: out of memory.",
		    name);
		mem_free(c, sizeof *c);
		close(fd);
		return;
	}
	if (b->conf->connection_messages)
		log_notice("New connection from %s on port %d.", name,
		    l->conf->port);
	(*l->n_connections)++;
	b->stats.connections++;
	timer_set(&b->timers, &c->timer, b->now_ms + (c->conn.tls &&
	    b->conf->connect_timeout > HANDSHAKE_S ? HANDSHAKE_S :
	    b->conf->connect_timeout) * 1000);
}

void
client_free(struct broker *b, struct client *c)
{
	strangers_remove(b, c);
	send_forget_held(c);
	watch_remove(&b->watch, &c->conn);
	conn_fini(&c->conn);
	timer_fini(&b->timers, &c->timer);
	if (c->aliases) {
		free_aliases(c->aliases->from_client);
		free_aliases(c->aliases->to_client);
		mem_free(c->aliases, sizeof *c->aliases);
	}
	(*c->listener->n_connections)--;
	mem_free(c, sizeof *c);
}

static bool
in_time(const struct broker *b, const struct client *c)
{
	return b->now_ms - c->last_in_ms < c->keepalive * 1500;
}

/* A packet that came in time may still lie in the socket, if it was the broker
 * that did not run. */
static void
keepalive_due(struct broker *b, struct client *c)
{
	if (send_choked(b, c))
		c->last_in_ms = b->now_ms;      /* it is we who do not read */
	if (!in_time(b, c) && !conn_choked(&c->conn))
		client_input(b, c);
	if (c->state != CLIENT_UP)
		return;
	if (in_time(b, c))
		set_keepalive(b, c);
	else
		client_close(b, c, MQTT_KEEP_ALIVE_TIMEOUT, NULL);
}

void
client_timer(struct broker *b, struct client *c)
{
	switch (c->state) {
	case CLIENT_NEW:
		if (!conn_open(&c->conn)) {
			log_refused_tls(c, "the client did not complete it in "
			    "time");
			hang_up(b, c);
			break;
		}
		client_close(b, c, MQTT_KEEP_ALIVE_TIMEOUT,
		    "no CONNECT within connect_timeout");
		break;
	case CLIENT_LOGIN:
		if (c->login->why)
			refuse_login(b, c, &c->login->k, MQTT_NOT_AUTHORIZED,
			    c->login->why);
		else
			client_close(b, c, MQTT_KEEP_ALIVE_TIMEOUT,
			    "the password could not be checked within "
			    "connect_timeout; fewer rounds (midge passwd -I) "
			    "take less time");
		break;
	case CLIENT_UP:
		keepalive_due(b, c);
		break;
	default:
		client_cut_off(b, c, NULL);
	}
}

void
client_settle(struct broker *b, struct client *c)
{
	bool read;

	if (c->state == CLIENT_UP)
		route_pump(b, c);
	send_flush(b, c);
	c->conn.todo = false;
	if (c->failed && c->state != CLIENT_DEAD) {
		client_cut_off(b, c, "connection lost");
		return;         /* it is on the list again */
	}
	if (c->state == CLIENT_CLOSING && c->conn.out_len == 0) {
		conn_end(&c->conn);
		send_flush(b, c);
		shutdown(c->conn.fd, SHUT_WR);
		c->state = CLIENT_LINGER;
	}
	if (c->state == CLIENT_DEAD) {
		client_free(b, c);
		return;
	}
	read = !choked(b, c) && c->state != CLIENT_LOGIN &&
	    (!c->conn.tls || tls_wants_input(c->conn.tls));
	if ((c->conn.ready && read) ||
	    (c->state == CLIENT_UP && !c->blocked && route_waits(b, c)))
		todo(b, c);
	watch_want(&b->watch, &c->conn, read || c->state >= CLIENT_CLOSING);
}
