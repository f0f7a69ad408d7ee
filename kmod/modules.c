// SPDX-License-Identifier: GPL-2.0
/*
 * The loadable modules whose functions updates change.
 *
 * An update holds them for as long as it is in the kernel, redirected or not:
 * its clones branch into them, and the kernel threads the sites of their static
 * keys and static calls that the clones have into lists that begin there. So
 * they are taken before anybody else hears of the update, and let go after
 * everybody has forgotten it; the order of notifiers sees to both.
 *
 * What an update says of a module is an address in one load of it. A load is
 * told from all others by the inode of /sys/module/NAME, which no other has.
 */
#include <linux/jump_label.h>
#include <linux/kernfs.h>
#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/static_call.h>

#include "dynamos.h"

struct hold {
	struct list_head list;
	const struct module *update;
	struct module *module;		/* owned: a reference */
};

/* Guards holds. Taken inside redirect_lock, and by the module loader's calls. */
static DEFINE_MUTEX(holds_lock);
static LIST_HEAD(holds);

/*
 * Return a live module, with a reference that module_put() drops, or NULL. Its
 * kobject keeps the structure while the reference is being taken.
 */
static struct module *module_by_name(const char *name)
{
	struct kobject *kobj = kset_find_obj(THIS_MODULE->mkobj.kobj.kset, name);
	struct module *module;

	if (!kobj)
		return NULL;
	module = container_of(kobj, struct module_kobject, kobj)->mod;
	/* What is built in has a kobject and no module. */
	if (module && !try_module_get(module))
		module = NULL;
	if (module && module->state != MODULE_STATE_LIVE) {
		module_put(module);
		module = NULL;
	}
	kobject_put(kobj);
	return module;
}

/* Of a module that is held, whose directory so stays in place. */
static unsigned long module_load(const struct module *module)
{
	return kernfs_ino(module->mkobj.kobj.sd);
}

/**
 * modules_held() - the module that an update holds under a name
 * @update: the update's module
 * @name: of the module in question
 *
 * Return: the module, held until @update has gone, or NULL.
 */
const struct module *modules_held(const struct module *update, const char *name)
{
	const struct module *found = NULL;
	struct hold *hold;

	mutex_lock(&holds_lock);
	list_for_each_entry(hold, &holds, list)
		if (hold->update == update && !strcmp(hold->module->name, name))
			found = hold->module;
	mutex_unlock(&holds_lock);
	return found;
}

static void holds_drop(const struct module *update)
{
	struct hold *hold, *next;

	mutex_lock(&holds_lock);
	list_for_each_entry_safe(hold, next, &holds, list) {
		if (hold->update != update)
			continue;
		list_del(&hold->list);
		module_put(hold->module);
		kfree(hold);
	}
	mutex_unlock(&holds_lock);
}

static int hold_one(const struct module *update, const struct dynamos_module *which)
{
	const struct module *held = modules_held(update, which->name);
	struct hold *hold;

	if (held)
		return module_load(held) == which->load ? 0 : -ESTALE;
	hold = kzalloc(sizeof(*hold), GFP_KERNEL);
	if (!hold)
		return -ENOMEM;
	hold->update = update;
	hold->module = module_by_name(which->name);
	if (!hold->module || module_load(hold->module) != which->load) {
		if (hold->module)
			module_put(hold->module);
		kfree(hold);
		return -ESTALE;
	}
	mutex_lock(&holds_lock);
	list_add(&hold->list, &holds);
	mutex_unlock(&holds_lock);
	return 0;
}

static int update_comes(const struct module *module, const struct dynamos_update *told)
{
	const struct dynamos_function *function;
	int err = update_check(told);

	for (function = told->functions; function < told->functions_end && !err; function++)
		if (function->module)
			err = hold_one(module, function->module);
	if (err)
		holds_drop(module);
	return err;
}

/* Nobody can give the parameter a value: it is there to be found. */
static int param_set(const char *value, const struct kernel_param *param)
{
	return -EINVAL;
}

__visible const struct kernel_param_ops dynamos_update_param = { .set = param_set };
EXPORT_SYMBOL_GPL(dynamos_update_param);

static const struct dynamos_update *told_by(const struct module *module)
{
	unsigned int i;

	for (i = 0; i < module->num_kp; i++)
		if (module->kp[i].ops == &dynamos_update_param)
			return module->kp[i].arg;
	return NULL;
}

/* First of all, so that an update that does not belong here reaches nobody. */
static int module_comes(struct notifier_block *block, unsigned long event, void *data)
{
	const struct dynamos_update *told = told_by(data);
	const struct module *module = data;

	if (!told)
		return NOTIFY_DONE;
	if (event == MODULE_STATE_COMING)
		return notifier_from_errno(update_comes(module, told));
	/* Somebody after us did not take it, and module_gone() is not called. */
	if (event == MODULE_STATE_GOING && module->state == MODULE_STATE_COMING)
		holds_drop(module);
	return NOTIFY_DONE;
}

/* Last of all. */
static int module_gone(struct notifier_block *block, unsigned long event, void *data)
{
	if (event == MODULE_STATE_GOING)
		holds_drop(data);
	return NOTIFY_DONE;
}

static struct notifier_block comes_block = {
	.notifier_call = module_comes,
	.priority = INT_MAX,
};

static struct notifier_block gone_block = {
	.notifier_call = module_gone,
	.priority = INT_MIN,
};

int modules_init(void)
{
	int err = register_module_notifier(&gone_block);

	if (err)
		return err;
	err = register_module_notifier(&comes_block);
	if (err)
		unregister_module_notifier(&gone_block);
	return err;
}

void modules_exit(void)
{
	unregister_module_notifier(&comes_block);
	unregister_module_notifier(&gone_block);
}

static struct dynamos_area area(const void *start, unsigned long size)
{
	return (struct dynamos_area){ .start = (unsigned long)start, .size = size };
}

static void areas_fill(struct dynamos_module_info *info, const struct module *module)
{
#ifdef DYNAMOS_MODULE_LAYOUT
	const struct module_layout *core = &module->core_layout;

	info->text = area(core->base, core->text_size);
	info->ro_after_init = area(core->base + core->ro_size,
				   core->ro_after_init_size - core->ro_size);
#else
	info->text = area(module->mem[MOD_TEXT].base, module->mem[MOD_TEXT].size);
	info->ro_after_init = area(module->mem[MOD_RO_AFTER_INIT].base,
				   module->mem[MOD_RO_AFTER_INIT].size);
#endif
	info->fixups = area(module->extable,
			    module->num_exentries * sizeof(*module->extable));
#ifdef CONFIG_JUMP_LABEL
	info->keys = area(module->jump_entries,
			  module->num_jump_entries * sizeof(*module->jump_entries));
#endif
#ifdef CONFIG_GENERIC_BUG
	info->bugs = area(module->bug_table,
			  module->num_bugs * sizeof(*module->bug_table));
	info->bug_size = sizeof(*module->bug_table);
#endif
#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
	info->static_calls = area(module->static_call_sites,
				  module->num_static_call_sites *
				  sizeof(*module->static_call_sites));
#endif
#ifdef CONFIG_UNWINDER_ORC
	info->orc_ips = area(module->arch.orc_unwind_ip,
			     module->arch.num_orcs * sizeof(*module->arch.orc_unwind_ip));
	info->orc = area(module->arch.orc_unwind,
			 module->arch.num_orcs * sizeof(*module->arch.orc_unwind));
#endif
}

/**
 * modules_info() - tell where a loaded module's code and tables lie
 * @info: in: name; out: everything
 *
 * Return: 0, or -ENOENT if no such module is loaded, or it is coming or going.
 */
int modules_info(struct dynamos_module_info *info)
{
	struct module *module = module_by_name(info->name);

	if (!module)
		return -ENOENT;
	info->load = module_load(module);
	areas_fill(info, module);
	module_put(module);
	return 0;
}
