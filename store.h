/* store - the journal: records on the disk, in order, whole or not at all.
 *
 * Knows records (a type and bytes), never what they mean. Records are appended
 * in memory, written once per turn of the loop, and made durable by a helper
 * process that calls fdatasync, so that the loop never waits for the disk. A
 * snapshot of the whole state, made by a forked child, takes the place of old
 * records from time to time. The files are described at the top of store.c.
 *
 * What the caller does, each turn of the loop:
 *
 *	poll store_fd(st), no later than store_due(st)
 *	store_event(st) when it is readable, or always: it never blocks
 *	... store_begin, store_end for all that changes ...
 *	store_commit(st, now_ms)
 *
 * and what waits for the disk is let go when store_durable(st) has reached
 * what store_position(st) was after its last record.
 */
#ifndef STORE_H
#define STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Record types are 1 to this; the rest are the journal's own. */
#define STORE_TYPE_MAX 239

/* The longest body: the longest MQTT packet and some fields beside it. */
#define STORE_BODY_MAX ((1u << 28) + (1u << 20))

#define STORE_NEVER INT64_MAX

struct store;

/* One record that was read; body is valid during the call only. false: no
 * memory for it, reading stops. */
typedef bool store_record_fn(void *arg, uint8_t type, const uint8_t *body,
    uint32_t n);

/* Appends records for the whole state, with store_begin and store_end. Runs in
 * a forked child that ends afterwards: it may read all and change nothing that
 * others see. false: it could not (store_begin gave NULL). */
typedef bool store_dump_fn(void *arg, struct store *st);

struct store_config {
	const char *dir;        /* made if missing, mode 0700 */
	const char *name;       /* files are called NAME.something */
	uint32_t segment_size;  /* bytes preallocated per journal file;
	                         * 0: 1 MiB; at least 4096 */
	size_t pending_max;     /* bytes that may wait for the disk; 0: 16 MiB;
	                         * one record alone may be longer */
	int64_t sync_interval_ms;       /* least time between two syncs */
	int64_t lazy_ms;        /* how long a lazy record may wait */
	store_dump_fn *dump;
	void *dump_arg;
};

/* What was read. */
struct store_report {
	uint64_t records;       /* delivered */
	uint64_t bytes;         /* of them in the files */
	uint32_t files;
	const char *damage;     /* what is wrong, in words; NULL: nothing */
	char file[256];         /* the file it is in, without the directory */
	uint64_t offset;        /* of the first byte that could not be used */
	uint64_t cut;           /* bytes from there on */
};

/* One journal file in use or prepared. */
struct store_segment {
	int fd;                 /* -1: none */
	uint32_t no;
	uint32_t salt;
};

struct store_block;

enum store_state {
	STORE_FAILED,           /* no segment that can be trusted */
	STORE_IDLE,             /* durable == sealed == written */
	STORE_WRITING,          /* a batch is sealed, not all of it written */
	STORE_SYNCING,          /* written, the helper was asked to sync */
};

/* Everything here belongs to store.c. The positions count the bytes of the
 * frames since store_open, and stand in this order:
 * durable <= written <= sealed <= complete <= end. */
struct store {
	struct store_config c;
	enum store_state state;
	int lock_fd;
	bool closing;
	/* the helper */
	int helper_fd;          /* -1: none */
	pid_t helper;
	bool preparing;         /* asked for a segment, not yet answered */
	bool installing;        /* the same for a snapshot */
	/* segments */
	struct store_segment seg, next;
	uint32_t last_no;       /* the highest number given to a segment */
	uint32_t prev_no;       /* the link of seg: the segment before, and */
	uint64_t prev_end;      /* where that ends */
	bool linked;            /* the link is written */
	bool forced;            /* to be synced even without records */
	bool full;              /* what comes next needs another segment */
	uint64_t seg_pos;       /* position of seg's first record */
	uint64_t seg_durable;   /* bytes of seg that are on the disk; 0: none */
	int next_error;         /* why there is no next segment */
	/* records */
	struct store_block *first, *last;
	uint64_t first_pos;     /* position of first->bytes[0] */
	uint64_t durable, written, sealed, complete, end;
	uint64_t urgent;        /* the end of the last record not lazy */
	size_t begun;           /* bytes of the frame that store_begin opened */
	int64_t lazy_due_ms;    /* STORE_NEVER: nothing lazy has been seen */
	int64_t sync_after_ms;
	/* trouble */
	int error;              /* errno of the episode; 0: none */
	int64_t retry_ms;       /* -1: store_commit will say */
	int64_t retry_pause_ms;
	bool orphan;            /* earlier files cannot be read: nothing is
	                         * durable before the next snapshot is */
	uint64_t held;          /* with orphan: what was durable before */
	bool stale;             /* the snapshot under way is not enough */
	/* compaction */
	bool compact_wanted;
	pid_t child;            /* that writes a snapshot; 0: none */
	bool child_done;        /* it has; the snapshot waits for the helper */
	uint32_t snapshot_no;   /* of the segment that follows the snapshot; 0:
	                         * none is made, or that of a child let go */
	uint64_t switch_pos;    /* records from here on go into that segment */
	int64_t child_due_ms, compact_after_ms;
	int install_error;      /* for the next store_commit; 0: none */
	uint64_t snapshot_size; /* bytes of the last one */
	uint64_t journal_size;  /* bytes of all segments after it */
	uint64_t covered;       /* of these, what the next one replaces */
	/* in the child */
	int dump_fd;            /* the snapshot; else -1 */
	uint64_t dump_off, dump_records;
};

/* Opens the journal in c->dir, or makes one, and hands every whole record to
 * fn, oldest first; groups only when complete. What damage has cut off is kept
 * in NAME.damaged-N. c's strings are kept, not copied. One line tells what was
 * recovered. report may be NULL.
 * Opening succeeds with a damaged journal and with a disk that cannot be
 * written (see store_failed). false: it is in use by another process, it
 * cannot be read or locked, a file under one of our names is not ours, fn
 * returned false or there is no memory: one line has said so, with the next
 * step; nothing is held.
 * Forks the helper first: call it after becoming a daemon and changing the
 * user, and early, since the helper keeps the memory that the process had
 * then. SIGCHLD must not be ignored. */
bool store_open(struct store *st, const struct store_config *c,
    store_record_fn *fn, void *arg, struct store_report *report);

/* Writes and syncs all that was appended, waiting for the disk, ends the
 * helper and a child that is at work. false: not all is on the disk; a line
 * has said so. */
bool store_close(struct store *st);

/* Appends a record with a body of n bytes, which the caller fills in before
 * store_end. NULL: no memory, too much is waiting for the disk, or n is over
 * STORE_BODY_MAX; records of a group that were ended before stay, see
 * store_drop. */
uint8_t *store_begin(struct store *st, uint8_t type, size_t n);

enum store_class {
	STORE_NOW,      /* somebody waits for it: commit at the next turn */
	STORE_LAZY,     /* nobody does: within lazy_ms, or with the next */
	STORE_MORE,     /* a group goes on: this and all records up to and with
	                 * the next that is not STORE_MORE are read back
	                 * together or not at all */
};

void store_end(struct store *st, enum store_class class);

/* Forgets the group that is open, and a record that was begun: as before its
 * first store_begin. */
void store_drop(struct store *st);

/* The position after the last complete record or group, and the one below
 * which everything is on the disk. Both start at 0 with store_open. */
uint64_t store_position(const struct store *st);

/* The position after the last record, be its group complete or not: when that
 * is below store_durable, so is the group. */
uint64_t store_end_position(const struct store *st);
uint64_t store_durable(const struct store *st);

/* Once per turn, with no group open (as store_event): writes what is pending,
 * a bounded number of bytes, and has it synced; prepares and changes segments;
 * starts and ends compaction; tries again after trouble. Never waits. */
void store_commit(struct store *st, int64_t now_ms);

/* When store_commit has something to do by itself, in the clock of now_ms:
 * 0 = at once, STORE_NEVER. */
int64_t store_due(const struct store *st);

/* The descriptor to poll for reading; it changes when the helper is replaced,
 * -1: none at the moment. store_event takes what has arrived. */
int store_fd(const struct store *st);
void store_event(struct store *st);

/* 0, or the errno of the trouble because of which nothing becomes durable.
 * Records are still taken, up to pending_max, and written when the disk is
 * well again. A caller that had to go on without a record (store_begin gave
 * NULL, the state changed all the same) calls store_compact, which writes the
 * state anew. */
int store_failed(const struct store *st);

/* The state has changed without a record: nothing more counts as durable until
 * a snapshot that is begun from now on is in place. */
void store_incomplete(struct store *st);

/* Has a snapshot made as soon as possible. By itself this happens when the
 * journal has outgrown the last snapshot. */
void store_compact(struct store *st);

/* Reads a journal, changing nothing and without the lock: path is a directory
 * (snapshot and journal in their order, as store_open would read them) or one
 * file of it. name is NAME of the files; NULL with a directory: any, if there
 * is only one. false: nothing could be read; report->damage says why. */
bool store_walk(const char *path, const char *name, store_record_fn *fn,
    void *arg, struct store_report *report);

/* CRC-32C of n bytes; crc is that of the bytes before them, 0 at first. */
uint32_t store_crc(uint32_t crc, const void *p, size_t n);

#endif
