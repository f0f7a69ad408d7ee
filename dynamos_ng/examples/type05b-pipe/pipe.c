// SPDX-License-Identifier: GPL-2.0
/*
 * A new field of struct pipe_inode_info, as shadow data: the bytes ever written
 * into the pipe. It comes with the pipe and goes with it. A pipe that was born
 * before the update has no such field, and nobody expects one of it.
 */
#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/pipe_fs_i.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "dynamos_update.h"

#define PIPE_WRITTEN _IOR('P', 0xd7, __u64)

enum { WRITTEN };

struct pipe_inode_info *alloc_pipe_info_v1(void);
struct pipe_inode_info *alloc_pipe_info_v2(void);
void free_pipe_info_v1(struct pipe_inode_info *pipe);
void free_pipe_info_v2(struct pipe_inode_info *pipe);
ssize_t pipe_write_v1(struct kiocb *iocb, struct iov_iter *from);
ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from);
long pipe_ioctl_v1(struct file *filp, unsigned int cmd, unsigned long arg);
long pipe_ioctl_v2(struct file *filp, unsigned int cmd, unsigned long arg);

struct pipe_inode_info *alloc_pipe_info_v2(void)
{
	struct pipe_inode_info *pipe = alloc_pipe_info_v1();

	/* Without memory for it, the pipe is as one that was born before. */
	if (pipe)
		dynamos_shadow_attach(pipe, WRITTEN, sizeof(atomic64_t),
				      GFP_KERNEL_ACCOUNT, NULL);
	return pipe;
}

void free_pipe_info_v2(struct pipe_inode_info *pipe)
{
	dynamos_shadow_free(dynamos_shadow_detach(pipe, WRITTEN));
	free_pipe_info_v1(pipe);
}

ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from)
{
	struct pipe_inode_info *pipe = iocb->ki_filp->private_data;
	ssize_t done = pipe_write_v1(iocb, from);
	atomic64_t *written = dynamos_shadow_get(pipe, WRITTEN);

	if (written && done > 0)
		atomic64_add(done, written);
	return done;
}

long pipe_ioctl_v2(struct file *filp, unsigned int cmd, unsigned long arg)
{
	atomic64_t *written;

	if (cmd != PIPE_WRITTEN)
		return pipe_ioctl_v1(filp, cmd, arg);
	written = dynamos_shadow_get(filp->private_data, WRITTEN);
	if (!written)
		return -ENODATA;
	return put_user((u64)atomic64_read(written), (u64 __user *)arg);
}
