// SPDX-License-Identifier: GPL-2.0
/*
 * A kprobe, or a kretprobe, that does nothing: what the probe costs itself.
 */
#include <linux/kprobes.h>
#include <linux/module.h>

static char *symbol;
module_param(symbol, charp, 0444);
static bool returns;
module_param(returns, bool, 0444);

static int entered(struct kprobe *probe, struct pt_regs *regs)
{
	return 0;
}

static int returned(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe probe = { .pre_handler = entered };
static struct kretprobe return_probe = { .handler = returned, .maxactive = 16 };

static int __init peer_init(void)
{
	probe.symbol_name = symbol;
	return_probe.kp.symbol_name = symbol;
	return returns ? register_kretprobe(&return_probe) : register_kprobe(&probe);
}

static void __exit peer_exit(void)
{
	if (returns)
		unregister_kretprobe(&return_probe);
	else
		unregister_kprobe(&probe);
}

module_init(peer_init);
module_exit(peer_exit);
MODULE_DESCRIPTION("A probe that does nothing");
MODULE_LICENSE("GPL");
