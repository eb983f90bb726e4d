#include "auth.h"

#include <string.h>

enum mqtt_reason
auth_login(const struct config *conf, const struct mqtt_connect *k,
    const char **why)
{
	/* On this machine only, without a password file: any user will do. */
	if (conf->allow_anonymous || (conf->local_only && k->has_user))
		return MQTT_OK;
	*why = k->has_user ?
	    "there is no password file to look the user up in; "
	    "allow_anonymous true lets everybody in" :
	    "the client gave no user name; "
	    "allow_anonymous true lets everybody in";
	return MQTT_NOT_AUTHORIZED;
}

static bool
starts(struct mqtt_str s, const char *prefix)
{
	size_t n = strlen(prefix);

	return s.len >= n && memcmp(s.p, prefix, n) == 0;
}

/* $SYS/broker/connection/+/state */
static bool
is_bridge_state(struct mqtt_str t)
{
	static const char head[] = "$SYS/broker/connection/", tail[] = "/state";
	size_t fixed = sizeof head - 1 + sizeof tail - 1;

	return starts(t, head) && t.len > fixed &&
	    memcmp(t.p + t.len - (sizeof tail - 1), tail,
	    sizeof tail - 1) == 0 &&
	    !memchr(t.p + sizeof head - 1, '/', t.len - fixed);
}

bool
auth_may_publish(struct mqtt_str t)
{
	return !starts(t, "$SYS/") || is_bridge_state(t);
}
