/* broker - main, the listeners and the loop. */

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "check.h"
#include "client.h"
#include "hash.h"
#include "listen.h"
#include "mem.h"
#include "passwd.h"
#include "persist.h"
#include "relief.h"
#include "route.h"
#include "sandbox.h"
#include "state.h"
#include "sys.h"

/* Connections accepted from one listener per turn, so that a flood of them
 * does not hold up those that are there. */
#define ACCEPTS_MAX 64

/* After descriptors ran out nothing is accepted for this long. */
#define ACCEPT_PAUSE_MS 1000

/* And while too many have not logged in. */
#define ACCEPT_BUSY_MS 20

#define DAY_MS (24 * 3600 * 1000)

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

/* Certificates that will expire: once a day is often enough. */
static void
remind(struct broker *b)
{
	for (unsigned i = 0; i < b->conf->n_listeners; i++) {
		if (!b->certs[i])
			continue;
		tls_server_remind(b->certs[i]);
		timer_set(&b->timers, &b->daily, b->now_ms + DAY_MS);
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
}

static void
pause_accepting(struct broker *b, int ms)
{
	set_accepting(b, false);
	timer_set(&b->timers, &b->accept_timer, b->now_ms + ms);
}

/* NULL: there is room for one more, or the limit that says no. */
static const char *
limit_reached(const struct broker *b, const struct listener *l)
{
	int max = l->conf->max_connections;

	if (max >= 0 && *l->n_connections >= (uint32_t)max)
		return "max_connections";
	max = b->conf->global_max_connections;
	return max >= 0 && b->watch.n_conns >= (uint32_t)max ?
	    "global_max_connections" : NULL;
}

static void
take_client(struct broker *b, struct listener *l, int fd,
    const struct sockaddr_storage *ss)
{
	struct conn_addr a = peer_addr(ss);
	const char *limit = limit_reached(b, l);
	char name[CONN_NAME];
	int on = 1;

	b->stats.sockets++;
	if (limit) {
		log_notice("Client connection from %s denied: %s exceeded.",
		    conn_name(&a, name), limit);
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
		if (!client_make_room(b)) {
			pause_accepting(b, ACCEPT_BUSY_MS);
			return;
		}
		len = sizeof ss;
		memset(&ss, 0, sizeof ss);
		fd = accept4(l->fd, (struct sockaddr *)&ss, &len,
		    SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			b->out_of_fds = false;
			take_client(b, l, fd, &ss);
		} else if (errno == EMFILE || errno == ENFILE ||
		    errno == ENOBUFS || errno == ENOMEM) {
			if (!b->out_of_fds)
				log_error("Error: No more connections can be "
				    "accepted (%s) until others leave. The "
				    "limit is shown by 'ulimit -n'; for a "
				    "service LimitNOFILE sets it.",
				    strerror(errno));
			b->out_of_fds = true;
			pause_accepting(b, ACCEPT_PAUSE_MS);
			return;
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			return;
		}
	}
}

/* ---- one turn ---- */

/* Memory is short: the slowest reader goes, and nothing is sent any more to one
 * that takes nothing. */
static void
relieve(struct broker *b)
{
	struct client *c = relief_timer(b);

	if (!c)
		return;
	client_close(b, c, MQTT_QUOTA, "it reads slowest, and memory is short "
	    "(memory_limit)");
	if (c->blocked)
		client_cut_off(b, c, NULL);
}

static void
on_fixed(void *arg, int fd)
{
	struct broker *b = arg;

	if (fd == b->persist.fd)
		persist_event(b);
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
	else if (signo == SIGUSR1)
		persist_save(b);
	else if (signo == SIGUSR2)
		sys_report(b);
	else if (signo == SIGRTMIN || signo == WATCH_RTMIN)
		log_open(&b->conf->log);
}

static void
feed_watchdog(struct broker *b)
{
	int64_t ms = service_watchdog_ms();

	if (ms == 0)
		return;
	service_notify("WATCHDOG=1");
	timer_set(&b->timers, &b->watchdog, b->now_ms + ms);
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
	case TIMER_DAILY:
		remind(b);
		break;
	case TIMER_RELIEF:
		relieve(b);
		break;
	case TIMER_WATCHDOG:
		feed_watchdog(b);
		break;
	}
}

static int
timeout(const struct broker *b)
{
	int64_t due = timer_next(&b->timers), now;
	int wait, log_ms = log_wait_ms(), ms;

	if (b->todo || b->logins)
		return 0;
	now = watch_clock();    /* the turn may have taken its time */
	wait = tls_wait_ms(&b->tls, now);
	if (wait >= 0 && due > now + wait)
		due = now + wait;
	if (persist_due(b) < due)
		due = persist_due(b);
	if (due == TIMER_NEVER)
		return log_ms;
	ms = due <= now ? 0 : due - now > INT_MAX ? INT_MAX :
	    (int)(due - now);
	return log_ms >= 0 && log_ms < ms ? log_ms : ms;
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

/* Takes over a configuration that is good, if the files that it names are good
 * too; *fresh is what is to be freed then. */
static void
take_over(struct broker *b, struct config *fresh)
{
	struct auth old = b->auth, rules;
	struct config former;

	config_keep(b->conf, fresh);
	if (!auth_load(&rules, fresh)) {
		config_keep(b->conf, fresh);    /* takes that back */
		log_error("Error: The configuration was not reloaded; the "
		    "running one and the password and ACL files that were "
		    "loaded before stay in force.");
		return;
	}
	former = *b->conf;
	*b->conf = *fresh;
	*fresh = former;
	mem_set_limit(b->conf->memory_limit);
	b->auth = rules;
	client_rules_changed(b, &old);
	auth_fini(&old);
	read_certificates(b, true);
	persist_reload(b);
	sys_reload(b);
}

/* SIGHUP: the configuration, passwords and rules anew. Only when all of it is
 * good anything changes; the log is opened anew in any case. */
static void
reload(struct broker *b)
{
	struct config fresh;

	b->reload = false;
	service_notify_reloading();
	log_info("Reloading config.");
	if (config_read(&fresh, b->conf->argc, b->conf->argv) == CONFIG_RUN) {
		config_tell_kept(b->conf, &fresh);
		take_over(b, &fresh);
	} else {
		log_error("Error: The configuration was not reloaded; the "
		    "running one stays as it is.");
	}
	log_open(&b->conf->log);
	config_free(&fresh);
	service_notify("READY=1");
}

/* Always in this order: wait, input, a handshake, passwords, timers, the disk,
 * log lines, output and closing, and new connections last, when those that left
 * are gone. */
static void
turn(struct broker *b)
{
	const struct watch_calls calls = { .arg = b, .fixed = on_fixed,
	    .conn = on_conn, .signal = on_signal };
	struct timer *t;

	sandbox_tell();
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
	persist_commit(b);
	client_disk_done(b);
	log_flush();            /* what is answered can be read in the log */
	settle(b);
	relief_turn(b);
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
		for (int j = 0; j < n; j++) {
			if (add_listener(b, i, fds[j]))
				continue;
			log_error("Error: Unable to start: out of memory.");
			return false;
		}
		listen_explain(&k->listeners[i]);
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

/* Everything but the listeners: only memory can be missing here. stop() undoes
 * it, also where it went half-way. */
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
	b->persist.fd = b->watch.sigfd = -1;
	if (!b->buf || !b->counts || !b->certs || !watch_init(&b->watch) ||
	    !watch_fixed(&b->watch, -1) ||
	    !timer_init(&b->timers, &b->accept_timer, TIMER_ACCEPT) ||
	    !timer_init(&b->timers, &b->watchdog, TIMER_WATCHDOG) ||
	    !timer_init(&b->timers, &b->daily, TIMER_DAILY) ||
	    !relief_init(b) ||
	    !topics_init(&b->topics, &b->timers, TIMER_RETAINED)) {
		log_error("Error: Unable to start: %s.", strerror(errno));
		return false;
	}
	b->now_ms = b->watch.now_ms;
	return true;
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
	persist_close(b);
	for (unsigned i = 0; i < b->n_listeners; i++) {
		close(b->listeners[i].fd);
		listen_remove(b->listeners[i].conf);
	}
	free_sessions(b);
	auth_fini(&b->auth);
	sys_fini(b);
	topics_fini(&b->topics);
	timer_fini(&b->timers, &b->accept_timer);
	timer_fini(&b->timers, &b->watchdog);
	timer_fini(&b->timers, &b->daily);
	relief_fini(b);
	timers_fini(&b->timers);
	watch_fini(&b->watch);
	mem_free(b->listeners, b->n_listeners * sizeof *b->listeners);
	mem_free(b->counts, b->conf->n_listeners * sizeof *b->counts);
	for (unsigned i = 0; b->certs && i < b->conf->n_listeners; i++)
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
	if (c->memory_limit)
		log_info("Limit: %zu bytes of memory for all clients "
		    "(memory_limit).", c->memory_limit);
}

/* What only root may do is done: from here on it is not needed any more. */
static bool
become_user(struct broker *b)
{
	if (b->conf->pid_file)
		service_write_pid_file(&b->service, b->conf->pid_file);
	if (b->conf->chroot && !service_chroot(b->conf))
		return false;
	if (service_drop(&b->service))
		return true;
	log_error("Error: Unable to become the user that midge is to run as: "
	    "%s.", strerror(errno));
	return false;
}

static void
hand_on_imported(struct broker *b)
{
	struct msg *m;

	while ((m = persist_imported(b))) {
		route_msg(b, m, m->expires_ms, NULL);
		msg_unref(m);
	}
}

static void
serve(struct broker *b)
{
	hand_on_imported(b);
	sandbox_enter(SANDBOX_BROKER);
	log_to_topic(sys_log, b);
	log_info("midge version " MIDGE_VERSION " running");
	log_flush();
	service_started(&b->service);
	if (b->conf->daemon)            /* its terminal may go now */
		log_open(&b->conf->log);
	service_notify("READY=1");
	feed_watchdog(b);
	remind(b);
	while (!b->stop)
		turn(b);
	service_notify("STOPPING=1");
	log_info("midge version " MIDGE_VERSION " terminating");
}

static int
run(struct broker *b)
{
	bool ok;

	log_start(b->conf);
	raise_descriptor_limit();
	hash_seed();
	mem_set_limit(b->conf->memory_limit);
	sandbox_init(b->conf->sandbox);
	if (!auth_load(&b->auth, b->conf))
		return EXIT_FILES;
	/* Whatever only root may read is read before become_user. */
	ok = init(b) && open_listeners(b) && sys_init(b) && become_user(b) &&
	    (!b->conf->persistence || persist_open(b));
	if (ok)
		serve(b);
	stop(b);
	service_remove_pid_file(&b->service);
	return ok ? 0 : EXIT_START;
}

static int
start(struct config *c)
{
	struct broker b = { .conf = c };

	log_init();
	if (!service_init(&b.service, c))
		return EXIT_START;
	if (c->daemon && !service_background(&b.service)) {
		log_error("Error: Unable to go into the background: %s.",
		    strerror(errno));
		return EXIT_START;
	}
	service_make_folders(&b.service, c);
	service_as_user(&b.service, true);
	log_open(&c->log);
	service_as_user(&b.service, false);
	return run(&b);
}

static int
broker_main(int argc, char **argv)
{
	struct config c;
	int rc = 0;

	switch (config_read(&c, argc, argv)) {
	case CONFIG_RUN:
		rc = start(&c);
		break;
	case CONFIG_TEST:
		rc = check_test(argc, argv);
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
	{ "check", NULL, check_main },
	{ "passwd", "mosquitto_passwd", passwd_main },
	{ "store", NULL, persist_main },
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
	return broker_main(argc, argv);
}
