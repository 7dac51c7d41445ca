/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a user half does whatever its program is for: attach the program to an
 * interface in a mode, see to it that it goes away however the process ends, and
 * wait between two rounds.  The harness puts this file beside a user half that
 * includes it.
 *
 * A user half defines _GNU_SOURCE before its first #include: for ppoll().
 */
#ifndef XDP_ATTACH_H
#define XDP_ATTACH_H

#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bpf_util.h"
#include "xdp_compat.h"

#include "xdp_caps.h"

static int ifindex = 1; /* the loopback interface */
static __u32 xdp_flags; /* the mode; 0: native where it can be had, else generic */
static int link_fd = -1; /* the bpf_link that holds the program, if there is one */
static int watchdog_fd = -1; /* tells our watchdog that we have attached, and detached */
static bool watched; /* by a watchdog, where no bpf_link holds the program */
static __u32 prog_id;
static volatile sig_atomic_t stop;

/* ---- options */

static inline void bad_input(const char *what, const char *given)
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

static inline __u32 parse_mode(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++)
		if (!strcmp(modes[i].name, name))
			return modes[i].flags;
	bad_input("no such XDP mode", name);
	return 0;
}

static inline const char *mode_name(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes) - 1; i++)
		if (modes[i].flags == xdp_flags)
			break;
	return modes[i].name;
}

static inline double parse_number(const char *what, const char *given, double max)
{
	char *end;
	double number = strtod(given, &end);

	if (end == given || *end || !(number >= 0 && number <= max))
		bad_input(what, given);
	return number;
}

/* ---- attached, and detached again */

/* no other way to attach, and no other mode, would help */
static inline bool is_final(int err)
{
	return err == -EBUSY || err == -EEXIST || err == -EPERM;
}

/* off one mode, if it is ours; @unknown as xdp_netlink_id() has it */
static inline void detach_netlink(__u32 mode, __u32 unknown)
{
	if (xdp_netlink_id(ifindex, mode, unknown) == prog_id)
		xdp_netlink_set(ifindex, -1, mode);
}

/* unlink the xdp program: only ours, whatever happened meanwhile */
static inline void detach(void)
{
	if (link_fd >= 0)
		close(link_fd);
	else
		detach_netlink(xdp_flags, prog_id);
	if (watchdog_fd >= 0 && write(watchdog_fd, "", 1) < 0)
		perror("watchdog");
}

/* to the end of the process at the other end of the pipe @alive, however it comes */
static inline void keep_watch(int alive)
{
	unsigned int i;
	__u32 mode;

	if (read(alive, &mode, sizeof(mode)) != sizeof(mode))
		/* whether it had attached is to be seen, and in what mode */
		for (i = 0; i < ARRAY_SIZE(modes); i++)
			detach_netlink(modes[i].flags, 0);
	else if (!read(alive, &mode, 1)) /* gone without another word */
		detach_netlink(mode, prog_id);
}

/*
 * A program that no bpf_link holds stays when its process is killed.  So a child
 * waits for our end, and takes the program off if we didn't.  In a session of its own
 * it outlives what kills our whole process group: it is there before we attach.
 */
static inline int watch_over(void)
{
	int alive[2], ready[2];
	char word;

	if (pipe2(alive, O_CLOEXEC) || pipe2(ready, O_CLOEXEC))
		return -1;
	signal(SIGCHLD, SIG_IGN); /* nobody waits for its end */
	switch (fork()) {
	case -1:
		return -1;
	case 0:
		setsid();
		close(alive[1]);
		close(ready[0]);
		keep_caps(one_cap(NET_ADMIN));
		close(ready[1]);
		keep_watch(alive[0]);
		_exit(0);
	default:
		close(alive[0]);
		close(ready[1]);
		if (read(ready[0], &word, 1)) /* it says nothing, and closes it */
			return -1;
		close(ready[0]);
		watchdog_fd = alive[1];
		return 0;
	}
}

/*
 * In one mode: a bpf_link, or netlink where the kernel is older than v5.9.  Where
 * the driver refuses, the kernel gives its reason to netlink alone, and libbpf
 * prints it.
 */
static inline int attach_mode(int prog_fd, __u32 mode)
{
	int err = link_fd = xdp_link_create(ifindex, prog_fd, mode);

	xdp_flags = mode;
	if (err < 0 && !is_final(err)) {
		if (watched && watchdog_fd < 0 && watch_over())
			perror("no watchdog: kill -9 would leave the program attached");
		err = xdp_netlink_set(ifindex, prog_fd, mode | XDP_FLAGS_UPDATE_IF_NOEXIST);
	}
	return err < 0 ? err : 0;
}

/*
 * Link the xdp program to the interface, and leave it to the caller that it goes away;
 * somebody else's is never replaced.
 */
static inline int attach_unwatched(int prog_fd, const char *dev)
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

/* link the xdp program to the interface, until this process ends */
static inline int attach(int prog_fd, const char *dev)
{
	watched = true;
	if (attach_unwatched(prog_fd, dev))
		return -1;
	if (watchdog_fd < 0)
		return 0;
	if (write(watchdog_fd, &xdp_flags, sizeof(xdp_flags)) < 0)
		perror("watchdog");
	if (link_fd >= 0) { /* the bpf_link does without */
		if (write(watchdog_fd, "", 1) < 0)
			perror("watchdog");
		close(watchdog_fd);
		watchdog_fd = -1;
	}
	return 0;
}

/* ---- signals, and rounds */

/* detaching isn't safe inside a signal handler: main() does it */
static inline void int_exit(int sig)
{
	stop = sig;
}

/*
 * Have signals that ask for the end set @stop, and only while wait_round() sleeps,
 * with the mask @unblocked.  Writing to a reader who left is an error, no death.
 */
static inline void catch_signals(sigset_t *unblocked)
{
	struct sigaction action = { .sa_handler = int_exit };
	const int ends[] = { SIGINT, SIGTERM, SIGHUP };
	sigset_t blocked;
	unsigned int i;

	sigemptyset(&blocked);
	for (i = 0; i < ARRAY_SIZE(ends); i++) {
		sigaddset(&blocked, ends[i]);
		sigaction(ends[i], &action, NULL);
	}
	sigprocmask(SIG_BLOCK, &blocked, unblocked);
	signal(SIGPIPE, SIG_IGN);
}

/*
 * Sleep until the next round.  Signals are blocked everywhere else, so one that
 * arrives at any moment ends the sleep, this one or the next.
 */
static inline void wait_round(double seconds, bool watch_stdin, const sigset_t *unblocked)
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

#endif /* XDP_ATTACH_H */
