/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the two halves of the filter agree on: how rules are kept, and where.
 *
 * A rule covers the packets of one address, or of a prefix.  It has a slot, by
 * which its counters are found, and is one word wherever it stands:
 *
 *	slot << SIDE_BITS | sides		0: no rule
 *
 * Addresses stand in tables of buckets, each a cache line long, so that asking for
 * one costs one miss of the cache, and asking again none.  An address belongs into
 * its first bucket, or where that is full into its second, which is looked at only
 * if the first says that it overflowed.  Prefixes stand in tries.
 */
#ifndef XDP_FILTER_H
#define XDP_FILTER_H

#include <linux/types.h>

/* which of a packet's addresses a rule looks at; both: either will do */
enum { SRC = 1, DST = 2, SIDES = SRC | DST, SIDE_BITS = 2 };

/*
 * Where rules may stand: a pair of bits in config.ask, SRC and DST, tells whether any
 * does.  Only what is asked for is looked up.
 */
enum {
	TABLE4 = 0,
	TRIE4 = 2,
	TABLE6 = 4,
	TRIE6 = 6,
	ANY4 = SIDES << TABLE4 | SIDES << TRIE4,
	ANY6 = SIDES << TABLE6 | SIDES << TRIE6,
};

struct config {
	__u32 deny; /* the policy: 0, what a rule covers is dropped; 1, all else is */
	__u32 ask;
	__u32 slots; /* the most rules */
	__u32 buckets4;
	__u32 buckets6;
	__u32 unused;
	__u64 seed[2]; /* odd: nobody can choose addresses that all belong into one bucket */
};

struct count {
	__u64 packets;
	__u64 bytes;
};

enum { ACTIONS = 3 }; /* XDP_ABORTED, XDP_DROP, XDP_PASS */

struct actions {
	struct count of[ACTIONS];
};

enum { IN_BUCKET4 = 7, IN_BUCKET6 = 3 };

/* an address and its rule are one word, so that neither is ever seen with another's */
struct bucket4 {
	__u64 entry[IN_BUCKET4]; /* address << 32 | rule */
	__u32 overflowed;
	__u32 unused;
};

struct bucket6 {
	__u64 address[IN_BUCKET6][2];
	__u32 rule[IN_BUCKET6];
	__u32 overflowed;
};

/* addresses as they are in the packet; the side is part of the prefix */
struct prefix4 {
	__u32 length; /* 32 more than the rule's */
	__u32 side;
	__u32 address;
};

struct prefix6 {
	__u32 length;
	__u32 side;
	__u32 address[4];
};

/* the upper half of a hash chooses the first bucket, the lower the second */
static inline __u32 bucket_of(__u32 half, __u32 buckets)
{
	return (__u64)half * buckets >> 32;
}

static inline __u64 hash4(const __u64 seed[2], __u32 address)
{
	__u64 hash = address * seed[0];

	return (hash ^ hash >> 32) * seed[1];
}

static inline __u64 hash6(const __u64 seed[2], __u64 upper, __u64 lower)
{
	__u64 hash = (upper ^ upper >> 32) * seed[0];

	hash = (hash ^ hash >> 32 ^ lower) * seed[1];
	return (hash ^ hash >> 32) * seed[0];
}

#endif /* XDP_FILTER_H */
