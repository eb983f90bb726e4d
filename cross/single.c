/* single - what musl does because of threads, for a program that has one.
 *
 * Linked ahead of libc.a, in place of what stops all other threads while one of
 * them changes its user or its limits, and of the lock between fork() and their
 * creation: 3 kB. Should midge ever have threads, this file has to go.
 */
void __synccall(void (*call)(void *), void *arg);
void __inhibit_ptc(void);
void __release_ptc(void);

void
__synccall(void (*call)(void *), void *arg)
{
	call(arg);
}

void
__inhibit_ptc(void)
{
}

void
__release_ptc(void)
{
}
