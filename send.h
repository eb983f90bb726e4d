/* send - what the server says: each packet, encoded into a client's output,
 * counted and shown in the log.
 *
 * If memory fails, or the socket, the client is marked and closed at the end of
 * the turn; nobody else notices.
 */
#ifndef SEND_H
#define SEND_H

#include "mqtt.h"
#include "state.h"

/* Payloads from this size on are not copied into the output: it refers to the
 * message. */
#define SEND_BY_REFERENCE 4096

/* p to a client that is CLIENT_UP; m owns p's payload and may be NULL if that
 * is shorter than SEND_BY_REFERENCE. false: the packet is larger than the
 * client takes and is not sent [MQTT5-3.1.2-25]. */
bool send_publish(struct broker *b, struct client *c, struct mqtt_publish *p,
    struct msg *m);

/* Whether c takes a packet as large as this PUBLISH, and MQTT can say it. */
bool send_fits(const struct client *c, const struct mqtt_publish *p);

/* Writes what stands in the output, as far as the kernel takes it. */
void send_flush(struct broker *b, struct client *c);

/* Acknowledgements wait until what the packet at hand has caused is on the disk
 * (persist.h), in their order; other packets pass them. send_held lets out what
 * may leave when the disk has got on, and has all that wait settled; send_hold
 * has that done for c too, although no packet of it waits. */
void send_held(struct broker *b);
void send_hold(struct broker *b, struct client *c);
void send_forget_held(struct client *c);

/* Whether nothing more is to be read from c for now: too many acknowledgements
 * wait, or some do and the disk is behind. */
bool send_choked(const struct broker *b, const struct client *c);

/* PUBACK, PUBREC, PUBREL, PUBCOMP. */
void send_ack(struct broker *b, struct client *c, enum mqtt_type t,
    uint16_t id, enum mqtt_reason reason);

/* What an accepting CONNACK of 5.0 tells. */
struct connack {
	bool session_present;
	const char *assigned_id;        /* NULL: the client named itself */
	bool tell_expiry;               /* it differs from what was asked */
	bool tell_keepalive;
};

/* A client whose Maximum Packet Size is smaller than this is lost. */
void send_connack(struct broker *b, struct client *c, const struct connack *k);

/* A CONNACK that refuses: nothing at all where the version has no code for
 * the reason. */
void send_refusal(struct broker *b, struct client *c, enum mqtt_reason reason,
    const char *why);

/* SUBACK and UNSUBACK with n codes. false: larger than the client takes, and
 * not sent. */
bool send_suback(struct broker *b, struct client *c, enum mqtt_type t,
    uint16_t id, const uint8_t *codes, uint32_t n);

void send_pingresp(struct broker *b, struct client *c);

/* DISCONNECT, to 5.0 clients only; why, as Reason String, where it says more
 * than the code and fits; may be NULL. */
void send_disconnect(struct broker *b, struct client *c,
    enum mqtt_reason reason, const char *why);

#endif
