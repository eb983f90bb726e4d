/* Fuzzer of the whole broker: its loop, with clients at socket pairs, a clock
 * that stands still until the input moves it, and for one input in eight a
 * journal on a tmpfs, so that it can be stopped, or cut off, and started again.
 *
 * The input is a list of steps: a client connects, says some packet of its
 * version, or one with a damaged byte, or raw bytes, is slow, hangs up; time
 * passes; memory gets short; the broker starts anew. One more client, the
 * keeper, has a lasting session with a subscription for all that is published
 * in t/ and does what it should.
 *
 * Beyond the sanitizers and the broker's own assertions (an empty ledger at
 * the end of each life is one), after each turn: what the broker sends can be
 * decoded, the tables agree with each other, and references are counted right.
 * At the end: every message that was acknowledged has reached the keeper, and
 * none of QoS 2 twice.
 */
#define main broker_program
#include "broker.c"
#undef main

#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define PEERS 5                 /* the last one is the keeper */
#define KEEPER (PEERS - 1)
#define STEPS_MAX 120
#define SERIALS_MAX 256
#define FIRST_ID 1000           /* packet identifier of serial 0 */
#define OWED_MAX 64
#define REFS_MAX 20000

/* ---- the world outside: clock and poll ---- */

static bool inside;             /* the broker or a peer is at work */
static int64_t clock_ms;

int
clock_gettime(clockid_t id, struct timespec *t)
{
	if (!inside || id != CLOCK_MONOTONIC)
		return (int)syscall(SYS_clock_gettime, id, t);
	t->tv_sec = clock_ms / 1000;
	t->tv_nsec = clock_ms % 1000 * 1000000;
	return 0;
}

/* Nobody waits: what is to happen has happened before. */
int
poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
	struct timespec t = { inside ? 0 : timeout_ms / 1000, 0 };

	return (int)syscall(SYS_ppoll, fds, n, &t, NULL, 0);
}

static void
wait_for_input(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec t = { 60, 0 };

	while (syscall(SYS_ppoll, &p, 1, &t, NULL, 0) < 0)
		assert(errno == EINTR);
	assert(p.revents);
}

/* ---- the model ---- */

/* What was published and must reach the keeper. The number is in the payload
 * and in the packet identifier, so that none is used twice. */
static struct {
	uint8_t qos;
	bool acked;
	unsigned got;
	const struct peer *from;
} serials[SERIALS_MAX];
static unsigned n_serials;

/* An answer that a peer owes: PUBACK, PUBREC or PUBCOMP. */
struct owed {
	uint8_t type;
	uint16_t id;
};

static struct peer {
	int fd;                         /* -1: not connected */
	uint8_t version;
	bool up;                        /* CONNACK 0 came */
	bool again;                     /* into its old session */
	bool deaf;                      /* does not read */
	bool odd;                       /* it has sent something damaged */
	bool ruled;                     /* its listener has an ACL file */
	uint8_t buf[1 << 16];
	size_t len;
	struct owed owed[OWED_MAX];
	unsigned n_owed;
} peers[PEERS];

static bool received[UINT16_MAX + 1];   /* by the keeper, QoS 2, not released */
static struct broker b;
static struct config conf;
static char dir[64];

static void
remove_files(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char name[400];

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(name, sizeof name, "%s/%s", path, e->d_name);
		unlink(name);
	}
	if (d)
		closedir(d);
}

static const char *
in_dir(const char *name)
{
	static char path[100];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static void
remove_dir(void)
{
	remove_files(in_dir("journal"));
	rmdir(in_dir("journal"));
	remove_files(in_dir("saved"));
	rmdir(in_dir("saved"));
	remove_files(dir);
	rmdir(dir);
}

static void
put_file(const char *name, const char *text)
{
	FILE *f = fopen(in_dir(name), "w");

	assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* Two listeners: with rules and a mount point, without anything. */
static void
prepare(void)
{
	static char *argv[] = { "midge", "-q", "-c", NULL, NULL };
	static char path[100], text[600];

	snprintf(dir, sizeof dir, "/dev/shm/fuzz_broker.%ld", (long)getpid());
	assert(mkdir(dir, 0700) == 0);
	atexit(remove_dir);
	assert(mkdir(in_dir("journal"), 0700) == 0);
	assert(mkdir(in_dir("saved"), 0700) == 0);
	put_file("rules", "topic readwrite #\npattern readwrite own/%c/#\n"
	    "topic deny secret/#\nuser u\ntopic read t/#\ntopic write t/a/#\n");
	snprintf(text, sizeof text, "per_listener_settings true\n"
	    "max_queued_messages 0\nmax_packet_size 20000\n"
	    "sys_interval 100\nuser root\n"
	    "persistence_location %s/journal\n"
	    "listener 0 %s/1\nallow_anonymous true\n"
	    "listener 0 %s/2\nallow_anonymous true\nmount_point t/\n"
	    "acl_file %s/rules\n", dir, dir, dir, dir);
	put_file("conf", text);
	snprintf(path, sizeof path, "%s", in_dir("conf"));
	argv[3] = path;
	assert(config_read(&conf, 4, argv) == CONFIG_RUN);
	log_init();
	log_open(&conf.log);
}

/* ---- invariants ---- */

/* All references to messages and groups that are found, outputs aside. */
static const void *refs[REFS_MAX];
static unsigned n_refs;

static void
note_ref(const void *to)
{
	assert(n_refs < REFS_MAX);
	refs[n_refs++] = to;
}

static int
by_address(const void *x, const void *y)
{
	uintptr_t a = (uintptr_t)*(const void *const *)x,
	    c = (uintptr_t)*(const void *const *)y;

	return (a > c) - (a < c);
}

/* Takes the notes so far; each message has as many references as were found,
 * or more if outputs may have some. */
static void
check_msgs(bool outputs)
{
	unsigned n = 0, same;

	qsort(refs, n_refs, sizeof *refs, by_address);
	for (unsigned i = 0; i < n_refs; i += same, n++) {
		const struct msg *m = refs[i];

		for (same = 1; i + same < n_refs && refs[i + same] == m; )
			same++;
		assert(m->refs == same || (outputs && m->refs > same));
	}
	assert(msg_count() == n || (outputs && msg_count() > n));
	n_refs = 0;
}

static void
check_line(const struct outbox *o, const struct line *l, bool acked)
{
	const struct delivery *prev = NULL;
	uint32_t n = 0, ids = 0, in_flight = 0;
	uint64_t bytes = 0;
	bool unsent = false;

	for (const struct delivery *d = l->first; d; prev = d, d = d->next) {
		assert(d->prev == prev && (d->qos > 0) == acked);
		unsent |= d == o->unsent;
		if (d->msg)
			note_ref(d->msg);
		if (d->id) {
			assert(o->ring[d->id & (o->ring_size - 1)] == d);
			ids++;
		} else {
			n++;
			bytes += d->weight;
		}
		if (acked && !unsent) {
			assert(d->state == SENT || d->state == RELEASED);
			in_flight++;
		} else {
			assert(d->state == WAITING || d->state == TO_RELEASE);
		}
	}
	assert(!l->first || l->last == prev);
	assert(l->n == n && l->bytes == bytes);
	if (acked)
		assert(o->n_ids == ids && o->in_flight == in_flight &&
		    unsent == (o->unsent != NULL));
}

static void
check_session(const struct session *s, unsigned *n_subs)
{
	for (const struct sub *u = s->subs; u; u = u->mine_next) {
		assert(u->session == s && *u->mine_prev == u && *u->prev == u);
		(*n_subs)++;
	}
	if (s->out) {
		assert(s->out->qos0.first || s->out->acked.first);
		check_line(s->out, &s->out->qos0, false);
		check_line(s->out, &s->out->acked, true);
	}
	if (s->will)
		note_ref(s->will->msg);
	if (s->client)
		assert(s->client->session == s &&
		    s->client->state == CLIENT_UP);
}

static void
check_sessions(void)
{
	const struct hash *h = &b.sessions.by_id;
	unsigned n_subs = 0, n = 0, connected = 0;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct session *s = HASH_OBJECT(l, struct session,
			    link);

			check_session(s, &n_subs);
			connected += s->client != NULL;
			n++;
		}
	}
	assert(n == h->n && n_subs == b.topics.n_subs &&
	    connected == b.sessions.n_connected);
}

/* A group has a reference of each member and of each delivery. */
static void
check_groups(void)
{
	const struct hash *h = &b.topics.groups;
	unsigned shared = 0, n, n_groups = 0;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct group *g = HASH_OBJECT(l, struct group, link);

			n = 0;
			for (const struct sub *u = g->members; u; u = u->next)
				n++;
			shared += n;
			n_groups++;
			assert(g->refs >= n && g->refs > 0);
		}
	}
	assert(n_groups == h->n && shared == b.topics.n_shared);
}

static void
check_tree(const struct tree *t)
{
	const struct hash *h = &t->nodes;

	for (uint32_t i = 0; h->bucket && i <= h->mask; i++) {
		for (struct hash_link *l = h->bucket[i]; l; l = l->next) {
			struct node *n = HASH_OBJECT(l, struct node, link);

			assert(*n->prev == n && n->parent);
			assert(!n->child || n->child->parent == n);
			/* Whoever stands for nothing is not kept. */
			assert(n->child || n->pins || n->subs || n->groups);
		}
	}
}

static void
check_retained(void)
{
	unsigned n = 0;

	for (const struct node *at = NULL; (at = topic_next_retained(&b.topics,
	    at)); n++)
		note_ref(at->retained);
	assert(n == b.topics.n_retained);
}

static void
check_timers(void)
{
	const struct timers *ts = &b.timers;

	assert(ts->n <= ts->owners && ts->owners <= ts->cap);
	for (uint32_t i = 0; i < ts->n; i++) {
		assert(ts->heap[i]->pos == i + 1);
		assert(i == 0 || ts->heap[(i - 1) / 2]->due_ms <=
		    ts->heap[i]->due_ms);
	}
}

/* Whether messages may be referred to by outputs. */
static bool
output_waits(void)
{
	for (uint32_t i = 0; i < b.watch.n_fds; i++)
		if (b.watch.by_fd[i] && b.watch.by_fd[i]->out_len > 0)
			return true;
	return false;
}

static void
check_all(void)
{
	check_sessions();
	check_tree(&b.topics.filters);
	check_tree(&b.topics.topics);
	check_retained();
	check_msgs(output_waits());
	check_groups();
	check_timers();
	assert(mem_used() <= mem_peak());
}

/* ---- life of the broker ---- */

static bool
disk_busy(void)
{
	const struct store *st = &b.persist.store;

	return b.persist.on && st->state != STORE_FAILED &&
	    (st->preparing || st->installing ||
	    st->state != STORE_IDLE || st->urgent > st->durable);
}

static void read_peers(void);

static void
one_turn(void)
{
	turn(&b);
	check_all();
	read_peers();
}

/* Turns until the disk has nothing more to do. */
static void
turns(void)
{
	one_turn();
	one_turn();
	while (disk_busy()) {
		if (b.persist.store.helper_fd >= 0 && (b.persist.store.
		    preparing || b.persist.store.installing ||
		    b.persist.store.state == STORE_SYNCING))
			wait_for_input(b.persist.store.helper_fd);
		one_turn();
	}
	one_turn();
}

static void
begin(bool persistence)
{
	conf.persistence = persistence;
	b = (struct broker){ .conf = &conf };
	hash_seed();
	mem_set_limit(0);
	assert(auth_load(&b.auth, &conf));
	assert(init(&b) && open_listeners(&b) && sys_init(&b));
	if (persistence)
		assert(persist_open(&b));
}

static void
hang_up_peer(struct peer *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	p->up = false;
	p->len = 0;
	p->n_owed = 0;
}

static void
end(void)
{
	stop(&b);
	for (int i = 0; i < PEERS; i++)
		hang_up_peer(&peers[i]);
	assert(msg_count() == 0 && mem_used() == 0);
}

static void
copy_file(const char *from, const char *to)
{
	static uint8_t part[1 << 16];
	int r = open(from, O_RDONLY),
	    w = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t n;

	assert(r >= 0 && w >= 0);
	while ((n = read(r, part, sizeof part)) > 0)
		assert(write(w, part, (size_t)n) == n);
	close(r);
	close(w);
}

static void
copy_files(const char *from, const char *to)
{
	char a[200], z[200], f[400], t[400];
	struct dirent *e;
	DIR *d;

	snprintf(a, sizeof a, "%s", in_dir(from));
	snprintf(z, sizeof z, "%s", in_dir(to));
	remove_files(z);
	d = opendir(a);
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(f, sizeof f, "%s/%s", a, e->d_name);
		snprintf(t, sizeof t, "%s/%s", z, e->d_name);
		copy_file(f, t);
	}
	closedir(d);
}

/* The helpers of the journal stand still, and change no file meanwhile. */
static void
freeze(bool on)
{
	pid_t pids[] = { b.persist.store.helper_fd >= 0 ?
	    b.persist.store.helper : 0, b.persist.store.child };

	for (int i = 0; i < 2; i++) {
		if (pids[i] <= 0)
			continue;
		kill(pids[i], on ? SIGSTOP : SIGCONT);
		if (on)
			waitpid(pids[i], NULL, WUNTRACED);
	}
}

/* As after a stop, or after a cut: with the files as they were before it. */
static void
start_anew(bool cut)
{
	if (!b.persist.on)
		return;
	if (cut) {
		freeze(true);
		copy_files("journal", "saved");
		freeze(false);
	}
	end();
	if (cut)
		copy_files("saved", "journal");
	begin(true);
}

/* ---- what the broker says ---- */

static void
owe(struct peer *p, uint8_t type, uint16_t id)
{
	if (p->n_owed < OWED_MAX)
		p->owed[p->n_owed++] = (struct owed){ type, id };
}

/* What stands behind a serial in a payload: no damage turns one into
 * another. */
static const uint8_t *
check_bytes(uint8_t serial)
{
	static uint8_t c[3];
	uint32_t h = (serial + 77u) * 2654435761u;

	for (int i = 0; i < 3; i++)
		c[i] = (uint8_t)(h >> (8 * i + 8));
	return c;
}

static void
answered(struct peer *p, uint8_t type, const struct mqtt_ack *a)
{
	bool yes = a->reason < 0x80;
	unsigned n = a->id - FIRST_ID;

	if (type == MQTT_PUBREC && yes)
		owe(p, MQTT_PUBREL, a->id);
	/* 3.x says yes to what the rules refuse. */
	if (a->id < FIRST_ID || !yes || (p->ruled && p->version != MQTT_5))
		return;
	assert(n < n_serials && serials[n].from == p);
	serials[n].acked = true;
}

static void
got_publish(struct peer *p, const struct mqtt_publish *m)
{
	const uint8_t *w = m->payload.p;
	bool fresh = m->qos < 2 || !received[m->id];

	if (m->qos)
		owe(p, m->qos == 1 ? MQTT_PUBACK : MQTT_PUBREC, m->id);
	if (p != &peers[KEEPER])
		return;
	if (m->qos == 2)
		received[m->id] = true;
	if (m->payload.len != 4 || memcmp(w + 1, check_bytes(w[0]), 3) != 0)
		return;
	assert(w[0] < n_serials);
	serials[w[0]].got += fresh;
	assert(serials[w[0]].qos < 2 || serials[w[0]].got < 2);
}

static void
got_packet(struct peer *p, const struct mqtt_header *h, uint8_t *body)
{
	struct mqtt_in at = { .p = body, .end = body + h->len };
	struct mqtt_publish m;
	struct mqtt_ack a;
	uint8_t *id = body + 2;

	switch (h->type) {
	case MQTT_CONNACK:
		assert(!p->up && h->len >= 2);
		p->up = body[1] == 0;
		p->again = body[0] & 1;
		break;
	case MQTT_PUBLISH:
		assert(h->len >= 2);
		id += body[0] << 8 | body[1];
		if (mqtt_get_publish(&at, h->flags, p->version, &m) ==
		    MQTT_OK) {
			got_publish(p, &m);
			break;
		}
		/* A Subscription Identifier, which only servers send. */
		assert(p->version == MQTT_5);
		if (h->flags & 6)
			owe(p, h->flags & 4 ? MQTT_PUBREC : MQTT_PUBACK,
			    (uint16_t)(id[0] << 8 | id[1]));
		break;
	case MQTT_PUBACK:
	case MQTT_PUBREC:
	case MQTT_PUBREL:
	case MQTT_PUBCOMP:
		assert(mqtt_get_ack(&at, h->type, p->version, &a) == MQTT_OK);
		if (h->type == MQTT_PUBREL) {
			owe(p, MQTT_PUBCOMP, a.id);
			if (p == &peers[KEEPER])
				received[a.id] = false;
		} else if (h->type != MQTT_PUBCOMP) {
			answered(p, h->type, &a);
		}
		break;
	default:
		assert(h->type == MQTT_SUBACK || h->type == MQTT_UNSUBACK ||
		    h->type == MQTT_PINGRESP || (h->type == MQTT_DISCONNECT &&
		    p->version == MQTT_5));
	}
}

static void
read_packets(struct peer *p)
{
	struct mqtt_header h;
	size_t at = 0;
	int r;

	while ((r = mqtt_get_header(p->buf + at, p->len - at, true, &h)) > 0) {
		assert(h.size <= sizeof p->buf);
		if (p->len - at < h.size)
			break;
		if (!p->odd)
			got_packet(p, &h, p->buf + at + (h.size - h.len));
		at += h.size;
	}
	assert(r >= 0);
	memmove(p->buf, p->buf + at, p->len - at);
	p->len -= at;
}

static void
read_peers(void)
{
	for (int i = 0; i < PEERS; i++) {
		struct peer *p = &peers[i];
		ssize_t n;

		while (p->fd >= 0 && !p->deaf && (n = read(p->fd, p->buf +
		    p->len, sizeof p->buf - p->len)) != -1) {
			if (n == 0) {
				hang_up_peer(p);
				break;
			}
			p->len += (size_t)n;
			read_packets(p);
		}
	}
}

/* ---- what peers say ---- */

static struct {
	uint8_t bytes[1 << 15];
	size_t len;
} out;

static void
put(const void *p, size_t n)
{
	assert(out.len + n <= sizeof out.bytes);
	memcpy(out.bytes + out.len, p, n);
	out.len += n;
}

static void
put8(unsigned v)
{
	uint8_t x = (uint8_t)v;

	put(&x, 1);
}

static void
put16(unsigned v)
{
	put8(v >> 8);
	put8(v & 255);
}

static void
put32(uint32_t v)
{
	put16(v >> 16);
	put16(v & 0xffff);
}

static void
put_str(const char *s)
{
	put16((unsigned)strlen(s));
	put(s, strlen(s));
}

/* A property block of at most so many of the given identifiers, chosen by the
 * input; length first. */
static void
put_props(const struct peer *p, const uint8_t *ids, unsigned n)
{
	size_t at = out.len, len;
	unsigned which = byte();

	if (p->version != MQTT_5)
		return;
	put8(0);
	for (unsigned i = 0; i < n; i++) {
		if (!(which & 1u << i))
			continue;
		put8(ids[i]);
		switch (ids[i]) {
		case MQTT_P_PAYLOAD_FORMAT:
		case MQTT_P_REQUEST_PROBLEM:
			put8(byte() & 1);
			break;
		case MQTT_P_SUBSCRIPTION_ID:
			put8(1 + byte() % 127);
			break;
		case MQTT_P_RECEIVE_MAX:
			put16(1 + byte() % 4);
			break;
		case MQTT_P_ALIAS_MAX:
		case MQTT_P_ALIAS:
			put16(byte() % 12);
			break;
		case MQTT_P_PACKET_MAX:
			put32(20 + byte() * 8u);
			break;
		case MQTT_P_SESSION_EXPIRY:
			put32(byte() & 1 ? UINT32_MAX : byte());
			break;
		case MQTT_P_MESSAGE_EXPIRY:
		case MQTT_P_WILL_DELAY:
			put32(byte());
			break;
		case MQTT_P_USER:
			put_str("k");
			/* fall through */
		default:
			put_str("v");
		}
	}
	len = out.len - at - 1;
	assert(len < 128);
	out.bytes[at] = (uint8_t)len;
}

static const char *const topics[] = { "t/a", "t/a/b", "t/", "t/a/b/c/d",
	"own/x", "secret/x", "$SYS/x", "t/\xc3\xa4" };
static const char *const filters[] = { "t/#", "t/+", "+/a/#", "#", "t/a",
	"$share/g/t/#", "$share/g/t/a", "$share/h/+/a", "t/a/b", "t/+/b",
	"$SYS/#", "+/+/+", "own/x", "t//", "a/#/b", "$share//x" };
static const char *const ids[] = { "a", "b", "c", "", "d" };

#define OF(table) (table[byte() % (sizeof table / sizeof *table)])

static void
begin_packet(void)
{
	out.len = 5;            /* room for the fixed header */
}

/* Puts the fixed header in front, and sends; perhaps with a byte that is
 * wrong, or in two parts. */
static void
send_packet(struct peer *p, uint8_t first)
{
	uint8_t head[5] = { first }, how = byte();
	size_t n = (size_t)(mqtt_put_varint(head + 1, (uint32_t)out.len - 5) -
	    head), at = 5 - n, len = out.len - at, cut = len;

	memcpy(out.bytes + at, head, n);
	if (how >= 200) {       /* seldom, so that most get far */
		p->odd = true;
		out.bytes[at + byte() % len] = byte();
	}
	if ((how & 15) == 15)
		cut = byte() % len;
	if (p->fd >= 0 && write(p->fd, out.bytes + at, cut) < 0)
		return;
	if (cut == len)
		return;
	one_turn();
	if (p->fd >= 0 && write(p->fd, out.bytes + at + cut, len - cut) < 0)
		return;
}

static void
open_connection(struct peer *p, struct listener *l)
{
	struct conn_addr a = { .family = AF_UNIX };
	int sv[2];

	hang_up_peer(p);
	p->deaf = p->odd = false;
	p->ruled = l != &b.listeners[0];
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
	    0, sv) == 0);
	p->fd = sv[0];
	client_new(&b, l, sv[1], &a);
}

static void
say_connect(struct peer *p)
{
	static const uint8_t props[] = { MQTT_P_SESSION_EXPIRY,
	    MQTT_P_RECEIVE_MAX, MQTT_P_PACKET_MAX, MQTT_P_ALIAS_MAX,
	    MQTT_P_USER, MQTT_P_REQUEST_PROBLEM },
	    will_props[] = { MQTT_P_WILL_DELAY, MQTT_P_MESSAGE_EXPIRY,
	    MQTT_P_CONTENT_TYPE, MQTT_P_USER };
	uint8_t flags = byte();

	p->version = MQTT_31 + byte() % 3;
	open_connection(p, &b.listeners[byte() % b.n_listeners]);
	flags &= 0xbe;          /* no password alone */
	if (!(flags & 4))
		flags &= 0x86;
	if ((flags & 0x18) == 0x18)
		flags &= 0xf7;
	begin_packet();
	put_str(p->version == MQTT_31 ? "MQIsdp" : "MQTT");
	put8(p->version);
	put8(flags);
	put16(byte() % 4 * 20u);
	put_props(p, props, sizeof props);
	put_str(OF(ids));
	if (flags & 4) {
		put_props(p, will_props, sizeof will_props);
		put_str(OF(topics));
		put_str("will");
	}
	if (flags & 0x80)
		put_str(byte() & 1 ? "u" : "+");
	send_packet(p, MQTT_CONNECT << 4);
}

/* Whether a message is to be marked. */
static bool
is_kept(const char *topic)
{
	return n_serials < SERIALS_MAX && strncmp(topic, "t/", 2) == 0;
}

static void
say_publish(struct peer *p)
{
	static const uint8_t props[] = { MQTT_P_ALIAS, MQTT_P_PAYLOAD_FORMAT,
	    MQTT_P_RESPONSE_TOPIC, MQTT_P_CORRELATION_DATA, MQTT_P_USER };
	uint8_t flags = byte() & 7, qos = flags >> 1, how = byte();
	const char *topic = how == 255 ? "" : OF(topics);
	bool kept = how < 200 && is_kept(topic);

	if (qos == 3)
		flags = (uint8_t)(flags & 5), qos = flags >> 1;
	begin_packet();
	put_str(topic);
	if (qos)
		put16(kept ? FIRST_ID + n_serials : 1u + byte() % 16);
	put_props(p, props, sizeof props);
	if (kept) {
		serials[n_serials].qos = qos;
		serials[n_serials].from = p;
		put8(n_serials);
		put(check_bytes((uint8_t)n_serials++), 3);
	} else if (how > 250) { /* not copied into the output */
		for (int i = 0; i < 600; i++)
			put("payload ", 8);
	} else {
		put("other", how & 5);
	}
	send_packet(p, (uint8_t)(MQTT_PUBLISH << 4 | flags));
}

static void
say_subscribe(struct peer *p)
{
	static const uint8_t props[] = { MQTT_P_SUBSCRIPTION_ID, MQTT_P_USER };
	unsigned n = 1 + byte() % 3;

	begin_packet();
	put16(1 + byte());
	put_props(p, props, sizeof props);
	while (n--) {
		uint8_t options = byte() & 0x2f;

		put_str(OF(filters));
		if ((options & 3) == 3)
			options &= 0xfd;
		put8(p->version == MQTT_5 ? options : options & 3u);
	}
	send_packet(p, MQTT_SUBSCRIBE << 4 | 2);
}

static void
say_unsubscribe(struct peer *p)
{
	unsigned n = 1 + byte() % 3;

	begin_packet();
	put16(1 + byte());
	put_props(p, NULL, 0);
	while (n--)
		put_str(OF(filters));
	send_packet(p, MQTT_UNSUBSCRIBE << 4 | 2);
}

static void
say_answer(struct peer *p)
{
	struct owed o;

	if (p->n_owed == 0)
		return;
	o = p->owed[0];
	memmove(p->owed, p->owed + 1, --p->n_owed * sizeof o);
	if (o.id == 0)
		return;
	begin_packet();
	put16(o.id);
	if (p->version == MQTT_5 && p != &peers[KEEPER] && byte() > 200)
		put8(o.type == MQTT_PUBREC || o.type == MQTT_PUBACK ?
		    0x80 : 0);
	send_packet(p, (uint8_t)(o.type << 4 | (o.type == MQTT_PUBREL) << 1));
}

static void
say_disconnect(struct peer *p)
{
	static const uint8_t props[] = { MQTT_P_SESSION_EXPIRY, MQTT_P_USER,
	    MQTT_P_REASON_STRING };

	begin_packet();
	if (p->version == MQTT_5 && byte() & 1) {
		put8(byte() & 4);
		put_props(p, props, sizeof props);
	}
	send_packet(p, MQTT_DISCONNECT << 4);
}

static void
say_bytes(struct peer *p)
{
	uint8_t n = byte();

	out.len = 0;
	while (n-- && in.left)
		put8(byte());
	p->odd = true;
	if (p->fd >= 0 && write(p->fd, out.bytes, out.len) < 0)
		return;
}

/* ---- the keeper ---- */

/* The broker's output to the keeper is whole, and answered until there is
 * nothing more. */
static void
keep_up(void)
{
	struct peer *p = &peers[KEEPER];
	struct { const uint8_t *p; size_t left; } saved = { in.p, in.left };

	in.left = 0;            /* its packets are as they should be */
	turns();
	while (p->fd >= 0 && p->n_owed) {
		while (p->n_owed)
			say_answer(p);
		turns();
	}
	in.p = saved.p;
	in.left = saved.left;
}

static bool known;              /* it has its session */

static void
keeper_comes(void)
{
	struct peer *p = &peers[KEEPER];
	size_t left = in.left;

	if (p->fd >= 0 && p->up)
		return;
	in.left = 0;
	p->version = MQTT_311;
	open_connection(p, &b.listeners[0]);
	begin_packet();
	put_str("MQTT");
	put8(4);
	put8(0);
	put16(0);
	put_str("the one who keeps everything");
	send_packet(p, MQTT_CONNECT << 4);
	turns();
	assert(p->up && p->again == known);
	if (!known) {           /* else what is retained would come twice */
		begin_packet();
		put16(1);
		put_str("t/#");
		put8(2);
		send_packet(p, MQTT_SUBSCRIBE << 4 | 2);
	}
	known = true;
	in.left = left;
	keep_up();
}

static void
check_kept(void)
{
	keeper_comes();
	keep_up();
	for (unsigned i = 0; i < n_serials; i++)
		assert(!serials[i].acked || serials[i].got > 0);
}

/* ---- steps ---- */

static void
pass_time(void)
{
	static const int64_t ms[] = { 1, 100, 1000, 6000, 31000, 61000,
	    3600000, 90000000 };

	clock_ms += ms[byte() % 8];
	turns();
}

static void
step(void)
{
	uint8_t what = byte();
	struct peer *p = &peers[byte() % KEEPER];

	switch (what % 20) {
	case 0:
	case 1:
		say_connect(p);
		break;
	case 2:
	case 3:
	case 4:
		say_publish(p);
		break;
	case 5:
	case 6:
		say_subscribe(p);
		break;
	case 7:
		say_unsubscribe(p);
		break;
	case 8:
	case 9:
		say_answer(p);
		break;
	case 10:
		say_disconnect(p);
		break;
	case 11:
		say_bytes(p);
		break;
	case 12:
		hang_up_peer(p);
		break;
	case 13:
		p->deaf = !p->deaf;
		break;
	case 14:
		pass_time();
		return;
	case 15:
		start_anew(byte() & 1);
		break;
	case 16:
		mem_set_limit(byte() & 1 ? 0 : mem_used() + byte() * 64u);
		break;
	case 17:
		if (byte() & 1)
			hang_up_peer(&peers[KEEPER]);
		else if (mem_limit() == 0)
			keeper_comes();
		break;
	case 18:
		if (byte() & 1)
			b.reload = true;
		else
			persist_save(&b);
		break;
	default:                /* several packets in one turn */
		return;
	}
	if (what & 128)         /* the disk is slow */
		one_turn();
	else
		turns();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	sigset_t mask;
	bool persistence;

	if (!dir[0])
		prepare();
	sigprocmask(SIG_SETMASK, NULL, &mask);
	in.p = data;
	in.left = size;
	inside = true;
	clock_ms = 1000000;
	noise_state = 1;
	n_serials = 0;
	known = false;
	memset(serials, 0, sizeof serials);
	memset(received, 0, sizeof received);
	for (int i = 0; i < PEERS; i++)
		peers[i].fd = -1;
	remove_files(in_dir("journal"));
	persistence = byte() % 8 == 7;
	begin(persistence);
	keeper_comes();
	for (int i = 0; i < STEPS_MAX && in.left; i++)
		step();
	mem_set_limit(0);
	check_kept();
	end();
	inside = false;
	sigprocmask(SIG_SETMASK, &mask, NULL);
	return 0;
}
