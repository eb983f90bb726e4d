/* Fuzzer of ACL files: arbitrary bytes as one, asked about topics and filters
 * that are made of its own bytes. What a client may read it could subscribe
 * to. */
#include "acl.h"
#include "hash.h"
#include "log.h"
#include "mem.h"

#include <assert.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
ask(const struct acl *acl, const struct acl_client *c, struct mqtt_str topic)
{
	static const uint8_t all[] = "#";
	const struct acl_user *u = acl_find(acl, c->user);
	bool reads = acl_may(u, c, topic, ACL_READ);

	acl_may(u, c, topic, ACL_WRITE);
	if (reads) {
		assert(acl_could_read(u, c, topic));
		assert(topic.p[0] == '$' ||
		    acl_could_read(u, c, (struct mqtt_str){ all, 1 }));
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct log_config quiet = { .types = LOG_T_ALL };
	static char path[32];
	static int fd = -1;
	struct acl_client c = { .id = { (const uint8_t *)"id", 2 } };
	struct acl *acl;

	if (fd < 0) {
		log_open(&quiet);
		hash_seed();
		fd = memfd_create("rules", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	assert(ftruncate(fd, 0) == 0);
	assert(pwrite(fd, data, size, 0) == (ssize_t)size);
	acl = acl_load(path);
	for (size_t i = 0; acl && i + 1 < size && i < 300; i += 3) {
		struct mqtt_str t = { data + i, (uint32_t)(data[i] % 16) };

		if (t.len > size - i)
			t.len = (uint32_t)(size - i);
		c.user = (struct mqtt_str){ i % 2 ? data + i + 1 : NULL,
		    i % 2 && size - i > 3 ? 2 : 0 };
		if (mqtt_utf8_valid(t.p, t.len) && !mqtt_topic_fault(t))
			ask(acl, &c, t);
		if (mqtt_utf8_valid(t.p, t.len) && !mqtt_filter_fault(t))
			acl_could_read(acl_find(acl, c.user), &c, t);
	}
	acl_free(acl);
	assert(mem_used() == 0);
	return 0;
}
