// SPDX-License-Identifier: GPL-2.0
/*
 * Which edition of pipe_write(): 2 when more than 64 KB have come to be written
 * to a pipe that is not large yet, else 1.
 *
 * A pipe is told from a later one at the same address by its inode's number.
 * What is left of pipes that are gone makes room for new ones.
 */
#define MANY (64 * 1024)

struct pipe {
	u64 address;
	u64 inode;
};

BPF_LRU_HASH(written, struct pipe, u64, 4096);

int pipe_grows(struct bpf_raw_tracepoint_args *ctx)
{
	u64 file = kernel_word(ctx->args[0] + KIOCB_FILE);
	struct pipe pipe = {
		.address = kernel_word(file + FILE_PIPE),
		.inode = kernel_word(kernel_word(file + FILE_INODE) + INODE_NUMBER),
	};
	u64 none = 0, *bytes;

	if (kernel_u32(pipe.address + PIPE_SLOTS) >= LARGE_SLOTS)
		return 1;
	bytes = written.lookup_or_try_init(&pipe, &none);
	if (!bytes)
		return 1;
	__sync_fetch_and_add(bytes, kernel_word(ctx->args[1] + ITER_COUNT));
	if (*bytes <= MANY)
		return 1;
	/* If the pipe must not grow, it is asked again after as much. */
	*bytes = 0;
	return 2;
}
