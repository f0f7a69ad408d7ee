// SPDX-License-Identifier: GPL-2.0
/*
 * Edition 2 enlarges the pipe, then writes as ever. It is chosen once for each
 * pipe, by pipe.bpf.c.
 */
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/pipe_fs_i.h>
#include <linux/uio.h>

#include "dynamos_update.h"

#define LARGE (256 * 1024)

DYNAMOS_CONSTANT(KIOCB_FILE, offsetof(struct kiocb, ki_filp));
DYNAMOS_CONSTANT(FILE_PIPE, offsetof(struct file, private_data));
DYNAMOS_CONSTANT(FILE_INODE, offsetof(struct file, f_inode));
DYNAMOS_CONSTANT(INODE_NUMBER, offsetof(struct inode, i_ino));
DYNAMOS_CONSTANT(ITER_COUNT, offsetof(struct iov_iter, count));
DYNAMOS_CONSTANT(PIPE_SLOTS, offsetof(struct pipe_inode_info, max_usage));
DYNAMOS_CONSTANT(LARGE_SLOTS, LARGE / PAGE_SIZE);

ssize_t pipe_write_v1(struct kiocb *iocb, struct iov_iter *from);
ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from);

ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from)
{
	/*
	 * What fcntl(2) does: under the pipe's lock, with what is in the pipe
	 * kept, charged to the pipe's user and within his limits. One that must
	 * not grow stays as it is; the write goes on either way.
	 */
	if (pipe_fcntl(iocb->ki_filp, F_GETPIPE_SZ, 0) < LARGE)
		pipe_fcntl(iocb->ki_filp, F_SETPIPE_SZ, LARGE);
	return pipe_write_v1(iocb, from);
}
