/* log - one line per event, to the places that the configuration names.
 *
 * Lines are gathered and written once per turn of the loop (log_flush); an
 * error is written at once. Nobody who does not read can hold up the broker:
 * what a destination does not take is kept up to a limit, then lines are lost,
 * and their number is told when it takes some again. Lines that come again and
 * again are shown a few times, then counted. Bytes from peers may stand in a
 * line: whatever could move a terminal or forge a second line is shown as \xNN.
 * The module knows nothing of MQTT.
 */
#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stddef.h>

enum log_type {
	LOG_T_ERROR = 0x01,
	LOG_T_WARNING = 0x02,
	LOG_T_NOTICE = 0x04,
	LOG_T_INFO = 0x08,
	LOG_T_DEBUG = 0x10,
	LOG_T_SUBSCRIBE = 0x20,
	LOG_T_UNSUBSCRIBE = 0x40,
	LOG_T_ALL = 0x7f,
};

enum log_dest {
	LOG_D_STDERR = 0x01,
	LOG_D_STDOUT = 0x02,
	LOG_D_FILE = 0x04,
	LOG_D_SYSLOG = 0x08,
	LOG_D_TOPIC = 0x10,
};

struct log_config {
	unsigned types;         /* enum log_type, or-ed */
	unsigned dests;         /* enum log_dest, or-ed */
	const char *file;       /* path, with LOG_D_FILE */
	size_t file_size;       /* bytes, then a new file is begun; 0: never */
	const char *time_format;/* strftime; NULL: seconds since 1970 */
	bool timestamps;
	bool count_alike;       /* lines that come again and again */
	int facility;           /* syslog: 0-7 for local0-7, -1 for daemon */
};

/* Called for each line with LOG_D_TOPIC, debug lines excepted. */
typedef void log_topic_fn(void *arg, enum log_type type, const char *text);

/* Looks at where stderr leads to, with the rights that the process has at its
 * start: later a terminal may not be its own any more. */
void log_init(void);

/* Until this is called, lines go to stderr. Keeps the strings of c.
 * A file that cannot be opened is reported on stderr, and left out. Called
 * again it opens the file anew, as after a rotation by others. */
void log_open(const struct log_config *c);
void log_to_topic(log_topic_fn *fn, void *arg);

/* Writes out what is gathered. log_close waits up to a second for those who
 * read slowly, and closes the file. */
void log_flush(void);
void log_close(void);

/* Milliseconds until log_flush should be called though no line was added: -1
 * for never, as nothing waits. */
int log_wait_ms(void);

/* Whether a line of this type would be seen: ask before costly arguments. */
bool log_on(enum log_type type);

/* One line, without the newline. */
void log_line(enum log_type type, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_T_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_T_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_T_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_T_INFO, __VA_ARGS__)
#define log_debug(...) \
	(log_on(LOG_T_DEBUG) ? log_line(LOG_T_DEBUG, __VA_ARGS__) : (void)0)

#endif
