// SPDX-License-Identifier: GPL-2.0
/*
 * dynamos.ko times its trampoline installer by updating it, as the paper did.
 * The figures are in /sys/module/dynamos_self_timing/parameters. Calls hold
 * dynamos.ko's mutex, so nothing else guards them.
 */
#include <linux/ktime.h>
#include <linux/moduleparam.h>
#include <linux/types.h>

struct text_patch;
struct update;
struct dynamos_switch;

static unsigned long long nanoseconds;
module_param(nanoseconds, ullong, 0444);

static unsigned long installs;
module_param(installs, ulong, 0444);

int text_write_all_v1(struct text_patch *patches, u32 count, bool activate,
		      struct update *update, struct dynamos_switch *sw);
int text_write_all_v2(struct text_patch *patches, u32 count, bool activate,
		      struct update *update, struct dynamos_switch *sw);

int text_write_all_v2(struct text_patch *patches, u32 count, bool activate,
		      struct update *update, struct dynamos_switch *sw)
{
	u64 start = ktime_get_ns();
	int err = text_write_all_v1(patches, count, activate, update, sw);

	if (!err) {
		nanoseconds = ktime_get_ns() - start;
		installs++;
	}
	return err;
}
