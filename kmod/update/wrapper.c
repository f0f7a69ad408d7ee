// SPDX-License-Identifier: GPL-2.0
/*
 * The C side of every update module: hands the generated table to dynamos.ko.
 * DYNAMOS_ANCHOR comes from the build.
 */
#include <linux/module.h>

#include "dynamos_update.h"

static int __init update_init(void)
{
	return dynamos_register(THIS_MODULE, dynamos_functions,
				dynamos_functions_end - dynamos_functions,
				DYNAMOS_ANCHOR);
}

static void __exit update_exit(void)
{
	dynamos_unregister(THIS_MODULE);
}

module_init(update_init);
module_exit(update_exit);
MODULE_DESCRIPTION("dynamos_ng update");
MODULE_LICENSE("GPL");
