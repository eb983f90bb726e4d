/* fuzz - what the fuzzers of whole connections share: their input, read byte by
 * byte, and random bytes that are the same in each run. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
	const uint8_t *p;
	size_t left;
} in;

/* 0 when the input is at its end. */
static uint8_t
byte(void)
{
	if (in.left == 0)
		return 0;
	in.left--;
	return *in.p++;
}

static uint32_t noise_state;    /* each run begins with the same one */

static uint8_t
noise(void)
{
	noise_state = noise_state * 1664525u + 1013904223u;
	return (uint8_t)(noise_state >> 24);
}

/* In place of libc's. */
ssize_t
getrandom(void *p, size_t n, unsigned flags)
{
	(void)flags;
	for (size_t i = 0; i < n; i++)
		((uint8_t *)p)[i] = noise();
	return (ssize_t)n;
}

#endif
