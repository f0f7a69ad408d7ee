// SPDX-License-Identifier: GPL-2.0
/*
 * The function that does the work of fsync(2) and fdatasync(2) gets a further
 * argument: where its caller wants successful calls to be counted.
 *
 * With the new signature it is a new function, for whoever calls the old one
 * passes too little: it is loaded, and nobody calls it. Then its callers are
 * updated, all in one stop, and call it from then on. The old one stays where it
 * is, for callers that began before and for processes of other classes.
 */
#include <linux/atomic.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sysfs.h>
#include <asm/syscall.h>

long __x64_sys_fsync_v2(const struct pt_regs *regs);
long __x64_sys_fdatasync_v2(const struct pt_regs *regs);

static atomic_long_t all, data;

static int count_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(kp->arg));
}

static const struct kernel_param_ops count_ops = { .get = count_get };
module_param_cb(fsync, &count_ops, &all, 0444);
module_param_cb(fdatasync, &count_ops, &data, 0444);

/* In place of do_fsync(fd, datasync). */
static noinline int do_fsync_counted(unsigned int fd, int datasync, atomic_long_t *count)
{
	struct file *file = fget(fd);
	int err;

	if (!file)
		return -EBADF;
	err = vfs_fsync(file, datasync);
	fput(file);
	if (!err)
		atomic_long_inc(count);
	return err;
}

static unsigned int first_argument(const struct pt_regs *regs)
{
	unsigned long arguments[6];

	syscall_get_arguments(current, (struct pt_regs *)regs, arguments);
	return arguments[0];
}

long __x64_sys_fsync_v2(const struct pt_regs *regs)
{
	return do_fsync_counted(first_argument(regs), 0, &all);
}

long __x64_sys_fdatasync_v2(const struct pt_regs *regs)
{
	return do_fsync_counted(first_argument(regs), 1, &data);
}
