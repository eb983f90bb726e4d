/* tls - TLS 1.2 on a non-blocking descriptor, by BearSSL.
 *
 * BearSSL's engine is used for the handshake only, in one of a few lanes that
 * exist as long as a handshake needs them. What stays of an open connection is
 * key, IV and sequence number of both directions; records are decrypted in the
 * caller's buffer and encrypted into one that all share.
 *
 * A handshake goes
 *
 *   GATHERING  bytes are collected until there is a whole record
 *   STARTING   a ClientHello is there, a lane is needed
 *   GOING      it has a lane, and a record for it is there
 *   WAITING    it has a lane; the peer's turn
 *   OPEN       the keys are taken over, the lane is given back
 *   BROKEN     nothing but an alert still goes out
 *
 * and only tls_shake computes with private keys, for one connection at a call,
 * so that the loop decides how much of that it wants in one turn.
 *
 * Knows nothing of MQTT. Certificates are read by cert.c.
 */
#ifndef TLS_H
#define TLS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "cert.h"
#include "config.h"

struct tls;
struct tls_server;
struct shake;
struct shakes {
	struct shake *first, **last;
};

/* What all connections share. */
struct tls_pool {
	struct shakes starting, going;  /* in the order of their arrival */
	struct shake **lanes;           /* those that have one */
	unsigned n_lanes, lanes_max;
	uint8_t *out;                   /* records on their way out */
	const br_block_ctr_class *aes;  /* what is fastest here */
	br_ghash ghash;
	br_chacha20_run chacha;
	br_poly1305_run poly;
	int keylog;                     /* descriptor, -1: none */
	bool aes_first;
	int64_t crowded_ms;             /* until then the newest goes first */
	bool seeded;                    /* the kernel's randomness is ready */
	bool clock_told;                /* that the clock is wrong */
	int64_t clock_floor;            /* s since 1970: it is later than this */
};

/* lanes_max: handshakes that may be under way at a time. keylog: NULL, or the
 * file for the keys (tls_keylog_open). */
void tls_pool_init(struct tls_pool *p, unsigned lanes_max, int keylog);
void tls_pool_fini(struct tls_pool *p);

/* Opens the file that keys are written to for Wireshark. -1: not possible, and
 * logged. */
int tls_keylog_open(const char *path);

/* Seconds since 1970, but never earlier than is known for sure. *wrong: the
 * system's clock is earlier than that. */
int64_t tls_clock(struct tls_pool *p, bool *wrong);

/* ---- a listener's certificate, key and authorities ---- */

/* Reads the files that conf names. NULL: one cannot be used, which is logged
 * with the remedy. What is merely doubtful is logged as a warning. */
struct tls_server *tls_server_new(struct tls_pool *p,
    const struct config_listener *conf);
void tls_server_unref(struct tls_server *s);    /* may be NULL */

/* Days until the certificate expires, -1: it has. */
int tls_server_days(const struct tls_server *s);

/* Warns when there are less than 30, 7 and 1 days left, once each; to be called
 * now and then. */
void tls_server_remind(struct tls_server *s);

/* For a check: logs what the certificate is for and until when, and warns where
 * the names of this machine are missing in it. */
void tls_server_explain(const struct tls_server *s);

/* Whether one of the files has changed since it was read; looks at most every
 * ten seconds. */
bool tls_server_changed(struct tls_server *s, int64_t now_ms);

/* The leaf certificate, for dates and names. */
const struct cert *tls_server_cert(const struct tls_server *s);

/* ---- one connection ---- */

/* owner is what tls_next returns. NULL: no memory. */
struct tls *tls_new(struct tls_server *s, void *owner);
void tls_free(struct tls *t);           /* wipes all keys; may be NULL */
bool tls_is_open(const struct tls *t);

/* A handshake that is not over yet goes no further; its lane is given back. */
void tls_give_up(struct tls *t);

/* Reads from fd. While the handshake lasts it gathers input and returns
 * TLS_NOTHING. Then the plaintext of all whole records, at p; n is the room
 * there, at least TLS_READ_MIN. *more: the socket may hold more.
 * TLS_NOTHING; TLS_END with errno: 0 for an orderly end, EPROTO for a fault of
 * the peer's, which tls_fault tells. */
#define TLS_NOTHING (-2)
#define TLS_END (-1)
#define TLS_READ_MIN (64 * 1024)
ssize_t tls_read(struct tls *t, int fd, uint8_t *p, size_t n, bool *more);
const char *tls_fault(const struct tls *t);

/* Whether the end has been read, perhaps behind data: the next tls_read tells
 * it, without a look at the socket. */
bool tls_is_over(const struct tls *t);

/* Whether input for the handshake fits: else it waits for its turn. */
bool tls_wants_input(const struct tls *t);

/* Bytes of input and output that are kept. */
size_t tls_keeps(const struct tls *t);

/* Encrypts and writes; *taken: bytes of iov that are done with. What the kernel
 * did not take is kept as ciphertext, tls_rest bytes of it; as long as there is
 * some, a call with n_iov 0 goes on with it. false: failed, with errno. */
bool tls_write(struct tls *t, int fd, const struct iovec *iov, int n_iov,
    size_t *taken);
size_t tls_rest(const struct tls *t);

/* Appends the alert that says goodbye to what is to be written. */
void tls_close(struct tls *t);

/* "ECDHE-RSA-AES128-GCM-SHA256" */
const char *tls_cipher(const struct tls *t);

/* The user name that the certificate gives, NULL: none. */
const char *tls_identity(const struct tls *t);
void tls_forget_identity(struct tls *t);

/* ---- handshakes ---- */

/* The owner of the next connection that tls_shake can do something for, NULL:
 * none. When nobody else may go on, that is the one that waited longest for
 * its peer, to give way. */
void *tls_next(struct tls_pool *p, int64_t now_ms);

/* How long until tls_next has somebody, as far as time decides; -1: no limit */
int tls_wait_ms(const struct tls_pool *p, int64_t now_ms);

/* One step. *words: in a static buffer, who refused, why, and what to do; or,
 * when it has succeeded, what was agreed on. */
enum tls_step { TLS_GOES_ON, TLS_DONE, TLS_FAILED };
enum tls_step tls_shake(struct tls *t, int64_t now_ms, const char **words);

/* The peer has hung up during the handshake: what that may mean. */
const char *tls_hung_up(const struct tls *t);

#endif
