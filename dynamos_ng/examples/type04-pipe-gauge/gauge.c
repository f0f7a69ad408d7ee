// SPDX-License-Identifier: GPL-2.0
/*
 * A gauge of the bytes that lie in pipes (Table 1, type 4).
 *
 * Writers add what they put into a buffer, readers take off what they take out,
 * and what is left goes with the pipe. A buffer that is counted says so by a flag
 * and knows how many of its bytes are; those filled before phase 3 are not. Should
 * one reader still run the original while writers count, the gauge would be wrong
 * for ever: therefore the update is a synchronised one. Edition 2 takes counted
 * bytes off, if there are any, but adds none, so the way back is open too.
 *
 * What splice and tee take from a pipe is not seen: a gauge that an administrator
 * relies on needs them in the group too.
 */
#include <linux/atomic.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/moduleparam.h>
#include <linux/pipe_fs_i.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "dynamos_update.h"

#ifndef IOCB_NOSIGNAL
#define IOCB_NOSIGNAL 0	/* a kernel that always sends SIGPIPE */
#endif

#define COUNTED 0x4000	/* pipe_buffer.flags: private holds how many of its bytes */

ssize_t pipe_read_v1(struct kiocb *iocb, struct iov_iter *to);
ssize_t pipe_read_v2(struct kiocb *iocb, struct iov_iter *to);
ssize_t pipe_read_v3(struct kiocb *iocb, struct iov_iter *to);
ssize_t pipe_write_v1(struct kiocb *iocb, struct iov_iter *from);
ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from);
ssize_t pipe_write_v3(struct kiocb *iocb, struct iov_iter *from);
void free_pipe_info_v1(struct pipe_inode_info *pipe);
void free_pipe_info_v2(struct pipe_inode_info *pipe);

static atomic_long_t bytes_in_pipes;
static atomic_long_t woken_in_new_code;

static int long_get(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(param->arg));
}

static const struct kernel_param_ops long_ops = { .get = long_get };
module_param_cb(bytes_in_pipes, &long_ops, &bytes_in_pipes, 0444);
module_param_cb(woken_in_new_code, &long_ops, &woken_in_new_code, 0444);

/* All of these are called with the pipe's lock held. */

static void count_in(struct pipe_buffer *buf, unsigned int bytes)
{
	if (!(buf->flags & COUNTED)) {
		buf->flags |= COUNTED;
		buf->private = 0;
	}
	buf->private += bytes;
	atomic_long_add(bytes, &bytes_in_pipes);
}

/* Bytes that were there before the count began leave first. */
static void count_out(struct pipe_buffer *buf)
{
	unsigned long left = min_t(unsigned long, buf->len, buf->private);

	if (!(buf->flags & COUNTED))
		return;
	atomic_long_sub(buf->private - left, &bytes_in_pipes);
	buf->private = left;
}

static bool full(const struct pipe_inode_info *pipe)
{
	return pipe_full(READ_ONCE(pipe->head), READ_ONCE(pipe->tail),
			 READ_ONCE(pipe->max_usage));
}

static bool empty(const struct pipe_inode_info *pipe)
{
	return pipe_empty(READ_ONCE(pipe->head), READ_ONCE(pipe->tail));
}

static bool nonblocking(const struct kiocb *iocb)
{
	return iocb->ki_filp->f_flags & O_NONBLOCK || iocb->ki_flags & IOCB_NOWAIT;
}

static void lock(struct pipe_inode_info *pipe)
{
	mutex_lock_nested(&pipe->mutex, I_MUTEX_PARENT);
}

static void wake_readers(struct pipe_inode_info *pipe)
{
	wake_up_interruptible_sync_poll(&pipe->rd_wait, EPOLLIN | EPOLLRDNORM);
}

static void wake_writers(struct pipe_inode_info *pipe)
{
	wake_up_interruptible_sync_poll(&pipe->wr_wait, EPOLLOUT | EPOLLWRNORM);
}

/*
 * Each loop below serves two editions. Edition 2 enters with @counting false, and
 * when it wakes in phase 3 goes on as edition 3, which enters with it true.
 */
static void woken(bool *counting)
{
	if (*counting || !dynamos_updated())
		return;
	*counting = true;
	atomic_long_inc(&woken_in_new_code);
}

/* Take bytes of the oldest buffer. Return how many, or an errno. */
static ssize_t take(struct pipe_inode_info *pipe, struct iov_iter *to)
{
	struct pipe_buffer *buf = &pipe->bufs[pipe->tail & (pipe->ring_size - 1)];
	size_t bytes = min_t(size_t, buf->len, iov_iter_count(to));
	int err = pipe_buf_confirm(pipe, buf);

	if (err)
		return err;
	if (copy_page_to_iter(buf->page, buf->offset, bytes, to) < bytes)
		return -EFAULT;
	buf->offset += bytes;
	buf->len -= bytes;
	/* What a packet has more than was asked for is lost, and ends the read. */
	if (buf->flags & PIPE_BUF_FLAG_PACKET) {
		buf->len = 0;
		iov_iter_truncate(to, 0);
	}
	count_out(buf);
	if (!buf->len) {
		pipe_buf_release(pipe, buf);
		spin_lock_irq(&pipe->rd_wait.lock);
		pipe->tail++;
		spin_unlock_irq(&pipe->rd_wait.lock);
	}
	return bytes;
}

static __always_inline ssize_t reading(struct kiocb *iocb, struct iov_iter *to,
				       bool counting)
{
	struct file *file = iocb->ki_filp;
	struct pipe_inode_info *pipe = file->private_data;
	bool was_full, slept = false;
	ssize_t taken, got = 0;

	if (!iov_iter_count(to))
		return 0;
	lock(pipe);
	was_full = full(pipe);
	for (;;) {
		while (iov_iter_count(to) && !empty(pipe)) {
			taken = take(pipe, to);
			if (taken < 0) {
				got = got ?: taken;
				goto out;
			}
			got += taken;
		}
		if (got || !pipe->writers)
			break;
		if (nonblocking(iocb)) {
			got = -EAGAIN;
			break;
		}
		mutex_unlock(&pipe->mutex);
		if (was_full)
			wake_writers(pipe);
		kill_fasync(&pipe->fasync_writers, SIGIO, POLL_OUT);
		if (wait_event_interruptible_exclusive(pipe->rd_wait,
				!empty(pipe) || !READ_ONCE(pipe->writers)))
			return -ERESTARTSYS;
		lock(pipe);
		woken(&counting);
		was_full = full(pipe);
		slept = true;
	}
out:
	slept = slept && !empty(pipe);
	mutex_unlock(&pipe->mutex);
	if (was_full)
		wake_writers(pipe);
	if (slept)
		wake_readers(pipe);
	kill_fasync(&pipe->fasync_writers, SIGIO, POLL_OUT);
	if (got > 0)
		file_accessed(file);
	return got;
}

/* A pipe of notifications has no writers to count, and readers of its own kind. */
ssize_t pipe_read_v2(struct kiocb *iocb, struct iov_iter *to)
{
	if (pipe_has_watch_queue(iocb->ki_filp->private_data))
		return pipe_read_v1(iocb, to);
	return reading(iocb, to, false);
}

ssize_t pipe_read_v3(struct kiocb *iocb, struct iov_iter *to)
{
	if (pipe_has_watch_queue(iocb->ki_filp->private_data))
		return pipe_read_v1(iocb, to);
	return reading(iocb, to, true);
}

/* Put what does not fill a page behind what the newest buffer has, if it fits. */
static ssize_t merge(struct pipe_inode_info *pipe, struct iov_iter *from, bool counting)
{
	struct pipe_buffer *buf = &pipe->bufs[(pipe->head - 1) & (pipe->ring_size - 1)];
	size_t bytes = iov_iter_count(from) & (PAGE_SIZE - 1);
	unsigned int at = buf->offset + buf->len;
	int err;

	if (!bytes || empty(pipe) || !(buf->flags & PIPE_BUF_FLAG_CAN_MERGE) ||
	    at + bytes > PAGE_SIZE)
		return 0;
	err = pipe_buf_confirm(pipe, buf);
	if (err)
		return err;
	if (copy_page_from_iter(buf->page, at, bytes, from) < bytes)
		return -EFAULT;
	buf->len += bytes;
	if (counting)
		count_in(buf, bytes);
	return bytes;
}

/* Fill a new buffer; there is room for one. Return how many bytes, or an errno. */
static ssize_t put(struct file *file, struct pipe_inode_info *pipe,
		   struct iov_iter *from, bool counting)
{
	struct page *page = alloc_page(GFP_HIGHUSER | __GFP_ACCOUNT);
	struct pipe_buffer *buf = &pipe->bufs[pipe->head & (pipe->ring_size - 1)];
	size_t bytes = min_t(size_t, iov_iter_count(from), PAGE_SIZE);

	if (!page)
		return -ENOMEM;
	if (copy_page_from_iter(page, 0, bytes, from) < bytes) {
		__free_page(page);
		return -EFAULT;
	}
	*buf = (struct pipe_buffer){
		.page = page,
		.ops = &nosteal_pipe_buf_ops,
		.len = bytes,
		.flags = file->f_flags & O_DIRECT ? PIPE_BUF_FLAG_PACKET : PIPE_BUF_FLAG_CAN_MERGE,
	};
	if (counting)
		count_in(buf, bytes);
	spin_lock_irq(&pipe->rd_wait.lock);
	pipe->head++;
	spin_unlock_irq(&pipe->rd_wait.lock);
	return bytes;
}

static __always_inline ssize_t writing(struct kiocb *iocb, struct iov_iter *from,
				       bool counting)
{
	struct file *file = iocb->ki_filp;
	struct pipe_inode_info *pipe = file->private_data;
	bool was_empty, slept = false;
	ssize_t given, put_in = 0;

	if (!iov_iter_count(from))
		return 0;
	lock(pipe);
	was_empty = empty(pipe);
	given = pipe->readers ? merge(pipe, from, counting) : 0;
	for (;;) {
		if (given < 0) {
			put_in = put_in ?: given;
			break;
		}
		put_in += given;
		if (!pipe->readers) {
			if (!(iocb->ki_flags & IOCB_NOSIGNAL))
				send_sig(SIGPIPE, current, 0);
			put_in = put_in ?: -EPIPE;
			break;
		}
		if (!iov_iter_count(from))
			break;
		given = 0;
		if (!full(pipe)) {
			given = put(file, pipe, from, counting);
			continue;
		}
		if (nonblocking(iocb)) {
			put_in = put_in ?: -EAGAIN;
			break;
		}
		if (signal_pending(current)) {
			put_in = put_in ?: -ERESTARTSYS;
			break;
		}
		mutex_unlock(&pipe->mutex);
		if (was_empty)
			wake_readers(pipe);
		kill_fasync(&pipe->fasync_readers, SIGIO, POLL_IN);
		wait_event_interruptible_exclusive(pipe->wr_wait,
				!full(pipe) || !READ_ONCE(pipe->readers));
		lock(pipe);
		woken(&counting);
		was_empty = empty(pipe);
		slept = true;
	}
	slept = slept && !full(pipe);
	mutex_unlock(&pipe->mutex);
	if (was_empty || pipe->poll_usage)
		wake_readers(pipe);
	kill_fasync(&pipe->fasync_readers, SIGIO, POLL_IN);
	if (slept)
		wake_writers(pipe);
	if (put_in > 0 && sb_start_write_trylock(file_inode(file)->i_sb)) {
		int err = file_update_time(file);

		if (err)
			put_in = err;
		sb_end_write(file_inode(file)->i_sb);
	}
	return put_in;
}

ssize_t pipe_write_v2(struct kiocb *iocb, struct iov_iter *from)
{
	if (pipe_has_watch_queue(iocb->ki_filp->private_data))
		return pipe_write_v1(iocb, from);
	return writing(iocb, from, false);
}

ssize_t pipe_write_v3(struct kiocb *iocb, struct iov_iter *from)
{
	if (pipe_has_watch_queue(iocb->ki_filp->private_data))
		return pipe_write_v1(iocb, from);
	return writing(iocb, from, true);
}

void free_pipe_info_v2(struct pipe_inode_info *pipe)
{
	unsigned int at;

	for (at = pipe->tail; at != pipe->head; at++) {
		struct pipe_buffer *buf = &pipe->bufs[at & (pipe->ring_size - 1)];

		buf->len = 0;
		count_out(buf);
	}
	free_pipe_info_v1(pipe);
}
