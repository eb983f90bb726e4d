/* pwhash - one hashed password: its text in a password file, and the work to
 * find out whether a password is the right one.
 *
 *	$6$SALT$HASH            SHA-512 of password and salt
 *	$7$ROUNDS$SALT$HASH     PBKDF2 with HMAC-SHA-512
 *
 * SALT and HASH in base64. PBKDF2 is made to take its time, and the broker has
 * but one thread, so the work is done in slices. No file is touched here.
 */
#ifndef PWHASH_H
#define PWHASH_H

#include <bearssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a file may ask for: ten seconds of a desktop's time for one login. */
#define PWHASH_ROUNDS_MAX 10000000

/* What new passwords get, as with mosquitto_passwd 2.0; of 1000 and more a Pi
 * of the first kind already feels something. */
#define PWHASH_ROUNDS 101
#define PWHASH_SALT 12

#define PWHASH_SALT_MAX 64
#define PWHASH_LEN 64

struct pwhash {
	uint32_t rounds;        /* of PBKDF2; 0: plain SHA-512 */
	uint8_t salt_len;
	uint8_t salt[PWHASH_SALT_MAX];
	uint8_t hash[PWHASH_LEN];
};

/* Reads the text. NULL, or what is wrong, as the end of a sentence about the
 * user. */
const char *pwhash_parse(struct pwhash *h, const char *text);

/* The text, into PWHASH_TEXT bytes. */
#define PWHASH_TEXT 200
void pwhash_format(const struct pwhash *h, char out[PWHASH_TEXT]);

/* Whether both are the same, salt included. */
bool pwhash_same(const struct pwhash *a, const struct pwhash *b);

/* A computation on its way. */
struct pwwork {
	br_hmac_key_context key;
	uint8_t u[PWHASH_LEN];          /* of the last round */
	uint8_t sum[PWHASH_LEN];        /* of all rounds */
	uint32_t left;                  /* rounds to go */
};

/* Begins to hash a password with rounds and salt of h. A plain SHA-512 is
 * finished at once. */
void pwwork_start(struct pwwork *w, const struct pwhash *h,
    const void *password, size_t len);

/* Goes on for at most so many rounds. true: all is done. */
bool pwwork_go(struct pwwork *w, uint32_t rounds);

/* Whether the finished work came to h, in a time that does not tell how near
 * it was. */
bool pwwork_is(const struct pwwork *w, const struct pwhash *h);

#endif
