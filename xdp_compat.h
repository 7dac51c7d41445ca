/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs from kernel tree to kernel tree, so that the pair beside this
 * file is one source for all of them.  The harness puts it in samples/bpf next
 * to the pair.  Every difference is a feature test, never a version test:
 * distribution and vendor trees carry back-ports.
 */
#ifndef XDP_COMPAT_H
#define XDP_COMPAT_H

#ifdef __KERNEL__ /* ---- the kernel half: kbuild compiles it with -D__KERNEL__ */

/*
 * bpf_helpers.h lived in tools/testing/selftests/bpf until v5.5 moved it into
 * libbpf (e01a75c15969 "libbpf: Move bpf_{helpers, helper_defs, endian,
 * tracing}.h into libbpf").
 */
#if __has_include(<bpf/bpf_helpers.h>)
#include <bpf/bpf_helpers.h>
#else
#include "bpf_helpers.h"
#endif

/*
 * The post's struct bpf_map_def SEC("maps") is refused by libbpf 1.0 (v6.0).
 * What replaced it, a BTF-described map in ".maps", came with v5.3, together
 * with the __uint() and __type() macros that spell it.
 */
#ifdef __uint
#define BPF_MAP(name, map_type, key_t, value_t, entries)                       \
	struct {                                                               \
		__uint(type, map_type);                                        \
		__uint(max_entries, entries);                                  \
		__type(key, key_t);                                            \
		__type(value, value_t);                                        \
	} name SEC(".maps")
#else
#define BPF_MAP(name, map_type, key_t, value_t, entries)                       \
	struct bpf_map_def SEC("maps") name = {                                \
		.type = map_type,                                              \
		.key_size = sizeof(key_t),                                     \
		.value_size = sizeof(value_t),                                 \
		.max_entries = entries,                                        \
	}
#endif

/*
 * A value that both halves see, and where it is.  Global data (v5.2, d859900c4c56 "bpf,
 * libbpf: support global data/bss/rodata sections") is read in place; before that a map
 * of one value had to be asked, which costs as much as parsing a packet.
 */
#ifdef __uint
#define BPF_SHARED(name, value_t) value_t name
#define bpf_shared(name) (&name)
#else
#define BPF_SHARED(name, value_t) BPF_MAP(name, BPF_MAP_TYPE_ARRAY, __u32, value_t, 1)
#define bpf_shared(name)                                                       \
	({                                                                     \
		__u32 ____key = 0;                                             \
		bpf_map_lookup_elem(&name, &____key);                          \
	})
#endif

/* libbpf has its own bpf_printk() from v5.3 on; the post had to bring one. */
#ifndef bpf_printk
#define bpf_printk(fmt, ...)                                                   \
	({                                                                     \
		char ____fmt[] = fmt;                                          \
		bpf_trace_printk(____fmt, sizeof(____fmt), ##__VA_ARGS__);     \
	})
#endif

/*
 * The libbpf of v4.19 refuses an object that doesn't name its kernel version;
 * later ones ignore it.
 */
#include <linux/version.h>
#define BPF_KERNEL_VERSION                                                     \
	__u32 _version SEC("version") = LINUX_VERSION_CODE

#else /* ---- the user half */

#include <errno.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/if_link.h>
#include <linux/types.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

/*
 * The post's bpf_set_link_xdp_fd() became bpf_xdp_attach() in libbpf 0.8 (v5.18,
 * c359821ac65b "libbpf: streamline low-level XDP APIs") and was removed by libbpf
 * 1.0 (v6.0, 53e6af3a761c "libbpf: remove deprecated XDP APIs").  A tree's libbpf
 * tells which it is: before 0.6 (v5.16) it has no version macro at all, and an
 * undefined macro is 0 here.
 *
 * @prog_fd: the program to attach, or -1 to detach whatever is there
 * Returns 0, or a negative errno; libbpf has then printed the kernel's reason.
 */
static inline int xdp_netlink_set(int ifindex, int prog_fd, __u32 flags)
{
#if LIBBPF_MAJOR_VERSION >= 1
	return bpf_xdp_attach(ifindex, prog_fd, flags, NULL);
#else
	return bpf_set_link_xdp_fd(ifindex, prog_fd, flags);
#endif
}

/* Named so since v5.0; the name before was one of a map's functions. */
#ifndef bpf_object__for_each_map
#define bpf_object__for_each_map bpf_map__for_each
#endif

/*
 * The id of the program on @ifindex in the mode of @flags; 0 if there is none,
 * @unknown from a libbpf before v5.1, which can't ask.  The weak declaration
 * is how a function that may be missing is looked for.
 */
static inline __u32 xdp_netlink_id(int ifindex, __u32 flags, __u32 unknown)
{
	__u32 id = 0;

#if LIBBPF_MAJOR_VERSION >= 1
	return bpf_xdp_query_id(ifindex, flags, &id) ? 0 : id;
#else
	extern int bpf_get_link_xdp_id(int, __u32 *, __u32) __attribute__((weak));

	if (!bpf_get_link_xdp_id)
		return unknown;
	return bpf_get_link_xdp_id(ifindex, &id, flags) ? 0 : id;
#endif
}

/*
 * A bpf_link for XDP goes away with the last process that holds it, so even
 * kill -9 leaves nothing behind.  Whether there is one depends on the kernel
 * that runs (v5.9, aa8d3a716b59 "bpf, xdp: Add bpf_link-based XDP attachment
 * API"), not on the tree whose libbpf and headers this is compiled with: hence
 * the system call itself, with the two numbers of that kernel's UAPI.
 *
 * Returns a file descriptor, or a negative errno: -EBUSY if somebody else's
 * program is there, -EINVAL from a kernel that doesn't know this.
 */
static inline int xdp_link_create(int ifindex, int prog_fd, __u32 flags)
{
	enum { LINK_CREATE = 28, ATTACH_XDP = 37 };
	struct {
		__u32 prog_fd, target_ifindex, attach_type, flags;
	} attr = { prog_fd, ifindex, ATTACH_XDP, flags };
	int fd = syscall(__NR_bpf, LINK_CREATE, &attr, sizeof(attr));

	return fd < 0 ? -errno : fd;
}

#endif /* __KERNEL__ */
#endif /* XDP_COMPAT_H */
