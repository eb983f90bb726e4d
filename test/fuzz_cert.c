/* Fuzzer of cert: the first byte chooses what the rest is, a certificate, a name,
 * a revocation list, or a file of any kind. Certificates and lists are either
 * arbitrary bytes, or good ones with changes.
 *
 * Beyond the sanitizers: views stay inside the input, dates and names agree with
 * BearSSL's own decoder, texts are harmless and end where their buffer does.
 */
#include "cert.h"
#include "mqtt.h"
#include "pem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[32];
static struct anchors ca;
static struct certs good;
static struct der good_crl;

static void
write_file(const void *p, size_t n)
{
	static int fd = -1;

	if (fd < 0) {
		fd = memfd_create("cert", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	assert(ftruncate(fd, 0) == 0);
	assert(pwrite(fd, p, n, 0) == (ssize_t)n);
}

/* ---- PEM ---- */

static size_t
base64(char *out, const uint8_t *p, size_t n)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	    "abcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t len = 0;

	for (size_t i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16 |
		    (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) |
		    (i + 2 < n ? p[i + 2] : 0);

		out[len++] = digits[v >> 18];
		out[len++] = digits[v >> 12 & 63];
		out[len++] = i + 1 < n ? digits[v >> 6 & 63] : '=';
		out[len++] = i + 2 < n ? digits[v & 63] : '=';
		if (i % 48 == 45)
			out[len++] = '\n';
	}
	return len;
}

static void
write_pem(const char *name, struct der d)
{
	char *text = malloc(d.len * 2 + 200), *p = text;

	assert(text);
	p += sprintf(p, "-----BEGIN %s-----\n", name);
	p += base64(p, d.p, d.len);
	p += sprintf(p, "\n-----END %s-----\n", name);
	write_file(text, (size_t)(p - text));
	free(text);
}

/* The first object of a text, at the end of which nothing follows. */
static struct der
decode(const char *text)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	    "abcdefghijklmnopqrstuvwxyz0123456789+/";
	struct der d = { malloc(strlen(text)), 0 };
	uint8_t *out = (uint8_t *)(uintptr_t)d.p;
	uint32_t v = 0, bits = 0;

	assert(out);
	for (text = strchr(text, '\n'); *text != '-'; text++) {
		const char *at = strchr(digits, *text);

		if (!at)
			continue;
		v = v << 6 | (uint32_t)(at - digits);
		bits += 6;
		if (bits >= 8)
			out[d.len++] = (uint8_t)(v >> (bits -= 8));
	}
	return d;
}

static void
begin(void)
{
	struct certs cs = { 0 };
	const char *why;

	write_file(pem_ca_cert, strlen(pem_ca_cert));
	assert(certs_read(&good, path, &why));
	assert(certs_read(&cs, path, &why));
	assert(anchors_init(&ca, &cs, &why));
	good_crl = decode(pem_ca_crl);
}

/* ---- input ---- */

/* Three bytes each: a place, and what becomes of it. */
static struct der
changed(struct der d, const uint8_t *p, size_t n)
{
	uint8_t *out = malloc(d.len + n);
	size_t len = d.len;

	assert(out);
	memcpy(out, d.p, len);
	for (; n >= 3 && len > 0; p += 3, n -= 3) {
		size_t at = (size_t)((p[0] << 8 | p[1]) & 0x3fff) % len;

		switch (p[0] >> 6) {
		case 0:
		case 1:
			out[at] = p[2];
			break;
		case 2:
			memmove(out + at + 1, out + at, len - at);
			out[at] = p[2];
			len++;
			break;
		default:
			memmove(out + at, out + at + 1, len - at - 1);
			len--;
		}
	}
	return (struct der){ out, len };
}

/* Exactly as large as needed, so that the sanitizer sees every step outside. */
static struct der
exactly(const uint8_t *p, size_t n)
{
	uint8_t *out = malloc(n ? n : 1);

	assert(out);
	if (n)
		memcpy(out, p, n);
	return (struct der){ out, n };
}

/* ---- what must hold ---- */

static void
inside(struct der d, struct der whole)
{
	assert(d.len == 0 || (d.p >= whole.p && d.p <= whole.p + whole.len &&
	    d.len <= (size_t)(whole.p + whole.len - d.p)));
}

static void
check_name(struct der name)
{
	char a[2000], b[2000];
	size_t n;

	if (cert_common_name(name, a, sizeof a)) {
		n = strlen(a);
		assert(n > 0 && mqtt_utf8_valid((uint8_t *)a, n));
		assert(cert_common_name(name, b, n + 1) && !strcmp(a, b));
		assert(!cert_common_name(name, b, n));
	}
	if (cert_name_text(name, a, sizeof a)) {
		n = strlen(a);
		for (size_t i = 0; i < n; i++)
			assert(a[i] >= 0x20 && a[i] < 0x7f);
		assert(cert_name_text(name, b, n + 1) && !strcmp(a, b));
		assert(n == 0 || !cert_name_text(name, b, n));
		assert(n == 0 || strlen(b) == n - 1);
	}
	assert(strlen(a) < sizeof a);
	cert_title(name, b, 24);
	assert(*b && strlen(b) < 24);
}

static void
check_alt_name(void *arg, bool ip, struct der value)
{
	(void)ip;
	inside(value, *(struct der *)arg);
}

static void
add_subject(void *arg, const void *p, size_t n)
{
	struct der *d = arg;

	assert(n <= d->len);
	assert(!memcmp(d->p, p, n));
	*d = (struct der){ d->p + n, d->len - n };
}

static int64_t
seconds(uint32_t days, uint32_t rest)
{
	return ((int64_t)days - 719528) * 86400 + rest;
}

/* What BearSSL takes for a certificate is the same one for us. */
static void
compare(struct der whole, const struct cert *c)
{
	br_x509_decoder_context dec;
	struct der subject = c->subject;
	char day[CERT_DATE];

	br_x509_decoder_init(&dec, NULL, NULL);
	br_x509_decoder_push(&dec, whole.p, whole.len);
	if (br_x509_decoder_last_error(&dec))
		return;
	br_x509_decoder_init(&dec, add_subject, &subject);
	br_x509_decoder_push(&dec, whole.p, whole.len);
	assert(subject.len == 0);
	assert(c->not_before == seconds(dec.notbefore_days,
	    dec.notbefore_seconds));
	assert(c->not_after == seconds(dec.notafter_days,
	    dec.notafter_seconds));
	assert(strlen(cert_date(c->not_after, day)) >= strlen("1-01-01"));
}

static void
certificate(struct der d)
{
	struct certs cs = { 0 };
	struct anchors as;
	struct cert c;
	const char *why = NULL;

	if (!cert_parse(d, &c))
		return;
	inside(c.serial, d);
	inside(c.issuer, d);
	inside(c.subject, d);
	inside(c.alt_names, d);
	check_name(c.issuer);
	check_name(c.subject);
	cert_each_alt_name(&c, check_alt_name, &d);
	compare(d, &c);
	certs_add(&cs, d.p, d.len);
	if (anchors_init(&as, &cs, &why)) {
		assert(as.n == 1 && anchors_find(&as, c.subject, 0));
		anchors_free(&as);
	} else {
		assert(why && *why);
	}
}

static void
revocations(void)
{
	struct der serial = good.n ? (struct der){ good.der[0].data, 20 } :
	    (struct der){ 0 };
	struct crls cs;
	const char *why = NULL;

	if (crls_read(&cs, path, &ca, &why)) {
		/* The one list that this authority has signed. */
		assert(cs.n > 0 && crls_find(&cs, ca.info[0].subject));
		assert(cs.list[0].n == 1);
		assert(!crls_revoke(&cs, ca.info[0].subject, serial));
		crls_free(&cs);
	} else {
		assert(why && *why && cs.n == 0);
	}
}

static void
file(void)
{
	struct certs cs = { 0 };
	struct cert_key k;
	const char *why = NULL;

	assert(certs_read(&cs, path, &why) == (cs.n > 0 && !why));
	certs_free(&cs);
	why = NULL;
	if (cert_read_key(&k, path, &why)) {
		cert_key_fits(&k, &good.der[0], &why);
		cert_free_key(&k);
	} else {
		assert(why && *why && !k.box);
	}
	revocations();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct der d;

	if (!good.n)
		begin();
	if (size < 1)
		return 0;
	switch (data[0] % 6) {
	case 0:
		d = exactly(data + 1, size - 1);
		check_name(d);
		certificate(d);
		break;
	case 1:
	case 2:
		d = changed((struct der){ good.der[0].data,
		    good.der[0].data_len }, data + 1, size - 1);
		certificate(d);
		break;
	case 3:
		d = changed(good_crl, data + 1, size - 1);
		write_pem("X509 CRL", d);
		revocations();
		break;
	case 4:
		d = exactly(data + 1, size - 1);
		write_pem(data[0] & 64 ? "X509 CRL" : data[0] & 128 ?
		    "EC PRIVATE KEY" : "PRIVATE KEY", d);
		file();
		break;
	default:
		d = exactly(data + 1, size - 1);
		write_file(d.p, d.len);
		file();
	}
	free((void *)(uintptr_t)d.p);
	return 0;
}
