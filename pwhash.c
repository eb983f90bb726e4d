#include "pwhash.h"

#include <stdio.h>
#include <string.h>

static const char digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* ---- base64 with padding ---- */

static char *
encode(char *out, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16 |
		    (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) |
		    (i + 2 < n ? p[i + 2] : 0);

		*out++ = digits[v >> 18];
		*out++ = digits[v >> 12 & 63];
		*out++ = i + 1 < n ? digits[v >> 6 & 63] : '=';
		*out++ = i + 2 < n ? digits[v & 63] : '=';
	}
	return out;
}

/* The value of a digit, 64 for padding, -1 for what is neither. */
static int
value(char c)
{
	const char *d = c ? strchr(digits, c) : NULL;

	return c == '=' ? 64 : d ? (int)(d - digits) : -1;
}

/* Decodes n digits to at most max bytes; their number, 0 if something is
 * wrong. */
static size_t
decode(const char *s, size_t n, uint8_t *out, size_t max)
{
	size_t len = 0;

	if (n == 0 || n % 4 != 0)
		return 0;
	for (size_t i = 0; i < n; i += 4) {
		int a = value(s[i]), b = value(s[i + 1]), c = value(s[i + 2]),
		    d = value(s[i + 3]);
		bool last = i + 4 == n;
		size_t k = c == 64 ? 1 : d == 64 ? 2 : 3;
		uint32_t v;

		if (a < 0 || a > 63 || b < 0 || b > 63 || c < 0 || d < 0 ||
		    (c == 64 && d != 64) || (k < 3 && !last) || len + k > max)
			return 0;
		v = (uint32_t)a << 18 | (uint32_t)b << 12 |
		    (uint32_t)(c & 63) << 6 | (uint32_t)(d & 63);
		out[len++] = (uint8_t)(v >> 16);
		if (k > 1)
			out[len++] = (uint8_t)(v >> 8);
		if (k > 2)
			out[len++] = (uint8_t)v;
	}
	return len;
}

/* ---- text ---- */

static const char damaged[] = "has a hash that is damaged";

/* The rounds before the next '$'; *s moves behind it. */
static const char *
parse_rounds(struct pwhash *h, const char **s)
{
	uint32_t n = 0;
	const char *p = *s;

	for (; *p >= '0' && *p <= '9'; p++) {
		n = n * 10 + (uint32_t)(*p - '0');
		if (n > PWHASH_ROUNDS_MAX)
			return "has a hash of more than 10000000 rounds, which "
			    "is more than midge does";
	}
	if (n == 0 || *p != '$')
		return damaged;
	h->rounds = n;
	*s = p + 1;
	return NULL;
}

const char *
pwhash_parse(struct pwhash *h, const char *text)
{
	const char *why, *end;

	*h = (struct pwhash){ .rounds = 0 };
	if (!strncmp(text, "$argon2", 7))
		return "has a hash of the kind argon2, which needs more memory "
		    "for one login than midge has for a thousand clients";
	if (strncmp(text, "$6$", 3) && strncmp(text, "$7$", 3))
		return "has a password that is not hashed";
	text += 3;
	if (text[-2] == '7' && (why = parse_rounds(h, &text)))
		return why;
	end = strchr(text, '$');
	if (!end)
		return damaged;
	h->salt_len = (uint8_t)decode(text, (size_t)(end - text), h->salt,
	    sizeof h->salt);
	if (h->salt_len == 0 || decode(end + 1, strlen(end + 1), h->hash,
	    sizeof h->hash) != sizeof h->hash)
		return damaged;
	return NULL;
}

void
pwhash_format(const struct pwhash *h, char out[PWHASH_TEXT])
{
	char *p = out;

	if (h->rounds)
		p += sprintf(p, "$7$%u$", h->rounds);
	else
		p += sprintf(p, "$6$");
	p = encode(p, h->salt, h->salt_len);
	*p++ = '$';
	p = encode(p, h->hash, sizeof h->hash);
	*p = 0;
}

bool
pwhash_same(const struct pwhash *a, const struct pwhash *b)
{
	return a->rounds == b->rounds && a->salt_len == b->salt_len &&
	    memcmp(a->salt, b->salt, a->salt_len) == 0 &&
	    memcmp(a->hash, b->hash, sizeof a->hash) == 0;
}

/* ---- work ---- */

static void
plain_sha512(struct pwwork *w, const struct pwhash *h, const void *password,
    size_t len)
{
	br_sha512_context c;

	br_sha512_init(&c);
	br_sha512_update(&c, password, len);
	br_sha512_update(&c, h->salt, h->salt_len);
	br_sha512_out(&c, w->sum);
	explicit_bzero(&c, sizeof c);
}

/* RFC 8018, section 5.2: the output is as long as the hash, so there is one
 * block, the first. */
void
pwwork_start(struct pwwork *w, const struct pwhash *h, const void *password,
    size_t len)
{
	static const uint8_t block[4] = { 0, 0, 0, 1 };
	br_hmac_context c;

	w->left = h->rounds;
	if (w->left == 0) {
		plain_sha512(w, h, password, len);
		return;
	}
	br_hmac_key_init(&w->key, &br_sha512_vtable, password, len);
	br_hmac_init(&c, &w->key, 0);
	br_hmac_update(&c, h->salt, h->salt_len);
	br_hmac_update(&c, block, sizeof block);
	br_hmac_out(&c, w->u);
	memcpy(w->sum, w->u, sizeof w->sum);
	w->left--;
	explicit_bzero(&c, sizeof c);
}

bool
pwwork_go(struct pwwork *w, uint32_t rounds)
{
	br_hmac_context c;

	for (; w->left > 0 && rounds > 0; rounds--, w->left--) {
		br_hmac_init(&c, &w->key, 0);
		br_hmac_update(&c, w->u, sizeof w->u);
		br_hmac_out(&c, w->u);
		for (size_t i = 0; i < sizeof w->sum; i++)
			w->sum[i] ^= w->u[i];
	}
	explicit_bzero(&c, sizeof c);
	return w->left == 0;
}

bool
pwwork_is(const struct pwwork *w, const struct pwhash *h)
{
	volatile uint8_t differ = 0;

	for (size_t i = 0; i < sizeof w->sum; i++)
		differ = (uint8_t)(differ | (w->sum[i] ^ h->hash[i]));
	return differ == 0;
}
