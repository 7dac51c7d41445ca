/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a user half may do: what it needs for the next step, and no more.  Whatever it
 * is given, a tree's libbpf and an object file among it, can then do no more either.
 *
 * Started by root it has every capability, by capabilities(7) alone some.  The system
 * calls themselves are used: libcap isn't everywhere, and few trees' headers know
 * CAP_BPF.
 */
#ifndef XDP_CAPS_H
#define XDP_CAPS_H

#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * CAP_SYS_ADMIN was what bpf(2) asked for until v5.8 made two of that: a17b53c4a4b5
 * "bpf, capability: Introduce CAP_BPF", and 980737282232 "capabilities: Introduce
 * CAP_PERFMON to kernel and user space", without which the verifier takes no program
 * that logs, and puts barriers against speculation into all others.
 */
enum { NET_ADMIN = 12, SYS_ADMIN = 21, PERFMON = 38, BPF = 39 };

/* the permitted capabilities of this process, a bit for each */
static inline __u64 held_caps(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct half[2] = {};

	if (syscall(__NR_capget, &header, half))
		return 0;
	return half[0].permitted | (__u64)half[1].permitted << 32;
}

/* what serves as @cap: before v5.8, and in many a container, it is CAP_SYS_ADMIN */
static inline __u64 one_cap(int cap)
{
	__u64 held = held_caps(), bit = 1ULL << cap;

	return held & bit ? bit : held & 1ULL << SYS_ADMIN;
}

static inline void set_caps(__u64 effective, __u64 permitted)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct half[2] = {
		{ .effective = effective, .permitted = permitted },
		{ .effective = effective >> 32, .permitted = permitted >> 32 },
	};

	if (syscall(__NR_capset, &header, half))
		perror("warning: capabilities can't be given up");
}

/*
 * Give up all capabilities but @caps, for good: no program that this process became
 * would have more.  To empty the bounding set takes CAP_SETPCAP; who hasn't got it, or
 * no more, is held by no_new_privs.
 */
static inline void keep_caps(__u64 caps)
{
	int cap;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	for (cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	set_caps(caps, caps);
}

/* the first thing to do, but for what takes CAP_SYS_RESOURCE */
static inline void keep_caps_to_attach(void)
{
	keep_caps(one_cap(BPF) | one_cap(PERFMON) | one_cap(NET_ADMIN));
}

/*
 * Once attached: a bpf_link needs none to be closed, netlink CAP_NET_ADMIN to detach.
 *
 * @map_fd: a map that is going to be read, or -1
 *
 * A map that one has is free to be read, unless kernel.unprivileged_bpf_disabled is
 * set: up to v5.18 that closes all of bpf(2) (c8644cd0efe7 "bpf: refine
 * kernel.unprivileged_bpf_disabled behaviour").  So it is tried, with the capabilities
 * put down and not yet away.
 */
static inline void keep_caps_to_watch(int map_fd, bool by_netlink)
{
	__u64 keep = by_netlink ? one_cap(NET_ADMIN) : 0;
	struct bpf_map_info info = {};
	__u32 size = sizeof(info);

	set_caps(keep, held_caps());
	if (map_fd >= 0 && bpf_obj_get_info_by_fd(map_fd, &info, &size))
		keep |= one_cap(BPF);
	keep_caps(keep);
}

#endif /* XDP_CAPS_H */
