/* sandbox - what the process can do no more once it has started.
 *
 * Whoever finds a way to run code of his own in the broker shall find little to
 * run it for: no program is started, no new socket reaches the network, no
 * memory becomes code. A seccomp filter sees to that, made here from a list of
 * calls (sandbox.c has it). A call that is not on the list is not made: it
 * returns ENOSYS, of which C libraries know a way around where there is one,
 * and the log has a line with its name. The process is not ended: after an
 * update of the C library a broker that lacks a call is better than none, and
 * who broke in gains nothing by going on asking.
 *
 * The one module with state of its own, as a signal handler has no arguments.
 * Where the kernel or the processor has no filters the functions do nothing.
 */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>

enum sandbox_role {
	SANDBOX_BROKER = 1,
	SANDBOX_STORE = 2,      /* the journal's processes: files only */
};

/* For the start: from here on no program that is started has more rights than
 * this process. With filters, makes ready for sandbox_enter, here and in
 * processes that are forked later; without, sandbox_enter does nothing. */
void sandbox_init(bool filters);

/* For good: only the calls of this role, and among them those of the roles
 * entered before; a forked process begins with those of the one that made it.
 * The broker's own logs if it is not possible. Not to be followed by blocking
 * SIGSYS, which would make a refusal end the process. */
void sandbox_enter(enum sandbox_role role);

/* Logs which calls were refused since the last time, here and in the forked
 * processes. For the broker, each turn. */
void sandbox_tell(void);

#endif
