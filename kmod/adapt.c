// SPDX-License-Identifier: GPL-2.0
/*
 * Adaptation handlers: BPF programs that choose the edition of each call by its
 * arguments.
 *
 * The redirection handler of a function that has one calls dynamos_adapt() with
 * what the caller passed. The program is of type RAW_TRACEPOINT. It is held from
 * ADAPT until another takes its place or its update goes, and needs nobody else
 * to live on.
 */
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "arch/x86.h"
#include "dynamos.h"

struct adapt_count {
	u64 unknown;
	u64 avoided;
};

struct adapt {
	struct bpf_prog __rcu *program;	/* written under redirect_lock */
	const u8 *row;			/* of the editions map */
	unsigned long editions;		/* bit N: there is an edition N */
	struct adapt_count __percpu *count;
};

/*
 * Whether a program runs on this CPU. What its helpers call may be redirected
 * too, even the function that it is deciding on: no program runs inside another.
 * Interrupts are off meanwhile, so whoever finds it set is such a call.
 */
static DEFINE_PER_CPU(bool, adapting);

/* The policy map's choice, as other handlers make it. */
static u32 policy_choice(const struct adapt *adapt)
{
	return READ_ONCE(adapt->row[READ_ONCE(dynamos_policy[current->tgid])]);
}

/*
 * The verifier noted how far the program reads into its arguments. No more is
 * taken from the caller's stack, which might end there. @words are the argument
 * registers, the return address, and the arguments on the stack.
 */
static __always_inline u32 program_choice(const struct bpf_prog *program, const unsigned long *words)
{
	struct {
		struct bpf_trace_run_ctx context;	/* some helpers read it */
		u64 args[MAX_BPF_FUNC_ARGS];
	} run = {};
	struct bpf_run_ctx *outer;
	u32 edition, i;

	for (i = 0; i * sizeof(u64) < program->aux->max_ctx_offset && i < MAX_BPF_FUNC_ARGS; i++)
		run.args[i] = words[i < ARGUMENT_REGISTERS ? i : i + 1];
	outer = bpf_set_run_ctx(&run.context.run_ctx);
	edition = bpf_prog_run(program, run.args);
	bpf_reset_run_ctx(outer);
	return edition;
}

/**
 * dynamos_adapt() - choose the edition of a call
 * @adapt: what the function's slot holds
 * @words: see program_choice()
 *
 * Where no program decides (none is attached, it says 0, or it must not run
 * here) the policy map does. Not in an NMI, which may come while this CPU holds
 * the lock of a map, and not where RCU does not watch.
 *
 * notrace: a tracer's own calls would come here before the guard is up.
 *
 * Return: an edition's number; 0 counts as 1.
 */
__visible notrace unsigned long dynamos_adapt(struct adapt *adapt, const unsigned long *words)
{
	const struct bpf_prog *program;
	unsigned long flags;
	u32 edition = 0;

	if (in_nmi() || !rcu_is_watching()) {
		this_cpu_inc(adapt->count->avoided);
		return policy_choice(adapt);
	}
	local_irq_save(flags);
	if (__this_cpu_read(adapting)) {
		this_cpu_inc(adapt->count->avoided);
	} else {
		__this_cpu_write(adapting, true);
		rcu_read_lock();
		program = rcu_dereference(adapt->program);
		if (program)
			edition = program_choice(program, words);
		rcu_read_unlock();
		__this_cpu_write(adapting, false);
	}
	local_irq_restore(flags);
	if (!edition)
		return policy_choice(adapt);
	if (edition < DYNAMOS_EDITIONS_MAX && test_bit(edition, &adapt->editions))
		return edition;
	this_cpu_inc(adapt->count->unknown);
	return 1;
}
EXPORT_SYMBOL_GPL(dynamos_adapt);

/**
 * adapt_create() - make what a function's handler needs; no program yet
 * @function: whose slot is to hold the address
 * @row: the function's row of the editions map
 *
 * Return: owned by the caller until adapt_destroy(); NULL without memory.
 */
struct adapt *adapt_create(const struct dynamos_function *function, const u8 *row)
{
	struct adapt *adapt = kzalloc(sizeof(*adapt), GFP_KERNEL);
	unsigned long i;

	if (!adapt)
		return NULL;
	adapt->count = alloc_percpu(struct adapt_count);
	if (!adapt->count) {
		kfree(adapt);
		return NULL;
	}
	adapt->row = row;
	for (i = 0; i < function->nr_editions; i++)
		__set_bit(function->editions[i].number, &adapt->editions);
	return adapt;
}

/* Put a program, or NULL, in the place of the one that is attached. */
static void adapt_replace(struct adapt *adapt, struct bpf_prog *program)
{
	struct bpf_prog *old;

	old = rcu_replace_pointer(adapt->program, program,
				  lockdep_is_held(&redirect_lock));
	if (!old)
		return;
	synchronize_rcu();	/* for the last handler that runs it */
	bpf_prog_put(old);
}

/* No handler may reach @adapt any more: its update is not in use. */
void adapt_destroy(struct adapt *adapt)
{
	if (!adapt)
		return;
	adapt_replace(adapt, NULL);
	free_percpu(adapt->count);
	kfree(adapt);
}

static bool may_sleep(const struct bpf_prog *program)
{
#ifdef DYNAMOS_SLEEPABLE_PROGRAMS
	return program->sleepable;
#else
	return false;	/* none of this type does */
#endif
}

/**
 * adapt_attach() - let a program choose from now on, or none
 * @adapt: of a function
 * @fd: descriptor of the program, or -1
 *
 * Return: 0, or -EBADFD.
 */
int adapt_attach(struct adapt *adapt, int fd)
{
	struct bpf_prog *program = NULL;

	lockdep_assert_held(&redirect_lock);
	if (fd != -1) {
		program = bpf_prog_get_type_dev(fd, BPF_PROG_TYPE_RAW_TRACEPOINT, false);
		if (IS_ERR(program))
			return -EBADFD;
		if (may_sleep(program)) {
			bpf_prog_put(program);
			return -EBADFD;
		}
	}
	adapt_replace(adapt, program);
	return 0;
}

/* What FUNCTION tells of a function's adaptation handler. */
void adapt_info(const struct adapt *adapt, struct dynamos_function_info *info)
{
	const struct bpf_prog *program;
	int cpu;

	lockdep_assert_held(&redirect_lock);
	program = rcu_dereference_protected(adapt->program,
					    lockdep_is_held(&redirect_lock));
	info->flags |= DYNAMOS_ADAPTS;
	info->program = program ? program->aux->id : 0;
	for_each_possible_cpu(cpu) {
		const struct adapt_count *count = per_cpu_ptr(adapt->count, cpu);

		info->unknown += READ_ONCE(count->unknown);
		info->avoided += READ_ONCE(count->avoided);
	}
}
