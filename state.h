/* state - all state of a running broker, data only.
 *
 * Created in main, passed first to whoever needs it; there is no other.
 */
#ifndef STATE_H
#define STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "auth.h"
#include "config.h"
#include "conn.h"
#include "service.h"
#include "session.h"
#include "store.h"
#include "timer.h"
#include "topic.h"
#include "watch.h"

enum timer_kind {
	TIMER_CLIENT, TIMER_SESSION, TIMER_RETAINED, TIMER_SYS, TIMER_ACCEPT,
	TIMER_WATCHDOG, TIMER_DAILY, TIMER_RELIEF,
};

struct listener {
	const struct config_listener *conf;
	int fd;
	uint32_t *n_connections;        /* shared by the sockets of one conf */
	struct tls_server **tls;        /* the same; NULL in it: plain */
	uint8_t guard;                  /* its place in b->auth */
	bool pending;                   /* somebody wants to connect */
};

/* Topic aliases of one direction of one connection: topic i has alias i + 1.
 * The topics are copies. */
struct aliases {
	uint16_t max, n;                /* n: in use, outgoing only */
	struct mqtt_str topic[];
};

/* Most connections have none. */
struct alias_tables {
	struct aliases *from_client, *to_client;
};

enum client_state {
	CLIENT_NEW,     /* accepted, waits for CONNECT */
	CLIENT_LOGIN,   /* CONNECT has come; its password is being checked, or
	                 * the refusal is held back. Nothing more is read */
	CLIENT_UP,      /* CONNACK 0 was sent */
	CLIENT_CLOSING, /* only what stands in the output still goes out */
	CLIENT_LINGER,  /* all is sent; what the peer still sends is dropped, so
	                 * that no reset overtakes our last packet */
	CLIENT_DEAD,    /* freed at the end of the turn */
};

/* A CONNECT whose password takes time to check. */
struct login {
	struct login *next, *prev;      /* in the broker's list */
	struct client *client;
	struct auth_check check;
	const char *why;                /* it is refused; not in the list */
	struct mqtt_connect k;          /* views into packet */
	uint32_t len;
	uint8_t packet[];               /* the body; wiped at the end */
};

/* One MQTT connection. */
struct client {
	struct conn conn;               /* first: the loop knows only this */
	struct timer timer;             /* CONNECT, keep alive, lingering */
	struct session *session;        /* while CLIENT_UP */
	struct login *login;            /* while CLIENT_LOGIN */
	struct listener *listener;
	union {
		struct stranger *stranger;      /* while is_stranger */
		struct alias_tables *aliases;   /* then; NULL: none */
	};
	int64_t last_in_ms;             /* a whole packet */
	uint32_t packet_max;            /* the client's Maximum Packet Size */
	uint16_t keepalive;             /* s, as in force */
	uint16_t unreleased;            /* QoS 2 messages that came first on
	                                 * this connection, before PUBREL */
	uint8_t state;                  /* enum client_state */
	bool is_stranger;               /* it has not logged in yet */
	uint8_t version;                /* enum mqtt_version; 0: not known */
	bool bridge;
	bool certified;                 /* its certificate gave its user name */
	bool clean;
	bool blocked;                   /* the kernel took only a part */
	bool failed;                    /* out of memory, or a write failed */
	bool zero_expiry;               /* CONNECT said expiry 0 */
	bool mute;                      /* its CONNACK waits for the disk */
	struct holder *holder;          /* NULL: nothing waits for the disk */
};

/* Counted for $SYS; each only grows. */
struct stats {
	uint64_t messages_received, messages_sent;      /* all packets */
	uint64_t publish_received, publish_sent, publish_dropped;
	uint64_t publish_bytes_received, publish_bytes_sent;    /* payload */
	uint64_t bytes_received, bytes_sent;
	uint64_t sockets, connections;
};

/* Who takes a client identifier from whom, again and again: most likely two
 * devices with the same one. */
struct takeovers {
	uint32_t hash;          /* of the identifier */
	uint32_t n;             /* within a minute of start_ms */
	int64_t start_ms, last_ms;
	bool told;              /* and then not again before a quiet minute */
};

#define TAKEOVERS_WATCHED 16            /* identifiers at a time */

/* Connections that have not logged in, see strangers.h. */
struct strangers {
	struct stranger *oldest, *newest;
	uint32_t n;
	uint64_t bytes;                 /* that they keep */
	bool told;                      /* that there are too many */
};

/* What gives way when memory is short, see relief.h. */
enum relief_step {
	RELIEF_LASTING, RELIEF_NEWCOMERS, RELIEF_QOS0, RELIEF_ACKED,
	RELIEF_READER, RELIEF_STEPS,
};

struct relief {
	struct timer timer;
	uint64_t count[RELIEF_STEPS];   /* how often, for $SYS */
	unsigned told;                  /* in this episode, 1 << step */
	bool wanting;                   /* QoS 1 or 2 was refused lately */
};

struct sys;

/* The journal of what outlives the broker; see persist.h. */
struct persist {
	struct store store;
	bool on;
	bool lost;              /* a record could not be taken */
	bool group;             /* records belong together for now */
	uint64_t pos;           /* after the last record that somebody waits
	                         * for */
	uint64_t told;          /* those who wait have heard of this one, */
	bool told_failed;       /* and of trouble */
	uint64_t mark;          /* the same, before the packet at hand */
	uint32_t last_session;          /* numbers given */
	uint64_t last_msg, last_delivery;
	struct imported *imported;      /* messages still to be handed on */
	int64_t failed_ms;      /* since when the disk fails, 0: it does not */
	uint32_t changes;       /* since the last one that was not lazy */
	int64_t wall_floor;     /* s since 1970: the newest time in it */
	int fd;                 /* of the store, in the poll set */
};

struct broker {
	struct config *conf;            /* changed by a reload only */
	struct service service;
	struct watch watch;
	struct timers timers;
	struct topics topics;
	struct sessions sessions;
	struct listener *listeners;
	unsigned n_listeners;
	struct auth auth;
	struct auth_delays delays;
	struct login *logins, *logins_last;     /* passwords to be checked */
	uint32_t *counts;               /* connections per configured listener */
	struct tls_server **certs;      /* per configured listener, or NULL */
	struct tls_pool tls;
	struct persist persist;
	struct holder *holders;         /* those that wait for the disk */
	struct conn *todo;              /* to be settled at the turn's end; what
	                                 * is on it then is due at once */
	struct takeovers takeovers[TAKEOVERS_WATCHED];
	struct stats stats;
	struct relief relief;
	struct strangers strangers;
	struct sys *sys;
	struct timer accept_timer;      /* set while descriptors ran out */
	struct timer watchdog;          /* the service manager waits for us */
	struct timer daily;             /* set while there are certificates */
	uint8_t *buf;                   /* CONN_BUF bytes: what was read */
	uint32_t *subids;               /* those of the message at hand */
	uint32_t subids_cap;
	int64_t now_ms;                 /* of this turn */
	uint32_t work;                  /* of this turn: packets, deliveries,
	                                 * steps of searches */
	bool out_of_fds;                /* and that was told */
	bool stop;
	bool reload;                    /* SIGHUP came */
};

/* Has c settled at the end of the turn: output written, queue looked at,
 * closed if it is to be closed. */
static inline void
todo(struct broker *b, struct client *c)
{
	if (c->conn.todo)
		return;
	c->conn.todo = true;
	c->conn.next_todo = b->todo;
	b->todo = &c->conn;
}

static inline const char *
client_id(const struct client *c)
{
	return c->session ? (const char *)c->session->id : "<unknown>";
}

#endif
