#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads to the end, in steps: the size that fstat tells may be out of date. */
static const char *
read_all(struct file *f, int fd)
{
	size_t cap = 0;
	ssize_t n = 1;

	while (n > 0) {
		if (f->len + 1 >= cap) {
			char *p;

			cap = cap ? cap * 2 : 16384;
			if (cap > 2 * FILE_SIZE_MAX)
				return "it is larger than 64 MB";
			p = realloc(f->text, cap);
			if (!p)
				return strerror(ENOMEM);
			f->text = p;
		}
		n = read(fd, f->text + f->len, cap - 1 - f->len);
		if (n < 0)
			return strerror(errno);
		f->len += (size_t)n;
	}
	f->text[f->len] = 0;
	return NULL;
}

static const char *
find_nul(struct file *f)
{
	size_t n = strlen(f->text);
	unsigned line = 1;

	if (n == f->len)
		return NULL;
	for (size_t i = 0; i < n; i++)
		line += f->text[i] == '\n';
	snprintf(f->why, sizeof f->why, "there is a NUL byte in line %u",
	    line);
	return f->why;
}

static const char *
read_open(struct file *f, int fd)
{
	struct stat st;
	const char *why;

	if (fstat(fd, &st) < 0)
		return strerror(errno);
	if (S_ISDIR(st.st_mode))
		return strerror(EISDIR);
	if (!S_ISREG(st.st_mode))
		return "it is not a regular file";
	f->mode = st.st_mode & 07777;
	f->uid = st.st_uid;
	f->gid = st.st_gid;
	why = read_all(f, fd);
	return why ? why : find_nul(f);
}

const char *
file_read(struct file *f, const char *path)
{
	/* Without O_NONBLOCK a FIFO would hold us up for ever. */
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	const char *why;

	*f = (struct file){ .text = NULL };
	if (fd < 0)
		return strerror(errno);
	why = read_open(f, fd);
	close(fd);
	if (why) {
		file_free(f);
		return why;
	}
	f->next = f->text;
	if (!strncmp(f->text, "\xef\xbb\xbf", 3))
		f->next += 3;
	if (!*f->next)
		f->next = NULL;
	return NULL;
}

char *
file_line(struct file *f)
{
	char *line = f->next;
	size_t n;

	if (!line)
		return NULL;
	n = strcspn(line, "\n");
	f->next = line[n] && line[n + 1] ? line + n + 1 : NULL;
	line[n] = 0;
	if (n > 0 && line[n - 1] == '\r')
		line[n - 1] = 0;
	f->line++;
	return line;
}

void
file_free(struct file *f)
{
	if (f->text)
		explicit_bzero(f->text, f->len);
	free(f->text);
	f->text = NULL;
}

char *
file_trim(char *s)
{
	size_t n;

	s += strspn(s, " \t");
	n = strlen(s);
	while (n > 0 && strchr(" \t", s[n - 1]))
		s[--n] = 0;
	return s;
}
