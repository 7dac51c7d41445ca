/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: what it included before v5.1. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static void usage(char *name)
{
	printf("usage: %s\n", name);
}
