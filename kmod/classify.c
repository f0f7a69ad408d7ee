// SPDX-License-Identifier: GPL-2.0
/*
 * No fork, exec or exit is passed over by the BPF programs that keep up the policy
 * map. The kernel runs a program once at a time on each CPU, and later kernels let
 * the task that it runs for be preempted: another task's event on that CPU, which
 * comes then, is not seen. So preemption is off while these tracepoints have their
 * probes called: from ours that is first to ours that is last.
 *
 * Whoever calls the probes has the whole list from the moment at which he began.
 * Preemption is only turned off while every list in use has both of ours.
 */
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

#include "dynamos.h"

static const char *const names[] = {
	"sched_process_fork", "sched_process_exec", "sched_process_exit",
};
static struct tracepoint *points[ARRAY_SIZE(names)];
static bool both;
static DEFINE_PER_CPU(bool, held);

/* Whatever else a tracepoint passes is of no use here. */
static void first(void *data)
{
	if (!READ_ONCE(both))
		return;
	preempt_disable();
	__this_cpu_write(held, true);
}

/* Set on this CPU, it was set for this very event: nobody else got the CPU since. */
static void last(void *data)
{
	if (!raw_cpu_read(held))
		return;
	__this_cpu_write(held, false);
	preempt_enable();
}

static void find(struct tracepoint *point, void *data)
{
	int i = match_string(names, ARRAY_SIZE(names), point->name);

	if (i >= 0)
		points[i] = point;
}

/* Take the probes away, of which so many were put there: at each point the first, then the last. */
static void forget(int count)
{
	WRITE_ONCE(both, false);
	tracepoint_synchronize_unregister();
	while (count--)
		tracepoint_probe_unregister(points[count / 2], count % 2 ? last : first, NULL);
	tracepoint_synchronize_unregister();
}

/**
 * classify_init() - have these events seen, every one
 *
 * Return: 0 or an errno.
 */
int classify_init(void)
{
	int i, err;

	for_each_kernel_tracepoint(find, NULL);
	for (i = 0; i < 2 * ARRAY_SIZE(points); i++) {
		struct tracepoint *point = points[i / 2];

		err = point ? tracepoint_probe_register_prio(point, i % 2 ? last : first, NULL,
							     i % 2 ? INT_MIN : INT_MAX)
			    : -ENOENT;
		if (err) {
			forget(i);
			return err;
		}
	}
	tracepoint_synchronize_unregister();
	WRITE_ONCE(both, true);
	return 0;
}

/**
 * classify_exit() - leave the events as they were
 */
void classify_exit(void)
{
	forget(2 * ARRAY_SIZE(points));
}
