/* persist - what of the broker's state outlives it, as records of the journal.
 *
 * Says for each change of a lasting session and of retained messages what is
 * written, and builds the state anew from that. Lasting are sessions with an
 * expiry; for the others nothing is written and nobody waits.
 *
 * What a client is told waits for the disk in send.c: whatever a packet has
 * caused to be recorded is on the disk before its acknowledgement leaves.
 * With persistence off each call here returns at once.
 *
 *   MSG         a message, before the first record that refers to it
 *   SESSION     begins or goes on, with a client connected
 *   GONE        its client has left
 *   WILL        is to be published later, or not any more
 *   END         with all that it has
 *   SUB, UNSUB  a subscription
 *   QUEUE       a message on its way to the client
 *   SENT        it has a packet identifier
 *   RELEASED    PUBREC came
 *   DONE        PUBACK or PUBCOMP came, or it was dropped
 *   GOT         a QoS 2 message came from the client
 *   LET_GO      and its PUBREL
 *   RETAIN      a message is kept for its topic
 *   UNRETAIN    it is not
 *   TIME        what time it was
 */
#ifndef PERSIST_H
#define PERSIST_H

#include "state.h"

/* Bytes that wait for the disk; half of what the store takes. */
#define PERSIST_BUSY (8u << 20)

/* A disk that fails for less than this makes its clients wait only: a helper
 * that has died is there again soon. */
#define PERSIST_PATIENCE_MS 2000

/* Opens the journal that the configuration names and fills the broker with what
 * it holds; at the first start with what a mosquitto.db holds. false: it cannot
 * be used, which is logged. */
bool persist_open(struct broker *b);

/* The next message that Mosquitto had acknowledged but not handed on: to be
 * routed, once persist_open is through. The caller's reference. NULL: none. */
struct msg *persist_imported(struct broker *b);

/* Everything is on the disk then. */
void persist_close(struct broker *b);

/* Once per turn: has written what was recorded. */
void persist_commit(struct broker *b);
int64_t persist_due(const struct broker *b);
void persist_event(struct broker *b);

/* SIGUSR1: a snapshot. The configuration was loaded anew: autosave options. */
void persist_save(struct broker *b);
void persist_reload(struct broker *b);

/* Before each packet: what it causes to be recorded is what its answer waits
 * for. */
static inline void
persist_mark(struct broker *b)
{
	b->persist.mark = b->persist.pos;
	b->persist.lost = false;
}

/* Whether a record could not be taken since it was asked last. */
static inline bool
persist_lost(struct broker *b)
{
	bool lost = b->persist.lost;

	b->persist.lost = false;
	return lost;
}

/* What the answer to the packet at hand waits for, 0: nothing. */
static inline uint64_t
persist_awaited(const struct broker *b)
{
	return b->persist.pos > b->persist.mark ? b->persist.pos : 0;
}

/* The answer waits for all that was recorded so far: it repeats one that may
 * not have left yet. */
static inline void
persist_await_all(struct broker *b)
{
	b->persist.mark = 0;
}

/* Whether all below pos is on the disk. */
static inline bool
persist_reached(const struct broker *b, uint64_t pos)
{
	return pos == 0 || pos <= store_durable(&b->persist.store);
}

/* Whether the disk is in trouble, and not just for a moment: nothing that lasts
 * is to be promised. */
static inline bool
persist_failed(const struct broker *b)
{
	return b->persist.on && b->persist.failed_ms != 0 &&
	    b->now_ms - b->persist.failed_ms > PERSIST_PATIENCE_MS;
}

/* Whether so much waits for the disk that those who cause it have to wait. */
static inline bool
persist_busy(const struct broker *b)
{
	return store_end_position(&b->persist.store) -
	    store_durable(&b->persist.store) > PERSIST_BUSY;
}

/* Records of one packet that count together or not at all; the last one is
 * that of persist_got. drop: none of them counts; if there were some, the state
 * is written anew. */
void persist_group(struct broker *b, const struct session *from);
void persist_drop_group(struct broker *b);

/* A client is connected to s, which lasts if its expiry is above 0. */
void persist_session(struct broker *b, struct session *s);

/* It has left; s goes on, perhaps with a will that waits. */
void persist_gone(struct broker *b, struct session *s);

/* Its will does not wait any more; the first is called before it is freed, and
 * if it returns true the second when it is published, or not to be: what is
 * recorded in between counts together with that. */
bool persist_will_goes(struct broker *b, struct session *s);
void persist_will_gone(struct broker *b, const struct session *s);

/* s ends, or does not last any more. */
void persist_end(struct broker *b, struct session *s);

void persist_sub(struct broker *b, const struct session *s,
    const struct mqtt_filter *f, uint32_t id);
void persist_unsub(struct broker *b, const struct session *s,
    struct mqtt_str filter);

void persist_queue(struct broker *b, struct session *s, struct delivery *d);

/* d of QoS 2 is to be sent under its id. */
void persist_sent(struct broker *b, const struct session *s,
    struct delivery *d);
void persist_released(struct broker *b, const struct session *s,
    struct delivery *d);
void persist_done(struct broker *b, const struct session *s,
    struct delivery *d);

void persist_got(struct broker *b, const struct session *s, uint16_t id);
void persist_let_go(struct broker *b, const struct session *s, uint16_t id);

/* m is to be what is retained for its topic; NULL: nothing is. old: what was,
 * or NULL. */
void persist_retain(struct broker *b, struct mqtt_str topic, struct msg *m,
    struct msg *old);

/* The way back from the records, without the disk: a replay that is all zero but
 * for b (its topics, sessions and auth are there), persist_read for each record
 * (arg is the replay), persist_settle at the end, also after a failure. */
struct replay {
	struct broker *b;
	struct hash sessions, msgs, deliveries; /* by their numbers */
	uint32_t ignored;               /* records that made no sense */
	uint32_t n_retained;            /* that Mosquitto left */
};

bool persist_read(void *arg, uint8_t type, const uint8_t *body, uint32_t n);
void persist_settle(struct replay *r);

/* Records for the whole state of arg, a broker: for the child that makes a
 * snapshot, since it notes in the messages which of them it has had. */
bool persist_dump(void *arg, struct store *st);

/* 'midge store FILE' */
int persist_main(int argc, char **argv);

#endif
