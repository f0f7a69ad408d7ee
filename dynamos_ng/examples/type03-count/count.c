// SPDX-License-Identifier: GPL-2.0
/*
 * A new variable of one function: how often those who get edition 2 opened a
 * file, or tried to. All of open(2), openat(2), openat2(2) and creat(2) come here.
 */
#include <linux/atomic.h>
#include <linux/module.h>
#include <linux/openat2.h>
#include <linux/sysfs.h>

long do_sys_openat2_v1(int dfd, const char __user *filename, struct open_how *how);
long do_sys_openat2_v2(int dfd, const char __user *filename, struct open_how *how);

static atomic_long_t opened;

static int opened_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(&opened));
}

static const struct kernel_param_ops opened_ops = { .get = opened_get };
module_param_cb(opened, &opened_ops, NULL, 0444);

long do_sys_openat2_v2(int dfd, const char __user *filename, struct open_how *how)
{
	atomic_long_inc(&opened);
	return do_sys_openat2_v1(dfd, filename, how);
}
