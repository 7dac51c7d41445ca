/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: what it included before v5.1. */
#include <stdio.h>
#include <string.h>
#include <ctype.h>
#include <sys/socket.h>

struct security_class_mapping {
	const char *name;
};
