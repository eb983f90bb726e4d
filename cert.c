#include "cert.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* No file of certificates or keys is longer than this. */
#define FILE_MAX (16 * 1024 * 1024)

/* What all *why point to when they carry a value: one fault at a time. */
static const char *
reason(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static const char *
reason(const char *fmt, ...)
{
	static char text[600];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return text;
}

static const char no_memory[] = "there is not enough memory for it";

/* ---- DER ---- */

enum {
	BOOLEAN = 0x01, INTEGER = 0x02, BIT_STRING = 0x03, OCTET_STRING = 0x04,
	OID = 0x06, UTF8 = 0x0c, NUMERIC = 0x12, PRINTABLE = 0x13, T61 = 0x14,
	IA5 = 0x16, UTC_TIME = 0x17, GENERAL_TIME = 0x18, UNIVERSAL = 0x1c,
	BMP = 0x1e, SEQUENCE = 0x30, SET = 0x31,
	VERSION = 0xa0, EXTENSIONS = 0xa3, CRL_EXTENSIONS = 0xa0,
	ALT_DNS = 0x82, ALT_IP = 0x87,
};

/* Takes the next element off the front of in. *whole: with its head, may be
 * NULL. false: none there, or damaged; then in is empty. */
static bool
next(struct der *in, uint8_t *tag, struct der *content, struct der *whole)
{
	const uint8_t *p = in->p;
	size_t left = in->len, head = 2, len;

	*in = (struct der){ p + left, 0 };
	if (left < 2)
		return false;
	len = p[1];
	if (len > 0x80 && len <= 0x84) {
		size_t n = len - 0x80;

		head += n;
		if (left < head)
			return false;
		len = 0;
		for (size_t i = 0; i < n; i++)
			len = len << 8 | p[2 + i];
	} else if (len >= 0x80) {
		return false;
	}
	if (len > left - head)
		return false;
	*tag = p[0];
	*content = (struct der){ p + head, len };
	if (whole)
		*whole = (struct der){ p, head + len };
	*in = (struct der){ p + head + len, left - head - len };
	return true;
}

/* The same for an element that must have this tag. */
static bool
take(struct der *in, uint8_t want, struct der *content, struct der *whole)
{
	uint8_t tag;

	return next(in, &tag, content, whole) && tag == want;
}

/* Takes it if it is there. */
static bool
take_optional(struct der *in, uint8_t want, struct der *content)
{
	content->len = 0;
	if (in->len == 0 || in->p[0] != want)
		return false;
	return take(in, want, content, NULL);
}

#define IS(d, bytes) ((d).len == sizeof(bytes) - 1 && \
	memcmp((d).p, (bytes), sizeof(bytes) - 1) == 0)

static int
two_digits(const uint8_t *p)
{
	return p[0] < '0' || p[0] > '9' || p[1] < '0' || p[1] > '9' ? -1 :
	    (p[0] - '0') * 10 + p[1] - '0';
}

/* Days since 1970 of a date of the Gregorian calendar. */
static int64_t
days(int year, int month, int day)
{
	/* Years that begin in March, and 400 of them more, so that none is
	 * below zero. */
	int64_t y = 400 + (month > 2 ? year : year - 1);
	int64_t era = y / 400, yoe = y % 400;
	int doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return (era - 1) * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy -
	    719468;
}

/* UTCTime or GeneralizedTime, as RFC 5280, 4.1.2.5 has them. */
static bool
take_time(struct der *in, int64_t *t)
{
	struct der d;
	uint8_t tag;
	int year, f[5];

	if (!next(in, &tag, &d, NULL))
		return false;
	if (tag == UTC_TIME && d.len == 13) {
		year = two_digits(d.p);
		if (year < 0)
			return false;
		year += year < 50 ? 2000 : 1900;
	} else if (tag == GENERAL_TIME && d.len == 15 &&
	    two_digits(d.p) >= 0 && two_digits(d.p + 2) >= 0) {
		year = two_digits(d.p) * 100 + two_digits(d.p + 2);
		d = (struct der){ d.p + 2, 13 };
	} else {
		return false;
	}
	for (int i = 0; i < 5; i++)
		f[i] = two_digits(d.p + 2 + 2 * i);
	if (f[0] < 1 || f[0] > 12 || f[1] < 1 || f[1] > 31 || f[2] < 0 ||
	    f[2] > 23 || f[3] < 0 || f[3] > 59 || f[4] < 0 || f[4] > 60 ||
	    d.p[12] != 'Z')
		return false;
	*t = days(year, f[0], f[1]) * 86400 + f[2] * 3600 + f[3] * 60 + f[4];
	return true;
}

/* ---- one certificate ---- */

/* ExtendedKeyUsage, RFC 5280, 4.2.1.12. */
static bool
read_key_usage(struct der value, struct cert *c)
{
	struct der list, oid;

	c->for_clients = c->for_servers = false;
	if (!take(&value, SEQUENCE, &list, NULL))
		return false;
	while (list.len) {
		if (!take(&list, OID, &oid, NULL))
			return false;
		if (IS(oid, "\x55\x1d\x25\x00"))        /* any */
			c->for_clients = c->for_servers = true;
		else if (IS(oid, "\x2b\x06\x01\x05\x05\x07\x03\x01"))
			c->for_servers = true;
		else if (IS(oid, "\x2b\x06\x01\x05\x05\x07\x03\x02"))
			c->for_clients = true;
	}
	return true;
}

static bool
read_extensions(struct der in, struct cert *c)
{
	struct der list, ext, oid, critical, value;

	if (!take(&in, SEQUENCE, &list, NULL))
		return false;
	while (list.len) {
		if (!take(&list, SEQUENCE, &ext, NULL) ||
		    !take(&ext, OID, &oid, NULL))
			return false;
		take_optional(&ext, BOOLEAN, &critical);
		if (!take(&ext, OCTET_STRING, &value, NULL))
			return false;
		if (IS(oid, "\x55\x1d\x25") && !read_key_usage(value, c))
			return false;
		if (IS(oid, "\x55\x1d\x11") &&
		    !take(&value, SEQUENCE, &c->alt_names, NULL))
			return false;
	}
	return true;
}

bool
cert_parse(struct der whole, struct cert *c)
{
	struct der cert, tbs, d, validity, version;

	*c = (struct cert){ .for_clients = true, .for_servers = true };
	if (!take(&whole, SEQUENCE, &cert, NULL) ||
	    !take(&cert, SEQUENCE, &tbs, NULL))
		return false;
	c->v1 = !take_optional(&tbs, VERSION, &version) ||
	    version.len != 3 || version.p[2] != 2;
	if (!take(&tbs, INTEGER, &c->serial, NULL) ||
	    !take(&tbs, SEQUENCE, &d, NULL) ||
	    !take(&tbs, SEQUENCE, &d, &c->issuer) ||
	    !take(&tbs, SEQUENCE, &validity, NULL) ||
	    !take_time(&validity, &c->not_before) ||
	    !take_time(&validity, &c->not_after) ||
	    !take(&tbs, SEQUENCE, &d, &c->subject) ||
	    !take(&tbs, SEQUENCE, &d, NULL))        /* the public key */
		return false;
	while (tbs.len) {
		uint8_t tag;

		if (!next(&tbs, &tag, &d, NULL) ||
		    (tag == EXTENSIONS && !read_extensions(d, c)))
			return false;
	}
	return true;
}

void
cert_each_alt_name(const struct cert *c, void (*fn)(void *arg, bool ip,
    struct der value), void *arg)
{
	struct der in = c->alt_names, value;
	uint8_t tag;

	while (in.len && next(&in, &tag, &value, NULL))
		if (tag == ALT_DNS || tag == ALT_IP)
			fn(arg, tag == ALT_IP, value);
}

/* ---- names ---- */

/* Text that is built up; full: it did not fit. */
struct text {
	char *p;
	size_t len, size;
	bool full;
};

static void
put(struct text *t, char c)
{
	if (t->len + 1 < t->size)
		t->p[t->len++] = c;
	else
		t->full = true;
}

static void
put_text(struct text *t, const char *s)
{
	while (*s)
		put(t, *s++);
}

static void
put_hex(struct text *t, uint8_t b)
{
	put(t, "0123456789ABCDEF"[b >> 4]);
	put(t, "0123456789ABCDEF"[b & 15]);
}

/* Turns one character of a string into its code point. false: bad or end. */
static bool
next_char(uint8_t tag, struct der *in, uint32_t *c)
{
	size_t n = tag == BMP ? 2 : tag == UNIVERSAL ? 4 : 1;
	uint32_t lead;

	if (in->len < n)
		return false;
	*c = 0;
	for (size_t i = 0; i < n; i++)
		*c = *c << 8 | in->p[i];
	lead = *c;
	if (tag == UTF8 && lead >= 0x80) {
		n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
		if (in->len < n || lead < 0xc2 || lead > 0xf4)
			return false;
		*c = lead & (0xffu >> (n + 1));
		for (size_t i = 1; i < n; i++) {
			if ((in->p[i] & 0xc0) != 0x80)
				return false;
			*c = *c << 6 | (in->p[i] & 0x3f);
		}
		/* Longer than need be: a second way to write a name. */
		if ((n == 3 && *c < 0x800) || (n == 4 && *c < 0x10000))
			return false;
	}
	if (*c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
		return false;
	*in = (struct der){ in->p + n, in->len - n };
	return true;
}

static int
utf8_bytes(uint32_t c, uint8_t out[4])
{
	int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

	if (n == 1) {
		out[0] = (uint8_t)c;
		return 1;
	}
	for (int i = n - 1; i > 0; i--, c >>= 6)
		out[i] = (uint8_t)(0x80 | (c & 0x3f));
	out[0] = (uint8_t)((0xf00u >> n) | c);
	return n;
}

static bool
is_string(uint8_t tag)
{
	return tag == UTF8 || tag == NUMERIC || tag == PRINTABLE ||
	    tag == T61 || tag == IA5 || tag == UNIVERSAL || tag == BMP;
}

/* One attribute of a name. */
struct attribute {
	struct der oid, value, whole;   /* whole: the value with its head */
	uint8_t tag;
};

static bool
take_attribute(struct der *rdn, struct attribute *a)
{
	struct der seq;

	return take(rdn, SEQUENCE, &seq, NULL) && take(&seq, OID, &a->oid,
	    NULL) && next(&seq, &a->tag, &a->value, &a->whole);
}

bool
cert_common_name(struct der name, char *out, size_t size)
{
	struct der in, rdn;
	struct attribute a;
	struct text t = { out, 0, size, false };
	uint8_t b[4];
	uint32_t c;

	if (!take(&name, SEQUENCE, &in, NULL))
		return false;
	while (in.len) {
		if (!take(&in, SET, &rdn, NULL))
			return false;
		while (rdn.len) {
			if (!take_attribute(&rdn, &a))
				return false;
			if (IS(a.oid, "\x55\x04\x03"))
				goto found;
		}
	}
	return false;
found:
	while (a.value.len) {
		if (!is_string(a.tag) || !next_char(a.tag, &a.value, &c) ||
		    c == 0)
			return false;
		for (int i = 0, n = utf8_bytes(c, b); i < n; i++)
			put(&t, (char)b[i]);
	}
	out[t.len] = 0;
	return !t.full && t.len > 0;
}

/* false: it is cut off, or a number in it is padded or too large to be written:
 * no two names shall give the same text. */
static bool
put_oid(struct text *t, struct der oid)
{
	char number[24];
	uint64_t v = 0;
	bool first = true;

	if (oid.len == 0 || oid.p[oid.len - 1] & 0x80)
		return false;
	for (size_t i = 0; i < oid.len; i++) {
		if (v >> 57 || (v == 0 && oid.p[i] == 0x80))
			return false;
		v = v << 7 | (oid.p[i] & 0x7f);
		if (oid.p[i] & 0x80)
			continue;
		if (first)
			snprintf(number, sizeof number, "%llu.%llu",
			    (unsigned long long)(v < 80 ? v / 40 : 2),
			    (unsigned long long)(v < 80 ? v % 40 : v - 80));
		else
			snprintf(number, sizeof number, ".%llu",
			    (unsigned long long)v);
		put_text(t, number);
		first = false;
		v = 0;
	}
	return true;
}

/* The short name that OpenSSL prints, NULL for others. */
static const char *
attribute_name(struct der oid)
{
	static const struct { const char *oid; uint8_t len; const char *name; }
	known[] = {
		{ "\x55\x04\x03", 3, "CN" }, { "\x55\x04\x04", 3, "SN" },
		{ "\x55\x04\x05", 3, "serialNumber" },
		{ "\x55\x04\x06", 3, "C" }, { "\x55\x04\x07", 3, "L" },
		{ "\x55\x04\x08", 3, "ST" }, { "\x55\x04\x09", 3, "street" },
		{ "\x55\x04\x0a", 3, "O" }, { "\x55\x04\x0b", 3, "OU" },
		{ "\x55\x04\x0c", 3, "title" },
		{ "\x55\x04\x0d", 3, "description" },
		{ "\x55\x04\x11", 3, "postalCode" },
		{ "\x55\x04\x29", 3, "name" }, { "\x55\x04\x2a", 3, "GN" },
		{ "\x55\x04\x2b", 3, "initials" },
		{ "\x55\x04\x2c", 3, "generationQualifier" },
		{ "\x55\x04\x2e", 3, "dnQualifier" },
		{ "\x55\x04\x41", 3, "pseudonym" },
		{ "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01", 9, "emailAddress" },
		{ "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x02", 9,
		    "unstructuredName" },
		{ "\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01", 10, "UID" },
		{ "\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19", 10, "DC" },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (oid.len == known[i].len &&
		    memcmp(oid.p, known[i].oid, oid.len) == 0)
			return known[i].name;
	return NULL;
}

static void
put_escaped(struct text *t, uint32_t c, bool first, bool last)
{
	uint8_t b[4];
	int n = utf8_bytes(c, b);

	if (c < 0x20 || c == 0x7f || c >= 0x80) {
		for (int i = 0; i < n; i++) {
			put(t, '\\');
			put_hex(t, b[i]);
		}
		return;
	}
	if (strchr(",+\"\\<>;", (int)c) || (c == '#' && first) ||
	    (c == ' ' && (first || last)))
		put(t, '\\');
	put(t, (char)c);
}

static bool
put_attribute(struct text *t, struct attribute a)
{
	const char *name = attribute_name(a.oid);
	bool first = true;
	uint32_t c;

	if (name)
		put_text(t, name);
	else if (!put_oid(t, a.oid))
		return false;
	put(t, '=');
	if (!name || !is_string(a.tag)) {
		put(t, '#');
		for (size_t i = 0; i < a.whole.len; i++)
			put_hex(t, a.whole.p[i]);
		return true;
	}
	while (a.value.len) {
		if (!next_char(a.tag, &a.value, &c))
			return false;
		put_escaped(t, c, first, a.value.len == 0);
		first = false;
	}
	return true;
}

/* The attributes of one RDN and then the RDNs, each from the last to the
 * first; names have few parts, so they are walked anew for each. */
static bool
put_reversed(struct text *t, struct der in, uint8_t tag)
{
	unsigned n = 0;
	struct der d, w, all = in;
	bool first = true;

	while (all.len) {
		if (!take(&all, tag, &d, NULL) || ++n > 64)
			return false;
	}
	while (n-- > 0) {
		struct attribute a;

		all = in;
		for (unsigned i = 0; i <= n; i++)
			take(&all, tag, &d, &w);
		if (!first)
			put(t, tag == SET ? ',' : '+');
		first = false;
		if (tag == SET ? !put_reversed(t, d, SEQUENCE) :
		    !take_attribute(&w, &a) || !put_attribute(t, a))
			return false;
	}
	return true;
}

bool
cert_name_text(struct der name, char *out, size_t size)
{
	struct text t = { out, 0, size, false };
	struct der in;
	bool ok = take(&name, SEQUENCE, &in, NULL) &&
	    put_reversed(&t, in, SET);

	out[t.len] = 0;
	return ok && !t.full;
}

void
cert_title(struct der name, char *out, size_t size)
{
	if (cert_common_name(name, out, size))
		return;
	cert_name_text(name, out, size);
	if (!*out)
		snprintf(out, size, "(nameless)");
}

const char *
cert_date(int64_t t, char out[CERT_DATE])
{
	time_t tt = (time_t)t;
	struct tm tm;

	if (!gmtime_r(&tt, &tm) || !strftime(out, CERT_DATE, "%Y-%m-%d", &tm))
		snprintf(out, CERT_DATE, "?");
	return out;
}

/* ---- files ---- */

/* A regular file of sane size, a newline at the end and NUL behind it. */
static char *
read_file(const char *path, size_t *len, const char **why)
{
	struct stat st;
	char *text = NULL;
	ssize_t n = 0;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	*len = 0;
	if (fd < 0 || fstat(fd, &st) < 0) {
		*why = reason("%s", strerror(errno));
		goto out;
	}
	if (!S_ISREG(st.st_mode) || st.st_size > FILE_MAX) {
		*why = S_ISREG(st.st_mode) ? "it is larger than 16 MB" :
		    "it is not a file";
		goto out;
	}
	text = malloc((size_t)st.st_size + 2);
	if (!text) {
		*why = no_memory;
		goto out;
	}
	while (*len < (size_t)st.st_size && (n = read(fd, text + *len,
	    (size_t)st.st_size - *len)) > 0)
		*len += (size_t)n;
	if (n < 0) {
		*why = reason("%s", strerror(errno));
		free(text);
		text = NULL;
		goto out;
	}
	text[(*len)++] = '\n';
	text[*len] = 0;
out:
	if (fd >= 0)
		close(fd);
	return text;
}

/* Takes away what BearSSL's decoder stumbles over: a byte order mark, carriage
 * returns, blanks at the ends of lines. */
static size_t
clean(char *text, size_t len)
{
	size_t out = 0;
	const char *p = text;

	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
		p += 3;
	for (; p < text + len; p++) {
		if (*p == '\n')
			while (out > 0 && strchr(" \t\r", text[out - 1]))
				out--;
		text[out++] = *p;
	}
	return out;
}

typedef bool object_fn(void *arg, const char *name, uint8_t *der, size_t len,
    const char **why);

struct object {
	uint8_t *der;
	size_t len, cap;
};

static void
append(void *arg, const void *p, size_t n)
{
	struct object *o = arg;

	assert(n <= o->cap - o->len);   /* base64 only gets shorter */
	memcpy(o->der + o->len, p, n);
	o->len += n;
}

static void
wipe_free(void *p, size_t n)
{
	if (p)
		explicit_bzero(p, n);
	free(p);
}

/* Calls fn for each object of a PEM file, until it returns false. */
static bool
each_object(const char *path, object_fn *fn, void *arg, const char **why)
{
	br_pem_decoder_context pem;
	size_t len, full, at = 0;
	struct object o;
	char *text = read_file(path, &full, why), name[128] = "";
	bool ok = text != NULL, open = false;

	if (!text)
		return false;
	len = clean(text, full);
	/* Enough at once: a key is not left behind in blocks that grew. And
	 * not of no size, which some allocators do not have. */
	o = (struct object){ .der = malloc(full + 1), .cap = full };
	if (!o.der) {
		*why = no_memory;
		ok = false;
	}
	br_pem_decoder_init(&pem);
	while (ok && at < len) {
		at += br_pem_decoder_push(&pem, text + at, len - at);
		switch (br_pem_decoder_event(&pem)) {
		case BR_PEM_BEGIN_OBJ:
			open = true;
			o.len = 0;
			snprintf(name, sizeof name, "%s",
			    br_pem_decoder_name(&pem));
			br_pem_decoder_setdest(&pem, append, &o);
			break;
		case BR_PEM_END_OBJ:
			open = false;
			ok = fn(arg, name, o.der, o.len, why);
			break;
		case BR_PEM_ERROR:
			*why = reason("the part \"%s\" is damaged", name);
			ok = false;
		}
	}
	if (ok && open) {
		*why = reason("the part \"%s\" has no end; the file is cut "
		    "off", name);
		ok = false;
	}
	explicit_bzero(&pem, sizeof pem);
	wipe_free(o.der, o.cap);
	wipe_free(text, full);
	return ok;
}

/* NULL: no memory. */
static uint8_t *
copy_bytes(const uint8_t *p, size_t n)
{
	uint8_t *q = malloc(n ? n : 1);

	if (q)
		memcpy(q, p, n);
	return q;
}

bool
certs_add(struct certs *cs, const uint8_t *p, size_t len)
{
	br_x509_certificate *der = realloc(cs->der,
	    (cs->n + 1) * sizeof *der);
	uint8_t *copy;

	if (!der)
		return false;
	cs->der = der;
	copy = copy_bytes(p, len);
	if (!copy)
		return false;
	der[cs->n++] = (br_x509_certificate){ copy, len };
	return true;
}

static bool
add_cert(void *arg, const char *name, uint8_t *der, size_t len,
    const char **why)
{
	struct certs *cs = arg;
	struct cert c;

	if (strcmp(name, "CERTIFICATE") && strcmp(name, "X509 CERTIFICATE"))
		return true;
	if (!cert_parse((struct der){ der, len }, &c)) {
		*why = reason("certificate %zu is damaged", cs->n + 1);
		return false;
	}
	if (certs_add(cs, der, len))
		return true;
	*why = no_memory;
	return false;
}

bool
certs_read(struct certs *cs, const char *path, const char **why)
{
	size_t before = cs->n;

	if (!each_object(path, add_cert, cs, why))
		return false;
	if (cs->n == before) {
		*why = "it holds no certificate in PEM form (a DER file is "
		    "turned into one by 'openssl x509 -inform DER')";
		return false;
	}
	return true;
}

static int
is_cert_file(const struct dirent *e)
{
	size_t n = strlen(e->d_name);

	return n > 4 && (!strcmp(e->d_name + n - 4, ".crt") ||
	    !strcmp(e->d_name + n - 4, ".pem"));
}

bool
certs_read_dir(struct certs *cs, const char *dir, const char **why)
{
	char path[PATH_MAX];
	struct dirent **e;
	bool ok = true;
	int n = scandir(dir, &e, is_cert_file, alphasort);

	if (n < 0) {
		*why = reason("%s", strerror(errno));
		return false;
	}
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, e[i]->d_name);
		ok = ok && certs_read(cs, path, why);
		free(e[i]);
	}
	free(e);
	if (n == 0)
		*why = "it holds no .crt or .pem file";
	return ok && n > 0;
}

void
certs_free(struct certs *cs)
{
	for (size_t i = 0; i < cs->n; i++)
		free(cs->der[i].data);
	free(cs->der);
	*cs = (struct certs){ 0 };
}

/* ---- keys ---- */

/* BearSSL 0.6 writes up to 24 bytes behind its context for RSA keys of 4913
 * to 4992 bits. */
struct key_box {
	br_skey_decoder_context dec;
	uint8_t spare[64];
};

static bool
add_key(void *arg, const char *name, uint8_t *der, size_t len,
    const char **why)
{
	struct cert_key *k = arg;
	int err;

	if (!strcmp(name, "ENCRYPTED PRIVATE KEY")) {
		*why = "the key is encrypted and a broker cannot ask for the "
		    "password; 'openssl pkey -in FILE -out NEW' writes it "
		    "without one";
		return false;
	}
	if (k->type || (strcmp(name, "PRIVATE KEY") && strcmp(name,
	    "RSA PRIVATE KEY") && strcmp(name, "EC PRIVATE KEY")))
		return true;
	br_skey_decoder_init(&k->box->dec);
	br_skey_decoder_push(&k->box->dec, der, len);
	err = br_skey_decoder_last_error(&k->box->dec);
	if (err) {
		*why = err == BR_ERR_X509_UNSUPPORTED ?
		    "keys of this type are not supported; RSA (2048 to 4096 "
		    "bits) and EC (P-256, P-384, P-521) are" :
		    "the key is damaged";
		return false;
	}
	k->type = br_skey_decoder_key_type(&k->box->dec);
	return true;
}

static bool
has_text(const char *path, const char *what)
{
	const char *why;
	size_t len;
	char *text = read_file(path, &len, &why);
	bool found = text && strstr(text, what);

	wipe_free(text, text ? len : 0);
	return found;
}

bool
cert_read_key(struct cert_key *k, const char *path, const char **why)
{
	*k = (struct cert_key){ .box = calloc(1, sizeof *k->box) };
	if (!k->box) {
		*why = no_memory;
		return false;
	}
	/* The old form of encryption says so inside of the object. */
	if (has_text(path, "Proc-Type: 4,ENCRYPTED")) {
		add_key(k, "ENCRYPTED PRIVATE KEY", NULL, 0, why);
		goto fail;
	}
	if (!each_object(path, add_key, k, why))
		goto fail;
	if (!k->type) {
		*why = "it holds no private key in PEM form (a DER file is "
		    "turned into one by 'openssl pkey -inform DER')";
		goto fail;
	}
	if (k->type == BR_KEYTYPE_RSA)
		k->rsa = br_skey_decoder_get_rsa(&k->box->dec);
	else
		k->ec = br_skey_decoder_get_ec(&k->box->dec);
	if (k->rsa && (k->rsa->n_bitlen > 4096 || k->rsa->n_bitlen < 2048)) {
		*why = reason("RSA keys of %u bits are not supported, 2048 to "
		    "4096 are", k->rsa->n_bitlen);
		goto fail;
	}
	return true;
fail:
	cert_free_key(k);
	return false;
}

void
cert_free_key(struct cert_key *k)
{
	wipe_free(k->box, sizeof *k->box);
	*k = (struct cert_key){ 0 };
}

/* Signs some bytes and verifies: that also finds keys that do not work. */
static bool
signs_for(const struct cert_key *k, const br_x509_pkey *pub)
{
	static const uint8_t hash[32] = "midge tries whether a key fits";
	uint8_t sig[512], back[32];
	size_t len;

	if (k->type != pub->key_type)
		return false;
	if (k->type == BR_KEYTYPE_EC) {
		len = br_ecdsa_sign_asn1_get_default()(br_ec_get_default(),
		    &br_sha256_vtable, hash, k->ec, sig);
		return k->ec->curve == pub->key.ec.curve && len &&
		    br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(),
		    hash, sizeof hash, &pub->key.ec, sig, len);
	}
	len = (k->rsa->n_bitlen + 7) / 8;
	return br_rsa_pkcs1_sign_get_default()(BR_HASH_OID_SHA256, hash,
	    sizeof hash, k->rsa, sig) && br_rsa_pkcs1_vrfy_get_default()(sig,
	    len, BR_HASH_OID_SHA256, sizeof hash, &pub->key.rsa, back) &&
	    !memcmp(hash, back, sizeof hash);
}

static const char *
decode(br_x509_decoder_context *dec, const br_x509_certificate *c)
{
	int err;

	br_x509_decoder_init(dec, NULL, NULL);
	br_x509_decoder_push(dec, c->data, c->data_len);
	err = br_x509_decoder_last_error(dec);
	return !err ? NULL : err == BR_ERR_X509_UNSUPPORTED ?
	    "its public key is of a type that is not supported; RSA and EC "
	    "(P-256, P-384, P-521) are" : reason("it is damaged "
	    "(BearSSL's error %d)", err);
}

bool
cert_key_fits(const struct cert_key *k, const br_x509_certificate *c,
    const char **why)
{
	br_x509_decoder_context dec;

	*why = decode(&dec, c);
	if (*why)
		return false;
	*why = "the key does not belong to the certificate; 'openssl pkey -in "
	    "KEY -pubout' and 'openssl x509 -in CERT -noout -pubkey' must "
	    "print the same";
	return signs_for(k, br_x509_decoder_get_pkey(&dec));
}

/* ---- anchors ---- */

static void
free_pkey(br_x509_pkey *k)
{
	if (k->key_type == BR_KEYTYPE_RSA) {
		free(k->key.rsa.n);
		free(k->key.rsa.e);
	} else {
		free(k->key.ec.q);
	}
}

/* false: no memory. */
static bool
copy_pkey(br_x509_pkey *to, const br_x509_pkey *from)
{
	bool ok;

	*to = *from;
	if (from->key_type == BR_KEYTYPE_RSA) {
		to->key.rsa.n = copy_bytes(from->key.rsa.n,
		    from->key.rsa.nlen);
		to->key.rsa.e = copy_bytes(from->key.rsa.e,
		    from->key.rsa.elen);
		ok = to->key.rsa.n && to->key.rsa.e;
	} else {
		to->key.ec.q = copy_bytes(from->key.ec.q, from->key.ec.qlen);
		ok = to->key.ec.q != NULL;
	}
	if (!ok)
		free_pkey(to);
	return ok;
}

static bool
add_anchor(struct anchors *as, const br_x509_certificate *c,
    const char **why)
{
	br_x509_trust_anchor *ta = &as->ta[as->n];
	struct cert *info = &as->info[as->n];
	br_x509_decoder_context dec;
	char title[100], fault[300];

	cert_parse((struct der){ c->data, c->data_len }, info);
	*why = decode(&dec, c);
	if (*why) {
		cert_title(info->subject, title, sizeof title);
		snprintf(fault, sizeof fault, "%s", *why);
		*why = reason("certificate \"%s\": %s", title, fault);
		return false;
	}
	ta->dn = (br_x500_name){ (uint8_t *)(uintptr_t)info->subject.p,
	    info->subject.len };
	/* An old root says nothing about being a CA; it is one for OpenSSL
	 * too. One that is none can vouch for itself only. */
	ta->flags = br_x509_decoder_isCA(&dec) || (info->v1 &&
	    der_eq(info->issuer, info->subject)) ? BR_X509_TA_CA : 0;
	if (!copy_pkey(&ta->pkey, br_x509_decoder_get_pkey(&dec))) {
		*why = no_memory;
		return false;
	}
	as->n++;
	return true;
}

static int64_t
end_of(const br_x509_certificate *c)
{
	struct cert info;

	cert_parse((struct der){ c->data, c->data_len }, &info);
	return info.not_after;
}

static int
by_end(const void *a, const void *b)
{
	int64_t x = end_of(a), y = end_of(b);

	return (y > x) - (y < x);
}

bool
anchors_init(struct anchors *as, struct certs *cs, const char **why)
{
	*as = (struct anchors){ .certs = *cs };
	*cs = (struct certs){ 0 };
	if (as->certs.n)
		qsort(as->certs.der, as->certs.n, sizeof *as->certs.der,
		    by_end);
	as->ta = calloc(as->certs.n + 1, sizeof *as->ta);
	as->info = calloc(as->certs.n + 1, sizeof *as->info);
	if (!as->ta || !as->info) {
		*why = no_memory;
		anchors_free(as);
		return false;
	}
	for (size_t i = 0; i < as->certs.n; i++) {
		if (add_anchor(as, &as->certs.der[i], why))
			continue;
		anchors_free(as);
		return false;
	}
	return true;
}

void
anchors_free(struct anchors *as)
{
	for (size_t i = 0; i < as->n; i++)
		free_pkey(&as->ta[i].pkey);
	free(as->ta);
	free(as->info);
	certs_free(&as->certs);
	*as = (struct anchors){ 0 };
}

size_t
anchors_unexpired(const struct anchors *as, int64_t t)
{
	size_t n = as->n;

	while (n > 0 && as->info[n - 1].not_after < t)
		n--;
	return n;
}

const struct cert *
anchors_find(const struct anchors *as, struct der subject, int64_t t)
{
	const struct cert *found = NULL;

	for (size_t i = 0; i < as->n; i++) {
		const struct cert *c = &as->info[i];

		if (!der_eq(c->subject, subject))
			continue;
		if (c->not_before <= t && t <= c->not_after)
			return c;
		if (!found)
			found = c;
	}
	return found;
}

/* ---- revocation lists ---- */

static int
by_serial(const void *a, const void *b)
{
	return memcmp(a, b, 21);
}

/* The number without leading zeros, which some write and some do not. */
static bool
fill_serial(uint8_t out[21], struct der s)
{
	while (s.len > 1 && s.p[0] == 0)
		s = (struct der){ s.p + 1, s.len - 1 };
	if (s.len > 20)
		return false;
	memset(out, 0, 21);
	out[0] = (uint8_t)s.len;
	memcpy(out + 1, s.p, s.len);
	return true;
}

/* The hash that a signature algorithm names; *rsa_oid for PKCS #1. */
static const br_hash_class *
signature_hash(struct der alg, const uint8_t **rsa_oid, int *key_type)
{
	static const struct {
		const char *oid;
		uint8_t len;
		int key_type;
		const br_hash_class *hash;
		const char *rsa_oid;
	} known[] = {
#define RSA_PREFIX "\x2a\x86\x48\x86\xf7\x0d\x01\x01"
#define EC_PREFIX "\x2a\x86\x48\xce\x3d\x04\x03"
		{ RSA_PREFIX "\x0b", 9, BR_KEYTYPE_RSA, &br_sha256_vtable,
		    (const char *)BR_HASH_OID_SHA256 },
		{ RSA_PREFIX "\x0c", 9, BR_KEYTYPE_RSA, &br_sha384_vtable,
		    (const char *)BR_HASH_OID_SHA384 },
		{ RSA_PREFIX "\x0d", 9, BR_KEYTYPE_RSA, &br_sha512_vtable,
		    (const char *)BR_HASH_OID_SHA512 },
		{ EC_PREFIX "\x02", 8, BR_KEYTYPE_EC, &br_sha256_vtable, "" },
		{ EC_PREFIX "\x03", 8, BR_KEYTYPE_EC, &br_sha384_vtable, "" },
		{ EC_PREFIX "\x04", 8, BR_KEYTYPE_EC, &br_sha512_vtable, "" },
	};
	struct der oid;

	if (!take(&alg, OID, &oid, NULL))
		return NULL;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		if (oid.len != known[i].len ||
		    memcmp(oid.p, known[i].oid, oid.len))
			continue;
		*rsa_oid = (const uint8_t *)known[i].rsa_oid;
		*key_type = known[i].key_type;
		return known[i].hash;
	}
	return NULL;
}

static bool
signed_by(const br_x509_trust_anchor *ta, struct der tbs, struct der alg,
    struct der sig)
{
	br_hash_compat_context hc;
	const br_hash_class *h;
	const uint8_t *rsa_oid = NULL;
	uint8_t hash[64], back[64];
	size_t len;
	int type = 0;

	h = signature_hash(alg, &rsa_oid, &type);
	if (!h || type != ta->pkey.key_type || sig.len < 2 || sig.p[0] != 0)
		return false;
	sig = (struct der){ sig.p + 1, sig.len - 1 };   /* no unused bits */
	h->init(&hc.vtable);
	h->update(&hc.vtable, tbs.p, tbs.len);
	h->out(&hc.vtable, hash);
	len = (h->desc >> BR_HASHDESC_OUT_OFF) & BR_HASHDESC_OUT_MASK;
	if (type == BR_KEYTYPE_EC)
		return br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(),
		    hash, len, &ta->pkey.key.ec, sig.p, sig.len);
	return br_rsa_pkcs1_vrfy_get_default()(sig.p, sig.len, rsa_oid, len,
	    &ta->pkey.key.rsa, back) && !memcmp(hash, back, len);
}

/* Looks for critical extensions. false: damaged. */
static bool
look_for_critical(struct der list, bool *critical)
{
	struct der ext, oid, flag;

	while (list.len) {
		if (!take(&list, SEQUENCE, &ext, NULL) ||
		    !take(&ext, OID, &oid, NULL))
			return false;
		if (take_optional(&ext, BOOLEAN, &flag))
			*critical |= !IS(flag, "\0");
	}
	return true;
}

static bool
read_serials(struct crl *c, struct der list, const char **why)
{
	struct der all = list, entry, serial, extensions;
	int64_t since;
	size_t n = 0;

	while (all.len) {
		if (!take(&all, SEQUENCE, &entry, NULL) ||
		    ++n > CRL_SERIALS_MAX)
			return false;
	}
	c->serials = calloc(n + 1, sizeof *c->serials);
	if (!c->serials) {
		*why = no_memory;
		return false;
	}
	while (list.len) {
		take(&list, SEQUENCE, &entry, NULL);
		if (!take(&entry, INTEGER, &serial, NULL) ||
		    !fill_serial(c->serials[c->n], serial) ||
		    !take_time(&entry, &since))
			return false;
		take_optional(&entry, SEQUENCE, &extensions);
		if (!look_for_critical(extensions, &c->critical))
			return false;
		c->n++;
	}
	qsort(c->serials, c->n, sizeof *c->serials, by_serial);
	return true;
}

/* Takes a list apart. false: damaged, or *why says what else. */
static bool
parse_crl(struct der whole, struct crl *c, struct der *tbs_whole,
    struct der *alg, struct der *sig, const char **why)
{
	struct der list, tbs, d, serials, extensions = { 0 };

	*c = (struct crl){ 0 };
	if (!take(&whole, SEQUENCE, &list, NULL) ||
	    !take(&list, SEQUENCE, &tbs, tbs_whole) ||
	    !take(&list, SEQUENCE, alg, NULL) ||
	    !take(&list, BIT_STRING, sig, NULL))
		return false;
	take_optional(&tbs, INTEGER, &d);
	if (!take(&tbs, SEQUENCE, &d, NULL) ||
	    !take(&tbs, SEQUENCE, &d, &c->issuer) ||
	    !take_time(&tbs, &c->this_update))
		return false;
	if (tbs.len && (tbs.p[0] == UTC_TIME || tbs.p[0] == GENERAL_TIME) &&
	    !take_time(&tbs, &c->next_update))
		return false;
	take_optional(&tbs, SEQUENCE, &serials);
	if (take_optional(&tbs, CRL_EXTENSIONS, &d) &&
	    !take(&d, SEQUENCE, &extensions, NULL))
		return false;
	return look_for_critical(extensions, &c->critical) &&
	    read_serials(c, serials, why);
}

struct crl_reader {
	struct crls *cs;
	const struct anchors *as;
};

/* For one more list. */
static bool
make_room(struct crls *cs)
{
	struct crl *list = realloc(cs->list, (cs->n + 1) * sizeof *list);
	uint8_t **der;

	if (!list)
		return false;
	cs->list = list;
	der = realloc(cs->der, (cs->n + 1) * sizeof *der);
	if (!der)
		return false;
	cs->der = der;
	return true;
}

static bool
add_crl(void *arg, const char *name, uint8_t *der, size_t len,
    const char **why)
{
	struct crl_reader *r = arg;
	struct crls *cs = r->cs;
	struct der tbs, alg, sig;
	struct crl c;
	char title[100];

	if (strcmp(name, "X509 CRL"))
		return true;
	if (!make_room(cs) || !(cs->der[cs->n] = copy_bytes(der, len))) {
		*why = no_memory;
		return false;
	}
	*why = reason("list %zu is damaged", cs->n + 1);
	if (!parse_crl((struct der){ cs->der[cs->n], len }, &c, &tbs, &alg,
	    &sig, why)) {
		free(c.serials);
		free(cs->der[cs->n]);
		return false;
	}
	cs->list[cs->n++] = c;
	if (c.critical) {
		*why = reason("list %zu has a critical extension, as lists of "
		    "changes have; only whole lists can be used", cs->n);
		return false;
	}
	for (size_t i = 0; i < r->as->n; i++)
		if (der_eq(r->as->info[i].subject, c.issuer) &&
		    signed_by(&r->as->ta[i], tbs, alg, sig))
			return true;
	cert_title(c.issuer, title, sizeof title);
	*why = reason("the list of \"%s\" is not signed by a CA of cafile or "
	    "capath", title);
	return false;
}

bool
crls_read(struct crls *cs, const char *path, const struct anchors *as,
    const char **why)
{
	struct crl_reader r = { cs, as };
	bool ok;

	*cs = (struct crls){ 0 };
	ok = each_object(path, add_crl, &r, why);
	if (ok && cs->n == 0) {
		*why = "it holds no revocation list in PEM form";
		ok = false;
	}
	if (!ok)
		crls_free(cs);
	return ok;
}

void
crls_free(struct crls *cs)
{
	for (size_t i = 0; i < cs->n; i++) {
		free(cs->list[i].serials);
		free(cs->der[i]);
	}
	free(cs->list);
	free(cs->der);
	*cs = (struct crls){ 0 };
}

const struct crl *
crls_find(const struct crls *cs, struct der issuer)
{
	const struct crl *found = NULL;

	for (size_t i = 0; i < cs->n; i++)
		if (der_eq(cs->list[i].issuer, issuer) && (!found ||
		    cs->list[i].this_update > found->this_update))
			found = &cs->list[i];
	return found;
}

bool
crls_revoke(const struct crls *cs, struct der issuer, struct der serial)
{
	uint8_t key[21];

	if (!fill_serial(key, serial))
		return true;
	for (size_t i = 0; i < cs->n; i++) {
		const struct crl *c = &cs->list[i];

		if (der_eq(c->issuer, issuer) && c->n && bsearch(key,
		    c->serials, c->n, sizeof *c->serials, by_serial))
			return true;
	}
	return false;
}
