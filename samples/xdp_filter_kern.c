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
 *
 * What it costs is the number of instructions that a packet passes, some twelve to a
 * nanosecond: no one of them waits for memory.  So a comparison is saved where it can be,
 * and whether a rule was found is told apart from which: compilers then see that a rule
 * that was found need not be looked at again.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#include "xdp_compat.h"
#include "xdp_filter.h"

/* The user half makes the maps, as large as asked for, and puts them in place of these. */
BPF_SHARED(config, struct config);
/*
 * CPU by CPU, and of each by slot: nobody else writes a CPU's own, no lock is needed.
 * Not a per-CPU array, which costs a second miss of the cache and, for a million rules,
 * a million allocations.
 */
BPF_MAP(counters, BPF_MAP_TYPE_ARRAY, __u32, struct count, 1);
BPF_MAP(table4, BPF_MAP_TYPE_ARRAY, __u32, struct bucket4, 1);
BPF_MAP(table6, BPF_MAP_TYPE_ARRAY, __u32, struct bucket6, 1);
BPF_MAP(trie4, BPF_MAP_TYPE_LPM_TRIE, struct prefix4, __u32, 1);
BPF_MAP(trie6, BPF_MAP_TYPE_LPM_TRIE, struct prefix6, __u32, 1);

#define FOUND_NEIGHBOUR (NEIGHBOURS << SIDE_BITS) /* like a rule's word, for no side */
#define MORE4 (SIDES * ANY4 & ~(SRC << FEW4)) /* rules for IPv4 but for a few sources */
#define MOST_TAGS 2 /* of VLANs */
#define TAG_SIZE 4
#define MOST_EXTENSIONS 6 /* headers between IPv6 and ICMPv6 */

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target[4];
};

/* RFC 4861 */
enum { FIRST_DISCOVERY = 133, SOLICITATION = 135, ADVERTISEMENT = 136, LAST_DISCOVERY = 137 };

struct discovery {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__u32 reserved;
	__u64 target[2];
};

/*
 * Each of the following tells whether a rule covers an address on one side of a packet,
 * and which: its word goes to @found.
 *
 * While a rule comes or goes, a packet sees it or doesn't, but never one that nobody
 * gave, such as an address with another's rule.  The user half writes an address only
 * while the place's rule is 0.  So if the address is still the same after the rule was
 * read, that was the address's own rule: x86 keeps the order of stores, and of loads.
 * Nor has it been another's meanwhile: an address that was removed comes back only when
 * every packet that could have seen it before is through.
 *
 * @places: how many places of the bucket may have a rule, at least 1; NULL: all of them
 */
static __always_inline bool in_bucket4(const volatile struct bucket4 *bucket, const __u32 *places,
				       __u64 address, __u64 side, __u64 *found)
{
	int i;

#pragma unroll
	for (i = 0; i < IN_BUCKET4; i++) {
		if (bucket->address[i] == address) {
			__u64 rule = bucket->rule[i];

			if (rule & side && bucket->address[i] == address) {
				*found = rule;
				return true;
			}
		}
		if (places && i + 1 == *places)
			break;
	}
	return false;
}

static __always_inline bool in_bucket6(const volatile struct bucket6 *bucket, __u64 upper,
				       __u64 lower, __u64 side, __u64 *found)
{
	int i;

#pragma unroll
	for (i = 0; i < IN_BUCKET6; i++)
		if (bucket->address[i][1] == lower && bucket->address[i][0] == upper) {
			__u64 rule = bucket->rule[i];

			if (rule & side && bucket->address[i][1] == lower &&
			    bucket->address[i][0] == upper) {
				*found = rule;
				return true;
			}
		}
	return false;
}

static __always_inline bool in_table4(const struct config *config, __u64 address, __u64 side,
				      __u64 *found)
{
	__u64 hash = hash4(config->seed, address);
	__u32 index = bucket_of(hash >> 32, config->buckets4);
	struct bucket4 *bucket = bpf_map_lookup_elem(&table4, &index);

	if (!bucket)
		return false;
	if (in_bucket4(bucket, NULL, address, side, found))
		return true;
	if (!bucket->overflowed)
		return false;
	index = bucket_of(hash & 0xffffffff, config->buckets4);
	bucket = bpf_map_lookup_elem(&table4, &index);
	return bucket && in_bucket4(bucket, NULL, address, side, found);
}

static __always_inline bool in_table6(const struct config *config, __u64 upper, __u64 lower,
				      __u64 side, __u64 *found)
{
	__u64 hash = hash6(config->seed, upper, lower);
	__u32 index = bucket_of(hash >> 32, config->buckets6);
	struct bucket6 *bucket = bpf_map_lookup_elem(&table6, &index);

	if (!bucket)
		return false;
	if (in_bucket6(bucket, upper, lower, side, found))
		return true;
	if (!bucket->overflowed)
		return false;
	index = bucket_of(hash & 0xffffffff, config->buckets6);
	bucket = bpf_map_lookup_elem(&table6, &index);
	return bucket && in_bucket6(bucket, upper, lower, side, found);
}

static __always_inline bool in_trie4(__u64 address, __u64 side, __u64 *found)
{
	struct prefix4 key = { 64, side, address };
	__u32 *rule = bpf_map_lookup_elem(&trie4, &key);

	if (!rule)
		return false;
	*found = *rule;
	return true;
}

static __always_inline bool in_trie6(__u64 upper, __u64 lower, __u64 side, __u64 *found)
{
	struct prefix6 key = { 160, side, { upper, upper >> 32, lower, lower >> 32 } };
	__u32 *rule = bpf_map_lookup_elem(&trie6, &key);

	if (!rule)
		return false;
	*found = *rule;
	return true;
}

/* one of the first few costs less to compare than to ask for */
static __always_inline bool in_few(const struct config *config, __u64 address, __u64 side,
				   __u64 *found)
{
	return in_bucket4(&config->few, &config->places, address, side, found);
}

static __always_inline bool in_many4(const struct config *config, __u64 address, __u64 side,
				     __u64 *found)
{
	if (!(config->ask & side * MANY4))
		return false;
	return (config->ask & side << TABLE4 && in_table4(config, address, side, found)) ||
	       (config->ask & side << TRIE4 && in_trie4(address, side, found));
}

static __always_inline bool covers4(const struct config *config, __u64 address, __u64 side,
				    __u64 *found)
{
	return in_few(config, address, side, found) || in_many4(config, address, side, found);
}

static __always_inline bool covers6(const struct config *config, const __u64 address[2],
				    __u64 side, __u64 *found)
{
	__u64 upper = address[0], lower = address[1];

	return (config->ask & side << TABLE6 && in_table6(config, upper, lower, side, found)) ||
	       (config->ask & side << TRIE6 && in_trie6(upper, lower, side, found));
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
			if (at[2] || at[3] & 0xf8) /* not the first: it has no ICMPv6 header */
				return NULL;
			size = 8;
		}
		kind = at[0];
		at += size;
	}
	if (kind != IPPROTO_ICMPV6 || (void *)(at + 1) > data_end)
		return NULL;
	return *at >= FIRST_DISCOVERY && *at <= LAST_DISCOVERY ? (void *)at : NULL;
}

/*
 * Each of these tells whether a rule covers a packet.  Into @found, which is 0 before, goes
 * the rule's word, or FOUND_NEIGHBOUR if there is none, and the packet finds a neighbour.
 */
static __always_inline bool covers_ipv4(const struct config *config, void *at, void *data_end,
					__u64 *found)
{
	struct iphdr *ip = at;
	__u64 first;

	if ((void *)(ip + 1) > data_end)
		return false;
	first = *(__u8 *)at;
	if (first < 0x45 || first > 0x4f) /* version 4, and at least five words */
		return false;
	if (in_few(config, ip->saddr, SRC, found))
		return true;
	if (!(config->ask & MORE4)) /* with a few sources, as most often, that was all */
		return false;
	return in_many4(config, ip->saddr, SRC, found) || covers4(config, ip->daddr, DST, found);
}

static __always_inline bool covers_arp(const struct config *config, void *at, void *data_end,
				       __u64 *found)
{
	struct arp_ipv4 *arp = at;

	if ((void *)(arp + 1) <= data_end && arp->protocol == htons(ETH_P_IP) &&
	    arp->hardware_length == ETH_ALEN && arp->protocol_length == 4 &&
	    (covers4(config, *(__u32 *)arp->sender, SRC, found) ||
	     covers4(config, *(__u32 *)arp->target, DST, found)))
		return true;
	*found = FOUND_NEIGHBOUR;
	return false;
}

static __always_inline bool covers_ipv6(const struct config *config, void *at, void *data_end,
					__u64 *found)
{
	struct ipv6hdr *ip = at;
	struct discovery *discovery;
	__u64 side;

	if ((void *)(ip + 1) > data_end || *(__u8 *)at >> 4 != 6)
		return false;
	if (covers6(config, (void *)&ip->saddr, SRC, found) ||
	    covers6(config, (void *)&ip->daddr, DST, found))
		return true;
	discovery = discovery_of(ip, data_end);
	if (!discovery)
		return false;
	/* who is looked for will be spoken to; who says that it's there will speak */
	side = discovery->type == SOLICITATION ? DST : discovery->type == ADVERTISEMENT ? SRC : 0;
	if (side && (void *)(discovery + 1) <= data_end &&
	    covers6(config, discovery->target, side, found))
		return true;
	*found = FOUND_NEIGHBOUR;
	return false;
}

static __always_inline bool covers(const struct config *config, void *data, void *data_end,
				   __u64 *found)
{
	void *at = data + sizeof(struct ethhdr);
	__u64 protocol;
	int i;

	if (at > data_end)
		return false;
	protocol = *(__be16 *)(at - sizeof(__be16));
	if (protocol != htons(ETH_P_IP)) { /* most often it is: one comparison for that */
#pragma unroll
		for (i = 0; i < MOST_TAGS; i++) {
			if (protocol != htons(ETH_P_8021Q) && protocol != htons(ETH_P_8021AD))
				break;
			at += TAG_SIZE;
			if (at > data_end)
				return false;
			protocol = *(__be16 *)(at - sizeof(__be16));
		}
	}
	if (protocol == htons(ETH_P_IP))
		return covers_ipv4(config, at, data_end, found);
	if (protocol == htons(ETH_P_IPV6) && config->ask & SIDES * ANY6)
		return covers_ipv6(config, at, data_end, found);
	if (protocol == htons(ETH_P_ARP) && config->ask & SIDES * ANY4)
		return covers_arp(config, at, data_end, found);
	return false;
}

SEC("xdp")
int _xdp_filter(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u64 rule = 0, action = XDP_PASS;
	struct config *settings;
	struct count *count;
	__u32 key;

	settings = bpf_shared(config);
	if (!settings)
		return XDP_ABORTED;
	if (covers(settings, data, data_end, &rule))
		action = settings->covered;
	else if (!rule)
		action = settings->uncovered;
	key = bpf_get_smp_processor_id() * settings->slots + (rule >> SIDE_BITS);
	count = bpf_map_lookup_elem(&counters, &key);
	if (count) {
		count->packets++;
		count->bytes += data_end - data;
	}
	return action;
}

char _license[] SEC("license") = "GPL";
BPF_KERNEL_VERSION;
