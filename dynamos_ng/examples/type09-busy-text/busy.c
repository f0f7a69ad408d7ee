// SPDX-License-Identifier: GPL-2.0
/*
 * A function group whose callee returns what its callers never met (Table 1, type 9).
 *
 * Who writes a program and runs it at once may meet ETXTBSY: another thread has
 * forked in between, and its child still has the file open. The group's callee now
 * says EPROBE_DEFER instead, which no caller but these handles, and openat waits and
 * tries again. A caller of before the update would hand that number to its user.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/io_uring_types.h>
#include <linux/openat2.h>
#include <linux/sched/signal.h>

#define TRIES		100
#define TRY_EACH_MS	10

struct open_flags;

struct file *do_filp_open_v1(int dfd, struct filename *name, const struct open_flags *op);
struct file *do_filp_open_v2(int dfd, struct filename *name, const struct open_flags *op);
/* Returns a long, or an int in later kernels: half of a register is all of it. */
int do_sys_openat2_v1(int dfd, const char __user *name, struct open_how *how);
long do_sys_openat2_v2(int dfd, const char __user *name, struct open_how *how);
struct file *file_open_name_v1(struct filename *name, int flags, umode_t mode);
struct file *file_open_name_v2(struct filename *name, int flags, umode_t mode);
int io_openat2_v1(struct io_kiocb *req, unsigned int issue_flags);
int io_openat2_v2(struct io_kiocb *req, unsigned int issue_flags);

struct file *do_filp_open_v2(int dfd, struct filename *name, const struct open_flags *op)
{
	struct file *file = do_filp_open_v1(dfd, name, op);

	return file == ERR_PTR(-ETXTBSY) ? ERR_PTR(-EPROBE_DEFER) : file;
}

/* The calls of do_filp_open() in here reach edition 2, for the task is in it. */
long do_sys_openat2_v2(int dfd, const char __user *name, struct open_how *how)
{
	int tries, fd;

	for (tries = 0; tries < TRIES; tries++) {
		fd = do_sys_openat2_v1(dfd, name, how);
		if (fd != -EPROBE_DEFER)
			return fd;
		if (msleep_interruptible(TRY_EACH_MS))
			break;
	}
	return -ETXTBSY;
}

/* The other callers do not wait. */

struct file *file_open_name_v2(struct filename *name, int flags, umode_t mode)
{
	struct file *file = file_open_name_v1(name, flags, mode);

	return file == ERR_PTR(-EPROBE_DEFER) ? ERR_PTR(-ETXTBSY) : file;
}

int io_openat2_v2(struct io_kiocb *req, unsigned int issue_flags)
{
	int result = io_openat2_v1(req, issue_flags);

	if (req->cqe.res == -EPROBE_DEFER)
		req->cqe.res = -ETXTBSY;
	return result;
}
