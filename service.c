#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define USER_DEFAULT "mosquitto"
#define GROUPS_MAX 64           /* of the user; more are left out */

/* ---- the user ---- */

/* A number from the environment. 1: there is one; 0: none; -1: it is bad. */
static int
env_id(const char *name, unsigned *id)
{
	const char *text = getenv(name);
	char *end;
	long n;

	if (!text || !*text)
		return 0;
	n = strtol(text, &end, 10);
	if (*end || n < 0 || n > INT_MAX) {
		log_error("Error: %s is '%s' in the environment; it must be a "
		    "number.", name, text);
		return -1;
	}
	*id = (unsigned)n;
	return 1;
}

/* The entry of /etc/passwd for a name, or for uid without a name; NULL: none.
 * getpwnam() would load libraries that take more memory than the broker. */
static const struct passwd *
passwd_entry(const char *name, uid_t uid)
{
	FILE *f = fopen("/etc/passwd", "re");
	const struct passwd *pw;

	if (!f)
		return NULL;
	do
		pw = fgetpwent(f);
	while (pw && (name ? strcmp(pw->pw_name, name) != 0 :
	    pw->pw_uid != uid));
	fclose(f);
	return pw;
}

static bool
is_member(const struct group *g, const char *user)
{
	for (char **m = g->gr_mem; *m; m++)
		if (!strcmp(*m, user))
			return true;
	return false;
}

/* The groups that /etc/group gives the user, and its own. */
static bool
join_groups(const char *user, gid_t own)
{
	FILE *f = fopen("/etc/group", "re");
	gid_t all[GROUPS_MAX];
	size_t n = 0;
	const struct group *g;

	all[n++] = own;
	while (f && n < GROUPS_MAX && (g = fgetgrent(f)))
		if (is_member(g, user) && g->gr_gid != own)
			all[n++] = g->gr_gid;
	if (f)
		fclose(f);
	return setgroups(n, all) == 0;
}

static bool
find_user(struct service *s, const char *wanted)
{
	const char *name = wanted ? wanted : USER_DEFAULT;
	const struct passwd *pw = passwd_entry(name, 0);

	if (!pw && !strcmp(name, USER_DEFAULT)) {
		log_warning("Warning: There is no user %s; midge runs as "
		    "nobody. 'useradd --system %s' makes one.", name, name);
		name = "nobody";
		pw = passwd_entry(name, 0);
	}
	if (!pw) {
		log_error("Error: There is no user '%s' to run as. 'useradd "
		    "--system %s' makes one, or choose another with the "
		    "option user.", name, name);
		return false;
	}
	s->uid = pw->pw_uid;
	s->gid = pw->pw_gid;
	if (s->uid != 0 && !join_groups(name, s->gid)) {
		log_error("Error: Unable to take the groups of user %s: %s.",
		    name, strerror(errno));
		return false;
	}
	return true;
}

bool
service_init(struct service *s, const struct config *c)
{
	unsigned uid, gid;
	int has_uid, has_gid;

	if (geteuid() != 0)
		return true;
	if ((has_uid = env_id("PUID", &uid)) < 0 ||
	    (has_gid = env_id("PGID", &gid)) < 0)
		return false;
	if (has_uid == 0 && !find_user(s, c->user))
		return false;
	if (has_uid) {
		s->uid = uid;
		s->gid = uid;
		setgroups(0, NULL);
	}
	if (has_gid)
		s->gid = gid;
	s->drop = s->uid != 0;
	if (!s->drop)
		log_warning("Warning: midge runs as root all the time. The "
		    "option user names somebody who may do less.");
	return true;
}

const char *
service_user(const struct service *s, char *out, size_t size)
{
	return service_user_name(s->drop ? s->uid : geteuid(), out, size);
}

const char *
service_user_name(uid_t uid, char *out, size_t size)
{
	const struct passwd *pw = passwd_entry(NULL, uid);

	if (pw)
		snprintf(out, size, "%s", pw->pw_name);
	else
		snprintf(out, size, "%u", (unsigned)uid);
	return out;
}

void
service_as_user(const struct service *s, bool on)
{
	if (!s->drop)
		return;
	if (!on && (seteuid(0) < 0 || setegid(0) < 0))
		abort();        /* we were root a moment ago */
	if (on && (setegid(s->gid) < 0 || seteuid(s->uid) < 0))
		abort();
}

bool
service_drop(struct service *s)
{
	if (!s->drop)
		return true;
	if (setgid(s->gid) < 0 || setuid(s->uid) < 0)
		return false;
	if (setuid(0) == 0)
		abort();        /* there must be no way back */
	s->drop = false;
	return true;
}

/* ---- the root ---- */

/* In the new root: the old path of it leads to it. */
static void
make_way(const char *dir)
{
	char path[PATH_MAX];
	size_t n = strlen(dir);

	if (n >= sizeof path)
		return;
	memcpy(path, dir, n + 1);
	while (n > 1 && path[n - 1] == '/')
		path[--n] = 0;
	for (char *p = path + 1; (p = strchr(p, '/')); p++) {
		*p = 0;
		mkdir(path, 0755);
		*p = '/';
	}
	if (symlink("/", path) < 0 && errno != EEXIST)
		log_warning("Warning: Unable to make the link %s in the chroot, "
		    "through which its files are found: %s.", path,
		    strerror(errno));
}

static void
tell_missing(const char *path, const char *what)
{
	if (path && access(path, F_OK) < 0)
		log_warning("Warning: %s is outside of the chroot: %s.", path,
		    what);
}

/* A folder for what will be made later. */
static void
tell_missing_folder(const char *file, const char *what)
{
	char path[PATH_MAX], *slash;

	if (!file || strlen(file) >= sizeof path)
		return;
	memcpy(path, file, strlen(file) + 1);
	slash = strrchr(path, '/');
	if (!slash || slash == path)
		return;
	*slash = 0;
	tell_missing(path, what);
}

static void
tell_outside(const struct config *c)
{
	const char *again = "SIGHUP cannot read it again";
	const char *notify = getenv("NOTIFY_SOCKET");

	tell_missing(c->file, again);
	for (unsigned i = 0; i < c->n_listeners; i++) {
		const struct config_listener *l = &c->listeners[i];

		tell_missing(l->security.password_file, again);
		tell_missing(l->security.acl_file, again);
		tell_missing(l->certfile, again);
		tell_missing(l->keyfile, again);
		tell_missing(l->cafile, again);
		tell_missing(l->capath, again);
		tell_missing(l->crlfile, again);
	}
	if (c->persistence)
		tell_missing_folder(c->persistence_location,
		    "nothing can be stored there");
	if (c->log.dests & LOG_D_FILE)
		tell_missing_folder(c->log_file, "it cannot be opened anew");
	if (c->log.dests & LOG_D_SYSLOG)
		tell_missing("/dev/log", "syslog gets no lines");
	if (c->daemon)
		tell_missing("/dev/null", "the terminal is not let go");
	tell_missing(c->pid_file, "it is not removed at the end");
	if (notify && notify[0] == '/')
		tell_missing(notify, "the service manager does not hear that "
		    "midge is ready; its own RootDirectory does better");
}

bool
service_chroot(const struct config *c)
{
	if (c->chroot[0] != '/') {
		log_error("Error: Unable to chroot to %s: it must be a path "
		    "from the root, with / at its beginning.", c->chroot);
		return false;
	}
	if (chroot(c->chroot) < 0 || chdir("/") < 0) {
		log_error("Error: Unable to chroot to %s: %s.%s", c->chroot,
		    strerror(errno), errno == EPERM ? " Only root may: start "
		    "midge as root, or leave out the option chroot." : "");
		return false;
	}
	make_way(c->chroot);
	tell_outside(c);
	return true;
}

/* ---- files ---- */

/* The folder of a file, if its own folder is there. */
static void
make_folder(const struct service *s, const char *file)
{
	char path[PATH_MAX], *slash;

	if (!file || strlen(file) >= sizeof path)
		return;
	memcpy(path, file, strlen(file) + 1);
	slash = strrchr(path, '/');
	if (!slash || slash == path)
		return;
	*slash = 0;
	if (mkdir(path, 0755) < 0)
		return;
	if (s->drop && lchown(path, s->uid, s->gid) < 0)
		log_warning("Warning: The new folder %s belongs to root: %s.",
		    path, strerror(errno));
}

void
service_make_folders(const struct service *s, const struct config *c)
{
	char inside[PATH_MAX];

	make_folder(s, c->pid_file);
	if (c->persistence && c->persistence_location &&
	    (size_t)snprintf(inside, sizeof inside, "%s/.",
	    c->persistence_location) < sizeof inside)
		make_folder(s, inside);
	if (c->log.dests & LOG_D_FILE)
		make_folder(s, c->log_file);
}

/* Never through a link, which others may have put there for root to follow. */
static int
open_pid_file(const char *path)
{
	struct stat st;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW |
	    O_NONBLOCK | O_NOCTTY, 0644);

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
	    ftruncate(fd, 0) == 0)
		return fd;
	close(fd);
	errno = EINVAL;
	return -1;
}

void
service_write_pid_file(struct service *s, const char *path)
{
	char pid[24];
	int n = snprintf(pid, sizeof pid, "%ld", (long)getpid()), fd;
	bool ok;

	/* The user can remove it again if it may write to the folder. */
	service_as_user(s, true);
	fd = open_pid_file(path);
	service_as_user(s, false);
	if (fd < 0 && errno == EACCES)
		fd = open_pid_file(path);
	ok = fd >= 0 && write(fd, pid, (size_t)n) == n;
	if (!ok)
		log_warning("Warning: Unable to write pid file %s: %s.", path,
		    strerror(errno));
	else
		s->pid_file = path;
	if (fd >= 0)
		close(fd);
}

void
service_remove_pid_file(struct service *s)
{
	if (s->pid_file && unlink(s->pid_file) < 0 && errno != ENOENT)
		log_warning("Warning: Unable to remove pid file %s: %s.",
		    s->pid_file, strerror(errno));
	s->pid_file = NULL;
}

/* ---- the background ---- */

/* The old process: its exit code is that of the start. */
static void
wait_for_start(pid_t pid, int fd)
{
	unsigned char code;
	int status;

	if (read(fd, &code, 1) == 1)
		_exit(code);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_START);
}

bool
service_background(struct service *s)
{
	int fds[2];
	pid_t pid;

	log_flush();
	if (pipe2(fds, O_CLOEXEC) < 0)
		return false;
	pid = fork();
	if (pid < 0)
		return false;
	if (pid > 0) {
		close(fds[1]);
		wait_for_start(pid, fds[0]);
	}
	close(fds[0]);
	s->starter = fds[1];
	setsid();
	return true;
}

void
service_started(struct service *s)
{
	int fd;

	if (!s->starter)
		return;
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3 && fd >= 0; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	if (write(s->starter, "", 1) < 0)
		log_debug("Nobody waited for the start.");
	close(s->starter);
	s->starter = 0;
}

/* ---- the service manager ---- */

void
service_notify(const char *state)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	size_t n = path ? strlen(path) : 0;
	int fd;

	if (n < 2 || n >= sizeof a.sun_path || !strchr("/@", path[0]))
		return;
	memcpy(a.sun_path, path, n);
	if (path[0] == '@')
		a.sun_path[0] = 0;      /* an abstract address */
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, state, strlen(state), MSG_DONTWAIT | MSG_NOSIGNAL,
	    (struct sockaddr *)&a,
	    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		log_debug("The service manager was not told %s: %s.", state,
		    strerror(errno));
	close(fd);
}

void
service_notify_reloading(void)
{
	char state[80];
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	snprintf(state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%lld",
	    (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000);
	service_notify(state);
}

int64_t
service_watchdog_ms(void)
{
	const char *usec = getenv("WATCHDOG_USEC");
	const char *pid = getenv("WATCHDOG_PID");
	long long n = usec ? strtoll(usec, NULL, 10) : 0;

	if (n <= 0 || (pid && strtol(pid, NULL, 10) != (long)getpid()))
		return 0;
	/* Twice as often as it must be. */
	return n / 2000 > 0 ? n / 2000 : 1;
}

static void
group_name(gid_t gid, char *out, size_t size)
{
	FILE *f = fopen("/etc/group", "re");
	const struct group *g;

	snprintf(out, size, "%u", (unsigned)gid);
	while (f && (g = fgetgrent(f)))
		if (g->gr_gid == gid)
			snprintf(out, size, "%s", g->gr_name);
	if (f)
		fclose(f);
}

void
service_say_owner(const char *path, char *out, size_t size)
{
	char user[64], group[64];
	struct stat st;

	if (stat(path, &st) < 0) {
		snprintf(out, size, "%s", strerror(errno));
		return;
	}
	service_user_name(st.st_uid, user, sizeof user);
	group_name(st.st_gid, group, sizeof group);
	snprintf(out, size, "owner %s, group %s, mode %04o", user, group,
	    (unsigned)st.st_mode & 07777);
}
