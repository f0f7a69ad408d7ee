// SPDX-License-Identifier: GPL-2.0
/*
 * The table of updates: what their modules told of themselves.
 *
 * An update is here from its module's init to its exit. Its functions are in the
 * table of redirect.c meanwhile.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "dynamos.h"

static LIST_HEAD(updates);	/* guarded by redirect_lock */

static struct update *update_of(const struct module *owner)
{
	struct update *update;

	list_for_each_entry(update, &updates, list)
		if (update->told->owner == owner)
			return update;
	return NULL;
}

/**
 * update_by_name() - find an update
 * @name: its module's name
 *
 * Return: the update, valid while redirect_lock is held, or NULL.
 */
struct update *update_by_name(const char *name)
{
	struct update *update;

	lockdep_assert_held(&redirect_lock);
	list_for_each_entry(update, &updates, list)
		if (!strcmp(update->told->owner->name, name))
			return update;
	return NULL;
}

static int update_check(const struct dynamos_update *told)
{
	if (told->size != sizeof(*told) ||
	    memchr_inv(told->reserved, 0, sizeof(told->reserved)))
		return -ENOEXEC;
	if (told->anchor != (unsigned long)&init_task)
		return -ESTALE;
	return told->count ? 0 : -ENOEXEC;
}

int dynamos_register(const struct dynamos_update *told)
{
	struct update *update;
	int err = update_check(told);

	if (err)
		return err;
	update = kzalloc(sizeof(*update), GFP_KERNEL);
	if (!update)
		return -ENOMEM;
	update->told = told;
	mutex_lock(&redirect_lock);
	err = maps_ready() ? redirect_add(told) : -ENODATA;
	if (!err)
		list_add_tail(&update->list, &updates);
	mutex_unlock(&redirect_lock);
	if (err)
		kfree(update);
	return err;
}
EXPORT_SYMBOL_GPL(dynamos_register);

void dynamos_unregister(const struct dynamos_update *told)
{
	struct update *update;

	mutex_lock(&redirect_lock);
	redirect_remove(told->owner);
	update = update_of(told->owner);
	list_del(&update->list);
	mutex_unlock(&redirect_lock);
	kfree(update);
}
EXPORT_SYMBOL_GPL(dynamos_unregister);
