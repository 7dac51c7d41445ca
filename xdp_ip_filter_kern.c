/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel half: drop every IPv4 packet that comes from one address, and
 * count the drops on each CPU.
 *
 * An 802.1Q or QinQ frame is no IPv4 packet to it (its EtherType is the tag's),
 * and passes.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <linux/in.h>

#include "xdp_compat.h"

/*
 * Logging costs some forty times what the filter itself does, so it is left
 * out unless asked for: invoke build --trace defines TRACE in xdp_compat.h.
 */
#ifdef TRACE
#define trace(fmt, ...) bpf_printk(fmt, ##__VA_ARGS__)
#else
#define trace(fmt, ...)
#endif

/* key 0: the address to filter, in network byte order; written by the user half */
BPF_MAP(ip_map, BPF_MAP_TYPE_HASH, __u32, __u32, 1);

/* key 0: the packets dropped so far, a counter for each CPU */
BPF_MAP(counter_map, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1);

SEC("xdp_ip_filter")
int _xdp_ip_filter(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct ethhdr *eth = data;
	struct iphdr *iph = data + sizeof(*eth);
	__u32 key = 0;
	__u32 *ip;
	__u64 *counter;

	trace("starting xdp ip filter\n");

	/* the verifier refuses a read that isn't proved to be inside the packet */
	if ((void *)(eth + 1) > data_end)
		return XDP_PASS;
	if (eth->h_proto != htons(ETH_P_IP))
		return XDP_PASS;
	if ((void *)(iph + 1) > data_end)
		return XDP_PASS;

	/* get the ip to filter from ip_map: now that it matters, for that costs the most */
	ip = bpf_map_lookup_elem(&ip_map, &key);
	if (!ip)
		return XDP_PASS;
	trace("the ip address to filter is %u\n", *ip);
	trace("source ip address is %u\n", iph->saddr);

	if (iph->saddr != *ip)
		return XDP_PASS;

	/* this CPU's own counter: nobody else writes it, no lock is needed */
	counter = bpf_map_lookup_elem(&counter_map, &key);
	if (counter)
		*counter += 1;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
BPF_KERNEL_VERSION;
