/* check - a test harness for C. A test program includes it once and gets its
 * main from here:
 *
 *	TEST(sum)
 *	{
 *		CHECK(1 + 1 == 2);
 *	}
 *
 * Each test runs in a process of its own, so it may crash, hang or leave
 * global state behind. PROGRAM runs all, PROGRAM NAME one, PROGRAM --list
 * prints the names.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK_LIMIT_S 40        /* under a sanitizer, on a busy machine */

struct check_test {
	const char *name;
	void (*run)(void);
	struct check_test *next;
};

static struct check_test *check_tests, **check_end = &check_tests;

#define TEST(id) \
	static void test_##id(void); \
	__attribute__((constructor)) static void \
	add_##id(void) \
	{ \
		static struct check_test t = { #id, test_##id, NULL }; \
		*check_end = &t; \
		check_end = &t.next; \
	} \
	static void test_##id(void)

/* What does not hold ends the test, without a look for leaks. */
#define CHECK(expr) ((expr) ? (void)0 : (printf("%s:%d: not so: %s\n", \
	__FILE__, __LINE__, #expr), fflush(stdout), _exit(1)))

static bool
check_run(const struct check_test *t)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		alarm(CHECK_LIMIT_S);
		t->run();
		exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		status = 1;
	if (WIFSIGNALED(status))
		printf("killed: %s\n", strsignal(WTERMSIG(status)));
	printf("%s %s\n", status ? "FAIL" : "ok", t->name);
	return status == 0;
}

int
main(int argc, char **argv)
{
	const char *only = argc > 1 ? argv[1] : NULL;
	unsigned passed = 0, failed = 0;
	bool list = only && strcmp(only, "--list") == 0;

	for (struct check_test *t = check_tests; t; t = t->next) {
		if (list)
			puts(t->name);
		else if (!only || strcmp(only, t->name) == 0)
			(*(check_run(t) ? &passed : &failed))++;
	}
	if (list)
		return 0;
	printf("%u passed, %u failed\n", passed, failed);
	return failed > 0 || passed == 0;
}

#endif
