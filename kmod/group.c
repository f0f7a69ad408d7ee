// SPDX-License-Identifier: GPL-2.0
/*
 * Consistent groups: within one, a task keeps to one edition from its outermost
 * call until that call has ended.
 *
 * Generated code (dynamos_ng/rewrite/consistency.py) keeps each task's depth and
 * edition. What it cannot know is who was inside an original when the trampolines
 * came: those tasks are pinned to edition 1, which does what the original does,
 * until a later stop finds that they have left.
 *
 * States are indexed by PID, those of idle tasks, whose PID is 0 on every CPU,
 * by -1 - CPU. A task that ends within a call leaves its state behind, so each
 * new task's state is cleared before it first runs.
 */
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/threads.h>
#include <linux/tracepoint.h>
#include <linux/vmalloc.h>

#include "arch/x86.h"
#include "dynamos.h"

struct task_state {
	u16 depth;
	u8 edition;
	u8 flags;
};

#define PINNED	1
#define FOUND	2	/* within one stop */

struct group {
	struct list_head list;		/* groups, under redirect_lock and RCU */
	struct task_state *memory;	/* owned */
	struct task_state *states;	/* index 0 of the table in it */
	struct code *originals;		/* owned */
};

static LIST_HEAD(groups);
static struct tracepoint *fork_tracepoint;

static struct task_state *state_of(const struct group *group,
				   const struct task_struct *task)
{
	return group->states + (task->pid ?: -1 - (int)task_cpu(task));
}

/* Any new task: the workers of io_uring and vhost pass other tracepoints by. */
static void forked(void *data, struct task_struct *child)
{
	struct group *group;

	rcu_read_lock();
	list_for_each_entry_rcu(group, &groups, list)
		*state_of(group, child) = (struct task_state){};
	rcu_read_unlock();
}

static void find_fork(struct tracepoint *tracepoint, void *data)
{
	if (!strcmp(tracepoint->name, "task_newtask"))
		fork_tracepoint = tracepoint;
}

static int watch_forks(void)
{
	if (!list_empty(&groups))
		return 0;
	for_each_kernel_tracepoint(find_fork, NULL);
	return fork_tracepoint ? tracepoint_probe_register(fork_tracepoint, forked, NULL) : -ENOENT;
}

static void ignore_forks(void)
{
	if (!list_empty(&groups))
		return;
	tracepoint_probe_unregister(fork_tracepoint, forked, NULL);
	tracepoint_synchronize_unregister();
}

/**
 * group_new() - make the states of a consistent group
 * @functions: its functions
 * @count: at least 1
 *
 * Undone by group_free(). Return: the group, or an ERR_PTR.
 */
struct group *group_new(const struct dynamos_function *functions, unsigned long count)
{
	struct group *group;
	unsigned long i;
	u32 parts = 0;
	int err = -ENOMEM;

	lockdep_assert_held(&redirect_lock);
	for (i = 0; i < count; i++)
		parts += functions[i].nr_parts;
	group = fault() ? NULL : kzalloc(sizeof(*group), GFP_KERNEL);
	if (!group)
		return ERR_PTR(err);
	group->originals = code_new(parts);
	group->memory = fault() ? NULL : vzalloc((nr_cpu_ids + PID_MAX_LIMIT) * sizeof(*group->memory));
	if (!group->originals || !group->memory)
		goto out_free;
	for (i = 0; i < count; i++)
		code_add(group->originals, functions[i].parts, functions[i].nr_parts);
	group->states = group->memory + nr_cpu_ids;
	err = watch_forks();
	if (err)
		goto out_free;
	list_add_rcu(&group->list, &groups);
	return group;

out_free:
	vfree(group->memory);
	kfree(group->originals);
	kfree(group);
	return ERR_PTR(err);
}

/**
 * group_free() - free the states of a group that no code can reach any more
 * @group: or NULL
 */
void group_free(struct group *group)
{
	lockdep_assert_held(&redirect_lock);
	if (!group)
		return;
	list_del_rcu(&group->list);
	ignore_forks();
	synchronize_rcu();
	vfree(group->memory);
	kfree(group->originals);
	kfree(group);
}

void *group_states(struct group *group)
{
	return group->states;
}

static bool original_seen(struct stack_scan *scan, struct task_struct *task,
			  unsigned long word)
{
	struct group *group = scan->context;

	state_of(group, task)->flags |= FOUND;
	return false;
}

/* Pins the task, or lets it go on. */
static u32 settle(struct task_state *state, bool pin)
{
	if (!(state->flags & FOUND))
		state->flags = 0;
	else if (pin)
		state->flags |= PINNED;
	state->flags &= ~FOUND;
	/* Who is inside an edition already keeps to that one. */
	if (state->flags && !state->depth)
		state->edition = 1;
	return state->flags;
}

/**
 * group_settle() - see who is inside the originals, only inside a stop
 * @group: a consistent group
 * @pin: pin those; otherwise let those go that have left
 *
 * Return: how many tasks are pinned now.
 */
u32 group_settle(struct group *group, bool pin)
{
	struct task_struct *process, *task;
	u32 pinned = 0;
	int cpu;

	code_scan(group->originals, original_seen, group);
	rcu_read_lock();
	for_each_process_thread(process, task)
		pinned += settle(state_of(group, task), pin);
	for_each_online_cpu(cpu)
		pinned += settle(&group->states[-1 - cpu], pin);
	rcu_read_unlock();
	return pinned;
}
