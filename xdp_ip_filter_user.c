/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The user half: load xdp_ip_filter_kern.o from the current directory, tell it
 * the address to filter, attach it to an interface, and print every CPU's
 * count of dropped packets, until told to stop.
 *
 * Standard output carries what the post's program prints, line for line;
 * everything else goes to standard error.
 */
#define _GNU_SOURCE /* ppoll() */
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "bpf_util.h"
#include "xdp_compat.h"

static int ifindex = 1; /* the loopback interface */
static __u32 xdp_flags; /* the mode; 0: native where it can be had, else generic */
static int link_fd = -1; /* the bpf_link that holds the program, if there is one */
static int watchdog_fd = -1; /* tells our watchdog that we have detached */
static __u32 prog_id;
static volatile sig_atomic_t stop;

/* detaching isn't safe inside a signal handler: main() does it */
static void int_exit(int sig)
{
	stop = sig;
}

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

static void bad_input(const char *what, const char *given)
{
	fprintf(stderr, "%s: '%s'; -h tells what is expected\n", what, given);
	exit(2);
}

static const struct {
	const char *name;
	__u32 flags;
} modes[] = {
	{ "native", XDP_FLAGS_DRV_MODE },
	{ "skb", XDP_FLAGS_SKB_MODE },
	{ "hw", XDP_FLAGS_HW_MODE },
};

static __u32 parse_mode(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++)
		if (!strcmp(modes[i].name, name))
			return modes[i].flags;
	bad_input("no such XDP mode", name);
	return 0;
}

static const char *mode_name(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes) - 1; i++)
		if (modes[i].flags == xdp_flags)
			break;
	return modes[i].name;
}

static double parse_number(const char *what, const char *given, double max)
{
	char *end;
	double number = strtod(given, &end);

	if (end == given || *end || !(number >= 0 && number <= max))
		bad_input(what, given);
	return number;
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

/* no other way to attach, and no other mode, would help */
static bool is_final(int err)
{
	return err == -EBUSY || err == -EEXIST || err == -EPERM;
}

/*
 * In one mode: a bpf_link, or netlink where the kernel is older than v5.9.  Where
 * the driver refuses, the kernel gives its reason to netlink alone, and libbpf
 * prints it.
 */
static int attach_mode(int prog_fd, __u32 mode)
{
	int err = link_fd = xdp_link_create(ifindex, prog_fd, mode);

	xdp_flags = mode;
	if (err < 0 && !is_final(err))
		err = xdp_netlink_set(ifindex, prog_fd, mode | XDP_FLAGS_UPDATE_IF_NOEXIST);
	return err < 0 ? err : 0;
}

/* link the xdp program to the interface; somebody else's is never replaced */
static int attach(int prog_fd, const char *dev)
{
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info);
	bool demanded = xdp_flags;
	unsigned int i;
	int err;

	if (bpf_obj_get_info_by_fd(prog_fd, &info, &size)) {
		perror("bpf_obj_get_info_by_fd");
		return -1;
	}
	prog_id = info.id;

	err = attach_mode(prog_fd, demanded ? xdp_flags : XDP_FLAGS_DRV_MODE);
	if (err && !demanded && !is_final(err)) {
		fprintf(stderr, "no native XDP on %s (%s): generic instead\n", dev, strerror(-err));
		err = attach_mode(prog_fd, XDP_FLAGS_SKB_MODE);
	}
	if (err) {
		fprintf(stderr, "link set xdp fd failed on %s: %s\n", dev,
			err == -EBUSY || err == -EEXIST ? "an XDP program is there already" :
							  strerror(-err));
		return -1;
	}
	fprintf(stderr, "attached: dev %s ifindex %d mode %s link %s prog %u tag ", dev, ifindex,
		mode_name(), link_fd < 0 ? "netlink" : "bpf_link", prog_id);
	for (i = 0; i < sizeof(info.tag); i++)
		fprintf(stderr, "%02x", info.tag[i]);
	fprintf(stderr, "\n");
	return 0;
}

/* unlink the xdp program: only ours, whatever happened meanwhile */
static void detach(void)
{
	if (link_fd >= 0)
		close(link_fd);
	else if (xdp_netlink_id(ifindex, xdp_flags, prog_id) == prog_id)
		xdp_netlink_set(ifindex, -1, xdp_flags);
	if (watchdog_fd >= 0 && write(watchdog_fd, "", 1) < 0)
		perror("watchdog");
}

/*
 * A program that no bpf_link holds stays when its process is killed.  So a child
 * waits for our end, however it comes, and takes the program off if we didn't.
 * In a session of its own it outlives what kills our whole process group.
 */
static int watch_over(void)
{
	int alive[2];
	char word;

	if (pipe2(alive, O_CLOEXEC))
		return -1;
	switch (fork()) {
	case -1:
		return -1;
	case 0:
		setsid();
		close(alive[1]);
		if (!read(alive[0], &word, 1)) /* gone without a word */
			detach();
		_exit(0);
	default:
		close(alive[0]);
		watchdog_fd = alive[1];
		return 0;
	}
}

/*
 * Sleep until the next round.  Signals are blocked everywhere else, so one that
 * arrives at any moment ends the sleep, this one or the next.
 */
static void wait_round(double seconds, bool watch_stdin, const sigset_t *unblocked)
{
	struct timespec now, begin;
	double left = seconds;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	while (!stop && left > 0) {
		struct pollfd in = { .fd = watch_stdin ? STDIN_FILENO : -1, .events = POLLIN };
		struct timespec timeout = { (time_t)left, (left - (time_t)left) * 1e9 };
		char ignored[64];

		if (ppoll(&in, 1, &timeout, unblocked) > 0 &&
		    read(STDIN_FILENO, ignored, sizeof(ignored)) <= 0)
			stop = SIGTERM;
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = seconds - (now.tv_sec - begin.tv_sec) -
		       (now.tv_nsec - begin.tv_nsec) / 1e9;
	}
}

int main(int argc, char **argv)
{
	const char *filename = "xdp_ip_filter_kern.o";
	const char *ip_param = "127.0.0.1", *dev = "lo";
	double interval = 2, rounds = 1000;
	bool watch_stdin = false;
	struct sigaction action = { .sa_handler = int_exit };
	struct rlimit r = { RLIM_INFINITY, RLIM_INFINITY };
	struct in_addr sin_addr;
	sigset_t blocked, unblocked;
	int map_fd[2], prog_fd, opt, i;
	unsigned int j;
	__u32 key = 0, ip;

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

	/* change limits: kernels before v5.11 need it, later ones do without */
	int limit_err = setrlimit(RLIMIT_MEMLOCK, &r) ? errno : 0;

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

	/* add sig handlers; writing to a reader who left is an error, no death */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGINT);
	sigaddset(&blocked, SIGTERM);
	sigaddset(&blocked, SIGHUP);
	sigprocmask(SIG_BLOCK, &blocked, &unblocked);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	signal(SIGPIPE, SIG_IGN);

	/* link the xdp program to the interface */
	if (attach(prog_fd, dev))
		return 1;
	if (link_fd < 0 && watch_over())
		perror("no watchdog: kill -9 would leave the program attached");

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
