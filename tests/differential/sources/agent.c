/* Redirects the libraries of the program that it is loaded into (LD_PRELOAD), before main() and any thread.
 *
 * $DYNAMOS_AGENT is a folder: LIBRARY.image was written by image.py, use.PID receives the use counters. The code
 * needs no C library of its own, for that is what it changes: both word sizes build from this file alone.
 */
#include <linux/elf.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include "bare.h"
#ifdef __x86_64__
typedef Elf64_Phdr Phdr;
#else
typedef Elf32_Phdr Phdr;
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

struct header {
	u64 size, code, area, own, theirs, near, far, trampolines;
};

struct trampoline {
	u64 site, handler;
	u8 expected[8];
};

struct dl_phdr_info {
	word base;
	const char *name;
	const Phdr *headers;
	unsigned short count;
};

extern int dl_iterate_phdr(int (*visit)(struct dl_phdr_info *, word, void *), void *);

static const char *folder;
static u8 *area, *begin, *end;
static word area_size;

static void fail(const char *where, const char *what)
{
	const char *parts[] = { "agent: ", where, ": ", what, "\n" };

	for (int i = 0; i < 5; i++) {
		word length = 0;

		while (parts[i][length])
			length++;
		syscall3(__NR_write, 2, (word)parts[i], length);
	}
	syscall3(__NR_exit_group, 99, 0, 0);
	__builtin_unreachable();
}

static u8 *map(word size, int file)
{
	word flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
	word arguments[] = { 0, size, PROT_READ | PROT_WRITE, flags, file, 0 };
	long result;

#ifdef __x86_64__
	register word r10 asm("r10") = arguments[3], r8 asm("r8") = arguments[4], r9 asm("r9") = 0;

	asm volatile("syscall" : "=a"(result)
		     : "0"(__NR_mmap), "D"(0), "S"(size), "d"(arguments[2]), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
#else
	result = syscall3(__NR_mmap, (word)arguments, 0, 0);
#endif
	if ((word)result > -4096UL)
		fail("mmap", "no memory");
	return (u8 *)result;
}

static void copy(u8 *to, const u8 *from, word size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static void path_of(char *path, const char *name)
{
	for (const char *from = folder; *from; )
		*path++ = *from++;
	*path++ = '/';
	while (*name)
		*path++ = *name++;
	*path = 0;
}

static void protect(const struct dl_phdr_info *library, int protection)
{
	for (int i = 0; i < library->count; i++) {
		const Phdr *header = &library->headers[i];
		word start = (library->base + header->p_vaddr) & -4096UL;
		word stop = library->base + header->p_vaddr + header->p_memsz;

		if (header->p_type == PT_LOAD && header->p_flags & PF_X &&
		    syscall3(__NR_mprotect, start, stop - start, protection))
			fail(library->name, "mprotect");
	}
}

static void redirect(const struct dl_phdr_info *library, const u8 *file)
{
	const struct header *header = (const void *)file;
	const struct trampoline *trampolines = (const void *)(header + 1);
	const u32 *place = (const void *)(trampolines + header->trampolines);
	u8 *image = map(header->size, -1);
	long long distance = library->base - (word)image;

	copy(image, (const u8 *)(place + header->own + header->theirs + header->near + header->far), header->size);
	for (word i = 0; i < header->own; i++)
		*(word *)(image + *place++) += (word)image;
	for (word i = 0; i < header->theirs; i++)
		*(word *)(image + *place++) += library->base;
	for (word i = 0; i < header->near; i++) {
		int *field = (int *)(image + *place++);

		if (sizeof(word) == 8 && *field + distance != (int)(*field + distance))
			fail(library->name, "out of reach");
		*field += distance;
	}
	for (word i = 0; i < header->far; i++)
		*(word *)(image + *place++) -= distance;
	if (syscall3(__NR_mprotect, (word)image, header->code, PROT_READ | PROT_EXEC))
		fail(library->name, "mprotect of the clones");
	protect(library, PROT_READ | PROT_WRITE | PROT_EXEC);
	for (word i = 0; i < header->trampolines; i++) {
		u8 *site = (u8 *)(word)(library->base + trampolines[i].site);

		for (int j = 0; j < 5; j++)
			if (site[j] != trampolines[i].expected[j])
				fail(library->name, "not the bytes that were cloned");
		*site = 0xe9;
		*(int *)(site + 1) = image + trampolines[i].handler - (site + 5);
	}
	protect(library, PROT_READ | PROT_EXEC);
}

static int visit(struct dl_phdr_info *library, word size, void *files)
{
	const char *name = library->name;
	char path[512], file[256];
	word length = 0;
	int opened;

	for (const char *at = library->name; *at; at++)
		if (*at == '/')
			name = at + 1;
	while (name[length] && length < 200) {
		file[length] = name[length];
		length++;
	}
	for (const char *end = ".image"; (file[length] = *end++); )
		length++;
	path_of(path, file);
	opened = syscall3(__NR_open, (word)path, O_RDONLY, 0);
	if (opened < 0)
		return 0;
	length = syscall3(__NR_lseek, opened, 0, 2);
	for (const u8 **free = files; ; free += 2)
		if (!*free) {
			static struct dl_phdr_info found[16];
			int index = (free - (const u8 **)files) / 2;

			if (index == 15)
				fail(name, "too many libraries");
			found[index] = *library;
			free[0] = map(length, opened);
			free[1] = (const u8 *)&found[index];
			break;
		}
	syscall3(__NR_close, opened, 0, 0);
	return 0;
}

__attribute__((constructor)) static void start(int count, char **arguments, char **environment)
{
	static const u8 *files[32];

	for (; *environment; environment++) {
		const char *wanted = "DYNAMOS_AGENT=", *have = *environment;

		while (*wanted && *wanted == *have)
			wanted++, have++;
		if (!*wanted)
			folder = have;
	}
	if (!folder)
		return;
	dl_iterate_phdr(visit, files);
	for (const u8 **file = files; *file; file += 2)
		if (area_size < ((const struct header *)*file)->area)
			area_size = ((const struct header *)*file)->area;
	if (!area_size)
		return;
	area = map(area_size, -1);
	begin = map(area_size, -1);
	*(word *)(area + CURRENT) = (word)(area + TASK);
	*(u32 *)(area + TASK + TGID) = 7;
	if (set_segment(area))
		fail("segment register", "refused");
	for (const u8 **file = files; *file; file += 2)
		redirect((const void *)file[1], file[0]);
}

/* The first call and the last delimit what is to be counted. */
__attribute__((visibility("default"))) void dynamos_mark(void)
{
	static int marked;

	if (!area)
		return;
	if (marked++)
		end = end ? end : map(area_size, -1);
	copy(end ? end : begin, area, area_size);
}

__attribute__((destructor)) static void stop(void)
{
	char path[512], name[32] = "use.", digits[16];
	long pid = syscall3(__NR_getpid, 0, 0, 0);
	int file, count = 0, length = 4;

	if (!area)
		return;
	for (; pid; pid /= 10)
		digits[count++] = '0' + pid % 10;
	while (count)
		name[length++] = digits[--count];
	path_of(path, name);
	file = syscall3(__NR_open, (word)path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	syscall3(__NR_write, file, (word)begin, area_size);
	syscall3(__NR_write, file, (word)(end ? end : area), area_size);
	syscall3(__NR_close, file, 0, 0);
}
