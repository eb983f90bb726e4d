/* conn - one connected descriptor, plain or with TLS: bytes in, bytes out.
 *
 * Knows nothing of packets. An idle connection owns no buffer: input is read
 * into the loop's shared buffer and only an incomplete tail is kept here;
 * output stands in a chain of chunks that are freed as the kernel takes them.
 * Large payloads are not copied: a chunk may refer to a message.
 */
#ifndef CONN_H
#define CONN_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "msg.h"
#include "tls.h"

struct conn_addr {
	uint8_t ip[16];
	uint16_t port;
	uint16_t family;        /* AF_INET, AF_INET6, AF_UNIX */
};

struct chunk;

struct conn {
	int fd;
	int hot;                /* place in the poll set, -1: not there */
	uint8_t *in;            /* kept input: a partial packet, or packets
	                         * left over for the next turn */
	uint32_t in_len, in_cap;
	uint32_t got;           /* bytes of the last read */
	uint32_t out_len;       /* bytes that wait to be written */
	uint32_t out_lent;      /* of these, in messages that it refers to */
	struct chunk *out, *out_tail;
	struct conn *next_todo; /* in the loop's list, while todo is set */
	uint32_t heard;         /* the loop's tick at the last input */
	struct tls *tls;        /* NULL: plain */
	struct conn_addr peer;
	bool bell;              /* O_ASYNC is on */
	bool owned;             /* F_SETOWN and F_SETSIG are done */
	bool ready;             /* kept input waits to be handled */
	bool more;              /* the socket may hold more input */
	bool todo;
};

/* The loop's shared input buffer. One read takes at most this much. */
#define CONN_BUF (256 * 1024)

/* Above this many bytes of output, large payloads not counted, a peer's
 * requests are no longer read: it does not take our answers. Below
 * CONN_LOW_WATER queued messages are encoded. The second is the lower one, so
 * that deliveries alone never keep a client from being heard: it may be one
 * that reads only when it has written. */
#define CONN_LOW_WATER (128 * 1024)
#define CONN_HIGH_WATER (192 * 1024)

static inline bool
conn_choked(const struct conn *c)
{
	return c->out_len - c->out_lent > CONN_HIGH_WATER;
}

void conn_init(struct conn *c, int fd, const struct conn_addr *peer);

/* Whether what is read and written is what the peer means: always without TLS,
 * with it when the handshake is over. */
static inline bool
conn_open(const struct conn *c)
{
	return !c->tls || tls_is_open(c->tls);
}

/* One step of the handshake, see tls_shake; answers to it are left to be
 * written. */
enum tls_step conn_shake(struct conn *c, int64_t now_ms, const char **words);

/* Nothing will follow: appends what tells so to a peer with TLS, once. */
void conn_end(struct conn *c);

/* Closes the descriptor and frees all buffers. */
void conn_fini(struct conn *c);

/* Gets input. buf is the shared buffer of CONN_BUF bytes. On return *data and
 * *n are all bytes that wait to be handled, kept ones first: a view that is
 * valid until the next call for any connection, writable. After a 1 the caller
 * handles what it can and hands the rest to conn_keep.
 * 1: something new (or kept input was due); 0: nothing now; -1: the peer has
 * closed or the connection failed (errno, 0 for an orderly close, EPROTO for a
 * fault that tls_fault tells). */
int conn_read(struct conn *c, uint8_t *buf, uint8_t **data, size_t *n);

/* Keeps the n bytes at data, the unhandled tail of what conn_read gave (0 if
 * all is handled), for the next call. whole: the size of the packet that they
 * begin, if known, 0 if not. false: no memory. */
bool conn_keep(struct conn *c, const uint8_t *data, size_t n, size_t whole);

/* Room for n bytes at the end of the output, in one piece. NULL: no memory.
 * conn_commit tells how many of them were written. */
uint8_t *conn_reserve(struct conn *c, size_t n);
void conn_commit(struct conn *c, size_t n);

/* Appends the payload of m by reference. false: no memory. */
bool conn_put_payload(struct conn *c, struct msg *m);

/* Writes as much output as the kernel takes. false: the connection failed. */
bool conn_flush(struct conn *c);

/* "ADDRESS:PORT" of the peer, in a buffer of CONN_NAME bytes. */
#define CONN_NAME (INET6_ADDRSTRLEN + 8)
const char *conn_name(const struct conn_addr *a, char out[CONN_NAME]);

#endif
