// SPDX-License-Identifier: GPL-2.0
/*
 * Whether a task is in the functions of an update that is switched only while
 * nobody is: asked in the stop that would switch it. A task that stands at a
 * function's very first byte has not begun it.
 */
#include "dynamos.h"

struct quiet_scan {
	struct dynamos_culprit *culprit;
	bool held;
};

static bool in_update_seen(struct stack_scan *scan, struct task_struct *task,
			   unsigned long word)
{
	struct quiet_scan *quiet = scan->context;

	quiet->held = true;
	culprit_task(quiet->culprit, task, word);
	return true;
}

static bool in_originals(const void *told_update, unsigned long word)
{
	const struct dynamos_update *told = told_update;
	unsigned long i, j;

	for (i = 0; i < function_count(told); i++) {
		const struct dynamos_function *function = &told->functions[i];

		for (j = 0; j < function->nr_parts; j++)
			if (word > function->parts[j].start &&
			    word < function->parts[j].end)
				return true;
	}
	return false;
}

static void bound_originals(const struct dynamos_update *told, struct stack_scan *scan)
{
	unsigned long i, j;

	scan->holds = in_originals;
	scan->where = told;
	scan->no_pointers = true;
	scan->lo = ULONG_MAX;
	for (i = 0; i < function_count(told); i++) {
		const struct dynamos_function *function = &told->functions[i];

		for (j = 0; j < function->nr_parts; j++) {
			scan->lo = min(scan->lo, function->parts[j].start + 1);
			scan->hi = max(scan->hi, function->parts[j].end);
		}
	}
}

/**
 * update_quiet() - whether nobody is where an update's functions are now
 * @told: the update
 * @activate: look in the originals; else in all of the update's code
 * @culprit: the first task that is
 *
 * Return: 0 or -EAGAIN.
 */
int update_quiet(const struct dynamos_update *told, bool activate,
		 struct dynamos_culprit *culprit)
{
	struct quiet_scan quiet = { .culprit = culprit };
	struct stack_scan scan = { .seen = in_update_seen, .context = &quiet };

	if (activate)
		bound_originals(told, &scan);
	else
		stack_bound_module(told->owner, &scan);
	stack_scan(&scan);
	return quiet.held ? -EAGAIN : 0;
}
