// SPDX-License-Identifier: GPL-2.0
/*
 * Kernel stacks at regular moments of every CPU. What finds no room is counted
 * as lost, and so is a stack whose hash is another one's.
 *
 * STACKS_ENTRIES, SAMPLES_ENTRIES: how many different stacks there is room for.
 */
#define NO_KERNEL_STACK	-14	/* -EFAULT: the CPU was in user space */

struct totals {
	u64 kernel;
	u64 user;
	u64 lost;
};

BPF_STACK_TRACE(stacks, STACKS_ENTRIES);
BPF_HASH(samples, int, u64, SAMPLES_ENTRIES);
BPF_PERCPU_ARRAY(totals, struct totals, 1);

int on_sample(void *ctx)
{
	int zero = 0, id = stacks.get_stackid(ctx, 0);
	struct totals *total = totals.lookup(&zero);
	u64 none = 0, *seen;

	if (!total)
		return 0;
	if (id == NO_KERNEL_STACK) {
		total->user++;
		return 0;
	}
	seen = id < 0 ? NULL : samples.lookup_or_try_init(&id, &none);
	if (!seen) {
		total->lost++;
		return 0;
	}
	__sync_fetch_and_add(seen, 1);
	total->kernel++;
	return 0;
}
