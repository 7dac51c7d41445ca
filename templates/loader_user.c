/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The user half: load the kernel half of the same name, attach it to an interface,
 * and print what it counts, until told to stop.
 *
 * It serves any kernel half with one XDP program.  What that counts is looked for in
 * its first map of type BPF_MAP_TYPE_PERCPU_ARRAY whose values are __u64.
 */
#define _GNU_SOURCE /* for xdp_attach.h */
#include <getopt.h>
#include <net/if.h>
#include <sys/resource.h>

#include "xdp_attach.h"

static void usage(FILE *to, const char *name)
{
	fprintf(to,
		"usage: %s [-d DEV] [-m native|skb|hw] [-t SECONDS] [-n ROUNDS] [-e]\n"
		"  -d DEV      the interface to attach to (lo)\n"
		"  -m MODE     native, skb (generic) or hw; native where it can be had, else skb\n"
		"  -t SECONDS  time between two rounds (2)\n"
		"  -n ROUNDS   how many rounds, 0 for no end (1000)\n"
		"  -e          stop also when standard input ends\n"
		"  -h          this text\n"
		"It loads %s_kern.o from the current directory.\n",
		name, program_invocation_short_name);
}

/* load the kernel half, @loaded: the fd of its one program, or -1 */
static int load_bpf_file(const char *filename, struct bpf_object **loaded)
{
	struct bpf_object *obj = *loaded = bpf_object__open(filename);
	struct bpf_program *prog, *xdp = NULL;
	int err = libbpf_get_error(obj), programs = 0;

	if (err) {
		fprintf(stderr, "can't open %s: %s\n", filename, strerror(-err));
		return -1;
	}
	/* whatever its section is called */
	bpf_object__for_each_program(prog, obj) {
		bpf_program__set_type(prog, BPF_PROG_TYPE_XDP);
		xdp = prog;
		programs++;
	}
	if (programs != 1) {
		fprintf(stderr, "%s has %d programs, and not one\n", filename, programs);
		return -1;
	}
	err = bpf_object__load(obj);
	if (err) {
		fprintf(stderr, "can't load %s: %s\n", filename, strerror(-err));
		return -1;
	}
	return bpf_program__fd(xdp);
}

/*
 * The map that the program counts in: its fd, or -1.  The kernel is asked, as each
 * tree's libbpf has other words for a map's type.
 */
static int find_counters(struct bpf_object *obj, struct bpf_map_info *info)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, obj) {
		__u32 size = sizeof(*info);

		memset(info, 0, size);
		if (!bpf_obj_get_info_by_fd(bpf_map__fd(map), info, &size) &&
		    info->type == BPF_MAP_TYPE_PERCPU_ARRAY && info->value_size == sizeof(__u64))
			return bpf_map__fd(map);
	}
	return -1;
}

/*
 * A block as the post's program prints it: what entry 0 counts on each CPU.  Of the
 * other entries a line for the sum, if there is any.
 */
static int print_counters(int round, int fd, const struct bpf_map_info *map)
{
	/* one value for each CPU that could ever be there, as the kernel gives them */
	unsigned int nr_cpus = bpf_num_possible_cpus(), cpu;
	__u64 values[nr_cpus], sum;
	__u32 key;

	printf("%d\n", round);
	for (key = 0; key < map->max_entries; key++) {
		if (bpf_map_lookup_elem(fd, &key, values)) {
			fprintf(stderr, "bpf_map_lookup_elem error %d %s\n", errno, strerror(errno));
			return -1;
		}
		for (cpu = 0, sum = 0; cpu < nr_cpus; cpu++) {
			if (!key)
				printf("cpu %u, value = %llu\n", cpu, values[cpu]);
			sum += values[cpu];
		}
		if (key && sum)
			printf("%s[%u] = %llu\n", map->name, key, sum);
	}
	printf("\n\n");
	return 0;
}

int main(int argc, char **argv)
{
	char filename[256];
	const char *dev = "lo";
	double interval = 2, rounds = 1000;
	bool watch_stdin = false;
	struct rlimit r = { RLIM_INFINITY, RLIM_INFINITY };
	struct bpf_map_info map;
	struct bpf_object *obj;
	sigset_t unblocked;
	int prog_fd, map_fd, opt, i;

	/* kernels before v5.11 need it, later ones do without */
	int limit_err = setrlimit(RLIMIT_MEMLOCK, &r) ? errno : 0;

	/* and from here on do no more than load a program, and attach it */
	keep_caps_to_attach();

	while ((opt = getopt(argc, argv, "d:m:t:n:eh")) != -1) {
		switch (opt) {
		case 'd':
			dev = optarg;
			break;
		case 'm':
			xdp_flags = parse_mode(optarg);
			break;
		case 't':
			interval = parse_number("no number of seconds", optarg, 1e6);
			break;
		case 'n':
			rounds = parse_number("no number of rounds", optarg, 1e9);
			if (rounds != (int)rounds)
				bad_input("no number of rounds", optarg);
			break;
		case 'e':
			watch_stdin = true;
			break;
		case 'h':
			usage(stdout, argv[0]);
			return 0;
		default:
			usage(stderr, argv[0]);
			return 2;
		}
	}
	if (optind < argc)
		bad_input("one argument too many", argv[optind]);
	ifindex = if_nametoindex(dev);
	if (!ifindex)
		bad_input("no such interface", dev);

	/* whoever reads the output sees each line at once, through a pipe too */
	setvbuf(stdout, NULL, _IOLBF, 0);

	snprintf(filename, sizeof(filename), "%s_kern.o", program_invocation_short_name);
	prog_fd = load_bpf_file(filename, &obj);
	if (prog_fd < 0) {
		if (limit_err)
			fprintf(stderr, "RLIMIT_MEMLOCK can't be raised either: %s\n",
				strerror(limit_err));
		return 1;
	}
	map_fd = find_counters(obj, &map);
	if (map_fd >= 0)
		printf("counting in %s\n", map.name);

	catch_signals(&unblocked);
	if (attach(prog_fd, dev))
		return 1;
	keep_caps_to_watch(map_fd, link_fd < 0);

	for (i = 0; !stop && (!rounds || i < rounds); i++) {
		if (map_fd < 0) {
			printf("round %d\n", i);
		} else if (print_counters(i, map_fd, &map)) {
			detach();
			return 1;
		}
		if (ferror(stdout)) /* nobody reads any more */
			break;
		wait_round(interval, watch_stdin, &unblocked);
	}

	printf(stop ? "stopping\n" : "end\n");
	detach();
	return 0;
}
