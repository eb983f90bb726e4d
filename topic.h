/* topic - who subscribed to what, and which messages are retained.
 *
 * Two trees with one node per topic level: one of filters, whose nodes carry
 * subscriptions, and one of topics, whose nodes carry retained messages. Nodes
 * are found by (parent, level name) in one hash table per tree, so a step down
 * costs the same among two children and among a million.
 *
 * Subscribers are opaque here: a session is only a pointer. No permissions, no
 * delivery.
 */
#ifndef TOPIC_H
#define TOPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "hash.h"
#include "mqtt.h"
#include "msg.h"
#include "timer.h"

struct session;
struct group;

struct node {
	struct hash_link link;
	struct node *parent, *child;
	struct node *next, **prev;      /* among the parent's children */
	union {
		struct {                /* in the tree of filters */
			struct sub *subs;
			struct group *groups;
		};
		struct {                /* in the tree of topics */
			struct msg *retained;
			struct lapse *lapse;
		};
	};
	uint32_t pins;                  /* scans that stand here */
	uint16_t name_len;
	uint8_t name[];
};

struct tree {
	struct hash nodes;
	struct node *root;              /* above the first level, nameless */
};

/* One subscription of one session. */
struct sub {
	struct hash_link link;
	struct session *session;
	struct node *node;
	struct group *group;            /* NULL: not shared */
	struct sub *next, **prev;       /* at the node, or in the group */
	struct sub *mine_next, **mine_prev; /* of this session */
	struct scan *scan;              /* retained messages still to come */
	uint32_t id;                    /* Subscription Identifier, 0 none */
	uint8_t qos;
	bool no_local, retain_as_published;
};

/* The sessions that share one subscription: $share/NAME/FILTER. */
struct group {
	struct hash_link link;
	struct group *next, **prev;     /* at the node */
	struct node *node;
	struct sub *members;
	struct sub *turn;               /* who gets the next message */
	uint32_t refs;                  /* members and undelivered messages */
	uint16_t name_len;
	uint8_t name[];
};

/* Everybody who gets messages of one topic: subscriptions, those of one
 * session side by side, then groups. */
struct match {
	uint64_t generation;
	uint32_t hash;
	uint32_t n_subs, n_groups;
	uint32_t topic_len;
	void *who[];                    /* struct sub *, struct group *, then
	                                 * the bytes of the topic, then a mark
	                                 * for each subscription */
};

/* Who published a retained message; kept only where that may matter later. */
struct source {
	struct hash_link link;
	const struct node *node;
	uint8_t guard;                  /* place of its listener's guard */
	bool has_user;
	uint16_t user_len, id_len;
	uint8_t names[];                /* user name, client identifier */
};

#define TOPIC_CACHE 4096                /* slots, two per set */

struct topics {
	struct tree filters, topics;
	struct hash subs;               /* by session and node or group */
	struct hash groups;             /* by node and name */
	struct hash sources;            /* by node */
	struct timers *timers;
	uint32_t timer_kind;            /* of a retained message's expiry */
	uint64_t generation;            /* changes with every subscription */
	struct match **cache;
	size_t cached, cache_max;       /* bytes in it */
	void **found;                   /* scratch of topic_match */
	uint32_t found_n, found_cap;
	uint32_t visits;                /* nodes that topic_match looked at */
	uint32_t n_subs, n_shared, n_retained;
};

/* timers and kind: where expiries of retained messages are set. false: no
 * memory. */
bool topics_init(struct topics *t, struct timers *timers, uint32_t kind);

/* Frees everything; subscriptions must be gone. */
void topics_fini(struct topics *t);

/* Adds or replaces a session's subscription. filter has been checked; a shared
 * one has the form $share/NAME/FILTER. mine: the session's list. *is_new tells
 * whether there was none with this filter. NULL: no memory, nothing changed. */
struct sub *topic_subscribe(struct topics *t, struct session *s,
    struct sub **mine, const struct mqtt_filter *f, uint32_t id, bool *is_new);

struct sub *topic_find_sub(struct topics *t, const struct session *s,
    struct mqtt_str filter);
void topic_unsubscribe(struct topics *t, struct sub *sub);

/* What the subscription may take of memory, in pieces of 16 levels or 1 kB. */
uint32_t topic_sub_weight(const struct sub *sub);

/* The filter's text, $share/... included, into out, cut at size - 1. */
void topic_filter_text(const struct sub *sub, char *out, size_t size);

void group_ref(struct group *g);
void group_unref(struct topics *t, struct group *g);

/* Who gets a message of this topic. Valid until the next call or change of
 * subscriptions. NULL: no memory. */
const struct match *topic_match(struct topics *t, struct mqtt_str topic);

/* Frees all that is not needed just now: what topic_match has remembered, and
 * room in the tables. */
void topics_slim(struct topics *t);

static inline struct sub *
match_sub(const struct match *m, uint32_t i)
{
	return m->who[i];
}

static inline struct group *
match_group(const struct match *m, uint32_t i)
{
	return m->who[m->n_subs + i];
}

/* A byte for each subscription, 0 in a new match: the caller may note there
 * what it knows about this topic and session, until topic_forget_marks. */
static inline uint8_t *
match_mark(const struct match *m, uint32_t i)
{
	return (uint8_t *)(uintptr_t)&m->who[m->n_subs + m->n_groups] +
	    m->topic_len + i;
}

void topic_forget_marks(struct topics *t);

/* Keeps a reference to m as the topic's retained message; NULL removes.
 * false: no memory, the old one stays. */
bool topic_retain(struct topics *t, struct mqtt_str topic, struct msg *m);

/* Notes who published the topic's retained message, which is there; user.p NULL:
 * without a name. It is forgotten with that message. false: no memory. */
bool topic_note_source(struct topics *t, struct mqtt_str topic, uint8_t guard,
    struct mqtt_str user, struct mqtt_str id);

/* NULL: it was not noted. */
const struct source *topic_source(const struct topics *t,
    const struct node *n);

/* The topic's node, NULL if there is none. */
const struct node *topic_find(const struct topics *t, struct mqtt_str topic);

/* The topic's retained message, NULL if none. Not a new reference. */
struct msg *topic_retained(struct topics *t, struct mqtt_str topic);

/* The next topic with a retained message after n in the tree, the first one for
 * NULL; NULL at the end. No message may come or go in between. */
const struct node *topic_next_retained(const struct topics *t,
    const struct node *n);

/* The node's topic into out, cut at size - 1. */
void topic_text(const struct node *n, char *out, size_t size);

/* Removes the retained message whose timer this is. */
void topic_lapse(struct topics *t, struct timer *timer);

/* A walk over the retained messages that match a subscription's filter, which
 * may be continued later, whatever has changed in between. It ends with its
 * subscription. */
struct scan {
	struct scan *next, **prev;      /* in the session's list */
	struct sub *sub;
	struct node *at;                /* pinned; NULL at the end */
	uint32_t depth;                 /* levels down to it */
	uint32_t filter_len;
	uint8_t filter[];
};

/* Starts anew for sub, which is not shared and whose filter's text is given, at
 * the head of list. false: no memory. */
bool scan_start(struct topics *t, struct sub *sub, struct mqtt_str filter,
    struct scan **list);

/* The next message, NULL at the end (s->at is NULL then) or when *steps (nodes
 * looked at, counted down) has reached 0. */
struct msg *scan_next(struct topics *t, struct scan *s, uint32_t *steps);
void scan_end(struct topics *t, struct scan *s);

#endif
