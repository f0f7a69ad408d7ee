// SPDX-License-Identifier: GPL-2.0
/*
 * The proof without which the code of an update is not freed.
 */
#include <linux/module.h>
#include <linux/rcupdate.h>

#include "dynamos.h"

/* Neither redirected nor, by its use counters, running. */
static int counters_clear(const struct update *update, struct dynamos_culprit *culprit)
{
	const struct module *owner = update->told->owner;
	unsigned long i;
	u32 id;

	if (update->state == DYNAMOS_REDIRECTED)
		return -EBUSY;

	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX; id++) {
		const struct redirect *redirect = redirects[id];

		if (!redirect || redirect->owner != owner)
			continue;
		culprit->function = id;
		culprit->address = redirect->function->address;
		if (redirect->state == DYNAMOS_REDIRECTED)
			return -EBUSY;
		for (i = 0; i < redirect->function->nr_editions; i++) {
			const struct dynamos_edition *edition =
				&redirect->function->editions[i];

			if (!(edition->flags & DYNAMOS_NEVER_RETURNS) &&
			    use_in_flight(id, edition->number))
				return -EINPROGRESS;
		}
	}
	culprit_clear(culprit);
	return 0;
}

/**
 * redirect_retire() - let go of an update that nothing can be running
 * @retire: in: the update's module name; out: the culprit
 *
 * Proof, in this order: no trampoline leads in; the use counters balance; a
 * grace period of RCU-tasks, for those that were preempted in a handler or an
 * exit stub, where the counters do not see them; the counters again; and no
 * stack holds an address inside.
 *
 * Takes and drops redirect_lock, for the grace period may last.
 */
int redirect_retire(struct dynamos_retire *retire)
{
	struct update *update;
	struct module *owner;
	u32 id;
	int err;

	culprit_clear(&retire->culprit);
	mutex_lock(&redirect_lock);
	update = update_by_name(retire->update);
	owner = update ? update->told->owner : NULL;
	if (!owner || !try_module_get(owner)) {
		mutex_unlock(&redirect_lock);
		return -ENOENT;
	}
	err = counters_clear(update, &retire->culprit);
	mutex_unlock(&redirect_lock);
	if (err)
		goto out_put;

	synchronize_rcu_tasks();

	mutex_lock(&redirect_lock);
	err = counters_clear(update, &retire->culprit);
	if (!err)
		err = stack_module_clear(owner, retire);
	/* An exiting task that reaps itself is on no list; in the end it is past do_exit(). */
	if (!err)
		synchronize_rcu_tasks();
	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX && !err; id++) {
		struct redirect *redirect = redirects[id];

		if (redirect && redirect->owner == owner &&
		    redirect->state == DYNAMOS_DRAINING) {
			redirect->state = DYNAMOS_LOADED;
			module_put(owner);
		}
	}
	if (!err)
		update_retired(update);
	mutex_unlock(&redirect_lock);
out_put:
	module_put(owner);
	return err;
}
