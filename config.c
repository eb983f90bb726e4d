#include "config.h"
#include "mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PORT_DEFAULT 1883
#define MOUNT_MAX 1000
#define PORTS_MAX 10            /* -p may be repeated this often */
#define LISTENERS_MAX 64
#define VERSIONS (1u << 3 | 1u << 4 | 1u << 5)  /* 3.1, 3.1.1, 5.0 */
#define LOG_FILE_SIZE 10000000
#define PLUGINS_MAX 16          /* lines plugin_load */

/* The plugins of Mosquitto 2.1 that midge has built in. */
enum plugin_kind { NO_PLUGIN, PLUGIN_PASSWORD, PLUGIN_ACL, PLUGIN_PERSIST };
enum plugin_scope { PLUGIN_HERE, PLUGIN_GLOBAL, PLUGIN_NAMED };

struct plugin {
	char *name;             /* of plugin_load */
	char *file;             /* NULL: not said yet */
	enum plugin_kind kind;
	bool used;
};

/* Where the parser stands. */
struct parser {
	struct config *c;
	const char *file;
	unsigned line;
	const char *name;       /* the option at hand */
	bool included;          /* in a file of include_dir */
	bool all;               /* goes on after a fault */
	bool bad;               /* there was one */
	bool in_bridge;         /* behind a connection line */
	bool in_default;        /* before the first listener line */
	bool default_used;      /* port, bind_address or a listener option */
	struct config_listener def;
	struct config_listener *cur;    /* def, or the last listener */
	bool security_used;     /* something of struct config_security */
	bool security_early;    /* the same, before the first listener and with
	                         * per_listener_settings */
	struct plugin plugins[PLUGINS_MAX];
	unsigned n_plugins;
	enum plugin_kind plugin;        /* of the last plugin line */
	enum plugin_scope plugin_scope;
	bool plugin_has_file;
};

enum kind {
	BOOL, INT, SIZE, STRING,        /* a field, by offset */
	SPECIAL,                        /* its own function */
	IGNORED,                        /* accepted with one warning */
	REFUSED,                        /* not to be had; the reason is given */
};

struct option {
	const char *name;
	enum kind kind : 8;
	bool listener;          /* the field is one of the current listener */
	bool security;          /* the field is in a struct config_security */
	bool at_start;          /* a reload does not change it: BOOL, STRING,
	                         * and one row only for a field */
	uint16_t offset;
	short min;              /* INT, SIZE */
	union {
		long max;       /* INT, SIZE; of a STRING its length */
		bool (*set)(struct parser *p, char *value);     /* SPECIAL */
		const char *why;        /* IGNORED, REFUSED */
	};
};

/* ---- faults ---- */

static bool
fault(const struct parser *p)
{
	log_error("Error found at %s:%u.", p->file, p->line);
	return false;
}

static bool
bad_value(const struct parser *p, const char *value, const char *want)
{
	log_error("Error: Invalid %s value '%s': %s.", p->name, value, want);
	return fault(p);
}

static bool
missing(const struct parser *p)
{
	log_error("Error: Empty %s value in configuration.", p->name);
	return fault(p);
}

/* ---- values ---- */

static char *
first_word(char *value)
{
	value[strcspn(value, " \t")] = 0;
	return value;
}

static bool
get_bool(const struct parser *p, char *value, bool *out)
{
	first_word(value);
	if (!strcmp(value, "true") || !strcmp(value, "1"))
		*out = true;
	else if (!strcmp(value, "false") || !strcmp(value, "0"))
		*out = false;
	else
		return bad_value(p, value, "it must be true or false");
	return true;
}

static bool
get_number(const struct parser *p, char *value, long min, long max, long *out)
{
	char *end, want[80];

	errno = 0;
	*out = strtol(first_word(value), &end, 10);
	if (end != value && !*end && !errno && *out >= min && *out <= max)
		return true;
	snprintf(want, sizeof want, "it must be a number from %ld to %ld",
	    min, max);
	return bad_value(p, value, want);
}

/* Well-formed UTF-8 without overlong forms and surrogates. */
static bool
is_utf8(const char *s)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *p = (const unsigned char *)s;

	while (*p) {
		unsigned n = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 :
		    *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;
		uint32_t ch = n > 1 ? *p & (0x7fu >> n) : *p;

		for (unsigned i = 1; i < n; i++) {
			if ((p[i] & 0xc0) != 0x80)
				return false;
			ch = ch << 6 | (p[i] & 0x3f);
		}
		if (n == 0 || ch < least[n] || ch > 0x10ffff ||
		    (ch >= 0xd800 && ch < 0xe000))
			return false;
		p += n;
	}
	return true;
}

/* NULL: no memory, which read_all tells: c is not to be used then. */
static char *
copy(struct config *c, const char *s)
{
	char *p = strdup(s);

	if (!p)
		c->no_memory = true;
	return p;
}

static bool
set_string(const struct parser *p, char **field, const char *value)
{
	if (*field && strcmp(*field, value) != 0) {
		log_error("Error: Duplicate %s value in configuration.",
		    p->name);
		return fault(p);
	}
	if (*field) {
		log_warning("Warning: %s is given twice with the same value "
		    "(%s:%u).", p->name, p->file, p->line);
		return true;
	}
	if (!is_utf8(value))
		return bad_value(p, value, "it must be UTF-8");
	if (strstr(value, " #"))
		log_warning("Warning: the value of %s goes to the end of the "
		    "line: '%s'. A comment needs a line of its own (%s:%u).",
		    p->name, value, p->file, p->line);
	*field = copy(p->c, value);
	return *field ? true : fault(p);
}

/* ---- who may what ---- */

/* Where such options belong, here in the file. */
static struct config_security *
security_of(struct parser *p)
{
	p->security_used = true;
	if (!p->c->per_listener)
		return &p->c->security;
	p->security_early |= p->in_default;
	return &p->cur->security;
}

static void
free_security(struct config_security *s)
{
	free(s->password_file);
	free(s->acl_file);
	free(s->auto_id_prefix);
}

static bool
set_allow_anonymous(struct parser *p, char *value)
{
	struct config_security *s = security_of(p);

	s->allow_anonymous_set = true;
	return get_bool(p, value, &s->allow_anonymous);
}

static bool
set_allow_zero_length(struct parser *p, char *value)
{
	struct config_security *s = security_of(p);

	s->allow_zero_length_clientid_set = true;
	return get_bool(p, value, &s->allow_zero_length_clientid);
}

static bool
set_listener_anonymous(struct parser *p, char *value)
{
	p->cur->anonymous_set = true;
	return get_bool(p, value, &p->cur->anonymous);
}

static bool
set_per_listener(struct parser *p, char *value)
{
	bool on;

	if (!get_bool(p, value, &on))
		return false;
	if (on != p->c->per_listener && p->security_used)
		return bad_value(p, value, "it must stand before the options "
		    "that it is about (password_file, acl_file, "
		    "allow_anonymous and so on)");
	p->c->per_listener = on;
	return true;
}

/* ---- plugins that are built in ---- */

static enum plugin_kind
plugin_kind(const char *path)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;

	return !strcmp(name, "mosquitto_password_file.so") ? PLUGIN_PASSWORD :
	    !strcmp(name, "mosquitto_acl_file.so") ? PLUGIN_ACL :
	    !strcmp(name, "mosquitto_persist_sqlite.so") ? PLUGIN_PERSIST :
	    NO_PLUGIN;
}

/* A plugin without its file would leave the door open. */
static bool
end_plugin(const struct parser *p)
{
	if (p->plugin == NO_PLUGIN || p->plugin == PLUGIN_PERSIST ||
	    p->plugin_has_file)
		return true;
	log_error("Error: The plugin %s needs a line plugin_opt_%s behind it.",
	    p->plugin == PLUGIN_ACL ? "mosquitto_acl_file.so" :
	    "mosquitto_password_file.so",
	    p->plugin == PLUGIN_ACL ? "acl_file" : "password_file");
	return false;
}

static bool
begin_plugin(struct parser *p, const char *path, enum plugin_scope scope)
{
	if (!end_plugin(p))
		return fault(p);
	p->plugin = plugin_kind(path);
	p->plugin_scope = scope;
	p->plugin_has_file = false;
	if (p->plugin == PLUGIN_PERSIST) {
		p->c->persistence = true;
		log_warning("Warning: midge keeps a journal of its own instead "
		    "of a database of SQLite; persistence is on, at %s:%u.",
		    p->file, p->line);
	}
	if (p->plugin != NO_PLUGIN)
		return true;
	log_error("Error: %s cannot be used: midge has no plugins; built in is "
	    "what mosquitto_password_file.so and mosquitto_acl_file.so do.",
	    p->name);
	return fault(p);
}

static bool
set_plugin(struct parser *p, char *value)
{
	return begin_plugin(p, value, strcmp(p->name, "global_plugin") ?
	    PLUGIN_HERE : PLUGIN_GLOBAL);
}

/* plugin_load NAME PATH */
static bool
load_plugin(struct parser *p, char *value)
{
	char *path = value + strcspn(value, " \t"), *name;

	if (*path)
		*path++ = 0;
	path += strspn(path, " \t");
	if (!*path || p->n_plugins == PLUGINS_MAX)
		return bad_value(p, value, *path ? "there are too many" :
		    "it must be a name and a path");
	if (!begin_plugin(p, path, PLUGIN_NAMED))
		return false;
	name = copy(p->c, value);
	if (!name)
		return fault(p);
	p->plugins[p->n_plugins++] = (struct plugin){ .name = name,
	    .kind = p->plugin };
	return true;
}

static char **
file_of_kind(struct config_security *s, enum plugin_kind kind)
{
	return kind == PLUGIN_ACL ? &s->acl_file : &s->password_file;
}

/* plugin_opt_password_file, plugin_opt_acl_file */
static bool
set_plugin_file(struct parser *p, char *value)
{
	enum plugin_kind kind = strstr(p->name, "acl") ? PLUGIN_ACL :
	    PLUGIN_PASSWORD;
	char **file;

	if (p->plugin != kind)
		return bad_value(p, value, kind == PLUGIN_ACL ?
		    "before it must stand a plugin line with "
		    "mosquitto_acl_file.so" : "before it must stand a plugin "
		    "line with mosquitto_password_file.so");
	if (p->plugin_scope == PLUGIN_NAMED)
		file = &p->plugins[p->n_plugins - 1].file;
	else
		file = file_of_kind(p->plugin_scope == PLUGIN_GLOBAL ?
		    &p->c->security : security_of(p), kind);
	p->plugin_has_file = true;
	return set_string(p, file, value);
}

/* plugin_use NAME: for the current listener, whatever the settings. */
static bool
use_plugin(struct parser *p, char *value)
{
	for (unsigned i = 0; i < p->n_plugins; i++) {
		struct plugin *u = &p->plugins[i];

		if (strcmp(u->name, value))
			continue;
		u->used = true;
		if (!u->file)
			return bad_value(p, value,
			    "this plugin has no file yet");
		return set_string(p, file_of_kind(&p->cur->security, u->kind),
		    u->file);
	}
	return bad_value(p, value, "no plugin_load line gives this name");
}

static bool
end_plugins(struct parser *p)
{
	bool ok = end_plugin(p);

	for (unsigned i = 0; i < p->n_plugins; i++) {
		if (!p->plugins[i].used)
			log_warning("Warning: The plugin %s has no effect: no "
			    "listener has a line plugin_use %s.",
			    p->plugins[i].name, p->plugins[i].name);
		free(p->plugins[i].name);
		free(p->plugins[i].file);
	}
	return ok;
}

/* ---- options with rules of their own ---- */

static struct config_listener
new_listener(void)
{
	return (struct config_listener){ .domain = AF_UNSPEC,
	    .max_connections = -1, .max_qos = 2, .max_topic_alias = 10,
	    .max_topic_alias_broker = 10, .versions = VERSIONS };
}

static void
free_listener(struct config_listener *l)
{
	free(l->host);
	free(l->path);
	free(l->interface);
	free(l->mount_point);
	free(l->cafile);
	free(l->capath);
	free(l->certfile);
	free(l->keyfile);
	free(l->crlfile);
	free(l->ciphers);
	free_security(&l->security);
}

/* Takes over what l owns. NULL: no memory, see copy. */
static struct config_listener *
add_listener(struct config *c, struct config_listener *l)
{
	struct config_listener *all = realloc(c->listeners,
	    (c->n_listeners + 1) * sizeof *all);

	if (!all) {
		c->no_memory = true;
		free_listener(l);
		return NULL;
	}
	c->listeners = all;
	all[c->n_listeners] = *l;
	return &all[c->n_listeners++];
}

/* listener PORT [ADDRESS | PATH] */
static bool
set_listener(struct parser *p, char *value)
{
	struct config_listener l = new_listener(), *added;
	char *rest = value + strcspn(value, " \t");
	long port;
	bool ok;

	if (*rest)
		*rest++ = 0;
	rest += strspn(rest, " \t");
	if (*rest == '#')
		*rest = 0;
	if (!get_number(p, value, 0, 65535, &port))
		return false;
	if (port == 0 && *rest != '/')
		return bad_value(p, value,
		    "port 0 needs the path of a unix socket behind it");
	if (p->c->n_listeners == LISTENERS_MAX)
		return bad_value(p, value, "there are too many listeners");
	ok = end_plugin(p);
	p->plugin = NO_PLUGIN;
	l.port = (int)port;
	if (port == 0)
		l.path = copy(p->c, rest);
	else if (*rest)
		l.host = copy(p->c, first_word(rest));
	added = add_listener(p->c, &l);
	if (!added)
		return fault(p);
	p->cur = added;
	p->in_default = false;
	return (ok && !p->c->no_memory) || fault(p);
}

static void
old_way(struct parser *p)
{
	if (!p->default_used)
		log_notice("The '%s' option is now deprecated, 'listener' "
		    "takes its place (%s:%u).", p->name, p->file, p->line);
	p->default_used = true;
}

static bool
set_port(struct parser *p, char *value)
{
	long n;

	if (!get_number(p, value, 1, 65535, &n))
		return false;
	if (p->def.port && p->def.port != n) {
		log_error("Error: Duplicate port value in configuration.");
		return fault(p);
	}
	p->def.port = (int)n;
	old_way(p);
	return true;
}

static bool
set_bind_address(struct parser *p, char *value)
{
	old_way(p);
	return set_string(p, &p->def.host, value);
}

static bool
set_socket_domain(struct parser *p, char *value)
{
	if (!strcmp(first_word(value), "ipv4"))
		p->cur->domain = AF_INET;
	else if (!strcmp(value, "ipv6"))
		p->cur->domain = AF_INET6;
	else
		return bad_value(p, value, "it must be ipv4 or ipv6");
	return true;
}

static bool
set_protocol(struct parser *p, char *value)
{
	if (!strcmp(first_word(value), "mqtt"))
		return true;
	return bad_value(p, value, "midge speaks mqtt only");
}

/* A list of 3, 4 and 5, which stand for MQTT 3.1, 3.1.1 and 5.0. */
static bool
set_versions(struct parser *p, char *value)
{
	unsigned versions = 0;
	const char *v = value;

	for (; *v; v++) {
		if (*v >= '3' && *v <= '5' && (!v[1] || strchr(", \t", v[1])))
			versions |= 1u << (*v - '0');
		else if (!strchr(", \t", *v))
			break;
	}
	if (*v || !versions)
		return bad_value(p, value, "it must be a list of 3, 4 and 5");
	p->cur->versions = versions;
	return true;
}

static bool
set_interface(struct parser *p, char *value)
{
	if (strlen(first_word(value)) >= IFNAMSIZ)
		return bad_value(p, value, "it is no name of an interface");
	return set_string(p, &p->cur->interface, value);
}

static bool
set_mount_point(struct parser *p, char *value)
{
	if (strpbrk(value, "+#"))
		return bad_value(p, value,
		    "a topic cannot contain the wildcards + and #");
	if (strlen(value) > MOUNT_MAX)
		return bad_value(p, value, "it is too long");
	return set_string(p, &p->cur->mount_point, value);
}

/* Retained messages go at the moment when they expire: no sweep is needed. */
static bool
set_retain_expiry(struct parser *p, char *value)
{
	long minutes;

	return get_number(p, value, 0, 65535, &minutes);
}

static bool
set_tls_version(struct parser *p, char *value)
{
	first_word(value);
	if (!strcmp(value, "tlsv1.2"))
		return true;
	if (!strcmp(value, "tlsv1.3"))
		return bad_value(p, value, "midge has TLS 1.2 and no 1.3; "
		    "clients that can do both agree on 1.2 by themselves, so "
		    "write tlsv1.2 or leave the line out");
	if (strcmp(value, "tlsv1.1") && strcmp(value, "tlsv1"))
		return bad_value(p, value, "it must be tlsv1.2");
	log_warning("Warning: tls_version %s: midge speaks TLS 1.2 and nothing "
	    "older, at %s:%u.", value, p->file, p->line);
	return true;
}

static bool
set_tls_keyform(struct parser *p, char *value)
{
	if (!strcmp(first_word(value), "pem"))
		return true;
	return bad_value(p, value, "keys are read from PEM files only");
}

static bool
set_expiration(struct parser *p, char *value)
{
	static const struct { char unit; int seconds; } units[] = {
		{ 's', 1 }, { 'h', 3600 }, { 'd', 86400 }, { 'w', 604800 },
		{ 'm', 30 * 86400 }, { 'y', 365 * 86400 },
	};
	char *end;
	long n = strtol(first_word(value), &end, 10);

	for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
		if (n <= 0 || n > 1000000 || end[0] != units[i].unit || end[1])
			continue;
		p->c->persistent_client_expiration =
		    (int64_t)n * units[i].seconds;
		return true;
	}
	return bad_value(p, value,
	    "it must be a number with the unit s, h, d, w, m or y");
}

/* The first log_dest or log_type replaces the default, more add to it. */
#define CHOSEN 0x80000000u

static bool
set_log_dest(struct parser *p, char *value)
{
	static const struct { const char *name; unsigned bit; } known[] = {
		{ "stderr", LOG_D_STDERR }, { "stdout", LOG_D_STDOUT },
		{ "syslog", LOG_D_SYSLOG }, { "topic", LOG_D_TOPIC },
		{ "none", 0 },
	};
	unsigned *d = &p->c->log.dests;

	if (!(*d & CHOSEN))
		*d = CHOSEN;
	if (!strncmp(value, "file", 4) && (value[4] == ' ' || value[4] == '\t')) {
		value += 4 + strspn(value + 4, " \t");
		if (!set_string(p, &p->c->log_file, value))
			return false;
		*d |= LOG_D_FILE;
		return true;
	}
	if (!strcmp(first_word(value), "dlt") || !strcmp(value, "android")) {
		log_warning("Warning: log_dest %s has no effect: midge does "
		    "not know that log, at %s:%u.", value, p->file, p->line);
		return true;
	}
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		if (strcmp(value, known[i].name))
			continue;
		*d = known[i].bit ? *d | known[i].bit : CHOSEN;
		return true;
	}
	return bad_value(p, value, "it must be stdout, stderr, syslog, topic, "
	    "none or file with a path");
}

static bool
set_log_type(struct parser *p, char *value)
{
	static const struct { const char *name; unsigned bits; } known[] = {
		{ "error", LOG_T_ERROR }, { "warning", LOG_T_WARNING },
		{ "notice", LOG_T_NOTICE }, { "information", LOG_T_INFO },
		{ "debug", LOG_T_DEBUG }, { "subscribe", LOG_T_SUBSCRIBE },
		{ "unsubscribe", LOG_T_UNSUBSCRIBE }, { "all", LOG_T_ALL },
		{ "websockets", CHOSEN }, { "internal", CHOSEN },
		{ "none", 0 },
	};
	unsigned *t = &p->c->log.types;

	if (!(*t & CHOSEN))
		*t = CHOSEN;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		if (strcmp(first_word(value), known[i].name))
			continue;
		*t = known[i].bits ? *t | known[i].bits : CHOSEN;
		return true;
	}
	return bad_value(p, value, "it must be error, warning, notice, "
	    "information, debug, subscribe, unsubscribe, all or none");
}

static bool read_dir(struct parser *p, const char *dir);

static bool
set_include_dir(struct parser *p, char *value)
{
	if (p->included)
		return bad_value(p, value,
		    "an included file cannot include others");
	return read_dir(p, value);
}

/* ---- the table ---- */

#define G(field) .offset = offsetof(struct config, field)
#define L(field) .listener = true, \
	.offset = offsetof(struct config_listener, field)
#define S(field) .security = true, \
	.offset = offsetof(struct config_security, field)

static const struct option options[] = {
	{ "accept_protocol_versions", SPECIAL, .set = set_versions,
	    L(versions) },
	{ "acl_check_subscribe", BOOL, G(acl_check_subscribe) },
	{ "acl_file", STRING, S(acl_file), .max = 65535 },
	{ "allow_anonymous", SPECIAL, .set = set_allow_anonymous },
	{ "allow_zero_length_clientid", SPECIAL, .set = set_allow_zero_length },
	{ "auth_opt_acl_file", SPECIAL, .set = set_plugin_file },
	{ "auth_opt_password_file", SPECIAL, .set = set_plugin_file },
	{ "auth_plugin", SPECIAL, .set = set_plugin },
	{ "auto_id_prefix", STRING, S(auto_id_prefix), .max = 50 },
	{ "autosave_interval", INT, G(autosave_interval), .max = INT_MAX },
	{ "autosave_on_changes", BOOL, G(autosave_on_changes) },
	{ "bind_address", SPECIAL, .set = set_bind_address },
	{ "bind_interface", SPECIAL, .set = set_interface, L(interface) },
	{ "cafile", STRING, L(cafile), .max = PATH_MAX },
	{ "capath", STRING, L(capath), .max = PATH_MAX },
	{ "certfile", STRING, L(certfile), .max = PATH_MAX },
	{ "ciphers", STRING, L(ciphers), .max = 4096 },
	{ "check_retain_source", BOOL, G(check_retain_source) },
	{ "chroot", STRING, G(chroot), .max = 3800, .at_start = true },
	{ "clientid_prefixes", STRING, G(clientid_prefixes), .max = 65535 },
	{ "connect_timeout", INT, G(connect_timeout), .min = 1, .max = 3600 },
	{ "connection_messages", BOOL, G(connection_messages) },
	{ "crlfile", STRING, L(crlfile), .max = PATH_MAX },
	{ "disable_client_cert_date_checks", BOOL,
	    L(disable_client_cert_date_checks) },
	{ "global_max_clients", INT, G(global_max_clients), .min = -1,
	    .max = INT_MAX },
	{ "global_max_connections", INT, G(global_max_connections), .min = -1,
	    .max = INT_MAX },
	{ "global_plugin", SPECIAL, .set = set_plugin },
	{ "include_dir", SPECIAL, .set = set_include_dir },
	{ "keyfile", STRING, L(keyfile), .max = PATH_MAX },
	{ "listener", SPECIAL, .set = set_listener },
	{ "listener_allow_anonymous", SPECIAL, .set = set_listener_anonymous,
	    .listener = true },
	{ "listener_auto_id_prefix", STRING, L(security.auto_id_prefix),
	    .max = 50 },
	{ "log_dest", SPECIAL, .set = set_log_dest },
	{ "log_facility", INT, G(log.facility), .min = 0, .max = 7 },
	{ "log_file_size", SIZE, G(log_file_size), .max = LONG_MAX },
	{ "log_timestamp", BOOL, G(log.timestamps) },
	{ "log_timestamp_format", STRING, G(log_timestamp_format), .max = 100 },
	{ "log_type", SPECIAL, .set = set_log_type },
	{ "login_delay_max", INT, G(login_delay_max), .max = 3600 },
	{ "max_connecting", INT, G(max_connecting), .min = 1,
	    .max = INT_MAX },
	{ "max_connections", INT, L(max_connections), .min = -1,
	    .max = INT_MAX },
	{ "max_handshakes", INT, G(max_handshakes), .min = 1, .max = 1000 },
	{ "max_inflight_bytes", INT, G(max_inflight_bytes), .max = INT_MAX },
	{ "max_inflight_messages", INT, G(max_inflight_messages),
	    .max = 65535 },
	{ "max_keepalive", INT, G(max_keepalive), .max = 65535 },
	{ "max_packet_size", INT, G(max_packet_size), .min = 20,
	    .max = 268435461 },
	{ "max_qos", INT, L(max_qos), .max = 2 },
	{ "maximum_qos", INT, L(max_qos), .max = 2 },
	{ "max_queued_bytes", INT, G(max_queued_bytes), .max = INT_MAX },
	{ "max_queued_messages", INT, G(max_queued_messages), .max = INT_MAX },
	{ "max_subscriptions", INT, G(max_subscriptions), .max = INT_MAX },
	{ "max_topic_alias", INT, L(max_topic_alias), .max = 65535 },
	{ "max_topic_alias_broker", INT, L(max_topic_alias_broker),
	    .max = 65535 },
	{ "memory_limit", SIZE, G(memory_limit), .max = LONG_MAX },
	{ "message_size_limit", INT, G(message_size_limit),
	    .max = 268435455 },
	{ "mount_point", SPECIAL, .set = set_mount_point, L(mount_point) },
	{ "password_file", STRING, S(password_file), .max = 65535 },
	{ "per_listener_settings", SPECIAL, .set = set_per_listener },
	{ "persistence", BOOL, G(persistence), .at_start = true },
	{ "persistence_file", STRING, G(persistence_file), .max = 200,
	    .at_start = true },
	{ "persistence_location", STRING, G(persistence_location),
	    .max = 3800, .at_start = true },
	{ "persistence_sync_interval", INT, G(persistence_sync_interval),
	    .max = 3600000 },
	{ "persistent_client_expiration", SPECIAL, .set = set_expiration },
	{ "pid_file", STRING, G(pid_file), .max = PATH_MAX - 1,
	    .at_start = true },
	{ "plugin", SPECIAL, .set = set_plugin },
	{ "plugin_load", SPECIAL, .set = load_plugin },
	{ "plugin_opt_acl_file", SPECIAL, .set = set_plugin_file },
	{ "plugin_opt_password_file", SPECIAL, .set = set_plugin_file },
	{ "plugin_use", SPECIAL, .set = use_plugin, .listener = true },
	{ "port", SPECIAL, .set = set_port },
	{ "protocol", SPECIAL, .set = set_protocol, .listener = true },
	{ "queue_qos0_messages", BOOL, G(queue_qos0_messages) },
	{ "require_certificate", BOOL, L(require_certificate) },
	{ "retain_available", BOOL, G(retain_available) },
	{ "retained_persistence", BOOL, G(persistence) },
	{ "retain_expiry_interval", SPECIAL, .set = set_retain_expiry },
	{ "sandbox", BOOL, G(sandbox), .at_start = true },
	{ "set_tcp_nodelay", BOOL, G(set_tcp_nodelay) },
	{ "socket_domain", SPECIAL, .set = set_socket_domain,
	    .listener = true },
	{ "sys_interval", INT, G(sys_interval), .max = 65535 },
	{ "tls_keyform", SPECIAL, .set = set_tls_keyform, .listener = true },
	{ "tls_version", SPECIAL, .set = set_tls_version, .listener = true },
	{ "upgrade_outgoing_qos", BOOL, G(upgrade_outgoing_qos) },
	{ "use_identity_as_username", BOOL, L(use_identity_as_username) },
	{ "use_subject_as_username", BOOL, L(use_subject_as_username) },
	{ "use_username_as_clientid", BOOL, L(use_username_as_clientid) },
	{ "user", STRING, G(user), .max = 255, .at_start = true },

	/* Options of Mosquitto that change nothing here, or nothing that
	 * anybody relies on. */
	{ "allow_duplicate_messages", IGNORED,
	    .why = "overlapping subscriptions give one copy" },
	{ "auth_plugin_deny_special_chars", IGNORED,
	    .why = "it is for plugins only" },
	{ "ciphers_tls1.3", IGNORED, .why = "TLS 1.2 is the newest here" },
	{ "dhparamfile", IGNORED, .why = "only elliptic curves are used" },
	{ "enable_control_api", IGNORED,
	    .why = "the control topics do not exist here" },
	{ "http_dir", IGNORED, .why = "no files are served over HTTP" },
	{ "packet_buffer_size", IGNORED, .why = "buffers grow as needed" },
	{ "retry_interval", IGNORED, .why = "messages are sent again when a "
	    "client comes back, as the standard has it" },
	{ "websockets_headers_size", IGNORED, .why = "buffers have fixed "
	    "limits" },
	{ "websockets_log_level", IGNORED, .why = "log_type decides" },

	/* Options that restrict access, change identities or promise
	 * delivery: never silently left out. */
	{ "connection", REFUSED, .why = "midge cannot be a bridge yet" },
	{ "enable_proxy_protocol", REFUSED,
	    .why = "midge does not know the PROXY protocol" },
	{ "proxy_protocol_v2_require_tls", REFUSED,
	    .why = "midge does not know the PROXY protocol" },
	{ "psk_file", REFUSED, .why = "midge has no TLS with shared keys" },
	{ "psk_hint", REFUSED, .why = "midge has no TLS with shared keys" },
	{ "tls_engine", REFUSED, .why = "keys are read from PEM files only" },
	{ "tls_engine_kpass_sha1", REFUSED,
	    .why = "keys are read from PEM files only" },
	{ "websockets_origin", REFUSED, .why = "midge has no WebSocket yet" },
};

#define N_OPTIONS (sizeof options / sizeof *options)

/* These stand behind a connection line and share its fate. */
static const char *const bridge_options[] = {
	"address", "addresses", "bridge_alpn", "bridge_attempt_unsubscribe",
	"bridge_bind_address", "bridge_cafile", "bridge_capath",
	"bridge_certfile", "bridge_ciphers", "bridge_ciphers_tls1.3",
	"bridge_identity", "bridge_insecure", "bridge_keyfile",
	"bridge_max_packet_size", "bridge_max_topic_alias",
	"bridge_outgoing_retain", "bridge_protocol_version", "bridge_psk",
	"bridge_require_ocsp", "bridge_tcp_keepalive",
	"bridge_tcp_user_timeout", "bridge_tls_version", "cleansession",
	"clientid", "idle_timeout", "keepalive_interval",
	"local_cleansession", "local_clientid", "local_password",
	"local_username", "notification_topic", "notifications",
	"notifications_local_only", "password", "remote_clientid",
	"remote_password", "remote_username", "restart_timeout",
	"round_robin", "start_type", "threshold", "topic", "try_private",
	"username",
};

/* ---- applying it ---- */

static bool
set_option(struct parser *p, const struct option *o, char *value)
{
	char *field = (char *)(o->security ? (void *)security_of(p) :
	    o->listener ? (void *)p->cur : (void *)p->c) + o->offset;
	long n;

	switch (o->kind) {
	case BOOL:
		return get_bool(p, value, (bool *)field);
	case INT:
		if (!get_number(p, value, o->min, o->max, &n))
			return false;
		*(int *)(void *)field = (int)n;
		return true;
	case SIZE:
		if (!get_number(p, value, o->min, o->max, &n))
			return false;
		*(size_t *)(void *)field = (size_t)n;
		return true;
	case STRING:
		if (strlen(value) > (size_t)o->max)
			return bad_value(p, value, "it is too long");
		return set_string(p, (char **)(void *)field, value);
	case SPECIAL:
		return o->set(p, value);
	case IGNORED:
		log_warning("Warning: %s has no effect (%s), at %s:%u.",
		    p->name, o->why, p->file, p->line);
		return true;
	case REFUSED:
		p->in_bridge |= !strcmp(p->name, "connection");
		log_error("Error: %s cannot be used: %s.", p->name, o->why);
		return fault(p);
	}
	return false;
}

static const struct option *
find_option(const char *name)
{
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (!strcmp(options[i].name, name))
			return &options[i];
	return NULL;
}

static bool
is_bridge_option(const char *name)
{
	for (size_t i = 0; i < sizeof bridge_options / sizeof *bridge_options;
	    i++)
		if (!strcmp(bridge_options[i], name))
			return true;
	return false;
}

/* What stands behind a connection line needs no word beside that for it. */
static bool
bridge_option(const struct parser *p)
{
	if (p->in_bridge)
		return true;
	log_error("Error: %s belongs to a bridge and must stand behind a "
	    "connection line.", p->name);
	return fault(p);
}

/* Edits (insert, delete, replace, swap neighbours) from a to b. */
static unsigned
distance(const char *a, const char *b)
{
	enum { MAX = 48 };
	unsigned d[3][MAX + 1] = { 0 };
	size_t la = strlen(a), lb = strlen(b);

	if (la > MAX || lb > MAX)
		return MAX;
	for (unsigned j = 0; j <= lb; j++)
		d[0][j] = j;
	for (unsigned i = 1; i <= la; i++) {
		unsigned *row = d[i % 3], *up = d[(i + 2) % 3];
		const unsigned *up2 = d[(i + 1) % 3];

		row[0] = i;
		for (unsigned j = 1; j <= lb; j++) {
			unsigned best = up[j - 1] + (a[i - 1] != b[j - 1]);

			if (up[j] + 1 < best)
				best = up[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] &&
			    a[i - 2] == b[j - 1] && up2[j - 2] + 1 < best)
				best = up2[j - 2] + 1;
			row[j] = best;
		}
	}
	return d[la % 3][lb];
}

static bool
unknown(const struct parser *p)
{
	const char *near = NULL;
	unsigned best = 4, d;

	if (p->plugin == PLUGIN_PERSIST &&
	    !strncmp(p->name, "plugin_opt_", 11)) {
		log_warning("Warning: %s has no effect (it is for SQLite), at "
		    "%s:%u.", p->name, p->file, p->line);
		return true;
	}
	for (size_t i = 0; i < N_OPTIONS; i++) {
		d = distance(p->name, options[i].name);
		if (d < best) {
			best = d;
			near = options[i].name;
		}
	}
	if (!strncmp(p->name, "plugin_opt_", 11) ||
	    !strncmp(p->name, "auth_opt_", 9))
		log_error("Error: %s cannot be used: midge has no plugin that "
		    "would know it.", p->name);
	else if (near)
		log_error("Error: Unknown configuration variable \"%s\", "
		    "did you mean %s?", p->name, near);
	else
		log_error("Error: Unknown configuration variable \"%s\".",
		    p->name);
	return fault(p);
}

/* ---- files ---- */

static char *
trim(char *s)
{
	size_t n;

	s += strspn(s, " \t");
	n = strlen(s);
	while (n > 0 && strchr(" \t\r\n", s[n - 1]))
		s[--n] = 0;
	return s;
}

static bool
read_line(struct parser *p, char *line)
{
	const struct option *o;
	char *name, *value;

	if (line[0] == '#')
		return true;
	name = trim(line);
	if (!*name)
		return true;
	value = name + strcspn(name, " \t");
	if (*value)
		*value++ = 0;
	value = trim(value);
	p->name = name;
	o = find_option(name);
	if (!o)
		return is_bridge_option(name) ? bridge_option(p) : unknown(p);
	if (!*value)
		return missing(p);
	if (o->listener && p->in_default)
		p->default_used = true;
	return set_option(p, o, value);
}

/* NULL with a line in the log: it is not there, or no file with text. A FIFO is
 * opened without waiting for its other end. */
static FILE *
open_file(const char *file)
{
	int fd = open(file, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	const char *why = NULL;
	struct stat st;
	FILE *f;

	if (fd < 0)
		why = strerror(errno);
	else if (fstat(fd, &st) < 0 || S_ISDIR(st.st_mode))
		why = strerror(EISDIR);
	else if (!S_ISREG(st.st_mode) && strcmp(file, "/dev/null") != 0)
		why = "it is not a regular file";
	if (!why && (f = fdopen(fd, "r")))
		return f;
	log_error("Error: Unable to open config file %s: %s.", file,
	    why ? why : strerror(errno));
	if (fd >= 0)
		close(fd);
	return NULL;
}

/* Some editors put a mark in front of UTF-8. */
static char *
behind_bom(const struct parser *p, char *line)
{
	return p->line == 1 && !strncmp(line, "\xef\xbb\xbf", 3) ? line + 3 :
	    line;
}

static bool
read_file(struct parser *p, const char *file)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t n;
	bool ok = true;
	FILE *f = open_file(file);

	p->file = file;
	p->line = 0;
	if (!f) {
		p->bad = true;
		return p->all;
	}
	while (ok && (n = getline(&line, &size, f)) >= 0) {
		p->line++;
		if (strlen(line) != (size_t)n) {
			log_error("Error: NUL byte in the configuration.");
			ok = fault(p);
		} else {
			ok = read_line(p, behind_bom(p, line));
		}
		p->bad |= !ok;
		ok |= p->all;
	}
	if (ok && !feof(f)) {
		log_error("Error: Unable to read config file %s: %s.", file,
		    strerror(errno));
		p->bad = true;
		ok = p->all;
	}
	free(line);
	fclose(f);
	return ok;
}

static int
conf_only(const struct dirent *e)
{
	size_t n = strlen(e->d_name);

	return n > 5 && !strcmp(e->d_name + n - 5, ".conf");
}

/* Without regard to case, upper case first among equals: 00, 01, A, a, B. */
static int
by_name(const struct dirent **a, const struct dirent **b)
{
	int d = strcasecmp((*a)->d_name, (*b)->d_name);

	return d ? d : strcmp((*a)->d_name, (*b)->d_name);
}

static bool
read_dir(struct parser *p, const char *dir)
{
	struct parser outer = *p;
	struct dirent **e;
	char path[PATH_MAX];
	bool ok = true;
	int n = scandir(dir, &e, conf_only, by_name);

	if (n < 0)
		return bad_value(p, dir, strerror(errno));
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, e[i]->d_name);
		p->included = true;
		if (ok) {
			log_info("Loading config file %s", path);
			ok = read_file(p, path);
		}
		free(e[i]);
	}
	free(e);
	p->included = false;
	p->file = outer.file;
	p->line = outer.line;
	return ok;
}

/* ---- the whole ---- */

static void
set_defaults(struct config *c)
{
	*c = (struct config){
		.security.allow_zero_length_clientid = true,
		.acl_check_subscribe = true,
		.check_retain_source = true,
		.connection_messages = true,
		.retain_available = true,
		.sandbox = true,
		.set_tcp_nodelay = true,
		.autosave_interval = 1800,
		.connect_timeout = 30,
		.max_connecting = 1000,
		.max_handshakes = 32,
		.memory_limit = mem_default_limit(),
		.login_delay_max = 16,
		.global_max_clients = -1,
		.global_max_connections = -1,
		.log_file_size = LOG_FILE_SIZE,
		.max_inflight_messages = 20,
		.max_packet_size = 2000000,
		.max_queued_messages = 1000,
		.max_subscriptions = 10000,
		.sys_interval = 10,
		.persistent_client_expiration = -1,
		.log = { .types = LOG_T_ERROR | LOG_T_WARNING | LOG_T_NOTICE |
		    LOG_T_INFO, .dests = LOG_D_STDERR, .timestamps = true,
		    .count_alike = true, .facility = -1 },
	};
}

static char *
copy_if(struct config *c, const char *s)
{
	return s ? copy(c, s) : NULL;
}

static struct config_security
copy_security(struct config *c, const struct config_security *from)
{
	struct config_security s = *from;

	s.password_file = copy_if(c, from->password_file);
	s.acl_file = copy_if(c, from->acl_file);
	s.auto_id_prefix = copy_if(c, from->auto_id_prefix);
	return s;
}

/* What is said for all listeners goes for one that has no word of its own. */
static bool
inherit(struct config *c, char **own, const char *common, const char *name)
{
	if (*own && common && strcmp(*own, common)) {
		log_error("Error: A listener has two files %s: %s and %s.",
		    name, *own, common);
		return false;
	}
	if (!*own)
		*own = copy_if(c, common);
	return true;
}

static bool
complete_security(struct config *c, struct config_listener *l)
{
	const struct config_security *all = &c->security;
	struct config_security *s = &l->security;

	if (!s->auto_id_prefix)
		s->auto_id_prefix = copy_if(c, all->auto_id_prefix);
	if (!s->allow_zero_length_clientid_set)
		s->allow_zero_length_clientid = all->allow_zero_length_clientid;
	if (!s->allow_anonymous_set)
		s->allow_anonymous = all->allow_anonymous_set ?
		    all->allow_anonymous : l->local;
	if (l->anonymous_set)
		s->allow_anonymous = l->anonymous;
	s->any_user = l->local;
	return inherit(c, &s->password_file, all->password_file,
	    "password_file") &&
	    inherit(c, &s->acl_file, all->acl_file, "acl_file");
}

/* Without a configured listener: this machine only. */
static void
add_local(struct config *c, const struct config_security *s, const int *ports,
    unsigned n)
{
	static const char *const hosts[] = { "127.0.0.1", "::1" };
	struct config_listener l = new_listener();

	c->local_only = true;
	l.local = true;
	for (unsigned i = 0; i < n; i++) {
		for (unsigned h = 0; h < 2; h++) {
			l.port = ports[i];
			l.host = copy(c, hosts[h]);
			l.security = copy_security(c, s);
			if (!add_listener(c, &l))
				return;
		}
	}
}

/* false: a fault was logged. p->def is used up. */
static bool
finish_listeners(struct config *c, struct parser *p, int *ports,
    unsigned n_ports)
{
	bool lost = !p->default_used && c->n_listeners > 0 && p->security_early,
	    ok = true;

	if (p->default_used) {
		if (!p->def.port)
			p->def.port = PORT_DEFAULT;
		add_listener(c, &p->def);
	} else if (c->n_listeners == 0) {
		if (n_ports == 0)
			ports[n_ports++] = PORT_DEFAULT;
		add_local(c, &p->def.security, ports, n_ports);
	}
	if (!p->default_used)
		free_security(&p->def.security);
	if (lost)
		log_error("Error: With per_listener_settings, options like "
		    "password_file and allow_anonymous stand below the "
		    "listener line that they belong to; some stand above the "
		    "first one.");
	for (unsigned i = 0; i < c->n_listeners; i++)
		ok = complete_security(c, &c->listeners[i]) && ok;
	return ok && !lost;
}

static void
finish_log(struct config *c)
{
	c->log.types &= ~CHOSEN;
	/* In the background nobody sees stderr. */
	if (c->daemon && !(c->log.dests & CHOSEN))
		c->log.dests = LOG_D_SYSLOG;
	c->log.dests &= ~CHOSEN;
	if (c->verbose)
		c->log.types = LOG_T_ALL;
	if (c->quiet)
		c->log.types = 0;
	c->log.file = c->log_file;
	c->log.file_size = c->log_file_size;
	c->log.time_format = c->log_timestamp_format;
}

/* Options of TLS that go together. */
static bool
check_tls(const struct config_listener *l)
{
	const char *fault = NULL;

	if (!l->certfile != !l->keyfile)
		fault = "certfile and keyfile must both be given";
	else if ((l->cafile || l->capath) && !l->certfile)
		fault = "cafile and capath alone do not make TLS: certfile "
		    "and keyfile are missing";
	else if (l->require_certificate && !l->cafile && !l->capath)
		fault = "require_certificate needs cafile or capath";
	else if ((l->require_certificate || l->crlfile || l->ciphers) &&
	    !l->certfile)
		fault = "require_certificate, crlfile and ciphers are for "
		    "listeners with TLS: certfile and keyfile are missing";
	if (!l->require_certificate && (l->use_identity_as_username ||
	    l->use_subject_as_username))
		log_warning("Warning: Listener on port %d: user names are to "
		    "come from certificates, but without require_certificate "
		    "true no client is asked for one, and all are refused.",
		    l->port);
	if (fault)
		log_error("Error: Listener on port %d: %s.", l->port, fault);
	return !fault;
}

struct args {
	int ports[PORTS_MAX];
	unsigned n_ports;
};

static bool
get_port_arg(struct args *a, const char *arg)
{
	char *end;
	long n = arg ? strtol(arg, &end, 10) : 0;

	if (!arg || *end || n < 1 || n > 65535) {
		log_error("Error: -p needs a port number from 1 to 65535.");
		return false;
	}
	if (a->n_ports == PORTS_MAX) {
		log_error("Error: Only %d ports can be given with -p.",
		    PORTS_MAX);
		return false;
	}
	a->ports[a->n_ports++] = (int)n;
	return true;
}

static bool
is_arg(const char *arg, const char *brief, const char *full)
{
	return !strcmp(arg, brief) || !strcmp(arg, full);
}

static enum config_action
read_args(struct config *c, struct args *a, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (is_arg(argv[i], "-h", "--help"))
			return CONFIG_HELP;
		if (!strcmp(argv[i], "--version"))
			return CONFIG_VERSION;
		if (is_arg(argv[i], "-v", "--verbose")) {
			c->verbose = true;
		} else if (is_arg(argv[i], "-q", "--quiet")) {
			c->quiet = true;
		} else if (is_arg(argv[i], "-d", "--daemon")) {
			c->daemon = true;
		} else if (!strcmp(argv[i], "--test-config")) {
			c->test = true;
		} else if (is_arg(argv[i], "-c", "--config-file")) {
			c->file = argv[++i];
			if (!c->file) {
				log_error("Error: -c needs a file name.");
				return CONFIG_BAD;
			}
		} else if (!strcmp(argv[i], "--tls-keylog")) {
			c->tls_keylog = argv[++i];
			if (!c->tls_keylog) {
				log_error("Error: --tls-keylog needs a file "
				    "name.");
				return CONFIG_BAD;
			}
		} else if (is_arg(argv[i], "-p", "--port")) {
			if (!get_port_arg(a, argv[++i]))
				return CONFIG_BAD;
		} else {
			log_error("Error: Unknown option '%s'. Try --help.",
			    argv[i]);
			return CONFIG_BAD;
		}
	}
	return CONFIG_RUN;
}

static enum config_action
bad_config(const struct config *c)
{
	if (c->no_memory)
		log_error("Error: There is not enough memory for the "
		    "configuration.");
	return CONFIG_BAD;
}

static enum config_action
read_all(struct config *c, int argc, char **argv, bool all)
{
	struct parser p = { .c = c, .in_default = true, .all = all };
	struct args a = { .n_ports = 0 };
	enum config_action act;

	set_defaults(c);
	c->argc = argc;
	c->argv = argv;
	p.def = new_listener();
	p.cur = &p.def;
	act = read_args(c, &a, argc, argv);
	if (act != CONFIG_RUN)
		return act;
	if (c->test && !all)
		return CONFIG_TEST;
	if (c->file && !read_file(&p, c->file))
		p.bad = true;
	if (!end_plugins(&p))
		p.bad = true;
	if ((p.bad && !all) || c->no_memory) {
		free_listener(&p.def);
		return bad_config(c);
	}
	finish_log(c);
	if (!finish_listeners(c, &p, a.ports, a.n_ports))
		p.bad = true;
	if (c->no_memory)
		return bad_config(c);
	for (unsigned i = 0; i < c->n_listeners && (!p.bad || all); i++)
		if (!check_tls(&c->listeners[i]))
			p.bad = true;
	return p.bad ? CONFIG_BAD : CONFIG_RUN;
}

enum config_action
config_read(struct config *c, int argc, char **argv)
{
	return read_all(c, argc, argv, false);
}

enum config_action
config_read_all(struct config *c, int argc, char **argv)
{
	return read_all(c, argc, argv, true);
}

/* ---- a new configuration for a running broker ---- */

static bool
same_string(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

/* Whether a field has the same value in two structs. */
static bool
same(const struct option *o, const void *a, const void *b)
{
	const char *x = (const char *)a + o->offset;
	const char *y = (const char *)b + o->offset;

	switch (o->kind) {
	case BOOL:
		return *(const bool *)x == *(const bool *)y;
	case INT:
		return *(const int *)(const void *)x ==
		    *(const int *)(const void *)y;
	case STRING:
		return same_string(*(char *const *)(const void *)x,
		    *(char *const *)(const void *)y);
	default:
		return true;
	}
}

static bool
same_place(const struct config_listener *a, const struct config_listener *b)
{
	return a->port == b->port && a->domain == b->domain &&
	    same_string(a->host, b->host) && same_string(a->path, b->path) &&
	    same_string(a->interface, b->interface);
}

/* The rest of what is not in the table as a field. */
static bool
same_special(const struct config_listener *a, const struct config_listener *b)
{
	return a->versions == b->versions &&
	    same_string(a->mount_point, b->mount_point);
}

/* The struct security stands first in a listener. */
static void
compare_listener(const struct config_listener *a,
    const struct config_listener *b)
{
	bool equal = same_special(a, b);

	for (size_t i = 0; i < N_OPTIONS && equal; i++)
		/* What is in security was taken over. */
		equal = !options[i].listener || options[i].security ||
		    options[i].offset < sizeof a->security ||
		    same(&options[i], a, b);
	if (!equal)
		log_warning("Warning: The new settings of the listener at %s "
		    "%d take effect only when midge is started anew.",
		    a->path ? a->path : "port", a->port);
}

static bool
same_places(const struct config *a, const struct config *b)
{
	bool equal = a->n_listeners == b->n_listeners;

	for (unsigned i = 0; i < a->n_listeners && equal; i++)
		equal = same_place(&a->listeners[i], &b->listeners[i]);
	return equal;
}

static void
compare_listeners(const struct config *a, const struct config *b)
{
	if (!same_places(a, b)) {
		log_error("Error: Listeners cannot be added, removed or moved "
		    "while midge runs; start it anew for that.");
		return;
	}
	for (unsigned i = 0; i < a->n_listeners; i++)
		compare_listener(&a->listeners[i], &b->listeners[i]);
}

static void
swap(void *a, void *b, size_t n)
{
	unsigned char *x = a, *y = b;

	for (size_t i = 0; i < n; i++) {
		unsigned char t = x[i];

		x[i] = y[i];
		y[i] = t;
	}
}

void
config_tell_kept(const struct config *running, const struct config *fresh)
{
	compare_listeners(running, fresh);
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (options[i].at_start && !same(&options[i], running, fresh))
			log_warning("Warning: The new %s takes effect only "
			    "when midge is started anew.", options[i].name);
}

void
config_keep(struct config *running, struct config *fresh)
{
	swap(&running->listeners, &fresh->listeners,
	    sizeof running->listeners);
	swap(&running->n_listeners, &fresh->n_listeners,
	    sizeof running->n_listeners);
	swap(&running->local_only, &fresh->local_only,
	    sizeof running->local_only);
	/* Who is let in there is not kept. */
	if (same_places(running, fresh))
		for (unsigned i = 0; i < running->n_listeners; i++)
			swap(&running->listeners[i].security,
			    &fresh->listeners[i].security,
			    sizeof fresh->listeners[i].security);
	/* Others may hold on to the old strings. */
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (options[i].at_start)
			swap((char *)running + options[i].offset,
			    (char *)fresh + options[i].offset,
			    options[i].kind == BOOL ? sizeof(bool) :
			    sizeof(char *));
}

void
config_free(struct config *c)
{
	for (unsigned i = 0; i < c->n_listeners; i++)
		free_listener(&c->listeners[i]);
	free(c->listeners);
	free_security(&c->security);
	free(c->persistence_location);
	free(c->persistence_file);
	free(c->clientid_prefixes);
	free(c->log_file);
	free(c->log_timestamp_format);
	free(c->chroot);
	free(c->pid_file);
	free(c->user);
}

const char *
config_usage(void)
{
	return
	    "midge version " MIDGE_VERSION " - an MQTT broker\n\n"
	    "Usage: midge [-c FILE] [-d] [-p PORT] [-v | -q] "
	    "[--tls-keylog FILE]\n"
	    "       midge [-c FILE] --test-config\n"
	    "       midge check [-c FILE]\n"
	    "       midge passwd ...            (midge passwd --help tells)\n"
	    "       midge store FILE | FOLDER\n\n"
	    "  -c, --config-file FILE  read this configuration file\n"
	    "  -d, --daemon            run in the background\n"
	    "  -p, --port PORT         listen on this port of this machine "
	    "(without\n"
	    "                          listeners in a file; up to 10 times)\n"
	    "  -v, --verbose           log everything, each packet included\n"
	    "      --tls-keylog FILE   write TLS keys there, for Wireshark\n"
	    "  -q, --quiet             log nothing\n"
	    "      --test-config       look at the configuration, start "
	    "nothing\n"
	    "      --version           print the version\n"
	    "  -h, --help              print this\n\n"
	    "midge check tells all that is wrong or doubtful and how to mend "
	    "it;\n"
	    "midge passwd makes password files, midge store prints a "
	    "journal.\n"
	    "Without -c only clients on this machine can connect, at port "
	    "1883.\n";
}
