// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of every update module: hands the generated table to dynamos.ko.
 * DYNAMOS_ANCHOR comes from the build.
 */
#include <linux/module.h>

#include "dynamos_update.h"

static struct dynamos_update update __ro_after_init = {
	.size = sizeof(update),
	.owner = THIS_MODULE,
	.functions = dynamos_functions,
	.anchor = DYNAMOS_ANCHOR,
};

static int __init update_init(void)
{
	update.count = dynamos_functions_end - dynamos_functions;
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
