/* Runs the functions of graphs.S, then redirects them with the update it is linked with, and runs them again.
 *
 * Each line of its output is a function's registers after one call. No C library: both word sizes build from this file.
 */
#include <linux/mman.h>
#include "bare.h"
#ifdef __x86_64__
#define REGISTERS 14
#else
#define REGISTERS 6
#endif

struct edition {
	word number, start, end, flags, use;
};

struct function {
	word name, address, size, site;
	u8 expected[8];
	word handler, end, count, editions, row, reserved[2], parts_count, parts, below, flags;
};

extern struct function dynamos_functions[] __attribute__((weak)), dynamos_functions_end[] __attribute__((weak));
extern const struct direct dynamos_directs[] __attribute__((weak)), dynamos_directs_end[] __attribute__((weak));
extern word functions[], functions_end[], numbers[8];
extern u8 _etext[];
word dynamos_policy;

static u8 zeros[256] __attribute__((aligned(4096)));
static u8 area[65536] __attribute__((aligned(4096)));
word registers[REGISTERS + 2];
static unsigned seed = 1;

/* Loads the registers, calls what the word behind them points to, and stores the registers. */
void invoke(void);
#ifdef __x86_64__
asm(".text\n.globl invoke\ninvoke:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov registers, %rax; mov registers+8, %rbx; mov registers+16, %rcx; mov registers+24, %rdx\n"
    "mov registers+32, %rsi; mov registers+40, %rdi; mov registers+48, %r8; mov registers+56, %r9\n"
    "mov registers+64, %r12; mov registers+72, %r13; mov registers+80, %r14; mov registers+88, %r15\n"
    "mov registers+96, %rbp\n"
    "call *registers+112\n"
    "mov %rax, registers; mov %rbx, registers+8; mov %rcx, registers+16; mov %rdx, registers+24\n"
    "mov %rsi, registers+32; mov %rdi, registers+40; mov %r8, registers+48; mov %r9, registers+56\n"
    "mov %r12, registers+64; mov %r13, registers+72; mov %r14, registers+80; mov %r15, registers+88\n"
    "mov %rbp, registers+96\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
    ".globl _start\n_start: and $-16, %rsp; call begin\n");
#else
asm(".text\n.globl invoke\ninvoke:\n"
    "push %ebx; push %ebp; push %esi; push %edi\n"
    "mov registers, %eax; mov registers+4, %ebx; mov registers+8, %esi; mov registers+12, %edx\n"
    "mov registers+16, %edi; mov registers+20, %ebp; mov $5, %ecx\n"
    "call *registers+24\n"
    "mov %eax, registers; mov %ebx, registers+4; mov %esi, registers+8; mov %edx, registers+12\n"
    "mov %edi, registers+16; mov %ebp, registers+20\n"
    "pop %edi; pop %esi; pop %ebp; pop %ebx; ret\n"
    ".globl _start\n_start: and $-16, %esp; call begin\n");
#endif

static void show(word value, char last)
{
	char text[2 * sizeof(word) + 1];

	for (unsigned i = 0; i < 2 * sizeof(word); i++)
		text[i] = "0123456789abcdef"[value >> (8 * sizeof(word) - 4 - 4 * i) & 15];
	text[2 * sizeof(word)] = last;
	syscall3(__NR_write, 1, (word)text, sizeof(text));
}

static word number(void)
{
	word value = 0;

	for (unsigned i = 0; i < sizeof(word); i++) {
		seed = seed * 1103515245 + 12345;
		value = value << 8 | (seed >> 16 & 255);
	}
	return seed >> 24 & 1 ? value : value & 7;
}

static void run(void)
{
	seed = 1;
	for (int i = 0; i < 8; i++)
		numbers[i] = i + 1;
	for (int round = 0; round < 6; round++)
		for (word *function = functions; function < functions_end; function++) {
			for (int i = 0; i < REGISTERS; i++)
				registers[i] = number();
			registers[FUEL] = 40;
			registers[REGISTERS] = *function;
			invoke();
			for (int i = 0; i < REGISTERS; i++)
				show(registers[i], i < REGISTERS - 1 ? ' ' : '\n');
		}
}

static void redirect(void)
{
	word use = USE;

	*(word *)(area + CURRENT) = (word)(area + TASK);
	*(unsigned *)(area + TASK + TGID) = 7;
	dynamos_policy = (word)zeros;
	syscall3(__NR_mprotect, TEXT, (word)_etext - TEXT, PROT_READ | PROT_WRITE | PROT_EXEC);
	/* Without an update there is no such symbol: gcc must not compute with it before it is linked. */
	struct function *end = dynamos_functions_end;

	asm("" : "+r"(end));
	for (struct function *at = dynamos_functions; at < end; at++, use += 16) {
		*(word *)at->row = (word)zeros;
		*(word *)((struct edition *)at->editions)->use = use;
		for (int i = 0; i < 5; i++)
			if (((u8 *)at->site)[i] != at->expected[i])
				syscall3(__NR_exit, 98, 0, 0);
		*(u8 *)at->site = 0xe9;
		*(int *)(at->site + 1) = at->handler - (at->site + 5);
	}
	if (complete(dynamos_directs, dynamos_directs_end))
		syscall3(__NR_exit, 96, 0, 0);
	if (set_segment(area))
		syscall3(__NR_exit, 97, 0, 0);
}

void begin(void)
{
	word use = USE;

	run();
	if (dynamos_functions != dynamos_functions_end)
		redirect();
	run();
	/* Without an update there is no such symbol: gcc must not compute with it before it is linked. */
	struct function *end = dynamos_functions_end;

	asm("" : "+r"(end));
	for (struct function *at = dynamos_functions; at < end; at++, use += 16) {
		show(*(word *)(area + use), ' ');
		show(*(word *)(area + use + 8), '\n');
	}
	syscall3(__NR_exit, 0, 0, 0);
}
