/* mosqdb - reads the database of Mosquitto (mosquitto.db), once, when sessions
 * and retained messages are taken over from it.
 *
 * Formats 5 and 6, which Mosquitto 1.6 to 2.1 write. The file is only read.
 * Whatever it holds, the calls get checked values: topics, filters and client
 * ids that a packet could have brought, properties that may be sent on.
 */
#ifndef MOSQDB_H
#define MOSQDB_H

#include <stdbool.h>
#include <stdint.h>

#include "mqtt.h"

/* Views are valid during the call. */

struct mosqdb_client {
	struct mqtt_str id;
	struct mqtt_str user;   /* empty: none, or format 5 */
	int64_t expires;        /* unix seconds; 0: its time is not running */
	uint32_t expiry;        /* interval in seconds, UINT32_MAX: never */
	uint16_t last_mid;
};

struct mosqdb_subscription {
	struct mqtt_str id;     /* of the client */
	struct mqtt_filter filter;      /* $share/... included */
	uint32_t subid;         /* Subscription Identifier, 0: none */
};

struct mosqdb_message {
	uint64_t store_id;
	int64_t expires;        /* unix seconds; 0: never */
	struct mqtt_publish p;  /* without packet id and expiry */
};

/* What the broker's side of a delivery waits for, in Mosquitto's numbers. */
enum mosqdb_state {
	MOSQDB_PUBLISH_QOS0 = 1,        /* to be sent */
	MOSQDB_PUBLISH_QOS1 = 2,
	MOSQDB_WAIT_PUBACK = 3,
	MOSQDB_PUBLISH_QOS2 = 4,
	MOSQDB_WAIT_PUBREC = 5,
	MOSQDB_RESEND_PUBREL = 6,
	MOSQDB_WAIT_PUBREL = 7,         /* inbound, not yet released */
	MOSQDB_RESEND_PUBCOMP = 8,
	MOSQDB_WAIT_PUBCOMP = 9,
	MOSQDB_SEND_PUBREC = 10,
	MOSQDB_QUEUED = 11,
};

struct mosqdb_client_message {
	struct mqtt_str id;     /* of the client */
	uint64_t store_id;      /* of its message */
	const uint32_t *subids;
	uint32_t n_subids;
	uint16_t mid;           /* 0: none yet */
	uint8_t qos;
	enum mosqdb_state state;
	bool dup, retain;
	bool outgoing;          /* to the client; else from it */
};

/* Each returns false when there is no memory for it: reading stops. The calls
 * come in the order of the file, which for the messages of one client is that
 * of delivery. Messages come before what refers to them; clients may come
 * after their messages and subscriptions. */
struct mosqdb_calls {
	void *arg;
	bool (*client)(void *arg, const struct mosqdb_client *c);
	bool (*subscription)(void *arg, const struct mosqdb_subscription *s);
	bool (*message)(void *arg, const struct mosqdb_message *m);
	bool (*client_message)(void *arg,
	    const struct mosqdb_client_message *m);
	bool (*retained)(void *arg, uint64_t store_id);
};

enum mosqdb_result {
	MOSQDB_READ,            /* to the end */
	MOSQDB_CUT,             /* it is damaged from offset on: what came
	                         * before was handed out */
	MOSQDB_NOT,             /* no database that we know: nothing was */
	MOSQDB_NO_FILE,         /* it cannot be opened or read; errno */
	MOSQDB_NO_MEMORY,       /* ours, or a call returned false */
};

struct mosqdb_report {
	uint32_t version;       /* of the format */
	uint64_t offset;        /* of the chunk that was the last one read */
	uint32_t skipped;       /* chunks that were well formed, but held what
	                         * no packet could have brought */
	const char *why;        /* what is wrong and what to do, in words */
};

enum mosqdb_result mosqdb_read(const char *path,
    const struct mosqdb_calls *calls, struct mosqdb_report *report);

#endif
