/* broker - main, the listeners and the loop. */

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"
#include "hash.h"
#include "listen.h"
#include "mem.h"
#include "passwd.h"
#include "state.h"
#include "sys.h"

/* Connections accepted from one listener per turn, so that a flood of them
 * does not hold up those that are there. */
#define ACCEPTS_MAX 64

/* After descriptors ran out nothing is accepted for this long. */
#define ACCEPT_PAUSE_MS 1000

/* Work (see state.h) after which timers that are due wait for the next turn. */
#define WORK_TIMERS 50000

/* ---- certificates ---- */

/* Reads the files of all listeners with TLS, or of those whose files have
 * changed; what cannot be used leaves the old ones in force. */
static void
read_certificates(struct broker *b, bool all)
{
	struct tls_server *s;

	for (unsigned i = 0; i < b->conf->n_listeners; i++) {
		const struct config_listener *k = &b->conf->listeners[i];

		if (!b->certs[i] || !(tls_server_changed(b->certs[i],
		    b->now_ms) || all))
			continue;
		s = tls_server_new(&b->tls, k);
		log_notice(s ? "The certificates of port %d were read anew." :
		    "Port %d goes on with the certificates that it had.",
		    k->port);
		if (!s)
			continue;
		tls_server_unref(b->certs[i]);
		b->certs[i] = s;
	}
}

/* ---- accepting ---- */

static struct conn_addr
peer_addr(const struct sockaddr_storage *ss)
{
	struct conn_addr a = { .family = ss->ss_family };
	const struct sockaddr_in *v4 = (const void *)ss;
	const struct sockaddr_in6 *v6 = (const void *)ss;

	if (ss->ss_family == AF_INET) {
		memcpy(a.ip, &v4->sin_addr, 4);
		a.port = ntohs(v4->sin_port);
	} else if (ss->ss_family == AF_INET6) {
		memcpy(a.ip, &v6->sin6_addr, 16);
		a.port = ntohs(v6->sin6_port);
	}
	return a;
}

static void
set_accepting(struct broker *b, bool on)
{
	for (unsigned i = 0; i < b->n_listeners; i++)
		watch_fixed_enable(&b->watch, b->listeners[i].fd, on);
	timer_set(&b->timers, &b->accept_timer, on ? TIMER_NEVER :
	    b->now_ms + ACCEPT_PAUSE_MS);
}

static void
take_client(struct broker *b, struct listener *l, int fd,
    const struct sockaddr_storage *ss)
{
	struct conn_addr a = peer_addr(ss);
	int max = l->conf->max_connections, on = 1;
	char name[CONN_NAME];

	b->stats.sockets++;
	if (max >= 0 && *l->n_connections >= (uint32_t)max) {
		log_notice("Client connection from %s denied: "
		    "max_connections exceeded.", conn_name(&a, name));
		close(fd);
		return;
	}
	if (b->conf->set_tcp_nodelay && a.family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	client_new(b, l, fd, &a);
}

static void
accept_clients(struct broker *b, struct listener *l)
{
	struct sockaddr_storage ss;
	socklen_t len;
	int fd;

	if (*l->tls)
		read_certificates(b, false);
	for (int i = 0; i < ACCEPTS_MAX; i++) {
		len = sizeof ss;
		memset(&ss, 0, sizeof ss);
		fd = accept4(l->fd, (struct sockaddr *)&ss, &len,
		    SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			take_client(b, l, fd, &ss);
		} else if (errno == EMFILE || errno == ENFILE ||
		    errno == ENOBUFS || errno == ENOMEM) {
			log_error("Error: No more connections can be accepted "
			    "(%s); trying again in a second. The limit is "
			    "shown by 'ulimit -n'.", strerror(errno));
			set_accepting(b, false);
			return;
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			return;
		}
	}
}

/* ---- one turn ---- */

static void
on_fixed(void *arg, int fd)
{
	struct broker *b = arg;

	for (unsigned i = 0; i < b->n_listeners; i++)
		if (b->listeners[i].fd == fd)
			b->listeners[i].pending = true;
}

static void
on_conn(void *arg, struct conn *c, short events)
{
	struct broker *b = arg;

	b->now_ms = b->watch.now_ms;
	client_event(b, (struct client *)c, events);
}

static void
on_signal(void *arg, int signo)
{
	struct broker *b = arg;

	if (signo == SIGINT || signo == SIGTERM)
		b->stop = true;
	else if (signo == SIGHUP)
		b->reload = true;
}

static void
on_timer(struct broker *b, struct timer *t)
{
	b->work++;
	switch ((enum timer_kind)t->kind) {
	case TIMER_CLIENT:
		client_timer(b, (struct client *)(void *)((char *)t -
		    offsetof(struct client, timer)));
		break;
	case TIMER_SESSION:
		client_session_timer(b, (struct session *)(void *)((char *)t -
		    offsetof(struct session, timer)));
		break;
	case TIMER_RETAINED:
		topic_lapse(&b->topics, t);
		break;
	case TIMER_SYS:
		sys_timer(b);
		break;
	case TIMER_ACCEPT:
		set_accepting(b, true);
		break;
	}
}

static int
timeout(const struct broker *b)
{
	int64_t due = timer_next(&b->timers), now;
	int wait;

	if (b->todo || b->logins)
		return 0;
	now = watch_clock();    /* the turn may have taken its time */
	wait = tls_wait_ms(&b->tls, now);
	if (wait >= 0 && due > now + wait)
		due = now + wait;
	if (due == TIMER_NEVER)
		return -1;
	return due <= now ? 0 : due - now > INT_MAX ? INT_MAX :
	    (int)(due - now);
}

/* Takes the list of those who have something to be settled; what is put on it
 * from now on is for the next time. */
static struct conn *
take_todo(struct broker *b)
{
	struct conn *c = b->todo;

	b->todo = NULL;
	return c;
}

static void
settle(struct broker *b)
{
	struct conn *c, *next;

	for (c = take_todo(b); c; c = next) {
		next = c->next_todo;
		client_settle(b, (struct client *)c);
	}
}

/* Input that was left over from the last turn. */
static void
handle_left_over(struct broker *b)
{
	for (struct conn *c = b->todo; c; c = c->next_todo)
		if (c->ready && !conn_choked(c))
			client_input(b, (struct client *)c);
}

/* One step of one TLS handshake: an operation with a private key takes so long
 * that no turn has two of them. */
static void
shake_hands(struct broker *b)
{
	struct client *c = tls_next(&b->tls, b->now_ms);

	if (c)
		client_shake(b, c);
}

/* SIGHUP: the log file, password and ACL files anew. */
static void
reload(struct broker *b)
{
	struct auth old = b->auth, fresh;

	b->reload = false;
	log_open(&b->conf->log);
	log_info("Reloading config.");
	read_certificates(b, true);
	if (!auth_load(&fresh, b->conf)) {
		log_error("Error: The password and ACL files that were loaded "
		    "before stay in force.");
		return;
	}
	b->auth = fresh;
	client_rules_changed(b, &old);
	auth_fini(&old);
}

/* Always in this order: wait, input, a handshake, passwords, timers, log lines,
 * output and closing, and new connections last, when those that left are gone.
 */
static void
turn(struct broker *b)
{
	const struct watch_calls calls = { .arg = b, .fixed = on_fixed,
	    .conn = on_conn, .signal = on_signal };
	struct timer *t;

	log_flush();
	watch_run(&b->watch, timeout(b), &calls);
	b->now_ms = b->watch.now_ms;
	if (b->reload)
		reload(b);
	handle_left_over(b);
	shake_hands(b);
	client_check_passwords(b);
	b->work = 0;
	while (b->work < WORK_TIMERS && (t = timer_due(&b->timers, b->now_ms)))
		on_timer(b, t);
	sys_publish_log(b);
	log_flush();            /* what is answered can be read in the log */
	settle(b);
	watch_sweep(&b->watch);
	for (unsigned i = 0; i < b->n_listeners; i++) {
		if (b->listeners[i].pending)
			accept_clients(b, &b->listeners[i]);
		b->listeners[i].pending = false;
	}
}

/* ---- start and stop ---- */

static bool
add_listener(struct broker *b, unsigned i, int fd)
{
	struct listener *all = mem_resize(b->listeners,
	    b->n_listeners * sizeof *all, (b->n_listeners + 1) * sizeof *all);

	if (!all)
		return false;
	b->listeners = all;
	all[b->n_listeners++] = (struct listener){
	    .conf = &b->conf->listeners[i], .fd = fd,
	    .n_connections = &b->counts[i], .tls = &b->certs[i],
	    .guard = (uint8_t)i };
	return watch_fixed(&b->watch, fd);
}

static bool
open_listeners(struct broker *b)
{
	const struct config *k = b->conf;
	int fds[LISTEN_FDS], n;

	for (unsigned i = 0; i < k->n_listeners; i++)
		if (k->listeners[i].certfile && !(b->certs[i] =
		    tls_server_new(&b->tls, &k->listeners[i])))
			return false;
	for (unsigned i = 0; i < k->n_listeners; i++) {
		n = listen_open(&k->listeners[i], fds);
		/* Without IPv6 the other loopback address still serves. */
		if (n < 0 && !(k->listeners[i].local && b->n_listeners))
			return false;
		for (int j = 0; j < n; j++)
			if (!add_listener(b, i, fds[j]))
				return false;
	}
	return true;
}

static void
raise_descriptor_limit(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
}

/* Everything but the listeners: only memory can be missing here. */
static bool
init(struct broker *b)
{
	b->sessions = (struct sessions){ .topics = &b->topics,
	    .timers = &b->timers, .timer_kind = TIMER_SESSION };
	b->buf = mem_alloc(CONN_BUF);
	b->counts = mem_zalloc(b->conf->n_listeners * sizeof *b->counts);
	b->certs = mem_zalloc(b->conf->n_listeners * sizeof *b->certs);
	tls_pool_init(&b->tls, (unsigned)b->conf->max_handshakes,
	    b->conf->tls_keylog ? tls_keylog_open(b->conf->tls_keylog) : -1);
	if (!b->buf || !b->counts || !b->certs || !watch_init(&b->watch) ||
	    !timer_init(&b->timers, &b->accept_timer, TIMER_ACCEPT) ||
	    !topics_init(&b->topics, &b->timers, TIMER_RETAINED))
		return false;
	b->now_ms = b->watch.now_ms;
	return sys_init(b);
}

/* Their wills are published. No DISCONNECT 0x8B is sent, which the standard
 * leaves open: mosquitto_sub takes it as the end and does not come back when
 * the broker is started anew. */
static void
close_clients(struct broker *b)
{
	for (uint32_t fd = 0; fd < b->watch.n_fds; fd++)
		if (b->watch.by_fd[fd])
			client_cut_off(b,
			    (struct client *)b->watch.by_fd[fd],
			    "server shutting down");
	settle(b);
	for (uint32_t fd = 0; fd < b->watch.n_fds; fd++)
		if (b->watch.by_fd[fd])
			client_free(b, (struct client *)b->watch.by_fd[fd]);
}

static void
free_sessions(struct broker *b)
{
	struct hash *h = &b->sessions.by_id;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		while (h->bucket[i]) {
			struct session *s = HASH_OBJECT(h->bucket[i],
			    struct session, link);

			session_free(&b->sessions, s);
		}
	}
	hash_fini(h);
}

static void
stop(struct broker *b)
{
	log_to_topic(NULL, NULL);
	close_clients(b);
	for (unsigned i = 0; i < b->n_listeners; i++) {
		close(b->listeners[i].fd);
		listen_remove(b->listeners[i].conf);
	}
	free_sessions(b);
	auth_fini(&b->auth);
	sys_fini(b);
	topics_fini(&b->topics);
	timer_fini(&b->timers, &b->accept_timer);
	timers_fini(&b->timers);
	watch_fini(&b->watch);
	mem_free(b->listeners, b->n_listeners * sizeof *b->listeners);
	mem_free(b->counts, b->conf->n_listeners * sizeof *b->counts);
	for (unsigned i = 0; i < b->conf->n_listeners; i++)
		tls_server_unref(b->certs[i]);
	mem_free(b->certs, b->conf->n_listeners * sizeof *b->certs);
	tls_pool_fini(&b->tls);
	mem_free(b->subids, b->subids_cap * sizeof *b->subids);
	mem_free(b->buf, CONN_BUF);
	/* The ledger is right, or this is a leak of ours. */
	assert(mem_used() == 0);
}

static void
log_start(const struct config *c)
{
	log_info("midge version " MIDGE_VERSION " starting");
	if (c->file)
		log_info("Config loaded from %s.", c->file);
	else
		log_info("Using default config.");
	if (c->local_only) {
		log_warning("Starting in local only mode. Connections will "
		    "only be possible from clients running on this machine.");
		log_warning("Create a configuration file which defines a "
		    "listener to allow remote access.");
	}
	log_info("Limits: packets of %d bytes (max_packet_size), %d messages "
	    "queued per client (max_queued_messages), %d in flight "
	    "(max_inflight_messages).", c->max_packet_size,
	    c->max_queued_messages, c->max_inflight_messages);
}

static int
run(const struct config *c)
{
	struct broker b = { .conf = c };
	bool ok;

	log_start(c);
	raise_descriptor_limit();
	hash_seed();
	mem_set_limit(c->memory_limit);
	if (!auth_load(&b.auth, c))
		return EXIT_FILES;
	if (!init(&b)) {
		log_error("Error: Unable to start: %s.", strerror(errno));
		return EXIT_START;
	}
	ok = open_listeners(&b);
	if (ok) {
		log_to_topic(sys_log, &b);
		log_info("midge version " MIDGE_VERSION " running");
		while (!b.stop)
			turn(&b);
		log_info("midge version " MIDGE_VERSION " terminating");
	}
	stop(&b);
	return ok ? 0 : EXIT_START;
}

static int
serve(int argc, char **argv)
{
	struct config c;
	int rc = 0;

	switch (config_read(&c, argc, argv)) {
	case CONFIG_RUN:
		log_open(&c.log);
		rc = run(&c);
		break;
	case CONFIG_HELP:
		fputs(config_usage(), stdout);
		break;
	case CONFIG_VERSION:
		puts("midge version " MIDGE_VERSION);
		break;
	case CONFIG_BAD:
		rc = EXIT_CONFIG;
	}
	log_close();
	config_free(&c);
	return rc;
}

/* The other programs in this one: midge NAME ..., or called by the name that
 * they have elsewhere. */
static const struct program {
	const char *name, *elsewhere;
	int (*main)(int argc, char **argv);
} programs[] = {
	{ "passwd", "mosquitto_passwd", passwd_main },
};

int
main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *me = slash ? slash + 1 : argc > 0 ? argv[0] : "midge";
	char name[64];

	for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
		const struct program *p = &programs[i];

		if (p->elsewhere && !strcmp(me, p->elsewhere))
			return p->main(argc, argv);
		if (argc < 2 || strcmp(argv[1], p->name))
			continue;
		snprintf(name, sizeof name, "midge %s", p->name);
		argv[1] = name;
		return p->main(argc - 1, argv + 1);
	}
	return serve(argc, argv);
}
