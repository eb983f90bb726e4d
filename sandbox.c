#include "sandbox.h"
#include "log.h"
#include "syscalls.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

/* ---- the calls ---- */

#define NONE 0
#define B SANDBOX_BROKER
#define BS (SANDBOX_BROKER | SANDBOX_STORE)

/* Flags of clone() that make no process but only say where its number is put:
 * with them, and a signal for its end, it is fork(). */
#define FORK_FLAGS (0xffu | 0x00200000 | 0x01000000)

#define SET_SECCOMP 22                  /* prctl: one more filter */
#define NO_NEW_PRIVS 38

enum { EQUAL, CLEAR };   /* the argument is value; no bit of value is set in it */

enum {
	ANY,                    /* whatever the arguments are */
	LOCAL, IS_TERMINAL, IS_TERMINAL2, TERMINAL_SIZE, NO_CODE,
	FORK_ONLY, END_IT, DIE_WITH_PARENT, FILTER_MORE, ASK_ONLY,
};

/* Only the lower half of an argument is compared: all of these are ints and
 * flags of which the kernel looks at no more. */
static const struct limit {
	uint8_t test, arg;
	uint32_t value;
} limits[] = {
	[LOCAL] = { EQUAL, 0, AF_UNIX },
	[IS_TERMINAL] = { EQUAL, 1, TCGETS },
	[IS_TERMINAL2] = { EQUAL, 1, 0x802c542a },      /* TCGETS2 */
	[TERMINAL_SIZE] = { EQUAL, 1, TIOCGWINSZ },
	[NO_CODE] = { CLEAR, 2, PROT_EXEC },
	[FORK_ONLY] = { CLEAR, 0, ~FORK_FLAGS },
	[END_IT] = { EQUAL, 1, SIGKILL },
	[DIE_WITH_PARENT] = { EQUAL, 0, PR_SET_PDEATHSIG },
	[FILTER_MORE] = { EQUAL, 0, SET_SECCOMP },
	[ASK_ONLY] = { EQUAL, 2, 0 },
};

struct call {
	short nr;               /* SYSCALL_ABSENT: not on this processor */
	uint8_t roles;          /* that may make it; NONE: it has a name only */
	uint8_t limit;
};

/* The most frequent ones first. Several rows of one call: one must fit. */
#define CALLS								\
	MAY(BS, poll) MAY(BS, ppoll) MAY(BS, ppoll_time64) MAY(BS, read) \
	MAY(BS, write) MAY(BS, writev) MAY(BS, recvfrom) MAY(BS, recv)	\
	MAY(BS, sendto) MAY(BS, send) MAY(BS, fdatasync) MAY(BS, pwrite64) \
	MAY(BS, pwritev)						\
									\
	/* time */							\
	MAY(BS, clock_gettime) MAY(BS, clock_gettime32)			\
	MAY(BS, clock_gettime64) MAY(BS, gettimeofday) MAY(BS, time)	\
	MAY(BS, nanosleep) MAY(BS, clock_nanosleep)			\
	MAY(BS, clock_nanosleep_time64)					\
									\
	/* connections: what the listeners bring, and sockets of this machine \
	 * for syslog, the service manager and the helper */		\
	MAY(B, accept4) MAY(B, setsockopt) MAY(B, getsockopt)		\
	MAY(B, getsockname) MAY(B, getpeername) MAY(B, shutdown)	\
	MAY(B, readv) MAY(B, recvmsg) MAY(B, sendmsg) MAY(B, connect)	\
	ONLY(B, socket, LOCAL)				\
	ONLY(B, socketpair, LOCAL)				\
									\
	/* files; the filter cannot see which: that is for their owners */ \
	MAY(BS, openat) MAY(BS, open) MAY(BS, close)			\
	MAY(BS, fcntl) MAY(BS, fcntl64) MAY(BS, statx) MAY(BS, fstat)	\
	MAY(BS, newfstatat) MAY(BS, stat) MAY(BS, lstat) MAY(BS, fstat64) \
	MAY(BS, fstatat64) MAY(BS, stat64) MAY(BS, lstat64) MAY(BS, access) \
	MAY(BS, faccessat) MAY(BS, faccessat2) MAY(B, readlink)		\
	MAY(B, readlinkat) MAY(B, getcwd) MAY(BS, getdents64)		\
	MAY(BS, getdents) MAY(BS, lseek) MAY(BS, _llseek) MAY(BS, pread64) \
	MAY(BS, preadv) MAY(BS, fsync) MAY(BS, ftruncate)		\
	MAY(BS, ftruncate64) MAY(BS, fallocate) MAY(BS, rename)		\
	MAY(BS, renameat) MAY(BS, renameat2) MAY(BS, unlink)		\
	MAY(BS, unlinkat) MAY(B, mkdir) MAY(B, mkdirat) MAY(B, dup2)	\
	MAY(B, dup3) MAY(B, statfs) MAY(B, fstatfs)			\
	ONLY(BS, ioctl, IS_TERMINAL)				\
	ONLY(BS, ioctl, IS_TERMINAL2)				\
	ONLY(BS, ioctl, TERMINAL_SIZE)				\
									\
	/* memory, of which none becomes code */			\
	MAY(BS, brk) MAY(BS, munmap) MAY(BS, mremap) MAY(BS, madvise)	\
	ONLY(BS, mmap, NO_CODE)				\
	ONLY(BS, mmap2, NO_CODE)				\
	ONLY(BS, mprotect, NO_CODE) MAY(BS, futex)		\
	MAY(BS, futex_time64) MAY(BS, getrandom)			\
									\
	/* processes: copies of this one for the journal, and their end */ \
	ONLY(B, clone, FORK_ONLY) MAY(B, fork)		\
	MAY(BS, set_robust_list) MAY(BS, set_tid_address) MAY(BS, rseq)	\
	MAY(B, wait4) MAY(B, waitid) ONLY(B, kill, END_IT)	\
	MAY(BS, tgkill) ONLY(B, prctl, DIE_WITH_PARENT)	\
	ONLY(B, prctl, FILTER_MORE) MAY(BS, exit_group)	\
	MAY(BS, exit) MAY(BS, rt_sigreturn) MAY(BS, sigreturn)		\
	MAY(BS, rt_sigprocmask) MAY(BS, rt_sigaction)			\
	MAY(BS, restart_syscall) MAY(BS, sched_yield)			\
									\
	/* who and where am I */					\
	MAY(BS, getpid) MAY(BS, getppid) MAY(BS, gettid) MAY(B, getsid)	\
	MAY(BS, getuid) MAY(BS, geteuid) MAY(BS, getgid) MAY(BS, getegid) \
	MAY(BS, getuid32) MAY(BS, geteuid32) MAY(BS, getgid32)		\
	MAY(BS, getegid32)						\
	MAY(B, uname) MAY(B, sysinfo) MAY(BS, getrlimit) MAY(BS, ugetrlimit) \
	ONLY(BS, prlimit64, ASK_ONLY)		\
									\
	/* What nobody may, with names for the log. */			\
	NAME(execve) NAME(execveat) NAME(ptrace) NAME(clone3) NAME(vfork) \
	NAME(bind) NAME(listen) NAME(accept) NAME(pipe) NAME(pipe2)	\
	NAME(sendfile) NAME(splice) NAME(chroot) NAME(mount) NAME(umount2) \
	NAME(pivot_root) NAME(setns) NAME(unshare) NAME(setuid)		\
	NAME(setgid) NAME(setresuid) NAME(setresgid) NAME(capset)	\
	NAME(setsid) NAME(chdir) NAME(umask) NAME(chmod) NAME(fchmod)	\
	NAME(fchmodat) NAME(chown) NAME(fchown) NAME(fchownat) NAME(link) \
	NAME(linkat) NAME(symlink) NAME(symlinkat) NAME(mknod)		\
	NAME(mknodat) NAME(openat2) NAME(utimensat) NAME(bpf)		\
	NAME(perf_event_open) NAME(seccomp) NAME(process_vm_readv)	\
	NAME(process_vm_writev) NAME(memfd_create) NAME(userfaultfd)	\
	NAME(io_uring_setup) NAME(keyctl) NAME(init_module)		\
	NAME(finit_module) NAME(kexec_load) NAME(reboot) NAME(personality) \
	NAME(setrlimit) NAME(epoll_create1) NAME(eventfd2)		\
	NAME(timerfd_create) NAME(signalfd4) NAME(inotify_init1) NAME(shmat) \
	NAME(tkill) NAME(mlock) NAME(sigaltstack)			\
	NAME(sched_getaffinity) NAME(sched_setaffinity)

/* Not in terms of each other: some names are macros. */
#define MAY(who, call) { SYS_##call, who, ANY },
#define ONLY(who, call, limit) { SYS_##call, who, limit },
#define NAME(call) { SYS_##call, NONE, ANY },
static const struct call calls[] = { CALLS };
#undef MAY
#undef ONLY
#undef NAME

/* Their names, one behind the other: there is nothing to relocate. */
#define MAY(who, call) #call "\0"
#define ONLY(who, call, limit) #call "\0"
#define NAME(call) #call "\0"
static const char names[] = CALLS;

#define N_CALLS (sizeof calls / sizeof *calls)

/* ---- the filter ---- */

/* As the kernel has them since 3.5: <linux/filter.h> and <linux/seccomp.h> do
 * not come with every C library. */
struct instruction {
	uint16_t code;
	uint8_t jump_true, jump_false;  /* instructions skipped */
	uint32_t k;
};

struct program {
	unsigned short n;
	struct instruction *code;
};

enum { LOAD = 0x20, IF_EQUAL = 0x15, IF_SET = 0x45, RETURN = 0x06 };
enum { DATA_NR = 0, DATA_ARCH = 4, DATA_ARGS = 16 };

#define FILTER_MODE 2
#define KILL 0x80000000u        /* the thread alone before Linux 4.14 */
#define TRAP 0x00030000u
#define ALLOW 0x7fff0000u

#define INSTRUCTIONS_MAX (5 * N_CALLS + 5)

static void
add(struct program *p, uint16_t code, uint8_t jump_true, uint8_t jump_false,
    uint32_t k)
{
	p->code[p->n++] = (struct instruction){ code, jump_true, jump_false,
	    k };
}

/* Expects the number of the call in the accumulator, and leaves it there if
 * the row does not fit. */
static void
add_call(struct program *p, const struct call *c)
{
	const struct limit *l = &limits[c->limit];

	if (c->limit == ANY) {
		add(p, IF_EQUAL, 0, 1, (uint32_t)c->nr);
		add(p, RETURN, 0, 0, ALLOW);
		return;
	}
	add(p, IF_EQUAL, 0, 4, (uint32_t)c->nr);
	add(p, LOAD, 0, 0, DATA_ARGS + 8u * l->arg);
	add(p, l->test == EQUAL ? IF_EQUAL : IF_SET, l->test == CLEAR,
	    l->test == EQUAL, l->value);
	add(p, RETURN, 0, 0, ALLOW);
	add(p, LOAD, 0, 0, DATA_NR);
}

/* Numbers mean something else to calls made in the way of another processor
 * (32-bit ones of x86): nobody makes such calls by mistake, so they end the
 * process. Those of x32 have a bit in their numbers that none on the list has. */
static int
install(enum sandbox_role role)
{
	struct instruction code[INSTRUCTIONS_MAX];
	struct program p = { .code = code };

	add(&p, LOAD, 0, 0, DATA_ARCH);
	add(&p, IF_EQUAL, 1, 0, SYSCALL_ARCH);
	add(&p, RETURN, 0, 0, KILL);
	add(&p, LOAD, 0, 0, DATA_NR);
	for (size_t i = 0; i < N_CALLS; i++)
		if (calls[i].nr != SYSCALL_ABSENT && calls[i].roles & role)
			add_call(&p, &calls[i]);
	add(&p, RETURN, 0, 0, TRAP);
	return prctl(SET_SECCOMP, FILTER_MODE, &p, 0, 0);
}

/* ---- what was refused ---- */

#define KEPT 8                  /* calls between two turns that are named */

/* Shared with the forked processes, which cannot log. */
struct refused {
	atomic_uint n;
	struct {
		int nr;
		enum sandbox_role role;
	} call[KEPT];
};

static struct {
	struct refused *refused;        /* NULL: no filters */
	unsigned told;                  /* of refused->n */
	enum sandbox_role role;
} own;

/* Only stores: nothing else is safe here. */
static void
on_sigsys(int signo, siginfo_t *si, void *context)
{
	struct refused *r = own.refused;
	unsigned i;

	(void)signo;
	if (si->si_code <= 0)           /* from kill() */
		return;
	i = atomic_load(&r->n) % KEPT;
	r->call[i].nr = si->si_syscall;
	r->call[i].role = own.role;
	atomic_fetch_add(&r->n, 1);
	syscall_result(context, -ENOSYS);
}

static const char *
name_of(int nr)
{
	const char *name = names;

	for (size_t i = 0; i < N_CALLS; i++) {
		if (calls[i].nr == nr)
			return name;
		name += strlen(name) + 1;
	}
	return NULL;
}

static void
tell(int nr, enum sandbox_role role)
{
	const char *name = name_of(nr);
	char number[32];

	snprintf(number, sizeof number, "number %d", nr);
	log_error("Error: The sandbox refused the system call %s to %s, which "
	    "has no use for it. If that came with a new C library or kernel, "
	    "'sandbox false' helps until midge knows the call; if not, "
	    "somebody may have broken in: take this machine off the network.",
	    name ? name : number, role == SANDBOX_STORE ?
	    "the process that writes the journal" : "the broker");
}

void
sandbox_tell(void)
{
	struct refused *r = own.refused;
	unsigned n;

	if (!r || (n = atomic_load(&r->n)) == own.told)
		return;
	if (n - own.told > KEPT)
		own.told = n - KEPT;
	for (; own.told != n; own.told++)
		tell(r->call[own.told % KEPT].nr, r->call[own.told % KEPT].role);
}

/* ---- life ---- */

/* AddressSanitizer starts programs and looks at the process from another. */
extern void __asan_init(void) __attribute__((weak));

static const char *
why_not(void)
{
	if (SYSCALL_ARCH == 0)
		return "midge does not know the system calls of this processor";
	return __asan_init ?
	    "midge was built with a sanitizer, which needs more of them" : NULL;
}

void
sandbox_init(bool filters)
{
	struct sigaction sa = { .sa_sigaction = on_sigsys,
	    .sa_flags = SA_SIGINFO };
	const char *why = why_not();
	void *p;

	/* Linux before 3.5 has neither this nor filters. */
	prctl(NO_NEW_PRIVS, 1, 0, 0, 0);
	if (!filters)
		return;
	if (why) {
		log_info("System calls are not restricted: %s.", why);
		return;
	}
	p = mmap(NULL, sizeof *own.refused, PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		log_warning("Warning: System calls are not restricted: %s.",
		    strerror(errno));
		return;
	}
	own.refused = p;
	sigaction(SIGSYS, &sa, NULL);
}

void
sandbox_enter(enum sandbox_role role)
{
	sigset_t set;

	if (!own.refused)
		return;
	sigemptyset(&set);
	sigaddset(&set, SIGSYS);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	own.role = role;
	/* Forked processes do not log; the broker tells the same. */
	if (install(role) == 0 || role != SANDBOX_BROKER)
		return;
	if (errno == EINVAL || errno == ENOSYS)
		log_info("System calls are not restricted: this kernel has no "
		    "seccomp filters.");
	else
		log_warning("Warning: System calls are not restricted: %s.",
		    strerror(errno));
}
