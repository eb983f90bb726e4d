/* Put before the broker with LD_PRELOAD, this makes a system call that the
 * broker never makes, named by FORBIDDEN, within a call of the C library that
 * it does make: accept4() in the broker, rename() in the journal's processes.
 * What came of it is written to the file FORBIDDEN_RESULT. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* In a process of its own, as it replaces the program. */
static long
start_program(void)
{
	char *const argv[] = { "/bin/true", NULL };
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		syscall(SYS_execve, argv[0], argv, argv + 1);
		_exit(errno);
	}
	if (pid < 0)
		return -1;
	waitpid(pid, &status, 0);
	errno = WEXITSTATUS(status);
	return errno ? -1 : 0;
}

static long
forbidden(const char *name)
{
	long pid;

	if (!strcmp(name, "execve"))
		return start_program();
	if (!strcmp(name, "socket"))
		return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
	if (!strcmp(name, "packet"))
		return syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0);
	if (!strcmp(name, "unix"))
		return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
	if (!strcmp(name, "ptrace"))
		return syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0);
	if (!strcmp(name, "mmap"))
		return syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!strcmp(name, "kill"))
		return syscall(SYS_kill, getpid(), SIGCONT);
	if (!strcmp(name, "clone")) {
		pid = syscall(SYS_clone, CLONE_FS | SIGCHLD, 0, 0, 0, 0);
		if (pid == 0)
			_exit(0);
		return pid < 0 ? pid : waitpid((pid_t)pid, NULL, 0);
	}
	if (!strcmp(name, "getpgid"))
		return syscall(SYS_getpgid, 0);
#ifdef __x86_64__
	if (!strcmp(name, "x32"))
		return syscall(0x40000000 | SYS_getpid);
	if (!strcmp(name, "int80")) {
		long r;

		__asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory");
		return r;
	}
#endif
	return 0;
}

static void
attempt(void)
{
	const char *name = getenv("FORBIDDEN");
	char line[64];
	int fd, n;
	long r;

	r = forbidden(name);
	n = snprintf(line, sizeof line, "%s\n", r >= 0 ? "done" :
	    errno == ENOSYS ? "ENOSYS" : strerror(errno));
	fd = open(getenv("FORBIDDEN_RESULT"), O_WRONLY | O_CREAT | O_APPEND,
	    0666);
	if (write(fd, line, (size_t)n) < 0)
		abort();
	close(fd);
}

int
accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	int r = (int)syscall(SYS_accept4, fd, addr, len, flags);

	if (r >= 0 && !getenv("FORBIDDEN_IN_STORE"))
		attempt();
	return r;
}

int
rename(const char *from, const char *to)
{
	if (getenv("FORBIDDEN_IN_STORE"))
		attempt();
	return (int)syscall(SYS_rename, from, to);
}
