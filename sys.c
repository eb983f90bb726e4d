#include "sys.h"
#include "mem.h"
#include "route.h"

#include <stdio.h>
#include <string.h>

enum { N_LOADS = 9, N_SPANS = 3 };

/* 1 as a load and as a factor. Fixed point, as floating point would have to be
 * brought along to the processors that have none. */
#define LOAD_ONE (1 << 16)
#define ONE (INT64_C(1) << 30)

/* Log lines kept for publication in one turn; more are dropped. */
#define LINES_MAX 64

/* Lines of one kind in a report. */
#define REPORT_MAX 1000

struct sys {
	struct timer timer;
	int64_t start_ms, last_ms;
	uint64_t count[N_LOADS];        /* at the last interval */
	int64_t load[N_LOADS][N_SPANS];
	struct msg *line[LINES_MAX];
	unsigned n_lines;
};

static void
publish(struct broker *b, const char *name, const char *value, bool retained)
{
	char topic[128];
	struct routed r = { .expires_ms = MSG_NEVER };
	struct msg *old;
	uint32_t receivers;
	int n = snprintf(topic, sizeof topic, "$SYS/broker/%s", name);

	r.p = (struct mqtt_publish){ .qos = 2, .retain = retained,
	    .topic = { (uint8_t *)topic, (uint32_t)n },
	    .payload = { (const uint8_t *)value, (uint32_t)strlen(value) } };
	old = retained ? topic_retained(&b->topics, r.p.topic) : NULL;
	if (old && mqtt_str_eq(msg_publish(old, b->now_ms).payload,
	    r.p.payload))
		return;
	route_publish(b, &r, &receivers);
	msg_unref(r.msg);
}

static void
number(struct broker *b, const char *name, uint64_t v)
{
	char text[24];

	snprintf(text, sizeof text, "%llu", (unsigned long long)v);
	publish(b, name, text, true);
}

static void
clients(struct broker *b)
{
	uint32_t total = b->sessions.by_id.n, up = b->sessions.n_connected;

	number(b, "clients/total", total);
	number(b, "clients/connected", up);
	number(b, "clients/active", up);
	number(b, "clients/disconnected", total - up);
	number(b, "clients/inactive", total - up);
	number(b, "clients/expired", b->sessions.expired);
	number(b, "clients/maximum", b->sessions.maximum);
}

static void
counters(struct broker *b)
{
	const struct stats *s = &b->stats;

	number(b, "messages/received", s->messages_received);
	number(b, "messages/sent", s->messages_sent);
	number(b, "messages/stored", msg_count());
	number(b, "store/messages/count", msg_count());
	number(b, "store/messages/bytes", msg_bytes());
	number(b, "retained messages/count", b->topics.n_retained);
	number(b, "subscriptions/count", b->topics.n_subs);
	number(b, "shared_subscriptions/count", b->topics.n_shared);
	number(b, "publish/messages/received", s->publish_received);
	number(b, "publish/messages/sent", s->publish_sent);
	number(b, "publish/messages/dropped", s->publish_dropped);
	number(b, "publish/bytes/received", s->publish_bytes_received);
	number(b, "publish/bytes/sent", s->publish_bytes_sent);
	number(b, "bytes/received", s->bytes_received);
	number(b, "bytes/sent", s->bytes_sent);
	number(b, "heap/current", mem_used());
	number(b, "heap/maximum", mem_peak());
}

static void
memory(struct broker *b)
{
	static const char *const names[RELIEF_STEPS] = {
		[RELIEF_LASTING] = "refused/lasting",
		[RELIEF_NEWCOMERS] = "refused/clients",
		[RELIEF_QOS0] = "dropped/qos0",
		[RELIEF_ACKED] = "refused/acknowledged",
		[RELIEF_READER] = "disconnected",
	};
	char name[64];

	number(b, "memory/limit", mem_limit());
	for (int i = 0; i < RELIEF_STEPS; i++) {
		snprintf(name, sizeof name, "memory/%s", names[i]);
		number(b, name, b->relief.count[i]);
	}
}

/* e to the power of -ms/span: 1 - ms/span/1024 to the power of 1024. */
static int64_t
decay(int64_t ms, int64_t span)
{
	int64_t f = ONE - ms * (ONE / 1024) / span;

	if (f < 0)
		return 0;
	for (int n = 1; n < 1024; n *= 2)
		f = f * f / ONE;
	return f;
}

/* v * f, where that alone would not fit. */
static int64_t
scale(int64_t v, int64_t f)
{
	return v / ONE * f + v % ONE * f / ONE;
}

/* Moving averages per minute over 1, 5 and 15 minutes. */
static void
loads(struct broker *b)
{
	static const char *const names[N_LOADS] = {
		"messages/received", "messages/sent", "publish/received",
		"publish/sent", "publish/dropped", "bytes/received",
		"bytes/sent", "sockets", "connections",
	};
	static const int minutes[N_SPANS] = { 1, 5, 15 };
	const struct stats *st = &b->stats;
	const uint64_t now[N_LOADS] = {
		st->messages_received, st->messages_sent, st->publish_received,
		st->publish_sent, st->publish_dropped, st->bytes_received,
		st->bytes_sent, st->sockets, st->connections,
	};
	struct sys *s = b->sys;
	int64_t dt = b->now_ms - s->last_ms;
	char name[64], text[32];

	s->last_ms = b->now_ms;
	for (int i = 0; i < N_LOADS; i++) {
		int64_t n = (int64_t)(now[i] - s->count[i]) * 60000;
		int64_t x = dt > 0 ? n / dt * LOAD_ONE +
		    n % dt * LOAD_ONE / dt : 0;

		s->count[i] = now[i];
		for (int k = 0; k < N_SPANS; k++) {
			int64_t *v = &s->load[i][k], hundredths;

			*v = x + scale(*v - x, decay(dt, minutes[k] * 60000));
			hundredths = (*v * 100 + LOAD_ONE / 2) / LOAD_ONE;
			snprintf(name, sizeof name, "load/%s/%dmin", names[i],
			    minutes[k]);
			snprintf(text, sizeof text, "%lld.%02d",
			    (long long)(hundredths / 100),
			    (int)(hundredths % 100));
			publish(b, name, text, true);
		}
	}
}

/* When the certificates of the listeners with TLS expire. */
static void
certificates(struct broker *b)
{
	char name[64], day[CERT_DATE];

	for (unsigned i = 0; i < b->conf->n_listeners; i++) {
		const struct tls_server *s = b->certs[i];
		int port = b->conf->listeners[i].port;

		if (!s)
			continue;
		snprintf(name, sizeof name, "certificate/%d/expires", port);
		publish(b, name, cert_date(tls_server_cert(s)->not_after,
		    day), true);
		snprintf(name, sizeof name, "certificate/%d/days", port);
		snprintf(day, sizeof day, "%d", tls_server_days(s));
		publish(b, name, day, true);
	}
}

void
sys_timer(struct broker *b)
{
	char text[40];

	snprintf(text, sizeof text, "%lld seconds",
	    (long long)(b->now_ms - b->sys->start_ms) / 1000);
	mem_use_last(true);
	publish(b, "uptime", text, true);
	loads(b);
	counters(b);
	memory(b);
	clients(b);
	certificates(b);
	mem_use_last(false);
	timer_set(&b->timers, &b->sys->timer,
	    b->now_ms + b->conf->sys_interval * 1000);
}

void
sys_reload(struct broker *b)
{
	timer_set(&b->timers, &b->sys->timer, b->conf->sys_interval == 0 ?
	    TIMER_NEVER : b->now_ms + b->conf->sys_interval * 1000);
}

/* ---- the report ---- */

static void
tell_subs(const struct session *s, unsigned *n)
{
	char filter[600];

	for (const struct sub *sub = s->subs; sub && *n < REPORT_MAX;
	    sub = sub->mine_next) {
		topic_filter_text(sub, filter, sizeof filter);
		log_notice("%s has %s (QoS %d)", s->id, filter, sub->qos);
		(*n)++;
	}
}

static void
tell_session(const struct session *s, unsigned *n_subs)
{
	const struct outbox *o = s->out;
	char name[CONN_NAME] = "";

	if (s->client)
		conn_name(&s->client->conn.peer, name);
	log_notice("Client %s: %s%s, %u messages waiting, %u in flight.",
	    s->id, s->client ? "connected from " : "away",
	    name, o ? o->qos0.n + o->acked.n : 0, o ? o->in_flight : 0);
	tell_subs(s, n_subs);
}

static void
tell_sessions(const struct broker *b)
{
	const struct hash *h = &b->sessions.by_id;
	unsigned n = 0, n_subs = 0;

	log_notice("Report: %u clients, %u of them connected; %u "
	    "subscriptions.", h->n, b->sessions.n_connected, b->topics.n_subs);
	for (uint32_t i = 0; h->bucket && i <= h->mask && n < REPORT_MAX; i++)
		for (struct hash_link *l = h->bucket[i]; l && n < REPORT_MAX;
		    l = l->next, n++)
			tell_session(HASH_OBJECT(l, struct session, link),
			    &n_subs);
	if (n < h->n)
		log_notice("... and %u more clients.", h->n - n);
	if (n_subs < b->topics.n_subs)
		log_notice("... and %u more subscriptions.",
		    b->topics.n_subs - n_subs);
}

static void
tell_retained(const struct broker *b)
{
	const struct node *node = NULL;
	char topic[600];
	unsigned n = 0;

	log_notice("Report: %u retained messages.", b->topics.n_retained);
	while (n < REPORT_MAX &&
	    (node = topic_next_retained(&b->topics, node))) {
		topic_text(node, topic, sizeof topic);
		log_notice("Retained: %s (%u bytes)", topic,
		    node->retained->payload_len);
		n++;
	}
	if (n < b->topics.n_retained)
		log_notice("... and %u more retained messages.",
		    b->topics.n_retained - n);
}

void
sys_report(struct broker *b)
{
	tell_sessions(b);
	tell_retained(b);
	log_notice("Report: %zu bytes in use for all of this.", mem_used());
}

void
sys_log(void *arg, enum log_type type, const char *text)
{
	struct broker *b = arg;
	const char *name = type == LOG_T_ERROR ? "E" :
	    type == LOG_T_WARNING ? "W" : type == LOG_T_NOTICE ? "N" :
	    type == LOG_T_INFO ? "I" :
	    type == LOG_T_SUBSCRIBE ? "M/subscribe" : "M/unsubscribe";
	struct mqtt_publish p = { .topic = { (const uint8_t *)name,
	    (uint32_t)strlen(name) }, .payload = { (const uint8_t *)text,
	    (uint32_t)strlen(text) } };
	struct msg *m;

	if (b->sys->n_lines == LINES_MAX || !(m = msg_new(&p, MSG_NEVER)))
		return;
	b->sys->line[b->sys->n_lines++] = m;
}

void
sys_publish_log(struct broker *b)
{
	struct sys *s = b->sys;
	char name[32], text[2100];

	for (unsigned i = 0; i < s->n_lines; i++) {
		struct mqtt_publish p = msg_publish(s->line[i], b->now_ms);

		snprintf(name, sizeof name, "log/%.*s", (int)p.topic.len,
		    (const char *)p.topic.p);
		snprintf(text, sizeof text, "%.*s", (int)p.payload.len,
		    (const char *)p.payload.p);
		publish(b, name, text, false);
		msg_unref(s->line[i]);
	}
	s->n_lines = 0;
}

bool
sys_init(struct broker *b)
{
	struct sys *s = mem_zalloc(sizeof *s);

	if (!s || !timer_init(&b->timers, &s->timer, TIMER_SYS)) {
		mem_free(s, sizeof *s);
		log_error("Error: Unable to start: out of memory.");
		return false;
	}
	s->start_ms = s->last_ms = b->now_ms;
	b->sys = s;
	if (b->conf->sys_interval == 0)
		return true;
	publish(b, "version", "midge version " MIDGE_VERSION, true);
	sys_timer(b);
	return true;
}

void
sys_fini(struct broker *b)
{
	if (!b->sys)
		return;
	for (unsigned i = 0; i < b->sys->n_lines; i++)
		msg_unref(b->sys->line[i]);
	timer_fini(&b->timers, &b->sys->timer);
	mem_free(b->sys, sizeof *b->sys);
}
