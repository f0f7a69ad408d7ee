// SPDX-License-Identifier: GPL-2.0
/*
 * How long calls take, and how many return an error. One pair of programs
 * serves all functions: the cookie of each attachment has the function's slot in
 * its lower half, and in its upper one what tells this measurement from others.
 *
 * BEGUN_ENTRIES: how many calls can be in progress at one time.
 * CALLS_ENTRIES: how many functions there is room for.
 * TIMES_ENTRIES: as many times BUCKETS.
 * RETURN_VALUE: the offset of a call's return value in struct pt_regs.
 */
#define STEPS		4	/* a power of two of nanoseconds has 16 buckets */
#define BUCKETS		576	/* up to 2^39 ns, nine minutes; longer ones are in the last */
#define MAX_ERRNO	4095

#ifndef BPF_LRU_HASH
#define BPF_LRU_HASH(name, key, value, entries) \
	BPF_TABLE("lru_hash", key, value, name, entries)
#endif

struct call {
	u64 thread;
	u64 cookie;
};

struct calls {
	u64 returned;
	u64 errors;
	u64 lost;
};

BPF_LRU_HASH(begun, struct call, u64, BEGUN_ENTRIES);
BPF_PERCPU_ARRAY(calls, struct calls, CALLS_ENTRIES);
BPF_PERCPU_ARRAY(times, u64, TIMES_ENTRIES);

static inline struct call key(void *ctx)
{
	struct call call = {};

	call.cookie = bpf_get_attach_cookie(ctx);
	call.thread = bpf_get_current_pid_tgid();
	if (!call.thread)	/* an idle task: there is one on each CPU */
		call.thread = ~(u64)bpf_get_smp_processor_id();
	return call;
}

/* The same as bucket() in dynamos_ng/latency.py. */
static inline u32 bucket(u64 time)
{
	u32 power = 0, found;
	u64 rest = time;

	if (rest >> 32) {
		power += 32;
		rest >>= 32;
	}
	if (rest >> 16) {
		power += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		power += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		power += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		power += 2;
		rest >>= 2;
	}
	if (rest >> 1)
		power += 1;
	if (power < STEPS)
		return time;
	found = ((power - STEPS + 1) << STEPS) +
		((time >> (power - STEPS)) & ((1 << STEPS) - 1));
	return found < BUCKETS ? found : BUCKETS - 1;
}

int on_entry(void *ctx)
{
	struct call call = key(ctx);
	u64 now = bpf_ktime_get_ns();

	begun.update(&call, &now);
	return 0;
}

int on_return(void *ctx)
{
	u64 now = bpf_ktime_get_ns(), *began, *count;
	struct call call = key(ctx);
	u32 slot = call.cookie, place;
	struct calls *seen;
	int value = 0;

	seen = calls.lookup(&slot);
	if (!seen)
		return 0;
	began = begun.lookup(&call);
	if (!began) {
		seen->lost++;
		return 0;
	}
	place = slot * BUCKETS + bucket(now - *began);
	begun.delete(&call);
	count = times.lookup(&place);
	if (count)
		(*count)++;
	seen->returned++;
	bpf_probe_read_kernel(&value, sizeof(value), ctx + RETURN_VALUE);
	if (value < 0 && value >= -MAX_ERRNO)
		seen->errors++;
	return 0;
}
