// SPDX-License-Identifier: GPL-2.0
/*
 * Commit-confirm: an activation that is taken back by itself unless somebody says
 * in time that it may stay.
 *
 *	confirm		in force	next
 *	SETTLED		as may be	ACTIVATE with a time -> WAITING
 *	WAITING		yes		CONFIRM -> SETTLED; the time is up -> REVERTING
 *	REVERTING	yes		the worker, when nothing is in the way -> REVERTED
 *	REVERTED	no		ACTIVATE -> SETTLED or WAITING
 *
 * DEACTIVATE leads to SETTLED from everywhere. The time is kept here because it must
 * run whatever becomes of the daemon: the update that is to be confirmed may be
 * what killed it.
 *
 * One worker serves all updates and finds them in their table, so nothing of it
 * has to be cancelled when one of them goes.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "dynamos.h"

/* A way back that is refused is tried again, often at first. */
#define QUICK_TRIES	20
#define QUICK		(HZ / 10)

static void revert_overdue(struct work_struct *unused);
static DECLARE_DELAYED_WORK(overdue, revert_overdue);

static u32 redirected(const struct update *update, u32 *ids)
{
	u32 count = 0, id;

	for (id = redirect_next(update, 0); id < DYNAMOS_FUNCTIONS_MAX;
	     id = redirect_next(update, id + 1))
		if (redirects[id]->state == DYNAMOS_REDIRECTED)
			ids[count++] = id;
	return count;
}

static int deactivate(struct update *update)
{
	struct dynamos_switch sw = {
		.update = update->state == DYNAMOS_REDIRECTED ? update->id : 0,
	};
	u32 *ids = fault() ? NULL : kvcalloc(DYNAMOS_FUNCTIONS_MAX, sizeof(*ids), GFP_KERNEL);
	int err = 0;

	if (!ids)
		return -ENOMEM;
	sw.count = redirected(update, ids);
	if (sw.count || sw.update)
		err = phase_leave(update) ?: redirect_deactivate(ids, sw.count, &sw);
	kvfree(ids);
	return err;
}

/* Return: after how many jiffies to look at the update again, or MAX_JIFFY_OFFSET. */
static unsigned long next_look(struct update *update)
{
	unsigned long now = jiffies;
	int err;

	if (update->confirm == DYNAMOS_WAITING) {
		if (time_before(now, update->confirm_by))
			return update->confirm_by - now;
		update->confirm = DYNAMOS_REVERTING;
	}
	if (update->confirm != DYNAMOS_REVERTING)
		return MAX_JIFFY_OFFSET;
	err = deactivate(update);
	if (!err) {
		update->confirm = DYNAMOS_REVERTED;
		update->confirm_error = 0;
		pr_notice("%s was not confirmed in time: reverted\n", update->told->owner->name);
		return MAX_JIFFY_OFFSET;
	}
	if (update->confirm_error != err)
		pr_notice("%s was not confirmed in time, and cannot be reverted yet: error %d\n",
			  update->told->owner->name, -err);
	update->confirm_error = err;
	return update->confirm_tries++ < QUICK_TRIES ? QUICK : HZ;
}

static void revert_overdue(struct work_struct *unused)
{
	unsigned long next = MAX_JIFFY_OFFSET;
	struct update *update;

	mutex_lock(&redirect_lock);
	list_for_each_entry(update, &updates, list)
		next = min(next, next_look(update));
	/* Under the lock: whoever has just made an update wait wants it sooner. */
	if (next != MAX_JIFFY_OFFSET)
		mod_delayed_work(DYNAMOS_WQ, &overdue, next);
	mutex_unlock(&redirect_lock);
}

/**
 * confirm_switched() - follow a switch of a whole update
 * @update: the update, or NULL
 * @activate: whether it was activated
 * @seconds: within which that is to be confirmed, or 0
 */
void confirm_switched(struct update *update, bool activate, u32 seconds)
{
	lockdep_assert_held(&redirect_lock);
	if (!update)
		return;
	update->confirm = DYNAMOS_SETTLED;
	update->confirm_error = 0;
	update->confirm_tries = 0;
	if (!activate || !seconds)
		return;
	update->confirm = DYNAMOS_WAITING;
	update->confirm_by = jiffies + seconds * HZ;
	mod_delayed_work(DYNAMOS_WQ, &overdue, 0);
}

/**
 * confirm_info() - tell what an update waits for
 * @update: the update
 * @info: out: confirm, confirm_left, confirm_error
 */
void confirm_info(const struct update *update, struct dynamos_update_info *info)
{
	unsigned long now = jiffies;

	info->confirm = update->confirm;
	info->confirm_error = -update->confirm_error;
	if (update->confirm == DYNAMOS_WAITING && time_before(now, update->confirm_by))
		info->confirm_left = DIV_ROUND_UP(update->confirm_by - now, HZ);
}

/**
 * confirm() - let an activation stay
 * @name: the update's module
 *
 * Return: 0; -ENOENT; -ENOMSG if nothing waits; -ETIME if it is too late.
 */
int confirm(const char *name)
{
	struct update *update = update_by_name(name);

	if (!update)
		return -ENOENT;
	if (update->confirm == DYNAMOS_SETTLED)
		return -ENOMSG;
	if (update->confirm != DYNAMOS_WAITING)
		return -ETIME;
	update->confirm = DYNAMOS_SETTLED;
	return 0;
}

void confirm_exit(void)
{
	cancel_delayed_work_sync(&overdue);
}
