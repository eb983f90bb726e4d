/* passwd - the tool that makes password files: the twin of mosquitto_passwd,
 * with its flags, files and messages.
 *
 * A program of its own inside the binary: it ends without the broker ever
 * having run, and speaks on stdout and stderr.
 */
#ifndef PASSWD_H
#define PASSWD_H

/* Runs it; argv[0] is the name to be shown. The exit code: 0, 1, or 2 if the
 * two passwords that were typed differ. */
int passwd_main(int argc, char **argv);

#endif
