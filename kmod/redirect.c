// SPDX-License-Identifier: GPL-2.0
/*
 * The table of functions: who registered them, and which are redirected.
 *
 *	state		trampoline	holds its update's module
 *	LOADED		no		no
 *	REDIRECTED	yes		yes
 *	DRAINING	no		yes
 *
 *	LOADED -> REDIRECTED		ACTIVATE
 *	REDIRECTED -> DRAINING		DEACTIVATE
 *	DRAINING -> REDIRECTED		ACTIVATE
 *	DRAINING -> LOADED		RETIRE, after proof that nothing runs it
 *
 * So an update can be unloaded only when each of its functions is LOADED, and
 * that is only when none ever ran or all are proven unused.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "arch/x86.h"
#include "dynamos.h"

DEFINE_MUTEX(redirect_lock);
struct redirect *redirects[DYNAMOS_FUNCTIONS_MAX];

/* The kernel's own code, or that of the module which the update holds for it. */
static bool place_check(const struct dynamos_function *function,
			const struct module *owner)
{
	const struct module *module;

	if (!function->module)
		return !text_in_module(function->site);
	module = modules_held(owner, function->module->name);
	return module && within_module_core(function->site, module) &&
	       within_module_core(function->site + TRAMPOLINE_SIZE - 1, module);
}

static int function_check(const struct dynamos_function *function,
			  const struct module *owner)
{
	u8 code[TRAMPOLINE_SIZE];
	unsigned long i, j;

	if (!function->nr_editions ||
	    function->nr_editions >= DYNAMOS_EDITIONS_MAX ||
	    strnlen(function->name, DYNAMOS_NAME_MAX) == DYNAMOS_NAME_MAX ||
	    function->site < function->address ||
	    function->site - function->address > 16 ||
	    (function->flags & ~DYNAMOS_TELLS) ||
	    !within_module(function->handler, owner) ||
	    !within_module(function->end - 1, owner) ||
	    function->below < function->handler ||
	    function->below + TRAMPOLINE_SIZE > function->end)
		return -ENOEXEC;
	for (i = 0; i < function->nr_editions; i++) {
		const struct dynamos_edition *edition = &function->editions[i];

		if (!edition->number ||
		    edition->number >= DYNAMOS_EDITIONS_MAX ||
		    edition->start < function->handler ||
		    edition->end <= edition->start ||
		    edition->end > function->end)
			return -ENOEXEC;
		for (j = 0; j < i; j++)
			if (function->editions[j].number == edition->number)
				return -ENOEXEC;
	}
	if (!place_check(function, owner))
		return -EXDEV;
	return text_jump(code, function->site, function->handler);
}

/* The edition of every class becomes 0, which handlers take for v1. */
static void function_reset(u32 id, const struct dynamos_function *function)
{
	unsigned long i;

	memset(editions_row(id), 0, DYNAMOS_CLASSES);
	*must_update(id) = 0;
	for (i = 0; i < function->nr_editions; i++)
		use_reset(id, function->editions[i].number);
}

static void function_connect(u32 id, const struct dynamos_function *function)
{
	unsigned long i;

	*function->row = editions_row(id);
	for (i = 0; i < function->nr_editions; i++)
		*function->editions[i].use =
			(void *)(__force unsigned long)use_counter(id, function->editions[i].number);
}

static int function_adapt(u32 id, struct redirect *redirect)
{
	const struct dynamos_function *function = redirect->function;

	if (!function->adapt)
		return 0;
	redirect->adapt = adapt_create(function, editions_row(id));
	if (!redirect->adapt)
		return -ENOMEM;
	*function->adapt = redirect->adapt;
	return 0;
}

/**
 * redirect_remove() - forget the functions of an update whose module goes
 * @owner: the module
 */
void redirect_remove(const struct module *owner)
{
	u32 id;

	lockdep_assert_held(&redirect_lock);
	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX; id++) {
		if (!redirects[id] || redirects[id]->owner != owner)
			continue;
		WARN_ON_ONCE(redirects[id]->state != DYNAMOS_LOADED);
		memset(editions_row(id), 0, DYNAMOS_CLASSES);
		adapt_destroy(redirects[id]->adapt);
		kfree(redirects[id]);
		redirects[id] = NULL;
	}
}

/**
 * redirect_add() - give each function of an update an id, and connect it
 * @update: its module is being loaded
 *
 * Return: 0, or an errno, and then none of them is in the table.
 */
int redirect_add(const struct dynamos_update *update)
{
	const struct dynamos_function *function;
	u32 id = 0;
	int err = 0;

	lockdep_assert_held(&redirect_lock);
	for (function = update->functions; function < update->functions_end; function++) {
		struct redirect *redirect;

		err = function_check(function, update->owner);
		if (err)
			break;
		while (id < DYNAMOS_FUNCTIONS_MAX && redirects[id])
			id++;
		if (id == DYNAMOS_FUNCTIONS_MAX) {
			err = -ENOSPC;
			break;
		}
		redirect = fault() ? NULL : kzalloc(sizeof(*redirect), GFP_KERNEL);
		if (!redirect) {
			err = -ENOMEM;
			break;
		}
		redirect->function = function;
		redirect->owner = update->owner;
		memcpy(redirect->alone, (void *)function->below, TRAMPOLINE_SIZE);
		redirects[id] = redirect;
		function_reset(id, redirect->function);
		function_connect(id, redirect->function);
		err = function_adapt(id, redirect);
		if (err)
			break;
	}
	if (err)
		redirect_remove(update->owner);
	return err;
}

/**
 * redirect_info() - describe the first function whose id is at least info->id
 * @info: in: id; out: everything
 *
 * Return: 0, or -ENOENT past the last one.
 */
int redirect_info(struct dynamos_function_info *info)
{
	const struct dynamos_function *function;
	u32 id = info->id, i;

	lockdep_assert_held(&redirect_lock);
	while (id < DYNAMOS_FUNCTIONS_MAX && !redirects[id])
		id++;
	if (id >= DYNAMOS_FUNCTIONS_MAX)
		return -ENOENT;
	function = redirects[id]->function;
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->id = id;
	info->state = redirects[id]->state;
	info->nr_editions = function->nr_editions;
	info->flags = function->flags;
	info->order = redirects[id]->order;
	info->address = function->address;
	info->image_size = function->size;
	info->site = function->site;
	info->handler = function->handler;
	info->end = function->end;
	memcpy(info->original_bytes, function->expected, TRAMPOLINE_SIZE);
	text_jump(info->trampoline, function->site, function->handler);
	strscpy(info->name, function->name, sizeof(info->name));
	strscpy(info->update, redirects[id]->owner->name, sizeof(info->update));
	if (function->module)
		strscpy(info->module, function->module->name, sizeof(info->module));
	for (i = 0; i < function->nr_editions; i++) {
		info->editions[i].number = function->editions[i].number;
		info->editions[i].flags = function->editions[i].flags;
		info->editions[i].start = function->editions[i].start;
		info->editions[i].end = function->editions[i].end;
	}
	if (redirects[id]->adapt)
		adapt_info(redirects[id]->adapt, info);
	return 0;
}

/**
 * redirect_next() - find the next function of an update
 * @update: whose
 * @id: the first id to consider
 *
 * Return: its id, or DYNAMOS_FUNCTIONS_MAX.
 */
u32 redirect_next(const struct update *update, u32 id)
{
	while (id < DYNAMOS_FUNCTIONS_MAX &&
	       !(redirects[id] && redirects[id]->owner == update->told->owner))
		id++;
	return id;
}

const struct dynamos_function *redirect_function(u32 id)
{
	return redirects[id]->function;
}

void redirect_totals(u32 *functions, u32 *redirected)
{
	u32 id;

	*functions = 0;
	*redirected = 0;
	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX; id++) {
		if (!redirects[id])
			continue;
		++*functions;
		*redirected += redirects[id]->state == DYNAMOS_REDIRECTED;
	}
}

/**
 * redirect_adapt() - let a BPF program choose a function's editions
 * @id: the function
 * @fd: descriptor of the program, or -1 for none
 *
 * Return: 0, -ENOENT, -ENOLINK or -EBADFD.
 */
int redirect_adapt(u32 id, int fd)
{
	lockdep_assert_held(&redirect_lock);
	if (id >= DYNAMOS_FUNCTIONS_MAX || !redirects[id])
		return -ENOENT;
	if (!redirects[id]->adapt)
		return -ENOLINK;
	return adapt_attach(redirects[id]->adapt, fd);
}

static int patch_compare(const void *a, const void *b)
{
	const struct text_patch *left = a, *right = b;

	return left->address < right->address ? -1 : left->address > right->address;
}

static void patches_free(struct patching *patching)
{
	while (patching->count)
		text_unmap(&patching->patches[--patching->count]);
	kvfree(patching->patches);
}

/* Of two redirections of one function, one leads to the other: they change apart. */
static bool stands_before(const u32 *ids, u32 at)
{
	u32 i;

	for (i = 0; i < at; i++)
		if (redirects[ids[i]]->function->address ==
		    redirects[ids[at]]->function->address)
			return true;
	return false;
}

/*
 * Prepare the patches for some functions, mapped and sorted. On failure there are
 * none, and the culprit names the function.
 */
static int patches_prepare(struct patching *patching, const u32 *ids, u32 count,
			   bool activate, const struct update *update,
			   struct dynamos_culprit *culprit)
{
	u32 i;
	int err = 0;

	/* Each of a function's own two places, and one of each that is above another. */
	patching->most = 2 * count + DYNAMOS_FUNCTIONS_MAX;
	patching->patches = fault() ? NULL : kvcalloc(patching->most, sizeof(*patching->patches), GFP_KERNEL);
	if (!patching->patches)
		return -ENOMEM;
	for (i = 0; i < count && !err; i++) {
		const struct redirect *redirect;

		culprit->function = ids[i];
		redirect = ids[i] < DYNAMOS_FUNCTIONS_MAX ? redirects[ids[i]] : NULL;
		if (!redirect)
			err = -ENOENT;
		else if ((redirect->state == DYNAMOS_REDIRECTED) == activate)
			err = -EALREADY;
		else if (!update_allows(redirect->owner, update, activate))
			err = -EUNATCH;
		else if (stands_before(ids, i))
			err = -EINVAL;
		else
			err = activate ? lead_to(patching, ids[i]) : lead_past(patching, ids[i]);
	}
	if (err) {
		patches_free(patching);
		return err;
	}
	sort(patching->patches, patching->count, sizeof(*patching->patches), patch_compare, NULL);
	culprit_clear(culprit);
	return 0;
}

static void modules_put(const u32 *ids, u32 count)
{
	while (count--)
		if (redirects[ids[count]]->state == DYNAMOS_LOADED)
			module_put(redirects[ids[count]]->owner);
}

/* A function that is not LOADED holds its module already. */
static int modules_get(const u32 *ids, u32 count, struct dynamos_culprit *culprit)
{
	u32 i;

	for (i = 0; i < count; i++) {
		if (redirects[ids[i]]->state == DYNAMOS_LOADED &&
		    (fault() || !try_module_get(redirects[ids[i]]->owner))) {
			culprit->function = ids[i];
			modules_put(ids, i);
			return -ENODEV;
		}
	}
	return 0;
}

/* Whether these are all functions of an update, and no others. */
static bool whole_update(const struct update *update, const u32 *ids, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++)
		if (redirects[ids[i]]->owner != update->told->owner)
			return false;
	return count == function_count(update->told);
}

static int redirect_switch(const u32 *ids, u32 count, bool activate,
			   struct dynamos_switch *sw)
{
	struct update *update = NULL;
	struct patching patching = {};
	u32 i;
	int err;

	lockdep_assert_held(&redirect_lock);
	culprit_clear(&sw->culprit);
	if (sw->update) {
		update = update_by_id(sw->update);
		if (!update)
			return -ENOENT;
	}
	err = patches_prepare(&patching, ids, count, activate, update, &sw->culprit);
	if (err)
		return err;
	if (update && phase_together(update) && !whole_update(update, ids, count)) {
		err = -EUNATCH;
		goto out_free;
	}
	if (activate) {
		err = modules_get(ids, count, &sw->culprit);
		if (err)
			goto out_free;
	}
	err = update_begin(update, activate, sw);
	if (!err) {
		err = text_write_all(patching.patches, patching.count, activate, update, sw);
		update_end(update, activate, err);
	}
	if (err && activate)
		modules_put(ids, count);
	for (i = 0; i < count && !err; i++) {
		lead_changed(redirects[ids[i]], activate);
		redirects[ids[i]]->state = activate ? DYNAMOS_REDIRECTED
						    : DYNAMOS_DRAINING;
	}
	if (!err)
		confirm_switched(update, activate, sw->confirm);
out_free:
	patches_free(&patching);
	return err;
}

/**
 * redirect_activate() - write the trampolines of a group, all or none
 * @ids: the functions
 * @count: at least 1, unless @sw names an update
 * @sw: the update; time, tasks and culprit come back here
 */
int redirect_activate(const u32 *ids, u32 count, struct dynamos_switch *sw)
{
	return redirect_switch(ids, count, true, sw);
}

/**
 * redirect_deactivate() - take the trampolines of a group back, all or none
 * @ids: the functions
 * @count: at least 1, unless @sw names an update
 * @sw: the update; time, tasks and culprit come back here
 *
 * Calls that are inside an edition finish there; the update stays pinned until
 * redirect_retire() has proof that they did.
 */
int redirect_deactivate(const u32 *ids, u32 count, struct dynamos_switch *sw)
{
	return redirect_switch(ids, count, false, sw);
}
