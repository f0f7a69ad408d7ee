// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of every update module: hands the generated tables to dynamos.ko.
 * DYNAMOS_ANCHOR and DYNAMOS_FLAGS come from the build.
 */
#include <linux/module.h>

#include "dynamos_thread.h"
#include "dynamos_update.h"

/* Hooks and threads that the author does not give; his definitions are the stronger ones. */
const struct dynamos_before dynamos_before __weak;
const struct dynamos_in_stop dynamos_in_stop __weak;
const struct dynamos_after dynamos_after __weak;
const struct dynamos_thread dynamos_thread __weak;

struct dynamos_shadows *dynamos_shadows;
unsigned long dynamos_phase;

static struct dynamos_update update __ro_after_init = {
	.size = sizeof(update),
	.owner = THIS_MODULE,
	.functions = dynamos_functions,
	.functions_end = dynamos_functions_end,
	.anchor = DYNAMOS_ANCHOR,
	.variables = dynamos_variables,
	.before = &dynamos_before,
	.in_stop = &dynamos_in_stop,
	.after = &dynamos_after,
	.shadows = &dynamos_shadows,
	.flags = DYNAMOS_FLAGS,
	.tasks = &dynamos_tasks,
	.phase = &dynamos_phase,
	.thread = &dynamos_thread,
	.directs = dynamos_directs,
};
module_param_cb(dynamos, &dynamos_update_param, &update, 0);

static int __init update_init(void)
{
	update.nr_variables = dynamos_variables_end - dynamos_variables;
	update.nr_directs = dynamos_directs_end - dynamos_directs;
	return dynamos_register(&update);
}

static void __exit update_exit(void)
{
	dynamos_unregister(&update);
}

module_init(update_init);
module_exit(update_exit);
MODULE_DESCRIPTION("dynamos_ng update");
MODULE_LICENSE("GPL");
