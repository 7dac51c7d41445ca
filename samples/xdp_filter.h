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
 * if the first says that it overflowed.  The first few IPv4 addresses stand in a
 * bucket of the configuration, which is looked at in any case.  Prefixes stand in tries.
 */
#ifndef XDP_FILTER_H
#define XDP_FILTER_H

#include <linux/types.h>

/* which of a packet's addresses a rule looks at; both: either will do */
enum { SRC = 1, DST = 2, SIDES = SRC | DST, SIDE_BITS = 2 };

/*
 * Where rules may stand: a pair of bits in config.ask, SRC and DST, tells whether any
 * does.  Only what is asked for is looked up, but for the few.
 */
enum place {
	FEW4 = 0,
	TABLE4 = 2,
	TRIE4 = 4,
	TABLE6 = 6,
	TRIE6 = 8,
};

enum {
	MANY4 = 1 << TABLE4 | 1 << TRIE4, /* times a side */
	ANY4 = 1 << FEW4 | MANY4,
	ANY6 = 1 << TABLE6 | 1 << TRIE6,
};

enum { IN_BUCKET4 = 7, IN_BUCKET6 = 3 };

struct bucket4 {
	__u32 address[IN_BUCKET4];
	__u32 rule[IN_BUCKET4];
	__u32 overflowed;
	__u32 unused;
};

struct bucket6 {
	__u64 address[IN_BUCKET6][2];
	__u32 rule[IN_BUCKET6];
	__u32 overflowed;
};

struct config {
	__u32 ask;
	__u32 covered; /* the policy: what becomes of a packet that a rule covers, */
	__u32 uncovered; /* and of one that none does */
	__u32 slots;
	__u32 buckets4;
	__u32 buckets6;
	__u64 seed[2]; /* odd: nobody can choose addresses that all belong into one bucket */
	__u32 places; /* of the few, up to the last that has a rule; the first always */
	__u32 unused[5];
	struct bucket4 few;
};

/* each packet counts once, for its rule or in a slot that isn't a rule's */
enum {
	UNCOVERED,
	NEIGHBOURS, /* found, without a rule */
	GONE, /* all that counted for rules that were removed */
	FIRST_RULE,
};

struct count {
	__u64 packets;
	__u64 bytes;
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
static inline __u32 bucket_of(__u64 half, __u64 buckets)
{
	return half * buckets >> 32;
}

static inline __u64 hash4(const __u64 seed[2], __u64 address)
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
