/* sys - what the broker tells about itself: under $SYS/broker/, and in the log
 * when it is asked.
 *
 * Every sys_interval the values that have changed are published, retained and
 * with QoS 2; and log lines, where log_dest topic asks for them.
 */
#ifndef SYS_H
#define SYS_H

#include "log.h"
#include "state.h"

/* Sets b->sys and publishes for the first time: certificates are read. false:
 * no memory. */
bool sys_init(struct broker *b);
void sys_fini(struct broker *b);

/* The interval has passed. */
void sys_timer(struct broker *b);

/* The interval may be another one now. */
void sys_reload(struct broker *b);

/* Writes clients, subscriptions and retained topics to the log; of each kind so
 * many that the loop is not held up. */
void sys_report(struct broker *b);

/* Takes a log line (a log_topic_fn; arg is the broker); it is published by
 * sys_publish_log, at the end of the turn. */
void sys_log(void *arg, enum log_type type, const char *text);
void sys_publish_log(struct broker *b);

#endif
