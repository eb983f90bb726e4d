#include "check.h"
#include "auth.h"
#include "config.h"
#include "listen.h"
#include "service.h"
#include "tls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct check {
	struct config conf;
	struct service service;
	char user[64];          /* whom the broker would run as */
	unsigned errors, warnings;
};

/* ---- files, as the later user sees them ---- */

static void
folder_of(const char *file, char out[PATH_MAX])
{
	const char *slash = strrchr(file, '/');
	size_t n = slash ? (size_t)(slash - file) : 0;

	snprintf(out, PATH_MAX, "%.*s", (int)n, file);
	if (n == 0)
		snprintf(out, PATH_MAX, "%s", slash ? "/" : ".");
}

static bool
allowed(const struct check *k, const char *path, int how)
{
	bool ok;

	service_as_user(&k->service, true);
	ok = faccessat(AT_FDCWD, path, how, AT_EACCESS) == 0;
	service_as_user(&k->service, false);
	return ok;
}

/* A file that the broker makes or writes. */
static void
check_written(const struct check *k, const char *option, const char *path)
{
	char folder[PATH_MAX], above[PATH_MAX], owner[200];
	struct stat st;

	folder_of(path, folder);
	folder_of(folder, above);
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
		log_warning("Warning: %s %s is a folder; it must be a file.",
		    option, path);
	} else if (access(path, F_OK) == 0) {
		service_say_owner(path, owner, sizeof owner);
		if (!allowed(k, path, W_OK))
			log_warning("Warning: %s %s cannot be written by user "
			    "%s (%s). 'chown %s %s' mends it.", option, path,
			    k->user, owner, k->user, path);
	} else if (access(folder, F_OK) == 0) {
		service_say_owner(folder, owner, sizeof owner);
		if (!allowed(k, folder, W_OK | X_OK))
			log_warning("Warning: %s %s cannot be made by user %s "
			    "in %s (%s). 'install -m 600 -o %s /dev/null %s' "
			    "makes it.", option, path, k->user, folder, owner,
			    k->user, path);
	} else if (access(above, F_OK) < 0 || access(above, W_OK) < 0) {
		log_warning("Warning: The folder of %s %s is not there. "
		    "'install -d -o %s %s' makes it.", option, path, k->user,
		    folder);
	}
}

/* ---- one function per area ---- */

/* The files of one listener, NULL where it has none. */
enum { FILES = 6 };

static void
files_of(const struct config_listener *l, const char *out[FILES])
{
	out[0] = l->security.password_file;
	out[1] = l->security.acl_file;
	out[2] = l->certfile;
	out[3] = l->keyfile;
	out[4] = l->cafile;
	out[5] = l->crlfile;
}

static bool
named_before(const struct check *k, unsigned listener, const char *path)
{
	const char *files[FILES];

	while (listener-- > 0) {
		files_of(&k->conf.listeners[listener], files);
		for (int i = 0; i < FILES; i++)
			if (files[i] && !strcmp(files[i], path))
				return true;
	}
	return false;
}

/* A file that root reads at the start, and the user when it is read again. */
static void
check_read_again(const struct check *k, const char *path)
{
	char owner[200];

	if (!path || access(path, R_OK) < 0 || allowed(k, path, R_OK))
		return;
	service_say_owner(path, owner, sizeof owner);
	log_warning("Warning: %s cannot be read by user %s (%s), so SIGHUP "
	    "would fail. 'chgrp %s %s; chmod g+r %s' mends it.", path,
	    k->user, owner, k->user, path, path);
}

static void
check_reload(const struct check *k)
{
	const char *files[FILES];

	check_read_again(k, k->conf.file);
	for (unsigned i = 0; i < k->conf.n_listeners; i++) {
		files_of(&k->conf.listeners[i], files);
		for (int j = 0; j < FILES; j++)
			if (files[j] && !named_before(k, i, files[j]))
				check_read_again(k, files[j]);
	}
}

static void
check_log(const struct check *k)
{
	if (k->conf.log.dests & LOG_D_FILE)
		check_written(k, "log_dest file", k->conf.log_file);
}

/* Where the journal is kept: made at the start if only itself is missing. */
static void
check_store(const struct check *k)
{
	const char *dir = k->conf.persistence_location ?
	    k->conf.persistence_location : ".";
	char owner[200];
	struct stat st;

	if (!k->conf.persistence)
		return;
	if (stat(dir, &st) < 0) {
		log_warning("Warning: persistence_location %s is not there. "
		    "'install -d -o %s %s' makes it.", dir, k->user, dir);
	} else if (!S_ISDIR(st.st_mode)) {
		log_error("Error: persistence_location %s is not a folder.",
		    dir);
	} else if (!allowed(k, dir, W_OK | X_OK)) {
		service_say_owner(dir, owner, sizeof owner);
		log_error("Error: User %s cannot write in persistence_location "
		    "%s (%s). 'chown %s %s' mends it.", k->user, dir, owner,
		    k->user, dir);
	}
}

static void
check_pid_file(const struct check *k)
{
	/* In /run and the like root writes it. */
	if (k->conf.pid_file && !k->service.drop)
		check_written(k, "pid_file", k->conf.pid_file);
}

static bool
same_socket(const struct config_listener *a, const struct config_listener *b)
{
	if (a->path || b->path)
		return a->path && b->path && !strcmp(a->path, b->path);
	return a->port == b->port && (!a->host || !b->host ||
	    !strcmp(a->host, b->host)) && (a->domain == b->domain ||
	    a->domain == AF_UNSPEC || b->domain == AF_UNSPEC);
}

static void
check_twins(const struct check *k)
{
	const struct config_listener *l = k->conf.listeners;

	for (unsigned i = 0; i < k->conf.n_listeners; i++)
		for (unsigned j = 0; j < i; j++)
			if (same_socket(&l[i], &l[j]))
				log_error("Error: Two listeners want %s %s%d; "
				    "one of them must go.",
				    l[i].path ? "the socket" : "the port",
				    l[i].path ? l[i].path : "", l[i].port);
}

static void
check_socket(const struct check *k, const char *path)
{
	char folder[PATH_MAX];
	struct stat st;

	folder_of(path, folder);
	if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
		log_error("Error: %s is there and no socket; 'rm %s' or "
		    "choose another path.", path, path);
	else if (access(folder, F_OK) < 0)
		log_error("Error: The folder of the socket %s is not there. "
		    "'install -d -o %s %s' makes it.", path, k->user, folder);
}

/* A midge that holds the port is most likely the one that is checked. */
static void
check_port(const struct config_listener *l)
{
	int fds[LISTEN_FDS], n;
	char who[LISTEN_HOLDER];

	if (listen_holder(l->port, who) && !strncmp(who, "midge ", 6)) {
		log_notice("Port %d is held by %s, which runs already.",
		    l->port, who);
		return;
	}
	n = listen_open(l, fds);
	while (n > 0)
		close(fds[--n]);
}

static void
check_listeners(const struct check *k)
{
	const struct config_listener *l = k->conf.listeners;

	check_twins(k);
	for (unsigned i = 0; i < k->conf.n_listeners; i++) {
		if (l[i].path)
			check_socket(k, l[i].path);
		else if (!l[i].local || i == 0)
			check_port(&l[i]);
		if (l[i].mount_point && l[i].mount_point[0] &&
		    l[i].mount_point[strlen(l[i].mount_point) - 1] != '/')
			log_warning("Warning: mount_point %s does not end in "
			    "'/': the topic a becomes %sa.", l[i].mount_point,
			    l[i].mount_point);
	}
}

static void
check_limits(const struct check *k)
{
	const struct config *c = &k->conf;
	struct rlimit r;

	if (c->memory_limit && (size_t)c->max_packet_size > c->memory_limit / 2)
		log_warning("Warning: One packet of max_packet_size %d takes "
		    "more than half of memory_limit %zu. 'max_packet_size %zu' "
		    "leaves room.", c->max_packet_size, c->memory_limit,
		    c->memory_limit / 8);
	if (!c->memory_limit && !c->max_queued_messages &&
	    !c->max_queued_bytes)
		log_warning("Warning: Nothing limits what waits for clients "
		    "that are away. 'memory_limit 100000000' or a limit for "
		    "each, max_queued_messages, does.");
	if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_max == RLIM_INFINITY)
		return;
	for (unsigned i = 0; i < c->n_listeners; i++)
		if (c->listeners[i].max_connections > 0 &&
		    (rlim_t)c->listeners[i].max_connections > r.rlim_max)
			log_warning("Warning: max_connections is %d, but a "
			    "process may have only %llu descriptors here. "
			    "'LimitNOFILE=%d' in the service unit raises that.",
			    c->listeners[i].max_connections,
			    (unsigned long long)r.rlim_max,
			    c->listeners[i].max_connections + 100);
}

/* Their faults and doubts are logged as they are found. */
static void
check_passwords(const struct check *k)
{
	struct auth a;

	if (!auth_load(&a, &k->conf))
		return;
	auth_doubt(&a, &k->conf);
	auth_fini(&a);
}

static void
check_certificates(const struct check *k)
{
	struct tls_pool pool;

	tls_pool_init(&pool, 1, -1);
	for (unsigned i = 0; i < k->conf.n_listeners; i++) {
		const struct config_listener *l = &k->conf.listeners[i];
		struct tls_server *s = l->certfile ?
		    tls_server_new(&pool, l) : NULL;

		if (s)
			tls_server_explain(s);
		tls_server_unref(s);
	}
	tls_pool_fini(&pool);
}

/* Who may connect is told in any case. */
static void
tell_listeners(const struct check *k)
{
	for (unsigned i = 0; i < k->conf.n_listeners; i++)
		listen_explain(&k->conf.listeners[i]);
}

static void
check_all(struct check *k)
{
	if (!service_init(&k->service, &k->conf))
		return;
	service_user(&k->service, k->user, sizeof k->user);
	if (k->conf.user && strcmp(k->conf.user, k->user) != 0)
		log_notice("Files are looked at as user %s; only root can do "
		    "it as %s.", k->user, k->conf.user);
	check_reload(k);
	check_log(k);
	check_pid_file(k);
	check_store(k);
	check_listeners(k);
	check_passwords(k);
	check_certificates(k);
	check_limits(k);
}

/* ---- the two ways to ask ---- */

static void
count(void *arg, enum log_type type, const char *text)
{
	struct check *k = arg;

	/* An error may have more lines, which say where it is. */
	k->errors += !strncmp(text, "Error: ", 7);
	k->warnings += type == LOG_T_WARNING;
}

/* -1: there is nothing to look at; the command line is wrong, or asks for
 * something else. */
static int
look(struct check *k, int argc, char **argv, struct log_config log)
{
	enum config_action act;

	log.dests |= LOG_D_TOPIC;
	log_open(&log);
	log_to_topic(count, k);
	act = config_read_all(&k->conf, argc, argv);
	if (k->conf.n_listeners == 0)
		return act == CONFIG_HELP ? -1 : EXIT_CONFIG;
	check_all(k);
	if (log.types & LOG_T_NOTICE)
		log.types |= LOG_T_INFO;
	log_open(&log);
	tell_listeners(k);
	log_close();
	return k->errors ? EXIT_CONFIG : k->warnings ? 1 : 0;
}

int
check_main(int argc, char **argv)
{
	static struct check k;
	int rc = look(&k, argc, argv, (struct log_config){ .types =
	    LOG_T_ERROR | LOG_T_WARNING | LOG_T_NOTICE,
	    .dests = LOG_D_STDOUT });

	if (rc < 0)
		fputs(config_usage(), stdout);
	else if (rc == 0)
		puts("All is well.");
	else
		printf("Errors: %u, warnings: %u. The broker would %sstart.\n",
		    k.errors, k.warnings, rc == 1 ? "" : "not ");
	config_free(&k.conf);
	return rc < 0 ? 0 : rc;
}

int
check_test(int argc, char **argv)
{
	static struct check k;
	int rc = look(&k, argc, argv, (struct log_config){ .types =
	    LOG_T_ERROR | LOG_T_WARNING, .dests = LOG_D_STDERR,
	    .timestamps = true });

	if (rc != EXIT_CONFIG)
		puts("Configuration file is OK.");
	config_free(&k.conf);
	return rc == EXIT_CONFIG ? EXIT_CONFIG : 0;
}
