/* Fuzzer of tls: a server over socket pairs, and a peer that does what the input
 * says. The first byte chooses the peer:
 *
 *   one client    BearSSL's own, whose records are cut, joined, damaged, of the
 *                 wrong kind or no records at all, during the handshake and
 *                 after it, while memory runs short
 *   a crowd       that begins handshakes, stalls, comes back, hangs up, for
 *                 fewer lanes than there are peers
 *
 * Beyond the sanitizers: plaintext is what was sent, in both directions, each
 * record of ours can be read, every call comes to an end, the ledger is empty
 * afterwards.
 */
#include "fuzz.h"
#include "log.h"
#include "mem.h"
#include "pem.h"
#include "tls.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM (256 * 1024)       /* as the broker's shared buffer */
#define CROWD 5
#define LANES 2

/* ---- input of the fuzzer ---- */

/* Small numbers are frequent. */
static size_t
number(void)
{
	size_t n = byte();

	return n < 200 ? n : n < 250 ? (n - 199) * 400 : 16300 + (n - 250) * 40;
}

/* ---- what lasts for all runs ---- */

enum { CHACHA, AES128, AES256, SUITES };

static const uint16_t suite_ids[SUITES] = {
	BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
};

static struct tls_pool pool;
static struct config_listener conf[2];  /* [1] demands certificates */
static struct certs server_chain, client_chain;
static struct cert_key client_key;
static br_x509_decoder_context server_pub;
static size_t empty;                    /* mem_used() without any server */
static uint8_t *room;
static int64_t now;

static char *
file_of(const char *text)
{
	static char paths[16][32];
	static unsigned n;
	int fd = memfd_create("pem", MFD_CLOEXEC);

	assert(fd >= 0 && n < 16);
	assert(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	snprintf(paths[n], sizeof *paths, "/proc/self/fd/%d", fd);
	return paths[n++];
}

static void
begin(void)
{
	struct log_config quiet = { .types = LOG_T_ALL };
	const char *why;

	log_open(&quiet);
	room = malloc(ROOM);
	assert(room);
	for (int i = 0; i < 2; i++) {
		conf[i].certfile = file_of(pem_server_cert);
		conf[i].keyfile = file_of(pem_server_key);
		conf[i].cafile = file_of(pem_ca_cert);
		conf[i].disable_client_cert_date_checks = true;
		conf[i].require_certificate = i;
		conf[i].use_identity_as_username = i;
	}
	conf[1].crlfile = file_of(pem_ca_crl);
	assert(certs_read(&server_chain, conf[0].certfile, &why));
	assert(certs_read(&client_chain, file_of(pem_client_cert), &why));
	assert(cert_read_key(&client_key, file_of(pem_client_key), &why));
	br_x509_decoder_init(&server_pub, NULL, NULL);
	br_x509_decoder_push(&server_pub, server_chain.der[0].data,
	    server_chain.der[0].data_len);
	assert(br_x509_decoder_get_pkey(&server_pub));
	tls_pool_init(&pool, LANES, -1);
	/* Takes the buffers that last. */
	tls_server_unref(tls_server_new(&pool, &conf[0]));
	empty = mem_used();
}

/* ---- the peer ---- */

struct bytes {
	uint8_t *p;
	size_t n, cap;
};

static void
add(struct bytes *b, const void *p, size_t n)
{
	if (b->n + n > b->cap) {
		b->cap = (b->n + n) * 2;
		b->p = realloc(b->p, b->cap);
		assert(b->p);
	}
	if (n)
		memcpy(b->p + b->n, p, n);
	b->n += n;
}

static void
drop(struct bytes *b, size_t n)
{
	if (n)
		memmove(b->p, b->p + n, b->n - n);
	b->n -= n;
}

union record {
	br_sslrec_gcm_context gcm;
	br_sslrec_chapol_context chapol;
	const br_sslrec_in_class *in;
	const br_sslrec_out_class *out;
};

struct client {
	br_ssl_client_context cc;
	br_x509_minimal_context xc;
	br_x509_knownkey_context known;
	uint8_t buf_in[BR_SSL_BUFSIZE_INPUT], buf_out[BR_SSL_BUFSIZE_OUTPUT];
	union record in, out;
	bool open;                      /* the handshake is over for it */
	bool poisoned;                  /* what it sends is no TLS any more */
};

/* A connection, both ends. */
struct link {
	struct tls *t;
	int here, there;
	struct client *client;          /* NULL: raw bytes only */
	struct bytes wire;              /* on the way to the server */
	struct bytes back;              /* from the server, not read yet */
	struct bytes sent;              /* what it must get, from the client */
	struct bytes said;              /* what the client must get */
	size_t sure;                    /* of sent: this must arrive */
	bool over;                      /* the server has seen the end */
	bool closed;                    /* by us */
	bool mem_short;                 /* anything may fail */
};

static void
client_init(struct client *c, int suite, bool cert, bool small)
{
	const br_x509_pkey *k = br_x509_decoder_get_pkey(&server_pub);
	uint8_t seed[32];

	memset(c, 0, sizeof *c);
	br_ssl_client_init_full(&c->cc, &c->xc, NULL, 0);
	br_ssl_engine_set_versions(&c->cc.eng, BR_TLS12, BR_TLS12);
	br_ssl_engine_set_suites(&c->cc.eng, &suite_ids[suite], 1);
	br_x509_knownkey_init_ec(&c->known, &k->key.ec, BR_KEYTYPE_SIGN);
	br_ssl_engine_set_x509(&c->cc.eng, &c->known.vtable);
	if (cert)
		br_ssl_client_set_single_ec(&c->cc, client_chain.der,
		    client_chain.n, client_key.ec, BR_KEYTYPE_SIGN,
		    BR_KEYTYPE_EC, br_ec_get_default(),
		    br_ecdsa_sign_asn1_get_default());
	br_ssl_engine_set_buffers_bidi(&c->cc.eng, c->buf_in,
	    small ? 2048 + 325 : sizeof c->buf_in, c->buf_out,
	    small ? 2048 + 85 : sizeof c->buf_out);
	getrandom(seed, sizeof seed, 0);
	br_ssl_engine_inject_entropy(&c->cc.eng, seed, sizeof seed);
}

/* One record as it may be or not. */
static void
put_record(struct link *l, uint8_t type, const uint8_t *p, size_t n)
{
	uint8_t buf[17000], *q;
	size_t start = 5, end = sizeof buf - 5, len = n;

	l->client->out.out->max_plaintext(&l->client->out.out, &start, &end);
	assert(n <= end - start);
	if (n)
		memcpy(buf + start, p, n);
	q = l->client->out.out->encrypt(&l->client->out.out, type, BR_TLS12,
	    buf + start, &len);
	add(&l->wire, q, len);
}

/* What the client's engine wants to send, and whether it is done. */
static void
run_client(struct link *l)
{
	struct client *c = l->client;
	br_ssl_engine_context *eng = &c->cc.eng;
	unsigned state;
	size_t n;
	uint8_t *p;

	while (!c->open) {
		state = br_ssl_engine_current_state(eng);
		if (state & BR_SSL_SENDREC) {
			p = br_ssl_engine_sendrec_buf(eng, &n);
			add(&l->wire, p, n);
			br_ssl_engine_sendrec_ack(eng, n);
		} else if (state & BR_SSL_SENDAPP) {
			memcpy(&c->in, &eng->in, sizeof c->in);
			memcpy(&c->out, &eng->out, sizeof c->out);
			c->open = true;
		} else if (state & BR_SSL_RECVREC && l->back.n > 0) {
			p = br_ssl_engine_recvrec_buf(eng, &n);
			n = n < l->back.n ? n : l->back.n;
			memcpy(p, l->back.p, n);
			br_ssl_engine_recvrec_ack(eng, n);
			drop(&l->back, n);
		} else {
			return;
		}
	}
}

/* Reads the server's records: all are well formed and in order. */
static void
read_records(struct link *l)
{
	union record *r = &l->client->in;
	uint8_t *p, *q;
	size_t n;

	while (l->back.n >= 5) {
		p = l->back.p;
		n = (size_t)(p[3] << 8 | p[4]);
		if (l->back.n < 5 + n)
			return;
		assert(p[1] == 3 && p[2] == 3);
		assert(r->in->check_length(&r->in, n));
		q = r->in->decrypt(&r->in, p[0], BR_TLS12, p + 5, &n);
		assert(q);
		if (p[0] == 23) {
			assert(n <= l->said.n && (!n ||
			    !memcmp(q, l->said.p, n)));
			drop(&l->said, n);
		} else {
			assert(p[0] == 21 && n == 2 && (q[0] == 1 ||
			    q[0] == 2));
		}
		drop(&l->back, 5 + (size_t)(p[3] << 8 | p[4]));
	}
}

static void
client_reads(struct link *l)
{
	uint8_t buf[4096];
	ssize_t n;

	while ((n = recv(l->there, buf, sizeof buf, MSG_DONTWAIT)) > 0)
		if (l->client)
			add(&l->back, buf, (size_t)n);
	if (!l->client)
		return;
	run_client(l);
	/* What answers garbage in the handshake is not encrypted. */
	if (l->client->open && tls_is_open(l->t))
		read_records(l);
}

/* ---- the server, as the broker drives it ---- */

static void
got_plain(struct link *l, const uint8_t *p, size_t n)
{
	assert(l->client && n <= l->sent.n);
	assert(!memcmp(p, l->sent.p, n));
	drop(&l->sent, n);
	l->sure -= n < l->sure ? n : l->sure;
}

static bool
server_reads(struct link *l)
{
	bool more = false;
	ssize_t n;

	if (l->over || !tls_wants_input(l->t))
		return false;
	n = tls_read(l->t, l->here, room, ROOM, &more);
	assert(n > 0 || n == TLS_NOTHING || n == TLS_END);
	if (n == TLS_NOTHING)
		return more;
	if (n > 0) {
		got_plain(l, room, (size_t)n);
		return true;
	}
	assert(errno == 0 || errno == EPROTO || (errno == ENOMEM &&
	    l->mem_short) || errno == ECONNRESET);
	assert(errno != EPROTO || tls_fault(l->t));
	tls_hung_up(l->t);
	/* After a fault what still comes is thrown away. */
	l->over = errno != EPROTO;
	return true;
}

static bool
server_writes(struct link *l, size_t n)
{
	size_t taken, first = n / 3;
	uint8_t *p = malloc(n + 1);
	struct iovec iov[3] = { { p, first }, { p, 0 },
	    { p + first, n - first } };
	bool ok;

	assert(p);
	for (size_t i = 0; i < n; i++)
		p[i] = noise();
	ok = tls_write(l->t, l->here, iov, n ? 3 : 0, &taken);
	assert(taken <= n);
	/* After a goodbye there is nobody to tell it. */
	if (tls_is_open(l->t) && !tls_is_over(l->t) && !l->closed)
		add(&l->said, p, taken);
	free(p);
	if (!ok)
		l->over = true;
	return ok;
}

static bool
shake_hands(struct link *links, size_t n)
{
	struct link *l = tls_next(&pool, now);
	const char *words = NULL;

	if (!l)
		return false;
	assert(l >= links && l < links + n);
	switch (tls_shake(l->t, now, &words)) {
	case TLS_GOES_ON:
		break;
	case TLS_DONE:
		assert(words && tls_is_open(l->t) && tls_cipher(l->t));
		assert(!tls_identity(l->t) ||
		    !strcmp(tls_identity(l->t), "client"));
		break;
	case TLS_FAILED:
		assert(words && !tls_is_open(l->t));
	}
	return true;
}

/* Until nothing more happens by itself. */
static void
settle(struct link *links, size_t n)
{
	bool on = true;

	for (unsigned turns = 0; on; turns++) {
		assert(turns < 5000);
		on = false;
		for (size_t i = 0; i < n; i++) {
			struct link *l = &links[i];

			if (!l->t)
				continue;
			on |= server_reads(l);
			if (!l->over && tls_rest(l->t))
				server_writes(l, 0);
			client_reads(l);
		}
		on |= shake_hands(links, n);
	}
	assert(pool.n_lanes <= LANES);
	assert(tls_wait_ms(&pool, now) >= -1);
}

/* Hands n bytes of what is on its way to the server. */
static void
deliver(struct link *l, size_t n)
{
	ssize_t done;

	n = n < l->wire.n ? n : l->wire.n;
	done = send(l->there, l->wire.p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (done > 0)
		drop(&l->wire, (size_t)done);
}

static void
link_open(struct link *l, struct tls_server *s)
{
	int fd[2];

	*l = (struct link){ 0 };
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
	    0, fd) == 0);
	l->here = fd[0];
	l->there = fd[1];
	l->t = tls_new(s, l);
	assert(l->t);
}

static void
link_close(struct link *l)
{
	tls_free(l->t);
	close(l->here);
	close(l->there);
	free(l->wire.p);
	free(l->back.p);
	free(l->sent.p);
	free(l->said.p);
	*l = (struct link){ 0 };
}

/* ---- one client ---- */

static void
send_data(struct link *l, size_t n)
{
	uint8_t buf[16384];

	n = n < sizeof buf ? n : sizeof buf;
	for (size_t i = 0; i < n; i++)
		buf[i] = noise();
	put_record(l, 23, buf, n);
	add(&l->sent, buf, n);
	if (!l->client->poisoned)
		l->sure += n;
}

/* A record of any kind, sealed properly. */
static void
send_odd(struct link *l)
{
	uint8_t type = byte(), buf[64];
	size_t n = byte() % sizeof buf;

	for (size_t i = 0; i < n; i++)
		buf[i] = byte();
	if (type == 23)
		type = 21;
	put_record(l, type, buf, n);
	/* Only a warning must not change anything. */
	if (type != 21 || n != 2 || buf[0] != 1 || buf[1] == 0)
		l->client->poisoned = true;
}

static void
send_raw(struct link *l)
{
	for (size_t n = byte() % 64; n > 0; n--) {
		uint8_t b = byte();

		add(&l->wire, &b, 1);
	}
	l->client->poisoned = true;
}

static void
damage(struct link *l)
{
	if (l->wire.n == 0)
		return;
	l->wire.p[number() % l->wire.n] ^= (uint8_t)(byte() | 1);
	l->client->poisoned = true;
	/* Nobody knows which of them it hit. */
	l->sure = 0;
}

static void
one_step(struct link *l)
{
	switch (byte() % 12) {
	case 0:
		deliver(l, number());
		break;
	case 1:
		deliver(l, SIZE_MAX);
		break;
	case 2:
	case 3:
		if (l->client->open)
			send_data(l, number());
		break;
	case 4:
		if (l->client->open)
			send_odd(l);
		break;
	case 5:
		send_raw(l);
		break;
	case 6:
		damage(l);
		break;
	case 7:
		if (tls_is_open(l->t) && !l->over)
			server_writes(l, number() * 3);
		break;
	case 8:
		if (!l->over)
			tls_close(l->t);
		l->closed = true;
		break;
	case 9:
		l->mem_short = true;
		mem_set_limit(mem_used() + number() * 8);
		break;
	case 10:
		mem_set_limit(0);
		break;
	case 11:
		tls_give_up(l->t);
		l->client->poisoned = true;
		l->sure = 0;
		break;
	}
}

/* The session of a client of each kind, to be resumed. */
static struct {
	struct tls_server *server;
	bool known[SUITES];
	br_ssl_session_parameters session[SUITES];
} worlds[2];

static bool
same_session(const struct client *c, const br_ssl_session_parameters *s)
{
	br_ssl_session_parameters now_is;

	br_ssl_engine_get_session_parameters(&c->cc.eng, &now_is);
	return now_is.session_id_len == s->session_id_len &&
	    !memcmp(now_is.session_id, s->session_id, s->session_id_len);
}

static void
one_client(uint8_t mode)
{
	static struct client c;
	int suite = mode % SUITES;
	bool cert = mode & 0x10, resume = (mode & 0x60) != 0x60;
	struct tls_server **server = &worlds[cert].server;
	br_ssl_session_parameters *session = &worlds[cert].session[suite];
	struct link l;
	size_t before;

	if (!*server)
		*server = tls_server_new(&pool, &conf[cert]);
	assert(*server);
	before = mem_used();
	link_open(&l, *server);
	l.client = &c;
	client_init(&c, suite, cert && mode != 0x3f, mode & 0x08);
	resume &= worlds[cert].known[suite];
	if (resume)
		br_ssl_engine_set_session_parameters(&c.cc.eng, session);
	assert(br_ssl_client_reset(&c.cc, NULL, resume));
	for (run_client(&l); in.left > 0; settle(&l, 1))
		one_step(&l);
	for (unsigned turns = 0; l.wire.n > 0 && !l.over; turns++) {
		assert(turns < 1000);
		deliver(&l, SIZE_MAX);
		settle(&l, 1);
	}
	assert(l.sure == 0 || l.mem_short || !tls_is_open(l.t));
	if (!c.poisoned && !l.mem_short && mode != 0x3f)
		assert(tls_is_open(l.t) && l.said.n == 0 &&
		    !tls_identity(l.t) == !cert);
	mem_set_limit(0);
	resume = resume && c.open && same_session(&c, session);
	if (tls_is_open(l.t)) {
		br_ssl_engine_get_session_parameters(&c.cc.eng, session);
		worlds[cert].known[suite] = true;
	}
	link_close(&l);
	/* A new session is kept. */
	assert(mem_used() == before || !resume);
	/* Its sessions go with it. */
	if ((mode & 0xe0) == 0xe0) {
		for (int i = 0; i < 2; i++) {
			tls_server_unref(worlds[i].server);
			memset(&worlds[i], 0, sizeof worlds[i]);
		}
		assert(mem_used() == empty);
	}
}

/* ---- a crowd ---- */

static void
hello(struct bytes *b)
{
	static struct client c;
	size_t n;
	uint8_t *p;

	client_init(&c, CHACHA, false, false);
	assert(br_ssl_client_reset(&c.cc, NULL, 0));
	p = br_ssl_engine_sendrec_buf(&c.cc.eng, &n);
	add(b, p, n);
}

static void
crowd_step(struct link *links, struct link *l, struct tls_server *s)
{
	static const uint8_t warning[] = { 21, 3, 3, 0, 2, 1, 90 };

	if (!l->t)
		link_open(l, s);
	switch (byte() % 8) {
	case 0:
		hello(&l->wire);
		break;
	case 1:
		add(&l->wire, warning, sizeof warning);
		break;
	case 2:
		for (size_t n = byte() % 32; n > 0; n--) {
			uint8_t b = byte();

			add(&l->wire, &b, 1);
		}
		break;
	case 3:
		deliver(l, number());
		break;
	case 4:
		shutdown(l->there, SHUT_WR);
		break;
	case 5:
		link_close(l);
		break;
	case 6:
		now += (int64_t)number() * 10;
		break;
	case 7:
		tls_give_up(l->t);
	}
	deliver(l, SIZE_MAX);
	/* The others go on only now and then. */
	if (l->t)
		server_reads(l);
	if (byte() & 1)
		shake_hands(links, CROWD);
	if (byte() & 1)
		settle(links, CROWD);
}

static void
crowd(void)
{
	static struct link links[CROWD];
	struct tls_server *s = tls_server_new(&pool, &conf[0]);

	assert(s);
	while (in.left > 0)
		crowd_step(links, &links[byte() % CROWD], s);
	settle(links, CROWD);
	for (size_t i = 0; i < CROWD; i++)
		if (links[i].t)
			link_close(&links[i]);
	assert(pool.n_lanes == 0 && !pool.starting.first &&
	    !pool.going.first);
	assert(pool.starting.last == &pool.starting.first);
	assert(pool.going.last == &pool.going.first);
	tls_server_unref(s);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t mode;

	if (!room)
		begin();
	in.p = data;
	in.left = size;
	noise_state = 1;
	mode = byte();
	if (mode % 16 == 15 && mode != 0x3f)
		crowd();
	else
		one_client(mode);
	return 0;
}
