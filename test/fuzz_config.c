/* Fuzzer of config: arbitrary bytes as a configuration file. Whatever is
 * accepted must be within its limits; nothing may leak. */
#include "config.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_listener(const struct config_listener *l)
{
	assert(l->path ? l->port == 0 && l->path[0] == '/' && !l->host :
	    l->port > 0 && l->port < 65536);
	assert(!l->host || (l->host[0] && !strpbrk(l->host, "\r\n")));
	assert(!l->security.auto_id_prefix ||
	    strlen(l->security.auto_id_prefix) <= 50);
	assert(l->max_connections >= -1);
	assert(l->max_qos >= 0 && l->max_qos <= 2);
	assert(l->max_topic_alias >= 0 && l->max_topic_alias < 65536);
	assert(l->max_topic_alias_broker >= 0 &&
	    l->max_topic_alias_broker < 65536);
	assert(l->versions && (l->versions & ~0x38u) == 0);
	assert(!l->mount_point || !strpbrk(l->mount_point, "+#"));
	assert(!l->interface || strlen(l->interface) < 16);
}

static void
check(const struct config *c)
{
	assert(c->n_listeners > 0 && c->n_listeners <= 65);
	for (unsigned i = 0; i < c->n_listeners; i++)
		check_listener(&c->listeners[i]);
	assert(c->global_max_clients >= -1 && c->global_max_connections >= -1);
	assert(c->max_inflight_bytes >= 0);
	assert(c->connect_timeout > 0 && c->max_packet_size >= 20);
	assert(c->max_inflight_messages >= 0);
	assert(c->max_inflight_messages < 65536);
	assert(c->max_keepalive >= 0 && c->max_keepalive < 65536);
	assert(c->max_queued_messages >= 0 && c->max_queued_bytes >= 0);
	assert(c->message_size_limit >= 0 && c->sys_interval >= 0);
	assert(c->persistent_client_expiration == -1 ||
	    c->persistent_client_expiration > 0);
	assert((c->log.types & ~(unsigned)LOG_T_ALL) == 0 &&
	    c->log.dests < 2 * LOG_D_TOPIC);
	assert(!(c->log.dests & LOG_D_FILE) || c->log.file);
	assert(c->log.facility >= -1 && c->log.facility < 8);
}

static void
take(struct config *to, struct config *from)
{
	*to = *from;
	*from = (struct config){ 0 };
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	static char path[32];
	char *argv[] = { "midge", "-c", path, NULL };
	struct log_config quiet = { .types = LOG_T_ALL };
	static struct config running;
	struct config c;

	/* It would read whatever there is on this machine. */
	if (memmem(data, size, "include_dir", 11))
		return 0;
	if (fd < 0) {
		log_open(&quiet);
		fd = memfd_create("config", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	assert(ftruncate(fd, 0) == 0);
	assert(pwrite(fd, data, size, 0) == (ssize_t)size);
	/* For a test: what follows a fault is read too. */
	assert(config_read_all(&c, 3, argv) <= CONFIG_BAD);
	check(&c);
	config_free(&c);
	switch (config_read(&c, 3, argv)) {
	case CONFIG_RUN:
		check(&c);
		/* As if the one before were running. */
		if (running.n_listeners) {
			config_keep(&running, &c);
			check(&c);
			config_free(&running);
		}
		take(&running, &c);
		break;
	case CONFIG_BAD:
		break;
	default:
		assert(0);
	}
	config_free(&c);
	return 0;
}
