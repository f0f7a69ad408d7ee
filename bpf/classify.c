// SPDX-License-Identifier: GPL-2.0
/*
 * The policy class of every process, kept up by the kernel itself: the links
 * of these programs are pinned, so they run whether or not the daemon lives.
 *
 *	fork	a new process has its creator's class before it first runs.
 *		Class 0 is written too, so a PID's next owner never gets what
 *		its last one left.
 *	exec	the class becomes that of the first rule of the policy that
 *		matches, or, where no policy is in force, that of the exec rule
 *		for the new program's name, or 0. tgid and comm are the new
 *		ones by then, also when another thread than the leader called
 *		exec.
 *	exit	the last thread of a process clears its class. Threads that
 *		exit at the same moment may all be the last one: each of them
 *		still holds the PID, so none can clear its next owner's class.
 *
 * The index is the tgid of the first PID namespace, as redirection handlers
 * read it from task_struct. The byte is written whole, and only when it
 * changes: most systems have most processes in class 0.
 *
 * policy_state[0] is the generation of the policy in force, 0 without one; it
 * says by its lowest bit which half of policy_rules is that policy's. It is read
 * once at an exec: what is decided is of one policy as a whole. Some rules ask
 * what only the daemon can look up, or name cgroups, and it has not seen this
 * one yet: they are passed over, and the process is put among the undecided,
 * also its children until the daemon has decided.
 *
 * Who waits for programs under way to end (policymaps.settle()) can rely on
 * the order of what they write. decisions before policy: who writes a class
 * and then still finds the same decision wrote last. undecided after policy:
 * who takes a process out and then still finds the same decision misses none.
 * A fork looks for its parent among the undecided before it reads the class:
 * who is not there has its class for good.
 *
 * Only these programs write decisions, and only the daemon writes judgements; a
 * judgement counts for the decision with the same `when`.
 *
 * POLICY_PIN and the like are the paths of the maps; TASK_PID, TASK_TGID,
 * TASK_SIGNAL and SIGNAL_LIVE offsets of members in the kernel's structures,
 * which dynamos.ko knows. A pointer has 64 bits here and may have 32 in the
 * kernel: what is read too much of one is cut off again by the next call.
 */
struct octet {
	u8 class[8];
};

struct comm {
	u64 half[2];	/* 16 letters, NUL padded */
};

/* Rules of a policy, and the default, which asks nothing: policy/classes.py. */
#define SLOTS 65

enum {
	ASKS_COMM = 1,
	ASKS_UID = 2,
	ASKS_GID = 4,
	ASKS_PID = 8,
	ASKS_SHARE = 16,
	ASKS_DAEMON = 32,
	ASKS_CGROUP = 64,
};

#define EXISTS 0x80000000	/* in `asks` of a slot that is in use */

struct rule {
	u64 until;	/* nanoseconds since boot; 0: for good */
	u32 asks;
	u32 uid;
	u32 gid;
	u32 pid;
	u32 share;
	u32 salt;
	u32 class;
	u32 number;
	struct comm comm;
};

/* Whether a rule's glob matches a cgroup, 0 or 1; only the daemon can tell. */
struct cgroup_rule {
	u64 cgroup;
	u32 generation;
	u32 number;
};

enum { EXECED, FORKED };

/* Of one process: what was decided when it last called exec, or was forked. */
struct decision {
	u64 when;		/* nanoseconds since boot */
	u64 origin_when;	/* the decision that an undecided one is copied of, */
	u32 origin;		/* and whose it was */
	u32 generation;
	u32 number;		/* of the rule */
	u32 how;
};

/* The daemon's word on a process: see dynamos_ng/policymaps.py. */
struct judgement {
	u64 of;
	u64 when;
	u32 generation;
	u32 number;
};

BPF_TABLE_PINNED("array", u32, struct octet, policy, 1, POLICY_PIN);
BPF_TABLE_PINNED("hash", struct comm, u64, rules, 1, RULES_PIN);
BPF_TABLE_PINNED("array", u32, u64, policy_state, 1, POLICY_STATE_PIN);
BPF_TABLE_PINNED("array", u32, struct rule, policy_rules, 1, POLICY_RULES_PIN);
BPF_TABLE_PINNED("hash", u32, struct decision, decisions, 1, DECISIONS_PIN);
BPF_TABLE_PINNED("hash", u32, struct judgement, judgements, 1, JUDGEMENTS_PIN);
BPF_TABLE_PINNED("hash", u32, u32, undecided, 1, UNDECIDED_PIN);
BPF_TABLE_PINNED("lru_hash", struct cgroup_rule, u32, cgroup_rules, 1,
		 CGROUP_RULES_PIN);

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

static __always_inline u32 generation_in_force(void)
{
	u32 zero = 0;
	u64 *state = policy_state.lookup(&zero);

	return state ? *state : 0;
}

/* Where in 0..9999 a process stands: share_of() of policy/classes.py. */
static __always_inline u32 share_of(u32 tgid, u32 salt)
{
	u32 value = tgid * 0x9e3779b1 ^ salt;

	value = (value ^ value >> 16) * 0x7feb352d;
	value = (value ^ value >> 15) * 0x846ca68b;
	return (value ^ value >> 16) % 10000;
}

static __always_inline int matches(struct rule *rule, u64 now, u32 tgid,
				   u64 uid_gid, struct comm *comm)
{
	u32 asks = rule->asks;

	if (rule->until && now >= rule->until)
		return 0;
	if (asks & ASKS_COMM) {
		if (rule->comm.half[0] != comm->half[0] ||
		    rule->comm.half[1] != comm->half[1])
			return 0;
	}
	if (asks & ASKS_UID && rule->uid != (u32)uid_gid)
		return 0;
	if (asks & ASKS_GID && rule->gid != uid_gid >> 32)
		return 0;
	if (asks & ASKS_PID && rule->pid != tgid)
		return 0;
	if (asks & ASKS_SHARE && share_of(tgid, rule->salt) >= rule->share)
		return 0;
	return 1;
}

/* The parent's decision, or the daemon's word on it, is the child's. */
static __always_inline void inherit(u32 parent, u32 child)
{
	struct decision new = { .how = FORKED };
	struct decision *old = decisions.lookup(&parent);
	struct judgement *judgement = judgements.lookup(&parent);
	u64 when = old ? old->when : 0;

	new.when = bpf_ktime_get_boot_ns();
	new.origin = parent;
	new.origin_when = when;
	if (judgement && judgement->of == when) {
		new.generation = judgement->generation;
		new.number = judgement->number;
	} else if (old) {
		new.generation = old->generation;
		new.number = old->number;
	}
	decisions.update(&child, &new);
}

int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *child = (void *)ctx->args[1];
	u32 parent = bpf_get_current_pid_tgid() >> 32;
	u32 pid, tgid, one = 1;
	void *open;

	bpf_probe_read_kernel(&pid, sizeof(pid), child + TASK_PID);
	bpf_probe_read_kernel(&tgid, sizeof(tgid), child + TASK_TGID);
	if (pid != tgid)	/* a thread has its process's class */
		return 0;
	open = undecided.lookup(&parent);
	if (generation_in_force())
		inherit(parent, tgid);
	barrier();
	set_class(tgid, class_of(parent));
	if (open)
		undecided.update(&tgid, &one);
	return 0;
}

static __always_inline u32 decide(u32 generation, u32 tgid, struct comm *comm)
{
	struct decision new = { .generation = generation, .how = EXECED };
	u64 uid_gid = bpf_get_current_uid_gid();
	u64 cgroup = bpf_get_current_cgroup_id();
	u32 i, class = 0, open = 0, one = 1;

	new.when = bpf_ktime_get_boot_ns();
	new.origin = tgid;
	new.origin_when = new.when;
	for (i = 0; i < SLOTS; i++) {
		u32 slot = (generation & 1) * SLOTS + i;
		struct rule *rule = policy_rules.lookup(&slot);

		if (!rule || !(rule->asks & EXISTS))
			break;
		if (!matches(rule, new.when, tgid, uid_gid, comm))
			continue;
		if (rule->asks & ASKS_CGROUP) {
			struct cgroup_rule key = {
				cgroup, generation, rule->number
			};
			u32 *known = cgroup_rules.lookup(&key);

			if (known && !*known)
				continue;
			if (!known) {
				open = 1;
				continue;
			}
		}
		if (rule->asks & ASKS_DAEMON) {
			open = 1;
			continue;
		}
		new.number = rule->number;
		class = rule->class;
		break;
	}
	decisions.update(&tgid, &new);
	barrier();
	set_class(tgid, class);
	if (open)
		undecided.update(&tgid, &one);
	else
		undecided.delete(&tgid);
	return 0;
}

int on_exec(void *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 generation = generation_in_force();
	struct comm comm = {};
	u64 *class;

	bpf_get_current_comm(&comm, sizeof(comm));
	if (generation)
		return decide(generation, tgid, &comm);
	class = rules.lookup(&comm);
	set_class(tgid, class ? *class : 0);
	return 0;
}

int on_exit(void *ctx)
{
	void *task = (void *)bpf_get_current_task();
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	void *signal;
	int live;

	bpf_probe_read_kernel(&signal, sizeof(signal), task + TASK_SIGNAL);
	bpf_probe_read_kernel(&live, sizeof(live), signal + SIGNAL_LIVE);
	if (live)
		return 0;
	decisions.delete(&tgid);
	judgements.delete(&tgid);
	barrier();
	set_class(tgid, 0);
	undecided.delete(&tgid);
	return 0;
}
