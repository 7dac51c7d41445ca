/* SPDX-License-Identifier: GPL-2.0 */
/* Written for the tests: three places that today's C library has a word for. */

static int kallsyms_cb(const char *sym_name)
{
	const struct btf_type *t;
	struct extern_desc *ext;
	char *res;

	res = strstr(sym_name, ".llvm.");
	return res != NULL;
}

static int avail_kallsyms_cb(const char *sym_name)
{
	if (!found) {
		/*
		 * one more try
		 */
		char sym_trim[256], *psym_trim = sym_trim, *sym_sfx;

		if (!(sym_sfx = strstr(sym_name, ".llvm.")))
			return 0;
	}
	return 1;
}

static int resolve_full_path(const char *search_paths[])
{
	for (i = 0; i < 2; i++) {
		for (s = search_paths[i]; s != NULL; s = strchr(s, ':')) {
			char *next_path;
			int seg_len;

			next_path = strchr(s, ':');
		}
	}
	return 0;
}
