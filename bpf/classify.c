// SPDX-License-Identifier: GPL-2.0
/*
 * The policy class of every process, kept up by the kernel itself: the links
 * of these programs are pinned, so they run whether or not the daemon lives.
 *
 *	fork	a new process has its creator's class before it first runs.
 *		Class 0 is written too, so a PID's next owner never gets what
 *		its last one left.
 *	exec	the class becomes that of the rule for the new program's name,
 *		or 0 without one. tgid and comm are the new ones by then, also
 *		when another thread than the leader called exec.
 *	exit	the last thread of a process clears its class. Threads that
 *		exit at the same moment may all be the last one: each of them
 *		still holds the PID, so none can clear its next owner's class.
 *
 * The index is the tgid of the first PID namespace, as redirection handlers
 * read it from task_struct. The byte is written whole, and only when it
 * changes: most systems have most processes in class 0.
 *
 * POLICY_PIN and RULES_PIN are the paths of the maps; TASK_PID, TASK_TGID,
 * TASK_SIGNAL and SIGNAL_LIVE offsets of members in the kernel's structures,
 * which dynamos.ko knows. A pointer has 64 bits here and may have 32 in the
 * kernel: what is read too much of one is cut off again by the next call.
 */
struct octet {
	u8 class[8];
};

struct comm {
	char name[16];
};

BPF_TABLE_PINNED("array", u32, struct octet, policy, 1, POLICY_PIN);
BPF_TABLE_PINNED("hash", struct comm, u64, rules, 1, RULES_PIN);

static __always_inline u8 class_of(u32 tgid)
{
	u32 key = tgid / 8;
	struct octet *octet = policy.lookup(&key);

	return octet ? octet->class[tgid % 8] : 0;
}

static __always_inline void set_class(u32 tgid, u8 class)
{
	u32 key = tgid / 8;
	struct octet *octet = policy.lookup(&key);

	if (octet && octet->class[tgid % 8] != class)
		octet->class[tgid % 8] = class;
}

int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *child = (void *)ctx->args[1];
	u32 pid, tgid;

	bpf_probe_read_kernel(&pid, sizeof(pid), child + TASK_PID);
	bpf_probe_read_kernel(&tgid, sizeof(tgid), child + TASK_TGID);
	if (pid == tgid)	/* a thread has its process's class */
		set_class(tgid, class_of(bpf_get_current_pid_tgid() >> 32));
	return 0;
}

int on_exec(void *ctx)
{
	struct comm comm = {};
	u64 *class;

	bpf_get_current_comm(&comm, sizeof(comm));
	class = rules.lookup(&comm);
	set_class(bpf_get_current_pid_tgid() >> 32, class ? *class : 0);
	return 0;
}

int on_exit(void *ctx)
{
	void *task = (void *)bpf_get_current_task();
	void *signal;
	int live;

	bpf_probe_read_kernel(&signal, sizeof(signal), task + TASK_SIGNAL);
	bpf_probe_read_kernel(&live, sizeof(live), signal + SIGNAL_LIVE);
	if (live == 0)
		set_class(bpf_get_current_pid_tgid() >> 32, 0);
	return 0;
}
