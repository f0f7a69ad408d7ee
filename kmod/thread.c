// SPDX-License-Identifier: GPL-2.0
/*
 * Successors of kernel threads: update/dynamos_thread.h tells the whole of it.
 *
 *	next	asked	waits	what is true
 *	NULL	no	no	the thread in charge stays
 *	set	no	no	prepared: a stop is to come
 *	set	yes	no	the thread in charge leaves as soon as it may
 *	NULL	no	yes	it has left; the new one is in charge, not yet woken
 *
 * thread_lock guards the list and what is in it; it is taken inside redirect_lock.
 * A thread that is asked to leave does not wait for it: it has work to do.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <uapi/linux/sched/types.h>

#include "dynamos.h"
#include "update/dynamos_thread.h"

#define LEAVE_MS 1000
#define LOOK_MS 10

/* Keeps a thread's task until nobody can be reading a pointer to it. */
struct predecessor {
	struct rcu_head rcu;
	struct task_struct *task;
};

struct thread {
	struct list_head list;
	const struct dynamos_thread *told;
	void *data;
	struct task_struct *now;	/* in charge; referenced */
	struct task_struct *next;	/* created, not woken; referenced */
	struct predecessor *left;	/* owned: for @now, once it leaves */
	bool edition;			/* @now runs an edition of its main function */
	bool asked;
	bool waits;			/* @now is in charge, and to be woken */
};

static DEFINE_MUTEX(thread_lock);
static LIST_HEAD(threads);
/* How many are asked; read without the lock, by threads that have work to do. */
static int threads_asked;

static struct thread *thread_find(const struct dynamos_thread *told, void *data)
{
	struct thread *thread;

	lockdep_assert_held(&thread_lock);
	list_for_each_entry(thread, &threads, list)
		if (thread->told == told && thread->data == data)
			return thread;
	return NULL;
}

static void thread_ask(struct thread *thread, bool ask)
{
	WRITE_ONCE(threads_asked, threads_asked + ask - thread->asked);
	WRITE_ONCE(thread->asked, ask);
}

/* A thread that was never woken ends without a step in its main function. */
static void thread_drop_next(struct thread *thread)
{
	thread_ask(thread, false);
	if (!thread->next)
		return;
	kthread_stop(thread->next);
	put_task_struct(thread->next);
	thread->next = NULL;
}

/* The administrator may have given the thread what its creator does not. */
static void thread_inherit(struct task_struct *next, struct task_struct *now)
{
	struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = now->policy,
		.sched_nice = task_nice(now),
		.sched_priority = now->rt_priority,
	};

	if (now->policy != SCHED_DEADLINE && sched_setattr_nocheck(next, &attr))
		pr_warn("%s: its scheduling policy stays behind\n", now->comm);
	set_cpus_allowed_ptr(next, &now->cpus_mask);
}

static struct thread *thread_get(const struct dynamos_thread *told, void *data)
{
	struct thread *thread = thread_find(told, data);

	if (thread)
		return thread;
	thread = kzalloc(sizeof(*thread), GFP_KERNEL);
	if (!thread)
		return NULL;
	thread->told = told;
	thread->data = data;
	list_add(&thread->list, &threads);
	return thread;
}

/*
 * Others may have stopped the thread and started another since the last time: that
 * one runs what the main function has led to, and has a successor of its own.
 */
static bool thread_meet(struct thread *thread, bool edition)
{
	struct task_struct *now = thread->told->find(thread->data);

	if (now != thread->now) {
		thread_drop_next(thread);
		thread->edition = edition;
	}
	if (thread->now)
		put_task_struct(thread->now);
	thread->now = now;
	return now;
}

static int thread_prepare(struct thread *thread, bool edition)
{
	struct task_struct *next;

	thread_ask(thread, false);
	if (!thread_meet(thread, edition) || thread->next)
		return 0;	/* nobody to replace; or what was prepared will do */
	if (!thread->left)
		thread->left = kmalloc(sizeof(*thread->left), GFP_KERNEL);
	if (!thread->left)
		return -ENOMEM;
	next = thread->told->create(thread->data);
	if (IS_ERR(next))
		return PTR_ERR(next);
	get_task_struct(next);
	thread_inherit(next, thread->now);
	/* It may wait for long. Others would say that it hangs, and nobody else wakes it. */
	WRITE_ONCE(next->__state, TASK_IDLE);
	thread->next = next;
	return 0;
}

/* Ask the thread in charge to leave, unless it runs what it is to run. */
static bool thread_decide(struct thread *thread, bool edition)
{
	lockdep_assert_held(&thread_lock);
	if (!thread->next || thread->edition == edition) {
		thread_drop_next(thread);
		return false;
	}
	thread_ask(thread, true);
	return true;
}

/**
 * threads_keep() - the stop has failed, and all is to be as it was
 * @told: by threads_prepare()
 * @edition: whether the main function leads to an edition
 */
void threads_keep(const struct dynamos_thread *told, bool edition)
{
	struct thread *thread;

	mutex_lock(&thread_lock);
	list_for_each_entry(thread, &threads, list)
		if (thread->told == told)
			thread_decide(thread, edition);
	mutex_unlock(&thread_lock);
}

/**
 * threads_prepare() - create the successors of an update's threads
 * @told: what the update says of them
 * @edition: whether the main function leads to an edition now, before the stop
 *
 * Return: 0, and threads_keep() or threads_replace() is due; or an errno, and all
 * is as it was.
 */
int threads_prepare(const struct dynamos_thread *told, bool edition)
{
	struct thread *thread;
	int err = 0;
	void *data;

	if (!told->each)
		return 0;
	for (data = told->each(NULL); data && !err; data = told->each(data)) {
		mutex_lock(&thread_lock);
		thread = thread_get(told, data);
		err = thread ? thread_prepare(thread, edition) : -ENOMEM;
		mutex_unlock(&thread_lock);
	}
	if (err)
		threads_keep(told, edition);
	return err;
}

/* Where main functions choose processors themselves, that is over by its first sleep. */
static void thread_settle(struct task_struct *task, struct task_struct *before)
{
	int tries = LEAVE_MS / LOOK_MS;

	while (tries-- && !(READ_ONCE(task->__state) & TASK_INTERRUPTIBLE))
		msleep(LOOK_MS);
	if (!cpumask_equal(&task->cpus_mask, &before->cpus_mask))
		set_cpus_allowed_ptr(task, &before->cpus_mask);
}

static void thread_replace(struct thread *thread, bool edition)
{
	struct task_struct *before = NULL, *task = NULL;
	int tries = LEAVE_MS / LOOK_MS;

	mutex_lock(&thread_lock);
	if (thread_decide(thread, edition)) {
		before = get_task_struct(thread->now);
		task = get_task_struct(thread->next);
	}
	mutex_unlock(&thread_lock);
	if (!task)
		return;
	while (READ_ONCE(thread->asked) && tries--) {
		thread->told->wake(thread->data);
		msleep(LOOK_MS);
	}
	if (!READ_ONCE(thread->asked))
		thread_settle(task, before);
	put_task_struct(task);
	put_task_struct(before);
}

/**
 * threads_replace() - have an update's threads leave
 * @told: by threads_prepare()
 * @edition: whether their main function leads to an edition now
 *
 * After a stop. Waits a second for each; it may leave later too. The list's
 * entries come and go under redirect_lock, which the caller holds.
 */
void threads_replace(const struct dynamos_thread *told, bool edition)
{
	struct thread *thread;

	lockdep_assert_held(&redirect_lock);
	list_for_each_entry(thread, &threads, list)
		if (thread->told == told)
			thread_replace(thread, edition);
}

__visible void dynamos_threads_begin(const struct dynamos_thread *told, void *data)
{
	struct thread *thread;

	mutex_lock(&thread_lock);
	thread = thread_find(told, data);
	if (thread && thread->now == current)
		thread->edition = true;
	mutex_unlock(&thread_lock);
}
EXPORT_SYMBOL_GPL(dynamos_threads_begin);

static void predecessor_put(struct rcu_head *rcu)
{
	struct predecessor *left = container_of(rcu, struct predecessor, rcu);

	put_task_struct(left->task);
	kfree(left);
}

__visible bool dynamos_threads_leave(const struct dynamos_thread *told, void *data)
{
	struct thread *thread;
	bool leaves;

	if (!READ_ONCE(threads_asked) || !mutex_trylock(&thread_lock))
		return false;
	thread = thread_find(told, data);
	leaves = thread && thread->asked && thread->now == current &&
		 !kthread_should_stop() && told->publish(data, thread->next);
	if (leaves) {
		thread->left->task = thread->now;
		call_rcu_tasks(&thread->left->rcu, predecessor_put);
		thread->left = NULL;
		thread->now = thread->next;
		thread->next = NULL;
		thread->edition = false;
		thread->waits = true;
		thread_ask(thread, false);
	}
	mutex_unlock(&thread_lock);
	return leaves;
}
EXPORT_SYMBOL_GPL(dynamos_threads_leave);

__visible void dynamos_threads_wake(const struct dynamos_thread *told, void *data)
{
	struct thread *thread;

	mutex_lock(&thread_lock);
	thread = thread_find(told, data);
	if (thread && thread->waits) {
		thread->waits = false;
		wake_up_process(thread->now);
	}
	mutex_unlock(&thread_lock);
}
EXPORT_SYMBOL_GPL(dynamos_threads_wake);

/**
 * threads_forget() - give back what is held for an update's threads
 * @told: nothing runs in the update any more
 */
void threads_forget(const struct dynamos_thread *told)
{
	struct thread *thread, *after;

	lockdep_assert_held(&redirect_lock);
	mutex_lock(&thread_lock);
	list_for_each_entry_safe(thread, after, &threads, list) {
		if (thread->told != told)
			continue;
		thread_drop_next(thread);
		if (thread->now)
			put_task_struct(thread->now);
		kfree(thread->left);
		list_del(&thread->list);
		kfree(thread);
	}
	mutex_unlock(&thread_lock);
}

/* Before the module goes: what was left to RCU-tasks calls back into it. */
void threads_exit(void)
{
	rcu_barrier_tasks();
}
