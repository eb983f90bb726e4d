/* relief - what gives way when the memory of the ledger (mem.h) runs short.
 *
 * In this order, by the part of memory_limit that is taken:
 *
 *   24/32  what may stay for ever is refused: new retained messages and
 *          subscriptions, so that they alone never lock anybody out
 *   26/32  clients without a session are refused
 *   27/32  QoS 0 that would have to wait is dropped, and what waits of it at
 *          the slowest reader
 *   28/32  mem_alloc fails: QoS 1 and 2 are refused
 *   then   the slowest reader is disconnected; its session stays
 *
 * An episode begins when the first of them gives way and ends at 20/32. In it
 * each is told once; all are counted for $SYS. Says what is to be done, and does
 * nothing to a connection.
 */
#ifndef RELIEF_H
#define RELIEF_H

#include "state.h"

/* false: no memory. */
bool relief_init(struct broker *b);
void relief_fini(struct broker *b);

/* Whether memory is so short that this gives way now; if so that is counted and
 * told. Not for RELIEF_ACKED and RELIEF_READER. */
bool relief_needs(struct broker *b, enum relief_step step);

/* Whether outputs have to be kept small: QoS 0 gives way. */
bool relief_is_short(void);

/* This gave way, as an allocation has failed. */
void relief_gave(struct broker *b, enum relief_step step);

/* Once per turn: ends an episode, sets the timer. */
void relief_turn(struct broker *b);

/* The timer: QoS 0 of the slowest reader goes, memory is given back to the
 * system. The client that is to be disconnected, or NULL; that is told. */
struct client *relief_timer(struct broker *b);

#endif
