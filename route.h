/* route - who gets a message, and when it leaves.
 *
 * A message goes from here into the outputs of those clients that can take it
 * at once and into the queues of the others. A slow reader never holds anybody
 * up: its queue has limits, and beyond them messages are dropped and counted.
 */
#ifndef ROUTE_H
#define ROUTE_H

#include "mqtt.h"
#include "state.h"

/* One message on its way through the broker. */
struct routed {
	struct mqtt_publish p;          /* views; QoS and retain as published */
	int64_t expires_ms;             /* MSG_NEVER */
	struct msg *msg;                /* made when first needed; one
	                                 * reference, owned by whoever owns
	                                 * this struct */
	const struct session *from;     /* publisher, for No Local; or NULL */
	bool lost;                      /* somebody was to get it at QoS 1 or 2
	                                 * and there was no memory */
};

/* Stores the message if it is to be retained, and hands it to every matching
 * subscription. *receivers counts them. MQTT_QUOTA: somebody did not get it who
 * should have, for want of memory or because the disk does not take it: it may
 * not be acknowledged. */
enum mqtt_reason route_publish(struct broker *b, struct routed *r,
    uint32_t *receivers);

/* The same for a message that exists already; its expiry may start now. */
void route_msg(struct broker *b, struct msg *m, int64_t expires_ms,
    const struct session *from);

/* Moves what waits for c into its output as far as window and room allow. */
void route_pump(struct broker *b, struct client *c);

/* s has other rights than before: drops what waits for it and was never sent,
 * and that it may not read any more. */
void route_recheck(struct broker *b, struct session *s);

/* Whether a pump would move something into c's output. */
bool route_waits(const struct broker *b, const struct client *c);

/* s has lost its connection: what it got by shared subscriptions and was not
 * sent goes to other members that can take it at once, the rest stays with it.
 * ended: it is about to be freed, and has no subscriptions any more; then any
 * member will do, and QoS 1 messages that were sent but not acknowledged go
 * too. QoS 2 messages once sent stay with their session [MQTT5-4.8.2-5]. The
 * work is bounded: at the end of a session what is beyond is lost. */
void route_leave(struct broker *b, struct session *s, bool ended);

#endif
