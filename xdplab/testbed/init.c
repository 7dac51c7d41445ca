/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A guest's init: hands for the harness, and nothing else.  Emulated, a shell that
 * starts a process for each thing it does takes longer for a proof than the sample.
 *
 * Each serial port has one use, so that nothing has to be told apart:
 *   ttyS0  the kernel's log          ttyS2  commands in, their answers out
 *   ttyS1  the sample's output       ttyS3  what it says on standard error
 *
 * A command is a line "NUMBER COMMAND".  Its answer is written in one piece: a line
 * "answer NUMBER CODE", what it printed, and a line "end NUMBER".  A command is one of
 * those in @deeds below; or a program's absolute path and arguments; or a shell's.  A
 * program may read further lines, and must know their end.
 */
#define _GNU_SOURCE /* pipe2(), ppoll() */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int output, commands, errors; /* the ports */
static int input[2]; /* the sample's, which never ends */
static pid_t sample;
static sigset_t unblocked;

static void die(const char *what)
{
	perror(what); /* the console has it */
	exit(1); /* and the kernel panics */
}

/* what a shell says of how a process ended */
static int code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* in a child: become a program */
static void become(char **argv)
{
	sigprocmask(SIG_SETMASK, &unblocked, NULL);
	execv(argv[0], argv);
	dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* ---- deeds: each prints to @out, and gives an exit code */

static int complain(FILE *out, const char *deed, const char *about)
{
	fprintf(out, "%s: %s: %s\n", deed, about, strerror(errno));
	return 1;
}

/* cat FILE... */
static int cat(char **argv, FILE *out)
{
	char some[4096];
	int code = 0;

	for (char **file = argv + 1; *file; file++) {
		int fd = open(*file, O_RDONLY | O_CLOEXEC);
		ssize_t size = fd;

		while (size >= 0 && (size = read(fd, some, sizeof(some))) > 0)
			fwrite(some, 1, size, out);
		if (size < 0)
			code = complain(out, argv[0], *file);
		if (fd >= 0)
			close(fd);
	}
	return code;
}

/* insmod DIRECTORY: all modules that are in it, in the order of their names */
static int insmod(char **argv, FILE *out)
{
	struct dirent **found;
	int many = argv[1] ? scandir(argv[1], &found, NULL, alphasort) : -1;

	if (many < 0)
		return complain(out, argv[0], argv[1] ? argv[1] : "no directory");
	for (int i = 0; i < many; i++) {
		char path[PATH_MAX];
		int fd;
		long err;

		if (found[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", argv[1], found[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		err = syscall(SYS_finit_module, fd, "", 0);
		if (err)
			return complain(out, argv[0], path);
		close(fd);
	}
	return 0;
}

/*
 * start PROGRAM ARGUMENT...: the sample, in its directory.  A port is drained before
 * its end is told, so that whoever hears of it has had all output.
 */
static int start(char **argv, FILE *out)
{
	if (!argv[1] || sample)
		return fprintf(out, "%s: %s\n", argv[0], sample ? "one runs" : "what?"), 1;
	sample = fork();
	if (sample < 0)
		return complain(out, argv[0], argv[1]);
	if (!sample) {
		char *path = strdup(argv[1]);

		dup2(input[0], STDIN_FILENO);
		dup2(output, STDOUT_FILENO);
		dup2(errors, STDERR_FILENO);
		setsid();
		if (chdir(dirname(path)))
			perror(path);
		become(argv + 1);
	}
	return 0;
}

/* stop SIGNAL: tell the sample to end, by a signal's number */
static int stop(char **argv, FILE *out)
{
	if (!sample || !argv[1])
		return fprintf(out, "%s: %s\n", argv[0], sample ? "how?" : "none runs"), 1;
	return kill(sample, atoi(argv[1])) ? complain(out, argv[0], argv[1]) : 0;
}

/*
 * read_log: print what BPF programs log, on the sample's standard error, however often
 * it is asked for.  A line is written in one piece, so that those of the sample stay
 * whole.  Bytes are read as they come: what reads single ones, or by sendfile(2), holds
 * the last ones back.
 */
static int read_log(char **argv, FILE *out)
{
	static const char log[] = "/sys/kernel/tracing/trace_pipe";
	char *line = NULL;
	size_t room = 0;
	FILE *lines;

	if (!access(log, F_OK))
		return 0;
	if (mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL))
		return complain(out, argv[0], "tracefs");
	switch (fork()) {
	case -1:
		return complain(out, argv[0], log);
	case 0:
		lines = fopen(log, "r");
		while (lines && getline(&line, &room, lines) > 0)
			dprintf(errors, "trace_pipe: %s", line);
		_exit(0);
	}
	return 0;
}

static const struct {
	const char *name;
	int (*deed)(char **argv, FILE *out);
} deeds[] = {
	{ "cat", cat },	  { "insmod", insmod },	    { "read_log", read_log },
	{ "start", start }, { "stop", stop },
};

/* ---- commands */

/* a program that prints to @out */
static int run(char **argv, FILE *out)
{
	char some[4096];
	int printed[2], status;
	ssize_t size;
	pid_t child;

	if (pipe2(printed, O_CLOEXEC))
		return complain(out, argv[0], "pipe");
	child = fork();
	if (!child) {
		dup2(commands, STDIN_FILENO);
		dup2(printed[1], STDOUT_FILENO);
		dup2(printed[1], STDERR_FILENO);
		become(argv);
	}
	close(printed[1]);
	while ((size = read(printed[0], some, sizeof(some))) > 0)
		fwrite(some, 1, size, out);
	close(printed[0]);
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return complain(out, argv[0], "fork");
	return code_of(status);
}

/* a line's words, as a shell without any special characters but quotes has them */
static char **words(char *line)
{
	char **found = calloc(strlen(line) / 2 + 2, sizeof(*found)), **word = found, *to = line;

	for (char *from = line; *(from += strspn(from, " "));) {
		char quote = 0;

		*word++ = to;
		for (; *from && (quote || *from != ' '); from++) {
			if (*from == quote)
				quote = 0;
			else if (!quote && (*from == '\'' || *from == '"'))
				quote = *from;
			else
				*to++ = *from;
		}
		if (*from)
			from++;
		*to++ = '\0';
	}
	return found;
}

static int done(char *command, FILE *out)
{
	char *shell[] = { "/bin/sh", "-c", command, NULL };
	size_t length = strcspn(command, " ");

	for (size_t i = 0; i < sizeof(deeds) / sizeof(*deeds); i++)
		if (strlen(deeds[i].name) == length && !strncmp(deeds[i].name, command, length)) {
			char **argv = words(command);
			int code = deeds[i].deed(argv, out);

			free(argv);
			return code;
		}
	if (*command == '/' && !strpbrk(command, "|&;<>()$`\\*?[#~{")) {
		char **argv = words(command);
		int code = run(argv, out);

		free(argv);
		return code;
	}
	return run(shell, out);
}

static void write_all(int fd, const char *text, size_t size)
{
	for (ssize_t written; size; text += written, size -= written)
		if ((written = write(fd, text, size)) < 0)
			die("answer");
}

static void answer(char *line)
{
	char *command = line + strcspn(line, " "), *text, *whole;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	int code, length;

	if (!out)
		die("memory");
	if (*command)
		*command++ = '\0';
	code = done(command, out);
	fclose(out);
	while (size && text[size - 1] == '\n')
		size--;
	length = asprintf(&whole, "answer %s %d\n%.*s\nend %s\n", line, code, (int)size, text, line);
	if (length < 0)
		die("memory");
	write_all(commands, whole, length);
	free(whole);
	free(text);
}

/* by single bytes: further lines are a program's */
static char *next_line(void)
{
	static char line[1 << 16];
	size_t length = 0;

	while (length < sizeof(line) - 1) {
		if (read(commands, line + length, 1) != 1)
			die("commands");
		if (line[length] == '\n')
			break;
		length++;
	}
	line[length] = '\0';
	return line;
}

/* the sample, and what it and others have left behind */
static void bury(void)
{
	pid_t child;
	int status;

	while ((child = waitpid(-1, &status, WNOHANG)) > 0)
		if (child == sample) {
			sample = 0;
			tcdrain(output);
			tcdrain(errors);
			dprintf(commands, "ended %d\n", code_of(status));
		}
}

/* ---- the beginning */

/* a port, for bytes as they are in both directions */
static int port(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios line;

	if (fd < 0 || tcgetattr(fd, &line))
		die(path);
	cfmakeraw(&line);
	cfsetspeed(&line, B115200); /* an emulated one waits as long as a real one for more */
	if (tcsetattr(fd, TCSANOW, &line))
		die(path);
	return fd;
}

static void on_child(int number)
{
	(void)number; /* it ends ppoll() */
}

int main(void)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	const struct sigaction noted = { .sa_handler = on_child };
	struct pollfd heard = { .events = POLLIN };
	sigset_t blocked;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL); /* samples may pin what they keep */
	output = port("/dev/ttyS1");
	commands = port("/dev/ttyS2");
	errors = port("/dev/ttyS3");
	if (pipe2(input, O_CLOEXEC))
		die("pipe");
	setrlimit(RLIMIT_MEMLOCK, &unlimited); /* kernels before v5.11 charge BPF maps to it */
	setenv("PATH", "/sbin:/usr/sbin:/bin:/usr/bin", 1);

	/* a child that ends is noticed in ppoll(), and nowhere else */
	sigaction(SIGCHLD, &noted, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &unblocked);

	write_all(commands, "ready\n", 6);
	heard.fd = commands;
	for (;;) {
		if (ppoll(&heard, 1, NULL, &unblocked) > 0)
			answer(next_line());
		bury();
	}
}
