/* model - what the trees of topic.c are held against, too simple to be wrong. */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <string.h>

/* Section 4.7 read literally, level by level; the filter is a valid one. */
static inline bool
matches(const char *f, const char *t)
{
	size_t nf, nt;

	if (*t == '$' && (*f == '+' || *f == '#'))
		return false;
	for (;; f++, t++) {
		nf = strcspn(f, "/");
		nt = strcspn(t, "/");
		if (*f == '#')
			return true;
		if (*f != '+' && (nf != nt || memcmp(f, t, nf) != 0))
			return false;
		f += nf;
		t += nt;
		if (!*t)
			return !*f || strcmp(f, "/#") == 0;
		if (!*f)
			return false;
	}
}

#endif
