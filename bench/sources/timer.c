/* Redirects the functions of an image as dynamos.ko does, then times loops that call them.
 *
 * Its orders come on the standard input, all that it measured goes to the standard output (bench/program.py reads both).
 * No C library: both word sizes build from this file.
 */
#include "bare.h"

typedef unsigned int u32;
typedef unsigned long long u64;

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

struct patch {
	word site, opcode, target;
};

struct row {
	void **slot;
	word edition, others, editions;	/* edition 0: the classes have them in turn */
};

struct use {
	word *slot;
};

struct variant {
	word (*loop)(word times, const u32 *pids);
	word pool;			/* 0: the process stays the same */
};

extern const struct patch patches[], patches_end[];
extern const struct row rows_wanted[], rows_wanted_end[];
extern const struct use uses[], uses_end[];
extern const struct direct dynamos_directs[], dynamos_directs_end[];
extern const struct variant variants[], variants_end[];
extern const u32 pools[], pools_end[];

/* As the maps lie in the kernel: a byte for each process, a row of 256 for each function, pairs of counters of a CPU. */
static u8 policy[PIDS] __attribute__((aligned(4096)));
static u8 rows[ROWS][256] __attribute__((aligned(4096)));
u8 area[65536] __attribute__((aligned(4096)));
u8 *dynamos_policy = policy;

static struct {
	word rounds, batch, warm;
} orders;

static struct {
	u64 ticks[2], nanoseconds[2], switches[2];
} frame;

static u32 pids[8][SEQUENCE];
static u32 samples[1 << 21];
static word results[VARIANTS];
static u64 calls[VARIANTS];
static word cursor[8];

#define CHECK(condition) do { if (!(condition)) leave(__LINE__ & 0x7f); } while (0)

static __attribute__((noreturn)) void leave(int status)
{
	for (;;)
		syscall3(__NR_exit, status, 0, 0);
}

static void put(const void *from, word size)
{
	const u8 *at = from;

	while (size) {
		long done = syscall3(__NR_write, 1, (word)at, size);

		CHECK(done > 0);
		at += done;
		size -= done;
	}
}

static u64 ticks(void)
{
	u32 low, high;

	asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

/* What ties the processor's ticks to time, and how often somebody else had the CPU. */
static void mark(int which)
{
	word usage[18] = {}, now[2] = {};

	CHECK(syscall3(__NR_clock_gettime, 1, (word)now, 0) == 0);
	frame.ticks[which] = ticks();
	frame.nanoseconds[which] = now[0] * 1000000000ULL + now[1];
	CHECK(syscall3(__NR_getrusage, 0, (word)usage, 0) == 0);
	frame.switches[which] = usage[17];
}

/* What a livepatch's handler does for its part: guard against recursion, find the newest function, go there. */
struct peer {
	struct peer *next;
	word to;
};

static word peer_guard;

void peer_handler(word ip, word parent, struct peer *const *list, word *saved)
{
	const struct peer *newest;

	if (peer_guard & 1)
		return;
	peer_guard |= 1;
	asm volatile("" : : : "memory");
	newest = *(struct peer *const volatile *)list;
	if (newest)
		saved[SAVED_IP] = newest->to;
	asm volatile("" : : : "memory");
	peer_guard &= ~1UL;
}

static void maps(void)
{
	u32 state = 88172645, use = USE;
	word i, j;

	for (i = 0; i < PIDS; i++) {
		state = state * 1664525 + 1013904223;
		policy[i] = state >> 24;
	}
	policy[PROCESS] = CLASS;
	for (i = 0; i < (word)(pools_end - pools); i++)
		for (j = 0; j < SEQUENCE; j++) {
			state = state * 1664525 + 1013904223;
			/* Of one process alone, it is the usual one. */
			pids[i][j] = pools[i] == 1 ? PROCESS : (u64)state * pools[i] >> 32;
		}
	for (i = 0; rows_wanted + i < rows_wanted_end; i++) {
		const struct row *row = &rows_wanted[i];

		CHECK(i < ROWS);
		for (j = 0; j < 256; j++)
			rows[i][j] = row->edition ? row->others : 1 + j % row->editions;
		if (row->edition)
			rows[i][CLASS] = row->edition;
		*row->slot = rows[i];
	}
	for (i = 0; uses + i < uses_end; i++, use += 16) {
		CHECK(use + 16 <= sizeof(area));
		*uses[i].slot = use;
	}
	*(word *)(area + CURRENT) = (word)(area + TASK);
	*(u32 *)(area + TASK + TGID) = PROCESS;
	CHECK(set_segment(area) == 0);
}

static void install(void)
{
	for (const struct patch *patch = patches; patch < patches_end; patch++) {
		*(u8 *)patch->site = patch->opcode;
		*(int *)(patch->site + 1) = patch->target - (patch->site + 5);
	}
	CHECK(complete(dynamos_directs, dynamos_directs_end) == 0);
}

static const u32 *sequence(word pool, word length)
{
	word at;

	if (!pool)
		return 0;
	if (cursor[pool - 1] + length > SEQUENCE)
		cursor[pool - 1] = 0;
	at = cursor[pool - 1];
	cursor[pool - 1] += length;
	return &pids[pool - 1][at];
}

static void time_all(void)
{
	word n = variants_end - variants, round, i;

	for (round = 0; round < orders.rounds; round++)
		for (i = 0; i < n; i++) {
			/* Another one comes first each time, and another one before each. */
			word which = round & 1 ? (round + n - i) % n : (round + i) % n;
			const struct variant *variant = &variants[which];
			const u32 *warm = sequence(variant->pool, orders.warm * UNROLL);
			const u32 *from = sequence(variant->pool, orders.batch * UNROLL);
			u64 begin, end;

			*(u32 *)(area + TASK + TGID) = PROCESS;
			variant->loop(orders.warm, warm);
			begin = ticks();
			results[which] = variant->loop(orders.batch, from);
			end = ticks();
			samples[round * n + which] = end - begin > -1U ? -1U : end - begin;
			calls[which] += (orders.warm + orders.batch) * UNROLL;
		}
}

void begin(void)
{
	word n = variants_end - variants;

	CHECK(syscall3(__NR_read, 0, (word)&orders, sizeof(orders)) == sizeof(orders));
	CHECK(n <= VARIANTS && orders.rounds * n <= COUNT(samples));
	CHECK((orders.warm + orders.batch) * UNROLL <= SEQUENCE && orders.warm && orders.batch);
	maps();
	install();
	mark(0);
	time_all();
	mark(1);
	put(&frame, sizeof(frame));
	put(samples, orders.rounds * n * sizeof(samples[0]));
	put(results, n * sizeof(results[0]));
	put(calls, n * sizeof(calls[0]));
	put(area + USE, (uses_end - uses) * 16);
	leave(0);
}
