// SPDX-License-Identifier: GPL-2.0
/*
 * How an update gets on by itself: the phases of a synchronised update (section 3
 * of the paper), and the tasks that a consistent group keeps to edition 1.
 *
 *	phase	new calls run			who may be inside
 *	0	the original			everybody
 *	1	the last edition up to 2	originals, editions 1 and 2
 *	2	the last edition up to 2	edition 2 (after a way back: 3 too)
 *	3	the last edition up to 3	2 and 3; who wakes in 2 goes over
 *
 *	from to	by			if
 *	0    1	ACTIVATE
 *	1    2	the worker		nobody is in an original or an edition 1
 *	2    3	the worker		must_update is raised
 *	3    2	PHASE			must_update is lowered with it
 *	1,2  0	DEACTIVATE
 *
 * There is no other move. "Nobody" is about functions that have an edition 2: the
 * others never sleep, says the update's author. Each move is one stop in which the
 * editions of all functions change.
 *
 * The worker runs while an update may get on: it looks at the counters and, if
 * they allow, at the stacks. No daemon is needed.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "dynamos.h"

#define PERIOD	(HZ / 10)

static void work(struct work_struct *unused);
static DECLARE_DELAYED_WORK(worker, work);

static bool has_edition(const struct dynamos_function *function, unsigned long number)
{
	unsigned long i;

	for (i = 0; i < function->nr_editions; i++)
		if (function->editions[i].number == number)
			return true;
	return false;
}

static u8 edition_of(const struct dynamos_function *function, u32 phase)
{
	unsigned long number = phase == 3 ? 3 : 2;

	while (number > 1 && !has_edition(function, number))
		number--;
	return number;
}

/* What must be left before phase 2: originals and first editions. */
static struct code *old_code(const struct dynamos_update *told)
{
	struct code *code;
	unsigned long i, j;
	u32 most = 0;

	for (i = 0; i < function_count(told); i++)
		most += told->functions[i].nr_parts + 1;
	code = code_new(most);
	for (i = 0; code && i < function_count(told); i++) {
		const struct dynamos_function *function = &told->functions[i];

		if (!has_edition(function, 2))
			continue;
		code_add(code, function->parts, function->nr_parts);
		for (j = 0; j < function->nr_editions; j++) {
			const struct dynamos_edition *edition = &function->editions[j];

			if (edition->number == 1)
				code_add(code, &(struct dynamos_part){ edition->start, edition->end }, 1);
		}
	}
	return code;
}

/**
 * phase_together() - whether an update's functions only switch all together
 * @update: the update
 */
bool phase_together(const struct update *update)
{
	return update->told->flags & (DYNAMOS_CONSISTENT | DYNAMOS_PHASED);
}

/**
 * phase_add() - make what an update needs that gets on by itself
 * @update: its functions are registered
 *
 * Undone by phase_remove().
 */
int phase_add(struct update *update)
{
	const struct dynamos_update *told = update->told;

	culprit_clear(&update->culprit);
	if (phase_together(update) && !function_count(told))
		return -ENOEXEC;
	if ((told->flags & DYNAMOS_CONSISTENT) && (told->flags & DYNAMOS_PHASED))
		return -ENOEXEC;
	if (told->flags & DYNAMOS_PHASED) {
		update->old = old_code(told);
		if (!update->old)
			return -ENOMEM;
		if (!update->old->count) {
			phase_remove(update);
			return -ENOEXEC;
		}
	}
	if (told->flags & DYNAMOS_CONSISTENT) {
		struct group *group = group_new(told->functions, function_count(told));

		if (IS_ERR(group))
			return PTR_ERR(group);
		update->group = group;
		*told->tasks = group_states(group);
	}
	return 0;
}

void phase_remove(struct update *update)
{
	group_free(update->group);
	kfree(update->old);
	update->group = NULL;
	update->old = NULL;
}

static void phase_set(struct update *update, u32 phase)
{
	u32 id;

	update->phase = phase;
	WRITE_ONCE(*update->told->phase, phase);
	for (id = redirect_next(update, 0); id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1))
		if (phase)
			memset(editions_row(id), edition_of(redirect_function(id), phase),
			       DYNAMOS_CLASSES);
}

/* Whether calls of an edition with a number of at least @first go on. */
static bool editions_run(const struct update *update, unsigned long first)
{
	unsigned long i;
	u32 id;

	for (id = redirect_next(update, 0); id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1)) {
		const struct dynamos_function *function = redirect_function(id);

		for (i = 0; i < function->nr_editions; i++)
			if (function->editions[i].number >= first &&
			    use_in_flight(id, function->editions[i].number))
				return true;
	}
	return false;
}

/* Whether calls of other editions than the first go on, or may begin. */
static bool others_in_use(const struct update *update)
{
	unsigned long i;
	u32 id;

	for (id = redirect_next(update, 0); id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1)) {
		const u8 *row = editions_row(id);

		for (i = 0; i < DYNAMOS_CLASSES; i++)
			if (row[i] > 1)
				return true;
	}
	return editions_run(update, 2);
}

/**
 * phase_check() - refuse a switch of a whole update, in its stop
 * @update: the update
 * @activate: whether its trampolines are to be written or taken away
 */
int phase_check(struct update *update, bool activate)
{
	if (activate)
		return 0;
	if (update->phase == 3)
		return -EISCONN;
	/* Their nested calls would reach originals, and mix. */
	return update->group && others_in_use(update) ? -EUSERS : 0;
}

/**
 * phase_switched() - follow a switch of a whole update, in its stop
 * @update: the update
 * @activate: whether its trampolines were written or taken away
 */
void phase_switched(struct update *update, bool activate)
{
	if (update->group)
		update->pinned = activate ? group_settle(update->group, true) : 0;
	if (update->old)
		phase_set(update, activate ? 1 : 0);
}

struct move {
	struct update *update;
	u32 phase;
	bool held;
};

static int move_work(void *context)
{
	struct move *move = context;

	phase_set(move->update, move->phase);
	return 0;
}

static int phase_move(struct update *update, u32 phase, u64 *stop_ns)
{
	struct move move = { .update = update, .phase = phase };

	return stack_stop(move_work, &move, stop_ns);
}

static bool first_editions_run(const struct update *update)
{
	u32 id;

	for (id = redirect_next(update, 0); id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1))
		if (has_edition(redirect_function(id), 2) && use_in_flight(id, 1))
			return true;
	return false;
}

static bool old_seen(struct stack_scan *scan, struct task_struct *task,
		     unsigned long word)
{
	struct move *move = scan->context;

	culprit_task(&move->update->culprit, task, word);
	move->held = true;
	return true;
}

/* From phase 1 to 2, if nobody is left in the old code. */
static int leave_work(void *context)
{
	struct move *move = context;

	culprit_clear(&move->update->culprit);
	if (first_editions_run(move->update))
		return 0;
	code_scan(move->update->old, old_seen, move);
	if (!move->held)
		phase_set(move->update, 2);
	return 0;
}

static int unpin_work(void *context)
{
	struct update *update = context;

	update->pinned = group_settle(update->group, false);
	return 0;
}

/* Return: whether the update may get on later. */
static bool get_on(struct update *update)
{
	struct move move = { .update = update };
	u64 ns;

	if (update->group && update->pinned)
		stack_stop(unpin_work, update, &ns);
	if (update->phase == 1 && !first_editions_run(update))
		stack_stop(leave_work, &move, &ns);
	if (update->phase == 2 && READ_ONCE(*must_update(redirect_next(update, 0))))
		phase_move(update, 3, &ns);
	return update->pinned || update->phase == 1 || update->phase == 2;
}

static void work(struct work_struct *unused)
{
	struct update *update;
	bool again = false;

	mutex_lock(&redirect_lock);
	list_for_each_entry(update, &updates, list)
		again |= get_on(update);
	mutex_unlock(&redirect_lock);
	if (again)
		queue_delayed_work(DYNAMOS_WQ, &worker, PERIOD);
}

/**
 * phase_follow() - have updates get on that may
 */
void phase_follow(void)
{
	queue_delayed_work(DYNAMOS_WQ, &worker, PERIOD);
}

void phase_exit(void)
{
	cancel_delayed_work_sync(&worker);
}

/* From phase 3 to 2. */
static int phase_back(struct update *update, u64 *stop_ns)
{
	int err;

	WRITE_ONCE(*must_update(redirect_next(update, 0)), 0);
	err = phase_move(update, 2, stop_ns);
	/* Who chose edition 3 before may have been preempted before its call was counted. */
	synchronize_rcu_tasks();
	phase_follow();
	return err;
}

/**
 * phase_leave() - begin to leave what cannot be left at once
 * @update: the update
 *
 * A synchronised update goes back to phase 2, and a consistent group gives new
 * calls edition 1.
 *
 * Return: 0 if nobody is in what is to be left; -EUSERS; or why there is no stop.
 */
int phase_leave(struct update *update)
{
	u64 ns;
	u32 id;
	int err = update->phase == 3 ? phase_back(update, &ns) : 0;

	if (err)
		return err;
	for (id = redirect_next(update, 0); update->group && id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1))
		memset(editions_row(id), 1, DYNAMOS_CLASSES);
	if (!phase_together(update))
		return 0;
	return editions_run(update, update->group ? 2 : 3) ? -EUSERS : 0;
}

/**
 * phase_ioctl() - tell where an update stands, and move it
 * @phase: in: update and move; out: the rest
 *
 * Return: 0; -ENOENT; -ENOTCONN if there is no such move from where it stands.
 */
int phase_ioctl(struct dynamos_phase *phase)
{
	struct update *update = update_by_name(phase->update);
	u64 *raised;
	int err = 0;

	if (!update)
		return -ENOENT;
	/* An update without functions has no such place, and no phases. */
	raised = function_count(update->told) ? must_update(redirect_next(update, 0)) : NULL;
	if (phase->move != DYNAMOS_PHASE_ASK && !update->old)
		err = -ENOTCONN;
	else if (phase->move == DYNAMOS_PHASE_RAISE)
		WRITE_ONCE(*raised, 1);
	else if (phase->move == DYNAMOS_PHASE_BACK && update->phase != 3)
		err = -ENOTCONN;
	else if (phase->move == DYNAMOS_PHASE_BACK)
		err = phase_back(update, &phase->stop_ns);
	phase->flags = update->told->flags;
	phase->phase = update->phase;
	phase->must_update = raised && *raised;
	phase->pinned = update->pinned;
	phase->culprit = update->culprit;
	return err;
}
