/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The floor of invoke bench: drop every packet, and count the drops on each CPU.
 */
#include <uapi/linux/bpf.h>

#include "xdp_compat.h"

/* key 0: the packets dropped so far, a counter for each CPU */
BPF_MAP(counter_map, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1);

SEC("xdp")
int drop_all(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *counter = bpf_map_lookup_elem(&counter_map, &key);

	if (counter)
		*counter += 1;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
BPF_KERNEL_VERSION;
