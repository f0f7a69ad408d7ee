// SPDX-License-Identifier: GPL-2.0
/*
 * dynamos.ko: redirects running kernel functions to editions chosen by policy.
 */
#include <linux/module.h>

#include "dynamos.h"

static int __init dynamos_init(void)
{
	int err;

	err = unexported_init();
	if (err)
		return err;
	err = modules_init();
	if (err)
		return err;
	err = classify_init();
	if (err)
		goto modules;
	err = device_init();
	if (err)
		goto classify;
	return 0;

classify:
	classify_exit();
modules:
	modules_exit();
	return err;
}

/*
 * Not reached while an update is loaded: updates link against this module, so
 * nothing can be redirected here.
 */
static void __exit dynamos_exit(void)
{
	device_exit();
	confirm_exit();
	phase_exit();
	threads_exit();
	classify_exit();
	modules_exit();
	maps_put();
}

module_init(dynamos_init);
module_exit(dynamos_exit);
MODULE_DESCRIPTION("Dynamic and adaptive updates of running kernel functions");
MODULE_LICENSE("GPL");
/* Where bpf_map_get() is since 6.15; MODULE_IMPORT_NS() changed its syntax. */
MODULE_INFO(import_ns, "BPF_INTERNAL");
