/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel half: drop the packets that a rule covers, or under the policy "deny"
 * all others, and count what became of them, for each rule and each action.
 *
 * Ethernet, up to two VLAN tags, then IPv4, ARP or IPv6.  A packet is covered if a
 * rule covers its source or its destination; of ARP these are the sender and the
 * target, and neighbour discovery is about its target too: a neighbour that can't be
 * spoken with isn't looked for.  The longest prefix counts, of the source first.
 * What has no whole, sound header can't be covered.
 *
 * Under "deny" what finds neighbours passes, for those that the rules let through
 * would not be found else: ARP if there is any rule for IPv4, neighbour discovery if
 * there is one for IPv6.
 *
 * Loops are unrolled: kernels before v5.3 take none.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_arp.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#include "xdp_compat.h"
#include "xdp_filter.h"

/* The user half makes the maps, as large as asked for, and puts them in place of these. */
BPF_MAP(config, BPF_MAP_TYPE_ARRAY, __u32, struct config, 1);
BPF_MAP(actions, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct actions, 1);
/*
 * CPU by CPU, each rule's by its slot: an element of its own for each CPU, so no lock
 * is needed.  Not a per-CPU array, which costs a second miss of the cache and, for a
 * million rules, a million allocations.
 */
BPF_MAP(counters, BPF_MAP_TYPE_ARRAY, __u32, struct count, 1);
BPF_MAP(table4, BPF_MAP_TYPE_ARRAY, __u32, struct bucket4, 1);
BPF_MAP(table6, BPF_MAP_TYPE_ARRAY, __u32, struct bucket6, 1);
BPF_MAP(trie4, BPF_MAP_TYPE_LPM_TRIE, struct prefix4, __u32, 1);
BPF_MAP(trie6, BPF_MAP_TYPE_LPM_TRIE, struct prefix6, __u32, 1);

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

struct arp_ipv4 {
	struct arphdr header;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
};

#define MOST_EXTENSIONS 6 /* headers between IPv6 and ICMPv6 */

enum { SOLICITATION = 135, ADVERTISEMENT = 136 }; /* of neighbours */

struct discovery {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u32 reserved;
	__u64 target[2];
};

static __always_inline void add_to(struct count *count, __u64 bytes)
{
	count->packets++;
	count->bytes += bytes;
}

/*
 * While a rule comes or goes, a packet sees it or doesn't, but never one that nobody
 * gave.  IPv4: address and rule are one word, which is read once.  IPv6: the user half
 * writes the address while the rule's word is 0; if the word is the same before and
 * after the address was read, nobody wrote the address in between: the same word comes
 * back only when no packet that saw it before is under way any more.
 */
static __always_inline __u32 in_bucket4(const volatile struct bucket4 *bucket, __u32 address,
					__u32 side)
{
	int i;

#pragma unroll
	for (i = 0; i < IN_BUCKET4; i++) {
		__u64 entry = bucket->entry[i];

		if (entry >> 32 == address && entry & side)
			return entry;
	}
	return 0;
}

static __always_inline __u32 in_bucket6(const volatile struct bucket6 *bucket, __u64 upper,
					__u64 lower, __u32 side)
{
	int i;

#pragma unroll
	for (i = 0; i < IN_BUCKET6; i++) {
		__u32 rule = bucket->rule[i];

		if (rule & side && bucket->address[i][1] == lower &&
		    bucket->address[i][0] == upper && bucket->rule[i] == rule)
			return rule;
	}
	return 0;
}

static __always_inline __u32 in_table4(const struct config *config, __u32 address, __u32 side)
{
	__u64 hash = hash4(config->seed, address);
	__u32 index = bucket_of(hash >> 32, config->buckets4);
	struct bucket4 *bucket = bpf_map_lookup_elem(&table4, &index);
	__u32 rule;

	if (!bucket)
		return 0;
	rule = in_bucket4(bucket, address, side);
	if (rule || !bucket->overflowed)
		return rule;
	index = bucket_of(hash, config->buckets4);
	bucket = bpf_map_lookup_elem(&table4, &index);
	return bucket ? in_bucket4(bucket, address, side) : 0;
}

static __always_inline __u32 in_table6(const struct config *config, __u64 upper, __u64 lower,
				       __u32 side)
{
	__u64 hash = hash6(config->seed, upper, lower);
	__u32 index = bucket_of(hash >> 32, config->buckets6);
	struct bucket6 *bucket = bpf_map_lookup_elem(&table6, &index);
	__u32 rule;

	if (!bucket)
		return 0;
	rule = in_bucket6(bucket, upper, lower, side);
	if (rule || !bucket->overflowed)
		return rule;
	index = bucket_of(hash, config->buckets6);
	bucket = bpf_map_lookup_elem(&table6, &index);
	return bucket ? in_bucket6(bucket, upper, lower, side) : 0;
}

/* the rule that covers an address on one side of a packet, the most special one; 0: none */
static __always_inline __u32 rule4(const struct config *config, __u32 address, __u32 side)
{
	struct prefix4 key = { 64, side, address };
	__u32 rule = 0, *found;

	if (config->ask & side << TABLE4)
		rule = in_table4(config, address, side);
	if (!rule && config->ask & side << TRIE4) {
		found = bpf_map_lookup_elem(&trie4, &key);
		if (found)
			rule = *found;
	}
	return rule;
}

static __always_inline __u32 rule6(const struct config *config, const __u64 *address, __u32 side)
{
	__u64 upper = address[0], lower = address[1];
	struct prefix6 key = { 160, side, { upper, upper >> 32, lower, lower >> 32 } };
	__u32 rule = 0, *found;

	if (config->ask & side << TABLE6)
		rule = in_table6(config, upper, lower, side);
	if (!rule && config->ask & side << TRIE6) {
		found = bpf_map_lookup_elem(&trie6, &key);
		if (found)
			rule = *found;
	}
	return rule;
}

/* the message of neighbour discovery that a packet is, behind extension headers; or NULL */
static __always_inline struct discovery *discovery_of(struct ipv6hdr *ip, void *data_end)
{
	__u8 *at = (void *)(ip + 1);
	__u8 kind = ip->nexthdr;
	int i;

#pragma unroll
	for (i = 0; i < MOST_EXTENSIONS; i++) {
		__u32 size;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING &&
		    kind != IPPROTO_DSTOPTS && kind != IPPROTO_FRAGMENT && kind != IPPROTO_AH)
			break;
		if ((void *)(at + 8) > data_end)
			return NULL;
		size = (at[1] + 1) * 8;
		if (kind == IPPROTO_AH)
			size = (at[1] + 2) * 4;
		if (kind == IPPROTO_FRAGMENT) {
			if (at[2] || at[3] & 0xf8) /* not the first: it has no header of ICMPv6 */
				return NULL;
			size = 8;
		}
		kind = at[0];
		at += size;
	}
	if (kind != IPPROTO_ICMPV6 || (void *)(at + 1) > data_end)
		return NULL;
	return at[0] >= 133 && at[0] <= 137 ? (void *)at : NULL; /* RFC 4861 */
}

struct verdict {
	__u32 rule; /* that covers the packet; 0: none does */
	__u32 needed; /* the packet finds neighbours */
};

static __always_inline void look_at_ipv4(const struct config *config, void *at, void *data_end,
					 struct verdict *verdict)
{
	struct iphdr *ip = at;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return;
	verdict->rule = rule4(config, ip->saddr, SRC);
	if (!verdict->rule)
		verdict->rule = rule4(config, ip->daddr, DST);
}

static __always_inline void look_at_arp(const struct config *config, void *at, void *data_end,
					struct verdict *verdict)
{
	struct arp_ipv4 *arp = at;

	verdict->needed = 1;
	if ((void *)(arp + 1) > data_end || arp->header.ar_pro != htons(ETH_P_IP) ||
	    arp->header.ar_hln != ETH_ALEN || arp->header.ar_pln != 4)
		return;
	verdict->rule = rule4(config, *(__u32 *)arp->sender, SRC);
	if (!verdict->rule)
		verdict->rule = rule4(config, *(__u32 *)arp->target, DST);
}

static __always_inline void look_at_ipv6(const struct config *config, void *at, void *data_end,
					 struct verdict *verdict)
{
	struct ipv6hdr *ip = at;
	struct discovery *discovery;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return;
	verdict->rule = rule6(config, (void *)&ip->saddr, SRC);
	if (!verdict->rule)
		verdict->rule = rule6(config, (void *)&ip->daddr, DST);
	if (verdict->rule)
		return;
	discovery = discovery_of(ip, data_end);
	if (!discovery)
		return;
	verdict->needed = 1;
	/* who is looked for will be spoken to; who says that it's there will speak */
	if ((void *)(discovery + 1) > data_end)
		return;
	if (discovery->type == SOLICITATION)
		verdict->rule = rule6(config, discovery->target, DST);
	else if (discovery->type == ADVERTISEMENT)
		verdict->rule = rule6(config, discovery->target, SRC);
}

SEC("xdp")
int _xdp_filter(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	struct verdict verdict = {};
	struct ethhdr *eth = data;
	void *at = eth + 1;
	struct config *settings;
	struct actions *counted;
	struct count *counter;
	__u32 key = 0, action;
	__be16 protocol;
	int i;

	settings = bpf_map_lookup_elem(&config, &key);
	counted = bpf_map_lookup_elem(&actions, &key);
	if (!settings || !counted)
		return XDP_ABORTED;

	if (at > data_end)
		goto seen;
	protocol = eth->h_proto;
#pragma unroll
	for (i = 0; i < 2; i++) {
		struct vlan_tag *tag = at;

		if (protocol != htons(ETH_P_8021Q) && protocol != htons(ETH_P_8021AD))
			break;
		at = tag + 1;
		if (at > data_end)
			goto seen;
		protocol = tag->protocol;
	}
	if (settings->ask & ANY4 && protocol == htons(ETH_P_IP))
		look_at_ipv4(settings, at, data_end, &verdict);
	else if (settings->ask & ANY6 && protocol == htons(ETH_P_IPV6))
		look_at_ipv6(settings, at, data_end, &verdict);
	else if (settings->ask & ANY4 && protocol == htons(ETH_P_ARP))
		look_at_arp(settings, at, data_end, &verdict);

seen:
	if (settings->deny)
		action = verdict.rule || verdict.needed ? XDP_PASS : XDP_DROP;
	else
		action = verdict.rule ? XDP_DROP : XDP_PASS;
	if (verdict.rule) {
		key = bpf_get_smp_processor_id() * settings->slots + (verdict.rule >> SIDE_BITS);
		counter = bpf_map_lookup_elem(&counters, &key);
		if (counter)
			add_to(counter, data_end - data);
	}
	add_to(&counted->of[action], data_end - data);
	return action;
}

char _license[] SEC("license") = "GPL";
BPF_KERNEL_VERSION;
