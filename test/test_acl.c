/* Tests of acl against a plain model: rules, filters and topics made of a few
 * short levels, so that they meet often. What the rules mean to clients is in
 * test_auth.py. */
#include "check.h"
#include "acl.h"
#include "hash.h"
#include "log.h"
#include "mem.h"
#include "model.h"

#include <fcntl.h>

#define N_RULES 6
#define TEXT 64

static char path[] = "/tmp/test_acl.XXXXXX";

struct line {
	unsigned access;        /* 0: deny */
	bool pattern;
	char filter[TEXT];      /* names put in */
};

static struct line rules[N_RULES];

static struct mqtt_str
str(const char *s)
{
	return (struct mqtt_str){ (const uint8_t *)s, (uint32_t)strlen(s) };
}

static const struct acl_client who = { { (const uint8_t *)"u", 1 },
    { (const uint8_t *)"c", 1 } };

/* A filter of one to three levels; pattern: with names in it. */
static void
make_filter(char *out, bool wild, bool pattern)
{
	static const char *const plain[] = { "a", "u", "c", "", "$S" };
	int n = 1 + rand() % 3;

	*out = 0;
	for (int i = 0; i < n; i++) {
		const char *level = plain[rand() % 5];

		if (wild && rand() % 4 == 0)
			level = "+";
		else if (wild && i == n - 1 && rand() % 4 == 0)
			level = "#";
		else if (pattern && rand() % 3 == 0)
			level = rand() % 2 ? "%u" : "%c";
		if (i)
			strcat(out, "/");
		strcat(out, level);
	}
	if (!*out)
		strcpy(out, "a");
}

static void
put_in(char *out, const char *pattern)
{
	for (; *pattern; pattern++) {
		if (*pattern == '%')
			*out++ = *++pattern;
		else
			*out++ = *pattern;
	}
	*out = 0;
}

static struct acl *
make_rules(void)
{
	static const char *const words[] = { "deny", "read", "write",
	    "readwrite" };
	FILE *f = fopen(path, "w");
	char filter[TEXT];
	struct acl *a;

	CHECK(f);
	fprintf(f, "user u\n");
	for (int i = 0; i < N_RULES; i++) {
		rules[i].access = (unsigned)rand() % 4;
		rules[i].pattern = rand() % 2;
		make_filter(filter, true, rules[i].pattern);
		put_in(rules[i].filter, filter);
		fprintf(f, "%s %s %s\n", rules[i].pattern ? "pattern" : "topic",
		    words[rules[i].access], filter);
	}
	CHECK(fclose(f) == 0);
	a = acl_load(path);
	CHECK(a);
	return a;
}

/* The four steps in their order. */
static bool
model_may(const char *topic, unsigned access)
{
	for (int step = 0; step < 4; step++) {
		for (int i = 0; i < N_RULES; i++) {
			if (rules[i].pattern != (step >= 2) ||
			    (rules[i].access == 0) != (step % 2 == 0) ||
			    !matches(rules[i].filter, topic))
				continue;
			if (step % 2 == 0)
				return false;
			if (rules[i].access & access)
				return true;
		}
	}
	return false;
}

static void
begin(void)
{
	static const struct log_config quiet = { .types = LOG_T_ALL };
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	close(fd);
	log_open(&quiet);
	hash_seed();
	srand(1);
}

TEST(answers_are_those_of_the_model)
{
	char topic[TEXT];
	unsigned granted = 0;

	begin();
	for (int i = 0; i < 4000; i++) {
		struct acl *a = make_rules();
		const struct acl_user *u = acl_find(a, str("u"));

		for (int k = 0; k < 20; k++) {
			unsigned access = 1u + (unsigned)rand() % 2;
			bool may;

			make_filter(topic, false, false);
			may = acl_may(u, &who, str(topic), access);
			CHECK(may == model_may(topic, access));
			granted += may;
		}
		acl_free(a);
	}
	CHECK(granted > 4000 && granted < 60000);
	unlink(path);
	CHECK(mem_used() == 0);
}

/* Where a subscription is refused no topic may be readable under it; and most
 * of those that bring nothing are found. */
TEST(refused_subscriptions_are_without_hope)
{
	char filter[TEXT], topic[TEXT];
	unsigned refused = 0, missed = 0;

	begin();
	for (int i = 0; i < 2000; i++) {
		struct acl *a = make_rules();
		const struct acl_user *u = acl_find(a, str("u"));
		bool could, any = false;

		make_filter(filter, true, false);
		could = acl_could_read(u, &who, str(filter));
		for (int k = 0; k < 400; k++) {
			make_filter(topic, false, false);
			any |= matches(filter, topic) &&
			    acl_may(u, &who, str(topic), ACL_READ);
		}
		CHECK(could || !any);
		refused += !could;
		missed += could && !any;
		acl_free(a);
	}
	CHECK(refused > 500 && missed < refused / 4);
	unlink(path);
}

TEST(users)
{
	static const char text[] = "topic read anonymous\nuser x\ntopic x\n"
	    "user y\ntopic y\nuser x\ntopic again\npattern read p/%u\n";
	struct acl_client none = { .id = str("c") };
	const struct acl_user *u;
	struct acl *a;
	int fd;

	begin();
	fd = open(path, O_WRONLY);
	CHECK(write(fd, text, sizeof text - 1) == sizeof text - 1);
	close(fd);
	a = acl_load(path);
	CHECK(a);
	u = acl_find(a, none.user);
	CHECK(acl_may(u, &none, str("anonymous"), ACL_READ));
	CHECK(!acl_may(u, &none, str("p/"), ACL_READ));
	CHECK(!acl_is_dangerous(u, &none));
	u = acl_find(a, str("x"));
	CHECK(acl_may(u, &who, str("x"), ACL_WRITE));
	CHECK(acl_may(u, &who, str("again"), ACL_WRITE));
	CHECK(!acl_may(u, &who, str("y"), ACL_READ));
	CHECK(acl_find(a, str("z")) == acl_find(a, str("")));
	CHECK(acl_may(acl_find(a, str("z")), &who, str("p/u"), ACL_READ));
	acl_free(a);
	unlink(path);
}
