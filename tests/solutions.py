"""Answers to the exercises, right and wrong: edits of the pair that each begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Edit = tuple[str, str]  # what is there, and what replaces it, wherever it is


@dataclass(frozen=True, slots=True)
class Answer:
    """Edits of the two halves, one after the other."""

    kern: tuple[Edit, ...] = ()
    user: tuple[Edit, ...] = ()

    def write(self, files: tuple[Path, Path]) -> None:
        """Edit the files."""
        for file, edits in zip(files, (self.kern, self.user), strict=True):
            text = file.read_text()
            for old, new in edits:
                assert old in text, f"{file.name} has no {old!r}"
                text = text.replace(old, new)
            file.write_text(text)


@dataclass(frozen=True, slots=True)
class Mistake:
    """Edits that make a right answer wrong, and words of all that must be told of it, in order."""

    exercise: str
    name: str
    told: tuple[str, ...]
    kern: tuple[Edit, ...] = ()
    user: tuple[Edit, ...] = ()

    @property
    def edits(self) -> Answer:
        """What is to be done after the right answer."""
        return Answer(self.kern, self.user)


_COUNTER_MAP = "BPF_MAP(counter_map, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1);"
_PRINTED = '\t\t\tprintf("cpu %u, value = %llu\\n", j, values[j]);\n'
_SOURCE = "\tif (iph->saddr != *ip)\n\t\treturn XDP_PASS;\n"
_IPV4 = "\tif (eth->h_proto != htons(ETH_P_IP))\n\t\treturn XDP_PASS;\n"

SOLUTIONS = {
    "passed": Answer(
        kern=(
            (_COUNTER_MAP, _COUNTER_MAP.replace("1)", "2)")),
            ("return XDP_PASS;", "return passed();"),
            (
                'SEC("xdp_ip_filter")',
                """\
static __always_inline int passed(void)
{
	__u32 key = 1;
	__u64 *counter = bpf_map_lookup_elem(&counter_map, &key);

	if (counter)
		*counter += 1;
	return XDP_PASS;
}

SEC("xdp_ip_filter")""",
            ),
        ),
        user=(
            (
                _PRINTED,
                f"""{_PRINTED}\
		__u32 second = 1;
		__u64 passed = 0;

		bpf_map_lookup_elem(map_fd[1], &second, values);
		for (j = 0; j < nr_cpus; j++)
			passed += values[j];
		printf("passed %llu\\n", passed);
""",
            ),
        ),
    ),
    "destination": Answer(kern=(("iph->saddr", "iph->daddr"),)),
    "vlan": Answer(
        kern=(
            ("struct iphdr *iph = data + sizeof(*eth);", "struct iphdr *iph = (void *)(eth + 1);"),
            (
                "\t__u32 key = 0;",
                "\tstruct { __be16 tci, proto; } *tag;\n\t__be16 proto;\n\t__u32 key = 0;",
            ),
            (
                _IPV4,
                """\
	proto = eth->h_proto;
	if (proto == htons(ETH_P_8021Q)) {
		tag = (void *)(eth + 1);
		if ((void *)(tag + 1) > data_end)
			return XDP_PASS;
		proto = tag->proto;
		iph = (void *)(tag + 1);
	}
	if (proto != htons(ETH_P_IP))
		return XDP_PASS;
""",
            ),
        ),
    ),
    "prefix": Answer(
        kern=(
            (
                "BPF_MAP_TYPE_HASH, __u32, __u32, 1);",
                "BPF_MAP_TYPE_HASH, __u32, struct prefix, 1);",
            ),
            (
                "/* key 0: the address",
                "struct prefix {\n\t__u32 address, mask;\n};\n\n/* key 0: the address",
            ),
            ("\t__u32 *ip;", "\tstruct prefix *ip;"),
            ('filter is %u\\n", *ip', 'filter is %u\\n", ip->address'),
            (_SOURCE, "\tif ((iph->saddr ^ ip->address) & ip->mask)\n\t\treturn XDP_PASS;\n"),
        ),
        user=(
            (
                "\t/* convert the ip string to __u32 */\n",
                """\
	struct prefix {
		__u32 address, mask;
	} prefix = { .mask = 0xffffffff };
	char *slash = strchr(ip_param, '/');
	double length = 32;

	if (slash) {
		length = parse_number("no prefix", slash + 1, 32);
		ip_param = strndup(ip_param, slash - ip_param);
	}
	prefix.mask = length ? htonl(0xffffffff << (32 - (int)length)) : 0;

	/* convert the ip string to __u32 */
""",
            ),
            ("\tip = sin_addr.s_addr;\n", "\tip = prefix.address = sin_addr.s_addr;\n"),
            (
                "bpf_map_update_elem(map_fd[0], &key, &ip,",
                "bpf_map_update_elem(map_fd[0], &key, &prefix,",
            ),
        ),
    ),
}

_NOT_IPV4 = "\tif (eth->h_proto != htons(ETH_P_IP))\n\t\treturn {};\n"

MISTAKES = (
    Mistake(
        "passed",
        "forgets what isn't IPv4",
        ("`passed N` says 0 more, and it should be 1",) * 4,
        kern=((_NOT_IPV4.format("passed()"), _NOT_IPV4.format("XDP_PASS")),),
    ),
    Mistake(
        "passed",
        "counts drops as passes",
        ("`passed N` says 1 more, and it should be 0",) * 3,
        kern=(("return XDP_DROP;", "passed();\n\treturn XDP_DROP;"),),
    ),
    Mistake(
        "passed",
        "counts passes as drops",
        ("1 more dropped, and it should be 0",) * 9,
        kern=(("__u32 key = 1;", "__u32 key = 0;"),),
    ),
    Mistake(
        "destination",
        "swaps the bytes of one address",
        (
            *["should have been dropped: its destination is"] * 1,
            "UDP",
            "option",
            "itself",
            "backwards",
        ),
        kern=(("iph->daddr != *ip", "__builtin_bswap32(iph->daddr) != *ip"),),
    ),
    Mistake(
        "destination",
        "drops by the source too",
        ("the address is its source", "the neighbour of 192.168.1.78"),
        kern=(("iph->daddr != *ip", "iph->daddr != *ip && iph->saddr != *ip"),),
    ),
    Mistake(
        "destination",
        "doesn't look at the EtherType",
        ("look at it first",),
        kern=((_IPV4, ""),),
    ),
    Mistake(
        "destination",
        "drops everything",
        (
            "this is none",
            *["dropped, and should have passed"] * 8,
        ),
        kern=(('\ttrace("starting', '\treturn XDP_DROP;\n\ttrace("starting'),),
    ),
    Mistake(
        "vlan",
        "forgets the tag's length",
        (*["should have been dropped"] * 4, "read 4 bytes too early"),
        kern=(("\t\tiph = (void *)(tag + 1);\n", ""),),
    ),
    Mistake(
        "vlan",
        "forgets the byte order",
        ("network byte order",) * 2 + ("priority, DEI and VLAN id", "priority only"),
        kern=(("htons(ETH_P_8021Q)", "ETH_P_8021Q"),),
    ),
    Mistake(
        "vlan",
        "knows one VLAN",
        ("priority, DEI and VLAN id", "priority only"),
        kern=(
            ("\t\tproto = tag->proto;\n", "\t\tproto = tag->tci == htons(5) ? tag->proto : 0;\n"),
        ),
    ),
    Mistake(
        "vlan",
        "takes all that is tagged for IPv4",
        ("told by the tag's own EtherType",),
        kern=(("proto = tag->proto;", "proto = htons(ETH_P_IP);"),),
    ),
    Mistake(
        "prefix",
        "leaves the mask in the host's byte order",
        (
            *["192.168.1.78, with -i 192.168.1.0/24: passed", "192.168.1.255", "(htonl)"],
            *["bits after the prefix don't count"] * 2,
            *["ends within the second byte"] * 2,
        ),
        user=(("htonl(0xffffffff << (32 - (int)length))", "0xffffffff << (32 - (int)length)"),),
    ),
    Mistake(
        "prefix",
        "shifts by 32",
        ("10.0.0.1, with -i 0.0.0.0/0: passed", "undefined in C"),
        user=(
            (
                "length ? htonl(0xffffffff << (32 - (int)length)) : 0",
                "htonl(0xffffffff << (32 - (int)length))",
            ),
        ),
    ),
    Mistake(
        "prefix",
        "masks only one address",
        ("192.168.1.1, with -i 192.168.1.78/24: passed", "mask both addresses"),
        kern=(("(iph->saddr ^ ip->address) & ip->mask", "(iph->saddr & ip->mask) != ip->address"),),
    ),
    Mistake(
        "prefix",
        "knows whole bytes only",
        ("10.63.255.255, with -i 10.64.0.0/10: dropped", "10.128.0.0"),
        user=(("htonl(0xffffffff <<", "length -= (int)length % 8, htonl(0xffffffff <<"),),
    ),
    Mistake(
        "prefix",
        "takes any length",
        ("-i 192.168.1.0/33: taken",),
        user=(("slash + 1, 32)", "slash + 1, 64)"),),
    ),
)

# of the answer to vlan: what the verifier refuses
READS_BEYOND = Answer(
    kern=(("\t\tif ((void *)(tag + 1) > data_end)\n\t\t\treturn XDP_PASS;\n", ""),)
)
# of any pair: it is attached, and gone
ENDS_AT_ONCE = Answer(user=(("i = 0; !stop &&", "i = 0; false &&"),))
