/*
 * Runs originals, clones and editions in a program of its own, without a C library: an exit status of 0 means that all
 * of them computed the same and that every call that entered left; else the line of the check that failed.
 */
#include "../../../kmod/update/dynamos_update.h"
#include "bare.h"

typedef unsigned long u64;	/* as functions.c calls the machine's word */
typedef u64 six(u64, u64, u64, u64, u64, u64);

#define FUNCTIONS(F) F(plain) F(loops) F(choices) F(calls) F(recursive) F(tail) F(tails) F(self_tail) F(cold_part) \
	F(pointers) F(pairs) F(strings) F(counted_loop) F(conditional_tail) F(serialises) F(learns) \
	F(drops_both) EXTRA(F)
#define DECLARE(name) six name;
#define ADDRESS(name) name,
#define CHANGED(F) F(plain) F(loops) F(choices) F(tails)
#define EXPECTED(name) extern six name##_expected;
#define EXPECTED_ADDRESS(name) name##_expected,
#define CHECK(condition) do { if (!(condition)) leave(__LINE__ & 0xff); } while (0)

FUNCTIONS(DECLARE)
CHANGED(EXPECTED)
extern u64 watches(void), variadic(u64 n, ...), counter;
static six *const functions[] = { FUNCTIONS(ADDRESS) };
static six *const changed[] = { CHANGED(ADDRESS) };
static six *const expected[] = { CHANGED(EXPECTED_ADDRESS) };

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))
enum { ROUNDS = 300, CURRENT = 0x40, TGID = 0x24, TASK = 0x100, USE = 0x400, PROCESS = 7, CLASS = 3 };

static unsigned char area[0x4000] __attribute__((aligned(16)));
static unsigned char policy[64], rows[64][8];
unsigned char *dynamos_policy = policy;
static u64 results[2][ROUNDS][COUNT(functions) + 2];
static u64 state;

static __attribute__((noreturn)) void leave(int status)
{
	for (;;)
		syscall3(__NR_exit, status, 0, 0);
}

static u64 number(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state & 64 ? state : state % 100;
}

static void run(u64 (*to)[COUNT(functions) + 2])
{
	u64 round, i, a[6];

	state = 88172645;
	for (round = 0; round < ROUNDS; round++) {
		for (i = 0; i < 6; i++)
			a[i] = number();
		for (i = 0; i < COUNT(functions); i++)
			to[round][i] = functions[i](a[0], a[1], a[2], a[3], a[4], a[5]);
		to[round][i++] = variadic(4, a[0], a[1], a[2], a[3]);
		to[round][i] = watches();
	}
}

static void own_memory(void)
{
	CHECK(set_segment(area) == 0);
	*(u64 *)(area + CURRENT) = (u64)(area + TASK);
	*(u64 *)(area + TASK + TGID) = PROCESS;
	policy[PROCESS] = CLASS;
}

static void install(void)
{
	const struct dynamos_function *function;
	u64 use = USE, row = 0, i;

	for (function = dynamos_functions; function < dynamos_functions_end; function++) {
		unsigned char *site = (unsigned char *)function->site;

		*function->row = rows[row++];
		for (i = 0; i < function->nr_editions; i++, use += 16)
			*function->editions[i].use = (void *)use;
		for (i = 0; i < 5; i++)
			CHECK(site[i] == function->expected[i]);
		site[0] = 0xe9;
		*(u64 *)(site + 1) = function->handler - (u64)site - 5;
	}
	CHECK(complete((const void *)dynamos_directs, (const void *)dynamos_directs_end) == 0);
}

static void balanced(u64 from)
{
	const struct dynamos_function *function;
	u64 i;

	for (function = dynamos_functions; function < dynamos_functions_end; function++)
		for (i = from; i < function->nr_editions; i++) {
			u64 *use = (u64 *)(area + (u64)*function->editions[i].use);

			CHECK(use[0] && use[0] == use[2]);
			CHECK(use[1] == use[3]);
		}
}

void start(void)
{
	const struct dynamos_function *function;
	u64 i, j, row = 0;

	own_memory();
	run(results[0]);
	install();
	counter = 0;
	run(results[1]);
	for (i = 0; i < ROUNDS; i++)
		for (j = 0; j < COUNT(results[0][0]); j++)
			CHECK(results[0][i][j] == results[1][i][j]);
	CHECK(results[0][0][j - 1] == 0);
	for (function = dynamos_functions; function < dynamos_functions_end; function++, row++) {
		u64 *use = (u64 *)(area + (u64)*function->editions[0].use);

		CHECK(use[0] && use[0] == use[2]);
		if (function->nr_editions > 1)
			rows[row][CLASS] = 2;
	}
	for (i = 0; i < COUNT(changed); i++)
		for (j = 0; j < 20; j++)
			CHECK(changed[i](j, 2, 3, 4, 5, j) == expected[i](j, 2, 3, 4, 5, j));
	balanced(0);
	leave(0);
}
