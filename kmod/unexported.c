// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel does not export and we cannot do without, and nothing else.
 *
 * The idle task of a CPU is on no task list, yet it calls schedule() like any
 * other and may sleep inside a clone of it. Its address is found by asking the
 * kprobes code to resolve a name for a probe that is never armed.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/static_call.h>

#include "dynamos.h"

/*
 * A direct call: with indirect branch tracking, an indirect one may only reach
 * functions whose address somebody in the kernel takes.
 */
DEFINE_STATIC_CALL_NULL(dynamos_idle_task, idle_task);

int unexported_init(void)
{
	struct kprobe probe = {
		.symbol_name = "idle_task",
		.flags = KPROBE_FLAG_DISABLED,
	};
	int err = register_kprobe(&probe);

	if (err) {
		pr_err("cannot find idle_task: %d\n", err);
		return err;
	}
	static_call_update(dynamos_idle_task, (void *)probe.addr);
	unregister_kprobe(&probe);
	return 0;
}

struct task_struct *unexported_idle_task(int cpu)
{
	return static_call(dynamos_idle_task)(cpu);
}
