#include "passwd.h"
#include "file.h"
#include "mqtt.h"
#include "pwhash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define PASSWORD_MAX 65535      /* what MQTT can carry */

struct job {
	bool create, batch, remove, update;
	uint32_t rounds;        /* 0: plain SHA-512 */
	char *file, *user;
	char *password;         /* NULL: not known yet */
	bool found;             /* the user's line was met */
};

static const char usage[] =
    "%s makes and changes the password file of the broker.\n\n"
    "Usage: %s [-H HASH] [-I N] [-c | -D] FILE USER\n"
    "       %s [-H HASH] [-I N] [-c] -b FILE USER PASSWORD\n"
    "       %s [-H HASH] [-I N] -U FILE\n\n"
    "  -b       take the password from the command line, where others can see "
    "it\n"
    "  -c       make a new file, in place of an old one; FILE - is stdout\n"
    "  -D       delete the user\n"
    "  -H HASH  sha512-pbkdf2, the default, or sha512, for Mosquitto 1.5 and "
    "older\n"
    "  -I N     rounds of sha512-pbkdf2, %d without it; more make guessing\n"
    "           slower, and each login\n"
    "  -U       hash the passwords of a file that still has plain ones\n";

/* One line on stderr; the exit code. */
static int __attribute__((format(printf, 1, 2)))
complain(const char *fmt, ...)
{
	va_list ap;

	fputs("Error: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return 1;
}

/* ---- passwords ---- */

/* Reads a line without its end, not shown on a terminal. The caller frees it.
 * NULL: there is none. */
static char *
ask(const char *prompt)
{
	struct termios old, quiet;
	bool tty = tcgetattr(STDIN_FILENO, &old) == 0;
	char *line = malloc(PASSWORD_MAX + 2), *got;

	if (!line)
		return NULL;
	if (tty) {
		quiet = old;
		quiet.c_lflag &= ~(tcflag_t)ECHO;
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet);
	}
	fputs(prompt, stdout);
	fflush(stdout);
	got = fgets(line, PASSWORD_MAX + 2, stdin);
	if (tty)
		tcsetattr(STDIN_FILENO, TCSAFLUSH, &old);
	fputc('\n', stdout);
	if (!got) {
		free(line);
		return NULL;
	}
	line[strcspn(line, "\r\n")] = 0;
	return line;
}

static void
forget(char *password)
{
	if (password)
		explicit_bzero(password, strlen(password));
	free(password);
}

/* Asks twice. 0, or the exit code. */
static int
ask_password(struct job *j)
{
	char *again;
	bool same;

	j->password = ask("Password: ");
	if (!j->password || !*j->password)
		return complain("Empty password.");
	again = ask("Reenter password: ");
	same = again && strcmp(again, j->password) == 0;
	forget(again);
	if (same)
		return 0;
	complain("Passwords do not match.");
	return 2;
}

/* ---- lines ---- */

/* "USER:HASH"; false: no random bytes, or not written. */
static bool
put_user(const struct job *j, FILE *out, const char *user,
    const char *password)
{
	struct pwhash h = { .rounds = j->rounds, .salt_len = PWHASH_SALT };
	struct pwwork w;
	char text[PWHASH_TEXT];

	if (getrandom(h.salt, h.salt_len, 0) != h.salt_len)
		return false;
	pwwork_start(&w, &h, password, strlen(password));
	pwwork_go(&w, UINT32_MAX);
	memcpy(h.hash, w.sum, sizeof h.hash);
	explicit_bzero(&w, sizeof w);
	pwhash_format(&h, text);
	return fprintf(out, "%s:%s\n", user, text) > 0;
}

/* Damaged or not: to hash a hash would help nobody. */
static bool
is_hashed(const char *text)
{
	return !strncmp(text, "$6$", 3) || !strncmp(text, "$7$", 3) ||
	    !strncmp(text, "$argon2", 7);
}

/* One line of the old file into the new one; the user's is changed or left
 * out. */
static bool
put_line(struct job *j, FILE *out, char *line)
{
	char *colon = strchr(line, ':'), *user, *text;

	if (line[0] == '#' || !colon)
		return fprintf(out, "%s\n", line) > 0;
	*colon = 0;
	user = file_trim(line);
	text = file_trim(colon + 1);
	if (j->update && !is_hashed(text))
		return put_user(j, out, user, text);
	if (j->update || strcmp(user, j->user))
		return fprintf(out, "%s:%s\n", user, text) > 0;
	if (j->found || j->remove) {
		j->found = true;
		return true;
	}
	j->found = true;
	return put_user(j, out, user, j->password);
}

/* ---- files ---- */

/* The whole new file. 0, or the exit code. */
static int
put_file(struct job *j, FILE *out, struct file *old)
{
	char *line, *s;

	while ((line = file_line(old))) {
		s = line + strspn(line, " \t");
		if (*s && line[0] != '#' && !strchr(line, ':'))
			return complain("Corrupt password file at line %u.",
			    old->line);
		if (!put_line(j, out, line))
			return complain("%s", strerror(errno));
	}
	if (j->remove && !j->found) {
		fprintf(stderr, "Warning: User %s not found in password "
		    "file.\n", j->user);
		return 1;
	}
	if (j->remove || j->update || j->found)
		return 0;
	return put_user(j, out, j->user, j->password) ? 0 :
	    complain("%s", strerror(errno));
}

/* Owner and mode of the file before; 0600 if there was none. */
static bool
take_over(int fd, const struct file *old, bool exists)
{
	struct stat st;

	if (!exists)
		return true;
	if (fstat(fd, &st) < 0)
		return false;
	if ((st.st_uid != old->uid || st.st_gid != old->gid) &&
	    fchown(fd, old->uid, old->gid) < 0)
		return false;
	return fchmod(fd, old->mode) == 0;
}

/* Writes it beside the old one and puts it in its place, so that there is
 * always a whole one. */
static int
replace(struct job *j, const char *path, struct file *old, bool exists)
{
	char *name;
	FILE *out = NULL;
	int fd = -1, rc = 1;

	if (asprintf(&name, "%s.XXXXXX", path) < 0)
		return complain("%s", strerror(ENOMEM));
	fd = mkostemp(name, O_CLOEXEC);
	if (fd >= 0)
		out = fdopen(fd, "w");
	if (!out) {
		rc = complain("Unable to open password file %s for writing. %s.",
		    name, strerror(errno));
		if (fd >= 0)
			close(fd);
		free(name);
		return rc;
	}
	rc = put_file(j, out, old);
	if (rc == 0 && (!take_over(fd, old, exists) || fflush(out) != 0 ||
	    fsync(fd) < 0 || rename(name, path) < 0))
		rc = complain("Unable to write password file %s. %s.", path,
		    strerror(errno));
	if (rc != 0)
		unlink(name);
	fclose(out);
	free(name);
	return rc;
}

static int
change(struct job *j)
{
	struct file old;
	char *real = realpath(j->file, NULL);   /* a link stays one */
	const char *path = real ? real : j->file, *why;
	bool exists;
	int rc;

	why = file_read(&old, path);
	exists = !why;
	if (why && (!j->create || real)) {
		rc = complain("Unable to open password file %s. %s.", j->file,
		    why);
		free(real);
		return rc;
	}
	if (j->create)
		old.next = NULL;        /* nothing of it is kept */
	rc = replace(j, path, &old, exists);
	file_free(&old);
	free(real);
	return rc;
}

static int
work(struct job *j)
{
	int rc;

	if (j->create && !strcmp(j->file, "-"))
		return put_user(j, stdout, j->user, j->password) &&
		    fflush(stdout) == 0 ? 0 : complain("%s", strerror(errno));
	rc = change(j);
	if (rc == 0 && !j->remove && !j->update)
		printf("%s password for user %s\n", j->found ? "Updating" :
		    "Adding", j->user);
	return rc;
}

/* ---- the command line ---- */

static const char *
user_fault(const char *user)
{
	size_t n = strlen(user);

	if (n == 0)
		return "Username must not be empty.";
	if (n > UINT16_MAX)
		return "Username must not be longer than 65535 bytes.";
	if (strchr(user, ':'))
		return "Username must not contain the ':' character.";
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)user[i] < 32 || user[i] == 127)
			return "Username must not contain control characters.";
	if (!mqtt_utf8_valid((const uint8_t *)user, n))
		return "Username must be UTF-8.";
	if (user[0] == '#' || user[0] == ' ' || user[n - 1] == ' ')
		return "Username must not begin with '#' or a blank, nor end "
		    "with one.";
	return NULL;
}

static int
set_hash(struct job *j, const char *name)
{
	if (!strcmp(name, "sha512"))
		j->rounds = 0;
	else if (!strncmp(name, "argon2", 6))
		return complain("Hash type '%s' is not supported, use "
		    "sha512-pbkdf2.", name);
	else if (strcmp(name, "sha512-pbkdf2"))
		return complain("Unknown hash type '%s'", name);
	return 0;
}

static int
set_rounds(uint32_t *rounds, const char *arg)
{
	char *end;
	long n = strtol(arg, &end, 10);

	if (*end || n < 1 || n > PWHASH_ROUNDS_MAX)
		return complain("Number of iterations must be from 1 to %d.",
		    PWHASH_ROUNDS_MAX);
	*rounds = (uint32_t)n;
	return 0;
}

/* Reads the flags; *next is the first argument behind them. 0, or the exit
 * code. */
static int
read_flags(struct job *j, int argc, char **argv, int *next)
{
	const char *hash = "sha512-pbkdf2";
	int i, rc = 0;

	j->rounds = PWHASH_ROUNDS;
	for (i = 1; i < argc && rc == 0 && argv[i][0] == '-' && argv[i][1];
	    i++) {
		if (!strcmp(argv[i], "-b"))
			j->batch = true;
		else if (!strcmp(argv[i], "-c"))
			j->create = true;
		else if (!strcmp(argv[i], "-D"))
			j->remove = true;
		else if (!strcmp(argv[i], "-U"))
			j->update = true;
		else if (!strcmp(argv[i], "-H") && i + 1 < argc)
			hash = argv[++i];
		else if (!strcmp(argv[i], "-I") && i + 1 < argc)
			rc = set_rounds(&j->rounds, argv[++i]);
		else if (!strcmp(argv[i], "-H") || !strcmp(argv[i], "-I"))
			rc = complain("%s needs an argument.", argv[i]);
		else
			rc = complain("Unknown option '%s'. Try --help.",
			    argv[i]);
	}
	*next = i;
	return rc ? rc : set_hash(j, hash);
}

static int
check_flags(const struct job *j)
{
	if (j->create && j->remove)
		return complain("-c and -D cannot be used together.");
	if (j->create && j->update)
		return complain("-c and -U cannot be used together.");
	if (j->remove && j->update)
		return complain("-D and -U cannot be used together.");
	if (j->batch && j->remove)
		return complain("-b and -D cannot be used together.");
	if (j->batch && j->update)
		return complain("-b and -U cannot be used together.");
	return 0;
}

static int
run(struct job *j, int n, char **args)
{
	int want = j->update ? 1 : j->batch ? 3 : 2, rc;
	const char *why;

	if (n != want)
		return complain(n > want ? "There is an argument too many. Try "
		    "--help." : j->update ? "-U needs the password file." :
		    j->batch ? "-b needs password file, username and password."
		    : "Password file or username missing. Try --help.");
	j->file = args[0];
	j->user = want > 1 ? args[1] : NULL;
	why = j->user ? user_fault(j->user) : NULL;
	if (why)
		return complain("%s", why);
	if (want == 3 && !*args[2])
		return complain("Empty password.");
	if (want == 3 && strlen(args[2]) > PASSWORD_MAX)
		return complain("The password is too long.");
	if (want == 3)
		j->password = strdup(args[2]);
	rc = want == 2 && !j->remove ? ask_password(j) : 0;
	if (rc == 0 && want > 1 && !j->remove && !j->password)
		rc = complain("%s", strerror(ENOMEM));
	if (rc == 0)
		rc = work(j);
	forget(j->password);
	return rc;
}

int
passwd_main(int argc, char **argv)
{
	struct job j = { .create = false };
	const char *me = argv[0];
	int first, rc;

	if (argc == 1 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		printf(usage, me, me, me, me, PWHASH_ROUNDS);
		return argc == 1;
	}
	rc = read_flags(&j, argc, argv, &first);
	if (rc == 0)
		rc = check_flags(&j);
	return rc ? rc : run(&j, argc - first, argv + first);
}
