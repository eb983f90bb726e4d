#include "conn.h"
#include "mem.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Pieces written with one system call. */
#define IOVECS 32

struct chunk {
	struct chunk *next;
	struct msg *msg;        /* not NULL: data points into it */
	const uint8_t *data;
	uint32_t start, end;    /* what is still to be written */
	uint32_t cap;           /* of bytes */
	uint8_t bytes[];
};

/* A connection that gets one message now and then needs few bytes, a busy
 * one should not pay for many chunks. */
#define CHUNK_FIRST (512 - sizeof(struct chunk))
#define CHUNK_NEXT (16384 - sizeof(struct chunk))

/* Kept input up to this size is moved back into the shared buffer and read
 * on there; a longer partial packet is completed in its own buffer. */
#define KEEP_SMALL (CONN_BUF / 2)

/* Kept input up to this size may use all that outputs may (mem_alloc_passing),
 * larger ones only half of it. */
#define KEEP_PASSING 4096

void
conn_init(struct conn *c, int fd, const struct conn_addr *peer)
{
	*c = (struct conn){ .fd = fd, .hot = -1, .peer = *peer };
}

static void
free_chunk(struct chunk *k)
{
	msg_unref(k->msg);
	mem_free(k, sizeof *k + k->cap);
}

static void
free_in(struct conn *c)
{
	mem_free(c->in, c->in_cap);
	c->in = NULL;
	c->in_len = c->in_cap = 0;
}

void
conn_fini(struct conn *c)
{
	struct chunk *k, *next;

	for (k = c->out; k; k = next) {
		next = k->next;
		free_chunk(k);
	}
	free_in(c);
	tls_free(c->tls);
	if (c->fd >= 0)
		close(c->fd);
}

/* ---- input ---- */

/* One read. -1 with errno 0: end of stream. -2: nothing there. */
static ssize_t
read_some(struct conn *c, uint8_t *p, size_t n)
{
	ssize_t got;

	if (c->tls) {
		uint32_t rest = (uint32_t)tls_rest(c->tls);

		got = tls_read(c->tls, c->fd, p, n, &c->more);
		c->got = got > 0 ? (uint32_t)got : 0;
		c->out_len += (uint32_t)tls_rest(c->tls) - rest;
		return got;
	}
	do
		got = read(c->fd, p, n);
	while (got < 0 && errno == EINTR);
	c->more = got == (ssize_t)n;
	c->got = got > 0 ? (uint32_t)got : 0;
	if (got > 0)
		return got;
	if (got == 0) {
		errno = 0;
		return -1;
	}
	return errno == EAGAIN || errno == EWOULDBLOCK ? -2 : -1;
}

/* TLS decrypts in the shared buffer, which a packet may be larger than. */
static ssize_t
read_through(struct conn *c, uint8_t *buf)
{
	ssize_t got = read_some(c, buf, CONN_BUF);
	size_t want = c->in_len + (got > 0 ? (size_t)got : 0);
	uint8_t *p;

	if (want > c->in_cap) {
		p = mem_resize(c->in, c->in_cap, want);
		if (!p) {
			errno = ENOMEM;
			return -1;
		}
		c->in = p;
		c->in_cap = (uint32_t)want;
	}
	if (got > 0)
		memcpy(c->in + c->in_len, buf, (size_t)got);
	return got;
}

static int
read_large(struct conn *c, uint8_t *buf, uint8_t **data, size_t *n)
{
	ssize_t got = c->tls ? read_through(c, buf) : read_some(c,
	    c->in + c->in_len, c->in_cap - c->in_len);

	if (got < 0)
		return got == -2 ? 0 : -1;
	c->in_len += (uint32_t)got;
	*data = c->in;
	*n = c->in_len;
	return 1;
}

int
conn_read(struct conn *c, uint8_t *buf, uint8_t **data, size_t *n)
{
	size_t kept = c->in_len;
	ssize_t got;

	c->got = 0;
	/* What is left over is handled before more is read. */
	if (c->ready) {
		c->ready = false;
		c->more = true;         /* the socket was not looked at */
		*data = c->in;
		*n = kept;
		return 1;
	}
	if (kept > KEEP_SMALL)
		return read_large(c, buf, data, n);
	if (kept)
		memcpy(buf, c->in, kept);
	got = read_some(c, buf + kept, CONN_BUF - kept);
	if (got < 0)
		return got == -2 ? 0 : -1;
	*data = buf;
	*n = kept + (size_t)got;
	return 1;
}

bool
conn_keep(struct conn *c, const uint8_t *data, size_t n, size_t whole)
{
	/* Memory follows the bytes that have arrived, not the length that a
	 * peer announces. */
	size_t cap = n < 512 ? 512 : n * 2;
	uint8_t *p;

	if (n == 0) {
		free_in(c);
		return true;
	}
	if (whole > n && cap > whole)
		cap = whole;
	/* In place where it fits; a large packet on its way stays as it is. */
	if (c->in && n < c->in_cap && c->in_cap <= 2 * cap) {
		if (data != c->in)
			memmove(c->in, data, n);
		c->in_len = (uint32_t)n;
		return true;
	}
	/* The rest of a packet comes soon, most often. */
	p = cap <= KEEP_PASSING || !mem_above(30) ? mem_alloc_passing(cap) :
	    mem_alloc(cap);
	if (!p)
		return false;
	memcpy(p, data, n);
	mem_free(c->in, c->in_cap);
	c->in = p;
	c->in_cap = (uint32_t)cap;
	c->in_len = (uint32_t)n;
	return true;
}

/* ---- output ---- */

static struct chunk *
add_chunk(struct conn *c, size_t cap)
{
	/* The first few go out soon; what a slow reader piles up does not. */
	struct chunk *k = c->out_len - c->out_lent < CHUNK_NEXT || cap == 0 ?
	    mem_alloc_passing(sizeof *k + cap) : mem_alloc(sizeof *k + cap);

	if (!k)
		return NULL;
	*k = (struct chunk){ .data = k->bytes, .cap = (uint32_t)cap };
	if (c->out)
		c->out_tail->next = k;
	else
		c->out = k;
	c->out_tail = k;
	return k;
}

uint8_t *
conn_reserve(struct conn *c, size_t n)
{
	struct chunk *k = c->out_tail;
	/* Behind a large payload comes the head of the next, no more. */
	size_t cap = c->out && !k->msg ? CHUNK_NEXT : CHUNK_FIRST;

	if (!c->out || k->msg || k->cap - k->end < n)
		k = add_chunk(c, n > cap ? n : cap);
	return k ? k->bytes + k->end : NULL;
}

void
conn_commit(struct conn *c, size_t n)
{
	struct chunk *k = c->out_tail;

	assert(n <= k->cap - k->end);
	k->end += (uint32_t)n;
	c->out_len += (uint32_t)n;
}

bool
conn_put_payload(struct conn *c, struct msg *m)
{
	struct chunk *k = add_chunk(c, 0);

	if (!k)
		return false;
	k->msg = msg_ref(m);
	k->data = m->bytes + m->topic_len + m->props_len;
	k->end = m->payload_len;
	c->out_len += m->payload_len;
	c->out_lent += m->payload_len;
	return true;
}

/* Takes n written bytes off the front of the chain. */
static void
written(struct conn *c, size_t n)
{
	struct chunk *k;

	c->out_len -= (uint32_t)n;
	while ((k = c->out)) {
		size_t here = k->end - k->start < n ? k->end - k->start : n;

		if (k->msg)
			c->out_lent -= (uint32_t)here;
		k->start += (uint32_t)here;
		n -= here;
		if (k->start < k->end)
			return;
		c->out = k->next;
		free_chunk(k);
	}
	c->out_tail = NULL;
}

/* The first pieces of the chain. */
static int
pieces(const struct conn *c, struct iovec iov[IOVECS], size_t *size)
{
	int i = 0;

	*size = 0;
	for (struct chunk *k = c->out; k && i < IOVECS; k = k->next) {
		iov[i].iov_base = (void *)(uintptr_t)(k->data + k->start);
		iov[i].iov_len = k->end - k->start;
		*size += iov[i++].iov_len;
	}
	return i;
}

static bool
flush_tls(struct conn *c)
{
	struct iovec iov[IOVECS];
	size_t size, taken, rest;
	bool ok;

	do {
		rest = tls_rest(c->tls);
		ok = tls_write(c->tls, c->fd, iov, pieces(c, iov, &size),
		    &taken);
		written(c, taken);
		c->out_len += (uint32_t)(tls_rest(c->tls) - rest);
	} while (ok && c->out && tls_rest(c->tls) == 0);
	return ok;
}

bool
conn_flush(struct conn *c)
{
	struct iovec iov[IOVECS];
	ssize_t n;
	size_t want;

	if (c->tls)
		return flush_tls(c);
	while (c->out) {
		n = writev(c->fd, iov, pieces(c, iov, &want));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		written(c, (size_t)n);
		if ((size_t)n < want)
			return true;
	}
	return true;
}

/* ---- TLS ---- */

enum tls_step
conn_shake(struct conn *c, int64_t now_ms, const char **words)
{
	size_t rest = tls_rest(c->tls);
	enum tls_step step = tls_shake(c->tls, now_ms, words);

	c->out_len += (uint32_t)(tls_rest(c->tls) - rest);
	return step;
}

void
conn_end(struct conn *c)
{
	size_t rest;

	if (!c->tls)
		return;
	rest = tls_rest(c->tls);
	tls_close(c->tls);
	c->out_len += (uint32_t)(tls_rest(c->tls) - rest);
}

const char *
conn_name(const struct conn_addr *a, char out[CONN_NAME])
{
	char ip[INET6_ADDRSTRLEN];

	if (a->family != AF_UNIX && inet_ntop(a->family, a->ip, ip, sizeof ip))
		snprintf(out, CONN_NAME, "%s:%u", ip, a->port);
	else
		snprintf(out, CONN_NAME, "unix socket");
	return out;
}
