// SPDX-License-Identifier: GPL-2.0
/*
 * Times one sort of system call: calls NAME CALLS prints how many ticks of the
 * time stamp counter each took. Where QEMU counts instructions, a tick is one.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STAMP "stamp"
/* Where the new program says how long it took. */
#define STAMPS 100
#define PAGE 4096

static char *page;
static char buffer[PAGE];
static char *self;
static int event, data, file, pipes[2];
static pid_t child, own;
static unsigned long long inside;

static unsigned long long ticks(void)
{
	unsigned int low, high;

	asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) :: "memory");
	return (unsigned long long)high << 32 | low;
}

static void nothing(void)
{
}

static void do_lseek(void)
{
	syscall(SYS_lseek, event, 0, SEEK_CUR);
}

static void do_clone(void)
{
	child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child)
		_exit(0);
}

static void reap(void)
{
	if (waitpid(child, NULL, 0) != child)
		err(1, "waitpid");
}

/* A whole life: begun, ended and waited for. */
static void do_life(void)
{
	do_clone();
	reap();
}

static void do_brk(void)
{
	syscall(SYS_brk, 0);
}

static void do_openat(void)
{
	file = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY);
}

static void close_file(void)
{
	if (close(file))
		err(1, "close");
}

static void do_read(void)
{
	syscall(SYS_read, data, buffer, PAGE);
}

static void do_write(void)
{
	syscall(SYS_write, data, buffer, PAGE);
}

static void rewind_data(void)
{
	if (lseek(data, 0, SEEK_SET))
		err(1, "lseek");
}

static void drop_page(void)
{
	if (madvise(page, PAGE, MADV_DONTNEED))
		err(1, "madvise");
}

static void do_fault(void)
{
	*(volatile char *)page = 1;
}

static void do_kill(void)
{
	syscall(SYS_kill, own, 0);
}

/* The new program says how long it took it to get to its main(). */
static void do_execve(void)
{
	char began[32];

	child = fork();
	if (!child) {
		snprintf(began, sizeof(began), "%llu", ticks());
		syscall(SYS_execve, self, (char *[]){ self, STAMP, began, NULL }, NULL);
		_exit(1);
	}
	if (read(pipes[0], &inside, sizeof(inside)) != sizeof(inside))
		err(1, "execve");
	reap();
}

static const struct load {
	const char *name;
	void (*call)(void), (*after)(void);
} loads[] = {
	{ "nothing", nothing, nothing },
	{ "lseek", do_lseek, nothing },
	{ "clone", do_clone, reap },
	{ "life", do_life, nothing },
	{ "brk", do_brk, nothing },
	{ "execve", do_execve, nothing },
	{ "openat", do_openat, close_file },
	{ "read", do_read, rewind_data },
	{ "write", do_write, rewind_data },
	{ "fault", do_fault, drop_page },
	{ "kill", do_kill, nothing },
};

static const struct load *named(const char *name)
{
	for (size_t i = 0; i < sizeof(loads) / sizeof(*loads); i++)
		if (!strcmp(loads[i].name, name))
			return &loads[i];
	errx(2, "%s: no such load", name);
}

int main(int argc, char **argv)
{
	unsigned long long now = ticks();
	const struct load *load;
	long calls;
	cpu_set_t first;

	if (argc == 3 && !strcmp(argv[1], STAMP)) {
		now -= strtoull(argv[2], NULL, 10);
		return write(STAMPS, &now, sizeof(now)) != sizeof(now);
	}
	if (argc != 3)
		errx(2, "usage: calls NAME CALLS");
	load = named(argv[1]);
	calls = atol(argv[2]);
	self = argv[0];
	own = getpid();
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (sched_setaffinity(0, sizeof(first), &first))
		err(1, "sched_setaffinity");
	if (pipe(pipes) || dup2(pipes[1], STAMPS) < 0)
		err(1, "pipe");
	data = memfd_create("data", 0);
	event = eventfd(0, 0);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (event < 0 || data < 0 || write(data, buffer, PAGE) != PAGE || page == MAP_FAILED)
		err(1, "what is used");
	rewind_data();
	for (long i = 0; i < calls; i++) {
		unsigned long long took = ticks();

		load->call();
		took = ticks() - took;
		load->after();
		printf("%llu\n", inside ? inside : took);
	}
	return 0;
}
