// SPDX-License-Identifier: GPL-2.0
/*
 * A nudge: a sleeper in a system call returns from it as if for a signal, finds
 * none, and has the kernel begin the call anew. Live patching does the same to
 * get tasks on. A call that never begins anew, as epoll_wait(), ends in EINTR, as
 * it does when its process is stopped and continued.
 */
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

#include "dynamos.h"

static int nudge_task(struct task_struct *task)
{
	struct wait_queue_entry wake = { .private = task };
	unsigned int state = READ_ONCE(task->__state);

	if (task->flags & PF_KTHREAD)
		return -EOPNOTSUPP;
	if (state == TASK_RUNNING)
		return 0;
	if (!(state & TASK_INTERRUPTIBLE))
		return -EBUSY;
	set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL);
	/* Only out of an interruptible sleep, in which it may be no more. */
	default_wake_function(&wake, TASK_INTERRUPTIBLE, 0, NULL);
	return 0;
}

/**
 * nudge() - have a task leave the system call in which it sleeps
 * @pid: thread id, in the first namespace
 *
 * Return: 0, also if it runs; -ESRCH; -EOPNOTSUPP for a kernel thread, whose code
 * need not expect it; -EBUSY if it must not be interrupted.
 */
int nudge(pid_t pid)
{
	struct task_struct *task;
	int err;

	rcu_read_lock();
	task = get_pid_task(find_pid_ns(pid, &init_pid_ns), PIDTYPE_PID);
	rcu_read_unlock();
	if (!task)
		return -ESRCH;
	err = nudge_task(task);
	put_task_struct(task);
	return err;
}
