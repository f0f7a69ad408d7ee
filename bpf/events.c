// SPDX-License-Identifier: GPL-2.0
/*
 * Forks, execs and exits of processes, for who wants to follow them. Nothing depends
 * on them: the classes are kept up by classify.c. What the reader is too slow for is
 * counted as lost. TASK_PID and the like: see classify.c. EVENTS_ENTRIES: the
 * room for events, in pages.
 */
enum { FORK, EXEC, EXIT };

struct event {
	u32 kind;
	u32 tgid;
	u32 parent;	/* FORK: tgid of the creator */
	char comm[16];
};

BPF_RINGBUF_OUTPUT(events, EVENTS_ENTRIES);
BPF_PERCPU_ARRAY(lost, u64, 1);

static __always_inline int put(u32 kind, u32 tgid, u32 parent)
{
	struct event event = { .kind = kind, .tgid = tgid, .parent = parent };
	u32 zero = 0;
	u64 *count;

	bpf_get_current_comm(&event.comm, sizeof(event.comm));
	if (!events.ringbuf_output(&event, sizeof(event), 0))
		return 0;
	count = lost.lookup(&zero);
	if (count)
		(*count)++;
	return 0;
}

int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *child = (void *)ctx->args[1];
	u32 pid, tgid;

	bpf_probe_read_kernel(&pid, sizeof(pid), child + TASK_PID);
	bpf_probe_read_kernel(&tgid, sizeof(tgid), child + TASK_TGID);
	if (pid != tgid)
		return 0;
	return put(FORK, tgid, bpf_get_current_pid_tgid() >> 32);
}

int on_exec(void *ctx)
{
	return put(EXEC, bpf_get_current_pid_tgid() >> 32, 0);
}

int on_exit(void *ctx)
{
	void *task = (void *)bpf_get_current_task();
	void *signal;
	int live;

	bpf_probe_read_kernel(&signal, sizeof(signal), task + TASK_SIGNAL);
	bpf_probe_read_kernel(&live, sizeof(live), signal + SIGNAL_LIVE);
	return live ? 0 : put(EXIT, bpf_get_current_pid_tgid() >> 32, 0);
}
