/* What programs without a C library share: system calls, and memory that a segment register leads to as to a CPU's. */
#include <asm/unistd.h>
#ifdef __x86_64__
#include <asm/prctl.h>
#else
#include <asm/ldt.h>
#endif

typedef unsigned char u8;
typedef unsigned long word;

static inline long syscall3(long number, word a, word b, word c)
{
	long result;

#ifdef __x86_64__
	asm volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
	asm volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
#endif
	return result;
}

/* Returns 0, or what the kernel says. All threads share the area: glibc leaves the register alone, clone() inherits it. */
static inline long set_segment(const void *area)
{
#ifdef __x86_64__
	return syscall3(__NR_arch_prctl, ARCH_SET_GS, (word)area, 0);
#else
	struct user_desc entry = {
		.entry_number = -1, .base_addr = (word)area, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1,
	};
	long refused = syscall3(__NR_set_thread_area, (word)&entry, 0, 0);

	if (!refused)
		asm volatile("mov %w0, %%fs" : : "r"(entry.entry_number << 3 | 3));
	return refused;
#endif
}

struct direct {
	word field;
	const word *slot;
};

/* Adds to code what slots hold, as dynamos.ko does when an update is loaded. Returns 0, or what the kernel says. */
static inline long complete(const struct direct *at, const struct direct *end)
{
	long refused = 0;

	for (; at < end && !refused; at++) {
		word page = at->field & -4096UL;

		refused = syscall3(__NR_mprotect, page, at->field + 4 - page, 7);
		if (!refused)
			*(unsigned *)at->field += *at->slot;
	}
	return refused;
}
