// SPDX-License-Identifier: GPL-2.0
/*
 * A function of the timer interrupt: it accounts a tick to the process that it
 * met. Edition 2 enters the tick under "nice" in /proc/stat and in the cgroups,
 * whatever the process's niceness is. The class is that of the process that the
 * interrupt met, which is just the one that is accounted.
 */
#include <linux/atomic.h>
#include <linux/cgroup.h>
#include <linux/kernel_stat.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched/cputime.h>
#include <linux/sysfs.h>
#include <linux/tsacct_kern.h>

void account_user_time_v2(struct task_struct *p, u64 cputime);

static atomic_long_t ticks, elsewhere;

static int count_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(kp->arg));
}

static const struct kernel_param_ops count_ops = { .get = count_get };
/* Calls of edition 2, and those of them that were not in a hard interrupt. */
module_param_cb(ticks, &count_ops, &ticks, 0444);
module_param_cb(elsewhere, &count_ops, &elsewhere, 0444);

void account_user_time_v2(struct task_struct *p, u64 cputime)
{
	atomic_long_inc(&ticks);
	if (!in_hardirq())
		atomic_long_inc(&elsewhere);
	p->utime += cputime;
	account_group_user_time(p, cputime);
	__this_cpu_add(kernel_cpustat.cpustat[CPUTIME_NICE], cputime);
	cgroup_account_cputime_field(p, CPUTIME_NICE, cputime);
	acct_account_cputime(p);
}
