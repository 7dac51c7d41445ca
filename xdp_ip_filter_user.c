/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The user half: load xdp_ip_filter_kern.o from the current directory, tell it
 * the address to filter, attach it to an interface, and print every CPU's
 * count of dropped packets, until told to stop.
 *
 * Standard output carries what the post's program prints, line for line;
 * everything else goes to standard error.
 */
#define _GNU_SOURCE /* for xdp_attach.h */
#include <arpa/inet.h>
#include <getopt.h>
#include <net/if.h>
#include <sys/resource.h>

#include "xdp_attach.h"

static void usage(FILE *to, const char *name)
{
	fprintf(to,
		"usage: %s [-i ADDRESS] [-d DEV] [-m native|skb|hw] [-t SECONDS] [-n ROUNDS] [-e]\n"
		"Drop every IPv4 packet that comes from ADDRESS; count the drops on each CPU.\n"
		"  -i ADDRESS  the source address to filter (127.0.0.1)\n"
		"  -d DEV      the interface to attach to (lo)\n"
		"  -m MODE     native, skb (generic) or hw; native where it can be had, else skb\n"
		"  -t SECONDS  time between two rounds (2)\n"
		"  -n ROUNDS   how many rounds, 0 for no end (1000)\n"
		"  -e          stop also when standard input ends\n"
		"  -h          this text\n"
		"It loads xdp_ip_filter_kern.o from the current directory.\n",
		name);
}

/* load the kernel half: its XDP program's fd, and the two maps' */
static int load_bpf_file(const char *filename, int map_fd[2])
{
	struct bpf_object *obj = bpf_object__open(filename);
	struct bpf_program *prog, *xdp = NULL;
	int err = libbpf_get_error(obj);

	if (err) {
		fprintf(stderr, "can't open %s: %s\n", filename, strerror(-err));
		return -1;
	}
	/* libbpf knows no section "xdp_ip_filter": say what kind of program it is */
	bpf_object__for_each_program(prog, obj) {
		bpf_program__set_type(prog, BPF_PROG_TYPE_XDP);
		xdp = prog;
	}
	err = bpf_object__load(obj);
	if (err) {
		fprintf(stderr, "can't load %s: %s\n", filename, strerror(-err));
		return -1;
	}
	map_fd[0] = bpf_map__fd(bpf_object__find_map_by_name(obj, "ip_map"));
	map_fd[1] = bpf_map__fd(bpf_object__find_map_by_name(obj, "counter_map"));
	if (!xdp || map_fd[0] < 0 || map_fd[1] < 0) {
		fprintf(stderr, "%s lacks its program, ip_map or counter_map\n", filename);
		return -1;
	}
	return bpf_program__fd(xdp);
}

int main(int argc, char **argv)
{
	const char *filename = "xdp_ip_filter_kern.o";
	const char *ip_param = "127.0.0.1", *dev = "lo";
	double interval = 2, rounds = 1000;
	bool watch_stdin = false;
	struct rlimit r = { RLIM_INFINITY, RLIM_INFINITY };
	struct in_addr sin_addr;
	sigset_t unblocked;
	int map_fd[2], prog_fd, opt, i;
	unsigned int j;
	__u32 key = 0, ip;

	/* change limits: kernels before v5.11 need it, later ones do without */
	int limit_err = setrlimit(RLIMIT_MEMLOCK, &r) ? errno : 0;

	/* and from here on do no more than load a program, and attach it */
	keep_caps_to_attach();

	while ((opt = getopt(argc, argv, "i:d:m:t:n:eh")) != -1) {
		switch (opt) {
		case 'i':
			ip_param = optarg;
			break;
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

	/* convert the ip string to __u32 */
	if (inet_pton(AF_INET, ip_param, &sin_addr) != 1)
		bad_input("no IPv4 address", ip_param);
	ip = sin_addr.s_addr;
	ifindex = if_nametoindex(dev);
	if (!ifindex)
		bad_input("no such interface", dev);
	if (ip == htonl(INADDR_LOOPBACK) && !strcmp(dev, "lo"))
		fprintf(stderr, "warning: this cuts all IPv4 traffic of this machine with itself\n");

	/* whoever reads the output sees each line at once, through a pipe too */
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("the ip to filter is %s/%u\n", ip_param, ip);

	/* load the bpf kern file */
	prog_fd = load_bpf_file(filename, map_fd);
	if (prog_fd < 0) {
		if (limit_err)
			fprintf(stderr, "RLIMIT_MEMLOCK can't be raised either: %s\n",
				strerror(limit_err));
		return 1;
	}

	/* set the first element of the first map to the ip passed as a parameter */
	if (bpf_map_update_elem(map_fd[0], &key, &ip, BPF_ANY)) {
		fprintf(stderr, "bpf_map_update_elem error %d %s\n", errno, strerror(errno));
		return 1;
	}

	/* add sig handlers */
	catch_signals(&unblocked);

	/* link the xdp program to the interface */
	if (attach(prog_fd, dev))
		return 1;
	keep_caps_to_watch(map_fd[1], link_fd < 0);

	/* one value for each CPU that could ever be there, as the kernel gives them */
	unsigned int nr_cpus = bpf_num_possible_cpus();
	__u64 values[nr_cpus];

	for (i = 0; !stop && (!rounds || i < rounds); i++) {
		/* get the values of the second map into values */
		if (bpf_map_lookup_elem(map_fd[1], &key, values)) {
			fprintf(stderr, "bpf_map_lookup_elem error %d %s\n", errno, strerror(errno));
			detach();
			return 1;
		}
		printf("%d\n", i);
		for (j = 0; j < nr_cpus; j++)
			printf("cpu %u, value = %llu\n", j, values[j]);
		printf("\n\n");
		if (ferror(stdout)) /* nobody reads any more */
			break;
		wait_round(interval, watch_stdin, &unblocked);
	}

	/* unlink the xdp program */
	printf(stop ? "stopping\n" : "end\n");
	detach();
	return 0;
}
