/* store - see store.h.
 *
 * Files, in the directory of the configuration; N is 8 hexadecimal digits:
 *
 *	NAME.journal-N     a segment: records as they came. In use, or prepared
 *	NAME.snapshot-N    the whole state before segment N, as records
 *	NAME.spare-N       a segment that a snapshot made superfluous; it will
 *	                   be used again, so that commits need no new blocks
 *	NAME.journal-new   becomes a journal, NAME.snapshot-new a snapshot
 *	NAME.damaged-1..8  what could not be used, kept for a human
 *	NAME.lock          locked by the broker that has the journal open
 *
 * All numbers are little endian. A journal or snapshot begins with a header:
 *
 *	 0  8  "MIDGEJNL"
 *	 8  4  version of the format, 1
 *	12  4  1 journal, 2 snapshot
 *	16  4  N of the name
 *	20  4  salt, random: new each time that the header is written
 *	24  4  0
 *	28  4  CRC-32C of the 28 bytes before
 *
 * and goes on with frames, one per record:
 *
 *	 0  4  (CRC-32C of the rest of the frame) xor salt
 *	 4  4  length n of the body; bit 31: the next frame belongs to the same
 *	       group
 *	 8  1  type, 1 to 239 are the caller's
 *	 9  n  body
 *
 * The salt makes what an earlier use left in a segment invalid, even where a
 * peer chose those bytes. After the last frame come 9 bytes of zero, then
 * anything. Two types are our own:
 *
 *	254  link, the first frame of a journal: 4 bytes number of the segment
 *	     that it continues (0: none), 8 bytes where that ends
 *	255  end of a snapshot, its last frame: 8 bytes number of records
 *
 * The state is the newest snapshot that is complete, journal N of the same
 * number, then always the highest journal whose link names the one before, up
 * to the end that it names; in the last one up to the first frame that is not
 * valid. Without a snapshot it begins with a journal whose link names 0.
 *
 * What keeps this true when the power fails at any moment:
 * 1. A segment is prepared (blocks written, header, new salt, synced, renamed,
 *    directory synced) before its first record is written, is written by one
 *    process, each byte once.
 * 2. Only one segment has unsynced bytes: it is left when all is synced.
 * 3. After a write or sync that failed, the kernel may have dropped pages and
 *    say so only once. So the segment is left for good: a fresh one continues
 *    it at the last position that a sync had covered, and gets all records
 *    after that once more. They are kept in memory until then.
 * 4. Segments before N are reused when snapshot N is durable under its name
 *    and the link of journal N is, too.
 *
 * States of the writing side (enum store_state), and what leads on:
 *
 *	IDLE     seal: a batch gets its salt                    -> WRITING
 *	WRITING  write_some: all of the batch is written,
 *	         the helper is asked                            -> SYNCING
 *	SYNCING  on_synced: the helper's answer                 -> IDLE
 *	any      trouble: a write or sync failed, helper ended  -> FAILED
 *	FAILED   use_next: a segment is prepared                -> IDLE
 */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "mem.h"
#include "sandbox.h"

#define MAGIC "MIDGEJNL"
#define VERSION 1
#define HEADER 32
#define FRAME 9
#define MORE 0x80000000u
#define TYPE_LINK 254
#define TYPE_END 255
#define LINK_BODY 12
#define DATA_START (HEADER + FRAME + LINK_BODY)

#define BLOCK 16384             /* of pending records, or one long record */
#define BATCH (1u << 20)        /* synced at once, or one long group */
#define WRITE_MAX (1u << 18)    /* written per turn */
#define FILL (1u << 18)         /* zeros between two syncs of the helper */
#define SPARES_MAX 8
#define DAMAGED_MAX 8
#define WRITE_PARTS 18
#define RETRY_MIN_MS 1000       /* doubles; the first time at once */
#define RETRY_MAX_MS 60000
#define CHILD_LOOK_MS 50
#define RECOMPACT_MS 60000      /* after a snapshot that failed */
#define RECOMPACT_SOON_MS 1000
#define DESCRIPTORS_MAX (1 << 20)       /* closed where none are listed */
#define SCAN_AFTER 65536        /* searched for records after the end */

enum kind { JOURNAL = 1, SNAPSHOT, SPARE, DAMAGED, JOURNAL_NEW, SNAPSHOT_NEW,
	LOCK };

struct store_block {
	struct store_block *next;
	size_t cap, len;
	uint8_t bytes[];        /* whole frames, the salt not in them yet unless
	                         * their position is below sealed */
};

/* ---- bytes ---- */

static void
put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static void
put64(uint8_t *p, uint64_t v)
{
	put32(p, (uint32_t)v);
	put32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t
get32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	    (uint32_t)p[3] << 24;
}

static uint64_t
get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* Eight tables, so that eight bytes take one step. */
static uint32_t crc_table[8][256];

static void
crc_init(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0x82f63b78 : c >> 1;
		crc_table[0][i] = c;
	}
	for (int t = 1; t < 8; t++)
		for (uint32_t i = 0; i < 256; i++)
			crc_table[t][i] = crc_table[t - 1][i] >> 8 ^
			    crc_table[0][crc_table[t - 1][i] & 0xff];
}

uint32_t
store_crc(uint32_t crc, const void *bytes, size_t n)
{
	const uint8_t *p = bytes;

	if (!crc_table[0][1])
		crc_init();
	crc = ~crc;
	for (; n >= 8; n -= 8, p += 8) {
		uint32_t a = get32(p) ^ crc, b = get32(p + 4);

		crc = crc_table[7][a & 0xff] ^ crc_table[6][a >> 8 & 0xff] ^
		    crc_table[5][a >> 16 & 0xff] ^ crc_table[4][a >> 24] ^
		    crc_table[3][b & 0xff] ^ crc_table[2][b >> 8 & 0xff] ^
		    crc_table[1][b >> 16 & 0xff] ^ crc_table[0][b >> 24];
	}
	for (; n > 0; n--, p++)
		crc = crc >> 8 ^ crc_table[0][(crc ^ *p) & 0xff];
	return ~crc;
}

static bool
all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

/* A frame around a body that stands at p + FRAME; without the salt. */
static void
frame_put(uint8_t *p, uint8_t type, uint32_t n, bool more)
{
	put32(p + 4, n | (more ? MORE : 0));
	p[8] = type;
	put32(p, store_crc(0, p + 4, FRAME - 4 + (size_t)n));
}

static size_t
frame_size(const uint8_t *p)
{
	return FRAME + (size_t)(get32(p + 4) & ~MORE);
}

static void
header_put(uint8_t *p, enum kind kind, uint32_t no, uint32_t salt)
{
	memcpy(p, MAGIC, 8);
	put32(p + 8, VERSION);
	put32(p + 12, kind);
	put32(p + 16, no);
	put32(p + 20, salt);
	put32(p + 24, 0);
	put32(p + 28, store_crc(0, p, 28));
}

/* ---- files ---- */

#define PATH 4096

/* dir NULL: the name alone. */
static const char *
path_of(char out[PATH], const char *dir, const char *name, enum kind kind,
    uint32_t no)
{
	int n = dir ? snprintf(out, PATH, "%s/%s", dir, name) :
	    snprintf(out, PATH, "%s", name);
	char *end = out + n;
	size_t room = (size_t)(PATH - n);

	switch (kind) {
	case JOURNAL:
		snprintf(end, room, ".journal-%08x", no);
		break;
	case SNAPSHOT:
		snprintf(end, room, ".snapshot-%08x", no);
		break;
	case SPARE:
		snprintf(end, room, ".spare-%08x", no);
		break;
	case DAMAGED:
		snprintf(end, room, ".damaged-%x", no);
		break;
	case JOURNAL_NEW:
		snprintf(end, room, ".journal-new");
		break;
	case SNAPSHOT_NEW:
		snprintf(end, room, ".snapshot-new");
		break;
	case LOCK:
		snprintf(end, room, ".lock");
		break;
	}
	return out;
}

/* What must be less than PATH for path_of. */
static bool
path_fits(const char *dir, const char *name)
{
	return strlen(name) < 200 && strlen(dir) < PATH - 256;
}

/* Eight digits as path_of writes them. */
static bool
get_no(const char *s, uint32_t *no)
{
	if (strlen(s) != 8 || strspn(s, "0123456789abcdef") != 8)
		return false;
	*no = (uint32_t)strtoul(s, NULL, 16);
	return true;
}

/* What a file is to the store called name, which may be n bytes of a longer
 * string. */
static bool
name_kind(const char *file, const char *name, size_t n, enum kind *kind,
    uint32_t *no)
{
	const char *s = file + n;

	*no = 0;
	if (strncmp(file, name, n) != 0)
		return false;
	if (strncmp(s, ".journal-", 9) == 0 && get_no(s + 9, no))
		*kind = JOURNAL;
	else if (strncmp(s, ".snapshot-", 10) == 0 && get_no(s + 10, no))
		*kind = SNAPSHOT;
	else if (strncmp(s, ".spare-", 7) == 0 && get_no(s + 7, no))
		*kind = SPARE;
	else if (strcmp(s, ".journal-new") == 0)
		*kind = JOURNAL_NEW;
	else if (strcmp(s, ".snapshot-new") == 0)
		*kind = SNAPSHOT_NEW;
	else
		return false;
	return true;
}

/* So that a rename outlives a power cut. */
static int
sync_dir(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r, e;

	if (fd < 0)
		return -1;
	r = fsync(fd);
	if (r < 0 && errno == EINVAL)   /* a file system without such a thing */
		r = 0;
	e = errno;
	close(fd);
	errno = e;
	return r;
}

static int
write_all(int fd, const uint8_t *p, size_t n, uint64_t off)
{
	ssize_t w;

	for (; n > 0; p += w, off += (uint64_t)w, n -= (size_t)w) {
		w = pwrite(fd, p, n, (off_t)off);
		if (w < 0 && errno == EINTR)
			w = 0;
		else if (w < 0)
			return -1;
	}
	return 0;
}

/* Whether a file with these first bytes may be one that we wrote, whole or
 * damaged: never written to, or most of the magic is there. */
static bool
is_ours(const uint8_t *p, size_t n)
{
	unsigned same = 0, of = n < 8 ? (unsigned)n : 8;

	for (unsigned i = 0; i < of; i++)
		same += p[i] == (uint8_t)MAGIC[i];
	return 2 * same >= of || all_zero(p, n);
}

/* ---- reading a file ---- */

/* Needs memory for a window as long as the longest record. */
struct reader {
	int fd;
	uint32_t no, salt;
	uint64_t size;
	uint8_t *buf;
	size_t cap, len;
	uint64_t off;           /* of buf[0] in the file */
	int err;                /* it cannot be read now: no memory, no right */
	const char *why;        /* what was wrong */
};

struct frame {
	uint8_t type;
	bool more;
	uint32_t n;
	const uint8_t *body;    /* until the reader is used again */
	uint64_t size;
};

#define WINDOW 65536

static bool
reader_open(struct reader *r, const char *path)
{
	struct stat sb;

	memset(r, 0, sizeof *r);
	r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (r->fd < 0)
		return false;
	if (fstat(r->fd, &sb) < 0 || !S_ISREG(sb.st_mode)) {
		close(r->fd);
		errno = EINVAL;
		return false;
	}
	r->size = (uint64_t)sb.st_size;
	return true;
}

static void
reader_close(struct reader *r)
{
	close(r->fd);
	free(r->buf);
}

static bool
reader_grow(struct reader *r, size_t n)
{
	uint8_t *p;

	if (n <= r->cap)
		return true;
	p = realloc(r->buf, n);
	if (!p) {
		r->err = ENOMEM;
		r->why = "there is no memory for a record";
		return false;
	}
	r->buf = p;
	r->cap = n;
	return true;
}

/* n bytes at off, which are inside the file; NULL: they cannot be had. */
static const uint8_t *
reader_at(struct reader *r, uint64_t off, size_t n)
{
	ssize_t got;

	if (off >= r->off && off - r->off <= r->len &&
	    n <= r->len - (off - r->off))
		return r->buf + (off - r->off);
	r->len = 0;
	if (!reader_grow(r, n < WINDOW ? WINDOW : n))
		return NULL;
	r->off = off;
	while (r->len < n) {
		got = pread(r->fd, r->buf + r->len, r->cap - r->len,
		    (off_t)(off + r->len));
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			/* A bad sector will not get better: that is damage. */
			r->err = got < 0 && errno != EIO ? errno : 0;
			r->why = got < 0 ? strerror(errno) : "it got shorter";
			return NULL;
		}
		r->len += (size_t)got;
	}
	return r->buf;
}

enum found { FOUND_FRAME, FOUND_END, FOUND_DAMAGE };

/* The frame at off, which ends at limit at the latest. */
static enum found
frame_at(struct reader *r, uint64_t off, uint64_t limit, struct frame *f)
{
	size_t n = limit - off < FRAME ? (size_t)(limit - off) : FRAME;
	const uint8_t *p;

	if (n == 0)
		return FOUND_END;
	p = reader_at(r, off, n);
	if (!p)
		return FOUND_DAMAGE;
	if (all_zero(p, n))
		return FOUND_END;
	r->why = "a record is not whole";
	if (n < FRAME)
		return FOUND_DAMAGE;
	f->n = get32(p + 4) & ~MORE;
	f->more = get32(p + 4) & MORE;
	f->type = p[8];
	f->size = FRAME + (uint64_t)f->n;
	if (f->n > STORE_BODY_MAX || f->size > limit - off || f->type == 0)
		return FOUND_DAMAGE;
	p = reader_at(r, off, (size_t)f->size);
	if (!p)
		return FOUND_DAMAGE;
	if ((get32(p) ^ r->salt) !=
	    store_crc(0, p + 4, (size_t)f->size - 4)) {
		r->why = "a checksum is wrong";
		return FOUND_DAMAGE;
	}
	f->body = p + FRAME;
	return FOUND_FRAME;
}

/* Whether the group that begins at off is whole; *end is where it ends. */
static bool
group_whole(struct reader *r, uint64_t off, uint64_t limit, uint64_t *end)
{
	struct frame f;

	do {
		if (frame_at(r, off, limit, &f) != FOUND_FRAME) {
			r->why = "a group of records is not whole";
			return false;
		}
		off += f.size;
	} while (f.more);
	*end = off;
	return true;
}

struct playing {
	store_record_fn *fn;    /* NULL: records are only counted */
	void *arg;
	struct store_report *report;
	bool nomem;             /* fn had none */
	bool ended;             /* a snapshot's last frame was seen */
	uint64_t n;             /* records of this file */
};

static bool
deliver(struct playing *pl, const struct frame *f)
{
	pl->n++;
	pl->report->records++;
	pl->report->bytes += f->size;
	if (!pl->fn || pl->fn(pl->arg, f->type, f->body, f->n))
		return true;
	pl->nomem = true;
	return false;
}

/* Our own frames. false: it is not where it belongs. */
static bool
own_frame(struct playing *pl, const struct frame *f, uint64_t off)
{
	if (f->type == TYPE_LINK)
		return off == HEADER && f->n == LINK_BODY;
	if (f->type != TYPE_END || f->n != 8 || get64(f->body) != pl->n)
		return false;
	pl->ended = true;
	return true;
}

/* Hands on the records from the header to limit, to the end or to damage
 * (*how); returns the offset where that is. */
static uint64_t
play(struct reader *r, uint64_t limit, struct playing *pl, enum found *how)
{
	uint64_t off = HEADER, whole = 0;
	struct frame f;

	pl->n = 0;
	pl->ended = false;
	do {
		*how = frame_at(r, off, limit, &f);
		if (*how == FOUND_FRAME && f.more && off >= whole)
			*how = group_whole(r, off, limit, &whole) ?
			    frame_at(r, off, limit, &f) : FOUND_DAMAGE;
		if (*how != FOUND_FRAME)
			break;
		if (f.type <= STORE_TYPE_MAX ? !deliver(pl, &f) :
		    !own_frame(pl, &f, off)) {
			r->why = "a record is not where it belongs";
			*how = FOUND_DAMAGE;
			break;
		}
		off += f.size;
	} while (!pl->ended);
	return off;
}

/* Whether a valid record begins shortly after off: then off is not the end
 * but a hole. Bounded work. */
static bool
more_after(struct reader *r, uint64_t off)
{
	uint64_t end = off + SCAN_AFTER;
	uint32_t n, work = 1 << 20;
	const uint8_t *p;
	struct frame f;

	for (off++; off < end && off + FRAME <= r->size; off++) {
		p = reader_at(r, off, FRAME);
		if (!p)
			return false;
		n = get32(p + 4) & ~MORE;
		if (p[8] == 0 || n > work)
			continue;
		work -= n;
		if (frame_at(r, off, r->size, &f) == FOUND_FRAME)
			return true;
	}
	return false;
}

/* About where the bytes end that are not zero. */
static uint64_t
used_end(struct reader *r, uint64_t from)
{
	uint64_t end = from, off;
	const uint8_t *p;
	size_t n;

	for (off = from; off < r->size; off += n) {
		n = r->size - off < 512 ? (size_t)(r->size - off) : 512;
		p = reader_at(r, off, n);
		if (!p)
			return r->size;
		if (!all_zero(p, n))
			end = off + n;
	}
	return end;
}

/* ---- the files of a directory ---- */

enum header {
	HEADER_OK,
	HEADER_DAMAGED,         /* ours, but not valid */
	HEADER_OTHER,           /* valid, of another number: not in use */
	HEADER_NEWER,           /* of a later version of the format */
	HEADER_FOREIGN,         /* somebody else's */
};

struct entry {
	enum kind kind;
	uint32_t no;
	enum header header;
	int err;                /* it cannot be read now, which is not damage */
	uint64_t size;
	bool linked;            /* a journal with a link: it was in use */
	bool used;              /* belongs to the state */
	uint32_t prev_no;
	uint64_t prev_end;
};

struct listing {
	const char *dir, *name;
	struct entry *e;
	unsigned n;
	uint32_t last_no;
};

/* Number and salt go into r. */
static enum header
header_read(struct reader *r, enum kind *kind)
{
	size_t n = r->size < HEADER ? (size_t)r->size : HEADER;
	const uint8_t *p = n ? reader_at(r, 0, n) : NULL;

	if (!p)
		return HEADER_DAMAGED;
	if (!is_ours(p, n))
		return HEADER_FOREIGN;
	if (n < HEADER || memcmp(p, MAGIC, 8) != 0 ||
	    get32(p + 28) != store_crc(0, p, 28))
		return HEADER_DAMAGED;
	if (get32(p + 8) != VERSION)
		return HEADER_NEWER;
	*kind = get32(p + 12) == SNAPSHOT ? SNAPSHOT : JOURNAL;
	r->no = get32(p + 16);
	r->salt = get32(p + 20);
	return HEADER_OK;
}

static void
entry_read(const struct listing *l, struct entry *e)
{
	char path[PATH];
	enum kind kind = e->kind;
	struct reader r;
	struct frame f;

	e->header = HEADER_DAMAGED;
	if (!reader_open(&r, path_of(path, l->dir, l->name, e->kind, e->no))) {
		if (errno == EINVAL || errno == ELOOP)
			e->header = HEADER_FOREIGN;
		else
			e->err = errno;
		return;
	}
	e->size = r.size;
	e->header = header_read(&r, &kind);
	if (e->header == HEADER_OK && (kind != e->kind || r.no != e->no))
		e->header = HEADER_OTHER;
	if (e->header == HEADER_OK && e->kind == JOURNAL &&
	    frame_at(&r, HEADER, r.size, &f) == FOUND_FRAME &&
	    f.type == TYPE_LINK && f.n == LINK_BODY) {
		e->linked = true;
		e->prev_no = get32(f.body);
		e->prev_end = get64(f.body + 4);
	}
	e->err = r.err;
	reader_close(&r);
}

static bool
listing_add(struct listing *l, enum kind kind, uint32_t no)
{
	struct entry *p = realloc(l->e, (l->n + 1) * sizeof *p);

	if (!p)
		return false;
	l->e = p;
	p[l->n++] = (struct entry){ .kind = kind, .no = no };
	if (no > l->last_no)
		l->last_no = no;
	return true;
}

/* -1: errno tells why; what was listed must be freed all the same. */
static int
list(struct listing *l)
{
	DIR *d = opendir(l->dir);
	struct dirent *de;
	enum kind kind;
	uint32_t no;
	int err;

	if (!d)
		return -1;
	while ((errno = 0, de = readdir(d)))
		if (name_kind(de->d_name, l->name, strlen(l->name), &kind,
		    &no) && !listing_add(l, kind, no))
			break;
	err = errno;
	closedir(d);
	for (unsigned i = 0; i < l->n; i++)
		entry_read(l, &l->e[i]);
	errno = err;
	return err ? -1 : 0;
}

static struct entry *
find(const struct listing *l, enum kind kind, uint32_t no)
{
	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].kind == kind && l->e[i].no == no)
			return &l->e[i];
	return NULL;
}

/* The newest of a kind below no. */
static struct entry *
newest(const struct listing *l, enum kind kind, uint32_t no)
{
	struct entry *best = NULL;

	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].kind == kind && l->e[i].no < no &&
		    (!best || l->e[i].no > best->no))
			best = &l->e[i];
	return best;
}

/* The journal that goes on where the one with this number ends. */
static struct entry *
next_linked(const struct listing *l, uint32_t no)
{
	struct entry *best = NULL;

	for (unsigned i = 0; i < l->n; i++) {
		struct entry *e = &l->e[i];

		if (e->linked && e->prev_no == no && e->no > no &&
		    (!best || e->no > best->no))
			best = e;
	}
	return best;
}

/* ---- recovery ---- */

#define TO_THE_END UINT64_MAX

struct recovery {
	struct listing l;
	struct playing pl;
	uint32_t base;          /* number of the snapshot; 0: none */
	uint32_t prev_no;       /* what the next segment continues, */
	uint64_t prev_end;      /* and where */
	struct entry *damaged;  /* the file that is; NULL: none */
	int err;                /* the folder, or the report's file, cannot be
	                         * read now */
	int aside_err;          /* what is damaged could not be kept */
	bool broken;            /* it is the snapshot: without a new one nothing
	                         * that follows could be read */
	uint64_t snapshot_size, journal_size;
};

static void
note_file(struct recovery *rc, enum kind kind, uint32_t no)
{
	char path[PATH];

	snprintf(rc->pl.report->file, sizeof rc->pl.report->file, "%.255s",
	    path_of(path, NULL, rc->l.name, kind, no));
}

static void
note_unread(struct recovery *rc, const struct entry *e, int err)
{
	rc->err = err;
	note_file(rc, e->kind, e->no);
}

/* The files of the folder, of which those that hold the state can be read. One
 * that goes while we look is that of a helper which has not ended yet. */
static bool
list_readable(struct recovery *rc)
{
	for (int tries = 0; tries < 10; tries++) {
		free(rc->l.e);
		rc->l.e = NULL;
		rc->l.n = 0;
		rc->pl.report->file[0] = '\0';
		rc->err = list(&rc->l) < 0 ? errno : 0;
		for (unsigned i = 0; i < rc->l.n && !rc->err; i++) {
			const struct entry *e = &rc->l.e[i];

			if (e->err && (e->kind == JOURNAL ||
			    e->kind == SNAPSHOT))
				note_unread(rc, e, e->err);
		}
		if (rc->err != ENOENT)
			break;
	}
	return rc->err == 0;
}

static void
note_damage(struct recovery *rc, enum kind kind, uint32_t no, const char *why,
    uint64_t off, uint64_t end)
{
	struct store_report *rp = rc->pl.report;

	rc->damaged = find(&rc->l, kind, no);
	rp->damage = why;
	rp->offset = off;
	rp->cut = end > off ? end - off : 0;
	note_file(rc, kind, no);
}

/* Whether all was there that had to be: with a limit everything up to it, a
 * snapshot to its last frame, else no hole. */
static bool
played_well(struct reader *r, const struct entry *e, uint64_t limit,
    uint64_t off, enum found how, bool ended)
{
	if (e->kind == SNAPSHOT)
		return ended;
	if (how == FOUND_DAMAGE)
		return false;
	r->why = "records are missing";
	return limit == TO_THE_END ? !more_after(r, off) : off == limit;
}

/* false: it was not whole, and the damage is noted; or no memory. */
static bool
play_entry(struct recovery *rc, struct entry *e, uint64_t limit)
{
	char path[PATH];
	struct reader r;
	enum kind kind;
	enum found how;
	uint64_t off = 0, end;
	bool good = false;

	e->used = true;
	rc->prev_no = e->no;
	rc->prev_end = 0;
	if (!reader_open(&r, path_of(path, rc->l.dir, rc->l.name, e->kind,
	    e->no))) {
		note_unread(rc, e, errno);
		return false;
	}
	rc->pl.report->files++;
	if (header_read(&r, &kind) == HEADER_OK) {
		end = limit < r.size ? limit : r.size;
		rc->prev_end = off = play(&r, end, &rc->pl, &how);
		good = played_well(&r, e, limit, off, how, rc->pl.ended);
	} else {
		r.why = "its header is damaged";
	}
	if (r.err || rc->pl.nomem)
		note_unread(rc, e, r.err ? r.err : ENOMEM);
	else if (!good)
		note_damage(rc, e->kind, e->no, r.why, off,
		    limit < r.size ? limit : used_end(&r, off));
	reader_close(&r);
	return good;
}

/* Whether a snapshot is there to its last frame. */
static bool
snapshot_whole(struct recovery *rc, const struct entry *e)
{
	struct store_report none = { 0 };
	struct playing look = { .report = &none };
	char path[PATH];
	struct reader r;
	enum kind kind;
	enum found how;

	if (e->header != HEADER_OK)
		return false;
	if (!reader_open(&r, path_of(path, rc->l.dir, rc->l.name, e->kind,
	    e->no))) {
		note_unread(rc, e, errno);
		return false;
	}
	if (header_read(&r, &kind) == HEADER_OK)
		play(&r, r.size, &look, &how);
	if (r.err)
		note_unread(rc, e, r.err);
	reader_close(&r);
	return look.ended;
}

/* Two that continue the same one: the lower was left before anything in it
 * was durable. */
static void
forget_left(const struct listing *l, const struct entry *next)
{
	for (unsigned i = 0; i < l->n; i++)
		if (l->e[i].prev_no == next->prev_no && l->e[i].no < next->no)
			l->e[i].linked = false;
}

/* Journal no and those that continue it, to the last or to damage. There is
 * no journal 0, and it may be that of another one nothing was usable: then
 * the next one's link says that it ends before its first record. */
static void
play_journals(struct recovery *rc, uint32_t no)
{
	struct entry *e = find(&rc->l, JOURNAL, no), *next;
	uint64_t limit;

	for (;; e = next, no = e->no) {
		next = next_linked(&rc->l, no);
		limit = next ? next->prev_end : TO_THE_END;
		rc->prev_no = no;
		rc->prev_end = 0;
		if (e) {
			e->used = true;
			rc->journal_size += e->size;
		}
		if (limit > HEADER && (e || no)) {
			if (!e)
				note_damage(rc, JOURNAL, no, "it is missing",
				    0, 0);
			if (!e || !play_entry(rc, e, limit))
				return;
		}
		if (!next)
			return;
		forget_left(&rc->l, next);
	}
}

/* Whether a file that the state does not use may have had records of it. */
static bool
had_records(const struct recovery *rc, const struct entry *e)
{
	if (e->used || e->no < rc->base)
		return false;
	return e->kind == SNAPSHOT || (e->kind == JOURNAL &&
	    (e->linked || (e->header == HEADER_DAMAGED && e->size > 0)));
}

/* Damage of a file's beginning shows only so. */
static void
look_at_unused(struct recovery *rc)
{
	for (unsigned i = 0; i < rc->l.n && !rc->pl.report->damage; i++) {
		const struct entry *e = &rc->l.e[i];

		if (had_records(rc, e))
			note_damage(rc, e->kind, e->no, e->linked ?
			    "it does not continue the others" :
			    "its beginning is damaged", 0, e->size);
	}
}

/* The state, as the top of this file defines it. */
static void
play_all(struct recovery *rc)
{
	struct entry *s, *last = newest(&rc->l, SNAPSHOT, UINT32_MAX);

	for (s = last; s && !rc->err; s = newest(&rc->l, SNAPSHOT, s->no))
		if (snapshot_whole(rc, s))
			break;
	if (!s && last && !next_linked(&rc->l, 0)) {
		rc->broken = true;
		s = last;
	}
	if (s) {
		rc->base = s->no;
		rc->snapshot_size = s->size;
	}
	if (!rc->err && (!s || play_entry(rc, s, TO_THE_END)))
		play_journals(rc, rc->base);
	if (!rc->err)
		look_at_unused(rc);
}

/* The name for something that a human may want to see: the first that is
 * free, else that of the oldest. */
static void
damaged_path(const struct listing *l, char out[PATH])
{
	uint32_t oldest = 1;
	time_t least = 0;
	struct stat sb;

	for (uint32_t i = 1; i <= DAMAGED_MAX; i++) {
		if (lstat(path_of(out, l->dir, l->name, DAMAGED, i), &sb) < 0)
			return;
		if (i == 1 || sb.st_mtime < least) {
			oldest = i;
			least = sb.st_mtime;
		}
	}
	path_of(out, l->dir, l->name, DAMAGED, oldest);
}

/* Copies the damaged file from where it is damaged on, as far as there is
 * something to be read. A disk that does not take the copy does not keep the
 * broker from its start. */
static void
copy_aside(struct recovery *rc)
{
	const struct entry *e = rc->damaged;
	uint64_t off = rc->pl.report->offset, end;
	char path[PATH];
	const uint8_t *p;
	struct reader r;
	size_t n;
	int fd;

	if (!reader_open(&r, path_of(path, rc->l.dir, rc->l.name, e->kind,
	    e->no))) {
		note_unread(rc, e, errno);
		return;
	}
	end = used_end(&r, off);
	damaged_path(&rc->l, path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
	    0600);
	rc->aside_err = fd < 0 ? errno : 0;
	for (uint64_t at = off; fd >= 0 && at < end; at += n) {
		n = end - at < WINDOW ? (size_t)(end - at) : WINDOW;
		p = reader_at(&r, at, n);
		if (!p || write_all(fd, p, n, at - off) < 0) {
			rc->aside_err = p ? errno : EIO;
			break;
		}
	}
	if (r.err)
		note_unread(rc, e, r.err);
	if (fd >= 0)
		close(fd);
	reader_close(&r);
}

/* Makes a segment that is not needed a spare, or removes it. */
static void
make_spare(struct listing *l, struct entry *e)
{
	char from[PATH], to[PATH];
	unsigned spares = 0;

	for (unsigned i = 0; i < l->n; i++)
		spares += l->e[i].kind == SPARE;
	path_of(from, l->dir, l->name, e->kind, e->no);
	path_of(to, l->dir, l->name, SPARE, e->no);
	if (spares < SPARES_MAX && rename(from, to) == 0)
		e->kind = SPARE;
	else
		unlink(from);
}

/* Puts the files in order that the state does not use. Returns how many of
 * them are kept as damaged. */
static unsigned
tidy(struct recovery *rc)
{
	char from[PATH], to[PATH];
	unsigned kept = 0;

	for (unsigned i = 0; i < rc->l.n; i++) {
		struct entry *e = &rc->l.e[i];

		path_of(from, rc->l.dir, rc->l.name, e->kind, e->no);
		if (e->used || e->kind == SPARE)
			continue;
		if (had_records(rc, e)) {
			damaged_path(&rc->l, to);
			if (rename(from, to) == 0)
				kept++;
		} else if (e->kind == JOURNAL) {
			make_spare(&rc->l, e);
		} else {
			unlink(from);
		}
	}
	return kept;
}

/* ---- the helper process ---- */

enum op { OP_SYNC = 1, OP_PREPARE, OP_INSTALL };

struct request {
	enum op op;
	uint32_t no, salt;
};

struct answer {
	enum op op;
	uint32_t no;
	int error;              /* errno; 0: done */
};

struct helper {
	const struct store_config *c;
	int sock;
	int fd[2];              /* of segments: in use and prepared */
	uint32_t no[2];
};

/* Where there is no /proc: it takes its time. */
static void
close_others(int keep)
{
	struct rlimit r = { .rlim_cur = DESCRIPTORS_MAX };

	getrlimit(RLIMIT_NOFILE, &r);
	for (int fd = 3; (rlim_t)fd < r.rlim_cur && fd < DESCRIPTORS_MAX; fd++)
		if (fd != keep)
			close(fd);
}

/* A forked process ends with the broker, hears no signal meant for it, and
 * keeps none of its files and sockets but keep and the standard ones. Ends with
 * an errno if it cannot. */
static void
become_child(pid_t parent, int keep)
{
	sigset_t all;
	struct dirent *de;
	DIR *d;
	int fd;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	d = opendir("/proc/self/fd");
	if (!d && errno != ENOENT)
		_exit(errno);   /* it would hold on to the sockets of clients,
				 * and to the other end of its own */
	while (d && (de = readdir(d))) {
		fd = atoi(de->d_name);
		if (fd > 2 && fd != keep && fd != dirfd(d))
			close(fd);
	}
	if (d)
		closedir(d);
	else
		close_others(keep);
	/* In the background: whoever started the broker may wait for the end
	 * of its output. */
	if (getsid(0) == parent && (fd = open("/dev/null", O_RDWR)) >= 0)
		for (int i = 0; i < 3; i++)
			dup2(fd, i);
	sandbox_enter(SANDBOX_STORE);
}

static void
helper_answer(struct helper *h, enum op op, uint32_t no, int error)
{
	struct answer a = { .op = op, .no = no, .error = error };

	if (send(h->sock, &a, sizeof a, MSG_NOSIGNAL) < 0)
		_exit(0);
}

static void
helper_sync(struct helper *h, uint32_t no)
{
	int fd = h->no[0] == no ? h->fd[0] : h->no[1] == no ? h->fd[1] : -1;
	int error = fdatasync(fd) < 0 ? errno : 0;
	struct stat sb;

	/* What is in a file without a name is nowhere after the next start. */
	if (!error && fstat(fd, &sb) == 0 && sb.st_nlink == 0)
		error = ENOENT;
	helper_answer(h, OP_SYNC, no, error);
}

/* So that syncs do not wait while a segment is filled with zeros. */
static void
helper_sync_waiting(struct helper *h)
{
	struct request q;
	ssize_t n = recv(h->sock, &q, sizeof q, MSG_DONTWAIT);

	if (n == 0)
		_exit(0);
	if (n == sizeof q && q.op == OP_SYNC)
		helper_sync(h, q.no);
}

/* The file that becomes segment no, under its present name, path: one that was
 * prepared and not used, a spare, or a new one. */
static int
helper_take(struct helper *h, uint32_t no, char path[PATH])
{
	struct listing l = { .dir = h->c->dir, .name = h->c->name };
	struct entry *e;
	int fd = -1;

	if (list(&l) == 0) {
		e = find(&l, JOURNAL, no);
		if (!e)
			e = newest(&l, SPARE, UINT32_MAX);
		if (e && e->header != HEADER_FOREIGN)
			fd = open(path_of(path, l.dir, l.name, e->kind, e->no),
			    O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	}
	free(l.e);
	if (fd < 0)
		fd = open(path_of(path, h->c->dir, h->c->name, JOURNAL_NEW, 0),
		    O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd;
}

/* Gives the file its size, in blocks that have been written: a later sync has
 * no metadata to write. */
static int
helper_fill(struct helper *h, int fd)
{
	static uint8_t zeros[FILL];     /* const ones would be in the file */
	uint64_t size = h->c->segment_size, at;
	struct stat sb;
	size_t n;

	if (fstat(fd, &sb) < 0)
		return -1;
	at = (uint64_t)sb.st_size;
	if (at > size)
		return ftruncate(fd, (off_t)size);
	/* Not every file system has this; the zeros are what counts. */
	if (at < size && fallocate(fd, 0, 0, (off_t)size) < 0 &&
	    errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)
		return -1;
	for (; at < size; at += n) {
		n = size - at < FILL ? (size_t)(size - at) : FILL;
		if (write_all(fd, zeros, n, at) < 0 || fdatasync(fd) < 0)
			return -1;
		helper_sync_waiting(h);
	}
	return 0;
}

static int
helper_prepare(struct helper *h, const struct request *q, int *fd)
{
	char from[PATH], to[PATH];
	uint8_t head[HEADER];

	*fd = helper_take(h, q->no, from);
	if (*fd < 0)
		return -1;
	header_put(head, JOURNAL, q->no, q->salt);
	path_of(to, h->c->dir, h->c->name, JOURNAL, q->no);
	if (helper_fill(h, *fd) < 0 ||
	    write_all(*fd, head, sizeof head, 0) < 0 || fsync(*fd) < 0 ||
	    rename(from, to) < 0 || sync_dir(h->c->dir) < 0)
		return -1;
	return 0;
}

static int
helper_on_prepare(struct helper *h, const struct request *q)
{
	int fd, err, older = h->no[0] > h->no[1];

	if (helper_prepare(h, q, &fd) < 0) {
		err = errno;
		if (fd >= 0)
			close(fd);
		return err;
	}
	/* The older of the two is one that the broker has left. */
	if (h->fd[older] >= 0)
		close(h->fd[older]);
	h->fd[older] = fd;
	h->no[older] = q->no;
	return 0;
}

/* The snapshot gets its name; then what it makes superfluous goes. */
static int
helper_on_install(struct helper *h, uint32_t no)
{
	struct listing l = { .dir = h->c->dir, .name = h->c->name };
	char from[PATH], to[PATH];

	path_of(from, l.dir, l.name, SNAPSHOT_NEW, 0);
	path_of(to, l.dir, l.name, SNAPSHOT, no);
	/* A helper may have done it and ended before it could say so. */
	if (rename(from, to) < 0 && (errno != ENOENT || access(to, F_OK) < 0))
		return errno;
	if (sync_dir(l.dir) < 0)
		return errno;
	if (list(&l) < 0)
		l.n = 0;
	for (unsigned i = 0; i < l.n; i++) {
		struct entry *e = &l.e[i];

		if (e->no >= no || e->header == HEADER_FOREIGN)
			continue;
		if (e->kind == JOURNAL)
			make_spare(&l, e);
		else if (e->kind == SNAPSHOT)
			unlink(path_of(from, l.dir, l.name, e->kind, e->no));
	}
	free(l.e);
	return 0;
}

static _Noreturn void
helper_main(const struct store_config *c, int sock)
{
	struct helper h = { .c = c, .sock = sock, .fd = { -1, -1 } };
	struct request q;

	while (recv(sock, &q, sizeof q, 0) == sizeof q) {
		switch (q.op) {
		case OP_SYNC:
			helper_sync(&h, q.no);
			break;
		case OP_PREPARE:
			helper_answer(&h, q.op, q.no,
			    helper_on_prepare(&h, &q));
			break;
		case OP_INSTALL:
			helper_answer(&h, q.op, q.no,
			    helper_on_install(&h, q.no));
			break;
		}
	}
	_exit(0);
}

/* -1: errno. */
static int
helper_start(struct store *st)
{
	int sv[2], err;
	pid_t parent = getpid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return -1;
	st->helper = fork();
	if (st->helper == 0) {
		become_child(parent, sv[1]);
		helper_main(&st->c, sv[1]);
	}
	err = errno;
	close(sv[1]);
	if (st->helper < 0) {
		close(sv[0]);
		errno = err;
		return -1;
	}
	st->helper_fd = sv[0];
	return 0;
}

static void
helper_end(struct store *st)
{
	if (st->helper_fd < 0)
		return;
	close(st->helper_fd);
	st->helper_fd = -1;
	while (waitpid(st->helper, NULL, 0) < 0 && errno == EINTR)
		;
}

/* ---- trouble ---- */

/* Puts the salt into the frames between two positions, or takes it away. */
static void
salt(struct store *st, uint64_t from, uint64_t to)
{
	uint64_t pos = st->first_pos;
	uint8_t *p;
	size_t n;

	for (struct store_block *b = st->first; b && pos < to; b = b->next) {
		if (pos + b->len <= from) {
			pos += b->len;
			continue;
		}
		for (p = b->bytes; p < b->bytes + b->len && pos < to; p += n) {
			n = frame_size(p);
			if (pos >= from)
				put32(p, get32(p) ^ st->seg.salt);
			pos += n;
		}
	}
}

static void
segment_close(struct store_segment *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

/* A snapshot is being made, or waits for its name. */
static bool
compacting(const struct store *st)
{
	return st->snapshot_no > 0;
}

/* Records after the snapshot go into its segment, for sure. */
static bool
switched(const struct store *st)
{
	return st->seg.no >= st->snapshot_no && st->seg_durable > 0;
}

/* The child is killed; child_look will reap it. */
static void
compact_abandon(struct store *st)
{
	if (st->child > 0)
		kill(st->child, SIGKILL);
	st->snapshot_no = 0;
	st->child_done = false;
	st->compact_wanted = true;
}

/* Leaves the segment; what is not durable goes into another. */
static void
trouble(struct store *st, int err, const char *what)
{
	if (!st->error)
		log_error("Error: Journal %s/%s: %s failed: %s. What has to be "
		    "on the disk is not acknowledged until that works again; "
		    "'df' and 'dmesg' may say why.", st->c.dir, st->c.name,
		    what, strerror(err));
	st->error = err;
	st->retry_ms = -1;
	if (st->state == STORE_FAILED)
		return;
	if (compacting(st) && !st->installing && !switched(st))
		compact_abandon(st);
	salt(st, st->durable, st->sealed);
	st->written = st->sealed = st->durable;
	if (st->seg_durable > 0) {
		st->prev_no = st->seg.no;
		st->prev_end = st->seg_durable;
	}
	segment_close(&st->seg);
	st->seg_durable = 0;
	st->state = STORE_FAILED;
}

static void
helper_gone(struct store *st)
{
	helper_end(st);
	st->preparing = st->installing = false;
	/* A new helper does not know it: it will be prepared again. */
	segment_close(&st->next);
	trouble(st, EPIPE, "its helper process");
}

static void
ask(struct store *st, enum op op, uint32_t no, uint32_t with_salt)
{
	struct request q = { .op = op, .no = no, .salt = with_salt };

	if (send(st->helper_fd, &q, sizeof q, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		helper_gone(st);
}

/* ---- pending records ---- */

static struct store_block *
block_new(struct store *st, size_t n)
{
	size_t cap = n < BLOCK ? BLOCK : n;
	struct store_block *b = mem_alloc_passing(sizeof *b + cap);

	if (!b)
		return NULL;
	*b = (struct store_block){ .cap = cap };
	if (st->last)
		st->last->next = b;
	else
		st->first = b;
	st->last = b;
	return b;
}

static void
free_first(struct store *st)
{
	struct store_block *b = st->first;

	st->first = b->next;
	if (!st->first)
		st->last = NULL;
	st->first_pos += b->len;
	mem_free(b, sizeof *b + b->cap);
}

/* The last block stays while there is something in it to wait for. */
static void
free_durable(struct store *st)
{
	while (st->first && st->first_pos + st->first->len <= st->durable &&
	    (st->first->next || st->end == st->durable))
		free_first(st);
}

static bool dump_flush(struct store *st);

/* Whether size bytes more may wait. */
static bool
may_wait(struct store *st, size_t size)
{
	size_t pending = (size_t)(st->end - st->durable);

	if (st->dump_fd >= 0)
		return pending < BATCH || dump_flush(st);
	return pending == 0 || (size <= st->c.pending_max &&
	    pending <= st->c.pending_max - size);
}

uint8_t *
store_begin(struct store *st, uint8_t type, size_t n)
{
	size_t size = FRAME + n;
	struct store_block *b;

	if (n > STORE_BODY_MAX || !may_wait(st, size))
		return NULL;
	b = st->last;
	if (!b || b->cap - b->len < size)
		b = block_new(st, size);
	if (!b)
		return NULL;
	st->begun = size;
	put32(b->bytes + b->len + 4, (uint32_t)n);
	b->bytes[b->len + 8] = type;
	return b->bytes + b->len + FRAME;
}

void
store_end(struct store *st, enum store_class class)
{
	struct store_block *b = st->last;
	uint8_t *p = b->bytes + b->len;

	frame_put(p, p[8], get32(p + 4), class == STORE_MORE);
	b->len += st->begun;
	st->end += st->begun;
	st->begun = 0;
	st->dump_records++;
	if (class != STORE_MORE)
		st->complete = st->end;
	if (class == STORE_NOW)
		st->urgent = st->end;
}

void
store_drop(struct store *st)
{
	struct store_block *b, *next, *last = NULL;
	uint64_t pos = st->first_pos;

	for (b = st->first; b; b = next) {
		next = b->next;
		if (pos + b->len > st->complete)
			b->len = st->complete > pos ?
			    (size_t)(st->complete - pos) : 0;
		pos += b->len;
		if (b->len > 0) {
			last = b;
			continue;
		}
		if (last)
			last->next = next;
		else
			st->first = next;
		mem_free(b, sizeof *b + b->cap);
	}
	st->last = last;
	st->end = st->complete;
	st->begun = 0;
}

uint64_t
store_position(const struct store *st)
{
	return st->complete;
}

uint64_t
store_end_position(const struct store *st)
{
	return st->end;
}

uint64_t
store_durable(const struct store *st)
{
	return st->orphan ? st->held : st->durable;
}

int
store_failed(const struct store *st)
{
	return st->error;
}

int
store_fd(const struct store *st)
{
	return st->helper_fd;
}

void
store_incomplete(struct store *st)
{
	if (!st->orphan)
		st->held = st->durable;
	st->orphan = st->compact_wanted = true;
	st->stale = compacting(st);
	st->compact_after_ms = 0;
}

void
store_compact(struct store *st)
{
	st->compact_wanted = true;
}

/* ---- a snapshot, in the child ---- */

static bool
dump_write(struct store *st, const uint8_t *p, size_t n)
{
	if (write_all(st->dump_fd, p, n, st->dump_off) < 0) {
		st->error = errno;
		return false;
	}
	st->dump_off += n;
	return true;
}

/* Writes what is gathered, and syncs it: the journal's syncs never find a long
 * queue before them. */
static bool
dump_flush(struct store *st)
{
	bool good = !st->error;

	salt(st, st->durable, st->end);
	for (struct store_block *b = st->first; b && good; b = b->next)
		good = dump_write(st, b->bytes, b->len);
	while (st->first)
		free_first(st);
	st->durable = st->complete = st->end;
	if (good && fdatasync(st->dump_fd) < 0) {
		st->error = errno;
		good = false;
	}
	return good;
}

static bool
dump_all(struct store *st)
{
	uint8_t head[HEADER], *p;
	uint64_t n;

	header_put(head, SNAPSHOT, st->snapshot_no, st->seg.salt);
	if (!dump_write(st, head, sizeof head) ||
	    !st->c.dump(st->c.dump_arg, st))
		return false;
	n = st->dump_records;
	p = store_begin(st, TYPE_END, 8);
	if (!p)
		return false;
	put64(p, n);
	store_end(st, STORE_NOW);
	return dump_flush(st) && fsync(st->dump_fd) == 0;
}

static uint32_t
random_salt(void)
{
	struct timespec t;
	uint32_t n;

	if (getrandom(&n, sizeof n, GRND_NONBLOCK) == sizeof n)
		return n;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint32_t)t.tv_nsec * 2654435761u ^ (uint32_t)t.tv_sec;
}

/* The exit status is 0 or an errno. */
static _Noreturn void
child_main(struct store *st, pid_t parent)
{
	char path[PATH];

	become_child(parent, -1);
	mem_set_limit(0);
	/* What is pending is in the state, too. */
	st->first = st->last = NULL;
	st->durable = st->first_pos = st->end;
	st->dump_records = 0;
	st->error = 0;
	st->seg.salt = random_salt();
	path_of(path, st->c.dir, st->c.name, SNAPSHOT_NEW, 0);
	st->dump_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC |
	    O_NOFOLLOW, 0600);
	if (st->dump_fd < 0)
		_exit(errno);
	errno = ENOMEM;
	if (!dump_all(st))
		_exit(st->error ? st->error : errno);
	_exit(0);
}

/* ---- compaction, in the broker ---- */

static void
compact_failed(struct store *st, int64_t now_ms, int err)
{
	/* Acknowledgements may wait for it. */
	int pause_ms = st->orphan ? RECOMPACT_SOON_MS : RECOMPACT_MS;

	log_warning("Warning: Journal %s/%s: a snapshot could not be made: %s. "
	    "Nothing is lost; the next attempt is in %d s. It needs space "
	    "for the whole state once more.", st->c.dir, st->c.name,
	    strerror(err), pause_ms / 1000);
	st->compact_after_ms = now_ms + pause_ms;
	st->compact_wanted = true;
	st->snapshot_no = 0;
	st->child_done = false;
}

static bool
compact_due(const struct store *st)
{
	if (!st->c.dump || compacting(st) || st->child > 0 ||
	    (st->closing && !st->orphan) || st->state == STORE_FAILED ||
	    st->end != st->complete)
		return false;
	return st->compact_wanted || st->journal_size > st->snapshot_size +
	    3 * (uint64_t)st->c.segment_size;
}

static void
compact_start(struct store *st, int64_t now_ms)
{
	pid_t parent = getpid();

	st->compact_wanted = st->stale = false;
	st->snapshot_no = st->next.no;
	st->switch_pos = st->complete;
	st->child = fork();
	if (st->child == 0)
		child_main(st, parent);
	if (st->child < 0) {
		st->child = 0;
		compact_failed(st, now_ms, errno);
	}
	st->child_due_ms = now_ms + CHILD_LOOK_MS;
}

static void
child_look(struct store *st, int64_t now_ms)
{
	int status;
	pid_t pid;

	if (st->child == 0 || now_ms < st->child_due_ms)
		return;
	st->child_due_ms = now_ms + CHILD_LOOK_MS;
	pid = waitpid(st->child, &status, WNOHANG);
	if (pid == 0)
		return;
	st->child = 0;
	if (!compacting(st))
		return;
	if (pid < 0 || !WIFEXITED(status))
		compact_failed(st, now_ms, EINTR);
	else if (WEXITSTATUS(status) != 0)
		compact_failed(st, now_ms, WEXITSTATUS(status));
	else
		st->child_done = true;
}

static void
compact(struct store *st, int64_t now_ms)
{
	child_look(st, now_ms);
	if (compact_due(st) && now_ms >= st->compact_after_ms &&
	    st->next.fd >= 0)
		compact_start(st, now_ms);
	if (st->child_done && !st->installing && !st->preparing &&
	    st->state != STORE_FAILED && switched(st)) {
		st->installing = true;
		ask(st, OP_INSTALL, st->snapshot_no, 0);
	}
}

static void
on_installed(struct store *st, int err)
{
	char path[PATH];
	struct stat sb;

	st->installing = false;
	if (err) {
		/* No other attempt with this file: it may be there or not. */
		st->install_error = err;
		return;
	}
	path_of(path, st->c.dir, st->c.name, SNAPSHOT, st->snapshot_no);
	if (stat(path, &sb) == 0)
		st->snapshot_size = (uint64_t)sb.st_size;
	st->journal_size -= st->covered;
	st->covered = 0;
	st->orphan = st->stale;
	st->snapshot_no = 0;
	st->child_done = false;
	log_info("Journal %s/%s: new snapshot of %llu bytes.", st->c.dir,
	    st->c.name, (unsigned long long)st->snapshot_size);
}

/* ---- segments ---- */

/* Goes over to the prepared segment, which continues prev. */
static void
use_next(struct store *st)
{
	segment_close(&st->seg);
	st->seg = st->next;
	st->next = (struct store_segment){ .fd = -1 };
	st->seg_pos = st->sealed;
	st->seg_durable = 0;
	st->linked = st->full = false;
	if (st->seg.no == st->snapshot_no)
		st->covered = st->journal_size;
	st->journal_size += st->c.segment_size;
	st->state = STORE_IDLE;
}

static bool
next_wanted(const struct store *st)
{
	return st->state == STORE_FAILED || st->full || compact_due(st) ||
	    st->seg_durable > st->c.segment_size / 4;
}

static void
prepare_next(struct store *st, int64_t now_ms)
{
	if (st->retry_ms == -1) {
		st->retry_ms = now_ms + st->retry_pause_ms;
		st->retry_pause_ms = st->retry_pause_ms == 0 ? RETRY_MIN_MS :
		    st->retry_pause_ms * 2 < RETRY_MAX_MS ?
		    st->retry_pause_ms * 2 : RETRY_MAX_MS;
	}
	if (st->preparing || st->installing || st->next.fd >= 0 ||
	    now_ms < st->retry_ms || !next_wanted(st))
		return;
	if (st->helper_fd < 0 && helper_start(st) < 0) {
		trouble(st, errno, "starting its helper process");
		return;
	}
	if (st->next.no == 0)
		st->next.no = ++st->last_no;
	st->next.salt = random_salt();
	st->preparing = true;
	ask(st, OP_PREPARE, st->next.no, st->next.salt);
}

static void
on_prepared(struct store *st, int err)
{
	char path[PATH];

	st->preparing = false;
	if (!err) {
		st->next.fd = open(path_of(path, st->c.dir, st->c.name,
		    JOURNAL, st->next.no), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
		if (st->next.fd < 0)
			err = errno;
	}
	st->next_error = err;
	if (!err)
		return;
	st->retry_ms = -1;
	if (st->state == STORE_FAILED)
		trouble(st, err, "preparing a file");
}

/* After trouble: whether what comes next can be read depends on the files that
 * were there before. */
static void
look_for_previous(struct store *st)
{
	char path[PATH];

	if (st->prev_no == 0 || st->orphan || faccessat(AT_FDCWD,
	    path_of(path, st->c.dir, st->c.name, JOURNAL, st->prev_no), F_OK,
	    0) == 0)
		return;
	st->orphan = true;
	st->held = st->durable;
	st->compact_wanted = true;
	st->compact_after_ms = 0;
}

/* From a segment that is full, or at the snapshot. */
static void
switch_segment(struct store *st)
{
	if (st->seg_durable > 0) {
		st->prev_no = st->seg.no;
		st->prev_end = st->seg_durable;
	}
	use_next(st);
}

/* ---- commit ---- */

/* The prepared segment is kept for what comes after the snapshot. */
static bool
switch_ahead(const struct store *st)
{
	return compacting(st) && st->seg.no < st->snapshot_no;
}

static bool
at_switch(const struct store *st)
{
	return switch_ahead(st) && st->sealed == st->switch_pos;
}

/* A frame among those that are pending. */
struct cursor {
	const struct store_block *b;
	const uint8_t *p;
};

/* The one at position sealed, of which there are some. */
static struct cursor
first_unsealed(const struct store *st)
{
	uint64_t pos = st->first_pos;
	struct cursor c = { .b = st->first };

	for (; pos + c.b->len <= st->sealed; c.b = c.b->next)
		pos += c.b->len;
	for (c.p = c.b->bytes; pos < st->sealed; c.p += frame_size(c.p))
		pos += frame_size(c.p);
	return c;
}

/* Bytes of the group that begins at c, which goes behind it. */
static uint64_t
group_size(struct cursor *c)
{
	uint64_t n = 0;
	bool more = true;

	while (more) {
		if (c->p == c->b->bytes + c->b->len) {
			c->b = c->b->next;
			c->p = c->b->bytes;
		}
		more = get32(c->p + 4) & MORE;
		n += frame_size(c->p);
		c->p += frame_size(c->p);
	}
	return n;
}

/* Takes groups into the batch as long as they belong into this segment. One
 * that is longer than a segment makes it longer, and so does what must go
 * before the snapshot. */
static void
seal(struct store *st)
{
	uint64_t from = st->sealed, in_segment, n;
	struct cursor c = { 0 };

	if (st->sealed < st->complete)
		c = first_unsealed(st);
	while (st->sealed < st->complete && st->sealed - from < BATCH &&
	    !at_switch(st)) {
		n = group_size(&c);
		in_segment = DATA_START + st->sealed - st->seg_pos;
		st->full = st->sealed > st->seg_pos && !switch_ahead(st) &&
		    in_segment + n + FRAME > st->c.segment_size;
		if (st->full)
			break;
		st->sealed += n;
	}
	salt(st, from, st->sealed);
}

static bool
commit_due(struct store *st, int64_t now_ms)
{
	if (st->forced || st->closing ||
	    st->complete - st->durable > st->c.pending_max / 2 ||
	    switch_ahead(st))
		return true;
	if (st->complete == st->durable)
		return false;
	if (st->lazy_due_ms == STORE_NEVER)
		st->lazy_due_ms = now_ms + st->c.lazy_ms;
	return now_ms >= st->lazy_due_ms ||
	    (st->urgent > st->durable && now_ms >= st->sync_after_ms);
}

static void
start_batch(struct store *st, int64_t now_ms)
{
	if (!commit_due(st, now_ms))
		return;
	seal(st);
	if (st->sealed == st->durable && (st->full || at_switch(st))) {
		if (st->next.fd < 0) {
			if (st->next_error)
				trouble(st, st->next_error,
				    "preparing a file");
			return;
		}
		switch_segment(st);
		st->forced = true;
		seal(st);
	}
	if (st->sealed > st->durable || st->forced)
		st->state = STORE_WRITING;
}

static int
write_link(struct store *st)
{
	uint8_t p[FRAME + LINK_BODY];

	put32(p + FRAME, st->prev_no);
	put64(p + FRAME + 4, st->prev_end);
	frame_put(p, TYPE_LINK, LINK_BODY, false);
	put32(p, get32(p) ^ st->seg.salt);
	return write_all(st->seg.fd, p, sizeof p, HEADER);
}

/* The parts of the batch that are to be written next, and the zeros after its
 * end if that is reached. Returns how many parts; *len is their length. */
static int
gather(struct store *st, struct iovec iov[WRITE_PARTS], size_t *len)
{
	static uint8_t zeros[FRAME];
	uint64_t pos = st->first_pos, from = st->written, to;
	int n = 0;

	*len = 0;
	for (struct store_block *b = st->first; b && n < WRITE_PARTS - 1 &&
	    from < st->sealed && *len < WRITE_MAX; b = b->next) {
		to = pos + b->len < st->sealed ? pos + b->len : st->sealed;
		if (to > from && to - from > WRITE_MAX - *len)
			to = from + (WRITE_MAX - *len);
		if (to > from) {
			iov[n++] = (struct iovec){ b->bytes + (from - pos),
			    (size_t)(to - from) };
			*len += (size_t)(to - from);
			from = to;
		}
		pos += b->len;
	}
	if (from == st->sealed) {
		iov[n++] = (struct iovec){ zeros, FRAME };
		*len += FRAME;
	}
	return n;
}

static void
write_some(struct store *st, int64_t now_ms)
{
	struct iovec iov[WRITE_PARTS];
	size_t len;
	ssize_t w;
	int n;

	if (!st->linked && write_link(st) < 0) {
		trouble(st, errno, "writing");
		return;
	}
	st->linked = true;
	n = gather(st, iov, &len);
	w = pwritev(st->seg.fd, iov, n, (off_t)(DATA_START + st->written -
	    st->seg_pos));
	if (w < 0 && errno != EINTR)
		trouble(st, errno, "writing");
	if (w < 0)
		return;
	if ((size_t)w < len) {
		/* What there is of the zeros is written again. */
		st->written += (uint64_t)w;
		if (st->written > st->sealed)
			st->written = st->sealed;
		return;
	}
	st->written += len;
	if (st->written < st->sealed)
		return;
	st->written = st->sealed;
	st->state = STORE_SYNCING;
	st->forced = false;
	st->lazy_due_ms = STORE_NEVER;
	st->sync_after_ms = now_ms + st->c.sync_interval_ms;
	ask(st, OP_SYNC, st->seg.no, 0);
}

static void
on_synced(struct store *st, uint32_t no, int err)
{
	if (no != st->seg.no || st->state != STORE_SYNCING)
		return;         /* of a segment that was left */
	if (err) {
		trouble(st, err, "syncing");
		return;
	}
	st->durable = st->sealed;
	st->seg_durable = DATA_START + st->durable - st->seg_pos;
	st->state = STORE_IDLE;
	free_durable(st);
	if (!st->error)
		return;
	log_notice("Journal %s/%s: the disk works again.", st->c.dir,
	    st->c.name);
	st->error = 0;
	st->retry_pause_ms = 0;
}

void
store_event(struct store *st)
{
	struct answer a;
	ssize_t n;

	while (st->helper_fd >= 0) {
		n = recv(st->helper_fd, &a, sizeof a, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n != sizeof a)
			helper_gone(st);
		else if (a.op == OP_SYNC)
			on_synced(st, a.no, a.error);
		else if (a.op == OP_PREPARE)
			on_prepared(st, a.error);
		else
			on_installed(st, a.error);
	}
}

void
store_commit(struct store *st, int64_t now_ms)
{
	if (st->install_error) {
		compact_failed(st, now_ms, st->install_error);
		st->install_error = 0;
	}
	prepare_next(st, now_ms);
	if (st->state == STORE_FAILED && st->next.fd >= 0) {
		look_for_previous(st);
		use_next(st);
		st->forced = true;
	}
	if (st->state == STORE_IDLE)
		start_batch(st, now_ms);
	if (st->state == STORE_WRITING)
		write_some(st, now_ms);
	compact(st, now_ms);
}

static int64_t
earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

int64_t
store_due(const struct store *st)
{
	int64_t due = st->child > 0 ? st->child_due_ms : STORE_NEVER;

	if (st->retry_ms == -1 || st->install_error ||
	    st->state == STORE_WRITING)
		return 0;
	if (!st->preparing && !st->installing && st->next.fd < 0 &&
	    next_wanted(st))
		due = earlier(due, st->retry_ms);
	if (st->next.fd >= 0 && (st->state == STORE_FAILED ||
	    (st->state == STORE_IDLE && (st->full || at_switch(st)))))
		return 0;
	if (st->next.fd >= 0 && compact_due(st))
		due = earlier(due, st->compact_after_ms);
	if (st->child_done && !st->installing && !st->preparing &&
	    st->state != STORE_FAILED && switched(st))
		return 0;
	if (st->state != STORE_IDLE || st->full || at_switch(st))
		return due;
	if (st->forced || switch_ahead(st) ||
	    st->complete - st->durable > st->c.pending_max / 2)
		return 0;
	if (st->urgent > st->durable)
		due = earlier(due, st->sync_after_ms);
	if (st->complete > st->durable)
		due = earlier(due, st->lazy_due_ms == STORE_NEVER ? 0 :
		    st->lazy_due_ms);
	return due;
}

/* ---- open and close ---- */

static int
lock(struct store *st)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char path[PATH], comm[32] = "?";
	int fd;

	path_of(path, st->c.dir, st->c.name, LOCK, 0);
	st->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
	    0600);
	/* On a disk that takes no file nobody else can write either. */
	if (st->lock_fd < 0 && (errno == EROFS || errno == ENOSPC ||
	    errno == EDQUOT)) {
		log_warning("Warning: %s: %s. The journal is read without a "
		    "lock.", path, strerror(errno));
		return 0;
	}
	if (st->lock_fd < 0) {
		log_error("Error: Unable to open %s: %s. The broker needs to "
		    "write in that directory.", path, strerror(errno));
		return -1;
	}
	if (fcntl(st->lock_fd, F_SETLK, &fl) == 0)
		return 0;
	if (fcntl(st->lock_fd, F_GETLK, &fl) < 0 || fl.l_type == F_UNLCK) {
		log_error("Error: Unable to lock %s: %s. The file system has "
		    "to support locks.", path, strerror(errno));
		return -1;
	}
	snprintf(path, sizeof path, "/proc/%ld/comm", (long)fl.l_pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t n = read(fd, comm, sizeof comm - 1);

		if (n > 0)
			comm[n - (comm[n - 1] == '\n')] = '\0';
		close(fd);
	}
	log_error("Error: The journal %s/%s is in use by process %ld (%s). "
	    "Stop that one, or give this broker another "
	    "persistence_location.", st->c.dir, st->c.name, (long)fl.l_pid,
	    comm);
	return -1;
}

/* false: there is a file that we must not touch, and a line says so. */
static bool
all_ours(const struct listing *l)
{
	char path[PATH];

	for (unsigned i = 0; i < l->n; i++) {
		const struct entry *e = &l->e[i];

		path_of(path, l->dir, l->name, e->kind, e->no);
		if (e->header == HEADER_FOREIGN) {
			log_error("Error: %s was not written by this broker, "
			    "though it has the name of one of its files. Move "
			    "it away, or set another persistence_file.", path);
			return false;
		}
		if (e->header == HEADER_NEWER) {
			log_error("Error: %s was written by a later version "
			    "of this broker. Use that version, or move the "
			    "files away to begin without them.", path);
			return false;
		}
	}
	return true;
}

static void
report_recovery(const struct store *st, const struct recovery *rc,
    unsigned kept)
{
	const struct store_report *rp = rc->pl.report;

	log_info("Journal %s/%s: %llu records (%llu bytes) read from %u "
	    "file%s.", st->c.dir, st->c.name, (unsigned long long)rp->records,
	    (unsigned long long)rp->bytes, rp->files,
	    rp->files == 1 ? "" : "s");
	if (rp->damage)
		log_warning("Warning: Journal %s/%s: %s is damaged or was "
		    "being written when the power failed: at byte %llu %s. "
		    "All before that is used; %llu bytes of it%s could not "
		    "be used and are%s kept in %s.damaged-*%s%s.", st->c.dir,
		    st->c.name, rp->file, (unsigned long long)rp->offset,
		    rp->damage, (unsigned long long)rp->cut,
		    kept ? " and later files" : "",
		    rc->aside_err ? " not all" : "", st->c.name,
		    rc->aside_err ? ": " : "",
		    rc->aside_err ? strerror(rc->aside_err) : "");
}

static bool
recover(struct store *st, struct recovery *rc)
{
	unsigned kept;

	if (list_readable(rc)) {
		if (!all_ours(&rc->l))
			return false;
		play_all(rc);
	}
	if (!rc->err && rc->damaged && rc->damaged->used)
		copy_aside(rc);
	if (rc->err == ENOMEM) {
		log_error("Error: Not enough memory for what the journal "
		    "%s/%s holds. Raise memory_limit, or move its files away "
		    "to begin without them.", st->c.dir, st->c.name);
		return false;
	}
	if (rc->err) {
		log_error("Error: Unable to read %s/%s: %s. Check the "
		    "permissions of the journal's folder and files.",
		    st->c.dir, rc->pl.report->file, strerror(rc->err));
		return false;
	}
	kept = tidy(rc);
	report_recovery(st, rc, kept);
	st->last_no = rc->l.last_no;
	st->prev_no = rc->prev_no;
	st->prev_end = rc->prev_end;
	st->journal_size = rc->journal_size;
	st->snapshot_size = rc->snapshot_size;
	st->orphan = st->compact_wanted = rc->broken;
	return true;
}

/* The disk may be in trouble: then store_commit goes on trying. */
static void
first_segment(struct store *st)
{
	struct pollfd p = { .fd = st->helper_fd, .events = POLLIN };

	prepare_next(st, 0);
	while (st->preparing && st->helper_fd >= 0) {
		poll(&p, 1, -1);
		store_event(st);
	}
	if (st->next.fd >= 0)
		use_next(st);
}

static void
fini(struct store *st)
{
	helper_end(st);
	if (st->child > 0) {
		kill(st->child, SIGKILL);
		while (waitpid(st->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	while (st->first)
		free_first(st);
	segment_close(&st->seg);
	segment_close(&st->next);
	if (st->lock_fd >= 0)
		close(st->lock_fd);
}

static void
init(struct store *st, const struct store_config *c)
{
	*st = (struct store){ .c = *c, .lock_fd = -1, .helper_fd = -1,
	    .seg = { .fd = -1 }, .next = { .fd = -1 }, .dump_fd = -1,
	    .lazy_due_ms = STORE_NEVER, .sync_after_ms = INT64_MIN };
	if (c->segment_size == 0)
		st->c.segment_size = 1u << 20;
	else if (c->segment_size < 4096)
		st->c.segment_size = 4096;
	if (c->pending_max == 0)
		st->c.pending_max = 16u << 20;
	store_crc(0, "", 0);    /* its tables, before there are children */
}

bool
store_open(struct store *st, const struct store_config *c,
    store_record_fn *fn, void *arg, struct store_report *report)
{
	struct store_report own = { 0 };
	struct recovery rc = { .l = { .dir = c->dir, .name = c->name },
	    .pl = { .fn = fn, .arg = arg, .report = report ? report : &own } };
	bool good = false;

	*rc.pl.report = own;
	init(st, c);
	if (!path_fits(c->dir, c->name)) {
		log_error("Error: The path %s/%s is too long for a journal.",
		    c->dir, c->name);
		return false;
	}
	if (mkdir(c->dir, 0700) < 0 && errno != EEXIST) {
		log_error("Error: Unable to create %s: %s. Create it, and let "
		    "it belong to the user of the broker.", c->dir,
		    strerror(errno));
		return false;
	}
	if (lock(st) < 0) {
		fini(st);
		return false;
	}
	if (helper_start(st) < 0)
		log_error("Error: Unable to start a helper process: %s. Raise "
		    "the limit of processes ('ulimit -u').", strerror(errno));
	else
		good = recover(st, &rc);
	free(rc.l.e);
	if (!good) {
		fini(st);
		return false;
	}
	first_segment(st);
	/* The link says where the damaged file ends: it is told once. */
	st->forced = rc.pl.report->damage;
	return true;
}

/* The clock that the caller had is not known here: what was to wait for a time
 * does not wait, and then each look takes 50 ms. */
bool
store_close(struct store *st)
{
	struct pollfd p = { .events = POLLIN };
	bool tried = false, good;
	int64_t now_ms = 0;

	st->closing = true;
	st->child_due_ms = st->compact_after_ms = 0;
	while (store_durable(st) < st->complete || st->forced) {
		if (st->state == STORE_FAILED && !st->preparing) {
			if (tried)
				break;
			tried = true;
			st->retry_ms = 0;
		}
		store_commit(st, now_ms += CHILD_LOOK_MS);
		if (st->compact_after_ms > 0)
			break;
		p.fd = st->helper_fd;
		if (st->state != STORE_WRITING)
			poll(&p, 1, store_due(st) <= now_ms ? 0 :
			    CHILD_LOOK_MS);
		store_event(st);
	}
	good = store_durable(st) == st->complete;
	if (!good)
		log_error("Error: Journal %s/%s: the last changes could not be "
		    "written: %s.", st->c.dir, st->c.name, st->error ?
		    strerror(st->error) : "there is no snapshot yet");
	fini(st);
	return good;
}

/* ---- reading for people ---- */

/* The one NAME of the journals in a directory. */
static bool
only_name(const char *dir, char name[NAME_MAX + 1], struct store_report *rp)
{
	DIR *d = opendir(dir);
	struct dirent *de;
	enum kind kind;
	uint32_t no;
	char *dot;

	name[0] = '\0';
	if (!d) {
		rp->damage = strerror(errno);
		return false;
	}
	while ((de = readdir(d))) {
		dot = strrchr(de->d_name, '.');
		if (!dot || !name_kind(de->d_name, de->d_name,
		    (size_t)(dot - de->d_name), &kind, &no))
			continue;
		*dot = '\0';
		if (name[0] && strcmp(name, de->d_name) != 0)
			rp->damage = "there are journals of several names";
		snprintf(name, NAME_MAX + 1, "%s", de->d_name);
	}
	closedir(d);
	if (!name[0])
		rp->damage = "there is no journal";
	return !rp->damage;
}

static bool
walk_file(const char *path, struct playing *pl)
{
	struct store_report *rp = pl->report;
	struct reader r;
	enum kind kind = JOURNAL;
	enum found how;
	uint64_t off = 0;
	enum header h;

	if (!reader_open(&r, path)) {
		rp->damage = strerror(errno);
		return false;
	}
	h = header_read(&r, &kind);
	if (h == HEADER_OK) {
		rp->files = 1;
		off = play(&r, r.size, pl, &how);
		if (!(kind == SNAPSHOT ? pl->ended : how == FOUND_END))
			rp->damage = how == FOUND_END ? "its end is missing" :
			    r.why;
		else if (kind == JOURNAL && more_after(&r, off))
			rp->damage = "records are missing";
	} else {
		rp->damage = h == HEADER_FOREIGN ? "it is not a journal" :
		    h == HEADER_NEWER ? "it is of a later version" :
		    "its header is damaged";
	}
	if (rp->damage) {
		const char *slash = strrchr(path, '/');

		snprintf(rp->file, sizeof rp->file, "%.255s",
		    slash ? slash + 1 : path);
		rp->offset = off;
		rp->cut = used_end(&r, off) - off;
	}
	reader_close(&r);
	return h == HEADER_OK;
}

bool
store_walk(const char *path, const char *name, store_record_fn *fn,
    void *arg, struct store_report *report)
{
	char found[NAME_MAX + 1];
	struct recovery rc = { .l = { .dir = path, .name = name },
	    .pl = { .fn = fn, .arg = arg, .report = report } };
	struct stat sb;
	bool good;

	memset(report, 0, sizeof *report);
	if (stat(path, &sb) < 0) {
		report->damage = strerror(errno);
		return false;
	}
	if (!S_ISDIR(sb.st_mode))
		return walk_file(path, &rc.pl);
	if (!name) {
		if (!only_name(path, found, report))
			return false;
		rc.l.name = found;
	}
	if (!path_fits(path, rc.l.name))
		rc.err = ENAMETOOLONG;
	good = !rc.err && list_readable(&rc);
	if (good)
		play_all(&rc);
	if (rc.err)
		report->damage = strerror(rc.err);
	free(rc.l.e);
	return good;
}
