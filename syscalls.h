/* syscalls - what differs between processors for those who filter system calls.
 *
 * The numbers are those of <sys/syscall.h>; this header adds that a call which
 * the processor, the C library or the kernel's headers do not know has the
 * number SYSCALL_ABSENT, so that a list can name all of them. Nothing here
 * makes a call.
 */
#ifndef SYSCALLS_H
#define SYSCALLS_H

#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>

#define SYSCALL_ABSENT (-1)

/* SYSCALL_ARCH is the kernel's name for the processor and its convention for
 * calls (AUDIT_ARCH of <linux/audit.h>, which not every C library comes with),
 * 0 where it is not known here. syscall_result() has a call that a SIGSYS
 * stopped return value. */
#if defined __x86_64__ && !defined __ILP32__
#define SYSCALL_ARCH 0xc000003eu
static inline void
syscall_result(ucontext_t *u, int value)
{
	u->uc_mcontext.gregs[REG_RAX] = value;
}
#elif defined __aarch64__ && defined __AARCH64EL__
#define SYSCALL_ARCH 0xc00000b7u
static inline void
syscall_result(ucontext_t *u, int value)
{
	u->uc_mcontext.regs[0] = (unsigned long)value;
}
#elif defined __ARM_EABI__ && defined __ARMEL__
#define SYSCALL_ARCH 0x40000028u
static inline void
syscall_result(ucontext_t *u, int value)
{
	u->uc_mcontext.arm_r0 = (unsigned long)value;
}
#else
#define SYSCALL_ARCH 0u
static inline void
syscall_result(ucontext_t *u, int value)
{
	(void)u;
	(void)value;
}
#endif

#ifndef SYS_access
#define SYS_access SYSCALL_ABSENT
#endif
#ifndef SYS_chmod
#define SYS_chmod SYSCALL_ABSENT
#endif
#ifndef SYS_chown
#define SYS_chown SYSCALL_ABSENT
#endif
#ifndef SYS_clock_gettime
#define SYS_clock_gettime SYSCALL_ABSENT
#endif
#ifndef SYS_clock_gettime32
#define SYS_clock_gettime32 SYSCALL_ABSENT
#endif
#ifndef SYS_clock_gettime64
#define SYS_clock_gettime64 SYSCALL_ABSENT
#endif
#ifndef SYS_clock_nanosleep
#define SYS_clock_nanosleep SYSCALL_ABSENT
#endif
#ifndef SYS_clock_nanosleep_time64
#define SYS_clock_nanosleep_time64 SYSCALL_ABSENT
#endif
#ifndef SYS_clock_settime
#define SYS_clock_settime SYSCALL_ABSENT
#endif
#ifndef SYS_clone3
#define SYS_clone3 SYSCALL_ABSENT
#endif
#ifndef SYS_close_range
#define SYS_close_range SYSCALL_ABSENT
#endif
#ifndef SYS_dup2
#define SYS_dup2 SYSCALL_ABSENT
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 SYSCALL_ABSENT
#endif
#ifndef SYS_fcntl64
#define SYS_fcntl64 SYSCALL_ABSENT
#endif
#ifndef SYS_fork
#define SYS_fork SYSCALL_ABSENT
#endif
#ifndef SYS_fstat64
#define SYS_fstat64 SYSCALL_ABSENT
#endif
#ifndef SYS_fstatat64
#define SYS_fstatat64 SYSCALL_ABSENT
#endif
#ifndef SYS_ftruncate64
#define SYS_ftruncate64 SYSCALL_ABSENT
#endif
#ifndef SYS_futex_time64
#define SYS_futex_time64 SYSCALL_ABSENT
#endif
#ifndef SYS_getdents
#define SYS_getdents SYSCALL_ABSENT
#endif
#ifndef SYS_getegid32
#define SYS_getegid32 SYSCALL_ABSENT
#endif
#ifndef SYS_geteuid32
#define SYS_geteuid32 SYSCALL_ABSENT
#endif
#ifndef SYS_getgid32
#define SYS_getgid32 SYSCALL_ABSENT
#endif
#ifndef SYS_getrlimit
#define SYS_getrlimit SYSCALL_ABSENT
#endif
#ifndef SYS_gettimeofday
#define SYS_gettimeofday SYSCALL_ABSENT
#endif
#ifndef SYS_getuid32
#define SYS_getuid32 SYSCALL_ABSENT
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup SYSCALL_ABSENT
#endif
#ifndef SYS_link
#define SYS_link SYSCALL_ABSENT
#endif
#ifndef SYS__llseek
#define SYS__llseek SYSCALL_ABSENT
#endif
#ifndef SYS_lstat
#define SYS_lstat SYSCALL_ABSENT
#endif
#ifndef SYS_lstat64
#define SYS_lstat64 SYSCALL_ABSENT
#endif
#ifndef SYS_mkdir
#define SYS_mkdir SYSCALL_ABSENT
#endif
#ifndef SYS_mknod
#define SYS_mknod SYSCALL_ABSENT
#endif
#ifndef SYS_mmap
#define SYS_mmap SYSCALL_ABSENT
#endif
#ifndef SYS_mmap2
#define SYS_mmap2 SYSCALL_ABSENT
#endif
#ifndef SYS_newfstatat
#define SYS_newfstatat SYSCALL_ABSENT
#endif
#ifndef SYS_open
#define SYS_open SYSCALL_ABSENT
#endif
#ifndef SYS_openat2
#define SYS_openat2 SYSCALL_ABSENT
#endif
#ifndef SYS_pipe
#define SYS_pipe SYSCALL_ABSENT
#endif
#ifndef SYS_poll
#define SYS_poll SYSCALL_ABSENT
#endif
#ifndef SYS_ppoll_time64
#define SYS_ppoll_time64 SYSCALL_ABSENT
#endif
#ifndef SYS_readlink
#define SYS_readlink SYSCALL_ABSENT
#endif
#ifndef SYS_recv
#define SYS_recv SYSCALL_ABSENT
#endif
#ifndef SYS_rename
#define SYS_rename SYSCALL_ABSENT
#endif
#ifndef SYS_rseq
#define SYS_rseq SYSCALL_ABSENT
#endif
#ifndef SYS_send
#define SYS_send SYSCALL_ABSENT
#endif
#ifndef SYS_sigreturn
#define SYS_sigreturn SYSCALL_ABSENT
#endif
#ifndef SYS_stat
#define SYS_stat SYSCALL_ABSENT
#endif
#ifndef SYS_stat64
#define SYS_stat64 SYSCALL_ABSENT
#endif
#ifndef SYS_symlink
#define SYS_symlink SYSCALL_ABSENT
#endif
#ifndef SYS_time
#define SYS_time SYSCALL_ABSENT
#endif
#ifndef SYS_ugetrlimit
#define SYS_ugetrlimit SYSCALL_ABSENT
#endif
#ifndef SYS_unlink
#define SYS_unlink SYSCALL_ABSENT
#endif
#ifndef SYS_vfork
#define SYS_vfork SYSCALL_ABSENT
#endif

#endif
