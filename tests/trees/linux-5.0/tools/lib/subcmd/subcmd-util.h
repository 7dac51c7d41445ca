/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: xrealloc() as it was before v5.17. */
#include <stdlib.h>

void die(const char *err);

static inline void *xrealloc(void *ptr, size_t size)
{
	void *ret = realloc(ptr, size);
	if (!ret && !size)
		ret = realloc(ptr, 1);
	if (!ret) {
		ret = realloc(ptr, size);
		if (!ret && !size)
			ret = realloc(ptr, 1);
		if (!ret)
			die("Out of memory, realloc failed");
	}
	return ret;
}

#define is_null(ptr) (!(ptr))
