/* listen - opens the sockets that clients connect to.
 *
 * At start-up only: name look-ups may block here. Faults are logged in words,
 * with the process that holds a port where the system lets us see it.
 */
#ifndef LISTEN_H
#define LISTEN_H

#include "config.h"

/* At most this many sockets belong to one configured listener. */
#define LISTEN_FDS 8

/* Opens the sockets of one listener, non-blocking, and stores their
 * descriptors. The number of them, -1: not possible, and none is open. */
int listen_open(const struct config_listener *l, int fds[LISTEN_FDS]);

/* Whether somebody listens on a port, with a description like "mosquitto
 * (process 812, mosquitto.service)". Only root sees those of all users. */
#define LISTEN_HOLDER 400
bool listen_holder(int port, char out[LISTEN_HOLDER]);

/* Logs in plain words who may connect to l, from where and how, and what
 * changes it: a warning if nobody may. */
void listen_explain(const struct config_listener *l);

/* Removes the file of a unix socket; nothing for others. */
void listen_remove(const struct config_listener *l);

#endif
