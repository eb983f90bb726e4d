/* acl - the rules of an ACL file: who may read or write which topic.
 *
 *	user NAME
 *	topic [read|write|readwrite|deny] FILTER
 *	pattern [read|write|readwrite|deny] FILTER      with %u and %c in it
 *
 * Rules for topics belong to the user above them, before any user to clients
 * without a name; patterns to everybody. First the client's own rules decide,
 * then the patterns, in both deny before the rest; what no rule grants is
 * refused. Nothing here knows of sessions or packets.
 */
#ifndef ACL_H
#define ACL_H

#include <stdbool.h>

#include "mqtt.h"

enum acl_access { ACL_READ = 1, ACL_WRITE = 2 };

struct acl;

/* What the file says about one user; belongs to its struct acl. */
struct acl_user;

/* Whom a question is about: user.p is NULL for a client without a name. */
struct acl_client {
	struct mqtt_str user, id;
};

/* Reads a file. NULL: it cannot be used; file, line and reason are logged. */
struct acl *acl_load(const char *path);
void acl_free(struct acl *a);   /* a may be NULL */

/* The rules for a user; p NULL: for clients without a name. Never NULL. */
const struct acl_user *acl_find(const struct acl *a, struct mqtt_str user);

/* Whether c, whose rules are u, may read or write a topic. */
bool acl_may(const struct acl_user *u, const struct acl_client *c,
    struct mqtt_str topic, enum acl_access access);

/* Whether there can be a topic under this filter that c may read. Says yes
 * where a whole search would be needed: each message is judged anyway. */
bool acl_could_read(const struct acl_user *u, const struct acl_client *c,
    struct mqtt_str filter);

/* Calls fn with the name of each user that has rules of his own; p NULL: clients
 * without a name have some. */
void acl_each_user(const struct acl *a, void (*fn)(void *arg,
    struct mqtt_str name), void *arg);

/* Whether there are patterns and c's names could pass for wildcards in them:
 * then the patterns grant it nothing. */
bool acl_is_dangerous(const struct acl_user *u, const struct acl_client *c);

#endif
