/* Tests of config: what a file or a command line turns into, and what is said
 * about faults. */
#include "check.h"
#include "config.h"
#include "mem.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define N(array) (sizeof(array) / sizeof *(array))

static struct config c;
static char said[64 * 1024];            /* all log lines since read_text() */
static char dir[] = "/tmp/test_config.XXXXXX";
static char file[64];

static void
gather(void *arg, enum log_type type, const char *text)
{
	size_t n = strlen(said);

	(void)arg;
	(void)type;
	snprintf(said + n, sizeof said - n, "%s\n", text);
}

/* A folder for the files of this test; the log goes to said. */
static void
begin(void)
{
	struct log_config l = { .types = LOG_T_ALL, .dests = LOG_D_TOPIC };

	log_open(&l);
	log_to_topic(gather, NULL);
	CHECK(mkdtemp(dir));
	snprintf(file, sizeof file, "%s/midge.conf", dir);
}

static void
end(void)
{
	config_free(&c);
	c = (struct config){ 0 };
	unlink(file);
	CHECK(rmdir(dir) == 0);
}

static void
write_file(const char *name, const char *text, size_t n)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && write(fd, text, n) == (ssize_t)n);
	close(fd);
}

static enum config_action
read_args(int argc, const char **argv)
{
	config_free(&c);
	said[0] = 0;
	return config_read(&c, argc, (char **)(uintptr_t)argv);
}

static enum config_action
read_bytes(const char *text, size_t n)
{
	const char *argv[] = { "midge", "-c", file, NULL };

	write_file(file, text, n);
	return read_args(3, argv);
}

static enum config_action
read_text(const char *text)
{
	return read_bytes(text, strlen(text));
}

/* Whether clients without a name may use listener i. */
static bool
may_all(unsigned i)
{
	return c.listeners[i].security.allow_anonymous;
}

/* Whether this file is refused, with a word about the line. */
static bool
refused(const char *text, unsigned line)
{
	char where[128];

	snprintf(where, sizeof where, "Error found at %s:%u.\n", file, line);
	return read_text(text) == CONFIG_BAD && strstr(said, where);
}

static bool
is(const char *s, const char *want)
{
	return s && want ? strcmp(s, want) == 0 : s == want;
}

/* ---- the command line ---- */

TEST(nothing_given)
{
	const char *argv[] = { "midge", NULL };

	begin();
	CHECK(read_args(1, argv) == CONFIG_RUN && !said[0]);
	CHECK(!c.file && c.local_only && may_all(0) && !c.verbose);
	CHECK(c.n_listeners == 2);
	for (unsigned i = 0; i < 2; i++) {
		struct config_listener *l = &c.listeners[i];

		CHECK(is(l->host, i ? "::1" : "127.0.0.1") && l->port == 1883);
		CHECK(l->local && !l->path && l->max_qos == 2);
		CHECK(l->max_connections == -1 && l->domain == AF_UNSPEC);
		CHECK(l->max_topic_alias == 10);
		CHECK(l->max_topic_alias_broker == 10);
	}
	end();
}

TEST(defaults)
{
	begin();
	CHECK(read_text("") == CONFIG_RUN && is(c.file, file));
	CHECK(c.listeners[0].security.allow_zero_length_clientid);
	CHECK(c.connection_messages);
	CHECK(!c.queue_qos0_messages && c.retain_available);
	CHECK(c.set_tcp_nodelay && !c.upgrade_outgoing_qos && !c.verbose);
	CHECK(!c.security.auto_id_prefix && !c.clientid_prefixes);
	CHECK(c.connect_timeout == 30 && c.max_inflight_messages == 20);
	CHECK(c.max_keepalive == 0 && c.max_packet_size == 2000000);
	CHECK(c.max_queued_messages == 1000 && c.max_queued_bytes == 0);
	CHECK(c.max_subscriptions == 10000 && c.max_connecting == 1000);
	CHECK(c.message_size_limit == 0 && c.sys_interval == 10);
	CHECK(c.memory_limit == mem_default_limit());
	CHECK(c.persistent_client_expiration == -1);
	CHECK(c.log.types == (LOG_T_ERROR | LOG_T_WARNING | LOG_T_NOTICE |
	    LOG_T_INFO));
	CHECK(c.log.dests == LOG_D_STDERR && c.log.timestamps);
	CHECK(!c.log.file && !c.log.time_format && c.log.facility == -1);
	end();
}

TEST(arguments)
{
	const char *run[] = { "midge", "--port", "1884", "-v", "-p", "65535",
	    NULL };
	const char *first[] = { "midge", "-v", "-h", "--nonsense", NULL };
	const char *version[] = { "midge", "--version", NULL };

	begin();
	CHECK(read_args(6, run) == CONFIG_RUN && c.verbose);
	CHECK(c.log.types == LOG_T_ALL && c.n_listeners == 4);
	CHECK(c.listeners[0].port == 1884 && c.listeners[1].port == 1884);
	CHECK(c.listeners[2].port == 65535 && c.listeners[3].port == 65535);
	CHECK(is(c.listeners[3].host, "::1") && c.local_only);
	CHECK(read_args(4, first) == CONFIG_HELP);
	first[2] = "--help";
	CHECK(read_args(4, first) == CONFIG_HELP);
	CHECK(read_args(2, version) == CONFIG_VERSION);
	CHECK(strstr(config_usage(), "Usage: midge"));
	end();
}

TEST(bad_arguments)
{
	static const char *const bad[][2] = {
		{ "-x", NULL }, { "midge.conf", NULL }, { "", NULL },
		{ "-c", NULL }, { "--config-file", NULL }, { "-p", NULL },
		{ "-p", "0" }, { "-p", "65536" }, { "-p", "-1" },
		{ "-p", "1883x" }, { "-p", "" }, { "-p", "x" },
		{ "-p", "99999999999999999999" }, { "-c", "/none/such.conf" },
		{ "-c", "/" }, { "-c", "" },
	};

	begin();
	for (size_t i = 0; i < N(bad); i++) {
		const char *argv[] = { "midge", bad[i][0], bad[i][1], NULL };

		CHECK(read_args(bad[i][1] ? 3 : 2, argv) == CONFIG_BAD);
		CHECK(strncmp(said, "Error: ", 7) == 0);
	}
	end();
}

TEST(too_many_ports)
{
	const char *argv[23] = { "midge" };

	begin();
	for (int i = 1; i < 23; i++)
		argv[i] = i % 2 ? "-p" : "1900";
	CHECK(read_args(21, argv) == CONFIG_RUN && c.n_listeners == 20);
	CHECK(read_args(23, argv) == CONFIG_BAD);
	end();
}

/* ---- lines ---- */

TEST(lines)
{
	static const char *const same[] = {
		"sys_interval 7\n", "sys_interval 7", "\n\nsys_interval 7\n\n",
		"  sys_interval\t 7 \t\n", "sys_interval 7\r\n\r\n",
		"# text\n#\n#sys_interval 8\nsys_interval 7\n",
		"sys_interval 8\nsys_interval 7\n", "\t\nsys_interval 7\n \n",
		"sys_interval +7\n", "sys_interval 007\n",
	};

	begin();
	for (size_t i = 0; i < N(same); i++)
		CHECK(read_text(same[i]) == CONFIG_RUN &&
		    c.sys_interval == 7 && !said[0]);
	end();
}

TEST(line_numbers)
{
	begin();
	CHECK(refused("nonsense\n", 1));
	CHECK(refused("\n# text\nsys_interval x", 3));
	CHECK(refused("sys_interval 1\nsys_interval 2\nsys_interval\n", 3));
	CHECK(refused("sys_interval -1\nnonsense\n", 1));
	CHECK(!strstr(said, "nonsense"));       /* the first fault ends it */
	end();
}

TEST(line_with_nul)
{
	static const char text[] = "sys_interval 7\nsys_interval 5\0 8\n";

	begin();
	CHECK(read_bytes(text, sizeof text - 1) == CONFIG_BAD);
	CHECK(strstr(said, "NUL") && strstr(said, ":2.\n"));
	CHECK(read_bytes("\0", 1) == CONFIG_BAD);
	end();
}

TEST(long_lines)
{
	static char text[300000];

	begin();
	memset(text, 'a', sizeof text);
	CHECK(read_bytes(text, sizeof text) == CONFIG_BAD);
	memset(text + 1000, ' ', 200000);
	CHECK(read_bytes(text, sizeof text) == CONFIG_BAD);
	text[0] = '#';
	CHECK(read_bytes(text, sizeof text) == CONFIG_RUN);
	memset(text, ' ', sizeof text);
	memcpy(text, "sys_interval", 12);
	text[sizeof text - 1] = '7';
	CHECK(read_bytes(text, sizeof text) == CONFIG_RUN);
	CHECK(c.sys_interval == 7);
	end();
}

TEST(unknown_options)
{
	static const char *const typos[][2] = {
		{ "sys_intervall", "sys_interval" },
		{ "sys_intreval", "sys_interval" },
		{ "ys_interval", "sys_interval" },
		{ "Port", "port" },
		{ "listner", "listener" },
		{ "max_inflight_mesages", "max_inflight_messages" },
	};
	char text[64], want[64];

	begin();
	for (size_t i = 0; i < N(typos); i++) {
		snprintf(text, sizeof text, "%s 1\n", typos[i][0]);
		snprintf(want, sizeof want, "did you mean %s?", typos[i][1]);
		CHECK(refused(text, 1) && strstr(said, want));
	}
	CHECK(refused("something_else_altogether 1\n", 1));
	CHECK(strstr(said, "\"something_else_altogether\"") &&
	    !strstr(said, "mean"));
	CHECK(refused("\x1b[2J 1\n", 1));
	end();
}

/* ---- values ---- */

TEST(numbers)
{
	static const struct {
		const char *name;
		int *field;
		long long min, max;
	} table[] = {
		{ "connect_timeout", &c.connect_timeout, 1, 3600 },
		{ "global_max_clients", &c.global_max_clients, -1, INT_MAX },
		{ "global_max_connections", &c.global_max_connections, -1,
		    INT_MAX },
		{ "log_facility", &c.log.facility, 0, 7 },
		{ "max_inflight_bytes", &c.max_inflight_bytes, 0, INT_MAX },
		{ "max_inflight_messages", &c.max_inflight_messages, 0, 65535 },
		{ "max_keepalive", &c.max_keepalive, 0, 65535 },
		{ "max_packet_size", &c.max_packet_size, 20, 268435461 },
		{ "max_queued_bytes", &c.max_queued_bytes, 0, INT_MAX },
		{ "max_queued_messages", &c.max_queued_messages, 0, INT_MAX },
		{ "message_size_limit", &c.message_size_limit, 0, 268435455 },
		{ "sys_interval", &c.sys_interval, 0, 65535 },
	};
	static const char *const bad[] = { "", "x", "1x", "0x1", "1.5", "-",
	    "--1", "1e3", "99999999999999999999", "-99999999999999999999" };
	char text[96];

	begin();
	for (size_t i = 0; i < N(table); i++) {
		for (int k = 0; k < 4; k++) {
			long long v = k < 2 ? table[i].min : table[i].max;
			bool good = k % 2 == 0;

			v += k == 1 ? -1 : k == 3 ? 1 : 0;
			snprintf(text, sizeof text, "%s %lld", table[i].name, v);
			CHECK(good ? read_text(text) == CONFIG_RUN &&
			    *table[i].field == v : refused(text, 1));
		}
		for (size_t k = 0; k < N(bad); k++) {
			snprintf(text, sizeof text, "%s %s\n", table[i].name,
			    bad[k]);
			CHECK(refused(text, 1));
		}
		/* Given twice, the last one counts. */
		snprintf(text, sizeof text, "%s %lld\n%s %lld\n",
		    table[i].name, table[i].max, table[i].name, table[i].min);
		CHECK(read_text(text) == CONFIG_RUN && !said[0]);
		CHECK(*table[i].field == table[i].min);
	}
	CHECK(c.log_file_size == 10000000);
	CHECK(read_text("log_file_size 5000000000\n") == CONFIG_RUN);
	CHECK(c.log_file_size == 5000000000);
	CHECK(refused("log_file_size -1\n", 1));
	CHECK(read_text("retain_expiry_interval 5\n") == CONFIG_RUN);
	CHECK(!said[0] && refused("retain_expiry_interval x\n", 1));
	CHECK(read_text("memory_limit 5000000000\n") == CONFIG_RUN);
	CHECK(c.memory_limit == 5000000000);
	CHECK(refused("memory_limit -1\n", 1));
	CHECK(refused("memory_limit 9223372036854775808\n", 1));
	end();
}

TEST(truth_values)
{
	static const struct {
		const char *name;
		bool *field;
	} table[] = {
		{ "acl_check_subscribe", &c.acl_check_subscribe },
		{ "allow_anonymous", &c.security.allow_anonymous },
		{ "allow_zero_length_clientid",
		    &c.security.allow_zero_length_clientid },
		{ "check_retain_source", &c.check_retain_source },
		{ "connection_messages", &c.connection_messages },
		{ "log_timestamp", &c.log.timestamps },
		{ "queue_qos0_messages", &c.queue_qos0_messages },
		{ "retain_available", &c.retain_available },
		{ "set_tcp_nodelay", &c.set_tcp_nodelay },
		{ "upgrade_outgoing_qos", &c.upgrade_outgoing_qos },
	};
	static const char *const values[] = { "true", "false", "1", "0",
	    "", "yes", "True", "2", "tru", "truee" };
	char text[96];

	begin();
	for (size_t i = 0; i < N(table); i++) {
		for (size_t k = 0; k < N(values); k++) {
			snprintf(text, sizeof text, "%s %s\n", table[i].name,
			    values[k]);
			CHECK(k < 4 ? read_text(text) == CONFIG_RUN &&
			    *table[i].field == (k % 2 == 0) : refused(text, 1));
		}
		snprintf(text, sizeof text, "%s true\n%s 0 # text\n",
		    table[i].name, table[i].name);
		CHECK(read_text(text) == CONFIG_RUN && !*table[i].field);
	}
	end();
}

TEST(strings)
{
	static const struct {
		const char *name;
		char **field;
		size_t max;
	} table[] = {
		{ "acl_file", &c.security.acl_file, 65535 },
		{ "auto_id_prefix", &c.security.auto_id_prefix, 50 },
		{ "clientid_prefixes", &c.clientid_prefixes, 65535 },
		{ "log_timestamp_format", &c.log_timestamp_format, 100 },
		{ "password_file", &c.security.password_file, 65535 },
		{ "pid_file", &c.pid_file, PATH_MAX - 1 },
		{ "user", &c.user, 255 },
	};
	static char text[70000];

	begin();
	for (size_t i = 0; i < N(table); i++) {
		int n = sprintf(text, "%s  two words \n", table[i].name);

		CHECK(read_text(text) == CONFIG_RUN);
		CHECK(is(*table[i].field, "two words") && !said[0]);
		/* Twice the same is odd, two different ones are a fault. */
		sprintf(text + n, "%s two words\n", table[i].name);
		CHECK(read_text(text) == CONFIG_RUN);
		CHECK(strncmp(said, "Warning: ", 9) == 0);
		CHECK(is(*table[i].field, "two words"));
		sprintf(text + n, "%s three\n", table[i].name);
		CHECK(refused(text, 2) && strstr(said, "Duplicate"));
		n = sprintf(text, "%s ", table[i].name);
		memset(text + n, 'x', table[i].max + 1);
		text[n + (int)table[i].max + 1] = 0;
		CHECK(refused(text, 1));
		text[n + (int)table[i].max] = 0;
		CHECK(read_text(text) == CONFIG_RUN);
		CHECK(strlen(*table[i].field) == table[i].max);
	}
	CHECK(read_text("log_timestamp_format %H:%M\n") == CONFIG_RUN);
	CHECK(is(c.log.time_format, "%H:%M"));
	/* Text behind a value belongs to it, which few people mean. */
	CHECK(read_text("pid_file /x # text\n") == CONFIG_RUN);
	CHECK(is(c.pid_file, "/x # text") && strstr(said, "end of the line"));
	end();
}

TEST(strings_that_are_not_utf8)
{
	static const char *const bad[] = { "\x80", "\xc3", "\xc3(", "\xff",
	    "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
	    "\xf8\x88\x80\x80\x80" };
	static const char *const good[] = { "\xc3\xa9", "\xe2\x82\xac",
	    "\xf0\x9f\x98\x80", "\xef\xbf\xbd", "\xf4\x8f\xbf\xbf" };
	char text[64];

	begin();
	for (size_t i = 0; i < N(bad); i++) {
		snprintf(text, sizeof text, "user %s\n", bad[i]);
		CHECK(refused(text, 1) && strstr(said, "UTF-8"));
	}
	for (size_t i = 0; i < N(good); i++) {
		snprintf(text, sizeof text, "user x%sx\n", good[i]);
		CHECK(read_text(text) == CONFIG_RUN);
	}
	CHECK(read_text("\xef\xbb\xbfsys_interval 7\n") == CONFIG_RUN);
	CHECK(c.sys_interval == 7);
	CHECK(refused("sys_interval 7\n\xef\xbb\xbfsys_interval 7\n", 2));
	end();
}

/* Strings of the listener above. */
TEST(listener_strings)
{
	static const struct {
		const char *name;
		size_t offset, max;
	} table[] = {
		{ "bind_interface", offsetof(struct config_listener,
		    interface), 15 },
		{ "listener_auto_id_prefix", offsetof(struct config_listener,
		    security.auto_id_prefix), 50 },
		{ "mount_point", offsetof(struct config_listener,
		    mount_point), 1000 },
	};
	static char text[2000];

	begin();
	for (size_t i = 0; i < N(table); i++) {
		char **field;
		int n = sprintf(text, "listener 1\nlistener 2\n%s a\n",
		    table[i].name);

		CHECK(read_text(text) == CONFIG_RUN && !said[0]);
		field = (char **)(void *)((char *)&c.listeners[1] +
		    table[i].offset);
		CHECK(is(*field, "a"));
		field = (char **)(void *)((char *)&c.listeners[0] +
		    table[i].offset);
		CHECK(!*field);
		sprintf(text + n, "%s a\n", table[i].name);
		CHECK(read_text(text) == CONFIG_RUN && said[0]);
		sprintf(text + n, "%s b\n", table[i].name);
		CHECK(refused(text, 4) && strstr(said, "Duplicate"));
		n = sprintf(text, "%s ", table[i].name);
		memset(text + n, 'x', table[i].max + 1);
		text[n + (int)table[i].max + 1] = 0;
		CHECK(refused(text, 1));
		text[n + (int)table[i].max] = 0;
		CHECK(read_text(text) == CONFIG_RUN && c.n_listeners == 1);
	}
	CHECK(refused("mount_point a/#\n", 1));
	CHECK(refused("mount_point +/a\n", 1));
	CHECK(read_text("use_username_as_clientid true\nlistener 5\n") ==
	    CONFIG_RUN);
	CHECK(!c.listeners[0].use_username_as_clientid);
	CHECK(c.listeners[1].use_username_as_clientid);
	CHECK(refused("use_username_as_clientid yes\n", 1));
	end();
}

TEST(protocol_versions)
{
	static const struct { const char *text; unsigned bits; } good[] = {
		{ "3", 8 }, { "4,5", 48 }, { "3, 4, 5", 56 }, { "5 4", 48 },
		{ "4,4", 16 },
	};
	static const char *const bad[] = { "", "0", "6", "34", "3;4", ",",
	    "mqtt", "4,5x" };
	char text[64];

	begin();
	CHECK(read_text("listener 1\n") == CONFIG_RUN);
	CHECK(c.listeners[0].versions == 56);
	for (size_t i = 0; i < N(good); i++) {
		snprintf(text, sizeof text, "accept_protocol_versions %s\n",
		    good[i].text);
		CHECK(read_text(text) == CONFIG_RUN);
		CHECK(c.listeners[0].versions == good[i].bits);
	}
	for (size_t i = 0; i < N(bad); i++) {
		snprintf(text, sizeof text, "accept_protocol_versions %s\n",
		    bad[i]);
		CHECK(refused(text, 1));
	}
	end();
}

TEST(expiration)
{
	static const struct { const char *text; long long s; } good[] = {
		{ "5s", 5 }, { "1h", 3600 }, { "2d", 172800 },
		{ "3w", 1814400 }, { "1m", 2592000 }, { "1y", 31536000 },
		{ "1000000y", 31536000000000 },
	};
	static const char *const bad[] = { "", "5", "h", "0h", "-1h", "1hh",
	    "1x", "1 h", "1000001s", "99999999999999999999s" };
	char text[96];

	begin();
	for (size_t i = 0; i < N(good); i++) {
		snprintf(text, sizeof text, "persistent_client_expiration %s\n",
		    good[i].text);
		CHECK(read_text(text) == CONFIG_RUN);
		CHECK(c.persistent_client_expiration == good[i].s);
	}
	for (size_t i = 0; i < N(bad); i++) {
		snprintf(text, sizeof text, "persistent_client_expiration %s\n",
		    bad[i]);
		CHECK(refused(text, 1));
	}
	end();
}

TEST(log_options)
{
	begin();
	CHECK(read_text("log_dest stdout\n") == CONFIG_RUN);
	CHECK(c.log.dests == LOG_D_STDOUT);
	CHECK(read_text("log_dest stdout\nlog_dest syslog\nlog_dest topic\n"
	    "log_dest stderr\n") == CONFIG_RUN);
	CHECK(c.log.dests == (LOG_D_STDOUT | LOG_D_SYSLOG | LOG_D_TOPIC |
	    LOG_D_STDERR));
	CHECK(read_text("log_dest none\n") == CONFIG_RUN && !c.log.dests);
	CHECK(read_text("log_dest file /a b/c.log\n") == CONFIG_RUN);
	CHECK(c.log.dests == LOG_D_FILE && is(c.log.file, "/a b/c.log"));
	CHECK(refused("log_dest file /a\nlog_dest file /b\n", 2));
	CHECK(refused("log_dest file\n", 1));
	CHECK(refused("log_dest paper\n", 1));
	CHECK(read_text("log_dest dlt\n") == CONFIG_RUN && !c.log.dests);
	CHECK(strncmp(said, "Warning: ", 9) == 0);

	CHECK(read_text("log_type debug\n") == CONFIG_RUN);
	CHECK(c.log.types == LOG_T_DEBUG);
	CHECK(read_text("log_type error\nlog_type subscribe\n") == CONFIG_RUN);
	CHECK(c.log.types == (LOG_T_ERROR | LOG_T_SUBSCRIBE));
	CHECK(read_text("log_type all\n") == CONFIG_RUN);
	CHECK(c.log.types == LOG_T_ALL);
	CHECK(read_text("log_type none\n") == CONFIG_RUN && !c.log.types);
	CHECK(refused("log_type errors\n", 1));
	end();
}

/* ---- listeners ---- */

TEST(listeners)
{
	begin();
	CHECK(read_text("listener 1884\nmax_connections 5\nmax_qos 1\n"
	    "listener 1885 127.0.0.1\nmax_topic_alias 3\n"
	    "max_topic_alias_broker 4\nsocket_domain ipv4\nprotocol mqtt\n"
	    "listener 0 /run/a socket\nmaximum_qos 0\nmax_connections -1\n"
	    "listener 65535 # the last\nsocket_domain ipv6\n") == CONFIG_RUN);
	CHECK(c.n_listeners == 4 && !c.local_only && !may_all(0));
	CHECK(c.listeners[0].port == 1884 && !c.listeners[0].host);
	CHECK(c.listeners[0].max_connections == 5);
	CHECK(c.listeners[0].max_qos == 1 && !c.listeners[0].local);
	CHECK(c.listeners[1].port == 1885 && c.listeners[1].max_qos == 2);
	CHECK(is(c.listeners[1].host, "127.0.0.1"));
	CHECK(c.listeners[1].max_connections == -1);
	CHECK(c.listeners[1].max_topic_alias == 3);
	CHECK(c.listeners[1].max_topic_alias_broker == 4);
	CHECK(c.listeners[1].domain == AF_INET);
	CHECK(c.listeners[2].port == 0 && !c.listeners[2].host);
	CHECK(is(c.listeners[2].path, "/run/a socket"));
	CHECK(c.listeners[2].max_qos == 0);
	CHECK(c.listeners[3].port == 65535 && !c.listeners[3].host);
	CHECK(c.listeners[3].domain == AF_INET6);
	end();
}

TEST(bad_listeners)
{
	static const char *const bad[] = {
		"listener\n", "listener x\n", "listener 65536\n",
		"listener -1\n", "listener 0\n", "listener 0 relative\n",
		"listener 0 # /path\n", "listener 1883x\n", "protocol http\n",
		"socket_domain unix\n", "max_qos 3\n", "max_qos -1\n",
		"max_connections -2\n", "max_topic_alias 65536\n",
		"max_topic_alias_broker -1\n", "port 0\n", "port 65536\n",
		"port x\n",
	};

	begin();
	for (size_t i = 0; i < N(bad); i++)
		CHECK(refused(bad[i], 1));
	end();
}

/* The old form: options of the listener without a listener line. */
TEST(default_listener)
{
	begin();
	CHECK(read_text("port 1884\nbind_address ::1\nmax_connections 7\n") ==
	    CONFIG_RUN);
	CHECK(c.n_listeners == 1 && c.listeners[0].port == 1884);
	CHECK(is(c.listeners[0].host, "::1") && !c.local_only);
	CHECK(c.listeners[0].max_connections == 7);
	CHECK(read_text("max_qos 1\n") == CONFIG_RUN && c.n_listeners == 1);
	CHECK(c.listeners[0].port == 1883 && c.listeners[0].max_qos == 1);
	CHECK(read_text("max_qos 1\nport 1884\nlistener 1885\nmax_qos 0\n") ==
	    CONFIG_RUN);
	CHECK(c.n_listeners == 2 && c.listeners[0].port == 1885);
	CHECK(c.listeners[0].max_qos == 0 && c.listeners[1].max_qos == 1);
	CHECK(c.listeners[1].port == 1884);
	CHECK(read_text("port 1884\nport 1884\n") == CONFIG_RUN);
	CHECK(refused("port 1884\nport 1885\n", 2));
	CHECK(refused("bind_address a\nbind_address b\n", 2));
	end();
}

TEST(anonymous_clients)
{
	begin();
	CHECK(read_text("") == CONFIG_RUN && may_all(0));
	CHECK(read_text("allow_anonymous false\n") == CONFIG_RUN);
	CHECK(!may_all(0) && c.local_only);
	CHECK(read_text("listener 1884\n") == CONFIG_RUN);
	CHECK(!may_all(0));
	CHECK(read_text("listener 1884\nallow_anonymous true\n") == CONFIG_RUN);
	CHECK(may_all(0));
	end();
}

/* What is said for all goes for each listener; what is said for one, for it
 * alone; and nothing is lost. */
TEST(security_per_listener)
{
	const struct config_security *s;

	begin();
	CHECK(read_text("listener 1\nacl_file a\nlistener 2\n"
	    "listener_allow_anonymous true\nauto_id_prefix x\n"
	    "allow_zero_length_clientid false\n") == CONFIG_RUN);
	CHECK(!may_all(0) && may_all(1));
	for (int i = 0; i < 2; i++) {
		s = &c.listeners[i].security;
		CHECK(is(s->acl_file, "a") && is(s->auto_id_prefix, "x"));
		CHECK(!s->password_file && !s->any_user);
		CHECK(!s->allow_zero_length_clientid);
	}
	CHECK(read_text("per_listener_settings true\nlistener 1\n"
	    "allow_anonymous true\nacl_file a\nlistener 2\nacl_file b\n"
	    "allow_zero_length_clientid false\n") == CONFIG_RUN);
	CHECK(may_all(0) && !may_all(1));
	CHECK(is(c.listeners[0].security.acl_file, "a"));
	CHECK(is(c.listeners[1].security.acl_file, "b"));
	CHECK(c.listeners[0].security.allow_zero_length_clientid);
	CHECK(!c.listeners[1].security.allow_zero_length_clientid);
	/* The listeners of this machine, and the default one. */
	CHECK(read_text("per_listener_settings true\nallow_anonymous 0\n"
	    "acl_file a\n") == CONFIG_RUN && c.local_only);
	CHECK(!may_all(0) && is(c.listeners[1].security.acl_file, "a"));
	CHECK(c.listeners[0].security.any_user);
	CHECK(read_text("per_listener_settings true\nacl_file a\n"
	    "port 5\nlistener 6\n") == CONFIG_RUN);
	CHECK(!c.listeners[0].security.acl_file);
	CHECK(is(c.listeners[1].security.acl_file, "a"));
	CHECK(read_text("per_listener_settings true\nacl_file a\n"
	    "listener 6\n") == CONFIG_BAD);
	CHECK(refused("allow_anonymous 1\nper_listener_settings 1\n", 2));
	end();
}

TEST(ports_of_both_kinds)
{
	const char *argv[] = { "midge", "-p", "1999", "-c", file, NULL };

	begin();
	write_file(file, "sys_interval 7\n", 15);
	CHECK(read_args(5, argv) == CONFIG_RUN && c.sys_interval == 7);
	CHECK(c.local_only && c.n_listeners == 2);
	CHECK(c.listeners[0].port == 1999);
	end();
}

TEST(number_of_listeners)
{
	char text[65 * 16] = "";

	begin();
	for (int i = 1; i <= 65; i++) {
		sprintf(text + strlen(text), "listener %d\n", i);
		CHECK(i < 65 ? read_text(text) == CONFIG_RUN :
		    refused(text, 65));
	}
	end();
}

/* ---- options that are not to be had ---- */

TEST(options_without_effect)
{
	static const char *const options[] = { "allow_duplicate_messages",
	    "auth_plugin_deny_special_chars", "ciphers_tls1.3", "dhparamfile",
	    "enable_control_api", "http_dir", "packet_buffer_size",
	    "retry_interval", "websockets_headers_size",
	    "websockets_log_level" };
	char text[64], want[64];

	begin();
	for (size_t i = 0; i < N(options); i++) {
		snprintf(text, sizeof text, "%s 1\nsys_interval 7\n",
		    options[i]);
		snprintf(want, sizeof want, "Warning: %s has no effect",
		    options[i]);
		CHECK(read_text(text) == CONFIG_RUN && c.sys_interval == 7);
		CHECK(strncmp(said, want, strlen(want)) == 0);
		CHECK(strstr(said, "midge.conf:1.\n"));
		CHECK(strchr(said, '\n')[1] == 0);
	}
	end();
}

/* What would make the broker less safe than asked for is never left out. */
TEST(options_refused)
{
	static const char *const options[] = { "plugin", "connection", "psk_file", "psk_hint", "tls_engine",
	    "tls_engine_kpass_sha1", "enable_proxy_protocol",
	    "proxy_protocol_v2_require_tls", "websockets_origin",
	    "tls_keyform" };
	char text[64];

	begin();
	for (size_t i = 0; i < N(options); i++) {
		snprintf(text, sizeof text, "\n%s true\n", options[i]);
		CHECK(refused(text, 2) && strstr(said, options[i]));
	}
	end();
}

/* Options of a bridge are told as such, and once. */
TEST(bridges)
{
	const char *argv[] = { "midge", "-c", file, NULL };

	begin();
	CHECK(refused("topic # out\n", 1) && strstr(said, "a bridge"));
	CHECK(read_text("connection x\naddress y\ntopic z\n") == CONFIG_BAD);
	CHECK(config_read_all(&c, 3, (char **)(uintptr_t)argv) == CONFIG_BAD);
	CHECK(!strstr(said, "address") && !strstr(said, "topic"));
	end();
}

/* A test goes on after a fault. */
TEST(all_faults)
{
	const char *argv[] = { "midge", "-c", file, "--test-config", NULL };

	begin();
	CHECK(read_text("nonsense\nsys_interval 7\nmax_qos 5\n") ==
	    CONFIG_BAD);
	CHECK(!strstr(said, ":3."));
	CHECK(read_args(4, argv) == CONFIG_TEST && !said[0]);
	CHECK(config_read_all(&c, 4, (char **)(uintptr_t)argv) == CONFIG_BAD);
	CHECK(strstr(said, ":1.") && strstr(said, ":3."));
	CHECK(c.sys_interval == 7 && c.n_listeners == 1);
	end();
}

/* ---- a new configuration for a running broker ---- */

static void
take_over(const char *before, const char *after)
{
	struct config old, was;

	CHECK(read_text(before) == CONFIG_RUN);
	was = old = c;
	c = (struct config){ 0 };
	CHECK(read_text(after) == CONFIG_RUN);
	said[0] = 0;
	config_tell_kept(&old, &c);
	/* There, back, and there again. */
	config_keep(&old, &c);
	config_keep(&old, &c);
	CHECK(memcmp(&old, &was, sizeof old) == 0);
	config_keep(&old, &c);
	CHECK(c.listeners == was.listeners && c.user == was.user);
	config_free(&old);
}

TEST(new_configuration)
{
	begin();
	take_over("sys_interval 1\nauto_id_prefix a\n", "sys_interval 2\n");
	CHECK(c.sys_interval == 2 && !c.security.auto_id_prefix && !said[0]);
	CHECK(c.local_only && may_all(0) && c.n_listeners == 2);
	take_over("user a\npid_file b\n", "user c\nsys_interval 2\n");
	CHECK(is(c.user, "a") && is(c.pid_file, "b") && c.sys_interval == 2);
	CHECK(strstr(said, "new user") && strstr(said, "new pid_file"));
	take_over("persistence true\n", "sys_interval 2\n");
	CHECK(c.persistence && strstr(said, "new persistence takes effect"));
	take_over("", "retained_persistence true\n");
	CHECK(!c.persistence && strstr(said, "new persistence takes effect"));
	take_over("listener 1\nmax_qos 1\n", "listener 1\n");
	CHECK(c.listeners[0].max_qos == 1 && strstr(said, "port 1 "));
	take_over("listener 1\nmount_point a\n", "listener 1\nmount_point b\n");
	CHECK(is(c.listeners[0].mount_point, "a") && said[0]);
	take_over("listener 1\naccept_protocol_versions 4\n", "listener 1\n");
	CHECK(c.listeners[0].versions == 16 && said[0]);
	take_over("listener 1\n", "listener 1\nlistener 2\n");
	CHECK(c.n_listeners == 1 && strstr(said, "Error: Listeners"));
	take_over("listener 1\n", "listener 2\n");
	CHECK(c.listeners[0].port == 1 && strstr(said, "Error: Listeners"));
	/* Who is let in without a user name follows where it listens. */
	take_over("", "listener 1\n");
	CHECK(c.local_only && may_all(0));
	take_over("listener 1\n", "");
	CHECK(!c.local_only && !may_all(0) && c.n_listeners == 1);
	take_over("", "allow_anonymous false\n");
	CHECK(!may_all(0) && !said[0]);
	end();
}

/* ---- files that are none ---- */

TEST(odd_files)
{
	const char *argv[] = { "midge", "-c", file, NULL };

	begin();
	CHECK(mkfifo(file, 0600) == 0);
	CHECK(read_args(3, argv) == CONFIG_BAD && strstr(said, "regular"));
	CHECK(unlink(file) == 0 && mkdir(file, 0700) == 0);
	CHECK(read_args(3, argv) == CONFIG_BAD && strstr(said, "directory"));
	CHECK(rmdir(file) == 0 && symlink("midge.conf", file) == 0);
	CHECK(read_args(3, argv) == CONFIG_BAD && strstr(said, "symbolic"));
	argv[2] = "/dev/null";
	CHECK(read_args(3, argv) == CONFIG_RUN && c.local_only);
	argv[2] = "/dev/zero";
	CHECK(read_args(3, argv) == CONFIG_BAD);
	end();
}

/* ---- include_dir ---- */

static void
included(const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	if (text)
		write_file(path, text, strlen(text));
	else
		CHECK(unlink(path) == 0);
}

static bool
include(const char *more)
{
	char text[128];

	snprintf(text, sizeof text, "max_keepalive 1\ninclude_dir %s\n%s", dir,
	    more);
	snprintf(file, sizeof file, "%s/main", dir);
	return read_text(text) == CONFIG_RUN;
}

TEST(includes)
{
	begin();
	included("B.conf", "sys_interval 3\n");
	included("a.conf", "sys_interval 2\nmax_keepalive 2\n");
	included("1.conf", "sys_interval 1\nlistener 1884\n");
	included("c.txt", "nonsense\n");
	included(".conf", "nonsense\n");
	CHECK(include("max_qos 1\n"));
	CHECK(c.sys_interval == 3 && c.max_keepalive == 2);
	CHECK(c.n_listeners == 1 && c.listeners[0].max_qos == 1);
	CHECK(!include("nonsense\n") && strstr(said, "/main:3.\n"));
	included("a.conf", "\nnonsense\n");
	CHECK(!include("") && strstr(said, "/a.conf:2.\n"));
	CHECK(!strstr(said, "B.conf"));
	included("a.conf", "include_dir /tmp\n");
	CHECK(!include("") && strstr(said, "/a.conf:1.\n"));
	CHECK(refused("include_dir /none/such\n", 1));
	/* A string may stand in one of all files only. */
	included("a.conf", "user x\n");
	included("B.conf", "user y\n");
	CHECK(!include("") && strstr(said, "/B.conf:1.\n"));
	included("a.conf", NULL);
	included("B.conf", NULL);
	included("1.conf", NULL);
	included("c.txt", NULL);
	included(".conf", NULL);
	end();
}
