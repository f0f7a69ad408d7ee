// SPDX-License-Identifier: GPL-2.0
/*
 * A security fix of one function: with TIOCSTI a program can type commands into
 * the terminal that it was started from, and they run when it is gone. Kernels
 * since 6.2 have a sysctl against that; its errno is used here too.
 */
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/tty.h>

long tty_ioctl_v1(struct file *file, unsigned int cmd, unsigned long arg);
long tty_ioctl_v2(struct file *file, unsigned int cmd, unsigned long arg);

long tty_ioctl_v2(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd == TIOCSTI && !capable(CAP_SYS_ADMIN))
		return -EIO;
	return tty_ioctl_v1(file, cmd, arg);
}
