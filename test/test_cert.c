/* Tests of cert: dates, names, keys and revocation lists. What is expected is
 * what openssl(1) and date(1) say about the same things. */
#include "check.h"
#include "cert.h"
#include "pem.h"

#include <fcntl.h>

#define N(array) (sizeof(array) / sizeof *(array))
#define DER(text) ((struct der){ (const uint8_t *)(text), sizeof(text) - 1 })

static char dir[] = "/tmp/test_cert.XXXXXX";
static char file[64];
static const char *why;

/* A file with these texts, one behind the other. */
static const char *
write_file(const char *a, const char *b)
{
	int fd;

	if (!file[0]) {
		CHECK(mkdtemp(dir));
		snprintf(file, sizeof file, "%s/pem", dir);
	}
	fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && write(fd, a, strlen(a)) == (ssize_t)strlen(a) &&
	    write(fd, b, strlen(b)) == (ssize_t)strlen(b));
	close(fd);
	return file;
}

static void
end(void)
{
	unlink(file);
	CHECK(rmdir(dir) == 0);
}

/* The certificate of a text; its DER stays. */
static struct der
der_of(const char *text)
{
	static struct certs cs;

	CHECK(certs_read(&cs, write_file(text, ""), &why));
	return (struct der){ cs.der[cs.n - 1].data, cs.der[cs.n - 1].data_len };
}

static struct cert
cert_of(const char *text)
{
	struct cert c;

	CHECK(cert_parse(der_of(text), &c));
	return c;
}

/* ---- certificates ---- */

TEST(cert_fields)
{
	struct cert c = cert_of(pem_server_cert), ca = cert_of(pem_ca_cert);

	CHECK(c.v1 && !ca.v1);
	CHECK(der_eq(c.issuer, ca.subject) && der_eq(ca.issuer, ca.subject));
	CHECK(!der_eq(c.subject, ca.subject));
	CHECK(der_eq(c.serial, DER("\x67\xa2\xdf\x1e\x82\xf0\xb7\xf1\x1d\x8a"
	    "\xaf\xc7\x3b\xb5\xb7\xfa\x96\x9e\xa3\xb6")));
	CHECK(c.not_before == 1795268337 && c.not_after == 4387268337);
	CHECK(c.for_clients && c.for_servers && c.alt_names.len == 0);
	c = cert_of(pem_names);
	CHECK(!c.v1 && !c.for_clients && c.for_servers);
	CHECK(der_eq(c.serial, DER("\0\x80")));
	end();
}

/* Cut off anywhere, it is damaged; BearSSL's part of it is not looked at. */
TEST(cert_cut_off)
{
	struct der d = der_of(pem_names);
	struct cert c;

	for (size_t n = 0; n < d.len; n++)
		CHECK(!cert_parse((struct der){ d.p, n }, &c));
	CHECK(cert_parse(d, &c));
	end();
}

/* Puts another date into a certificate; both have 13 or 15 letters. */
static bool
with_date(const char *old, const char *new, struct cert *c)
{
	struct der d = der_of(pem_server_cert);
	static uint8_t copy[2000];
	uint8_t *at;

	memcpy(copy, d.p, d.len);
	at = memmem(copy, d.len, old, strlen(old));
	CHECK(at && strlen(old) == strlen(new));
	memcpy(at, new, strlen(new));
	return cert_parse((struct der){ copy, d.len }, c);
}

TEST(cert_dates)
{
	static const struct { const char *text; int64_t t; } utc[] = {
		{ "700101000000Z", 0 },
		{ "500101000000Z", -631152000 },
		{ "491231235959Z", 2524607999 },
		{ "000229120000Z", 951825600 },
	}, general[] = {
		{ "21000301000000Z", 4107542400 },
		{ "99991231235959Z", 253402300799 },
		{ "19000228235959Z", -2203891201 },
		{ "00000101000000Z", -62167219200 },
		{ "00010301000000Z", -62130499200 },
	};
	struct cert c;

	for (size_t i = 0; i < N(utc); i++)
		CHECK(with_date("261121133857Z", utc[i].text, &c) &&
		    c.not_before == utc[i].t);
	for (size_t i = 0; i < N(general); i++)
		CHECK(with_date("21090110133857Z", general[i].text, &c) &&
		    c.not_after == general[i].t);
	end();
}

TEST(cert_no_dates)
{
	static const char *const bad[] = {
		"261321133857Z", "260021133857Z", "261100133857Z",
		"261132133857Z", "261121243857Z", "261121136057Z",
		"261121133861Z", "261121133857+", "2611211338 7Z",
		"-61121133857Z", "26112113385:Z",
	};
	struct cert c;

	for (size_t i = 0; i < N(bad); i++)
		CHECK(!with_date("261121133857Z", bad[i], &c));
	end();
}

TEST(cert_date_text)
{
	char out[CERT_DATE];

	CHECK(!strcmp(cert_date(0, out), "1970-01-01"));
	CHECK(!strcmp(cert_date(4107542400, out), "2100-03-01"));
	CHECK(!strcmp(cert_date(-1, out), "1969-12-31"));
	CHECK(!strcmp(cert_date(INT64_MAX, out), "?"));
}

/* ---- names ---- */

/* openssl x509 -noout -subject -nameopt RFC2253 */
TEST(name_text)
{
	struct cert c = cert_of(pem_names);
	static const char want[] = "2.3.4.5=#0C036F6464,DC=dc,UID=u1,"
	    "emailAddress=a@b.c,CN=J\\C3\\BCrgen\\;\\<\\C3\\A9\\>,"
	    "OU=\\#hash,OU=\\ lead,O=Ex\\+ample\\, \\\"x\\\" \\\\1,C=DE";
	char out[sizeof want];

	CHECK(cert_name_text(c.subject, out, sizeof out));
	CHECK(!strcmp(out, want));
	CHECK(!cert_name_text(c.subject, out, sizeof out - 1));
	end();
}

TEST(name_common)
{
	struct cert c = cert_of(pem_names);
	char out[40], title[12];

	CHECK(cert_common_name(c.subject, out, sizeof out));
	CHECK(!strcmp(out, "J\xc3\xbcrgen;<\xc3\xa9>"));
	CHECK(cert_common_name(c.subject, out, strlen(out) + 1));
	CHECK(!cert_common_name(c.subject, out, strlen(out)));
	cert_title(c.subject, title, sizeof title);
	CHECK(!strcmp(title, "2.3.4.5=#0C"));
	cert_title(DER("\x30\0"), out, sizeof out);
	CHECK(!strcmp(out, "(nameless)"));
	end();
}

/* A name with one attribute; lengths below 128. */
static struct der
name_with(uint8_t tag, struct der oid, struct der value)
{
	static uint8_t b[200];
	uint8_t n = (uint8_t)(4 + oid.len + value.len);
	const uint8_t head[] = { 0x30, n + 4, 0x31, n + 2, 0x30, n, 6,
	    (uint8_t)oid.len };

	memcpy(b, head, 8);
	memcpy(b + 8, oid.p, oid.len);
	b[8 + oid.len] = tag;
	b[9 + oid.len] = (uint8_t)value.len;
	memcpy(b + 10 + oid.len, value.p, value.len);
	return (struct der){ b, n + 6u };
}

static bool
common_name(uint8_t tag, struct der value, char out[40])
{
	return cert_common_name(name_with(tag, DER("\x55\x04\x03"), value),
	    out, 40);
}

TEST(name_of_each_string)
{
	char out[40];

	CHECK(common_name(0x13, DER("abc"), out) && !strcmp(out, "abc"));
	CHECK(common_name(0x14, DER("\xe9"), out) &&
	    !strcmp(out, "\xc3\xa9"));
	CHECK(common_name(0x1e, DER("\0a\x20\xac"), out) &&
	    !strcmp(out, "a\xe2\x82\xac"));
	CHECK(common_name(0x1c, DER("\0\1\xf6\0"), out) &&
	    !strcmp(out, "\xf0\x9f\x98\x80"));
	CHECK(common_name(0x0c, DER("\xf0\x9f\x98\x80"), out) &&
	    !strcmp(out, "\xf0\x9f\x98\x80"));
}

/* Nobody gets a name that another one has, or none at all. */
TEST(name_that_is_none)
{
	static const struct { uint8_t tag; struct der value; } bad[] = {
		{ 0x0c, { (const uint8_t *)"", 0 } },
		{ 0x0c, { (const uint8_t *)"admin\0x", 7 } },
		{ 0x0c, { (const uint8_t *)"\xc1\xa1", 2 } },
		{ 0x0c, { (const uint8_t *)"\xe0\x81\xa1", 3 } },
		{ 0x0c, { (const uint8_t *)"\xf0\x80\x81\xa1", 4 } },
		{ 0x0c, { (const uint8_t *)"\xed\xa0\x80", 3 } },
		{ 0x0c, { (const uint8_t *)"\xf4\x90\x80\x80", 4 } },
		{ 0x0c, { (const uint8_t *)"a\xc3", 2 } },
		{ 0x1e, { (const uint8_t *)"\0a\0", 3 } },
		{ 0x1e, { (const uint8_t *)"\xd8\0\xdc\0", 4 } },
		{ 0x1c, { (const uint8_t *)"\0\x11\0\0", 4 } },
		{ 0x04, { (const uint8_t *)"abc", 3 } },
	};
	char out[40];

	for (size_t i = 0; i < N(bad); i++)
		CHECK(!common_name(bad[i].tag, bad[i].value, out));
}

TEST(name_with_odd_oid)
{
	char out[60];

	CHECK(cert_name_text(name_with(0x0c, DER("\x2a\x86\x48\x01"),
	    DER("x")), out, sizeof out) && !strcmp(out, "1.2.840.1=#0C0178"));
	CHECK(!cert_name_text(name_with(0x0c, DER("\x2a\x86"), DER("x")), out,
	    sizeof out));
	CHECK(!cert_name_text(name_with(0x0c, DER("\x2a\x80\x01"), DER("x")),
	    out, sizeof out));
	CHECK(!cert_name_text(name_with(0x0c, DER("\x2a\x82\x80\x80\x80\x80"
	    "\x80\x80\x80\x80\x01"), DER("x")), out, sizeof out));
	CHECK(!cert_name_text(name_with(0x0c, DER(""), DER("x")), out,
	    sizeof out));
}

static void
add_name(void *arg, bool ip, struct der value)
{
	char *text = arg;
	size_t n = strlen(text);

	snprintf(text + n, 100 - n, "%s%zu:%02x%02x ", ip ? "ip" : "dns",
	    value.len, value.p[0], value.p[value.len - 1]);
}

TEST(alt_names)
{
	struct cert c = cert_of(pem_names);
	char text[100] = "";

	cert_each_alt_name(&c, add_name, text);
	CHECK(!strcmp(text, "dns9:6c74 ip4:7f01 ip16:0001 "));
	end();
}

/* ---- files ---- */

TEST(file_with_text_around)
{
	struct certs cs = { 0 };
	char text[4000] = "\xef\xbb\xbfSubject: x\r\n";

	for (const char *p = pem_ca_cert; *p; p++)
		strncat(text, *p == '\n' ? " \r\n" : (char[2]){ *p, 0 },
		    sizeof text - strlen(text) - 1);
	CHECK(certs_read(&cs, write_file(text, pem_server_cert), &why));
	CHECK(cs.n == 2);
	certs_free(&cs);
	end();
}

TEST(file_cut_off)
{
	struct certs cs = { 0 };
	char text[2000];

	snprintf(text, sizeof text, "%.*s", 300, pem_server_cert);
	CHECK(!certs_read(&cs, write_file(pem_ca_cert, text), &why));
	CHECK(!strcmp(why, "the part \"CERTIFICATE\" has no end; the file is "
	    "cut off"));
	certs_free(&cs);
	end();
}

TEST(key_fits)
{
	struct der d = der_of(pem_server_cert);
	struct cert_key k;
	br_x509_certificate c = { (uint8_t *)(uintptr_t)d.p, d.len };

	CHECK(cert_read_key(&k, write_file(pem_server_key, ""), &why));
	CHECK(k.type == BR_KEYTYPE_EC && cert_key_fits(&k, &c, &why));
	cert_free_key(&k);
	CHECK(cert_read_key(&k, write_file(pem_client_key, ""), &why));
	CHECK(!cert_key_fits(&k, &c, &why));
	cert_free_key(&k);
	CHECK(!cert_read_key(&k, write_file(pem_server_cert, ""), &why));
	CHECK(strstr(why, "no private key"));
	end();
}

/* ---- revocation lists ---- */

static struct anchors
authority(const char *text)
{
	struct anchors as;
	struct certs cs = { 0 };

	CHECK(certs_read(&cs, write_file(text, ""), &why));
	CHECK(anchors_init(&as, &cs, &why));
	return as;
}

TEST(crl_revokes)
{
	struct cert server = cert_of(pem_server_cert);
	struct cert client = cert_of(pem_client_cert);
	struct anchors ca = authority(pem_ca_cert);
	struct crls cs;

	CHECK(crls_read(&cs, write_file(pem_ca_crl, ""), &ca, &why));
	CHECK(cs.n == 1 && crls_find(&cs, server.issuer) == &cs.list[0]);
	CHECK(cs.list[0].this_update == 1795268337);
	CHECK(cs.list[0].next_update == 4387268337);
	CHECK(crls_revoke(&cs, server.issuer, server.serial));
	CHECK(!crls_revoke(&cs, client.issuer, client.serial));
	CHECK(!crls_revoke(&cs, server.subject, server.serial));
	CHECK(!crls_find(&cs, server.subject));
	/* A number that no list could hold. */
	CHECK(crls_revoke(&cs, server.issuer, DER("123456789012345678901")));
	crls_free(&cs);
	anchors_free(&ca);
	end();
}

/* In whatever order they stand, both count, and the newer one's date. */
TEST(crl_twice)
{
	struct cert server = cert_of(pem_server_cert);
	struct anchors ca = authority(pem_ca_cert);
	struct crls cs;

	for (int i = 0; i < 2; i++) {
		CHECK(crls_read(&cs, write_file(i ? pem_ca_crl : pem_old_crl,
		    i ? pem_old_crl : pem_ca_crl), &ca, &why));
		CHECK(cs.n == 2);
		CHECK(crls_find(&cs, server.issuer)->n == 1);
		CHECK(crls_revoke(&cs, server.issuer, server.serial));
		crls_free(&cs);
	}
	anchors_free(&ca);
	end();
}

TEST(crl_of_changes_only)
{
	struct anchors ca = authority(pem_ca_cert);
	struct crls cs;

	CHECK(!crls_read(&cs, write_file(pem_delta_crl, ""), &ca, &why));
	CHECK(strstr(why, "critical extension") && cs.n == 0);
	anchors_free(&ca);
	end();
}

TEST(crl_of_another)
{
	struct anchors other = authority(pem_names);
	struct crls cs;

	CHECK(!crls_read(&cs, write_file(pem_ca_crl, ""), &other, &why));
	CHECK(!strcmp(why, "the list of \"ca\" is not signed by a CA of cafile "
	    "or capath"));
	CHECK(!crls_read(&cs, write_file(pem_ca_cert, ""), &other, &why));
	CHECK(strstr(why, "no revocation list"));
	anchors_free(&other);
	end();
}
