/*
 * load - drive an MQTT broker from one core and check all that comes back.
 *
 * One thread around one epoll. Publishers write many packets with one
 * write(); everything is read into one shared buffer and parsed where it
 * lies. Nothing is allocated per message, so what is measured is the broker.
 *
 * Every payload starts with a stamp: time sent (8 bytes, CLOCK_MONOTONIC
 * ns), publisher (4), sequence number (4); the rest is filled with the low
 * byte of the sequence number. A message is outstanding until its publisher
 * has the last acknowledgement and each subscriber has the message; each
 * publisher keeps at most --window outstanding, so that a broker gets no
 * reason to drop one (unless it neglects the PUBACKs of subscribers).
 * Acknowledgements must come in the order of the messages: [MQTT-4.6.0-2],
 * [MQTT-4.6.0-3]; for PUBCOMP the standard doesn't say so, yet one stream in
 * and one stream out leave no other.
 *
 * stdout: one line of key=value pairs at the end; before it `ready` with
 * --hold and from `idle` and `subs`, when everything is connected.
 * Exit: 0, or 1 lost, doubled, misordered or too late, 2 wrong usage, 3 the
 * broker or the system did something that it should not (see stderr).
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	STAMP = 16,		/* bytes at the start of each payload */
	RX = 256 * 1024,	/* bytes asked for by one read */
	PACKET_MAX = 1100000,	/* bytes, with the largest payload */
	BATCH = 128 * 1024,	/* a publisher fills this much, then writes */
	FILTERS_MAX = 1000,	/* per connection */
	OPENING_MAX = 64,	/* more could overflow the listen queue */
};

static const uint64_t SECOND = 1000000000;	/* ns */

enum { CONNECT = 1, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP,
	SUBSCRIBE, SUBACK, DISCONNECT = 14 };

enum role { PUB, SUB, OTHER, STORM };
enum state { NEW, OPENING, SUBSCRIBING, READY };

struct conn {
	int fd;
	enum role role;
	enum state state;
	uint32_t index;		/* among those of its role */

	uint8_t *out;		/* waits to be written */
	size_t out_len, out_cap;

	uint8_t *part;		/* packet that has not arrived completely */
	size_t part_len;

	/* PUB: messages so far; sent >= released >= acked, sent >= done */
	uint32_t sent, released, acked, done;
	char topic[48];
	uint32_t *arrivals;	/* fan-out: of message seq % window */

	/* SUB, OTHER */
	uint32_t filters;
	bool *id_open;		/* QoS 2: by id, PUBLISH came but no PUBREL */
};

/*
 * Messages that must arrive in order, counted where they arrive: from one
 * publisher to one subscriber, or one retained message.
 */
struct flow {
	uint32_t next;		/* sequence number that is due */
	uint32_t missing;	/* below next, jumped over, not seen since */
};

/* What is left of the packet that came at a time. */
struct packet {
	const uint8_t *p, *end;
	uint64_t at_ns;
};

static struct {
	const char *workload, *host, *port;
	uint32_t version, qos, size, n, window, duration_ms, count, rate;
	uint32_t each, deadline, hold, lasting;
} opt = { .host = "127.0.0.1", .port = "1883", .version = 4, .size = 16,
	.duration_ms = 2000, .count = UINT32_MAX, .deadline = 60 };

static struct addrinfo *addr;
static int ep;
static volatile sig_atomic_t signalled;

static struct conn *conns;
static const struct conn *serving;	/* whom a complaint is about */
static uint32_t nconns, npubs, nsubs, nopening, nready;
static struct flow *flows;
static uint32_t fan;		/* subscribers that get each message */
static uint32_t pub_qos, sub_qos;
static size_t packet_max;	/* bytes, with this payload */
static bool retaining;
static bool stopped = true;	/* nothing is to be published */
static uint64_t start_ns;	/* of publishing */
static uint64_t due;		/* messages of all publishers by now */
static uint64_t sent, acked, arrived, delivered, doubled, misordered, ids_open;
static uint32_t storm_done;

/* Log-linear: exact below 128 ns, then 64 steps for each doubling. */
static uint64_t histogram[60 * 64], slowest_ns;

static _Noreturn void
die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("load: ", stderr);
	if (serving)
		fprintf(stderr, "%s %u: ", serving->role == PUB ? "publisher"
		    : "subscriber or other", serving->index);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	exit(3);
}

static void *
need(size_t n, size_t size)
{
	void *p = calloc(n, size);

	if (!p)
		die("out of memory");
	return p;
}

static uint64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void
latency_add(uint64_t ns)
{
	int shift = ns < 64 ? 0 : 57 - __builtin_clzll(ns);

	histogram[(unsigned)shift * 64 + (ns >> shift)]++;
	if (ns > slowest_ns)
		slowest_ns = ns;
}

/* The time that this share of the messages was not slower than. */
static double
latency_us(double share)
{
	uint64_t i, all = 0, sum = 0;

	for (i = 0; i < 60 * 64; i++)
		all += histogram[i];
	for (i = 0; i < 59 * 64; i++)
		if ((double)(sum += histogram[i]) >= share * (double)all)
			break;
	return (double)(i < 128 ? i : (i % 64 + 64) << (i / 64 - 1)) / 1e3;
}

/* Packets out */

/* Room for n more bytes after what waits; the caller adds to out_len. */
static uint8_t *
out_room(struct conn *c, size_t n)
{
	if (c->out_len + n > c->out_cap) {
		c->out_cap = 2 * c->out_len + n;
		c->out = realloc(c->out, c->out_cap);
		if (!c->out)
			die("out of memory");
	}
	return c->out + c->out_len;
}

static uint8_t *
put_u16(uint8_t *p, size_t v)
{
	*p++ = (uint8_t)(v >> 8);
	*p++ = (uint8_t)v;
	return p;
}

static uint8_t *
put_str(uint8_t *p, const char *s)
{
	size_t n = strlen(s);

	return (uint8_t *)memcpy(put_u16(p, n), s, n) + n;
}

static uint8_t *
put_header(uint8_t *p, uint32_t first, size_t len)
{
	*p++ = (uint8_t)first;
	for (; len > 127; len >>= 7)
		*p++ = (uint8_t)(len | 128);
	*p++ = (uint8_t)len;
	return p;
}

static void
send_packet(struct conn *c, uint32_t first, const void *body, size_t len)
{
	uint8_t *p = put_header(out_room(c, 5 + len), first, len);

	memcpy(p, body, len);
	c->out_len = (size_t)(p + len - c->out);
}

static void
send_ack(struct conn *c, uint32_t type, uint32_t id)
{
	uint8_t body[2];

	put_u16(body, id);
	send_packet(c, type << 4 | (type == PUBREL ? 2 : 0), body, 2);
}

static void
send_connect(struct conn *c)
{
	uint8_t body[64], *p = put_str(body, "MQTT");
	char id[40];

	*p++ = (uint8_t)opt.version;
	*p++ = opt.lasting && c->role == SUB ? 0 : 2;	/* clean session */
	p = put_u16(p, 0);	/* no keep alive */
	if (opt.version == 5)
		*p++ = 0;
	/* letters and digits only: [MQTT-3.1.3-5] */
	snprintf(id, sizeof id, "load%dx%ld", (int)getpid(), c - conns);
	p = put_str(p, id);
	send_packet(c, CONNECT << 4, body, (size_t)(p - body));
}

static const char *
topic_of(struct conn *pub, uint32_t seq)
{
	if (retaining)
		snprintf(pub->topic, sizeof pub->topic, "load/retained/%u",
		    seq);
	return pub->topic;
}

static void
filter_of(const struct conn *c, uint32_t i, char to[48])
{
	i += c->index * c->filters;
	if (c->role == OTHER)	/* some with a wildcard; no topic matches */
		snprintf(to, 48, "other/%u/%u%s", i % 1000, i,
		    i % 10 ? "" : "/+");
	else if (retaining)
		strcpy(to, "#");
	else if (nsubs < npubs)
		strcpy(to, "load/+/data");
	else
		strcpy(to, conns[fan > 1 ? 0 : c->index].topic);
}

static void
send_subscribe(struct conn *c)
{
	static uint8_t body[3 + FILTERS_MAX * (2 + 48 + 1)];
	uint8_t *p = put_u16(body, 1);
	uint32_t i;
	char name[48];

	if (opt.version == 5)
		*p++ = 0;
	for (i = 0; i < c->filters; i++) {
		filter_of(c, i, name);
		p = put_str(p, name);
		*p++ = (uint8_t)sub_qos;
	}
	send_packet(c, SUBSCRIBE << 4 | 2, body, (size_t)(p - body));
}

/* In flight are fewer than 65535, so these are never used twice at once. */
static uint32_t
id_of(uint32_t seq)
{
	return 1 + seq % 65535;
}

static void
send_publish(struct conn *c, uint64_t now)
{
	uint32_t seq = c->sent++;
	const char *topic = topic_of(c, seq);
	size_t len = 2 + strlen(topic) + (pub_qos ? 2 : 0)
	    + (opt.version == 5) + opt.size;
	uint8_t *p;

	p = put_header(out_room(c, 5 + len),
	    PUBLISH << 4 | pub_qos << 1 | retaining, len);
	p = put_str(p, topic);
	if (pub_qos)
		p = put_u16(p, id_of(seq));
	if (opt.version == 5)
		*p++ = 0;
	memcpy(p, &now, 8);
	memcpy(p + 8, &c->index, 4);
	memcpy(p + 12, &seq, 4);
	memset(p + STAMP, (uint8_t)seq, opt.size - STAMP);
	c->out_len = (size_t)(p + opt.size - c->out);

	sent++;
	c->acked += !pub_qos;
	acked += !pub_qos;
	c->done += !fan;
}

/*
 * How many messages to send now. With QoS 0 a publisher waits until a
 * quarter of its window is free: a quick broker would else be fed in ever
 * smaller pieces. Acknowledgements are answered at once, as by any client.
 */
static uint32_t
may_send(const struct conn *c)
{
	uint32_t behind = c->acked < c->done ? c->acked : c->done;
	uint32_t room = opt.window - (c->sent - behind);
	uint64_t most = (due + npubs - 1 - c->index) / npubs;

	if (stopped || (!pub_qos && room * 4 < opt.window))
		return 0;
	most = most < opt.count ? most : opt.count;
	return most - c->sent < room ? (uint32_t)(most - c->sent) : room;
}

/* Connections */

/* The handshake of TCP ends in the background; epoll then reports room. */
static void
conn_open(struct conn *c)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET,
		.data.ptr = c };

	serving = c;
	c->fd = socket(addr->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (c->fd < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev)
	    || (connect(c->fd, addr->ai_addr, addr->ai_addrlen)
	    && errno != EINPROGRESS))
		die("connect: %s", strerror(errno));
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	c->state = OPENING;
	nopening++;
	serving = NULL;
	send_connect(c);
}

/* True if something was written and nothing is left. Else epoll will tell. */
static bool
conn_flush(struct conn *c)
{
	size_t len = c->out_len;
	ssize_t n = len ? write(c->fd, c->out, len) : 0;

	if (n < 0 && errno != EAGAIN)
		die("%s", strerror(errno));
	if (n > 0) {
		c->out_len -= (size_t)n;
		memmove(c->out, c->out + n, c->out_len);
	}
	return len && !c->out_len;
}

static void
conn_serve(struct conn *c)
{
	uint64_t now;
	uint32_t n;

	serving = c;
	do {
		n = c->role == PUB && c->state == READY ? may_send(c) : 0;
		now = n ? now_ns() : 0;
		for (; n && c->out_len < BATCH; n--)
			send_publish(c, now);
	} while (conn_flush(c));
	serving = NULL;
}

/* Packets in */

static const uint8_t *
get_bytes(struct packet *k, size_t n)
{
	const uint8_t *p = k->p;

	if (n > (size_t)(k->end - p))
		die("packet is too short for its contents");
	k->p += n;
	return p;
}

static uint32_t
get_u8(struct packet *k)
{
	return *get_bytes(k, 1);
}

static uint32_t
get_u16(struct packet *k)
{
	const uint8_t *p = get_bytes(k, 2);

	return (uint32_t)(p[0] << 8 | p[1]);
}

/*
 * That in CONNACK is not read either: a --window beyond the broker's Receive
 * Maximum makes it close the connection.
 */
static void
skip_properties(struct packet *k)
{
	uint32_t b, len = 0, shift = 0;

	if (opt.version != 5)
		return;
	do {
		b = get_u8(k);
		len |= (b & 127) << shift;
		shift += 7;
	} while (b & 128 && shift < 28);
	get_bytes(k, len);
}

static void
conn_ready(struct conn *c)
{
	c->state = READY;
	nready++;
	if (c->role == STORM)
		send_packet(c, DISCONNECT << 4, "", 0);
}

static void
on_connack(struct conn *c, struct packet *k)
{
	uint32_t present = get_u8(k), code = get_u8(k);

	if (c->state != OPENING || present || code)
		die("unexpected CONNACK %u %u", present, code);
	skip_properties(k);
	nopening -= c->role != STORM;
	if (!c->filters) {
		conn_ready(c);
		return;
	}
	c->state = SUBSCRIBING;
	send_subscribe(c);
}

static void
on_suback(struct conn *c, struct packet *k)
{
	uint32_t n;

	if (c->state != SUBSCRIBING || get_u16(k) != 1)
		die("SUBACK out of turn");
	skip_properties(k);
	for (n = 0; n < c->filters; n++)
		if (get_u8(k) != sub_qos)
			die("SUBACK grants another QoS or refuses");
	conn_ready(c);
}

/* One subscriber has message seq, or will never have it in its place. */
static void
message_arrived(struct conn *pub, uint32_t seq)
{
	uint32_t *n = pub->arrivals + seq % opt.window;

	arrived++;
	if (++*n < fan)
		return;
	*n = 0;
	pub->done++;
}

/*
 * A jump forward leaves messages missing, which then don't hold back the
 * publisher. One that comes after all was misordered; one more is a double.
 */
static void
message_check(struct flow *f, struct conn *pub, uint32_t seq)
{
	if (seq >= f->next) {
		f->missing += seq - f->next;
		while (f->next <= seq)
			message_arrived(pub, f->next++);
	} else if (f->missing) {
		f->missing--;
		misordered++;
	} else {
		doubled++;
		return;
	}
	delivered++;
}

/* Payload and topic must be what publisher and number say. */
static void
on_message(struct conn *c, struct packet *k, const uint8_t *topic, size_t len)
{
	const uint8_t *stamp = get_bytes(k, opt.size);
	uint32_t pub, seq;
	uint64_t then;
	const char *want;

	memcpy(&then, stamp, 8);
	memcpy(&pub, stamp + 8, 4);
	memcpy(&seq, stamp + 12, 4);
	if (pub >= npubs || seq >= conns[pub].sent)
		die("message that was never sent");
	if (opt.size > STAMP && stamp[opt.size - 1] != (uint8_t)seq)
		die("payload is damaged");
	want = topic_of(conns + pub, seq);
	if (len != strlen(want) || memcmp(topic, want, len)
	    || (nsubs > 1 && fan == 1 && pub != c->index))
		die("message under a wrong topic");
	if (retaining) {
		message_check(flows + seq, conns + pub, 0);
		return;
	}
	/* a new connection of TCP delays its first acknowledgements */
	if (!opt.rate || then > start_ns + SECOND / 10)
		latency_add(k->at_ns - then);
	message_check(flows + (fan == 1 ? pub : c->index), conns + pub, seq);
}

static void
on_publish(struct conn *c, struct packet *k, uint32_t flags)
{
	uint32_t qos = pub_qos < sub_qos ? pub_qos : sub_qos, id = 0;
	const uint8_t *topic;
	size_t len;

	if (c->role != SUB || c->state < SUBSCRIBING)
		die("PUBLISH to one who didn't subscribe");
	if (flags != (qos << 1 | retaining))
		die("PUBLISH with other flags than it was sent with");
	len = get_u16(k);
	topic = get_bytes(k, len);
	if (qos && !(id = get_u16(k)))
		die("PUBLISH with packet identifier 0");
	skip_properties(k);
	on_message(c, k, topic, len);
	if (qos)
		send_ack(c, qos == 1 ? PUBACK : PUBREC, id);
	if (qos < 2)
		return;
	if (c->id_open[id])
		die("PUBLISH under an identifier still in use");
	c->id_open[id] = true;
	ids_open++;
}

/* PUBACK, PUBREC or PUBCOMP to a publisher. */
static void
on_ack(struct conn *c, uint32_t type, uint32_t id)
{
	uint32_t seq = type == PUBREC ? c->released : c->acked;
	uint32_t end = type == PUBCOMP ? c->released : c->sent;

	if (pub_qos != (type == PUBACK ? 1 : 2) || seq == end
	    || id != id_of(seq))
		die("acknowledgement that isn't due or out of order");
	if (type == PUBREC) {
		c->released++;
		send_ack(c, PUBREL, id);
		return;
	}
	c->acked++;
	acked++;
}

static void
on_pubrel(struct conn *c, uint32_t id)
{
	if (!c->id_open || !c->id_open[id])
		die("PUBREL for an unknown identifier");
	c->id_open[id] = false;
	ids_open--;
	send_ack(c, PUBCOMP, id);
}

static void
on_packet(struct conn *c, struct packet *k)
{
	uint32_t first = get_u8(k), type = first >> 4, id;

	while (get_u8(k) & 128)
		;
	if (type == CONNACK) {
		on_connack(c, k);
	} else if (type == SUBACK) {
		on_suback(c, k);
	} else if (type == PUBLISH) {
		on_publish(c, k, first & 15);
	} else if (type >= PUBACK && type <= PUBCOMP) {
		id = get_u16(k);
		if (k->p < k->end && get_u8(k) >= 0x80)
			die("acknowledgement with an error");
		type == PUBREL ? on_pubrel(c, id) : on_ack(c, type, id);
		if (k->p < k->end)
			skip_properties(k);
	} else {
		die("packet of type %u that isn't due", type);
	}
	if (k->p < k->end)
		die("packet is too long for its contents");
}

/* Size of the packet at p by its fixed header; 0 while that is incomplete. */
static size_t
packet_size(const uint8_t *p, size_t n)
{
	size_t i, len = 0;

	for (i = 1; i < 5 && i < n; i++) {
		len |= (size_t)(p[i] & 127) << 7 * (i - 1);
		if (!(p[i] & 128) && i + 1 + len <= packet_max)
			return i + 1 + len;
	}
	if (i == 5)
		die("packet with a length that can't be");
	return 0;
}

static void
conn_eof(struct conn *c)
{
	if (c->role != STORM || c->state != READY)
		die("the broker closed the connection");
	close(c->fd);
	nopening--;
	storm_done++;
}

/*
 * One read; what it left incomplete last time is put in front of it. True if
 * more may be there.
 */
static bool
conn_read(struct conn *c)
{
	static uint8_t rx[PACKET_MAX + RX];
	uint8_t *p = rx;
	size_t size, left = c->part_len;
	ssize_t n = read(c->fd, rx + left, RX);
	struct packet k = { .at_ns = now_ns() };

	serving = c;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n < 0)
		die("%s", strerror(errno));
	if (n == 0) {
		conn_eof(c);
		return false;
	}
	if (left)
		memcpy(rx, c->part, left);
	left += (size_t)n;
	while ((size = packet_size(p, left)) && size <= left) {
		k.p = p;
		k.end = p += size;
		left -= size;
		on_packet(c, &k);
	}
	if (left && !c->part)
		c->part = need(packet_max, 1);
	if (left)
		memcpy(c->part, p, left);
	c->part_len = left;
	return true;
}

/* The loop */

/*
 * What arrives at a subscriber lets a publisher go on, so all publishers are
 * looked at; one with bytes left over waits for epoll.
 */
static void
turn(uint64_t timeout_ns)
{
	static struct epoll_event ev[1024];
	struct timespec t = { (time_t)(timeout_ns / SECOND),
		(long)(timeout_ns % SECOND) };
	int i, n = epoll_pwait2(ep, ev, 1024, &t, NULL);
	uint32_t p;

	if (n < 0 && errno != EINTR)
		die("epoll_pwait2: %s", strerror(errno));
	for (i = 0; i < n; i++) {
		if (ev[i].events & ~(uint32_t)EPOLLOUT)
			while (conn_read(ev[i].data.ptr))
				;
		conn_serve(ev[i].data.ptr);
	}
	if (opt.rate)
		due = (uint64_t)((double)(now_ns() - start_ns) / 1e9
		    * opt.rate);
	for (p = 0; p < npubs; p++)
		if (!conns[p].out_len)
			conn_serve(conns + p);
}

/* Connects and subscribes all from..to. */
static void
open_all(uint32_t from, uint32_t to)
{
	uint32_t next = from, goal = nready + to - from;

	while (nready < goal) {
		while (next < to && nopening < OPENING_MAX)
			conn_open(conns + next++);
		if (signalled)
			die("%u are not connected and subscribed in time",
			    goal - nready);
		turn(SECOND);
	}
}

/* Until a line or end of file on stdin, or a signal. */
static void
console_wait(void)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	char line[80];

	fflush(stdout);
	while (!signalled && poll(&in, 1, 0) == 0)
		turn(SECOND / 100);
	if (!signalled && read(0, line, sizeof line) < 0)
		die("stdin: %s", strerror(errno));
}

/* With --rate: ns until the next message is due. */
static uint64_t
rate_wait(void)
{
	uint64_t now = now_ns(), next = start_ns + 1
	    + (uint64_t)((double)(due + 1) / opt.rate * 1e9);

	return next > now ? next - now : 0;
}

static bool
all_done(void)
{
	return (stopped || sent == (uint64_t)opt.count * npubs)
	    && acked == sent && arrived == sent * fan && !ids_open;
}

/* Publishes until time or count is over and all is received and acked. */
static double
publish_all(void)
{
	start_ns = now_ns();
	stopped = false;
	due = opt.rate ? 0 : UINT64_MAX / 2;
	turn(0);
	while (!all_done() && !signalled) {
		turn(opt.rate && !stopped ? rate_wait() : SECOND);
		if (opt.count == UINT32_MAX && (now_ns() - start_ns)
		    / (SECOND / 1000) >= opt.duration_ms)
			stopped = true;
	}
	return (double)(now_ns() - start_ns) / 1e9;
}

/*
 * Waits whether a double comes, then prints the result of a run of so many
 * seconds in which so many messages were due. Returns the exit code.
 */
static int
report(uint64_t want, double seconds, const char *more)
{
	uint64_t until = now_ns() + SECOND / 20, lost;
	bool late = signalled;

	while (now_ns() < until)
		turn(SECOND / 20);
	lost = want - delivered;
	printf("workload=%s sent=%ju delivered=%ju lost=%ju doubled=%ju "
	    "misordered=%ju unacked=%ju late=%d seconds=%.4f rate=%.0f "
	    "p50_us=%.1f p99_us=%.1f max_us=%.1f%s\n", opt.workload,
	    (uintmax_t)sent, (uintmax_t)delivered, (uintmax_t)lost,
	    (uintmax_t)doubled, (uintmax_t)misordered,
	    (uintmax_t)(sent - acked), late, seconds,
	    (double)delivered / seconds, latency_us(.5), latency_us(.99),
	    (double)slowest_ns / 1e3, more);
	alarm(0);
	if (opt.hold)
		console_wait();
	return lost || doubled || misordered || sent != acked || late;
}

/* Workloads */

static void
hold(void)
{
	if (!opt.hold)
		return;
	puts("ready");
	console_wait();
}

static void
conns_new(enum role role, uint32_t n, uint32_t filters)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct conn *c = conns + nconns++;

		c->role = role;
		c->index = i;
		c->filters = filters;
		snprintf(c->topic, sizeof c->topic, "load/%u/data", i);
		if (role == PUB)
			c->arrivals = need(opt.window, sizeof *c->arrivals);
		if (role == SUB && sub_qos == 2)
			c->id_open = need(65536, sizeof *c->id_open);
	}
}

static int
run_traffic(void)
{
	double seconds;

	npubs = strcmp(opt.workload, "fanout") ? opt.n : 1;
	nsubs = strcmp(opt.workload, "fanin") ? opt.n : 1;
	fan = nsubs > npubs ? nsubs : 1;
	conns_new(PUB, npubs, 0);
	conns_new(SUB, nsubs, 1);
	open_all(0, nconns);
	hold();
	seconds = publish_all();
	return report(sent * fan, seconds, "");
}

static int
run_retained(void)
{
	char more[80];
	uint64_t start;

	retaining = true;
	pub_qos = npubs = nsubs = 1;
	opt.count = opt.n;
	conns_new(PUB, 1, 0);
	conns_new(SUB, 1, 1);
	open_all(0, 1);
	snprintf(more, sizeof more, " publish_seconds=%.4f", publish_all());
	hold();
	start = now_ns();
	open_all(1, 2);
	while ((delivered < opt.n || ids_open) && !signalled)
		turn(SECOND);
	return report(opt.n, (double)(now_ns() - start) / 1e9, more);
}

/* Connections that only are there; if they subscribe, nothing matches. */
static int
run_idle(void)
{
	conns_new(OTHER, opt.n, opt.each);
	open_all(0, opt.n);
	alarm(0);
	opt.hold = 1;
	hold();
	printf("workload=%s connections=%u subscriptions=%u\n", opt.workload,
	    opt.n, opt.n * opt.each);
	return 0;
}

static int
run_subs(void)
{
	opt.each = opt.n < 1000 * FILTERS_MAX ? (opt.n + 999) / 1000
	    : FILTERS_MAX;
	opt.n /= opt.each;
	return run_idle();
}

static int
run_storm(void)
{
	uint64_t start;

	hold();
	start = now_ns();
	conns_new(STORM, opt.n, 0);
	open_all(0, opt.n);
	while (storm_done < opt.n && !signalled)
		turn(SECOND);
	nconns = 0;		/* all are closed */
	delivered = storm_done;
	return report(opt.n, (double)(now_ns() - start) / 1e9, "");
}

static const struct workload {
	const char *name;
	int (*run)(void);
	uint32_t n;		/* default of -n */
	const char *what;
} workloads[] = {
	{ "pairs", run_traffic, 10, "N publishers, each with a subscriber" },
	{ "fanout", run_traffic, 100, "1 publisher to N subscribers" },
	{ "fanin", run_traffic, 100, "N publishers to 1 subscriber" },
	{ "rate", run_traffic, 1, "pairs at 1000 messages/s, or -r" },
	{ "retained", run_retained, 10000, "N topics set, read by way of #" },
	{ "idle", run_idle, 1000, "N connections that wait" },
	{ "subs", run_subs, 100000, "N subscriptions, 1000 connections" },
	{ "storm", run_storm, 10000, "N times connect and disconnect" },
};

static const struct option {
	const char *name;	/* its first letter is the short form */
	uint32_t *to, min, max;
	const char *what;
} options[] = {
	{ "Version", &opt.version, 4, 5, "of MQTT" },
	{ "number", &opt.n, 1, 1 << 24, "N of the workload" },
	{ "qos", &opt.qos, 0, 2, "of messages and filters" },
	{ "size", &opt.size, STAMP, 1 << 20, "bytes of payload" },
	{ "window", &opt.window, 1, 65000, "messages outstanding per "
	    "publisher (QoS 0: 1000, but 4 MB; else 20)" },
	{ "duration", &opt.duration_ms, 1, 1 << 30, "ms of publishing" },
	{ "messages", &opt.count, 1, 1u << 31, "per publisher, not -d" },
	{ "rate", &opt.rate, 1, 1 << 24, "messages/s of all publishers" },
	{ "kept", &opt.each, 0, FILTERS_MAX, "idle: filters of each" },
	{ "Lasting", &opt.lasting, 0, 1, "1: sessions of subscribers last, "
	    "with 3.1.1" },
	{ "timeout", &opt.deadline, 0, 1 << 20, "s for all, 0 for none" },
	{ "hold", &opt.hold, 0, 1, "1: print ready, run after a line on "
	    "stdin, print the result, leave after the next" },
};

enum {
	NWORKLOADS = sizeof workloads / sizeof *workloads,
	NOPTIONS = sizeof options / sizeof *options,
};

static _Noreturn void
usage(void)
{
	int i;

	fputs("usage: load [OPTION NUMBER]... WORKLOAD [PORT [ADDRESS]]\n",
	    stderr);
	for (i = 0; i < NOPTIONS; i++)
		fprintf(stderr, "-%c, --%-9s %s, %u to %u\n", *options[i].name,
		    options[i].name, options[i].what, options[i].min,
		    options[i].max);
	for (i = 0; i < NWORKLOADS; i++)
		fprintf(stderr, "%-14s %s [%u]\n", workloads[i].name,
		    workloads[i].what, workloads[i].n);
	exit(2);
}

static void
option_set(const char *name, const char *value)
{
	const struct option *o = options, *end = o + NOPTIONS;
	char *rest;
	unsigned long v = value ? strtoul(value, &rest, 10) : 0;

	while (o < end && (name[1] == '-' ? strcasecmp(name + 2, o->name)
	    : name[1] != *o->name || name[2]))
		o++;
	if (o == end || !value || *rest || rest == value || v < o->min
	    || v > o->max) {
		fprintf(stderr, "load: what is %s %s?\n", name,
		    value ? value : "");
		usage();
	}
	*o->to = (uint32_t)v;
}

/* Reads the command line and fills in what depends on the workload. */
static const struct workload *
options_read(char **arg)
{
	const struct workload *w = workloads;

	for (; *arg && **arg == '-'; arg += 2)
		option_set(arg[0], arg[1]);
	while (*arg && w < workloads + NWORKLOADS && strcmp(w->name, *arg))
		w++;
	if (!*arg || w == workloads + NWORKLOADS)
		usage();
	opt.workload = *arg;
	if (*++arg)
		opt.port = *arg++;
	if (*arg)
		opt.host = *arg;
	if (!opt.n)
		opt.n = w->n;
	if (!opt.window && (opt.qos || w->run == run_retained))
		opt.window = 20;
	if (!opt.window)
		opt.window = opt.size < 4096 ? 1000 : (4 << 20) / opt.size;
	if (!opt.rate && !strcmp(w->name, "rate"))
		opt.rate = 1000;
	return w;
}

static void
on_signal(int sig)
{
	signalled = sig;
}

int
main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICHOST };
	const struct workload *w = options_read(argv + (argc > 0));
	struct rlimit files;
	uint32_t i, most = w->run == run_retained ? 2 : 2 * opt.n;
	int rc;

	if (getaddrinfo(opt.host, opt.port, &hints, &addr))
		die("%s port %s: not an address", opt.host, opt.port);
	signal(SIGTERM, on_signal);
	signal(SIGALRM, on_signal);
	signal(SIGPIPE, SIG_IGN);
	alarm(opt.deadline);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	conns = need(most, sizeof *conns);
	flows = need(opt.n, sizeof *flows);
	ep = epoll_create1(EPOLL_CLOEXEC);
	pub_qos = sub_qos = opt.qos;
	packet_max = opt.size + FILTERS_MAX + 200;

	rc = w->run();
	for (i = 0; i < nconns; i++) {
		send_packet(conns + i, DISCONNECT << 4, "", 0);
		conn_flush(conns + i);
	}
	return rc;
}
