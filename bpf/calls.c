// SPDX-License-Identifier: GPL-2.0
/*
 * Entries and returns of watched functions. One pair of programs serves all
 * of them: the cookie of each attachment is the function's slot.
 *
 * CALLS_ENTRIES: how many functions can be watched.
 */
struct calls {
	u64 entries;
	u64 exits;
};

BPF_PERCPU_ARRAY(calls, struct calls, CALLS_ENTRIES);

int on_entry(void *ctx)
{
	u32 slot = bpf_get_attach_cookie(ctx);
	struct calls *count = calls.lookup(&slot);

	if (count)
		count->entries++;
	return 0;
}

int on_return(void *ctx)
{
	u32 slot = bpf_get_attach_cookie(ctx);
	struct calls *count = calls.lookup(&slot);

	if (count)
		count->exits++;
	return 0;
}
