#include "tls.h"
#include "hash.h"
#include "log.h"
#include "mem.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* RFC 5246, 6.2: header, and the largest body of an AEAD suite. */
#define RECORD_HEAD 5
#define RECORD_BODY (16384 + 256)
#define FRAGMENT 16384

/* Room for encryption: so many records leave with one write. */
#define OUT_RECORDS 4
#define OUT_SIZE (OUT_RECORDS * (RECORD_HEAD + RECORD_BODY))

/* A lane's buffers: for fragments of 4096 bytes, or whole ones if the chain of
 * certificates is long (mbedTLS before 3.6.3 cannot put messages together that
 * come in pieces). */
#define LANE_IN 4421
#define LANE_OUT 4181
#define CHAIN_SMALL 3500

/* Certificates of a peer. */
#define PEER_CERT_MAX (32 * 1024)
#define PEER_CERTS_MAX 10
#define TITLE_MAX 120
#define IDENTITY_MAX 1024

/* Sessions that may be resumed, per listener, and for how long. */
#define TICKETS_MAX 128
#define TICKET_MS (3600 * 1000)

/* A handshake whose peer was silent for so long gives way if others wait. */
#define STALLED_MS 1000

/* A sign of the time that is later than this version by more is none: s */
#define FAR (20LL * 365 * 86400)

/* After so long in its lane a handshake counts as stalled, whatever comes. */
#define LANE_MS 5000

/* While handshakes have to give way, and this long after, who came last goes
 * first: of a crowd that only wants to fill the queue most came before. */
#define CROWDED_MS 5000

/* How often certificate files are looked at. */
#define LOOK_MS 10000

enum state { GATHERING, STARTING, GOING, WAITING, OPEN, BROKEN };

enum fault { NO_FAULT, SHAKE_FAILED, PEER_ALERT, RENEGOTIATION, ODD_RECORD,
	NO_RECORD, BAD_MAC };

enum content { CHANGE_CIPHER_SPEC = 20, ALERT = 21, HANDSHAKE = 22,
	APPLICATION = 23 };

/* Key material of one direction: what the record contexts are made of. */
struct direction {
	uint8_t key[32];
	uint8_t iv[12];
};

/* Bytes that wait; NULL where there are none. Small blocks are all of one size,
 * so that handshakes leave no odd holes in the heap. */
struct bytes {
	uint32_t at, len, cap;          /* those from at on wait */
	uint8_t p[];
};

#define BYTES_MIN 960

struct tls {
	struct tls_pool *pool;
	struct shake *shake;    /* until OPEN or BROKEN, or the user name in
	                         * it is taken */
	uint64_t in_seq, out_seq;       /* of the next record */
	struct direction in, out;
	struct bytes *raw;      /* input: part of a record */
	struct bytes *rest;     /* output: ciphertext */
	uint16_t suite;
	uint16_t fragment;      /* largest plaintext of a record we send */
	uint8_t state;          /* enum state */
	uint8_t fault;          /* of the peer's; enum fault */
	bool ended;             /* close_notify came */
	bool shut;              /* ours went */
};

/* A session that may be resumed, and whose it is: the certificate is not sent
 * again then. */
struct ticket {
	br_ssl_session_parameters params;
	int64_t until_ms;
	char *identity;
	char title[TITLE_MAX];
};

struct suite {
	uint16_t id;
	bool aes, sha384;
	uint8_t key_len, iv_len;
	const char *name;       /* OpenSSL's */
};

struct stamp {
	dev_t dev;
	ino_t ino;
	struct timespec changed;
	off_t size;
};

enum { FILES = 5 };

struct tls_server {
	unsigned refs;
	struct tls_pool *pool;
	const struct config_listener *conf;
	struct certs chain;
	struct cert leaf;               /* a view into chain */
	struct cert_key key;
	unsigned issuer_type;           /* of the key that signed the leaf */
	struct anchors anchors;
	struct crls crls;
	uint16_t suites[8];
	size_t n_suites;
	bool long_chain;
	struct ticket *tickets[TICKETS_MAX];
	unsigned next_ticket;
	unsigned reminders;             /* of its expiry that were given */
	struct stamp stamps[FILES];
	int64_t looked_ms;
};

/* The X.509 engine that BearSSL calls: its own one, plus what OpenSSL would
 * refuse, plus what the log wants to know. */
struct verifier {
	const br_x509_class *vtable;    /* first */
	br_x509_minimal_context min;
	struct tls_server *server;
	int64_t now;                    /* s since 1970 */
	bool clock_wrong;
	struct bytes *der;              /* the certificate at hand */
	uint32_t len;
	unsigned n;
	bool anchored;                  /* its issuer was among the anchors */
	bool outlived;                  /* and has expired */
	bool unread;                    /* one was not even looked at */
	unsigned err;                   /* BearSSL's, 0: trusted */
	uint8_t alert;                  /* of our own verdict, 0: none */
	int64_t not_after;              /* the leaf's */
	char title[TITLE_MAX];          /* the leaf's */
	char issuer[TITLE_MAX];         /* of the last one */
	char current[TITLE_MAX];        /* the one at hand */
	char blamed[TITLE_MAX];         /* where BearSSL gave up */
	char identity[IDENTITY_MAX];
	char why[400];                  /* our own verdict in words */
};

struct cache {
	const br_ssl_session_cache_class *vtable;       /* first */
	struct shake *shake;
};

/* A handshake's engine and buffers. */
struct lane {
	br_ssl_server_context sc;
	struct verifier v;
	struct cache cache;
	int64_t since_ms;
	int64_t heard_ms;               /* the peer's last input, if early */
	bool resumed;
	char identity[IDENTITY_MAX];
	char title[TITLE_MAX];
	uint32_t in_size, out_size;
	uint8_t buf[];
};

struct shake {
	struct tls *tls;
	struct tls_server *server;
	struct lane *lane;
	void *owner;
	struct shake *next, **prev;     /* while STARTING or GOING */
	char *identity;                 /* at last: the peer's user name */
	bool gives_way;
};

static const struct suite suites[] = {
	{ BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true, false, 16, 4,
	    "ECDHE-ECDSA-AES128-GCM-SHA256" },
	{ BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true, false, 16, 4,
	    "ECDHE-RSA-AES128-GCM-SHA256" },
	{ BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true, true, 32, 4,
	    "ECDHE-ECDSA-AES256-GCM-SHA384" },
	{ BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, true, true, 32, 4,
	    "ECDHE-RSA-AES256-GCM-SHA384" },
	{ BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, false, false, 32,
	    12, "ECDHE-ECDSA-CHACHA20-POLY1305" },
	{ BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, false, false, 32,
	    12, "ECDHE-RSA-CHACHA20-POLY1305" },
};

#define N_SUITES (sizeof suites / sizeof *suites)

static const struct suite *
find_suite(uint16_t id)
{
	for (size_t i = 0; i < N_SUITES; i++)
		if (suites[i].id == id)
			return &suites[i];
	return NULL;
}

/* ---- bytes ---- */

/* Room for n bytes. NULL: no memory. */
static struct bytes *
bytes_new(size_t n)
{
	size_t cap = n < BYTES_MIN ? BYTES_MIN : n;
	struct bytes *b = mem_alloc_passing(sizeof *b + cap);

	if (b)
		*b = (struct bytes){ .cap = (uint32_t)cap };
	return b;
}

static void
bytes_free(struct bytes **b)
{
	if (*b)
		mem_free(*b, sizeof **b + (*b)->cap);
	*b = NULL;
}

static size_t
bytes_left(const struct bytes *b)
{
	return b ? b->len - b->at : 0;
}

/* ---- the pool ---- */

void
tls_pool_init(struct tls_pool *p, unsigned lanes_max, int keylog)
{
	const br_block_ctr_class *ni = br_aes_x86ni_ctr_get_vtable();
	br_ghash pclmul = br_ghash_pclmul_get();

	*p = (struct tls_pool){ .lanes_max = lanes_max, .keylog = keylog,
	    .clock_floor = MIDGE_TIME, .aes_first = ni && pclmul };
	p->starting.last = &p->starting.first;
	p->going.last = &p->going.first;
	p->aes = ni ? ni : sizeof(void *) == 8 ? &br_aes_ct64_ctr_vtable :
	    &br_aes_ct_ctr_vtable;
	p->ghash = pclmul ? pclmul : sizeof(void *) == 8 ? &br_ghash_ctmul64 :
	    &br_ghash_ctmul;
	p->chacha = br_chacha20_sse2_get();
	if (!p->chacha)
		p->chacha = &br_chacha20_ct_run;
	p->poly = br_poly1305_ctmulq_get();
	if (!p->poly)
		p->poly = &br_poly1305_ctmul_run;
}

void
tls_pool_fini(struct tls_pool *p)
{
	mem_free(p->out, p->out ? OUT_SIZE : 0);
	mem_free(p->lanes, p->lanes ? p->lanes_max * sizeof *p->lanes : 0);
	if (p->keylog >= 0)
		close(p->keylog);
}

int
tls_keylog_open(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW |
	    O_NONBLOCK | O_CLOEXEC, 0600);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    fchmod(fd, 0600) < 0) {
		log_error("Error: Unable to open %s for TLS keys: %s.", path,
		    fd < 0 ? errno == ELOOP ? "it is a symbolic link" :
		    strerror(errno) : "it is not a file of ours");
		if (fd >= 0)
			close(fd);
		return -1;
	}
	log_notice("TLS KEYS ARE WRITTEN TO %s: whoever can read that file "
	    "can read all TLS traffic of this broker. For Wireshark lessons "
	    "only.", path);
	return fd;
}

int64_t
tls_clock(struct tls_pool *p, bool *wrong)
{
	int64_t now = (int64_t)time(NULL);
	char is[CERT_DATE], floor[CERT_DATE];

	*wrong = now < p->clock_floor;
	if (!*wrong) {
		p->clock_told = false;
		return now;
	}
	if (!p->clock_told)
		log_warning("Warning: The clock looks wrong: it says %s, but "
		    "it is %s or later. Certificates are judged by that date; "
		    "set the clock (date -s, or an NTP client).",
		    cert_date(now, is), cert_date(p->clock_floor, floor));
	p->clock_told = true;
	return p->clock_floor;
}

/* Whether the kernel has random bytes to give; early at boot it may not, and
 * waiting for them would hold up the plain listeners. */
static bool
seeded(struct tls_pool *p)
{
	uint8_t b;

	/* Kernels before 3.17 have no such call. */
	if (!p->seeded && (getrandom(&b, 1, GRND_NONBLOCK) == 1 ||
	    errno == ENOSYS))
		p->seeded = true;
	return p->seeded;
}

/* false: there is none to be had, and nothing may be encrypted. */
static bool
random_bytes(uint8_t *p, size_t n)
{
	ssize_t got = getrandom(p, n, GRND_NONBLOCK);
	int fd;

	if (got < 0 && errno == ENOSYS &&
	    (fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC)) >= 0) {
		got = read(fd, p, n);
		close(fd);
	}
	return got == (ssize_t)n;
}

/* ---- a listener's files ---- */

static const char *
file_of(const struct config_listener *conf, int i)
{
	const char *const files[FILES] = { conf->certfile, conf->keyfile,
	    conf->cafile, conf->capath, conf->crlfile };

	return files[i];
}

static struct stamp
stamp(const char *path)
{
	struct stat st;

	if (!path || stat(path, &st) < 0)
		return (struct stamp){ 0 };
	return (struct stamp){ st.st_dev, st.st_ino, st.st_mtim, st.st_size };
}

static bool
same_stamp(const struct stamp *a, const struct stamp *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	    a->changed.tv_sec == b->changed.tv_sec &&
	    a->changed.tv_nsec == b->changed.tv_nsec;
}

static void
look_at_files(struct tls_server *s)
{
	for (int i = 0; i < FILES; i++)
		s->stamps[i] = stamp(file_of(s->conf, i));
}

/* With a clock that is certainly wrong, other signs of what time it is at
 * least: when our files were written, and when our certificate was made. */
static void
raise_floor(struct tls_server *s)
{
	int64_t *floor = &s->pool->clock_floor, t = s->leaf.not_before;

	if (time(NULL) >= MIDGE_TIME)
		return;
	for (int i = 0; i <= FILES; i++) {
		if (t > *floor && t < MIDGE_TIME + FAR)
			*floor = t;
		t = i < FILES ? s->stamps[i].changed.tv_sec : 0;
	}
}

bool
tls_server_changed(struct tls_server *s, int64_t now_ms)
{
	bool changed = false;

	if (now_ms - s->looked_ms < LOOK_MS)
		return false;
	s->looked_ms = now_ms;
	for (int i = 0; i < FILES; i++) {
		struct stamp new = stamp(file_of(s->conf, i));

		if (new.ino == 0)       /* we may not look, or it is gone */
			continue;
		changed |= !same_stamp(&new, &s->stamps[i]);
		s->stamps[i] = new;
	}
	return changed;
}

const struct cert *
tls_server_cert(const struct tls_server *s)
{
	return &s->leaf;
}

static bool
load_authorities(struct tls_server *s)
{
	const struct config_listener *k = s->conf;
	struct certs cs = { 0 };
	const char *why;

	if (k->cafile && !certs_read(&cs, k->cafile, &why)) {
		log_error("Error: Unable to load CA certificates. Check cafile "
		    "\"%s\": %s.", k->cafile, why);
		goto fail;
	}
	if (k->capath && !certs_read_dir(&cs, k->capath, &why)) {
		log_error("Error: Unable to load CA certificates. Check capath "
		    "\"%s\": %s.", k->capath, why);
		goto fail;
	}
	if (!anchors_init(&s->anchors, &cs, &why)) {
		log_error("Error: Unable to load CA certificates of %s: %s.",
		    k->cafile ? k->cafile : k->capath, why);
		return false;
	}
	if (k->crlfile && !crls_read(&s->crls, k->crlfile, &s->anchors,
	    &why)) {
		log_error("Error: Unable to load certificate revocation file "
		    "\"%s\". Check crlfile: %s.", k->crlfile, why);
		return false;
	}
	return true;
fail:
	certs_free(&cs);
	return false;
}

/* A leaf alone is completed by its issuers, the root left out, as brokers with
 * OpenSSL do. false: no memory. */
static bool
complete_chain(struct tls_server *s)
{
	struct cert last = s->leaf;

	while (s->chain.n < PEER_CERTS_MAX) {
		const struct cert *up = anchors_find(&s->anchors, last.issuer,
		    time(NULL));
		const br_x509_certificate *c;

		if (!up || der_eq(up->issuer, up->subject) ||
		    der_eq(last.issuer, last.subject))
			break;
		c = &s->anchors.certs.der[up - s->anchors.info];
		if (!certs_add(&s->chain, c->data, c->data_len))
			return false;
		last = *up;
	}
	return true;
}

static bool
load_certificate(struct tls_server *s)
{
	const struct config_listener *k = s->conf;
	br_x509_decoder_context dec;
	const char *why;
	size_t total = 0;

	if (!certs_read(&s->chain, k->certfile, &why)) {
		log_error("Error: Unable to load server certificate \"%s\". "
		    "Check certfile: %s.", k->certfile, why);
		return false;
	}
	if (!cert_read_key(&s->key, k->keyfile, &why)) {
		log_error("Error: Unable to load server key file \"%s\". Check "
		    "keyfile: %s.", k->keyfile, why);
		return false;
	}
	if (!cert_key_fits(&s->key, &s->chain.der[0], &why)) {
		log_error("Error: Server key \"%s\" and certificate \"%s\" do "
		    "not go together: %s.", k->keyfile, k->certfile, why);
		return false;
	}
	br_x509_decoder_init(&dec, NULL, NULL);
	br_x509_decoder_push(&dec, s->chain.der[0].data,
	    s->chain.der[0].data_len);
	s->issuer_type = (unsigned)br_x509_decoder_get_signer_key_type(&dec);
	cert_parse((struct der){ s->chain.der[0].data,
	    s->chain.der[0].data_len }, &s->leaf);
	if (s->chain.n == 1 && !complete_chain(s)) {
		log_error("Error: Out of memory for TLS.");
		return false;
	}
	for (size_t i = 0; i < s->chain.n; i++)
		total += s->chain.der[i].data_len + 3;
	s->long_chain = total > CHAIN_SMALL;
	return true;
}

int
tls_server_days(const struct tls_server *s)
{
	bool wrong;
	int64_t left = s->leaf.not_after - tls_clock(s->pool, &wrong);

	return left < 0 ? -1 : left > INT_MAX ? INT_MAX : (int)(left / 86400);
}

void
tls_server_remind(struct tls_server *s)
{
	static const int days[] = { 30, 7, 1, 0 };
	int left = tls_server_days(s);
	unsigned due = 0;
	char day[CERT_DATE];

	while (due < sizeof days / sizeof *days && left < days[due])
		due++;
	if (due <= s->reminders)
		return;
	s->reminders = due;
	cert_date(s->leaf.not_after, day);
	if (left < 0)
		log_warning("Warning: The certificate %s has expired on %s: "
		    "clients will refuse it. Make a new one and send SIGHUP.",
		    s->conf->certfile, day);
	else
		log_warning("Warning: The certificate %s expires in %d days, "
		    "on %s. Make a new one in time and send SIGHUP.",
		    s->conf->certfile, left, day);
}

static void
judge_certificate(struct tls_server *s)
{
	const struct config_listener *k = s->conf;
	const struct cert *c = &s->leaf, *ca;
	bool wrong;
	int64_t now = tls_clock(s->pool, &wrong);
	char day[CERT_DATE];

	tls_server_remind(s);
	if (now < c->not_before)
		log_warning("Warning: The certificate %s is valid from %s on "
		    "only: clients will refuse it until then, or the clock "
		    "of this machine is wrong.", k->certfile,
		    cert_date(c->not_before, day));
	ca = anchors_find(&s->anchors, c->subject, now);
	if (ca && !der_eq(ca->serial, c->serial))
		log_warning("Warning: The certificate %s has the same subject "
		    "as its CA: OpenSSL takes it for self-signed and refuses "
		    "it. Give the broker's certificate another Common Name.",
		    k->certfile);
	if (!c->for_servers)
		log_warning("Warning: The certificate %s is not meant for "
		    "servers (extendedKeyUsage): clients will refuse it.",
		    k->certfile);
}

static void
judge_authorities(struct tls_server *s)
{
	bool wrong;
	int64_t now = tls_clock(s->pool, &wrong);
	char title[TITLE_MAX], day[CERT_DATE];

	for (size_t i = 0; i < s->anchors.n; i++) {
		const struct cert *c = &s->anchors.info[i];

		cert_title(c->subject, title, sizeof title);
		if (!(s->anchors.ta[i].flags & BR_X509_TA_CA) &&
		    s->conf->require_certificate)
			log_warning("Warning: The certificate \"%s\" in cafile "
			    "or capath is not that of a CA (no "
			    "basicConstraints CA:TRUE): it lets in that very "
			    "certificate only.", title);
		if (now > c->not_after && s->conf->require_certificate)
			log_warning("Warning: The CA certificate \"%s\" has "
			    "expired on %s: certificates that it signed are "
			    "refused.", title, cert_date(c->not_after, day));
	}
	for (size_t i = 0; i < s->crls.n; i++) {
		const struct crl *c = &s->crls.list[i];

		cert_title(c->issuer, title, sizeof title);
		if (c->next_update && now > c->next_update)
			log_warning("Warning: The revocation list of \"%s\" was "
			    "to be renewed by %s: until it is, its clients "
			    "are refused ('openssl ca -gencrl', then SIGHUP).",
			    title, cert_date(c->next_update, day));
	}
}

/* ---- names ---- */

static void
add_name(void *arg, bool ip, struct der value)
{
	char (*out)[200] = arg, text[INET6_ADDRSTRLEN] = "";
	size_t at = strlen(*out);

	if (ip && (value.len == 4 || value.len == 16))
		inet_ntop(value.len == 4 ? AF_INET : AF_INET6, value.p, text,
		    sizeof text);
	snprintf(*out + at, sizeof *out - at, "%s%.*s", at ? ", " : "",
	    ip ? (int)strlen(text) : (int)value.len,
	    ip ? text : (const char *)value.p);
}

/* The names that clients may connect to. */
static void
own_names(const struct tls_server *s, char (*out)[200])
{
	(*out)[0] = 0;
	cert_each_alt_name(&s->leaf, add_name, out);
	if (!**out)
		cert_title(s->leaf.subject, *out, sizeof *out);
}

struct wanted {
	const char *name;               /* NULL: an address */
	const uint8_t *ip;
	size_t ip_len;
	bool found;
};

/* RFC 6125: a name, or one with * for its first label. */
static bool
name_fits(struct der pattern, const char *name)
{
	const char *dot = strchr(name, '.');

	if (pattern.len == strlen(name) &&
	    !strncasecmp((const char *)pattern.p, name, pattern.len))
		return true;
	return dot && pattern.len > 2 && !memcmp(pattern.p, "*.", 2) &&
	    pattern.len - 1 == strlen(dot) &&
	    !strncasecmp((const char *)pattern.p + 1, dot, pattern.len - 1);
}

static void
look_for(void *arg, bool ip, struct der value)
{
	struct wanted *w = arg;

	w->found |= w->name ? !ip && name_fits(value, w->name) :
	    ip && value.len == w->ip_len && !memcmp(value.p, w->ip, w->ip_len);
}

static bool
has_name(const struct cert *c, struct wanted w)
{
	char cn[200];

	cert_each_alt_name(c, look_for, &w);
	if (!w.found && w.name && c->alt_names.len == 0 &&
	    cert_common_name(c->subject, cn, sizeof cn))
		w.found = name_fits((struct der){ (uint8_t *)cn, strlen(cn) },
		    w.name);
	return w.found;
}

/* Names and addresses of this machine that are not in the certificate. */
static void
own_names_missing(const struct cert *c, char *out, size_t size)
{
	char host[256] = "", text[INET6_ADDRSTRLEN];
	struct ifaddrs *all = NULL;
	size_t at = 0;

	out[0] = 0;
	gethostname(host, sizeof host - 1);
	if (host[0] && !has_name(c, (struct wanted){ .name = host }))
		at += (size_t)snprintf(out, size, "%s", host);
	if (getifaddrs(&all) < 0)
		return;
	for (struct ifaddrs *a = all; a && at < size; a = a->ifa_next) {
		const struct sockaddr_in *v4 = (const void *)a->ifa_addr;
		struct wanted w = { .ip_len = 4 };

		if (!v4 || v4->sin_family != AF_INET ||
		    (a->ifa_flags & IFF_LOOPBACK))
			continue;
		w.ip = (const uint8_t *)&v4->sin_addr;
		if (!has_name(c, w))
			at += (size_t)snprintf(out + at, size - at, "%s%s",
			    at ? ", " : "", inet_ntop(AF_INET, w.ip, text,
			    sizeof text));
	}
	freeifaddrs(all);
}

void
tls_server_explain(const struct tls_server *s)
{
	char names[200], missing[300], from[CERT_DATE], to[CERT_DATE];
	char issuer[TITLE_MAX];
	const struct cert *c = &s->leaf;

	own_names(s, &names);
	cert_title(c->issuer, issuer, sizeof issuer);
	log_notice("Port %d: the certificate %s is for %s, issued by \"%s\", "
	    "valid from %s to %s; %zu certificate%s sent.", s->conf->port,
	    s->conf->certfile, names, issuer, cert_date(c->not_before, from),
	    cert_date(c->not_after, to), s->chain.n,
	    s->chain.n > 1 ? "s are" : " is");
	own_names_missing(c, missing, sizeof missing);
	if (missing[0])
		log_warning("Warning: The certificate %s does not have %s: "
		    "clients that connect to this machine by these refuse it. "
		    "cross/make-certs makes one with all names that you give.",
		    s->conf->certfile, missing);
	if (c->alt_names.len == 0)
		log_notice("The certificate %s has no subjectAltName%s: some "
		    "clients insist on one (browsers, newer libraries); "
		    "mosquitto_sub takes the Common Name.", s->conf->certfile,
		    c->v1 ? " (it is of version 1)" : "");
}

static bool
add_suite(struct tls_server *s, const char *name, size_t len)
{
	static const char *const groups[] = { "DEFAULT", "HIGH", "ALL",
	    "SECURE128", "SECURE256", "PROFILE=SYSTEM" };
	bool found = false, all = false;

	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
		all |= strlen(groups[i]) == len &&
		    !strncmp(groups[i], name, len);
	for (size_t i = 0; i < N_SUITES; i++) {
		bool there = false;

		if (!all && (strlen(suites[i].name) != len ||
		    strncmp(suites[i].name, name, len)))
			continue;
		found = true;
		for (size_t j = 0; j < s->n_suites; j++)
			there |= s->suites[j] == suites[i].id;
		if (!there)
			s->suites[s->n_suites++] = suites[i].id;
	}
	return found;
}

/* Six suites with forward secrecy; AES first only where the processor has
 * instructions for it: ChaCha20 is several times cheaper on every Pi. */
static void
default_suites(struct tls_server *s)
{
	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < N_SUITES; i++)
			if (suites[i].aes == (s->pool->aes_first == !round))
				s->suites[s->n_suites++] = suites[i].id;
}

static bool
load_suites(struct tls_server *s)
{
	const char *p = s->conf->ciphers;
	size_t len;

	if (!p) {
		default_suites(s);
		return true;
	}
	for (; *p; p += len + (p[len] != 0)) {
		len = strcspn(p, ":, ");
		if (len && !add_suite(s, p, len))
			log_warning("Warning: ciphers: '%.*s' is not known to "
			    "midge and left out.", (int)len, p);
	}
	if (s->n_suites > 0)
		return true;
	log_error("Error: ciphers: none of '%s' is known to midge. It has:",
	    s->conf->ciphers);
	for (size_t i = 0; i < N_SUITES; i++)
		log_error("  %s", suites[i].name);
	return false;
}

/* Of the suites that are left, some must go with the key. */
static bool
suites_fit(const struct tls_server *s)
{
	const char *kind = s->key.type == BR_KEYTYPE_EC ? "ECDHE-ECDSA-" :
	    "ECDHE-RSA-";

	for (size_t i = 0; i < s->n_suites; i++)
		if (!strncmp(find_suite(s->suites[i])->name, kind,
		    strlen(kind)))
			return true;
	log_error("Error: ciphers: none of '%s' goes with the key %s; names "
	    "that begin with %s do.", s->conf->ciphers, s->conf->keyfile,
	    kind);
	return false;
}

struct tls_server *
tls_server_new(struct tls_pool *p, const struct config_listener *conf)
{
	struct tls_server *s = calloc(1, sizeof *s);

	if (!s) {
		log_error("Error: Out of memory for TLS.");
		return NULL;
	}
	*s = (struct tls_server){ .refs = 1, .pool = p, .conf = conf };
	if (!p->out)
		p->out = mem_alloc(OUT_SIZE);
	if (!p->lanes)
		p->lanes = mem_zalloc(p->lanes_max * sizeof *p->lanes);
	if (!p->out || !p->lanes) {
		log_error("Error: Out of memory for TLS (memory_limit).");
		tls_server_unref(s);
		return NULL;
	}
	look_at_files(s);
	if (!load_suites(s) || !load_authorities(s) || !load_certificate(s) ||
	    !suites_fit(s)) {
		tls_server_unref(s);
		return NULL;
	}
	raise_floor(s);
	judge_certificate(s);
	judge_authorities(s);
	return s;
}

static void
clear_ticket(struct ticket *k)
{
	if (k->identity)
		mem_free(k->identity, strlen(k->identity) + 1);
	explicit_bzero(k, sizeof *k);
}

void
tls_server_unref(struct tls_server *s)
{
	if (!s || --s->refs > 0)
		return;
	for (int i = 0; i < TICKETS_MAX && s->tickets[i]; i++) {
		clear_ticket(s->tickets[i]);
		mem_free(s->tickets[i], sizeof *s->tickets[i]);
	}
	certs_free(&s->chain);
	cert_free_key(&s->key);
	crls_free(&s->crls);
	anchors_free(&s->anchors);
	free(s);
}

/* ---- resumption ---- */

static struct lane *
lane_of_cache(const br_ssl_session_cache_class **ctx)
{
	return ((struct cache *)(void *)ctx)->shake->lane;
}

static char *
copy_identity(const char *s)
{
	size_t n = strlen(s) + 1;
	char *p = mem_alloc(n);

	if (p)
		memcpy(p, s, n);
	return p;
}

/* A full handshake has succeeded, certificates included. */
static void
save_session(const br_ssl_session_cache_class **ctx,
    br_ssl_server_context *sc, const br_ssl_session_parameters *params)
{
	struct lane *l = lane_of_cache(ctx);
	struct tls_server *s = ((struct cache *)(void *)ctx)->shake->server;
	struct ticket **slot = &s->tickets[s->next_ticket], *k;

	(void)sc;
	if (!*slot)
		*slot = mem_zalloc(sizeof **slot);
	k = *slot;
	if (!k)
		return;
	clear_ticket(k);
	k->params = *params;
	k->until_ms = l->heard_ms + TICKET_MS;
	if (s->conf->require_certificate && l->v.not_after - l->v.now <
	    TICKET_MS / 1000)
		k->until_ms = l->heard_ms;
	memcpy(k->title, l->v.title, sizeof k->title);
	if (l->v.identity[0] && !(k->identity = copy_identity(
	    l->v.identity))) {
		clear_ticket(k);
		return;
	}
	s->next_ticket = (s->next_ticket + 1) % TICKETS_MAX;
}

static int
load_session(const br_ssl_session_cache_class **ctx,
    br_ssl_server_context *sc, br_ssl_session_parameters *params)
{
	struct lane *l = lane_of_cache(ctx);
	struct tls_server *s = ((struct cache *)(void *)ctx)->shake->server;

	(void)sc;
	for (int i = 0; i < TICKETS_MAX; i++) {
		struct ticket *k = s->tickets[i];

		if (!k || k->params.session_id_len !=
		    params->session_id_len || memcmp(k->params.session_id,
		    params->session_id, params->session_id_len))
			continue;
		if (k->until_ms <= l->heard_ms)
			return 0;
		*params = k->params;
		memcpy(l->title, k->title, sizeof l->title);
		if (k->identity)
			memcpy(l->identity, k->identity,
			    strlen(k->identity) + 1);
		l->resumed = true;
		return 1;
	}
	return 0;
}

static const br_ssl_session_cache_class cache_class = {
	sizeof(struct cache), save_session, load_session,
};

/* ---- the peer's certificates ---- */

static struct verifier *
verifier_of(const br_x509_class **ctx)
{
	return (struct verifier *)(void *)ctx;
}

/* Our own verdict: the first one counts. */
static void refuse(struct verifier *v, uint8_t alert, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void
refuse(struct verifier *v, uint8_t alert, const char *fmt, ...)
{
	va_list ap;

	if (v->alert)
		return;
	v->alert = alert;
	va_start(ap, fmt);
	vsnprintf(v->why, sizeof v->why, fmt, ap);
	va_end(ap);
}

static void
start_chain(const br_x509_class **ctx, const char *server_name)
{
	struct verifier *v = verifier_of(ctx);

	br_x509_minimal_vtable.start_chain(&v->min.vtable, server_name);
}

static void
start_cert(const br_x509_class **ctx, uint32_t length)
{
	struct verifier *v = verifier_of(ctx);

	v->len = length;
	v->unread = true;
	if (v->n++ >= PEER_CERTS_MAX || length > PEER_CERT_MAX)
		refuse(v, BR_ALERT_BAD_CERTIFICATE,
		    "it sent more than %d certificates or one of more than "
		    "%d bytes", PEER_CERTS_MAX, PEER_CERT_MAX);
	else if (!(v->der = bytes_new(length)))
		refuse(v, BR_ALERT_INTERNAL_ERROR, "there is no memory left");
}

static void
append(const br_x509_class **ctx, const unsigned char *buf, size_t len)
{
	struct verifier *v = verifier_of(ctx);

	if (v->der && len <= v->len - v->der->len) {
		memcpy(v->der->p + v->der->len, buf, len);
		v->der->len += (uint32_t)len;
	}
}

static void
check_dates(struct verifier *v, const struct cert *c, const char *title)
{
	char day[CERT_DATE];

	if (v->server->conf->disable_client_cert_date_checks)
		return;
	if (v->now > c->not_after)
		refuse(v, BR_ALERT_CERTIFICATE_EXPIRED, "the certificate \"%s\" "
		    "has expired on %s; it must be made anew", title,
		    cert_date(c->not_after, day));
	/* With a wrong clock nobody knows whether a beginning has passed, and
	 * all new certificates would be locked out. */
	if (v->now < c->not_before && !v->clock_wrong)
		refuse(v, BR_ALERT_BAD_CERTIFICATE, "the certificate \"%s\" is "
		    "valid from %s on only, or the clock of this machine is "
		    "late", title, cert_date(c->not_before, day));
}

static void
check_anchor(struct verifier *v, const struct cert *c)
{
	const struct cert *a = anchors_find(&v->server->anchors, c->issuer,
	    v->now);
	char title[TITLE_MAX];

	if (v->anchored || !a)
		return;
	v->anchored = true;
	v->outlived = v->now > a->not_after;
	cert_title(a->subject, title, sizeof title);
	check_dates(v, a, title);
}

static void
check_revocation(struct verifier *v, const struct cert *c, const char *title)
{
	const struct crl *list = crls_find(&v->server->crls, c->issuer);
	char issuer[TITLE_MAX], day[CERT_DATE];

	if (!v->server->conf->crlfile)
		return;
	cert_title(c->issuer, issuer, sizeof issuer);
	if (!list && v->n == 1)
		refuse(v, BR_ALERT_CERTIFICATE_UNKNOWN, "crlfile has no list "
		    "of \"%s\", which issued the certificate \"%s\"; add it",
		    issuer, title);
	if (!list)
		return;
	if (crls_revoke(&v->server->crls, c->issuer, c->serial))
		refuse(v, BR_ALERT_CERTIFICATE_REVOKED, "the certificate "
		    "\"%s\" was revoked by \"%s\"", title, issuer);
	if (v->now < list->this_update && !v->clock_wrong)
		refuse(v, BR_ALERT_CERTIFICATE_UNKNOWN, "the revocation list "
		    "of \"%s\" is valid from %s on only, or the clock of "
		    "this machine is late", issuer,
		    cert_date(list->this_update, day));
	if (list->next_update && v->now > list->next_update)
		refuse(v, BR_ALERT_CERTIFICATE_UNKNOWN, "the revocation list "
		    "of \"%s\" was to be renewed by %s ('openssl ca -gencrl', "
		    "then SIGHUP)", issuer,
		    cert_date(list->next_update, day));
}

static void
take_identity(struct verifier *v, const struct cert *c)
{
	const struct config_listener *k = v->server->conf;

	if (k->use_identity_as_username) {
		if (!cert_common_name(c->subject, v->identity,
		    sizeof v->identity))
			v->identity[0] = 0;
	} else if (k->use_subject_as_username &&
	    !cert_name_text(c->subject, v->identity, sizeof v->identity)) {
		v->identity[0] = 0;
	}
}

/* Checks what BearSSL does not. */
static void
judge(struct verifier *v)
{
	char *title = v->current;
	struct cert c;

	if (!cert_parse((struct der){ v->der->p, v->der->len }, &c)) {
		refuse(v, BR_ALERT_BAD_CERTIFICATE, "its certificate is "
		    "damaged");
		return;
	}
	cert_title(c.subject, title, TITLE_MAX);
	cert_title(c.issuer, v->issuer, sizeof v->issuer);
	if (v->n == 1) {
		memcpy(v->title, title, TITLE_MAX);
		v->not_after = c.not_after;
		take_identity(v, &c);
		if (!c.for_clients)
			refuse(v, BR_ALERT_UNSUPPORTED_CERTIFICATE,
			    "the certificate \"%s\" is not meant for clients "
			    "(extendedKeyUsage has no clientAuth)", title);
	}
	check_dates(v, &c, title);
	check_anchor(v, &c);
	check_revocation(v, &c, title);
	/* The dates are judged, BearSSL is given one that suits. Its days
	 * begin with the year 0. */
	br_x509_minimal_set_time(&v->min, (uint32_t)(c.not_before / 86400 +
	    719528 - (c.not_before % 86400 < 0)), (uint32_t)(c.not_before %
	    86400 + (c.not_before % 86400 < 0 ? 86400 : 0)));
}

static void
end_cert(const br_x509_class **ctx)
{
	struct verifier *v = verifier_of(ctx);
	const br_x509_class *min = &br_x509_minimal_vtable;

	if (!v->der)
		return;
	v->unread = false;
	judge(v);
	min->start_cert(&v->min.vtable, v->len);
	for (uint32_t at = 0, n; at < v->len; at += n) {
		n = v->len - at < 256 ? v->len - at : 256;
		min->append(&v->min.vtable, v->der->p + at, n);
	}
	min->end_cert(&v->min.vtable);
	if (v->min.err && v->min.err != BR_ERR_X509_OK && !v->blamed[0])
		memcpy(v->blamed, v->current, sizeof v->blamed);
	bytes_free(&v->der);
}

static unsigned
end_chain(const br_x509_class **ctx)
{
	struct verifier *v = verifier_of(ctx);

	v->err = br_x509_minimal_vtable.end_chain(&v->min.vtable);
	if (v->err)
		return v->err;
	return v->alert ? BR_ERR_X509_NOT_TRUSTED : 0;
}

static const br_x509_pkey *
get_pkey(const br_x509_class *const *ctx, unsigned *usages)
{
	const struct verifier *v = (const void *)ctx;

	return br_x509_minimal_vtable.get_pkey(&v->min.vtable, usages);
}

static const br_x509_class verifier_class = {
	sizeof(struct verifier), start_chain, start_cert, append, end_cert,
	end_chain, get_pkey,
};

static void
verifier_init(struct verifier *v, struct tls_server *s)
{
	br_x509_minimal_context *m = &v->min;

	v->vtable = &verifier_class;
	v->server = s;
	v->now = tls_clock(s->pool, &v->clock_wrong);
	/* Of two authorities of one name one may have expired: which of them
	 * has signed is for BearSSL to find out. */
	br_x509_minimal_init(m, &br_sha256_vtable, s->anchors.ta,
	    s->conf->disable_client_cert_date_checks ? s->anchors.n :
	    anchors_unexpired(&s->anchors, v->now));
	br_x509_minimal_set_rsa(m, br_rsa_pkcs1_vrfy_get_default());
	br_x509_minimal_set_ecdsa(m, br_ec_get_default(),
	    br_ecdsa_vrfy_asn1_get_default());
	/* No SHA-1, no RSA below 2048 bits: OpenSSL refuses them too. */
	br_x509_minimal_set_hash(m, br_sha256_ID, &br_sha256_vtable);
	br_x509_minimal_set_hash(m, br_sha384_ID, &br_sha384_vtable);
	br_x509_minimal_set_hash(m, br_sha512_ID, &br_sha512_vtable);
	br_x509_minimal_set_minrsa(m, 256);
}

/* ---- lanes ---- */

/* false: no memory, or no randomness. */
static bool
start_engine(struct lane *l, struct tls_server *s)
{
	br_ssl_server_context *sc = &l->sc;
	br_ssl_engine_context *eng = &sc->eng;
	uint8_t seed[32];
	bool ok;

	br_ssl_server_zero(sc);
	br_ssl_engine_set_versions(eng, BR_TLS12, BR_TLS12);
	br_ssl_engine_set_suites(eng, s->suites, s->n_suites);
	br_ssl_engine_set_default_ec(eng);
	br_ssl_engine_set_hash(eng, br_sha256_ID, &br_sha256_vtable);
	br_ssl_engine_set_hash(eng, br_sha384_ID, &br_sha384_vtable);
	br_ssl_engine_set_hash(eng, br_sha512_ID, &br_sha512_vtable);
	br_ssl_engine_set_prf_sha256(eng, &br_tls12_sha256_prf);
	br_ssl_engine_set_prf_sha384(eng, &br_tls12_sha384_prf);
	br_ssl_engine_set_gcm(eng, &br_sslrec_in_gcm_vtable,
	    &br_sslrec_out_gcm_vtable);
	br_ssl_engine_set_aes_ctr(eng, s->pool->aes);
	br_ssl_engine_set_ghash(eng, s->pool->ghash);
	br_ssl_engine_set_chapol(eng, &br_sslrec_in_chapol_vtable,
	    &br_sslrec_out_chapol_vtable);
	br_ssl_engine_set_chacha20(eng, s->pool->chacha);
	br_ssl_engine_set_poly1305(eng, s->pool->poly);
	br_ssl_engine_set_all_flags(eng,
	    BR_OPT_ENFORCE_SERVER_PREFERENCES | BR_OPT_NO_RENEGOTIATION);
	if (s->key.type == BR_KEYTYPE_RSA)
		br_ssl_server_set_single_rsa(sc, s->chain.der, s->chain.n,
		    s->key.rsa, BR_KEYTYPE_SIGN, 0,
		    br_rsa_pkcs1_sign_get_default());
	else
		br_ssl_server_set_single_ec(sc, s->chain.der, s->chain.n,
		    s->key.ec, BR_KEYTYPE_SIGN, s->issuer_type,
		    br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
	if (s->conf->require_certificate) {
		verifier_init(&l->v, s);
		br_ssl_engine_set_x509(eng, &l->v.vtable);
		br_ssl_engine_set_default_rsavrfy(eng);
		br_ssl_engine_set_default_ecdsa(eng);
		br_ssl_server_set_trust_anchor_names_alt(sc, s->anchors.ta,
		    s->anchors.n);
	}
	l->cache.vtable = &cache_class;
	br_ssl_server_set_cache(sc, &l->cache.vtable);
	br_ssl_engine_set_buffers_bidi(eng, l->buf, l->in_size,
	    l->buf + l->in_size, l->out_size);
	ok = random_bytes(seed, sizeof seed);
	if (ok)
		br_ssl_engine_inject_entropy(eng, seed, sizeof seed);
	explicit_bzero(seed, sizeof seed);
	return ok && br_ssl_server_reset(sc);
}

static bool
take_lane(struct shake *k, int64_t now_ms)
{
	struct tls_pool *p = k->server->pool;
	uint32_t in = k->server->long_chain ? BR_SSL_BUFSIZE_INPUT : LANE_IN;
	uint32_t out = k->server->long_chain ? BR_SSL_BUFSIZE_OUTPUT :
	    LANE_OUT;
	struct lane *l = mem_zalloc(sizeof *l + in + out);

	if (!l)
		return false;
	l->in_size = in;
	l->out_size = out;
	l->since_ms = l->heard_ms = now_ms;
	l->cache.shake = k;
	k->lane = l;
	p->lanes[p->n_lanes++] = k;
	return start_engine(l, k->server);
}

static void
give_lane(struct shake *k)
{
	struct tls_pool *p = k->tls->pool;
	struct lane *l = k->lane;
	size_t size;

	if (!l)
		return;
	for (unsigned i = 0; i < p->n_lanes; i++) {
		if (p->lanes[i] == k) {
			p->lanes[i] = p->lanes[--p->n_lanes];
			break;
		}
	}
	bytes_free(&l->v.der);
	size = sizeof *l + l->in_size + l->out_size;
	explicit_bzero(l, size);
	mem_free(l, size);
	k->lane = NULL;
}

/* ---- whose turn it is ---- */

static void
enqueue(struct shakes *list, struct shake *k)
{
	k->next = NULL;
	k->prev = list->last;
	*list->last = k;
	list->last = &k->next;
}

static void
dequeue(struct tls *t)
{
	struct shake *k = t->shake;
	struct shakes *list = t->state == STARTING ? &t->pool->starting :
	    &t->pool->going;

	if (!k || (t->state != STARTING && t->state != GOING))
		return;
	*k->prev = k->next;
	if (k->next)
		k->next->prev = k->prev;
	else
		list->last = k->prev;
}

static void
enter(struct tls *t, enum state state)
{
	dequeue(t);
	t->state = (uint8_t)state;
	if (state == STARTING)
		enqueue(&t->pool->starting, t->shake);
	else if (state == GOING)
		enqueue(&t->pool->going, t->shake);
}

/* Of those who wait for their peer, the one that does so longest. */
static struct shake *
most_stalled(const struct tls_pool *p)
{
	struct shake *k = NULL;

	for (unsigned i = 0; i < p->n_lanes; i++)
		if (p->lanes[i]->tls->state == WAITING && (!k ||
		    p->lanes[i]->lane->heard_ms < k->lane->heard_ms))
			k = p->lanes[i];
	return k;
}

static struct shake *
newest(const struct shakes *list)
{
	return HASH_OBJECT(list->last, struct shake, next);
}

void *
tls_next(struct tls_pool *p, int64_t now_ms)
{
	struct shake *k;

	if (p->going.first)
		return p->going.first->owner;
	if (!p->starting.first || !seeded(p))
		return NULL;            /* tls_wait_ms asks again */
	if (p->n_lanes < p->lanes_max)
		return now_ms < p->crowded_ms ? newest(&p->starting)->owner :
		    p->starting.first->owner;
	k = most_stalled(p);
	if (!k || now_ms - k->lane->heard_ms < STALLED_MS)
		return NULL;
	k->gives_way = true;
	p->crowded_ms = now_ms + CROWDED_MS;
	return k->owner;
}

int
tls_wait_ms(const struct tls_pool *p, int64_t now_ms)
{
	const struct shake *k;
	int64_t left;

	if (p->going.first)
		return 0;
	if (!p->starting.first)
		return -1;
	if (!p->seeded)
		return 100;
	if (p->n_lanes < p->lanes_max)
		return 0;
	k = most_stalled(p);
	if (!k)
		return -1;
	left = k->lane->heard_ms + STALLED_MS - now_ms;
	return left > 0 ? (int)left : 0;
}

/* ---- life ---- */

struct tls *
tls_new(struct tls_server *s, void *owner)
{
	struct tls *t = mem_zalloc(sizeof *t);
	struct shake *k = mem_zalloc(sizeof *k);

	if (!t || !k) {
		mem_free(t, sizeof *t);
		mem_free(k, sizeof *k);
		return NULL;
	}
	*t = (struct tls){ .pool = s->pool, .shake = k,
	    .fragment = FRAGMENT };
	*k = (struct shake){ .tls = t, .server = s, .owner = owner };
	s->refs++;
	return t;
}

static void
free_shake(struct tls *t)
{
	struct shake *k = t->shake;

	if (k->identity)
		mem_free(k->identity, strlen(k->identity) + 1);
	mem_free(k, sizeof *k);
	t->shake = NULL;
}

/* The handshake is over, one way or the other. */
static void
end_shake(struct tls *t, enum state state)
{
	struct shake *k = t->shake;

	enter(t, state);
	if (!k)
		return;
	give_lane(k);
	tls_server_unref(k->server);
	k->server = NULL;
	if (state != OPEN || !k->identity)
		free_shake(t);
}

void
tls_forget_identity(struct tls *t)
{
	if (t->state == OPEN && t->shake)
		free_shake(t);
}

void
tls_free(struct tls *t)
{
	if (!t)
		return;
	end_shake(t, BROKEN);
	bytes_free(&t->raw);
	bytes_free(&t->rest);
	tls_forget_identity(t);
	explicit_bzero(t, sizeof *t);
	mem_free(t, sizeof *t);
}

void
tls_give_up(struct tls *t)
{
	if (t->state != OPEN)
		end_shake(t, BROKEN);
}

bool
tls_is_open(const struct tls *t)
{
	return t->state == OPEN;
}

const char *
tls_fault(const struct tls *t)
{
	static const char *const words[] = {
		[SHAKE_FAILED] = "handshake failed",
		[PEER_ALERT] = "the client ended it with a TLS alert",
		[RENEGOTIATION] = "renegotiation, again and again",
		[ODD_RECORD] = "a TLS record of a kind that has no place here",
		[NO_RECORD] = "what came is not a TLS record",
		[BAD_MAC] = "a TLS record was damaged on its way",
	};

	return words[t->fault];
}

const char *
tls_identity(const struct tls *t)
{
	return t->shake ? t->shake->identity : NULL;
}

const char *
tls_cipher(const struct tls *t)
{
	const struct suite *s = find_suite(t->suite);

	return s ? s->name : "none";
}

size_t
tls_rest(const struct tls *t)
{
	return bytes_left(t->rest);
}

/* ---- records ---- */

union record {
	br_sslrec_gcm_context gcm;
	br_sslrec_chapol_context chapol;
	const br_sslrec_in_class *in;
	const br_sslrec_out_class *out;
};

static void
load_in(const struct tls *t, const struct suite *s, union record *r)
{
	if (s->aes) {
		br_sslrec_in_gcm_vtable.init(&r->gcm.vtable.in, t->pool->aes,
		    t->in.key, s->key_len, t->pool->ghash, t->in.iv);
		r->gcm.seq = t->in_seq;
	} else {
		br_sslrec_in_chapol_vtable.init(&r->chapol.vtable.in,
		    t->pool->chacha, t->pool->poly, t->in.key, t->in.iv);
		r->chapol.seq = t->in_seq;
	}
}

static void
load_out(const struct tls *t, const struct suite *s, union record *r)
{
	if (s->aes) {
		br_sslrec_out_gcm_vtable.init(&r->gcm.vtable.out,
		    t->pool->aes, t->out.key, s->key_len, t->pool->ghash,
		    t->out.iv);
		r->gcm.seq = t->out_seq;
	} else {
		br_sslrec_out_chapol_vtable.init(&r->chapol.vtable.out,
		    t->pool->chacha, t->pool->poly, t->out.key, t->out.iv);
		r->chapol.seq = t->out_seq;
	}
}

static uint64_t
seq_of(const struct suite *s, const union record *r)
{
	return s->aes ? r->gcm.seq : r->chapol.seq;
}

/* RFC 5246, 6.3: the keys follow from the master secret. They are computed here
 * rather than picked out of the engine's record contexts, which hold them
 * expanded. */
static void
take_keys(struct tls *t, const br_ssl_engine_context *eng)
{
	const struct suite *s = find_suite(eng->session.cipher_suite);
	const br_tls_prf_seed_chunk seeds[] = { { eng->server_random, 32 },
	    { eng->client_random, 32 } };
	uint8_t block[2 * (32 + 12)], *p = block;
	size_t n = 2u * (s->key_len + s->iv_len);

	(s->sha384 ? br_tls12_sha384_prf : br_tls12_sha256_prf)(block, n,
	    eng->session.master_secret, 48, "key expansion", 2, seeds);
	memcpy(t->in.key, p, s->key_len);
	memcpy(t->out.key, p += s->key_len, s->key_len);
	memcpy(t->in.iv, p += s->key_len, s->iv_len);
	memcpy(t->out.iv, p + s->iv_len, s->iv_len);
	t->in_seq = s->aes ? eng->in.gcm.seq : eng->in.chapol.seq;
	t->out_seq = s->aes ? eng->out.gcm.seq : eng->out.chapol.seq;
	explicit_bzero(block, sizeof block);
	t->suite = s->id;
	/* A peer with small buffers said so; the engine heeds that only where
	 * it is below its own size. */
	if (eng->peer_log_max_frag_len)
		t->fragment = (uint16_t)(1u << eng->peer_log_max_frag_len);
}

/* Appends ciphertext that waits to be written. false: no memory. */
static bool
keep_rest(struct tls *t, const uint8_t *p, size_t n)
{
	size_t old = tls_rest(t);
	struct bytes *b = t->rest;

	if (n == 0)
		return true;
	if (!b || b->cap - b->len < n) {
		b = bytes_new(old + n);
		if (!b)
			return false;
		if (t->rest)
			memcpy(b->p, t->rest->p + t->rest->at, old);
		b->len = (uint32_t)old;
		bytes_free(&t->rest);
		t->rest = b;
	}
	memcpy(b->p + b->len, p, n);
	b->len += (uint32_t)n;
	return true;
}

/* Encrypts n bytes that stand at out + 13 or so; see the record classes. */
static size_t
seal(union record *r, uint8_t type, uint8_t *start, size_t n, uint8_t *to)
{
	uint8_t *p = r->out->encrypt(&r->out, type, BR_TLS12, start, &n);

	if (p != to)
		memmove(to, p, n);
	return n;
}

/* One alert: level 1 is a warning, 2 ends the connection. */
static void
put_alert(struct tls *t, uint8_t level, uint8_t what)
{
	uint8_t buf[64] = { ALERT, 3, 3, 0, 2, level, what };
	const struct suite *s = find_suite(t->suite);
	union record r;

	if (t->state != OPEN) {
		keep_rest(t, buf, 7);
		return;
	}
	load_out(t, s, &r);
	buf[20] = level;
	buf[21] = what;
	/* What does not go out has no number. */
	if (keep_rest(t, buf, seal(&r, ALERT, buf + 20, 2, buf)))
		t->out_seq = seq_of(s, &r);
	explicit_bzero(&r, sizeof r);
}

void
tls_close(struct tls *t)
{
	if (t->state == OPEN && !t->shut)
		put_alert(t, 1, BR_ALERT_CLOSE_NOTIFY);
	t->shut = true;
}

/* ---- output ---- */

/* Copies up to n bytes of iov, from *at on. */
static size_t
gather(const struct iovec *iov, int n_iov, size_t *at, uint8_t *to, size_t n)
{
	size_t done = 0, skip = *at;

	for (int i = 0; i < n_iov && done < n; i++) {
		size_t len = iov[i].iov_len;

		if (skip >= len) {
			skip -= len;
			continue;
		}
		len -= skip;
		if (len > n - done)
			len = n - done;
		memcpy(to + done, (uint8_t *)iov[i].iov_base + skip, len);
		done += len;
		skip = 0;
	}
	*at += done;
	return done;
}

/* Encrypts what fits into the shared buffer; bytes there. */
static size_t
seal_all(struct tls *t, const struct iovec *iov, int n_iov, size_t *taken)
{
	const struct suite *s = find_suite(t->suite);
	uint8_t *out = t->pool->out;
	size_t len = 0, n;
	union record r;

	*taken = 0;
	load_out(t, s, &r);
	while (OUT_SIZE - len >= RECORD_HEAD + RECORD_BODY) {
		/* header, explicit IV of AES-GCM */
		uint8_t *start = out + len + RECORD_HEAD + (s->aes ? 8 : 0);

		n = gather(iov, n_iov, taken, start, t->fragment);
		if (n == 0)
			break;
		len += seal(&r, APPLICATION, start, n, out + len);
	}
	t->out_seq = seq_of(s, &r);
	explicit_bzero(&r, sizeof r);
	return len;
}

static bool
write_some(int fd, const uint8_t *p, size_t n, size_t *done)
{
	ssize_t r;

	do
		r = write(fd, p, n);
	while (r < 0 && errno == EINTR);
	*done = r > 0 ? (size_t)r : 0;
	return r >= 0 || errno == EAGAIN || errno == EWOULDBLOCK;
}

static bool
write_rest(struct tls *t, int fd)
{
	size_t n;

	if (!write_some(fd, t->rest->p + t->rest->at, tls_rest(t), &n))
		return false;
	t->rest->at += (uint32_t)n;
	if (tls_rest(t) == 0)
		bytes_free(&t->rest);
	return true;
}

bool
tls_write(struct tls *t, int fd, const struct iovec *iov, int n_iov,
    size_t *taken)
{
	size_t n, done;

	*taken = 0;
	if (t->rest && !write_rest(t, fd))
		return false;
	if (t->rest || n_iov == 0)
		return true;
	if (t->state != OPEN || t->shut) {
		/* There is nobody to tell it any more. */
		for (int i = 0; i < n_iov; i++)
			*taken += iov[i].iov_len;
		return true;
	}
	n = seal_all(t, iov, n_iov, taken);
	if (!write_some(fd, t->pool->out, n, &done))
		return false;
	errno = ENOMEM;
	return keep_rest(t, t->pool->out + done, n - done);
}

/* ---- input ---- */

/* Length of the record at p, header included; 0: not all of it is there.
 * -1: no record of TLS 1.2. */
static int
record_size(const uint8_t *p, size_t n, bool open)
{
	size_t len;

	if (n < RECORD_HEAD)
		return 0;
	len = (size_t)(p[3] << 8 | p[4]);
	if (p[0] < CHANGE_CIPHER_SPEC || p[0] > APPLICATION || p[1] != 3 ||
	    (open && p[2] != 3) || len > RECORD_BODY)
		return -1;
	return n < RECORD_HEAD + len ? 0 : (int)(RECORD_HEAD + len);
}

/* Keeps the n bytes at p, which may be those at the end of what was kept. */
static bool
keep_raw(struct tls *t, const uint8_t *p, size_t n)
{
	struct bytes *b = t->raw;

	if (n == 0) {
		bytes_free(&t->raw);
		return true;
	}
	if (!b || n > b->cap || (b->cap > BYTES_MIN && n < b->cap / 4)) {
		b = bytes_new(n);
		if (!b)
			return false;
		memcpy(b->p, p, n);
		bytes_free(&t->raw);
		t->raw = b;
	} else {
		memmove(b->p, p, n);
	}
	b->len = (uint32_t)n;
	return true;
}

static ssize_t
end(int err)
{
	errno = err;
	return TLS_END;
}

/* A fault of the peer's after the handshake. What came before it still counts,
 * so that the caller gets that first. */
static ssize_t
broken(struct tls *t, uint8_t alert, enum fault fault)
{
	t->fault = (uint8_t)fault;
	if (alert)
		put_alert(t, 2, alert);
	t->shut = true;
	return end(EPROTO);
}

/* What is not application data. TLS_NOTHING: go on. */
static ssize_t
control(struct tls *t, uint8_t type, const uint8_t *p, size_t n)
{
	if (type == ALERT && n == 2 && p[1] == BR_ALERT_CLOSE_NOTIFY) {
		t->ended = true;
		tls_close(t);
		return TLS_NOTHING;
	}
	if (type == ALERT && n == 2 && p[0] == 1)
		return TLS_NOTHING;
	if (type == ALERT && n == 2)
		return broken(t, 0, PEER_ALERT);
	if (type == HANDSHAKE) {
		/* RFC 5246, 7.2.2: the session may go on. */
		put_alert(t, 1, BR_ALERT_NO_RENEGOTIATION);
		return tls_rest(t) > FRAGMENT ? broken(t,
		    BR_ALERT_UNEXPECTED_MESSAGE, RENEGOTIATION) : TLS_NOTHING;
	}
	return broken(t, BR_ALERT_UNEXPECTED_MESSAGE, ODD_RECORD);
}

/* Decrypts the whole records in p, n bytes, and moves the plaintext together
 * at to; *done: bytes of p that are used up. */
static ssize_t
unseal_all(struct tls *t, uint8_t *p, size_t n, uint8_t *to, size_t *done)
{
	const struct suite *s = find_suite(t->suite);
	size_t got = 0, len;
	ssize_t r = TLS_NOTHING;
	union record rec;
	uint8_t *plain;
	int size;

	*done = 0;
	load_in(t, s, &rec);
	while (r == TLS_NOTHING && !t->ended &&
	    (size = record_size(p + *done, n - *done, true)) != 0) {
		uint8_t *head = p + *done;

		if (size < 0) {
			r = broken(t, BR_ALERT_DECODE_ERROR, NO_RECORD);
			break;
		}
		*done += (size_t)size;
		len = (size_t)size - RECORD_HEAD;
		plain = rec.in->check_length(&rec.in, len) ?
		    rec.in->decrypt(&rec.in, head[0], BR_TLS12,
		    head + RECORD_HEAD, &len) : NULL;
		if (!plain || len > FRAGMENT) {
			r = broken(t, BR_ALERT_BAD_RECORD_MAC, BAD_MAC);
		} else if (head[0] == APPLICATION) {
			memmove(to + got, plain, len);
			got += len;
		} else {
			r = control(t, head[0], plain, len);
		}
	}
	t->in_seq = seq_of(s, &rec);
	explicit_bzero(&rec, sizeof rec);
	return got > 0 ? (ssize_t)got : r;
}

/* What was kept and what is new, one behind the other at p. Returns how much is
 * new. */
static ssize_t
read_raw(struct tls *t, int fd, uint8_t *p, size_t n, bool *more)
{
	size_t kept = bytes_left(t->raw);
	ssize_t got;

	if (kept)
		memcpy(p, t->raw->p, kept);
	do
		got = read(fd, p + kept, n - kept);
	while (got < 0 && errno == EINTR);
	*more = got == (ssize_t)(n - kept);
	if (got == 0)
		return end(0);
	if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
		return TLS_END;
	return got < 0 ? TLS_NOTHING : got;
}

static bool
whole_record(const struct tls *t)
{
	return t->raw && record_size(t->raw->p, t->raw->len, false) != 0;
}

bool
tls_wants_input(const struct tls *t)
{
	return t->state != STARTING && t->state != GOING;
}

size_t
tls_keeps(const struct tls *t)
{
	return (t->raw ? t->raw->cap : 0) + (t->rest ? t->rest->cap : 0);
}

/* Collects input for the handshake; its turn comes with a whole record, or
 * with what is none. */
static ssize_t
read_shake(struct tls *t, int fd, uint8_t *p, bool *more)
{
	ssize_t got;

	if (t->state == STARTING || t->state == GOING)
		return TLS_NOTHING;
	got = read_raw(t, fd, p, RECORD_HEAD + RECORD_BODY, more);
	if (got < 0 || t->state == BROKEN)
		return got < 0 ? got : TLS_NOTHING;
	if (!keep_raw(t, p, bytes_left(t->raw) + (size_t)got))
		return end(ENOMEM);
	if (t->raw->p[0] != HANDSHAKE || whole_record(t))
		enter(t, t->shake->lane ? GOING : STARTING);
	return TLS_NOTHING;
}

bool
tls_is_over(const struct tls *t)
{
	return t->state == OPEN && (t->ended || t->fault);
}

/* Tells it. After a fault, what still comes is thrown away. */
static ssize_t
tell_end(struct tls *t)
{
	bytes_free(&t->raw);
	if (!t->fault)
		return end(0);
	t->state = BROKEN;
	return end(EPROTO);
}

ssize_t
tls_read(struct tls *t, int fd, uint8_t *p, size_t n, bool *more)
{
	size_t done, len;
	ssize_t got, plain;

	if (t->state != OPEN)
		return read_shake(t, fd, p, more);
	if (tls_is_over(t))
		return tell_end(t);
	if (whole_record(t)) {
		/* It came with the handshake, perhaps with the end behind. */
		memcpy(p, t->raw->p, t->raw->len);
		*more = true;
		got = 0;
	} else {
		/* Decryption takes long: others want their turn. */
		got = read_raw(t, fd, p, n < TLS_READ_MIN ? n : TLS_READ_MIN,
		    more);
	}
	if (got < 0)
		return got;
	len = bytes_left(t->raw) + (size_t)got;
	plain = unseal_all(t, p, len, p, &done);
	if (tls_is_over(t))
		return plain < 0 ? tell_end(t) : plain;
	/* The plaintext ends before the rest of the input begins. */
	if (!keep_raw(t, p + done, len - done))
		return end(ENOMEM);
	return plain;
}

/* ---- handshakes in words ---- */

static const char *
words(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static const char *
words(const char *fmt, ...)
{
	static char text[700];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return text;
}

/* "certificate "student1"", for the beginning of a sentence */
static const char *
whose(const struct lane *l, char out[TITLE_MAX + 32])
{
	const char *t = l->v.title[0] ? l->v.title : l->title;

	if (*t)
		snprintf(out, TITLE_MAX + 32, ", certificate \"%s\"", t);
	else
		out[0] = 0;
	return out;
}

/* The client sent us a fatal alert. */
static const char *
explain_alert(const struct tls_server *s, unsigned alert)
{
	char names[200], day[CERT_DATE];

	switch (alert) {
	case BR_ALERT_UNKNOWN_CA:
		return words("refused by the client: it does not trust the CA "
		    "of our certificate; give it the CA's file (mosquitto_sub "
		    "--cafile)");
	case BR_ALERT_CERTIFICATE_EXPIRED:
		return words("refused by the client: for it our certificate "
		    "has expired (it is valid until %s); renew it, or set the "
		    "client's clock", cert_date(s->leaf.not_after, day));
	case BR_ALERT_BAD_CERTIFICATE:
	case BR_ALERT_UNSUPPORTED_CERTIFICATE:
	case BR_ALERT_CERTIFICATE_UNKNOWN:
	case BR_ALERT_INTERNAL_ERROR:
		own_names(s, &names);
		return words("refused by the client: it does not accept our "
		    "certificate; either it does not trust the CA (--cafile), "
		    "or it connects to another name than the certificate is "
		    "for (%s)", names);
	case BR_ALERT_PROTOCOL_VERSION:
		return words("refused by the client: it does not speak TLS "
		    "1.2, which is all that midge has");
	default:
		return words("refused by the client with TLS alert %u", alert);
	}
}

static const char *
explain_sent(unsigned alert)
{
	if (alert == BR_ALERT_PROTOCOL_VERSION)
		return "refused by us: the client offers no TLS 1.2, only "
		    "older versions; it needs a newer TLS library";
	if (alert == BR_ALERT_HANDSHAKE_FAILURE)
		return "refused by us: no cipher suite, curve or signature "
		    "in common; midge has TLS 1.2 with ECDHE and AES-GCM or "
		    "ChaCha20 (a client that wants TLS 1.3 only gets this "
		    "too)";
	return words("refused by us with TLS alert %u", alert);
}

/* Whether it is our verdict that counts, not BearSSL's. */
static bool
own_verdict(const struct verifier *v)
{
	return v->alert && (!v->err || v->unread || v->outlived);
}

static const char *
explain_chain(const struct lane *l, unsigned err)
{
	const struct verifier *v = &l->v;
	char who[TITLE_MAX + 32];

	if (own_verdict(v))
		return words("refused by us: %s", v->why);
	whose(l, who);
	switch (err) {
	case BR_ERR_X509_NOT_TRUSTED:
	case BR_ERR_X509_BAD_SIGNATURE: /* the client sent us another CA of
					 * that name */
		return words("refused by us%s: it was issued by \"%s\", which "
		    "cafile and capath do not have (or they have another CA "
		    "of that name); use a certificate of a CA in there, or "
		    "add the CA's certificate", who, v->issuer);
	case BR_ERR_X509_WEAK_PUBLIC_KEY:
		return words("refused by us%s: its RSA key is shorter than "
		    "2048 bits; make a new one", who);
	case BR_ERR_X509_UNSUPPORTED:
		return words("refused by us%s: it is signed with SHA-1, MD5 or "
		    "RSA-PSS; sign it anew with 'openssl x509 -sha256'", who);
	case BR_ERR_X509_NOT_CA:
		return words("refused by us%s: \"%s\" is not allowed to issue "
		    "certificates (basicConstraints)", who, v->blamed);
	case BR_ERR_X509_CRITICAL_EXTENSION:
		return words("refused by us%s: it has a critical extension "
		    "that is not known here", who);
	case BR_ERR_X509_DN_MISMATCH:
		return words("refused by us%s: the certificates that the "
		    "client sent are in the wrong order", who);
	default:
		return words("refused by us%s: it is damaged or of a kind "
		    "that is not supported (BearSSL's error %u)", who, err);
	}
}

/* The alert to send, for which BearSSL is silent; *text: the reason. */
static uint8_t
explain(const struct shake *k, unsigned err, const char **text)
{
	const struct lane *l = k->lane;
	char who[TITLE_MAX + 32];

	if (err >= 512) {
		*text = explain_sent(err - 512);
		return 0;
	}
	if (err >= 256) {
		*text = explain_alert(k->server, err - 256);
		return 0;
	}
	if (err >= BR_ERR_X509_OK && err <= BR_ERR_X509_NOT_TRUSTED) {
		*text = explain_chain(l, err);
		if (own_verdict(&l->v))
			return l->v.alert;
		return err == BR_ERR_X509_NOT_TRUSTED ||
		    err == BR_ERR_X509_BAD_SIGNATURE ? BR_ALERT_UNKNOWN_CA :
		    BR_ALERT_BAD_CERTIFICATE;
	}
	switch (err) {
	case BR_ERR_NO_CLIENT_AUTH:
		*text = "refused by us: the client sent no certificate, which "
		    "require_certificate demands; give it one (mosquitto_sub "
		    "--cert and --key)";
		return BR_ALERT_HANDSHAKE_FAILURE;
	case BR_ERR_WRONG_KEY_USAGE:
		*text = words("refused by us%s: its key may not be used for "
		    "signing (keyUsage)", whose(l, who));
		return BR_ALERT_UNSUPPORTED_CERTIFICATE;
	case BR_ERR_BAD_SIGNATURE:
		*text = words("refused by us%s: the client does not have the "
		    "key of this certificate", whose(l, who));
		return BR_ALERT_DECRYPT_ERROR;
	case BR_ERR_UNSUPPORTED_VERSION:
	case BR_ERR_BAD_VERSION:
		*text = "refused by us: a version of TLS that midge does not "
		    "have; it has TLS 1.2";
		return BR_ALERT_PROTOCOL_VERSION;
	case BR_ERR_BAD_FINISHED:
	case BR_ERR_BAD_MAC:
		*text = "refused by us: the handshake was changed on its way, "
		    "or the client's TLS is faulty";
		return BR_ALERT_DECRYPT_ERROR;
	case BR_ERR_TOO_LARGE:
	case BR_ERR_BAD_LENGTH:
		*text = "refused by us: a TLS record is too large";
		return BR_ALERT_RECORD_OVERFLOW;
	default:
		*text = words("refused by us: the handshake is malformed "
		    "(BearSSL's error %u)", err);
		return BR_ALERT_DECODE_ERROR;
	}
}

/* What came first is no TLS at all. */
static const char *
explain_plain(const struct tls *t)
{
	const uint8_t *p = t->raw->p;
	size_t n = t->raw->len;

	if (n >= 4 && p[0] == 0x10)
		return "refused by us: MQTT without TLS came to a TLS port; "
		    "tell the client to use TLS (mosquitto_sub --cafile), or "
		    "the port of a plain listener";
	if (n >= 4 && (!memcmp(p, "GET ", 4) || !memcmp(p, "POST", 4)))
		return "refused by us: HTTP came to a port for MQTT over TLS";
	return "refused by us: what came is not TLS";
}

const char *
tls_hung_up(const struct tls *t)
{
	if (t->state == WAITING)
		return "the client hung up in the middle of the handshake; "
		    "often it does not trust our certificate (--cafile) or "
		    "connects to a name that is not in it";
	return t->raw ? "the client hung up before it had said much" :
	    NULL;
}

/* ---- handshakes ---- */

static enum tls_step
fail(struct tls *t, uint8_t alert, const char *text, const char **out)
{
	end_shake(t, BROKEN);
	bytes_free(&t->raw);
	if (alert)
		put_alert(t, 2, alert);
	t->fault = SHAKE_FAILED;
	*out = text;
	return TLS_FAILED;
}

/* Whether the peer does not expect our records to be encrypted yet: later there
 * is no alert that it could read. */
static bool
in_clear(const br_ssl_engine_context *eng)
{
	return eng->out.vtable == &br_sslrec_out_clear_vtable;
}

static enum tls_step
engine_failed(struct tls *t, const char **out)
{
	br_ssl_engine_context *eng = &t->shake->lane->sc.eng;
	unsigned err = (unsigned)br_ssl_engine_last_error(eng);
	bool clear = in_clear(eng);
	const char *text = "the client ended the handshake";
	uint8_t alert = 0;

	if (err)
		alert = explain(t->shake, err, &text);
	return fail(t, clear ? alert : 0, text, out);
}

static void
write_keylog(const struct tls *t, const br_ssl_engine_context *eng)
{
	char line[220];
	int n = snprintf(line, sizeof line, "CLIENT_RANDOM ");

	if (t->pool->keylog < 0)
		return;
	for (int i = 0; i < 32; i++)
		n += sprintf(line + n, "%02x", eng->client_random[i]);
	line[n++] = ' ';
	for (int i = 0; i < 48; i++)
		n += sprintf(line + n, "%02x", eng->session.master_secret[i]);
	line[n++] = '\n';
	if (write(t->pool->keylog, line, (size_t)n) < 0)
		log_warning("Warning: A TLS key could not be written: %s.",
		    strerror(errno));
	explicit_bzero(line, sizeof line);
}

/* The engine has done its part: its keys are taken over. */
static enum tls_step
finish(struct tls *t, const char **out)
{
	struct lane *l = t->shake->lane;
	const char *id = l->resumed ? l->identity : l->v.identity;
	char who[TITLE_MAX + 32];

	write_keylog(t, &l->sc.eng);
	take_keys(t, &l->sc.eng);
	if (*id && !(t->shake->identity = copy_identity(id)))
		return fail(t, 0, "out of memory", out);
	*out = words("TLSv1.2 cipher %s%s%s", tls_cipher(t),
	    l->resumed ? ", resumed" : "", whose(l, who));
	end_shake(t, OPEN);
	return TLS_DONE;
}

/* Gives the engine input and takes its output, until it needs more. */
static enum tls_step
run(struct tls *t, const char **out)
{
	br_ssl_engine_context *eng = &t->shake->lane->sc.eng;
	size_t used = 0, n;
	int left = 0;                   /* of the record at hand */
	unsigned state;
	uint8_t *p;

	for (;;) {
		state = br_ssl_engine_current_state(eng);
		if (state & BR_SSL_SENDREC) {
			p = br_ssl_engine_sendrec_buf(eng, &n);
			/* Its alert for old clients has version 0. */
			if (p[1] == 0)
				p[1] = p[2] = 3;
			if (!keep_rest(t, p, n))
				return fail(t, 0, "out of memory", out);
			br_ssl_engine_sendrec_ack(eng, n);
		} else if (state & BR_SSL_CLOSED) {
			return engine_failed(t, out);
		} else if (state & (BR_SSL_SENDAPP | BR_SSL_RECVAPP)) {
			break;
		} else if (left == 0) {
			left = record_size(t->raw->p + used,
			    t->raw->len - used, false);
			if (left == 0)
				break;
			if (left < 0)
				return fail(t, in_clear(eng) ?
				    BR_ALERT_DECODE_ERROR : 0, "refused by "
				    "us: what came in the handshake is not "
				    "TLS", out);
		} else {
			/* Never more than the record at hand: what follows the
			 * handshake is not the engine's any more. */
			p = br_ssl_engine_recvrec_buf(eng, &n);
			if (n > (size_t)left)
				n = (size_t)left;
			memcpy(p, t->raw->p + used, n);
			br_ssl_engine_recvrec_ack(eng, n);
			used += n;
			left -= (int)n;
		}
	}
	if (!keep_raw(t, t->raw->p + used, t->raw->len - used))
		return fail(t, 0, "out of memory", out);
	if (state & BR_SSL_SENDAPP)
		return finish(t, out);
	enter(t, WAITING);
	return TLS_GOES_ON;
}

enum tls_step
tls_shake(struct tls *t, int64_t now_ms, const char **out)
{
	struct shake *k = t->shake;

	*out = NULL;
	if (k->gives_way)
		return fail(t, 0, "refused by us: the client fell silent in "
		    "the handshake, and others wait (max_handshakes)", out);
	if (!k->lane && (t->raw->p[0] != HANDSHAKE ||
	    record_size(t->raw->p, t->raw->len, false) < 0))
		return fail(t, 0, explain_plain(t), out);
	if (!k->lane && !take_lane(k, now_ms))
		return fail(t, BR_ALERT_INTERNAL_ERROR, "refused by us: no "
		    "memory left for the handshake (memory_limit)", out);
	/* Who sends a little now and then does not hold a lane for long. */
	if (now_ms - k->lane->since_ms < LANE_MS)
		k->lane->heard_ms = now_ms;
	return run(t, out);
}
