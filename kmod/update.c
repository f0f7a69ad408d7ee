// SPDX-License-Identifier: GPL-2.0
/*
 * The table of updates: what their modules told of themselves, and which are in
 * force with all that belongs to them and not to a single function: hooks,
 * variables, shadow data.
 *
 * An update is here from its module's init to its exit, and goes through the
 * states of its functions (redirect.c). Its own state tells of its hooks and
 * variables: they come and go in a stop that names the update, with whichever of
 * its functions are redirected in that stop. An update without functions has
 * only this state.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "dynamos.h"

LIST_HEAD(updates);	/* guarded by redirect_lock */
static u32 last_id;

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

/* The first update whose id is at least @id; they are in order. */
static struct update *update_from(u32 id)
{
	struct update *update;

	lockdep_assert_held(&redirect_lock);
	list_for_each_entry(update, &updates, list)
		if (update->id >= id)
			return update;
	return NULL;
}

/**
 * update_by_id() - find an update
 * @id: its number
 *
 * Return: the update, valid while redirect_lock is held, or NULL.
 */
struct update *update_by_id(u32 id)
{
	struct update *update = update_from(id);

	return update && update->id == id ? update : NULL;
}

/**
 * update_check() - whether an update is one, and of this boot
 * @told: what its module tells
 */
int update_check(const struct dynamos_update *told)
{
	unsigned long i;
	int err = 0;

	if (told->size != sizeof(*told) ||
	    (told->flags & ~(DYNAMOS_QUIESCENT | DYNAMOS_CONSISTENT | DYNAMOS_PHASED)) ||
	    memchr_inv(told->reserved, 0, sizeof(told->reserved)))
		return -ENOEXEC;
	if (told->anchor != (unsigned long)&init_task)
		return -ESTALE;
	for (i = 0; i < told->nr_variables && !err; i++)
		err = variable_check(&told->variables[i]);
	return err;
}

static void update_free(struct update *update)
{
	kvfree(update->variables);
	kfree(update);
}

static struct update *update_new(const struct dynamos_update *told)
{
	struct update *update = fault() ? NULL : kzalloc(sizeof(*update), GFP_KERNEL);
	unsigned long i;

	if (!update)
		return NULL;
	update->told = told;
	update->variables = fault() ? NULL :
		kvcalloc(told->nr_variables, sizeof(*update->variables), GFP_KERNEL);
	if (!update->variables) {
		update_free(update);
		return NULL;
	}
	for (i = 0; i < told->nr_variables; i++)
		update->variables[i].told = &told->variables[i];
	return update;
}

__visible int dynamos_register(const struct dynamos_update *told)
{
	struct update *update;
	int err = update_check(told);

	if (err)
		return err;
	update = update_new(told);
	if (!update)
		return -ENOMEM;
	mutex_lock(&redirect_lock);
	err = maps_ready() ? redirect_add(told) : -ENODATA;
	if (err)
		goto out_free;
	err = text_complete(told) ?: phase_add(update);
	if (err)
		goto out_remove;
	update->id = ++last_id;
	list_add_tail(&update->list, &updates);
	mutex_unlock(&redirect_lock);
	return 0;

out_remove:
	redirect_remove(told->owner);
out_free:
	mutex_unlock(&redirect_lock);
	update_free(update);
	return err;
}
EXPORT_SYMBOL_GPL(dynamos_register);

__visible void dynamos_unregister(const struct dynamos_update *told)
{
	struct update *update;

	mutex_lock(&redirect_lock);
	update = update_by_name(told->owner->name);
	WARN_ON_ONCE(update->state != DYNAMOS_LOADED);
	phase_remove(update);
	threads_forget(told->thread);
	redirect_remove(told->owner);
	list_del(&update->list);
	mutex_unlock(&redirect_lock);
	update_free(update);
}
EXPORT_SYMBOL_GPL(dynamos_unregister);

/* What a hook returned becomes the caller's errno, and the hook the culprit. */
static int hook_result(int err, unsigned long hook, struct dynamos_switch *sw)
{
	if (!err)
		return 0;
	sw->culprit.address = hook;
	sw->hook_error = err < 0 ? err : -EINVAL;
	return err == -EAGAIN ? -EAGAIN : -ECANCELED;
}

static int variables_taken(const struct update *update, struct dynamos_culprit *culprit)
{
	const struct update *other;
	unsigned long i, j;

	list_for_each_entry(other, &updates, list) {
		if (other == update || other->state != DYNAMOS_REDIRECTED)
			continue;
		for (i = 0; i < update->told->nr_variables; i++) {
			for (j = 0; j < other->told->nr_variables; j++) {
				if (!variable_overlaps(&update->told->variables[i],
						       &other->told->variables[j]))
					continue;
				culprit->address = update->told->variables[i].address;
				return -EEXIST;
			}
		}
	}
	return 0;
}

/**
 * update_allows() - whether functions may be redirected in a stop
 * @owner: their update's module
 * @named: the update that the stop is for, or NULL
 * @activate: which way
 *
 * Editions may rely on the hooks of their update having run; and functions that
 * switch together switch with their update.
 */
bool update_allows(const struct module *owner, const struct update *named, bool activate)
{
	const struct update *update = update_by_name(owner->name);
	const struct dynamos_update *told = update->told;

	if (update == named)
		return true;
	if (phase_together(update))
		return false;
	return !activate || update->state == DYNAMOS_REDIRECTED ||
	       (!told->nr_variables && !told->before->run && !told->in_stop->run &&
		!told->after->run && !told->thread->each);
}

static int activation_begin(struct update *update, struct dynamos_switch *sw)
{
	const struct dynamos_update *told = update->told;
	int err = variables_taken(update, &sw->culprit);

	if (err)
		return err;
	if (update->state == DYNAMOS_LOADED && !try_module_get(told->owner))
		return -ENODEV;
	err = -ENOMEM;
	update->fresh = fault() ? NULL : shadows_new(update->shadows);
	if (!update->fresh)
		goto put;
	err = variables_map(update->variables, told->nr_variables);
	if (err)
		goto free;
	if (update->state == DYNAMOS_LOADED && told->before->run)
		err = hook_result(told->before->run(), (unsigned long)told->before->run, sw);
	if (!err) {
		err = threads_prepare(told->thread, false);
		if (!err)
			return 0;
		if (update->state == DYNAMOS_LOADED && told->before->undo)
			told->before->undo();
	}
	variables_unmap(update->variables, told->nr_variables);
free:
	shadows_free(update->fresh, update->shadows);
put:
	if (update->state == DYNAMOS_LOADED)
		module_put(told->owner);
	return err;
}

static void activation_end(struct update *update, int err)
{
	const struct dynamos_update *told = update->told;

	variables_unmap(update->variables, told->nr_variables);
	if (!err) {
		update->shadows = update->fresh;
		update->state = DYNAMOS_REDIRECTED;
		if (told->after->run)
			told->after->run();
		threads_replace(told->thread, true);
		return;
	}
	threads_keep(told->thread, false);
	if (update->state == DYNAMOS_LOADED && told->before->undo)
		told->before->undo();
	shadows_free(update->fresh, update->shadows);
	if (update->state == DYNAMOS_LOADED)
		module_put(told->owner);
}

static int deactivation_begin(struct update *update, struct dynamos_switch *sw)
{
	const struct dynamos_update *told = update->told;
	int err = threads_prepare(told->thread, true);

	if (err)
		return err;
	err = variables_map(update->variables, told->nr_variables);
	if (err)
		goto keep;
	if (!told->after->undo)
		return 0;
	err = hook_result(told->after->undo(), (unsigned long)told->after->undo, sw);
	if (!err)
		return 0;
	variables_unmap(update->variables, told->nr_variables);
keep:
	threads_keep(told->thread, true);
	return err;
}

static void deactivation_end(struct update *update, int err)
{
	const struct dynamos_update *told = update->told;

	variables_unmap(update->variables, told->nr_variables);
	if (!err) {
		update->state = DYNAMOS_DRAINING;
		threads_replace(told->thread, false);
		return;
	}
	threads_keep(told->thread, true);
	if (told->after->run)
		told->after->run();
}

/**
 * update_begin() - what comes before a stop that is for an update
 * @update: the update, or NULL
 * @activate: which way
 * @sw: culprit and the hook's error come back here
 *
 * Return: 0, and then update_end() is due; or an errno, and nothing has changed.
 */
int update_begin(struct update *update, bool activate, struct dynamos_switch *sw)
{
	if (!update)
		return 0;
	if ((update->state == DYNAMOS_REDIRECTED) == activate)
		return -EALREADY;
	/* Who was preempted before its call was counted may yet begin one. */
	if (update->group && !activate)
		synchronize_rcu_tasks();
	return activate ? activation_begin(update, sw) : deactivation_begin(update, sw);
}

/**
 * update_ready() - the last of the checks in the stop
 * @update: the update, or NULL
 * @activate: which way
 * @sw: culprit and the hook's error come back here
 */
int update_ready(struct update *update, bool activate, struct dynamos_switch *sw)
{
	const struct dynamos_update *told;
	int (*step)(void);
	int err = 0;

	if (!update)
		return 0;
	told = update->told;
	step = activate ? told->in_stop->run : told->in_stop->undo;
	if (told->flags & DYNAMOS_QUIESCENT)
		err = update_quiet(told, activate, &sw->culprit);
	if (!err && activate) {
		err = variables_expected(update->variables, told->nr_variables,
					 &sw->culprit);
		/* Not sooner: the original frees objects and detaches nothing. */
		if (!err)
			*told->shadows = update->fresh;
	}
	if (!err)
		err = phase_check(update, activate);
	if (!err && step)
		err = hook_result(step(), (unsigned long)step, sw);
	if (err && activate)
		*told->shadows = NULL;
	return err;
}

/**
 * update_write() - write, in the stop, when nothing can fail any more
 * @update: the update, or NULL
 * @activate: which way
 * @sw: how many variables were left alone comes back here
 */
void update_write(struct update *update, bool activate, struct dynamos_switch *sw)
{
	if (!update)
		return;
	if (activate) {
		variables_write(update->variables, update->told->nr_variables);
	} else {
		sw->left = variables_restore(update->variables,
					     update->told->nr_variables);
		*update->told->shadows = NULL;
	}
	phase_switched(update, activate);
}

/**
 * update_end() - what comes after a stop that was for an update
 * @update: the update, or NULL
 * @activate: which way
 * @err: how the stop ended
 */
void update_end(struct update *update, bool activate, int err)
{
	if (!update)
		return;
	if (activate)
		activation_end(update, err);
	else
		deactivation_end(update, err);
	if (!err && phase_together(update))
		phase_follow();
}

/**
 * update_retired() - let go of what only the update's own code could use
 * @update: it is proven that nothing runs that code
 */
void update_retired(struct update *update)
{
	lockdep_assert_held(&redirect_lock);
	if (update->state != DYNAMOS_DRAINING)
		return;
	if (update->told->before->undo)
		update->told->before->undo();
	shadows_free(update->shadows, NULL);
	update->shadows = NULL;
	update->state = DYNAMOS_LOADED;
	module_put(update->told->owner);
}

/**
 * update_info() - describe the first update whose id is at least info->id
 * @info: in: id; out: everything
 *
 * Return: 0, or -ENOENT past the last one.
 */
int update_info(struct dynamos_update_info *info)
{
	const struct update *update = update_from(info->id);

	if (!update)
		return -ENOENT;
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->id = update->id;
	info->state = update->state;
	info->functions = function_count(update->told);
	info->variables = update->told->nr_variables;
	confirm_info(update, info);
	info->shadows = shadows_count(*update->told->shadows);
	strscpy(info->name, update->told->owner->name, sizeof(info->name));
	return 0;
}

/**
 * update_variable() - describe one variable of an update
 * @info: in: update and index; out: everything
 *
 * Return: 0, or -ENOENT if there is none.
 */
int update_variable(struct dynamos_variable_info *info)
{
	const struct update *update = update_by_id(info->update);
	u32 index = info->index;

	if (!update || index >= update->told->nr_variables)
		return -ENOENT;
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->update = update->id;
	info->index = index;
	variable_info(&update->variables[index], info);
	return 0;
}
