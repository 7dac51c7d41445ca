/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: a function without a prototype, as from v6.8 to v6.12. */
#include <linux/kbuild.h>

#define SYSNR(_NR) DEFINE(SYS ## _NR, _NR)

void syscall_defines(void)
{
	COMMENT("Numbers");
}
