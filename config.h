/* config - configuration file and command line, turned into one struct.
 *
 * Knows the name, range, default and message of every option (the table in
 * config.c is the one place to extend) and nothing of what they do. Faults are
 * logged with file and line.
 */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "log.h"

#define MIDGE_VERSION "0.1.0"

/* When this version was made, s since 1970: it is later than that now, whatever
 * a clock without battery says. */
#define MIDGE_TIME INT64_C(1795219200)  /* 2026-11-21 */

/* The longest identifier that is assigned: prefix and a UUID. */
#define CONFIG_ID_MAX (50 + 36)

/* Exit codes, as Mosquitto has them. */
#define EXIT_CONFIG 3
#define EXIT_START 1
#define EXIT_FILES 13           /* password or ACL file */

/* Who may come in and what he may do. The one in struct config is what was
 * said for all listeners; each listener has a whole one of its own, and that
 * is what counts. */
struct config_security {
	char *password_file;    /* NULL: none */
	char *acl_file;
	char *auto_id_prefix;
	bool allow_anonymous;
	bool allow_anonymous_set;
	bool allow_zero_length_clientid;
	bool allow_zero_length_clientid_set;
	bool any_user;          /* without a password file any user name is
	                         * good: clients of this machine only */
};

struct config_listener {
	struct config_security security;
	int port;               /* 0 with path */
	char *host;             /* address or name; NULL: all */
	char *path;             /* of a unix socket */
	char *interface;        /* bind_interface; NULL: any */
	char *mount_point;      /* in front of all topics; NULL: nothing */
	int domain;             /* AF_UNSPEC, AF_INET, AF_INET6 */
	int max_connections;    /* -1: no limit */
	int max_qos;
	int max_topic_alias;    /* client to broker */
	int max_topic_alias_broker;
	unsigned versions;      /* that are let in: 1 << enum mqtt_version */
	bool local;             /* made by local-only mode */
	char *cafile, *capath;  /* PEM; authorities of client certificates */
	char *certfile, *keyfile;       /* not NULL: TLS */
	char *crlfile;
	char *ciphers;          /* OpenSSL's names */
	bool require_certificate;
	bool use_identity_as_username;  /* the Common Name */
	bool use_subject_as_username;
	bool disable_client_cert_date_checks;
	bool use_username_as_clientid;
	bool anonymous, anonymous_set;  /* listener_allow_anonymous */
};

struct config {
	int argc;               /* the command line */
	char **argv;
	const char *file;       /* NULL: none was given */
	bool local_only;
	struct config_security security;
	bool per_listener;      /* per_listener_settings */
	bool acl_check_subscribe;
	bool check_retain_source;
	bool connection_messages;
	bool queue_qos0_messages;
	bool retain_available;
	bool sandbox;
	bool set_tcp_nodelay;
	bool upgrade_outgoing_qos;
	bool verbose;           /* -v */
	bool quiet;             /* -q */
	bool daemon;            /* -d */
	bool test;              /* --test-config */
	char *clientid_prefixes;
	char *chroot;           /* NULL: stays where it is */
	char *pid_file;
	char *user;             /* to run as when started by root */
	int connect_timeout;    /* s */
	int max_connecting;     /* connections that have not logged in */
	int max_handshakes;     /* TLS, at a time */
	const char *tls_keylog; /* file; NULL: none */
	int login_delay_max;    /* s, 0: no delays */
	int global_max_clients; /* sessions; -1: no limit */
	int global_max_connections;     /* -1: no limit */
	int max_inflight_bytes; /* per client; 0: no limit */
	int max_inflight_messages;
	int max_keepalive;      /* s */
	int max_packet_size;    /* bytes */
	int max_queued_messages;
	int max_queued_bytes;
	int max_subscriptions;  /* of a session, by topic_sub_weight */
	int message_size_limit; /* bytes of payload */
	int sys_interval;       /* s */
	bool persistence;
	bool autosave_on_changes;
	int autosave_interval;  /* s, or changes; 0: none */
	int persistence_sync_interval;  /* ms */
	char *persistence_location;     /* NULL: the current folder */
	char *persistence_file; /* what our files are called; NULL: midge */
	size_t log_file_size;   /* bytes; 0: no limit */
	size_t memory_limit;    /* bytes; 0: no limit */
	int64_t persistent_client_expiration;   /* s, -1: never */
	struct log_config log;
	char *log_file;
	char *log_timestamp_format;
	struct config_listener *listeners;
	unsigned n_listeners;
	bool no_memory;         /* for all of it: not to be used */
};

/* What the command line asks for. */
enum config_action {
	CONFIG_RUN, CONFIG_TEST, CONFIG_HELP, CONFIG_VERSION, CONFIG_BAD,
};

/* Reads the command line and, with -c, the file. CONFIG_BAD: something was
 * wrong and is logged. On CONFIG_RUN the listeners are complete: those of the
 * file, or the ones of local-only mode. CONFIG_TEST: the command line asks for
 * a test, and the file was not read. */
enum config_action config_read(struct config *c, int argc, char **argv);

/* The same for a test: goes on after a fault, so that all of them are told, and
 * c holds what could be read even with CONFIG_BAD. */
enum config_action config_read_all(struct config *c, int argc, char **argv);

/* Options that are for the start only: a line in the log for each that differs
 * in a newly read configuration. */
void config_tell_kept(const struct config *running,
    const struct config *fresh);

/* Exchanges these options, so that fresh is what will run: listeners and
 * strings keep their places in memory. Called again it takes that back. */
void config_keep(struct config *running, struct config *fresh);

void config_free(struct config *c);

/* The usage text. */
const char *config_usage(void);

#endif
