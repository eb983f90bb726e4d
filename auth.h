/* auth - who may connect, and who may publish where.
 *
 * Plain questions with plain answers; no connection, no packet is touched
 * here.
 */
#ifndef AUTH_H
#define AUTH_H

#include <stdbool.h>

#include "config.h"
#include "mqtt.h"

/* Whether this CONNECT is let in: MQTT_OK or MQTT_NOT_AUTHORIZED, with *why in
 * plain words and what to do. */
enum mqtt_reason auth_login(const struct config *conf,
    const struct mqtt_connect *k, const char **why);

/* Whether a client may publish to this topic: $SYS belongs to the server
 * (section 4.7.2), but a bridge tells its state there. */
bool auth_may_publish(struct mqtt_str topic);

#endif
