/* Tests of auth: the delays after refused logins. What clients see of the rest
 * is in test_auth.py. */
#include "auth.h"
#include "check.h"

#define FREE 5                  /* refusals without a delay */
#define FORGET_MS (15 * 60 * 1000)

static struct auth_delays d;

static struct conn_addr
ipv4(unsigned n)
{
	struct conn_addr a = { .family = AF_INET, .port = (uint16_t)rand() };

	memcpy(a.ip, &n, 4);
	return a;
}

/* The delay of the n-th refusal from a. */
static int64_t
refuse(const struct conn_addr *a, unsigned n, int max_s, int64_t now_ms)
{
	int64_t ms = 0;

	for (unsigned i = 0; i < n; i++)
		ms = auth_delay(&d, a, max_s, now_ms);
	return ms;
}

TEST(they_double_up_to_the_cap)
{
	struct conn_addr a = ipv4(1), b = ipv4(2);

	for (unsigned i = 1; i <= FREE; i++)
		CHECK(refuse(&a, 1, 20, 1000) == 0);
	CHECK(refuse(&a, 1, 20, 1000) == 1000);
	CHECK(refuse(&a, 1, 20, 1000) == 2000);
	CHECK(refuse(&a, 1, 20, 1000) == 4000);
	CHECK(refuse(&a, 1, 20, 1000) == 8000);
	CHECK(refuse(&a, 1, 20, 1000) == 16000);
	for (unsigned i = 0; i < 100000; i++)
		CHECK(refuse(&a, 1, 20, 1000) == 20000);
	CHECK(refuse(&a, 1, 3600, 1000) == 3600000);
	CHECK(refuse(&a, 1, 0, 1000) == 0);
	CHECK(refuse(&b, FREE, 20, 1000) == 0);
}

TEST(they_end)
{
	struct conn_addr a = ipv4(1), b = ipv4(2);

	CHECK(refuse(&a, FREE + 1, 20, 1000) == 1000);
	CHECK(refuse(&b, FREE + 1, 20, 1000) == 1000);
	auth_forgive(&d, &a);
	CHECK(refuse(&a, 1, 20, 1000) == 0);
	CHECK(refuse(&b, 1, 20, 1000 + FORGET_MS) == 2000);
	CHECK(refuse(&b, 1, 20, 1001 + 2 * FORGET_MS) == 0);
	auth_forgive(&d, &(struct conn_addr){ .family = AF_UNIX });
}

TEST(addresses)
{
	struct conn_addr six = { .family = AF_INET6 }, other = six, local =
	    { .family = AF_UNIX };

	six.ip[0] = other.ip[0] = 0x20;
	six.ip[15] = 1;
	CHECK(refuse(&six, FREE, 20, 0) == 0);
	CHECK(refuse(&other, 1, 20, 0) == 1000);        /* the same /64 */
	other.ip[7] = 1;
	CHECK(refuse(&other, 1, 20, 0) == 0);
	CHECK(refuse(&local, FREE + 1, 20, 0) == 1000);
}

/* Beyond the room the one that was quiet for longest is forgotten. */
TEST(many_sources)
{
	struct conn_addr a = ipv4(1), b;

	CHECK(refuse(&a, FREE + 1, 20, 1) == 1000);
	for (unsigned i = 2; i < 2 + AUTH_SOURCES - 1; i++) {
		b = ipv4(i);
		CHECK(refuse(&b, FREE + 1, 20, i) == 1000);
	}
	CHECK(refuse(&a, 1, 20, 500) == 2000);
	b = ipv4(1000);
	CHECK(refuse(&b, 1, 20, 501) == 0);
	CHECK(refuse(&a, 1, 20, 502) == 4000);
	b = ipv4(2);
	CHECK(refuse(&b, 1, 20, 503) == 0);
	b = ipv4(4);
	CHECK(refuse(&b, 1, 20, 504) == 2000);
}

/* ---- questions that no test over sockets can ask yet ---- */

static struct mqtt_str
str(const char *s)
{
	return (struct mqtt_str){ (const uint8_t *)s, (uint32_t)strlen(s) };
}

TEST(a_name_from_a_certificate_is_enough)
{
	const struct config_security closed = { .allow_anonymous = false };
	const struct guard g = { .conf = &closed };
	struct mqtt_connect k = { .has_user = true, .user = str("other") };
	struct auth_check check;
	const char *why = NULL;

	CHECK(auth_login(&g, &k, NULL, &check, &why) == AUTH_NO && why);
	CHECK(auth_login(&g, &k, "name", &check, &why) == AUTH_YES);
}

TEST(anonymous_clients_when_they_are_forbidden)
{
	const struct config_security open = { .allow_anonymous = true },
	    closed = { .allow_anonymous = false }, local = { .any_user = true };
	const struct guard was = { .conf = &open }, now = { .conf = &closed },
	    here = { .conf = &local };
	const struct mqtt_str nobody = { NULL, 0 };

	CHECK(!auth_outdated(&was, &was, nobody));
	CHECK(auth_outdated(&was, &now, nobody));
	CHECK(auth_outdated(&was, &now, str("u")));
	CHECK(auth_outdated(&was, &here, nobody));
	CHECK(!auth_outdated(&was, &here, str("u")));
}

TEST(writing_as_somebody_else)
{
	const struct config_security open = { .allow_anonymous = true };
	const struct guard g = { .conf = &open };
	const struct acl_client c = { .id = str("c") };

	CHECK(auth_may_write_as(&g, &c, str("t")));
	CHECK(!auth_may_write_as(&g, &c, str("$SYS/x")));
	CHECK(auth_may_write_as(&g, &c, str("$SYS/broker/connection/x/state")));
}
