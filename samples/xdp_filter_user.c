/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The user half: load the filter and attach it to interfaces, change and show its
 * rules while it runs, and end it.  -h tells the commands.
 *
 * All that is known of a filter is in its maps, pinned in one directory, whose lock
 * lets one command at a time change anything.  The book has the rules as they were
 * given, by slot; tables and tries have them as the kernel half asks for them.
 */
#define _GNU_SOURCE /* pipe2() */
#include <arpa/inet.h>
#include <getopt.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "xdp_attach.h"
#include "xdp_filter.h"

#define BPFFS "/sys/fs/bpf"
#define PARENT BPFFS "/xdplab"
#define HOME PARENT "/xdp_filter"

enum { FAILED = 1, BAD_INPUT = 2 };
enum { DEFAULT_RULES = 16384, MOST_RULES = 1 << 24, MOST_DEVICES = 64 };

static void fail(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

static void fail(int code, const char *format, ...)
{
	va_list given;

	va_start(given, format);
	vfprintf(stderr, format, given);
	va_end(given);
	fputc('\n', stderr);
	exit(code);
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size);

	if (!memory)
		fail(FAILED, "no memory for %zu times %zu bytes", count, size);
	return memory;
}

/* ---- maps */

enum { FREE, COMING, THERE, GOING }; /* COMING and GOING until sweep() */
enum { DECISION = UNCOVERED }; /* a slot that isn't a rule's, in the book */

/* a rule as it was given */
struct entry {
	__u8 address[16]; /* of IPv4 the first four */
	__u8 length;
	__u8 is_ipv6;
	__u8 sides;
	__u8 state;
	__u32 place; /* enum place */
};

struct device {
	char name[IF_NAMESIZE];
	__u32 ifindex;
	__u32 flags; /* the mode */
	__u32 has_link;
	__u32 unused;
};

/* who has loaded the filter, and what must be undone */
struct owner {
	__u64 net; /* the network namespace */
	__u64 started; /* when the holder was, in ticks since the boot: ids come again */
	__u32 holder; /* the process that will undo it; 0: nobody does by himself */
	__u32 stays;
	__u32 program;
	__u32 devices;
	struct device device[MOST_DEVICES];
};

enum map { CONFIG, COUNTERS, TABLE4_MAP, TABLE6_MAP, TRIE4_MAP, TRIE6_MAP, BOOK, OWNER, MAPS };

static const char *const names[MAPS] = {
	"config", "counters", "table4", "table6", "trie4", "trie6", "book", "owner",
};

/*
 * An array map in memory: the map's own pages, or where the kernel can't map them
 * (before v5.5) a copy, which store() writes back.
 */
struct table {
	int fd;
	__u32 entries;
	__u32 size;
	char *memory;
	bool is_mapped;
};

enum { MMAPABLE = 1 << 10, MEMBARRIER_GLOBAL = 1, MAP_UPDATE_BATCH = 26, LINK_DETACH = 34 };

/* a map's fd, or a negative errno */
static int make_map(__u32 type, const char *name, __u32 key, __u32 value, __u32 entries)
{
	union bpf_attr attr = {
		.map_type = type,
		.key_size = key,
		.value_size = value,
		.max_entries = entries,
		.map_flags = type == BPF_MAP_TYPE_ARRAY	   ? MMAPABLE :
			     type == BPF_MAP_TYPE_LPM_TRIE ? BPF_F_NO_PREALLOC : 0,
	};
	int fd;

	snprintf(attr.map_name, sizeof(attr.map_name), "%s", name);
	fd = syscall(__NR_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
	if (fd < 0 && errno == EINVAL && type == BPF_MAP_TYPE_ARRAY) {
		attr.map_flags = 0;
		fd = syscall(__NR_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
	}
	return fd < 0 ? -errno : fd;
}

/* read what the kernel half has counted meanwhile */
static void refresh(const struct table *table)
{
	__u32 i;

	for (i = 0; !table->is_mapped && i < table->entries; i++)
		if (bpf_map_lookup_elem(table->fd, &i, table->memory + (size_t)i * table->size))
			fail(FAILED, "can't read a map: %s", strerror(errno));
}

static void open_table(struct table *table, int fd, const char *name)
{
	struct bpf_map_info info = {};
	__u32 size = sizeof(info);
	size_t bytes;

	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		fail(FAILED, "can't ask the kernel about map %s: %s", name, strerror(errno));
	table->fd = fd;
	table->entries = info.max_entries;
	table->size = (info.value_size + 7) & ~7u;
	bytes = (size_t)table->entries * table->size;
	table->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	table->is_mapped = table->memory != MAP_FAILED;
	if (table->is_mapped)
		return;
	table->memory = allocate(table->entries, table->size);
	refresh(table);
}

static void *element(const struct table *table, __u32 index)
{
	return table->memory + (size_t)index * table->size;
}

/* let the kernel half see an element as it is now, and nothing of what is written later */
static void store(const struct table *table, __u32 index)
{
	atomic_thread_fence(memory_order_seq_cst);
	if (!table->is_mapped && bpf_map_update_elem(table->fd, &index, element(table, index), 0))
		fail(FAILED, "can't write to a map: %s", strerror(errno));
}

/*
 * Wait until no packet is under way that saw what was there before.  This call of
 * membarrier() is a grace period of RCU, under which XDP programs run; where it is
 * refused (nohz_full), a time in which every packet is through.
 */
static void wait_for_packets(void)
{
	if (syscall(__NR_membarrier, MEMBARRIER_GLOBAL, 0))
		usleep(100000);
}

/* ---- a filter that is loaded */

struct filter {
	int lock; /* the directory */
	int fd[MAPS];
	struct table table[MAPS]; /* those that were opened */
	struct config *config;
};

static void pin_path(char *path, size_t size, const char *name)
{
	snprintf(path, size, HOME "/%s", name);
}

static int get_pinned(const char *name)
{
	char path[256];

	pin_path(path, sizeof(path), name);
	return bpf_obj_get(path);
}

/* whether the directory that is locked is the one that is there now */
static bool is_current(const struct filter *filter)
{
	struct stat locked, there;

	return !fstat(filter->lock, &locked) && !stat(HOME, &there) &&
	       locked.st_ino == there.st_ino && locked.st_dev == there.st_dev;
}

/* let no other command in; false if nothing is loaded */
static bool open_lock(struct filter *filter)
{
	for (;;) {
		filter->lock = open(HOME, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (filter->lock < 0) {
			if (errno == ENOENT)
				return false;
			fail(FAILED, "can't open %s: %s", HOME, strerror(errno));
		}
		if (flock(filter->lock, LOCK_EX))
			fail(FAILED, "can't lock %s: %s", HOME, strerror(errno));
		if (is_current(filter))
			return true;
		close(filter->lock); /* it was removed while we waited */
	}
}

static void open_map(struct filter *filter, enum map map)
{
	filter->fd[map] = get_pinned(names[map]);
	if (filter->fd[map] < 0)
		fail(FAILED, "nothing is loaded: %s/%s: %s; xdp_filter load does that", HOME,
		     names[map], strerror(errno));
	if (map != TRIE4_MAP && map != TRIE6_MAP)
		open_table(&filter->table[map], filter->fd[map], names[map]);
}

static struct entry *entry_of(const struct filter *filter, __u32 slot)
{
	return element(&filter->table[BOOK], slot);
}

/* ---- rules in the kernel half's tables and tries */

static bool is_prefix(const struct entry *entry)
{
	return entry->length != (entry->is_ipv6 ? 128 : 32);
}

/* a bucket of one of the tables, or of the configuration */
struct bucket {
	const struct table *table;
	__u32 index; /* of the element to be stored */
	int places;
	bool is_ipv6;
	void *address;
	volatile __u32 *rule;
	volatile __u32 *overflowed;
};

static struct bucket bucket4(const struct table *table, __u32 index, struct bucket4 *bucket)
{
	return (struct bucket){ table, index, IN_BUCKET4, false, bucket->address, bucket->rule,
				&bucket->overflowed };
}

static struct bucket few_of(const struct filter *filter)
{
	return bucket4(&filter->table[CONFIG], 0, &filter->config->few);
}

/* one of the two buckets in which an address may be */
static struct bucket bucket_for(const struct filter *filter, const struct entry *entry, int which)
{
	const struct table *table = &filter->table[entry->is_ipv6 ? TABLE6_MAP : TABLE4_MAP];
	const struct config *config = filter->config;
	struct bucket6 *bucket;
	__u64 half[2], hash;
	__u32 address, index;

	if (entry->is_ipv6) {
		memcpy(half, entry->address, sizeof(half));
		hash = hash6(config->seed, half[0], half[1]);
	} else {
		memcpy(&address, entry->address, sizeof(address));
		hash = hash4(config->seed, address);
	}
	index = bucket_of(which ? hash & 0xffffffff : hash >> 32, table->entries);
	if (!entry->is_ipv6)
		return bucket4(table, index, element(table, index));
	bucket = element(table, index);
	return (struct bucket){ table, index, IN_BUCKET6, true, bucket->address, bucket->rule,
				&bucket->overflowed };
}

/* write a rule to a place in a bucket, 0 takes it away; in_bucket4() argues the order */
static void put_at(const struct bucket *bucket, int place, const void *address, __u32 rule)
{
	size_t size = bucket->is_ipv6 ? 16 : 4;

	if (bucket->rule[place]) {
		bucket->rule[place] = 0;
		store(bucket->table, bucket->index);
	}
	if (!rule)
		return;
	memcpy((char *)bucket->address + place * size, address, size);
	store(bucket->table, bucket->index);
	bucket->rule[place] = rule;
	store(bucket->table, bucket->index);
}

static void mark_overflowed(const struct bucket *bucket)
{
	if (*bucket->overflowed)
		return;
	*bucket->overflowed = 1;
	store(bucket->table, bucket->index);
}

static int free_place(const struct bucket *bucket)
{
	int place;

	for (place = 0; place < bucket->places; place++)
		if (!bucket->rule[place])
			return place;
	return -1;
}

/*
 * Make room in a full bucket: a rule goes to its other bucket.  It can be found there
 * before it is overwritten here: packets look into the first bucket first, so one that
 * goes back there is waited for.
 */
static int vacate(const struct filter *filter, const struct bucket *bucket)
{
	int place, other;

	for (place = 0; place < bucket->places; place++) {
		__u32 rule = bucket->rule[place];
		const struct entry *moved = entry_of(filter, rule >> SIDE_BITS);
		struct bucket to = bucket_for(filter, moved, 1);
		bool goes_back = to.index == bucket->index;

		if (goes_back)
			to = bucket_for(filter, moved, 0);
		other = free_place(&to);
		if (other < 0)
			continue;
		put_at(&to, other, moved->address, rule);
		if (goes_back)
			wait_for_packets();
		else
			mark_overflowed(bucket);
		return place;
	}
	return -1;
}

/* write a rule for one address to its table, if there is room where it may be */
static bool put_in_table(const struct filter *filter, const struct entry *entry, __u32 rule)
{
	int place, i;

	for (i = 0; i < 4; i++) {
		struct bucket bucket = bucket_for(filter, entry, i % 2);

		place = i < 2 ? free_place(&bucket) : vacate(filter, &bucket);
		if (place < 0)
			continue;
		put_at(&bucket, place, entry->address, rule);
		if (i % 2) {
			bucket = bucket_for(filter, entry, 0);
			mark_overflowed(&bucket);
		}
		return true;
	}
	return false;
}

static bool put_in_few(const struct filter *filter, const struct entry *entry, __u32 rule)
{
	struct bucket few = few_of(filter);
	int place = free_place(&few);

	if (place < 0)
		return false;
	put_at(&few, place, entry->address, rule);
	return true;
}

static void take_from_bucket(const struct bucket *bucket, __u32 rule)
{
	int place;

	for (place = 0; place < bucket->places; place++)
		if (bucket->rule[place] == rule)
			put_at(bucket, place, NULL, 0);
}

/* the key of a prefix for one side, in @key; returns the trie's fd */
static int trie_key(const struct filter *filter, const struct entry *entry, __u32 side,
		    struct prefix6 *key)
{
	memset(key, 0, sizeof(*key));
	key->length = 32 + entry->length;
	key->side = side;
	memcpy(key->address, entry->address, sizeof(key->address));
	return filter->fd[entry->is_ipv6 ? TRIE6_MAP : TRIE4_MAP];
}

/* prefixes for a trie, to be put into it at once */
struct prefixes {
	char *key; /* as large as the trie's are */
	__u32 *rule;
	__u32 count;
};

static void note_prefix(const struct filter *filter, struct prefixes *prefixes,
			const struct entry *entry, __u32 rule)
{
	size_t size = entry->is_ipv6 ? sizeof(struct prefix6) : sizeof(struct prefix4);
	struct prefix6 key;
	__u32 side;

	for (side = SRC; side <= DST; side++) {
		if (!(entry->sides & side))
			continue;
		trie_key(filter, entry, side, &key);
		memcpy(prefixes->key + prefixes->count * size, &key, size);
		prefixes->rule[prefixes->count++] = rule;
	}
}

/* a negative errno if the kernel doesn't take them all */
static int put_in_trie(int fd, const struct prefixes *prefixes, size_t size)
{
	struct {
		__u64 in_batch, out_batch, keys, values;
		__u32 count, fd;
		__u64 elem_flags, flags;
	} attr = {
		.keys = (unsigned long)prefixes->key,
		.values = (unsigned long)prefixes->rule,
		.count = prefixes->count,
		.fd = fd,
	};
	__u32 i;

	if (!prefixes->count || !syscall(__NR_bpf, MAP_UPDATE_BATCH, &attr, sizeof(attr)))
		return 0;
	/* a kernel before v5.13 takes them one by one, three times as slowly */
	for (i = 0; i < prefixes->count; i++)
		if (bpf_map_update_elem(fd, prefixes->key + i * size, &prefixes->rule[i], BPF_ANY))
			return -errno;
	return 0;
}

static void take_from_trie(const struct filter *filter, const struct entry *entry)
{
	struct prefix6 key;
	__u32 side;

	for (side = SRC; side <= DST; side++) {
		int fd = trie_key(filter, entry, side, &key);

		if (entry->sides & side)
			bpf_map_delete_elem(fd, &key);
	}
}

static void set_place(const struct filter *filter, __u32 slot, enum place place)
{
	entry_of(filter, slot)->place = place;
	store(&filter->table[BOOK], slot);
}

/*
 * Put a rule where the kernel half finds it, or note it for its trie, @tries[is_ipv6].  The
 * place is written down before: what is left of a command that was killed must be found.
 * A trie takes any address that the table has no room for, so there is room for as many
 * rules as there are slots.
 */
static void put(const struct filter *filter, __u32 slot, struct prefixes *tries)
{
	const struct entry *entry = entry_of(filter, slot);
	__u32 rule = slot << SIDE_BITS | entry->sides;

	if (!is_prefix(entry)) {
		if (!entry->is_ipv6) {
			set_place(filter, slot, FEW4);
			if (put_in_few(filter, entry, rule))
				return;
		}
		set_place(filter, slot, entry->is_ipv6 ? TABLE6 : TABLE4);
		if (put_in_table(filter, entry, rule))
			return;
	}
	set_place(filter, slot, entry->is_ipv6 ? TRIE6 : TRIE4);
	note_prefix(filter, &tries[entry->is_ipv6], entry, rule);
}

/* put all rules that were given where the kernel half finds them; 0, or a negative errno */
static int put_all(const struct filter *filter, const __u32 *slots, size_t count)
{
	struct prefixes tries[2];
	size_t i;
	int err;

	for (i = 0; i < ARRAY_SIZE(tries); i++) /* a rule for both sides is there twice */
		tries[i] = (struct prefixes){ allocate(2 * count, sizeof(struct prefix6)),
					      allocate(2 * count, sizeof(__u32)), 0 };
	for (i = 0; i < count; i++)
		put(filter, slots[i], tries);
	err = put_in_trie(filter->fd[TRIE4_MAP], &tries[0], sizeof(struct prefix4));
	if (!err)
		err = put_in_trie(filter->fd[TRIE6_MAP], &tries[1], sizeof(struct prefix6));
	for (i = 0; i < ARRAY_SIZE(tries); i++) {
		free(tries[i].key);
		free(tries[i].rule);
	}
	return err;
}

/* take a rule away from where it is, or would be */
static void take_away(const struct filter *filter, __u32 slot)
{
	const struct entry *entry = entry_of(filter, slot);
	__u32 rule = slot << SIDE_BITS | entry->sides;
	struct bucket bucket;
	int which;

	switch (entry->place) {
	case FEW4:
		bucket = few_of(filter);
		take_from_bucket(&bucket, rule);
		break;
	case TABLE4:
	case TABLE6:
		for (which = 0; which < 2; which++) {
			bucket = bucket_for(filter, entry, which);
			take_from_bucket(&bucket, rule);
		}
		break;
	default:
		take_from_trie(filter, entry);
	}
}

/* tell the kernel half where there are rules, but for those in the state @leaving */
static void ask_anew(const struct filter *filter, __u8 leaving)
{
	volatile struct config *config = filter->config;
	__u32 slot, ask = 0, places = IN_BUCKET4;

	for (slot = FIRST_RULE; slot < filter->config->slots; slot++) {
		const struct entry *entry = entry_of(filter, slot);

		if (entry->state != FREE && entry->state != leaving)
			ask |= entry->sides << entry->place;
	}
	while (places > 1 && !config->few.rule[places - 1])
		places--;
	config->places = places;
	config->ask = ask;
	store(&filter->table[CONFIG], 0);
}

static void set_state(const struct filter *filter, __u32 slot, __u8 state)
{
	entry_of(filter, slot)->state = state;
	store(&filter->table[BOOK], slot);
}

static void add_to(struct count *sum, const struct count *count)
{
	sum->packets += count->packets;
	sum->bytes += count->bytes;
}

/*
 * Finish what a command has decided, or take it back: with one word, the DECISION, all
 * rules that are COMING are there, and all that are GOING are gone.
 */
static void sweep(const struct filter *filter)
{
	const struct table *counters = &filter->table[COUNTERS];
	bool decided = entry_of(filter, DECISION)->state == THERE, any = false;
	__u8 leaving = decided ? GOING : COMING, staying = decided ? COMING : GOING;
	__u32 slots = filter->config->slots, slot, i;

	for (slot = FIRST_RULE; slot < slots; slot++) {
		__u8 state = entry_of(filter, slot)->state;

		if (state == staying)
			set_state(filter, slot, THERE);
		else if (state == leaving)
			take_away(filter, slot);
		any |= state == leaving;
	}
	if (any) {
		ask_anew(filter, leaving);
		wait_for_packets(); /* none counts for these rules any more, nor finds them */
	}
	for (slot = FIRST_RULE; any && slot < slots; slot++) {
		if (entry_of(filter, slot)->state != leaving)
			continue;
		for (i = slot; i < counters->entries; i += slots) {
			struct count *count = element(counters, i);

			add_to(element(counters, GONE), count);
			memset(count, 0, sizeof(*count));
			store(counters, i);
		}
		store(counters, GONE);
		set_state(filter, slot, FREE);
	}
	if (decided)
		set_state(filter, DECISION, FREE);
}

static void open_filter(struct filter *filter)
{
	enum map map;

	if (!open_lock(filter))
		fail(FAILED, "nothing is loaded: there is no %s; xdp_filter load does that", HOME);
	for (map = 0; map < MAPS; map++)
		open_map(filter, map);
	filter->config = element(&filter->table[CONFIG], 0);
	sweep(filter);
}

/* ---- rules as text */

static void print_rule(FILE *to, const struct entry *entry)
{
	static const char *const sides[] = { "", "src", "dst", "both" };
	char text[INET6_ADDRSTRLEN];

	inet_ntop(entry->is_ipv6 ? AF_INET6 : AF_INET, entry->address, text, sizeof(text));
	fprintf(to, "%s %s/%u", sides[entry->sides], text, entry->length);
}

static bool has_host_bits(const struct entry *entry)
{
	int i, bytes = entry->is_ipv6 ? 16 : 4;

	for (i = 0; i < bytes; i++) {
		int left = entry->length - 8 * i;
		__u8 mask = left >= 8 ? 0xff : left <= 0 ? 0 : 0xff << (8 - left);

		if (entry->address[i] & ~mask)
			return true;
	}
	return false;
}

static const struct {
	const char *word;
	__u8 sides;
} directions[] = {
	{ "src", SRC }, { "dst", DST }, { "both", SIDES }, { "src,dst", SIDES }, { "dst,src", SIDES },
};

static __u8 parse_sides(const char *word)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(directions); i++)
		if (!strcmp(directions[i].word, word))
			return directions[i].sides;
	return 0;
}

/* whether it is IPv4 as IPv6 writes it, ::ffff:0:0/96, which no packet carries (RFC 4291) */
static bool is_mapped(const struct entry *entry)
{
	static const __u8 mapped[12] = { [10] = 0xff, [11] = 0xff };

	return entry->is_ipv6 && entry->length > 96 &&
	       !memcmp(entry->address, mapped, sizeof(mapped));
}

static __u8 side_of_command(const char *word)
{
	__u8 sides = parse_sides(word);

	if (!sides)
		bad_input("the side must be src, dst or both", word);
	return sides;
}

static const char spaces[] = " \t\r\n\v\f";

/*
 * Read "[SIDE] ADDRESS[/LENGTH]", which is written to, @sides if it says none.
 * Returns why it is no rule, or NULL.
 */
static const char *parse_rule(char *text, __u8 sides, struct entry *entry)
{
	char *address = strtok(text, spaces), *behind = strtok(NULL, spaces), *length, *end;
	unsigned long bits;

	memset(entry, 0, sizeof(*entry));
	entry->sides = sides;
	if (behind) {
		entry->sides = parse_sides(address);
		address = behind;
	}
	if (!entry->sides)
		return "the side must be src, dst or both";
	if (behind && strtok(NULL, spaces))
		return "there is more than SIDE ADDRESS/LENGTH";
	length = strchr(address, '/');
	if (length)
		*length++ = '\0';
	entry->is_ipv6 = strchr(address, ':') != NULL;
	if (inet_pton(entry->is_ipv6 ? AF_INET6 : AF_INET, address, entry->address) != 1)
		return "no IPv4 or IPv6 address";
	bits = entry->is_ipv6 ? 128 : 32;
	entry->length = bits;
	if (length) {
		bits = strtoul(length, &end, 10);
		if (*end || *length < '0' || *length > '9' || (*length == '0' && length[1]) ||
		    bits > entry->length)
			return "no prefix length";
		entry->length = bits;
	}
	if (is_mapped(entry))
		return "IPv4 in IPv6's notation, which no packet has";
	return has_host_bits(entry) ? "the address has bits set beyond the prefix" : NULL;
}

/* a rule that a command was given, and where it was read, for messages */
struct given {
	struct entry entry;
	__u32 line;
};

struct rules {
	struct given *rule;
	size_t count, room;
};

static void append(struct rules *rules, const struct entry *entry, __u32 line)
{
	if (rules->count == rules->room) {
		rules->room = rules->room ? 2 * rules->room : 1024;
		rules->rule = realloc(rules->rule, rules->room * sizeof(*rules->rule));
		if (!rules->rule)
			fail(FAILED, "no memory for %zu rules", rules->room);
	}
	rules->rule[rules->count++] = (struct given){ *entry, line };
}

/*
 * Rules as people write them: a comment begins with #, and empty lines are passed over.
 * With @until_end up to a line "end": whoever was killed while writing leaves none.
 */
static void read_rules(FILE *from, struct rules *rules, __u8 sides, bool until_end)
{
	struct entry entry;
	char *line = NULL, *rule, *end;
	size_t size = 0;
	ssize_t length;
	__u32 number;

	for (number = 1; (length = getline(&line, &size, from)) >= 0; number++) {
		const char *why;

		if (until_end && !strcmp(line, "end\n"))
			return;
		end = strchrnul(line, '#');
		if (!*end && end != line + length)
			fail(BAD_INPUT, "rule %u: a byte that is zero", number);
		*end = '\0';
		rule = line + strspn(line, spaces);
		if (!*rule)
			continue;
		why = parse_rule(rule, sides, &entry);
		if (why)
			fail(BAD_INPUT, "rule %u: %s", number, why);
		append(rules, &entry, number);
	}
	if (ferror(from))
		fail(FAILED, "can't read the rules: %s", strerror(errno));
	if (until_end)
		fail(BAD_INPUT, "no line \"end\" ends the rules: they may not be all");
	free(line);
}

/* ---- rules that are to come or to go */

/* IPv4 first, then by address, length and side */
static int compare(const void *one, const void *other)
{
	const struct entry *a = one, *b = other;
	int difference = a->is_ipv6 - b->is_ipv6;

	if (!difference)
		difference = memcmp(a->address, b->address, sizeof(a->address));
	if (!difference)
		difference = a->length - b->length;
	return difference ? difference : a->sides - b->sides;
}

static bool has_same_prefix(const struct entry *a, const struct entry *b)
{
	return a->length == b->length && a->is_ipv6 == b->is_ipv6 &&
	       !memcmp(a->address, b->address, sizeof(a->address));
}

/* where rules for the prefix of @entry are, of some in order, or would be */
static size_t place_of(const struct rules *rules, const struct entry *entry)
{
	struct entry first = *entry;
	size_t low = 0, high = rules->count, middle;

	first.sides = 0;
	while (low < high) {
		middle = (low + high) / 2;
		if (compare(&rules->rule[middle], &first) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* the rule, of some in order, that is for the prefix and one of the sides of @entry; or NULL */
static const struct given *find(const struct rules *rules, const struct entry *entry)
{
	size_t i = place_of(rules, entry);

	for (; i < rules->count && has_same_prefix(&rules->rule[i].entry, entry); i++)
		if (rules->rule[i].entry.sides & entry->sides)
			return &rules->rule[i];
	return NULL;
}

static void refuse(const struct given *rule, const char *why, const struct entry *other)
{
	fprintf(stderr, "rule %u: ", rule->line);
	print_rule(stderr, &rule->entry);
	fprintf(stderr, " %s", why);
	if (other)
		print_rule(stderr, other);
	fputc('\n', stderr);
	exit(BAD_INPUT);
}

static __u8 byte_of(const struct given *rule, size_t at)
{
	return ((const __u8 *)&rule->entry)[at];
}

/* copy rules into the order of one byte; @count: how many have each value of it, is overwritten */
static void copy_by(size_t byte, size_t count[256], const struct rules *rules, struct given *to)
{
	size_t sum = 0, these, i;

	for (i = 0; i < 256; i++) {
		these = count[i];
		count[i] = sum;
		sum += these;
	}
	for (i = 0; i < rules->count; i++)
		to[count[byte_of(&rules->rule[i], byte)]++] = rules->rule[i];
}

/*
 * As compare() says, by one byte after the other, the last one first: those that are alike
 * in it stay as they were.  A million take a fifth of the time that comparing them does.
 */
static void sort(struct rules *rules)
{
	enum { BYTES = offsetof(struct entry, state) };
	static const __u8 last_first[BYTES] = {
		offsetof(struct entry, sides), offsetof(struct entry, length),
		15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, /* of the address */
		offsetof(struct entry, is_ipv6),
	};
	size_t (*count)[256] = allocate(BYTES, sizeof(*count)), i, byte;
	struct given *to = allocate(rules->count, sizeof(*to)), *from;

	for (i = 0; i < rules->count; i++)
		for (byte = 0; byte < BYTES; byte++)
			count[byte][byte_of(&rules->rule[i], byte)]++;
	for (i = 0; rules->count && i < BYTES; i++) {
		byte = last_first[i];
		from = rules->rule;
		if (count[byte][byte_of(from, byte)] == rules->count)
			continue; /* they are all alike */
		copy_by(byte, count[byte], rules, to);
		rules->rule = to;
		to = from;
	}
	rules->room = rules->count;
	free(to);
	free(count);
}

/* bring rules into order, and refuse two for a prefix and a side: such are neighbours then */
static void put_in_order(struct rules *rules)
{
	const struct given *twice = NULL, *see = NULL;
	size_t i;

	sort(rules);
	for (i = 1; i < rules->count; i++) {
		const struct given *first = &rules->rule[i - 1], *second = &rules->rule[i], *later;

		if (!(first->entry.sides & second->entry.sides) ||
		    !has_same_prefix(&first->entry, &second->entry))
			continue;
		later = first->line > second->line ? first : second;
		if (!twice || later->line < twice->line) {
			twice = later;
			see = later == first ? second : first;
		}
	}
	if (twice)
		refuse(twice, "is given twice, see ", &see->entry);
}

/* refuse rules for a prefix and a side that has one; returns how many rules there are */
static size_t require_new(const struct filter *filter, const struct rules *rules)
{
	const struct given *first = NULL;
	__u32 slot, there = 0;
	size_t count = 0;

	for (slot = FIRST_RULE; slot < filter->config->slots; slot++) {
		const struct entry *entry = entry_of(filter, slot);
		const struct given *rule;

		if (entry->state == FREE)
			continue;
		count++;
		rule = find(rules, entry);
		if (rule && (!first || rule->line < first->line)) {
			first = rule;
			there = slot;
		}
	}
	if (first)
		refuse(first, "is there already: ", entry_of(filter, there));
	return count;
}

static bool is_within(const struct entry *inner, const struct entry *outer)
{
	int bytes = outer->length / 8, bits = outer->length % 8;

	return inner->is_ipv6 == outer->is_ipv6 && inner->length > outer->length &&
	       !memcmp(inner->address, outer->address, bytes) &&
	       (!bits || !((inner->address[bytes] ^ outer->address[bytes]) >> (8 - bits)));
}

/*
 * Tell of rules, in order, that change nothing, as a wider one is there too.  Prefixes lie
 * in each other or apart: what a rule lies in begins with the last that lies in no other.
 */
static void tell_needless(const struct rules *rules)
{
	enum { TOLD = 7 };
	const struct given *outer[SIDES + 1] = {}; /* for just these sides */
	size_t needless = 0, i;

	for (i = 0; i < rules->count; i++) {
		const struct given *rule = &rules->rule[i], *wide = NULL;
		const struct given **same = &outer[rule->entry.sides], *both = outer[SIDES];

		if (*same && is_within(&rule->entry, &(*same)->entry))
			wide = *same;
		else
			*same = rule;
		if (both && is_within(&rule->entry, &both->entry) &&
		    (!wide || both->entry.length < wide->entry.length))
			wide = both;
		if (!wide || ++needless > TOLD)
			continue;
		fprintf(stderr, "rule %u: ", rule->line);
		print_rule(stderr, &rule->entry);
		fprintf(stderr, " is needless: ");
		print_rule(stderr, &wide->entry);
		fprintf(stderr, ", in rule %u, covers all of it\n", wide->line);
	}
	if (needless > TOLD)
		fprintf(stderr, "and %zu more are needless\n", needless - TOLD);
}

/* ---- what rules are there for whom */

/* print the rules, of some in order, whose prefix an address is in, the longest first */
static void print_covering(const struct rules *rules, const struct entry *address)
{
	struct entry prefix = *address;
	size_t i;

	for (;; prefix.address[prefix.length / 8] &= ~(0x80 >> prefix.length % 8)) {
		i = place_of(rules, &prefix);
		for (; i < rules->count && has_same_prefix(&rules->rule[i].entry, &prefix); i++) {
			printf("covers ");
			print_rule(stdout, &rules->rule[i].entry);
			putchar('\n');
		}
		if (!prefix.length--)
			return;
	}
}

/* tell of rules, in order, which cover some addresses, and how many there are */
static void tell(const struct rules *rules, int addresses, char **address)
{
	size_t count[2] = {}, i;
	struct entry asked;
	const char *why;

	for (; addresses; addresses--, address++) {
		why = parse_rule(*address, SRC, &asked);
		if (why)
			bad_input(why, *address);
		print_covering(rules, &asked);
	}
	for (i = 0; i < rules->count; i++)
		count[rules->rule[i].entry.is_ipv6]++;
	printf("ipv4 %zu\nipv6 %zu\n", count[0], count[1]);
}

/* tell what some rules are, without a filter */
static int check(const char *side, int addresses, char **address)
{
	struct rules rules = {};

	read_rules(stdin, &rules, side_of_command(side), false);
	if (!rules.count)
		fail(BAD_INPUT, "there is no rule");
	put_in_order(&rules);
	tell(&rules, addresses, address);
	return 0;
}

/* ---- rules come and go */

static void add(const struct filter *filter, struct rules *rules)
{
	__u32 *chosen = allocate(rules->count, sizeof(*chosen)), slot = FIRST_RULE;
	size_t room = filter->config->slots - FIRST_RULE, there, i;
	int err;

	put_in_order(rules);
	there = require_new(filter, rules);
	if (rules->count > room - there)
		fail(BAD_INPUT, "no room for %zu more: %zu of %zu rules are there; load -n takes more",
		     rules->count, there, room);

	for (i = 0; i < rules->count; i++, slot++) {
		while (entry_of(filter, slot)->state != FREE)
			slot++;
		chosen[i] = slot;
		rules->rule[i].entry.state = COMING;
		*entry_of(filter, slot) = rules->rule[i].entry;
		store(&filter->table[BOOK], slot);
	}
	err = put_all(filter, chosen, rules->count);
	if (err) {
		sweep(filter);
		fail(FAILED, "the kernel doesn't take all rules, so none was added: %s",
		     strerror(-err));
	}
	ask_anew(filter, FREE);
	set_state(filter, DECISION, THERE);
	sweep(filter);
	tell_needless(rules);
	free(chosen);
}

static void take(const struct filter *filter, struct rules *rules)
{
	__u32 *chosen = allocate(rules->count, sizeof(*chosen)), slot;
	size_t i;

	put_in_order(rules);
	for (slot = FIRST_RULE; slot < filter->config->slots; slot++) {
		const struct entry *entry = entry_of(filter, slot);
		const struct given *rule = entry->state == FREE ? NULL : find(rules, entry);

		if (rule && rule->entry.sides == entry->sides)
			chosen[rule - rules->rule] = slot;
	}
	for (i = 0; i < rules->count; i++)
		if (!chosen[i])
			refuse(&rules->rule[i], "is not there", NULL);
	for (i = 0; i < rules->count; i++)
		set_state(filter, chosen[i], GOING);
	set_state(filter, DECISION, THERE);
	sweep(filter);
	free(chosen);
}

static int change(void (*how)(const struct filter *, struct rules *), const char *side)
{
	struct rules rules = {};
	struct filter filter;
	sigset_t unblocked;

	read_rules(stdin, &rules, side_of_command(side), false);
	catch_signals(&unblocked); /* what is begun is done as a whole */
	open_filter(&filter);
	how(&filter, &rules);
	return 0;
}

/* ---- what is there, and what was counted */

struct line {
	struct entry entry;
	struct count count;
};

static int list(void)
{
	struct filter filter;
	struct line *lines;
	__u32 slot, i, rules = 0;

	open_filter(&filter);
	lines = allocate(filter.config->slots, sizeof(*lines));
	for (slot = FIRST_RULE; slot < filter.config->slots; slot++) {
		if (entry_of(&filter, slot)->state != THERE)
			continue;
		lines[rules].entry = *entry_of(&filter, slot);
		for (i = slot; i < filter.table[COUNTERS].entries; i += filter.config->slots)
			add_to(&lines[rules].count, element(&filter.table[COUNTERS], i));
		rules++;
	}
	close(filter.lock);
	qsort(lines, rules, sizeof(*lines), compare);
	for (i = 0; i < rules; i++) {
		print_rule(stdout, &lines[i].entry);
		printf(" %llu %llu\n", lines[i].count.packets, lines[i].count.bytes);
	}
	return 0;
}

/* what passed and was dropped on one CPU is added */
static void add_actions(const struct filter *filter, __u32 cpu, struct count *passed,
			struct count *dropped)
{
	const struct config *config = filter->config;
	struct count *of[] = { [XDP_PASS] = passed, [XDP_DROP] = dropped };
	__u32 slot;

	for (slot = UNCOVERED; slot < config->slots; slot++)
		add_to(slot == UNCOVERED  ? of[config->uncovered] :
		       slot == NEIGHBOURS ? passed : of[config->covered],
		       element(&filter->table[COUNTERS], cpu * config->slots + slot));
}

static __u64 this_net(void)
{
	struct stat net;

	return stat("/proc/self/ns/net", &net) ? 0 : net.st_ino;
}

static int stats(int addresses, char **address)
{
	const struct owner *owner;
	struct count passed = {}, dropped = {};
	struct rules there = {};
	struct filter filter;
	__u32 slot, i;

	open_filter(&filter);
	owner = element(&filter.table[OWNER], 0);
	for (slot = FIRST_RULE; slot < filter.config->slots; slot++)
		if (entry_of(&filter, slot)->state == THERE)
			append(&there, entry_of(&filter, slot), 0);
	printf("policy %s\n", filter.config->covered == XDP_PASS ? "deny" : "allow");
	printf("rules %zu of %u\n", there.count, filter.config->slots - FIRST_RULE);
	if (addresses)
		sort(&there);
	tell(&there, addresses, address);
	for (i = 0; i < owner->devices; i++) {
		const struct device *device = &owner->device[i];

		xdp_flags = device->flags; /* of mode_name() */
		if (owner->net != this_net() || if_nametoindex(device->name) == device->ifindex)
			printf("dev %s mode %s prog %u\n", device->name, mode_name(),
			       owner->program);
	}
	for (i = 0; i < filter.table[COUNTERS].entries / filter.config->slots; i++)
		add_actions(&filter, i, &passed, &dropped);
	printf("pass %llu %llu\n", passed.packets, passed.bytes);
	printf("drop %llu %llu\n", dropped.packets, dropped.bytes);
	printf("aborted 0 0\n"); /* the kernel half aborts nothing */
	return 0;
}

/* ---- the end */

/* when a process was started, in ticks since the boot; 0: it isn't there */
static __u64 start_of(pid_t pid)
{
	unsigned long long started = 0;
	char path[64], text[1024], *at;
	FILE *file;
	int field;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
	fclose(file);
	at = strrchr(text, ')'); /* the name before it may hold anything */
	if (!at || at[1] != ' ' || at[2] == 'Z')
		return 0;
	for (field = 2; field < 22 && at; field++)
		at = strchr(at + 1, ' ');
	if (at)
		sscanf(at, "%llu", &started);
	return started;
}

static bool is_held(const struct owner *owner)
{
	return owner->holder && start_of(owner->holder) == owner->started;
}

static void link_path(char *path, size_t size, const struct device *device)
{
	snprintf(path, size, HOME "/link_%u", device->ifindex);
}

/* only our own program, whatever happened meanwhile; false, with words, if it can't be */
static bool detach_from(const struct owner *owner, const struct device *device)
{
	static const __u32 either[] = { XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE };
	struct {
		__u32 fd;
	} attr;
	char path[128];
	unsigned int i;
	int fd;

	if (device->has_link) {
		link_path(path, sizeof(path), device);
		fd = bpf_obj_get(path);
		if (fd < 0)
			return true; /* it went with its process */
		attr.fd = fd;
		syscall(__NR_bpf, LINK_DETACH, &attr, sizeof(attr));
		close(fd);
		unlink(path);
		return true;
	}
	if (owner->net != this_net()) {
		fprintf(stderr, "%s is in another network namespace: unload there\n", device->name);
		return false;
	}
	for (i = 0; i < ARRAY_SIZE(either); i++) { /* one killed in between had told no mode yet */
		__u32 unknown = either[i] == device->flags ? owner->program : 0;

		if (xdp_netlink_id(device->ifindex, either[i], unknown) == owner->program)
			xdp_netlink_set(device->ifindex, -1, either[i]);
	}
	return true;
}

/* take off and remove what is left of a filter; its directory is locked */
static bool clear_home(const struct owner *owner)
{
	char path[128];
	__u32 i, map;

	for (i = 0; i < owner->devices; i++)
		if (!detach_from(owner, &owner->device[i]))
			return false;
	for (map = 0; map < MAPS; map++) {
		pin_path(path, sizeof(path), names[map]);
		unlink(path);
	}
	return true;
}

static bool undo(const struct owner *owner)
{
	if (!clear_home(owner))
		return false;
	rmdir(HOME);
	rmdir(PARENT);
	return true;
}

/* who has loaded the filter; nobody if it is half made or half undone */
static struct owner read_owner(void)
{
	struct owner owner = {};
	int fd = get_pinned(names[OWNER]);
	__u32 key = 0;

	if (fd >= 0) {
		if (bpf_map_lookup_elem(fd, &key, &owner))
			memset(&owner, 0, sizeof(owner));
		close(fd);
	}
	return owner;
}

/* undo what a process has loaded, unless somebody did before, and loaded it anew */
static bool undo_of(pid_t holder, __u64 started)
{
	struct filter filter;
	struct owner owner;

	if (!open_lock(&filter))
		return true;
	owner = read_owner();
	if (owner.net && (owner.holder != (__u32)holder || owner.started != started))
		return true;
	return undo(&owner); /* without an owner it is half made, and its maker has gone */
}

static int unload(void)
{
	struct filter filter;
	struct owner owner;
	sigset_t unblocked;
	int tries;

	catch_signals(&unblocked);
	if (!open_lock(&filter))
		fail(FAILED, "nothing is loaded: there is no %s", HOME);
	owner = read_owner();
	if (!is_held(&owner))
		return undo(&owner) ? 0 : FAILED;
	close(filter.lock); /* the holder needs it */
	kill(owner.holder, SIGTERM);
	for (tries = 0; tries < 500 && is_held(&owner); tries++)
		usleep(10000);
	if (is_held(&owner))
		fail(FAILED, "process %u holds the filter and doesn't end", owner.holder);
	return undo_of(owner.holder, owner.started) ? 0 : FAILED;
}

/* ---- the beginning */

struct options {
	const char *dev[MOST_DEVICES];
	__u32 devices;
	bool denies; /* the policy */
	__u32 flags; /* the mode; 0: native where it can be had, else generic */
	__u32 most; /* rules */
	bool stays;
	bool watch_stdin;
	double seconds; /* until the end; 0: none is set */
	double interval; /* between two rounds of counters; 0: none are printed */
	struct rules rules; /* that are there from the beginning */
};

static int link_fds[MOST_DEVICES];

enum { UNDONE = 'u', STAYS = 's' };

/*
 * A child in a session of its own, which outlives what kills our process group.  It
 * undoes what we have loaded if we go without a word, or, if it is to stay for a time,
 * when that is over.  Returns its id.
 */
static pid_t watch_filter(const struct filter *filter, const struct options *options,
			  const sigset_t *unblocked)
{
	pid_t holder = getpid(), child;
	__u64 started = start_of(holder);
	int alive[2], nothing;
	char word = 0;

	if (pipe2(alive, O_CLOEXEC) || (child = fork()) < 0)
		fail(FAILED, "no watchdog, without which kill -9 would leave the filter: %s",
		     strerror(errno));
	if (child) {
		close(alive[0]);
		watchdog_fd = alive[1];
		return child;
	}
	setsid();
	close(alive[1]);
	close(filter->lock);
	if (read(alive[0], &word, 1) == 1 && word == STAYS && options->seconds) {
		nothing = open("/dev/null", O_RDWR);
		dup2(nothing, STDIN_FILENO);
		dup2(nothing, STDOUT_FILENO);
		dup2(nothing, STDERR_FILENO);
		holder = getpid();
		started = start_of(holder);
		wait_round(options->seconds, false, unblocked);
		word = 0;
	}
	_exit(word || undo_of(holder, started) ? 0 : FAILED);
}

static void say_to_watchdog(char word)
{
	if (watchdog_fd >= 0 && write(watchdog_fd, &word, 1) != 1)
		perror("watchdog");
	watchdog_fd = -1;
}

/* the directory, locked, with nothing in it */
static void make_home(struct filter *filter)
{
	enum { BPF_FS = (int)0xcafe4a11 };
	struct owner owner;
	struct statfs fs;
	__u32 i;

	if (statfs(BPFFS, &fs) || (int)fs.f_type != BPF_FS)
		fail(FAILED, "there is no BPF file system at %s: mount -t bpf bpf %s", BPFFS, BPFFS);
	do {
		if ((mkdir(PARENT, 0700) && errno != EEXIST) || (mkdir(HOME, 0700) && errno != EEXIST))
			fail(FAILED, "can't make %s: %s", HOME, strerror(errno));
	} while (!open_lock(filter));
	owner = read_owner();
	if (owner.stays || is_held(&owner)) {
		fprintf(stderr, "a filter is loaded already, on");
		for (i = 0; i < owner.devices; i++)
			fprintf(stderr, " %s", owner.device[i].name);
		if (is_held(&owner))
			fprintf(stderr, ", held by process %u", owner.holder);
		fail(FAILED, ": xdp_filter unload ends it");
	}
	if (!clear_home(&owner)) /* what a killed one left */
		exit(FAILED);
}

static void make_maps(struct filter *filter, const struct options *options)
{
	__u64 slots = FIRST_RULE + options->most, counters = slots * bpf_num_possible_cpus();
	__u32 key = 0, map;
	const struct {
		__u32 type, key, value;
		__u64 entries;
	} shapes[MAPS] = {
		[CONFIG] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct config), 1 },
		[COUNTERS] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct count), counters },
		/* half full at most, so that few buckets overflow */
		[TABLE4_MAP] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct bucket4),
				 2 * slots / IN_BUCKET4 + 1 },
		[TABLE6_MAP] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct bucket6),
				 2 * slots / IN_BUCKET6 + 1 },
		/* a rule for both sides is there twice */
		[TRIE4_MAP] = { BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix4), 4, 2 * slots },
		[TRIE6_MAP] = { BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix6), 4, 2 * slots },
		[BOOK] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct entry), slots },
		[OWNER] = { BPF_MAP_TYPE_ARRAY, 4, sizeof(struct owner), 1 },
	};

	for (map = 0; map < MAPS; map++) {
		int fd = -E2BIG;

		if (shapes[map].entries <= ~0u)
			fd = make_map(shapes[map].type, names[map], shapes[map].key,
				      shapes[map].value, shapes[map].entries);
		if (fd < 0)
			fail(FAILED, "can't make the map %s of %llu times %u bytes: %s%s", names[map],
			     (unsigned long long)shapes[map].entries, shapes[map].value,
			     strerror(-fd), fd == -EPERM ? ", it takes root" : "");
		filter->fd[map] = fd;
		if (shapes[map].type == BPF_MAP_TYPE_ARRAY)
			open_table(&filter->table[map], fd, names[map]);
	}
	filter->config = element(&filter->table[CONFIG], key);
	filter->config->covered = options->denies ? XDP_PASS : XDP_DROP;
	filter->config->uncovered = options->denies ? XDP_DROP : XDP_PASS;
	filter->config->slots = slots;
	filter->config->buckets4 = filter->table[TABLE4_MAP].entries;
	filter->config->buckets6 = filter->table[TABLE6_MAP].entries;
	if (getrandom(filter->config->seed, sizeof(filter->config->seed), 0) < 0)
		fail(FAILED, "no random numbers: %s", strerror(errno));
	filter->config->seed[0] |= 1;
	filter->config->seed[1] |= 1;
	store(&filter->table[CONFIG], key);
}

/* load the kernel half, which lies beside this program, with our maps: its fd */
static int load_program(const struct filter *filter)
{
	char path[4096];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 32);
	struct bpf_program *program, *xdp = NULL;
	struct bpf_object *object;
	__u32 map;
	int err;

	if (length < 0)
		fail(FAILED, "can't tell where this program is: %s", strerror(errno));
	path[length] = '\0';
	strcpy(strrchr(path, '/') + 1, "xdp_filter_kern.o");
	object = bpf_object__open(path);
	err = libbpf_get_error(object);
	if (err)
		fail(FAILED, "can't open %s: %s", path, strerror(-err));
	bpf_object__for_each_program(program, object) {
		bpf_program__set_type(program, BPF_PROG_TYPE_XDP);
		xdp = program;
	}
	for (map = 0; map < BOOK; map++) {
		struct bpf_map *declared = bpf_object__find_map_by_name(object, names[map]);

		if (!declared && map == CONFIG) /* as global data, under libbpf's name for that */
			declared = bpf_object__find_map_by_name(object, "xdp_filt.bss");
		if (!declared || bpf_map__reuse_fd(declared, filter->fd[map]))
			fail(FAILED, "%s can't be given its map %s", path, names[map]);
	}
	err = bpf_object__load(object);
	if (err || !xdp)
		fail(FAILED, "can't load %s: %s", path, strerror(-err));
	return bpf_program__fd(xdp);
}

static void pin_maps(const struct filter *filter)
{
	char path[128];
	__u32 map;

	for (map = 0; map < MAPS; map++) {
		pin_path(path, sizeof(path), names[map]);
		if (bpf_obj_pin(filter->fd[map], path))
			fail(FAILED, "can't pin %s: %s", path, strerror(errno));
	}
}

static void attach_all(const struct filter *filter, const struct options *options, int prog_fd)
{
	struct owner *owner = element(&filter->table[OWNER], 0);
	struct bpf_prog_info info = {};
	__u32 size = sizeof(info), i;

	if (bpf_obj_get_info_by_fd(prog_fd, &info, &size))
		fail(FAILED, "can't ask the kernel about the program: %s", strerror(errno));
	owner->program = info.id;
	for (i = 0; i < options->devices; i++) {
		struct device *device = &owner->device[i];

		ifindex = device->ifindex = if_nametoindex(options->dev[i]);
		snprintf(device->name, sizeof(device->name), "%s", options->dev[i]);
		owner->devices = i + 1;
		store(&filter->table[OWNER], 0); /* before: the watchdog must know what to undo */
		xdp_flags = options->flags;
		if (attach_unwatched(prog_fd, device->name)) {
			owner->devices = i; /* what is there is somebody else's */
			exit(FAILED);
		}
		link_fds[i] = link_fd;
		device->flags = xdp_flags;
		store(&filter->table[OWNER], 0);
	}
}

/* what outlives us is pinned; without a link the interface itself keeps the program */
static void pin_links(const struct filter *filter)
{
	struct owner *owner = element(&filter->table[OWNER], 0);
	char path[128];
	__u32 i;

	for (i = 0; i < owner->devices; i++) {
		if (link_fds[i] < 0)
			continue;
		link_path(path, sizeof(path), &owner->device[i]);
		if (bpf_obj_pin(link_fds[i], path))
			fail(FAILED, "can't pin %s: %s", path, strerror(errno));
		owner->device[i].has_link = 1;
		store(&filter->table[OWNER], 0);
	}
}

/* each CPU's drops, as xdp_ip_filter prints them */
static void print_round(const struct filter *filter, int round)
{
	__u32 cpu, cpus = filter->table[COUNTERS].entries / filter->config->slots;

	refresh(&filter->table[COUNTERS]);
	printf("%d\n", round);
	for (cpu = 0; cpu < cpus; cpu++) {
		struct count passed = {}, dropped = {};

		add_actions(filter, cpu, &passed, &dropped);
		printf("cpu %u, value = %llu\n", cpu, dropped.packets);
	}
	printf("\n\n");
}

/* stay attached until told to end, or until the time is over */
static void stay_on(const struct filter *filter, const struct options *options,
		    const sigset_t *unblocked)
{
	double left = options->seconds ? options->seconds : 1e9, step;
	int round;

	for (round = 0; !stop && left > 0; round++, left -= step) {
		step = options->interval && options->interval < left ? options->interval : left;
		if (options->interval)
			print_round(filter, round);
		if (ferror(stdout)) /* nobody reads any more */
			break;
		wait_round(step, options->watch_stdin, unblocked);
	}
}

static struct filter loaded;

/* however main() ends, nothing of ours stays that isn't meant to */
static void end_loaded(void)
{
	static const struct owner nobody;
	__u32 i;

	if (watchdog_fd < 0)
		return;
	for (i = 0; i < MOST_DEVICES; i++)
		if (link_fds[i] >= 0)
			close(link_fds[i]);
	flock(loaded.lock, LOCK_EX);
	if (is_current(&loaded))
		undo(loaded.table[OWNER].memory ? element(&loaded.table[OWNER], 0) : &nobody);
	say_to_watchdog(UNDONE);
}

static int load(struct options *options)
{
	struct filter *filter = &loaded;
	sigset_t unblocked;
	struct owner *owner;
	pid_t watchdog;
	int prog_fd;

	catch_signals(&unblocked);
	setvbuf(stdout, NULL, _IOLBF, 0);
	memset(link_fds, -1, sizeof(link_fds));

	make_home(filter);
	watchdog = watch_filter(filter, options, &unblocked);
	atexit(end_loaded);
	make_maps(filter, options);
	owner = element(&filter->table[OWNER], 0);
	owner->net = this_net();
	owner->holder = getpid();
	owner->started = start_of(owner->holder);
	store(&filter->table[OWNER], 0);
	pin_maps(filter);
	prog_fd = load_program(filter);
	add(filter, &options->rules);
	attach_all(filter, options, prog_fd);
	if (options->stays) {
		pin_links(filter);
		owner->holder = options->seconds ? watchdog : 0;
		owner->started = options->seconds ? start_of(watchdog) : 0;
		owner->stays = 1;
		store(&filter->table[OWNER], 0);
		say_to_watchdog(STAYS);
		if (options->seconds)
			fprintf(stderr, "process %d undoes it in %g s\n", watchdog, options->seconds);
		return 0;
	}
	flock(filter->lock, LOCK_UN);
	stay_on(filter, options, &unblocked);
	return 0;
}

/* ---- the command line */

static void usage(FILE *to)
{
	fprintf(to,
		"usage: xdp_filter load -d DEV [-d DEV...] [-p allow|deny] [-m native|skb]\n"
		"                       [-i ADDRESS]... [-r] [-n RULES] [-t SECONDS] [-s] [-f SECONDS] [-e]\n"
		"       xdp_filter add|remove [src|dst|both] < RULES\n"
		"       xdp_filter check src|dst|both [ADDRESS]... < RULES\n"
		"       xdp_filter stats [ADDRESS]...\n"
		"       xdp_filter list|unload\n"
		"Drop the packets that a rule covers, or all others; count what became of them.\n"
		"  -d DEV      an interface to attach to; several may be given\n"
		"  -p POLICY   allow: drop what a rule covers; deny: drop all else (allow)\n"
		"  -m MODE     native or skb (generic); native where it can be had, else skb\n"
		"  -i ADDRESS  a source that a rule covers from the beginning, ADDRESS[/LENGTH]\n"
		"  -r          read rules from standard input too, up to a line \"end\"\n"
		"  -n RULES    how many rules there can be, 0 for the usual number (16384)\n"
		"  -t SECONDS  print each CPU's drops after every so many seconds\n"
		"  -s          stay: end at once, and leave the filter in place until unload\n"
		"  -f SECONDS  undo it all after so many seconds, with -s too\n"
		"  -e          stop also when standard input ends\n"
		"  -h          this text\n"
		"A rule is a line: [src|dst|both] ADDRESS[/LENGTH], IPv4 or IPv6; # begins a comment.\n"
		"Without a side it is for that of the command, src.  If one of them can't be added\n"
		"or removed, none is.  check tells what is wrong with them, or like stats how many there\n"
		"are of each version of IP, and which of them cover some addresses; it takes no root.\n");
}

/* a number that isn't 0 */
static double parse_some(const char *what, const char *given, double most)
{
	double number = parse_number(what, given, most);

	if (!number)
		bad_input(what, given);
	return number;
}

static void parse_dev(struct options *options, const char *dev)
{
	__u32 i;

	if (!if_nametoindex(dev))
		bad_input("no such interface", dev);
	for (i = 0; i < options->devices; i++)
		if (!strcmp(options->dev[i], dev))
			bad_input("an interface is given twice", dev);
	if (options->devices == MOST_DEVICES)
		bad_input("more interfaces than can be had", dev);
	options->dev[options->devices++] = dev;
}

static void parse_source(struct options *options, const char *address)
{
	struct entry entry;
	const char *why;
	char text[128];

	snprintf(text, sizeof(text), "%s", address);
	why = parse_rule(text, SRC, &entry);
	if (why)
		bad_input(why, address);
	append(&options->rules, &entry, options->rules.count + 1);
}

static struct options parse_load(int argc, char **argv)
{
	struct options options = { .most = DEFAULT_RULES };
	bool reads_rules = false;
	int opt;

	while ((opt = getopt(argc, argv, "d:p:m:i:rn:t:sf:eh")) != -1) {
		switch (opt) {
		case 'd':
			parse_dev(&options, optarg);
			break;
		case 'p':
			if (strcmp(optarg, "allow") && strcmp(optarg, "deny"))
				bad_input("no such policy", optarg);
			options.denies = !strcmp(optarg, "deny");
			break;
		case 'm':
			options.flags = parse_mode(optarg);
			break;
		case 'i':
			parse_source(&options, optarg);
			break;
		case 'r':
			reads_rules = true;
			break;
		case 'n':
			options.most = parse_number("no number of rules", optarg, MOST_RULES);
			if (!options.most)
				options.most = DEFAULT_RULES;
			break;
		case 't':
			options.interval = parse_some("no number of seconds", optarg, 1e6);
			break;
		case 's':
			options.stays = true;
			break;
		case 'f':
			options.seconds = parse_some("no number of seconds", optarg, 1e9);
			break;
		case 'e':
			options.watch_stdin = true;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(BAD_INPUT);
		}
	}
	if (optind < argc)
		bad_input("one argument too many", argv[optind]);
	if (!options.devices)
		fail(BAD_INPUT, "no interface is named: -d DEV");
	if (reads_rules)
		read_rules(stdin, &options.rules, SRC, true);
	return options;
}

static int run_load(int argc, char **argv)
{
	struct options options = parse_load(argc, argv);

	return load(&options);
}

int main(int argc, char **argv)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	const char *command = argc > 1 ? argv[1] : "";

	setrlimit(RLIMIT_MEMLOCK, &unlimited); /* for kernels before v5.11 */
	keep_caps_to_attach(); /* no command does more */

	if (!strcmp(command, "load"))
		return run_load(argc - 1, argv + 1);
	if (*command == '-') /* as xdp_ip_filter is run */
		return run_load(argc, argv);
	if ((argc == 2 || argc == 3) && !strcmp(command, "add"))
		return change(add, argc == 3 ? argv[2] : "src");
	if ((argc == 2 || argc == 3) && !strcmp(command, "remove"))
		return change(take, argc == 3 ? argv[2] : "src");
	if (argc == 2 && !strcmp(command, "list"))
		return list();
	if (argc > 2 && !strcmp(command, "check"))
		return check(argv[2], argc - 3, argv + 3);
	if (argc > 1 && !strcmp(command, "stats"))
		return stats(argc - 2, argv + 2);
	if (argc == 2 && !strcmp(command, "unload"))
		return unload();
	usage(stderr);
	return BAD_INPUT;
}
