/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: the second bpf_log_buf, which v5.7 has not. */
#include <linux/bpf.h>

#define MAX_INDEX 64
#define MAX_STARS 38

char bpf_log_buf[BPF_LOG_BUF_SIZE];

static void stars(char *str, long val, long max, int width)
{
}
