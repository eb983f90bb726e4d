/* service - what makes the process a well-behaved service: whom it runs as, its
 * folders and pid file, the background, and words with the service manager.
 *
 * Knows systemd's protocol without its library: one datagram per message. Knows
 * nothing of MQTT.
 */
#ifndef SERVICE_H
#define SERVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"

struct service {
	bool drop;              /* root now, and somebody else soon */
	uid_t uid;              /* who that is */
	gid_t gid;
	const char *pid_file;   /* NULL: none was written */
	int starter;            /* pipe to the process that waits for our start
	                         * with -d; 0: none */
};

/* Finds out whom to run as: user, an entry of /etc/passwd, or PUID and PGID of
 * the environment. Nothing changes for those who are not root. false: there is
 * no such user; logged. */
bool service_init(struct service *s, const struct config *c);

/* The name of the user that the process will run as, and of any user; its number
 * if it has none. */
const char *service_user(const struct service *s, char *out, size_t size);
const char *service_user_name(uid_t uid, char *out, size_t size);

/* Makes the folders of log, pid file and journal that are missing, for that
 * user. Where it is not possible, whoever opens the file tells. */
void service_make_folders(const struct service *s, const struct config *c);

/* While on, files are opened and made as the later user would. For root only;
 * nothing for others. */
void service_as_user(const struct service *s, bool on);

/* -d: goes on in a new process, in the background. The old one waits until
 * service_started, or the end of the new one, and ends with its exit code.
 * false with errno: not possible. */
bool service_background(struct service *s);
void service_started(struct service *s);

/* A pid file that cannot be written is a warning. service_remove_pid_file does
 * nothing if there is none of ours. */
void service_write_pid_file(struct service *s, const char *path);
void service_remove_pid_file(struct service *s);

/* For root: the folder that the option chroot names is all that can be seen of
 * the file system from here on. Paths of files below it stay as they are (there
 * is a link in it that leads back to its root); those of others are told in the
 * log, with what that means. false: not possible; logged. */
bool service_chroot(const struct config *c);

/* Becomes the other user for good. false with errno: not possible. */
bool service_drop(struct service *s);

/* Tells the service manager, if there is one: "READY=1" and so on. */
void service_notify(const char *state);
void service_notify_reloading(void);

/* How often it wants to hear "WATCHDOG=1", in milliseconds; 0: never. */
int64_t service_watchdog_ms(void);

/* "owner root, group adm, mode 0640", or why that cannot be told. */
void service_say_owner(const char *path, char *out, size_t size);

#endif
