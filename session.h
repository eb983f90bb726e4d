/* session - what outlives a connection: subscriptions, messages on their way
 * to the client, received QoS 2 identifiers, the will, the expiry.
 *
 * Bookkeeping only: nothing here encodes a packet or knows a socket.
 *
 * Messages of QoS 1 and 2 stand in one list, in the order in which they are
 * due. Those before `unsent` are in flight on this connection, the others
 * wait; some of these may have been sent on an earlier connection (they have
 * an id). A delivery goes
 *
 *   WAITING  --session_sent-->  SENT      PUBLISH is out, no answer yet
 *   SENT     --PUBACK, PUBCOMP--> gone
 *   SENT     --PUBREC-->  RELEASED        PUBREL is out; the message is gone
 *
 * and when the connection is lost session_rewind puts `unsent` back to the
 * first, SENT back to WAITING and RELEASED to TO_RELEASE. Messages of QoS 0
 * that find no room in the output wait apart, so that a full window does not
 * hold them up. All of this is the outbox, which exists only while there is
 * something in it: most sessions are idle.
 */
#ifndef SESSION_H
#define SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "hash.h"
#include "mqtt.h"
#include "msg.h"
#include "timer.h"
#include "topic.h"

enum delivery_state { WAITING, SENT, RELEASED, TO_RELEASE };

struct delivery {
	struct delivery *next, *prev;
	struct msg *msg;        /* NULL once PUBREC came */
	struct group *group;    /* it came by a shared subscription */
	uint32_t weight;        /* bytes, against max_queued_bytes */
	uint16_t id;            /* packet identifier, 0 not yet sent */
	uint8_t qos;            /* as granted */
	uint8_t state;          /* enum delivery_state */
	bool retain;            /* as it is to be sent */
	bool sent;              /* once, perhaps on an earlier connection */
	bool recorded;          /* the journal has it */
	uint16_t n_subids;
	uint64_t no;            /* in the journal, unique in it */
	uint64_t pos;           /* of the journal: it goes out when all below
	                         * is on the disk */
	uint32_t subids[];      /* Subscription Identifiers */
};

#define SUBIDS_MAX UINT16_MAX   /* that go with one message */

struct will {
	struct msg *msg;        /* QoS and retain inside; expiry see below */
	int64_t due_ms;         /* TIMER_NEVER while the client is there */
	uint32_t delay;         /* s */
	uint32_t expiry;        /* s, starts with its publication */
	bool has_expiry;
};

#define SESSION_FOREVER UINT32_MAX      /* as expiry */

struct client;
struct acl_user;

struct session_user {
	uint16_t len;
	uint8_t name[];
};

/* A list of deliveries, and what of it waits and was never sent. QoS 0 and the
 * others are counted apart, so that the first costs no place for the second. */
struct line {
	struct delivery *first, *last;
	uint64_t bytes;
	uint32_t n;
};

struct outbox {
	struct line qos0;
	struct line acked;              /* QoS 1 and 2 */
	struct delivery *unsent;        /* the first of acked to be sent */
	struct delivery **ring;         /* those with an id, by id & mask */
	uint32_t ring_size;             /* a power of two, or 0 */
	uint32_t n_ids;                 /* deliveries with an id */
	uint64_t in_flight_bytes;
	uint16_t in_flight;             /* sent on this connection */
};

/* Identifiers of QoS 2 messages from the client that it has not released. */
struct received {
	uint16_t n, cap;
	uint16_t id[];                  /* sorted */
};

struct session {
	struct hash_link link;
	struct client *client;          /* NULL: not connected */
	struct outbox *out;             /* NULL: nothing is on its way */
	struct sub *subs;
	uint32_t sub_weight;            /* of all of them */
	struct scan *scans;             /* retained messages still to come */
	struct received *received;      /* NULL: none */
	struct session_user *user;      /* NULL: no name */
	const struct acl_user *rules;   /* NULL: it may do everything */
	struct will *will;
	struct timer timer;             /* the nearer of the two below */
	int64_t expires_ms;             /* while not connected */
	uint32_t expiry;                /* s after the connection's end */
	uint32_t window_bytes;          /* the same in bytes; 0: no limit */
	uint16_t window;                /* unacknowledged messages allowed */
	uint16_t last_id;
	uint16_t id_len;
	uint8_t guard;                  /* place of its listener's guard */
	bool dropping;                  /* an episode of drops was logged */
	uint32_t no;                    /* in the journal, 0: not there */
	uint8_t id[];                   /* client identifier, NUL behind it */
};

struct sessions {
	struct hash by_id;
	struct topics *topics;
	struct timers *timers;
	uint32_t timer_kind;
	uint32_t n_connected;
	uint32_t maximum;               /* the most there ever were */
	uint64_t expired;               /* counted for $SYS */
};

static inline struct mqtt_str
session_id(const struct session *s)
{
	return (struct mqtt_str){ s->id, s->id_len };
}

/* topic_subscribe and topic_unsubscribe, with the weight kept. */
struct sub *session_subscribe(struct session *s, struct topics *t,
    const struct mqtt_filter *f, uint32_t id, bool *is_new);
void session_unsubscribe(struct session *s, struct topics *t,
    struct sub *sub);

/* The name of the user that the session belongs to; p NULL: none. */
static inline struct mqtt_str
session_user(const struct session *s)
{
	return s->user ? (struct mqtt_str){ s->user->name, s->user->len } :
	    (struct mqtt_str){ NULL, 0 };
}

/* Copies the name; p NULL: none. false: no memory, nothing changed. */
bool session_set_user(struct session *s, struct mqtt_str user);

/* NULL: there is none. */
struct session *session_find(const struct sessions *ss, struct mqtt_str id);

/* A fresh one; the id is not in use. NULL: no memory. */
struct session *session_new(struct sessions *ss, struct mqtt_str id);

/* Ends it with all that it has; it must not be connected. Messages that it
 * got by shared subscriptions must have been given to others before. */
void session_free(struct sessions *ss, struct session *s);

void session_free_will(struct session *s);

/* A new delivery of m (a reference is taken) with group and identifiers.
 * NULL: no memory. It belongs to nobody yet. */
struct delivery *delivery_new(struct msg *m, struct group *g, uint8_t qos,
    bool retain, const uint32_t *subids, uint32_t n_subids);
void delivery_free(struct topics *t, struct delivery *d);

/* One whose message is gone already: only its PUBREL is still to come. NULL:
 * no memory. */
struct delivery *delivery_released(uint8_t qos);

/* Appends a delivery to what waits. false: no memory. */
bool session_queue(struct session *s, struct delivery *d);

/* The first delivery of QoS 0 that waits; of QoS 1 or 2 that is to be sent;
 * NULL: none. */
static inline struct delivery *
session_qos0(const struct session *s)
{
	return s->out ? s->out->qos0.first : NULL;
}

static inline struct delivery *
session_unsent(const struct session *s)
{
	return s->out ? s->out->unsent : NULL;
}

/* Whether the window lets another message of QoS 1 or 2 go out. */
static inline bool
session_window_open(const struct session *s)
{
	if (!s->out)
		return s->window > 0;
	return s->out->in_flight < s->window && (s->window_bytes == 0 ||
	    s->out->in_flight_bytes < s->window_bytes);
}

/* Takes out and frees any delivery. */
void session_drop(struct session *s, struct topics *t, struct delivery *d);

/* Gives d an id if it has none. false: no id or no memory, nothing changed. */
bool session_give_id(struct session *s, struct delivery *d);

/* The same with an id that it had in another life. false: no memory, or the id
 * is 0 or somebody else's. */
bool session_restore_id(struct session *s, struct delivery *d, uint16_t id);

/* Gives d, the first unsent one, an id if it has none, and counts it as in
 * flight. false: no id or no memory, nothing changed. */
bool session_sent(struct session *s, struct delivery *d);

/* The first unsent one is TO_RELEASE: its PUBREL goes out again. */
void session_resent(struct session *s);

/* The delivery in flight with this id, NULL if none. */
struct delivery *session_in_flight(const struct session *s, uint16_t id);

/* PUBREC came: the message is no longer needed. */
void delivery_release(struct delivery *d);

/* PUBACK, PUBCOMP or a refusal came: frees d and makes room in the window. */
void session_done(struct session *s, struct topics *t, struct delivery *d);

/* The connection is gone: all that is unacknowledged is due again, in its
 * order; QoS 0 is dropped unless it is to be kept. */
void session_rewind(struct session *s, struct topics *t, bool keep_qos0);

static inline unsigned
session_n_received(const struct session *s)
{
	return s->received ? s->received->n : 0;
}

/* Received QoS 2 identifiers. put false: no memory. take: whether it was
 * there. */
bool session_received(const struct session *s, uint16_t id);
bool session_put_received(struct session *s, uint16_t id);
bool session_take_received(struct session *s, uint16_t id);

/* Sets the timer to the nearer of will and expiry. */
void session_set_timer(struct sessions *ss, struct session *s);

#endif
