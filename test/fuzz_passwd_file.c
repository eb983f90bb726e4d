/* Fuzzer of password files: arbitrary bytes as one. What is accepted must be
 * within its limits, be found again, and cost what it says. */
#include "auth.h"
#include "hash.h"
#include "mem.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A client with this name; the password is tried if that is cheap. */
static void
log_in(const struct guard *g, const uint8_t *name, size_t len)
{
	struct mqtt_connect k = { .has_user = true, .has_password = true,
	    .user = { name, (uint32_t)len }, .password = { name, 1 } };
	struct auth_check check;
	const char *why = NULL;

	assert(auth_login(g, &k, NULL, &check, &why) == AUTH_CHECK);
	assert(check.hash.rounds <= PWHASH_ROUNDS_MAX);
	assert(check.hash.salt_len > 0 &&
	    check.hash.salt_len <= PWHASH_SALT_MAX);
	if (check.hash.rounds > 1000)
		return;
	while (auth_check_go(&check, k.password, 100, &why) == AUTH_CHECK)
		continue;
	assert(why);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct log_config quiet = { .types = LOG_T_ALL };
	static char path[32];
	static int fd = -1;
	struct config_listener l = { .security.password_file = path };
	struct config c = { .listeners = &l, .n_listeners = 1 };
	const uint8_t *colon = memchr(data, ':', size);
	struct auth a, b;

	if (fd < 0) {
		log_open(&quiet);
		hash_seed();
		fd = memfd_create("users", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	assert(ftruncate(fd, 0) == 0);
	assert(pwrite(fd, data, size, 0) == (ssize_t)size);
	if (auth_load(&a, &c)) {
		assert(auth_load(&b, &c));
		log_in(&a.guards[0], (const uint8_t *)"x", 1);
		if (colon && colon - data <= UINT16_MAX)
			log_in(&a.guards[0], data, (size_t)(colon - data));
		assert(auth_outdated(&a.guards[0], &b.guards[0],
		    (struct mqtt_str){ (const uint8_t *)"\n", 1 }));
		auth_fini(&a);
		auth_fini(&b);
	}
	assert(mem_used() == 0);
	return 0;
}
