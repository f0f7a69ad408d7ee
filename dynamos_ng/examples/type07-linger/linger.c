// SPDX-License-Identifier: GPL-2.0
/*
 * Linger-Longer: a guest runs on a processor only while no other task wants it.
 * Guests are the processes of the policy classes that get this edition; hosts
 * get edition 1, the original.
 *
 * schedule() is entered by every task that sleeps, and by one that is to make
 * room for others when it returns to user mode. There it holds no lock, so there,
 * and nowhere else, a guest can be kept back without anybody having to wait for
 * it. It sleeps a little, and has the kernel ask it to make room again: so it comes
 * back until the processor is its own, or until it gets another edition.
 *
 * What this edition may do is what schedule()'s callers may expect: it must not
 * touch the task's state before the original has run, for the caller may have set
 * it in order to sleep. It holds no run queue's lock; an edition of a function
 * that is called with it may neither sleep nor wake anybody.
 */
#include <linux/kallsyms.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/stacktrace.h>

#include "dynamos_update.h"

#define PAUSE (HZ / 50)

void schedule_v1(void);
void schedule_v2(void);

/*
 * What calls schedule() on the way back to user mode, and nowhere else; which of
 * these does is the compiler's choice. Those that a kernel has not are empty.
 */
static struct {
	const char *name;
	unsigned long start, end;
} returns[] = {
	{ "exit_to_user_mode_loop" },
	{ "exit_to_user_mode_prepare" },
	{ "syscall_exit_to_user_mode" },
	{ "syscall_exit_to_user_mode_work" },
	{ "irqentry_exit_to_user_mode" },
	{ "irqentry_exit" },
};

static int find_returns(void)
{
	unsigned long size, offset;
	int i, found = 0;

	for (i = 0; i < ARRAY_SIZE(returns); i++) {
		returns[i].start = kallsyms_lookup_name(returns[i].name);
		if (!returns[i].start ||
		    !kallsyms_lookup_size_offset(returns[i].start, &size, &offset))
			continue;
		returns[i].end = returns[i].start + size;
		found++;
	}
	return found ? 0 : -ENOENT;
}

DYNAMOS_BEFORE(find_returns, NULL);

/* A return address on the stack may be a kretprobe's; the unwinder knows. */
static __always_inline bool returns_to_user(void)
{
	unsigned long caller;
	int i;

	if (!stack_trace_save(&caller, 1, 1))
		return false;
	for (i = 0; i < ARRAY_SIZE(returns); i++)
		if (caller >= returns[i].start && caller < returns[i].end)
			return true;
	return false;
}

void schedule_v2(void)
{
	schedule_v1();
	/* Signals and the freezer make one pending. */
	if (single_task_running() || signal_pending(current) || !returns_to_user())
		return;
	schedule_timeout_interruptible(PAUSE);
	set_thread_flag(TIF_NEED_RESCHED);
}
