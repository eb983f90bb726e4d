/* client - the server side of one MQTT connection: one short function per
 * packet type, and the rules for how connections and sessions begin and end.
 *
 * Handlers append to outputs and mark what is to happen; connections are freed
 * only in client_settle, at the end of the turn, and there sockets are written;
 * sooner only where an output is full.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include "state.h"

/* A connection was accepted. The descriptor is taken over, also on failure
 * (no memory). */
void client_new(struct broker *b, struct listener *l, int fd,
    const struct conn_addr *peer);

/* Whether there is room for one more that has not logged in, perhaps because
 * another had to go for it. */
bool client_make_room(struct broker *b);

/* poll() said so. */
void client_event(struct broker *b, struct client *c, short events);

/* The disk has got on: what waited for it goes out. */
void client_disk_done(struct broker *b);

/* One step of the TLS handshake, for one that tls_next has named. */
void client_shake(struct broker *b, struct client *c);

/* Handles input that is there or was left over from the last turn. */
void client_input(struct broker *b, struct client *c);

/* End of the turn, for one that was on the todo list: moves what waits, writes,
 * closes and frees. Puts the client on the list again if there is more to do at
 * once. */
void client_settle(struct broker *b, struct client *c);

/* Closes the socket and frees everything of a connection without session. */
void client_free(struct broker *b, struct client *c);

/* Goes on with the passwords that are being checked, for a bounded time. */
void client_check_passwords(struct broker *b);

/* b->auth is new, old is what it was before: everybody who is connected is
 * judged anew. */
void client_rules_changed(struct broker *b, const struct auth *old);

/* The timer of a connection, of a session without one. */
void client_timer(struct broker *b, struct client *c);
void client_session_timer(struct broker *b, struct session *s);

/* Ends the connection. reason other than MQTT_OK is told to a 5.0 client, and
 * logged with why (may be NULL). The will is published unless reason is
 * MQTT_OK. Nothing may be done with c's session afterwards. */
void client_close(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why);

/* Ends the connection without another word, because it does not work any more
 * or is not to be told; the will is published. */
void client_cut_off(struct broker *b, struct client *c, const char *reason);

/* Ends a session that has no connection; a will that waits is published. */
void client_end_session(struct broker *b, struct session *s);

#endif
