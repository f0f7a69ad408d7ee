// SPDX-License-Identifier: GPL-2.0
/*
 * Forks, execs and exits of processes, for the daemon's log. Nothing depends on
 * them: the classes are kept up by classify.c. What the reader is too slow for is
 * counted as lost.
 */
#include <linux/sched/signal.h>

enum { FORK, EXEC, EXIT };

struct event {
	u32 kind;
	u32 tgid;
	u32 parent;	/* FORK: tgid of the creator */
	char comm[TASK_COMM_LEN];
};

BPF_RINGBUF_OUTPUT(events, 64);
BPF_PERCPU_ARRAY(lost, u64, 1);

static __always_inline int put(u32 kind, u32 tgid, u32 parent)
{
	struct event event = { .kind = kind, .tgid = tgid, .parent = parent };

	bpf_get_current_comm(&event.comm, sizeof(event.comm));
	if (events.ringbuf_output(&event, sizeof(event), 0))
		lost.increment(0);
	return 0;
}

int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	u32 pid, tgid;

	bpf_probe_read_kernel(&pid, sizeof(pid), &child->pid);
	bpf_probe_read_kernel(&tgid, sizeof(tgid), &child->tgid);
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
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct signal_struct *signal;
	int live;

	bpf_probe_read_kernel(&signal, sizeof(signal), &task->signal);
	bpf_probe_read_kernel(&live, sizeof(live), &signal->live);
	return live ? 0 : put(EXIT, bpf_get_current_pid_tgid() >> 32, 0);
}
