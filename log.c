#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_LEN 1024       /* longer lines are cut; topics can be 64 kB */

/* Bytes kept for a destination that takes nothing at the moment. */
#define KEPT_MAX (256 * 1024)

/* Of lines that are alike so many are shown in so many seconds. They are told
 * apart by their first bytes, with as many different ones in mind. */
#define ALIKE_SHOWN 20
#define ALIKE_S 10
#define ALIKE_LEN 240
#define ALIKE_KINDS 32

#define CLOSE_WAIT_MS 1000

/* What a destination did not take is offered again after this time, longer each
 * time when it takes nothing. */
#define RETRY_MIN_MS 10
#define RETRY_MAX_MS 1000

/* How to write to a descriptor without being held up. */
enum manner {
	PLAIN,                  /* a file, or opened as non-blocking */
	ASKING,                 /* a pipe of others: poll() comes first */
	SENDING,                /* a socket */
};

/* A descriptor that lines go to. */
struct sink {
	int fd;                 /* -1: not in use */
	enum manner manner;
	bool own;               /* opened here */
	unsigned long lost;     /* lines, since it took the last one */
	int retry_ms;
	size_t from, to;        /* what is kept */
	char *kept;             /* KEPT_MAX bytes */
};

enum { ERR, OUT, FIL, N_SINKS };

/* Apart from lg, which has initial values: so it takes no room in the program,
 * and no memory before it is used. */
static char kept[N_SINKS][KEPT_MAX];

struct alike {
	char text[ALIKE_LEN];
	int64_t since_s;
	unsigned n;
	enum log_type type;
};

static struct alike kinds[ALIKE_KINDS];

static struct {
	struct log_config c;
	log_topic_fn *topic;
	void *topic_arg;
	bool in_topic;          /* a line made by publishing a line: dropped */
	bool file_failed;       /* and that was told */
	bool file_regular;      /* no device, no pipe */
	size_t file_size;
	int syslog_fd;
	unsigned long syslog_lost;
	unsigned n_counted;     /* kinds of lines of which some are not shown */
	struct sink sink[N_SINKS];
} lg = {
	.c = { .types = LOG_T_ERROR | LOG_T_WARNING | LOG_T_NOTICE | LOG_T_INFO,
	       .dests = LOG_D_STDERR, .timestamps = true, .facility = -1 },
	.syslog_fd = -1,
	.sink = { [ERR] = { .fd = 2, .manner = ASKING, .kept = kept[ERR],
	       .retry_ms = RETRY_MIN_MS },
	       [OUT] = { .fd = -1, .kept = kept[OUT],
	       .retry_ms = RETRY_MIN_MS },
	       [FIL] = { .fd = -1, .kept = kept[FIL],
	       .retry_ms = RETRY_MIN_MS } },
};

static size_t
timestamp(char *out, size_t size)
{
	time_t now = time(NULL);
	struct tm tm;
	size_t n;

	if (!lg.c.timestamps)
		return 0;
	if (!lg.c.time_format)
		return (size_t)snprintf(out, size, "%lld: ", (long long)now);
	localtime_r(&now, &tm);
	n = strftime(out, size - 2, lg.c.time_format, &tm);
	out[n++] = ':';
	out[n++] = ' ';
	return n;
}

static void emit(enum log_type type, const char *text);

/* ---- lines that are alike ---- */

static int64_t
clock_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* The text with a * for each port number, in which connections of one peer
 * differ. */
static void
without_ports(const char *text, char out[ALIKE_LEN])
{
	size_t n = 0;

	while (*text && n < ALIKE_LEN - 2) {
		out[n++] = *text++;
		if (text[-1] != ':' || *text < '0' || *text > '9')
			continue;
		out[n++] = '*';
		text += strspn(text, "0123456789");
	}
	out[n] = 0;
}

static void
tell_count(struct alike *a)
{
	char text[ALIKE_LEN + 40];
	unsigned n = a->n;

	a->n = 0;
	if (n <= ALIKE_SHOWN)
		return;
	lg.n_counted--;
	snprintf(text, sizeof text, "%s (repeated %u times)", a->text,
	    n - ALIKE_SHOWN);
	emit(a->type, text);
}

static struct alike *
find_alike(const char *text)
{
	struct alike *oldest = &kinds[0];

	for (int i = 0; i < ALIKE_KINDS; i++) {
		if (!strcmp(kinds[i].text, text))
			return &kinds[i];
		if (kinds[i].since_s < oldest->since_s)
			oldest = &kinds[i];
	}
	tell_count(oldest);
	memcpy(oldest->text, text, ALIKE_LEN);
	return oldest;
}

/* Whether a line is to be shown, or only counted. */
static bool
worth_showing(enum log_type type, const char *text)
{
	char plain[ALIKE_LEN] = "";
	struct alike *a;
	int64_t now = clock_s();

	if (!lg.c.count_alike || type & (LOG_T_DEBUG | LOG_T_SUBSCRIBE |
	    LOG_T_UNSUBSCRIBE))
		return true;
	without_ports(text, plain);
	a = find_alike(plain);
	if (now - a->since_s >= ALIKE_S)
		tell_count(a);
	if (a->n == 0)
		a->since_s = now;
	a->type = type;
	if (++a->n == ALIKE_SHOWN + 1)
		lg.n_counted++;
	return a->n <= ALIKE_SHOWN;
}

static void
tell_due_counts(void)
{
	int64_t now = clock_s();

	for (int i = 0; i < ALIKE_KINDS && lg.n_counted; i++)
		if (kinds[i].n > ALIKE_SHOWN &&
		    now - kinds[i].since_s >= ALIKE_S)
			tell_count(&kinds[i]);
}

/* ---- descriptors ---- */

/* One write that does not wait. */
static ssize_t
write_some(int fd, enum manner how, const char *p, size_t n)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };

	if (how == SENDING)
		return send(fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (how == PLAIN)
		return write(fd, p, n);
	if (poll(&pfd, 1, 0) != 1) {
		errno = EAGAIN;
		return -1;
	}
	/* A pipe that is writable takes this much. */
	return write(fd, p, n < PIPE_BUF ? n : PIPE_BUF);
}

static void
give_up(struct sink *k)
{
	for (size_t i = k->from; i < k->to; i++)
		k->lost += k->kept[i] == '\n';
	k->from = k->to = 0;
}

static int
later(int ms)
{
	return ms * 2 > RETRY_MAX_MS ? RETRY_MAX_MS : ms * 2;
}

/* 0, or the errno of what failed for good; then what was kept is lost. */
static int
put(struct sink *k)
{
	size_t before = k->from;
	ssize_t n;

	while (k->from < k->to) {
		n = write_some(k->fd, k->manner, k->kept + k->from,
		    k->to - k->from);
		if (n >= 0) {
			k->from += (size_t)n;
		} else if (errno == EAGAIN) {
			k->retry_ms = k->from > before ? RETRY_MIN_MS :
			    later(k->retry_ms);
			return 0;
		} else if (errno != EINTR) {
			int err = errno;

			give_up(k);
			return err;
		}
	}
	k->from = k->to = 0;
	return 0;
}

/* What goes wrong with the log file is told on stderr: where else. */
static void
complain(const char *what, int err)
{
	char line[PATH_MAX + 400];
	size_t n = timestamp(line, 256);

	snprintf(line + n, sizeof line - n, "Error: Unable to %s log file %s: "
	    "%s. Lines get lost until that is mended.\n", what, lg.c.file,
	    strerror(err));
	write_some(2, ASKING, line, strlen(line));
}

static int
open_file(void)
{
	struct stat st;
	int fd = open(lg.c.file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC |
	    O_NOCTTY | O_NONBLOCK, 0600);

	lg.file_regular = fd >= 0 && fstat(fd, &st) == 0 &&
	    S_ISREG(st.st_mode);
	lg.file_size = lg.file_regular ? (size_t)st.st_size : 0;
	return fd;
}

/* The file has its size: it becomes FILE.1, and a new one begins. Where that is
 * not possible it is emptied, as it must not fill the card. */
static void
rotate(void)
{
	struct sink *k = &lg.sink[FIL];
	char old[PATH_MAX];
	int fd;

	if ((size_t)snprintf(old, sizeof old, "%s.1", lg.c.file) < sizeof old &&
	    rename(lg.c.file, old) == 0 && (fd = open_file()) >= 0) {
		close(k->fd);
		k->fd = fd;
		return;
	}
	lg.file_size = 0;
	if (ftruncate(k->fd, 0) < 0)
		complain("shorten", errno);
}

static void
put_file(void)
{
	struct sink *k = &lg.sink[FIL];
	size_t n = k->to - k->from;
	int err;

	if (lg.file_regular && lg.c.file_size && lg.file_size &&
	    lg.file_size + n > lg.c.file_size)
		rotate();
	err = put(k);
	if (err && !lg.file_failed)
		complain("write to the", err);
	lg.file_failed = err != 0;
	lg.file_size += err ? 0 : n - (k->to - k->from);
}

static void
put_sink(int i)
{
	if (lg.sink[i].fd < 0 || lg.sink[i].to == 0)
		return;
	if (i == FIL)
		put_file();
	else
		put(&lg.sink[i]);
}

static size_t
room(const struct sink *k)
{
	return KEPT_MAX - (k->to - k->from);
}

static bool
keep(struct sink *k, const char *line, size_t n)
{
	if (KEPT_MAX - k->to < n && k->from > 0) {
		memmove(k->kept, k->kept + k->from, k->to - k->from);
		k->to -= k->from;
		k->from = 0;
	}
	if (KEPT_MAX - k->to < n)
		return false;
	memcpy(k->kept + k->to, line, n);
	k->to += n;
	return true;
}

static void
keep_loss(struct sink *k)
{
	char line[400];
	size_t n = timestamp(line, 256);

	n += (size_t)snprintf(line + n, sizeof line - n, "Warning: %lu log "
	    "lines were lost here, as nobody took them.\n", k->lost);
	if (keep(k, line, n))
		k->lost = 0;
}

static void
add(int i, const char *line, size_t n)
{
	struct sink *k = &lg.sink[i];

	if (k->fd < 0)
		return;
	if (room(k) < n)
		put_sink(i);
	/* Told where it happened: behind what is kept. */
	if (k->lost && room(k) > KEPT_MAX / 4)
		keep_loss(k);
	if (k->lost || !keep(k, line, n))
		k->lost++;
}

/* ---- syslog ---- */

/* A datagram as RFC 3164 has it; the library's syslog() would wait where the
 * daemon does not read. */
static bool
send_syslog(const char *line, size_t n)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX,
	    .sun_path = "/dev/log" };

	if (lg.syslog_fd >= 0) {
		if (send(lg.syslog_fd, line, n, MSG_DONTWAIT | MSG_NOSIGNAL) >=
		    0)
			return true;
		if (errno == EAGAIN || errno == ENOBUFS)
			return false;
		close(lg.syslog_fd);    /* the daemon was started anew */
	}
	lg.syslog_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (lg.syslog_fd < 0)
		return false;
	if (connect(lg.syslog_fd, (struct sockaddr *)&a, sizeof a) == 0)
		return send(lg.syslog_fd, line, n,
		    MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
	close(lg.syslog_fd);
	lg.syslog_fd = -1;
	return false;
}

static void
to_syslog(int severity, const char *text)
{
	char line[2 * LINE_MAX_LEN + 128], when[32];
	int facility = lg.c.facility < 0 ? LOG_DAEMON :
	    (16 + lg.c.facility) << 3;
	time_t now = time(NULL);
	struct tm tm;
	int n;

	localtime_r(&now, &tm);
	strftime(when, sizeof when, "%b %e %H:%M:%S", &tm);
	if (lg.syslog_lost) {
		n = snprintf(line, sizeof line, "<%d>%s midge[%d]: Warning: "
		    "%lu log lines were lost here, as nobody took them.",
		    facility | LOG_WARNING, when, (int)getpid(),
		    lg.syslog_lost);
		if (send_syslog(line, (size_t)n))
			lg.syslog_lost = 0;
	}
	n = snprintf(line, sizeof line, "<%d>%s midge[%d]: %s",
	    facility | severity, when, (int)getpid(), text);
	if (lg.syslog_lost || !send_syslog(line, (size_t)n))
		lg.syslog_lost++;
}

/* ---- life ---- */

/* A terminal is opened once more, non-blocking for us alone: the descriptor
 * that we have may be shared with others. */
static void
use_stream(struct sink *k, int fd, bool on)
{
	char path[32];
	struct stat st;

	if (k->own && on && isatty(fd))
		return;         /* perhaps it could not be opened again */
	if (k->own)
		close(k->fd);
	k->own = false;
	k->fd = on ? fd : -1;
	if (!on || fstat(fd, &st) < 0)
		return;
	k->manner = S_ISSOCK(st.st_mode) ? SENDING :
	    S_ISREG(st.st_mode) ? PLAIN : ASKING;
	if (!isatty(fd))
		return;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0) {
		k->fd = fd;
		k->manner = PLAIN;
		k->own = true;
	}
}

static void
close_file(void)
{
	if (lg.sink[FIL].fd >= 0)
		close(lg.sink[FIL].fd);
	lg.sink[FIL].fd = -1;
}

void
log_init(void)
{
	use_stream(&lg.sink[ERR], 2, true);
}

void
log_open(const struct log_config *c)
{
	struct sink *f = &lg.sink[FIL];
	int err = 0;

	log_flush();
	close_file();
	lg.c = *c;
	lg.file_failed = false;
	if (c->dests & LOG_D_FILE) {
		f->fd = open_file();
		err = f->fd < 0 ? errno : 0;
		lg.c.dests |= err ? LOG_D_STDERR : 0;
	}
	use_stream(&lg.sink[ERR], 2, lg.c.dests & LOG_D_STDERR);
	use_stream(&lg.sink[OUT], 1, lg.c.dests & LOG_D_STDOUT);
	if (err)
		log_error("Error: Unable to open log file %s for writing: %s. "
		    "Logging to stderr instead.", c->file, strerror(err));
}

void
log_to_topic(log_topic_fn *fn, void *arg)
{
	lg.topic = fn;
	lg.topic_arg = arg;
}

void
log_flush(void)
{
	if (lg.n_counted)
		tell_due_counts();
	for (int i = 0; i < N_SINKS; i++) {
		put_sink(i);
		if (lg.sink[i].lost && lg.sink[i].to == 0 && i != FIL)
			keep_loss(&lg.sink[i]);
	}
}

int
log_wait_ms(void)
{
	int ms = lg.n_counted ? RETRY_MAX_MS : -1;

	for (int i = 0; i < N_SINKS; i++)
		if (lg.sink[i].to > 0 && (ms < 0 || lg.sink[i].retry_ms < ms))
			ms = lg.sink[i].retry_ms;
	return ms;
}

/* Those who read get the last lines too, though they are slow. */
static void
drain(void)
{
	struct pollfd p[N_SINKS];
	int waits;

	for (int ms = 0; ms < CLOSE_WAIT_MS; ms += 10) {
		log_flush();
		waits = 0;
		for (int i = 0; i < N_SINKS; i++) {
			p[i] = (struct pollfd){ .fd = -1, .events = POLLOUT };
			if (lg.sink[i].to > 0)
				p[i].fd = lg.sink[i].fd;
			waits |= lg.sink[i].to > 0;
		}
		if (!waits)
			return;
		poll(p, N_SINKS, 10);
	}
}

void
log_close(void)
{
	for (int i = 0; i < ALIKE_KINDS; i++)
		tell_count(&kinds[i]);
	drain();
	close_file();
	lg.c.dests = LOG_D_STDERR;
	use_stream(&lg.sink[OUT], 1, false);
	use_stream(&lg.sink[ERR], 2, true);
}

bool
log_on(enum log_type type)
{
	return lg.c.types & type;
}

/* How many bytes at the beginning of text could move a terminal or begin a new
 * line: a control byte, or U+0080 to U+009F in UTF-8. A tab may stand (some
 * lines begin with one). */
static int
controls(const char *text)
{
	unsigned char ch = (unsigned char)text[0];
	unsigned char next = (unsigned char)text[1];

	if ((ch < 0x20 && ch != '\t') || ch == 0x7f)
		return 1;
	return ch == 0xc2 && next >= 0x80 && next < 0xa0 ? 2 : 0;
}

/* Copies text so that it stays one harmless line: controls become \xNN. */
static void
harmless(char *out, size_t size, const char *text)
{
	size_t n = 0;

	while (*text && n + 9 < size) {
		int bad = controls(text);

		if (bad == 0)
			out[n++] = *text++;
		for (; bad > 0; bad--)
			n += (size_t)snprintf(out + n, size - n, "\\x%02x",
			    (unsigned char)*text++);
	}
	out[n] = 0;
}

static int
severity(enum log_type type)
{
	switch (type) {
	case LOG_T_ERROR:
		return LOG_ERR;
	case LOG_T_WARNING:
		return LOG_WARNING;
	case LOG_T_NOTICE:
	case LOG_T_SUBSCRIBE:
	case LOG_T_UNSUBSCRIBE:
		return LOG_NOTICE;
	case LOG_T_INFO:
		return LOG_INFO;
	default:
		return LOG_DEBUG;
	}
}

static void
emit(enum log_type type, const char *text)
{
	char line[2 * LINE_MAX_LEN + 300];
	size_t n = timestamp(line, 256);

	n += (size_t)snprintf(line + n, sizeof line - n, "%s\n", text);
	for (int i = 0; i < N_SINKS; i++)
		add(i, line, n);
	if (lg.c.dests & LOG_D_SYSLOG)
		to_syslog(severity(type), text);
	if (lg.c.dests & LOG_D_TOPIC && lg.topic && type != LOG_T_DEBUG &&
	    !lg.in_topic) {
		lg.in_topic = true;
		lg.topic(lg.topic_arg, type, text);
		lg.in_topic = false;
	}
}

void
log_line(enum log_type type, const char *fmt, ...)
{
	char raw[LINE_MAX_LEN], text[2 * LINE_MAX_LEN];
	va_list ap;

	if (!log_on(type) || lg.c.dests == 0)
		return;
	va_start(ap, fmt);
	vsnprintf(raw, sizeof raw, fmt, ap);
	va_end(ap);
	harmless(text, sizeof text, raw);
	if (!worth_showing(type, text))
		return;
	emit(type, text);
	if (type == LOG_T_ERROR)
		log_flush();
}
