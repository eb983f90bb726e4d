/* file - a text file of the operator's, read whole and handed out by lines.
 *
 * Nothing that stands at the path can hang or surprise the caller: only
 * regular files of a sensible size are read, and a NUL byte is a fault. A byte
 * order mark at the beginning and CR before a line's end are left out. What
 * the lines mean is the caller's.
 */
#ifndef FILE_H
#define FILE_H

#include <stddef.h>
#include <sys/types.h>

#define FILE_SIZE_MAX (64 * 1024 * 1024)

struct file {
	char *text;             /* all of it, a NUL behind */
	char *next;             /* the line to come, NULL at the end */
	size_t len;
	unsigned line;          /* number of the line at hand */
	mode_t mode;
	uid_t uid;
	gid_t gid;
	char why[80];
};

/* Reads it. NULL, or in words why not: then there is nothing to free. */
const char *file_read(struct file *f, const char *path);

/* The next line without its end, to be changed at will; NULL: no more. */
char *file_line(struct file *f);

/* Wipes the text, which may hold secrets, and frees it. */
void file_free(struct file *f);

/* Cuts blanks (space, tab) off both ends of s, in place. */
char *file_trim(char *s);

#endif
