/* check - looks at a configuration as the broker would, and tells all that is
 * wrong or doubtful at once, each with what mends it.
 *
 * Starts nothing and changes nothing: ports are bound and given back, no file
 * is made. One function per area, and check_all has their list. Called instead
 * of the broker, so it may wait.
 */
#ifndef CHECK_H
#define CHECK_H

/* 'midge check': argv[0] is "check", options of the command line follow. What
 * is found goes to stdout. The exit code: 0 nothing, 1 doubtful things only, 3
 * the broker would not start so. */
int check_main(int argc, char **argv);

/* '--test-config', with the whole command line. What is found goes to stderr.
 * The exit code: 0 or 3. */
int check_test(int argc, char **argv);

#endif
