// SPDX-License-Identifier: GPL-2.0
/*
 * dynamos.ko: redirects running kernel functions to editions chosen by policy.
 *
 * All of it is compiled as one program (-fwhole-program): what is called in one
 * place needs no function of its own, with all that a kernel adds to each. Only
 * what is __visible can be seen from elsewhere.
 */
#include <linux/module.h>

#include "dynamos.h"

#include "adapt.c"
#include "classify.c"
#include "code.c"
#include "confirm.c"
#include "device.c"
#include "fault.c"
#include "group.c"
#include "lead.c"
#include "maps.c"
#include "modules.c"
#include "nudge.c"
#include "phase.c"
#include "quiet.c"
#include "redirect.c"
#include "retire.c"
#include "shadow.c"
#include "stack.c"
#include "text.c"
#include "thread.c"
#include "unexported.c"
#include "update.c"
#include "variable.c"

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
