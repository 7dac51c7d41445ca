/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What an XDP program that is loaded makes of frames: bpf(2)'s BPF_PROG_TEST_RUN,
 * without a network.  It calls the kernel by itself, not through libbpf, so that
 * one binary does on every kernel since v4.19, and can be linked statically.
 *
 * test_run verdicts PROG_ID [FILE]
 *	Frames in a file or on standard input, one a line in hexadecimal; for each a line on
 *	standard output: what the program returned, a number, or "refused ERRNO
 *	WORDS" where the kernel doesn't run it.  A line "flush" flushes the output,
 *	a line "end" is the end, for who can't close what it writes to.
 */
#define _GNU_SOURCE /* getline() */
#include <errno.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* the kernel minds what it doesn't know of, unless it is zero: so all of it is */
static long bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	return syscall(__NR_bpf, command, attr, sizeof(*attr));
}

static int open_program(const char *id)
{
	union bpf_attr attr;
	int fd;

	memset(&attr, 0, sizeof(attr));
	attr.prog_id = strtoul(id, NULL, 10);
	fd = bpf(BPF_PROG_GET_FD_BY_ID, &attr);
	if (fd < 0) {
		fprintf(stderr, "program %s can't be opened: %s\n", id, strerror(errno));
		exit(1);
	}
	return fd;
}

/* the value of a hexadecimal digit; -1: it is none */
static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* hexadecimal becomes bytes, in the same place; how many, -1 if it isn't hexadecimal */
static long unhex(char *line, size_t length)
{
	size_t i;

	if (length % 2)
		return -1;
	for (i = 0; i < length; i += 2) {
		int high = digit(line[i]), low = digit(line[i + 1]);

		if (high < 0 || low < 0)
			return -1;
		line[i / 2] = high << 4 | low;
	}
	return length / 2;
}

static int verdicts(int program)
{
	union bpf_attr attr;
	char *line = NULL;
	size_t room = 0;
	ssize_t length;
	long size;

	while ((length = getline(&line, &room, stdin)) > 0) {
		length -= line[length - 1] == '\n';
		line[length] = '\0';
		if (!strcmp(line, "end"))
			break;
		if (!strcmp(line, "flush")) {
			fflush(stdout);
			continue;
		}
		size = unhex(line, length);
		if (size < 0) {
			fprintf(stderr, "not hexadecimal: %s\n", line);
			return 2;
		}
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = program;
		attr.test.data_in = (unsigned long)line;
		attr.test.data_size_in = size;
		if (bpf(BPF_PROG_TEST_RUN, &attr))
			printf("refused %d %s\n", errno, strerror(errno));
		else
			printf("%u\n", attr.test.retval);
	}
	return ferror(stdin) || fflush(stdout);
}

static const struct {
	const char *name;
	int (*run)(int program);
} verbs[] = {
	{ "verdicts", verdicts },
};

int main(int argc, char **argv)
{
	static char output[1 << 16];
	size_t i;

	setvbuf(stdout, output, _IOFBF, sizeof(output));
	if (argc == 4 && !freopen(argv[3], "r", stdin)) {
		perror(argv[3]);
		return 1;
	}
	for (i = 0; (argc == 3 || argc == 4) && i < sizeof(verbs) / sizeof(*verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(open_program(argv[2]));
	fprintf(stderr, "usage: %s verdicts PROG_ID [FILE]\n", argv[0]);
	return 2;
}
