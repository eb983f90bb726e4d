/* cert - certificates, private keys and revocation lists: the files that hold
 * them, and what stands in them.
 *
 * Reads PEM files at start and at reload (blocking), and certificates that a
 * peer has sent: every length is checked in one bounded DER reader. Decides
 * nothing about trust; that is BearSSL's and tls.c's part.
 */
#ifndef CERT_H
#define CERT_H

#include <bearssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A piece of DER, with tag and length where it is a whole element. */
struct der {
	const uint8_t *p;
	size_t len;
};

static inline bool
der_eq(struct der a, struct der b)
{
	return a.len == b.len && __builtin_memcmp(a.p, b.p, a.len) == 0;
}

/* A certificate taken apart (RFC 5280, 4.1): views into its DER. */
struct cert {
	struct der serial;              /* the number alone */
	struct der issuer, subject;     /* whole names */
	struct der alt_names;           /* content of SubjectAltName, or none */
	int64_t not_before, not_after;  /* seconds since 1970 */
	bool v1;                        /* older than version 3 */
	bool for_clients, for_servers;  /* by ExtendedKeyUsage */
};

/* false: it is damaged. */
bool cert_parse(struct der whole, struct cert *c);

/* The first Common Name of a name as UTF-8, NUL behind it. false: there is
 * none, it is empty, has a NUL in it or does not fit into size bytes. */
bool cert_common_name(struct der name, char *out, size_t size);

/* The name as RFC 2253 writes it, as OpenSSL does. false: damaged, or longer
 * than size. */
bool cert_name_text(struct der name, char *out, size_t size);

/* For the log: the Common Name or the whole name, cut if need be. */
void cert_title(struct der name, char *out, size_t size);

/* Calls fn for each dNSName (text) and iPAddress (4 or 16 bytes). */
void cert_each_alt_name(const struct cert *c, void (*fn)(void *arg, bool ip,
    struct der value), void *arg);

/* "2026-11-21" in UTC. */
#define CERT_DATE 24
const char *cert_date(int64_t t, char out[CERT_DATE]);

/* ---- files ---- */

/* The certificates of one or more PEM files, in order. */
struct certs {
	br_x509_certificate *der;       /* each allocated */
	size_t n;
};

/* Adds those of a file. false, with *why in a static buffer: it cannot be
 * read, or has none. */
bool certs_read(struct certs *cs, const char *path, const char **why);

/* Adds those of every *.crt and *.pem file of a directory. */
bool certs_read_dir(struct certs *cs, const char *dir, const char **why);

/* Adds a copy. false: no memory. */
bool certs_add(struct certs *cs, const uint8_t *p, size_t len);
void certs_free(struct certs *cs);

/* A private key: type is BR_KEYTYPE_RSA or BR_KEYTYPE_EC. */
struct cert_key {
	int type;
	const br_rsa_private_key *rsa;
	const br_ec_private_key *ec;
	struct key_box *box;            /* owns the bytes */
};

/* false, with *why: cannot be read, encrypted, of another type. */
bool cert_read_key(struct cert_key *k, const char *path, const char **why);
void cert_free_key(struct cert_key *k);         /* wipes it */

/* Whether the certificate's public key is that of k. *why: or what else is
 * wrong. */
bool cert_key_fits(const struct cert_key *k, const br_x509_certificate *c,
    const char **why);

/* Those whose signatures are believed, the one that is valid longest first. */
struct anchors {
	br_x509_trust_anchor *ta;
	struct cert *info;              /* views into certs */
	struct certs certs;
	size_t n;
};

/* Takes cs over (also on failure). false, with *why: one is unusable. */
bool anchors_init(struct anchors *as, struct certs *cs, const char **why);
void anchors_free(struct anchors *as);

/* How many of them have not expired at the time t: the first ones. */
size_t anchors_unexpired(const struct anchors *as, int64_t t);

/* The first anchor with this subject that is valid at the time t; else the
 * first with this subject; NULL: none. */
const struct cert *anchors_find(const struct anchors *as, struct der subject,
    int64_t t);

/* ---- revocation lists (RFC 5280, 5) ---- */

struct crl {
	struct der issuer;
	int64_t this_update, next_update;       /* 0: it names none */
	uint8_t (*serials)[21];         /* sorted: length, bytes */
	size_t n;
	bool critical;                  /* it means something else than it
	                                 * seems to: RFC 5280, 5.2 */
};

struct crls {
	struct crl *list;
	uint8_t **der;
	size_t n;
};

#define CRL_SERIALS_MAX 200000

/* Reads the lists of a PEM file; each must be signed by one of the anchors. */
bool crls_read(struct crls *cs, const char *path, const struct anchors *as,
    const char **why);
void crls_free(struct crls *cs);

/* The issuer's newest list, NULL: none. */
const struct crl *crls_find(const struct crls *cs, struct der issuer);

/* Whether any list of that issuer has the number: there may be two of them, the
 * one before still in the file, or those of two keys. */
bool crls_revoke(const struct crls *cs, struct der issuer, struct der serial);

#endif
