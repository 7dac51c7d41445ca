/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which XDP programs are on an interface, asked of the kernel through rtnetlink(7).
 * A guest has this instead of iproute2, whose libraries take longer to load there
 * than all else of an answer.
 *
 * links DEV
 *	For each program a line on standard output: the interface's index, the mode
 *	as the pair's -m has it, the program's id.
 */
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* the attributes that carry a program's id, by mode: since v4.18 */
static const struct {
	unsigned short type;
	const char *mode;
} modes[] = {
	{ IFLA_XDP_DRV_PROG_ID, "native" },
	{ IFLA_XDP_SKB_PROG_ID, "skb" },
	{ IFLA_XDP_HW_PROG_ID, "hw" },
};

static void print_programs(unsigned int ifindex, const struct rtattr *xdp)
{
	const struct rtattr *one = RTA_DATA(xdp);
	int left = RTA_PAYLOAD(xdp);
	size_t i;

	for (; RTA_OK(one, left); one = RTA_NEXT(one, left))
		for (i = 0; i < sizeof(modes) / sizeof(*modes); i++)
			if (one->rta_type == modes[i].type)
				printf("%u %s %u\n", ifindex, modes[i].mode,
				       *(unsigned int *)RTA_DATA(one));
}

int main(int argc, char **argv)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
	} request = {
		.header = { .nlmsg_len = sizeof(request),
			    .nlmsg_type = RTM_GETLINK,
			    .nlmsg_flags = NLM_F_REQUEST },
	};
	static union {
		struct nlmsghdr header;
		char room[1 << 16];
	} answer;
	const struct ifinfomsg *link = NLMSG_DATA(&answer.header);
	const struct rtattr *attribute = IFLA_RTA(link);
	int netlink, left;

	if (argc != 2) {
		fprintf(stderr, "usage: %s DEV\n", argv[0]);
		return 2;
	}
	request.link.ifi_index = if_nametoindex(argv[1]);
	if (!request.link.ifi_index) {
		perror(argv[1]);
		return 1;
	}
	netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (netlink < 0 || send(netlink, &request, sizeof(request), 0) < 0 ||
	    recv(netlink, &answer, sizeof(answer), 0) < 0) {
		perror("rtnetlink");
		return 1;
	}
	if (answer.header.nlmsg_type != RTM_NEWLINK) {
		fprintf(stderr, "%s: the kernel gives no answer\n", argv[1]);
		return 1;
	}
	left = IFLA_PAYLOAD(&answer.header);
	for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
		if (attribute->rta_type == IFLA_XDP)
			print_programs(link->ifi_index, attribute);
	return 0;
}
