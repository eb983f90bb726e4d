#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_LEN 1024       /* longer lines are cut; topics can be 64 kB */

static struct {
	struct log_config c;
	log_topic_fn *topic;
	void *topic_arg;
	int fd;                 /* of the file */
	bool in_topic;          /* a line made by publishing a line: dropped */
	size_t len;
	char gathered[16384];
} lg = {
	.c = { .types = LOG_T_ERROR | LOG_T_WARNING | LOG_T_NOTICE | LOG_T_INFO,
	       .dests = LOG_D_STDERR, .timestamps = true, .facility = -1 },
	.fd = -1,
};

void
log_open(const struct log_config *c)
{
	log_flush();
	if (lg.fd >= 0)
		close(lg.fd);
	lg.fd = -1;
	lg.c = *c;
	if (c->dests & LOG_D_FILE) {
		lg.fd = open(c->file,
		    O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
		if (lg.fd < 0) {
			lg.c.dests |= LOG_D_STDERR;
			log_error("Error: Unable to open log file %s for "
			    "writing: %s. Logging to stderr instead.",
			    c->file, strerror(errno));
		}
	}
	if (c->dests & LOG_D_SYSLOG)
		openlog("midge", LOG_CONS,
		    c->facility < 0 ? LOG_DAEMON : (16 + c->facility) << 3);
}

void
log_to_topic(log_topic_fn *fn, void *arg)
{
	lg.topic = fn;
	lg.topic_arg = arg;
}

/* A log that cannot be written must not stop the broker: what does not go
 * out is dropped. */
static void
put(int fd)
{
	size_t done = 0;
	ssize_t n;

	while (done < lg.len) {
		n = write(fd, lg.gathered + done, lg.len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		done += (size_t)n;
	}
}

void
log_flush(void)
{
	if (lg.len == 0)
		return;
	if (lg.c.dests & LOG_D_STDERR)
		put(2);
	if (lg.c.dests & LOG_D_STDOUT)
		put(1);
	if (lg.fd >= 0)
		put(lg.fd);
	lg.len = 0;
}

void
log_close(void)
{
	log_flush();
	if (lg.fd >= 0)
		close(lg.fd);
	lg.fd = -1;
	lg.c.dests = LOG_D_STDERR;
}

bool
log_on(enum log_type type)
{
	return lg.c.types & type;
}

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
	memcpy(out + n, ": ", 2);
	return n + 2;
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
elsewhere(enum log_type type, const char *text)
{
	if (lg.c.dests & LOG_D_SYSLOG)
		syslog(severity(type), "%s", text);
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

	if (sizeof lg.gathered - lg.len < sizeof text + 256)
		log_flush();
	lg.len += timestamp(lg.gathered + lg.len, 256);
	lg.len += (size_t)snprintf(lg.gathered + lg.len,
	    sizeof lg.gathered - lg.len, "%s\n", text);
	if (type == LOG_T_ERROR)
		log_flush();
	elsewhere(type, text);
}
