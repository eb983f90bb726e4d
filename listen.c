#include "listen.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- who holds a port ---- */

/* The inode of a line of the kernel's table, 0 if it is not about a socket that
 * listens on port. No sscanf, which would be a twentieth of a static program. */
static unsigned long
line_inode(char *line, int port)
{
	/* sl local:port remote:port state queues timer retransmits uid
	 * timeout inode; state 0A is LISTEN */
	char *word[10], *rest, *colon;
	unsigned n = 0;

	for (char *w = strtok_r(line, " ", &rest); w && n < 10;
	    w = strtok_r(NULL, " ", &rest))
		word[n++] = w;
	if (n < 10 || strtoul(word[3], NULL, 16) != 0x0a)
		return 0;
	colon = strrchr(word[1], ':');
	if (!colon || strtoul(colon + 1, NULL, 16) != (unsigned long)port)
		return 0;
	return strtoul(word[9], NULL, 10);
}

/* The inode of a socket that listens on port, 0 if none is seen. */
static unsigned long
listening_inode(const char *table, int port)
{
	char line[512];
	unsigned long found = 0;
	FILE *f = fopen(table, "re");

	if (!f)
		return 0;
	while (!found && fgets(line, sizeof line, f))
		found = line_inode(line, port);
	fclose(f);
	return found;
}

static bool
holds(const char *pid, unsigned long inode)
{
	char path[64], want[64], got[64];
	struct dirent *e;
	bool found = false;
	DIR *d;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%.20s/fd", pid);
	snprintf(want, sizeof want, "socket:[%lu]", inode);
	d = opendir(path);
	while (d && !found && (e = readdir(d))) {
		n = readlinkat(dirfd(d), e->d_name, got, sizeof got - 1);
		if (n > 0) {
			got[n] = 0;
			found = !strcmp(got, want);
		}
	}
	if (d)
		closedir(d);
	return found;
}

/* The first line of /proc/PID/name, or "" */
static void
proc_line(const char *pid, const char *name, char *out, size_t size)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof path, "/proc/%.20s/%s", pid, name);
	f = fopen(path, "re");
	if (!f || !fgets(out, (int)size, f))
		out[0] = 0;
	out[strcspn(out, "\n")] = 0;
	if (f)
		fclose(f);
}

/* "mosquitto (process 812, mosquitto.service)" */
static void
describe(const char *pid, char *out, size_t size)
{
	char comm[64], cgroup[256];
	const char *unit;
	size_t n;

	proc_line(pid, "comm", comm, sizeof comm);
	proc_line(pid, "cgroup", cgroup, sizeof cgroup);
	unit = strrchr(cgroup, '/');
	unit = unit ? unit + 1 : "";
	n = strlen(unit);
	if (n > 8 && !strcmp(unit + n - 8, ".service"))
		snprintf(out, size, "%s (process %s, %s)", comm, pid, unit);
	else
		snprintf(out, size, "%s (process %s)", comm, pid);
}

bool
listen_holder(int port, char out[LISTEN_HOLDER])
{
	unsigned long inode = listening_inode("/proc/net/tcp", port);
	struct dirent *e;
	bool found = false;
	DIR *d;

	if (!inode)
		inode = listening_inode("/proc/net/tcp6", port);
	d = inode ? opendir("/proc") : NULL;
	while (d && !found && (e = readdir(d)))
		if (isdigit((unsigned char)e->d_name[0]) &&
		    holds(e->d_name, inode)) {
			describe(e->d_name, out, LISTEN_HOLDER);
			found = true;
		}
	if (d)
		closedir(d);
	return found;
}

static void
log_bind_fault(const struct config_listener *l, int err)
{
	char who[LISTEN_HOLDER];

	if (err != EADDRINUSE) {
		log_error("Error: Unable to listen on port %d: %s.%s",
		    l->port, strerror(err), err == EACCES && l->port < 1024 ?
		    " Ports below 1024 need root." : err == ENODEV ?
		    " bind_interface has the name of none; 'ip link' shows "
		    "those that there are." : "");
		return;
	}
	log_error("Error: Address already in use");
	if (listen_holder(l->port, who))
		log_error("Port %d is held by %s. Stop it, or choose another "
		    "port.", l->port, who);
	else
		log_error("Port %d is held by a process that cannot be seen "
		    "from here; as root, 'ss -ltnp' names it.", l->port);
}

/* ---- opening ---- */

static bool
bind_interface(int fd, const struct config_listener *l)
{
	return !l->interface || setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE,
	    l->interface, (socklen_t)strlen(l->interface)) == 0;
}

static int
bound_socket(const struct config_listener *l, const struct sockaddr *a,
    socklen_t len)
{
	int on = 1, err;
	int fd = socket(a->sa_family, SOCK_STREAM | SOCK_NONBLOCK |
	    SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (a->sa_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (a->sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
	if (bind_interface(fd, l) && bind(fd, a, len) == 0 &&
	    listen(fd, SOMAXCONN) == 0)
		return fd;
	err = errno;
	close(fd);
	errno = err;
	return -1;
}

static int
open_unix(const struct config_listener *l)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;
	int fd;

	if (strlen(l->path) >= sizeof a.sun_path) {
		log_error("Error: The path of the unix socket %s is longer "
		    "than %zu bytes.", l->path, sizeof a.sun_path - 1);
		return -1;
	}
	memcpy(a.sun_path, l->path, strlen(l->path) + 1);
	/* One that was left behind; never another kind of file. */
	if (lstat(l->path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(l->path);
	log_info("Opening unix listen socket on path %s.", l->path);
	fd = bound_socket(l, (struct sockaddr *)&a, sizeof a);
	if (fd < 0)
		log_error("Error: Unable to listen on %s: %s.", l->path,
		    strerror(errno));
	return fd;
}

static void
close_all(const int *fds, int n)
{
	while (n > 0)
		close(fds[--n]);
}

int
listen_open(const struct config_listener *l, int fds[LISTEN_FDS])
{
	struct addrinfo hint = { .ai_family = l->domain,
	    .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *all, *a;
	char port[8];
	int n = 0, err;

	if (l->path)
		return (fds[0] = open_unix(l)) < 0 ? -1 : 1;
	snprintf(port, sizeof port, "%d", l->port);
	err = getaddrinfo(l->host, port, &hint, &all);
	if (err) {
		log_error("Error: Unable to listen on %s: %s.",
		    l->host ? l->host : "any address", gai_strerror(err));
		return -1;
	}
	for (a = all; a && n < LISTEN_FDS; a = a->ai_next) {
		log_info("Opening %s listen socket on port %d.",
		    a->ai_family == AF_INET6 ? "ipv6" : "ipv4", l->port);
		fds[n] = bound_socket(l, a->ai_addr, a->ai_addrlen);
		if (fds[n] >= 0) {
			n++;
			continue;
		}
		/* A kernel without IPv6, or without one of the loopbacks. */
		if (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL)
			continue;
		log_bind_fault(l, errno);
		close_all(fds, n);
		n = -1;
		break;
	}
	freeaddrinfo(all);
	if (n == 0)
		log_error("Error: None of the addresses of %s can be used on "
		    "this machine.", l->host ? l->host : "the listener");
	return n > 0 ? n : -1;
}

void
listen_remove(const struct config_listener *l)
{
	if (l->path)
		unlink(l->path);
}

/* ---- in words ---- */

static void
say_where(const struct config_listener *l, char *out, size_t size)
{
	if (l->path)
		snprintf(out, size, "from programs on this machine");
	else if (l->local || (l->host && (!strcmp(l->host, "localhost") ||
	    !strcmp(l->host, "::1") || !strncmp(l->host, "127.", 4))))
		snprintf(out, size, "from this machine only");
	else if (l->interface)
		snprintf(out, size, "through the interface %s", l->interface);
	else if (l->host)
		snprintf(out, size, "at the address %s", l->host);
	else
		snprintf(out, size, "from every network of this machine");
}

static bool
names_from_certificates(const struct config_listener *l)
{
	return l->use_identity_as_username || l->use_subject_as_username;
}

/* Whether nobody at all can log in. */
static bool
shut(const struct config_listener *l)
{
	const struct config_security *s = &l->security;

	if (names_from_certificates(l))
		return !l->require_certificate;
	return !s->allow_anonymous && !s->password_file && !s->any_user;
}

static void
say_who(const struct config_listener *l, char *out, size_t size)
{
	const struct config_security *s = &l->security;
	bool names = names_from_certificates(l);
	int n;

	if (shut(l))
		n = snprintf(out, size, "nobody");
	else if (names || s->allow_anonymous)
		n = snprintf(out, size, "everybody");
	else if (s->password_file)
		n = snprintf(out, size, "the users of %s", s->password_file);
	else
		n = snprintf(out, size, "everybody with a user name");
	if (l->require_certificate)
		snprintf(out + n, size - (size_t)n, " with a certificate of "
		    "%s%s", l->cafile ? l->cafile : l->capath,
		    names ? ", which gives the user name," : "");
}

static const char *
say_how(const struct config_listener *l)
{
	const struct config_security *s = &l->security;

	if (names_from_certificates(l) || !s->password_file)
		return "without a password";
	return s->allow_anonymous ? "with a password if there is a user name" :
	    "with a password";
}

/* What lets others in, or fewer. */
static const char *
advice(const struct config_listener *l)
{
	if (l->local)
		return "For other machines a configuration file needs a line "
		    "like 'listener 1883'";
	if (shut(l))
		return names_from_certificates(l) ?
		    "'require_certificate true' asks for the certificates "
		    "that user names are to come from" :
		    "'password_file FILE' lets its users in, "
		    "'allow_anonymous true' everybody";
	if (!l->certfile)
		return l->security.password_file ?
		    "'certfile FILE' and 'keyfile FILE' encrypt" :
		    "'allow_anonymous false' and 'password_file FILE' ask "
		    "for passwords";
	if (!l->require_certificate)
		return "'require_certificate true' with 'cafile FILE' asks "
		    "for certificates";
	return "'crlfile FILE' shuts out certificates that were revoked";
}

void
listen_explain(const struct config_listener *l)
{
	char where[160], name[160], who[600];

	/* One line for both loopback addresses. */
	if (l->local && l->host[0] == ':')
		return;
	say_who(l, who, sizeof who);
	say_where(l, where, sizeof where);
	if (l->path)
		snprintf(name, sizeof name, "Socket %s", l->path);
	else
		snprintf(name, sizeof name, "Port %d", l->port);
	log_line(shut(l) ? LOG_T_WARNING : LOG_T_INFO,
	    "%s: %s may connect, %s, %s, %s. %s.", name, who, where,
	    say_how(l), l->certfile ? "with TLS" : "not encrypted",
	    advice(l));
}
