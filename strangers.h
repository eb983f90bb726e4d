/* strangers - the connections that have not logged in yet.
 *
 * They share a small budget, so that nobody who may not even come in can take
 * what others need: so many of them (max_connecting, and a quarter of the
 * descriptors) and so many bytes of what they have sent so far. Each also has a
 * deadline, connect_timeout. When one too many comes the oldest that we wait for
 * goes, but not before it had a moment to speak; when they keep too many bytes, the one that keeps most. Those that wait
 * for us, for a handshake or the check of a password, do not go: then nobody
 * else is let in for the moment.
 *
 * Keeps the list and says who is to go; closes nothing.
 */
#ifndef STRANGERS_H
#define STRANGERS_H

#include "state.h"

/* c was accepted; it logged in, or was marked dead. The first may find no memory
 * (false), the second does nothing if it is none. */
bool strangers_add(struct broker *b, struct client *c);
void strangers_remove(struct broker *b, struct client *c);

/* c may keep more or less than before. The one that has to go for it, NULL:
 * nobody. */
struct client *strangers_weigh(struct broker *b, struct client *c);

/* Whether there is no room for one more. *oldest is who may go, NULL: nobody. */
bool strangers_full(struct broker *b, struct client **oldest);

#endif
