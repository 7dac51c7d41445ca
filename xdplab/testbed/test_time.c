/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How long an XDP program that is loaded takes for a frame: bpf(2)'s BPF_PROG_TEST_RUN,
 * repeated, by the kernel's own clock.
 *
 * test_time CPU
 *	On that CPU, for each line of standard input a line on standard output:
 *	fill MAP VALUE COUNT
 *		put the first COUNT addresses of a row into a per-CPU hash, all with VALUE
 *	time PROG REPEAT FIRST COUNT FRAME
 *		the verdict and the nanoseconds for a FRAME, in hexadecimal, whose source is
 *		one of COUNT addresses of that row from FIRST on, another one each time; as it
 *		is if COUNT is 0.  PROG 0 drops all.  The verdict is -1 if it wasn't always the
 *		same.  The nanoseconds are those of the fastest fiftieth of the runs: whatever
 *		else the machine does only adds.
 *
 * A repeated run is given the same bytes again.  So that not one address is asked for
 * again and again, whose cache lines are warm then, a small program of our own writes an
 * address into the frame and calls the one that is timed (bpf_tail_call); what it takes
 * itself is seen when it calls the program that drops all.  It keeps no list: the row of
 * addresses is a sequence that can be reckoned (row()), or reading the list would be timed
 * too.  Even so the CPU begins a run while it still waits for the memory of the one before,
 * so that random addresses cost somewhat less here than of packets that come one by one.
 */
#define _GNU_SOURCE /* sched_setaffinity() */
#include <errno.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	SOURCE_AT = 12, /* in an IPv4 header */
	LARGEST = 256, /* bytes of a frame */
	TRIES = 64, /* runs before the timed ones */
	PARTS = 50, /* of the timed ones */
	REST = 2000, /* microseconds between parts: what disturbs one goes on for longer */
	BATCH = 1 << 16,
};

static const __u32 step = 2654435761u, offset = 12345; /* the row: no two are the same */

static __u32 row(__u32 i)
{
	return i * step + offset;
}

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void fail(const char *format, ...)
{
	va_list given;

	va_start(given, format);
	vfprintf(stderr, format, given);
	va_end(given);
	fputc('\n', stderr);
	exit(1);
}

/* the kernel minds what it doesn't know of, unless it is zero: so all of it is */
static long bpf(enum bpf_cmd command, union bpf_attr *attr, const char *what)
{
	long result = syscall(__NR_bpf, command, attr, sizeof(*attr));

	if (result < 0)
		fail("%s: %s", what, strerror(errno));
	return result;
}

static int open_program(__u32 id)
{
	union bpf_attr attr = { .prog_id = id };

	return bpf(BPF_PROG_GET_FD_BY_ID, &attr, "the program can't be opened");
}

/* what is written in a file of /proc/sys; -1 if it isn't there */
static int setting(const char *path)
{
	FILE *file = fopen(path, "re");
	int value = -1;

	if (file && fscanf(file, "%d", &value) != 1)
		value = -1;
	if (file)
		fclose(file);
	return value;
}

/* ---- programs of our own */

#define INSN(op, to, from, where, value)                                                        \
	((struct bpf_insn){ .code = op, .dst_reg = to, .src_reg = from, .off = where, .imm = value })
#define MOVE(to, from) INSN(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)
#define SET(to, value) INSN(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value)
#define CALL(helper) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define EXIT INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

static int load(const struct bpf_insn *code, int length, int attach_type)
{
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_XDP,
		.insns = (unsigned long)code,
		.insn_cnt = length,
		.license = (unsigned long)"GPL",
		.expected_attach_type = attach_type,
	};

	return syscall(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}

static int load_drop(int attach_type)
{
	const struct bpf_insn code[] = { SET(0, XDP_DROP), EXIT };

	return load(code, sizeof(code) / sizeof(*code), attach_type);
}

/* a program that writes one of the addresses to @at of the packet, and calls that in @calls */
static int load_caller(int calls, __u32 first, __u32 count, int at, int attach_type)
{
	const struct bpf_insn code[] = {
		MOVE(6, 1),
		CALL(BPF_FUNC_get_prandom_u32),
		INSN(BPF_ALU | BPF_MOV | BPF_X, 0, 0, 0, 0), /* 32 bits of it */
		SET(1, count),
		INSN(BPF_ALU64 | BPF_MUL | BPF_X, 0, 1, 0, 0),
		INSN(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 32), /* from 0 to count - 1 */
		INSN(BPF_ALU64 | BPF_ADD | BPF_K, 0, 0, 0, first),
		INSN(BPF_ALU | BPF_MUL | BPF_K, 0, 0, 0, step),
		INSN(BPF_ALU | BPF_ADD | BPF_K, 0, 0, 0, offset),
		INSN(BPF_LDX | BPF_MEM | BPF_W, 2, 6, 0, 0), /* the packet's beginning */
		INSN(BPF_LDX | BPF_MEM | BPF_W, 3, 6, 4, 0), /* and end */
		MOVE(4, 2),
		INSN(BPF_ALU64 | BPF_ADD | BPF_K, 4, 0, 0, at + 4),
		INSN(BPF_JMP | BPF_JGT | BPF_X, 4, 3, 1, 0),
		INSN(BPF_STX | BPF_MEM | BPF_W, 2, 0, at, 0),
		MOVE(1, 6),
		INSN(BPF_LD | BPF_DW | BPF_IMM, 2, BPF_PSEUDO_MAP_FD, 0, calls),
		INSN(0, 0, 0, 0, 0),
		SET(3, 0),
		CALL(BPF_FUNC_tail_call),
		SET(0, XDP_ABORTED),
		EXIT,
	};

	return load(code, sizeof(code) / sizeof(*code), attach_type);
}

/*
 * A program can call only such as were loaded for the same kind of attachment: BPF_XDP, as
 * libbpf says since v5.9, or none.
 */
static int calling(__u32 program, __u32 first, __u32 count, int at)
{
	enum { ATTACH_XDP = 37 };
	static const int types[] = { ATTACH_XDP, 0 };
	size_t i;

	for (i = 0; i < sizeof(types) / sizeof(*types); i++) {
		union bpf_attr array = { .map_type = BPF_MAP_TYPE_PROG_ARRAY, .key_size = 4,
					 .value_size = 4, .max_entries = 1 };
		int calls = bpf(BPF_MAP_CREATE, &array, "an array of programs"), caller;
		int called = program ? open_program(program) : load_drop(types[i]);
		__u32 key = 0;
		union bpf_attr put = { .map_fd = calls, .key = (unsigned long)&key,
				       .value = (unsigned long)&called };

		caller = load_caller(calls, first, count, at, types[i]);
		if (caller >= 0 && !syscall(__NR_bpf, BPF_MAP_UPDATE_ELEM, &put, sizeof(put)))
			return caller;
	}
	fail("no program of ours can call program %u: %s", program, strerror(errno));
}

/* ---- requests */

/* how many CPUs there can be, with gaps among them */
static int possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
	char text[256] = "";
	size_t length = file ? fread(text, 1, sizeof(text) - 1, file) : 0;

	if (file)
		fclose(file);
	while (length && (text[length - 1] == '\n' || (text[length - 1] >= '0' && text[length - 1] <= '9')))
		length--;
	return atoi(text + length) + 1; /* the last number is the highest */
}

static void fill(__u32 map_id, __u64 value, __u32 count)
{
	union bpf_attr open = { .map_id = map_id };
	int map = bpf(BPF_MAP_GET_FD_BY_ID, &open, "the map can't be opened");
	int cpus = possible_cpus(); /* a value for each */
	__u32 *keys = calloc(BATCH, sizeof(*keys)), done, i;
	__u64 *values = calloc((size_t)BATCH * cpus, sizeof(*values));

	for (i = 0; i < (__u32)BATCH * cpus; i++)
		values[i] = value;
	for (done = 0; done < count; done += BATCH) {
		__u32 some = count - done < BATCH ? count - done : BATCH;
		union bpf_attr attr = { .batch = { .keys = (unsigned long)keys,
						   .values = (unsigned long)values,
						   .count = some, .map_fd = map } };

		for (i = 0; i < some; i++)
			keys[i] = row(done + i);
		bpf(BPF_MAP_UPDATE_BATCH, &attr, "the map doesn't take the addresses");
	}
	free(keys);
	free(values);
	printf("%u\n", count);
}

static int run(int program, unsigned char *frame, __u32 size, __u32 repeat, __u32 *nanoseconds)
{
	union bpf_attr attr = { .test = { .prog_fd = program, .data_in = (unsigned long)frame,
					  .data_size_in = size, .repeat = repeat } };

	bpf(BPF_PROG_TEST_RUN, &attr, "the kernel doesn't run it");
	*nanoseconds = attr.test.duration;
	return attr.test.retval;
}

/* where the IPv4 header of a frame begins, behind tags */
static int header_at(const unsigned char *frame)
{
	int at = 14;

	while (frame[at - 2] == 0x81 && frame[at - 1] == 0x00 && at < 22)
		at += 4;
	return at;
}

static void time_it(__u32 program, __u32 repeat, __u32 first, __u32 count, const char *hex)
{
	unsigned char frame[LARGEST];
	__u32 size, ns, least = 0;
	int fd, verdict, i;

	for (size = 0; size < LARGEST && sscanf(hex + 2 * size, "%2hhx", &frame[size]) == 1; size++)
		;
	if (count)
		fd = calling(program, first, count, header_at(frame) + SOURCE_AT);
	else
		fd = program ? open_program(program) : load_drop(0);
	verdict = run(fd, frame, size, 1, &ns);
	for (i = 0; i < TRIES; i++)
		if (run(fd, frame, size, 1, &ns) != verdict)
			verdict = -1;
	for (i = 0; i < PARTS; i++) {
		if (run(fd, frame, size, repeat / PARTS, &ns) != verdict)
			verdict = -1;
		if (!i || ns < least)
			least = ns;
		usleep(REST);
	}
	printf("%d %u\n", verdict, least);
}

int main(int argc, char **argv)
{
	char line[4 * LARGEST], hex[2 * LARGEST + 1];
	__u32 id, repeat, first, count;
	unsigned long long value;
	cpu_set_t cpu;

	if (argc != 2) {
		fprintf(stderr, "usage: %s CPU < REQUESTS\n", argv[0]);
		return 2;
	}
	if (!setting("/proc/sys/net/core/bpf_jit_enable"))
		fail("BPF programs are interpreted: sysctl net.core.bpf_jit_enable=1");
	if (setting("/proc/sys/kernel/bpf_stats_enabled") > 0)
		fail("each run is counted, which takes longer: sysctl kernel.bpf_stats_enabled=0");
	CPU_ZERO(&cpu);
	CPU_SET(atoi(argv[1]), &cpu);
	if (sched_setaffinity(0, sizeof(cpu), &cpu))
		fail("CPU %s: %s", argv[1], strerror(errno));
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "fill %u %llu %u", &id, &value, &count) == 3)
			fill(id, value, count);
		else if (sscanf(line, "time %u %u %u %u %512s", &id, &repeat, &first, &count, hex) == 5)
			time_it(id, repeat, first, count, hex);
		else
			fail("not understood: %s", line);
	}
	return 0;
}
