// SPDX-License-Identifier: GPL-2.0
/*
 * The conservative stack walk: with every CPU parked, each word from a task's
 * stack pointer to its stack's end is taken for a return address. It needs no
 * frame pointers and no unwinder, and it never misses a caller; at worst it
 * takes a stale word for one. A task may be acquitted of such a word by an
 * unwinder that can be relied on.
 *
 * The task that asked for the stop is read like any other, so what is being
 * looked for must not stand on its stack: bounds are made inside the stop.
 *
 * Tracers move return addresses off the stack: kretprobes into a list of the
 * task, the function graph tracer into a stack of its own. Both are read too.
 */
#include <linux/bsearch.h>
#include <linux/ftrace.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/rethook.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/stop_machine.h>
#include <linux/timekeeping.h>
#include <asm/unwind.h>

#include "arch/x86.h"
#include "dynamos.h"

/* Where the task that parks a CPU stands; its saved stack pointer is stale. */
struct parked {
	struct task_struct *task;
	unsigned long sp;
};

static DEFINE_PER_CPU(struct parked, parked);

struct stop {
	int (*work)(void *context);
	void *context;
	atomic_t arrived;
	int done;
	int result;
	u64 ns;
};

static int park_cpu(void *data)
{
	struct parked *here = this_cpu_ptr(&parked);
	struct stop *stop = data;

	here->task = current;
	here->sp = (unsigned long)__builtin_frame_address(0);
	/* Fully ordered: publishes *here to the CPU that works. */
	if (atomic_inc_return(&stop->arrived) == 1) {
		u64 start;

		while (atomic_read(&stop->arrived) < num_online_cpus())
			cpu_relax();
		start = ktime_get_ns();
		stop->result = stop->work(stop->context);
		stop->ns = ktime_get_ns() - start;
		/* Pairs with the acquire below: the text is written. */
		smp_store_release(&stop->done, 1);
	} else {
		/* Pairs with the release above. */
		while (!smp_load_acquire(&stop->done))
			cpu_relax();
	}
	/* No CPU may run on with instructions it fetched before the write. */
	arch_serialise();
	return 0;
}

/**
 * stack_stop() - run a piece of work while every other CPU stands still
 * @work: called once, with interrupts off
 * @context: handed to @work
 * @stop_ns: out: how long @work took
 *
 * Return: what @work returned, or a negative errno if the stop failed.
 */
int stack_stop(int (*work)(void *context), void *context, u64 *stop_ns)
{
	struct stop stop = { .work = work, .context = context };
	int err = fault() ? -ENOMEM : stop_machine(park_cpu, &stop, cpu_online_mask);

	*stop_ns = stop.ns;
	return err ?: stop.result;
}

static unsigned long stack_pointer(struct task_struct *task)
{
	int cpu;

	for_each_online_cpu(cpu)
		if (per_cpu(parked, cpu).task == task)
			return per_cpu(parked, cpu).sp;
	return arch_saved_sp(task);
}

static bool is_meant(const struct stack_scan *scan, unsigned long address)
{
	return address >= scan->lo && address < scan->hi &&
	       (!scan->holds || scan->holds(scan->where, address));
}

#ifdef CONFIG_UNWINDER_ORC
/*
 * Whether a task's stack unwinds to its very end without doubt, and no frame
 * lies in what is meant: then such words are what finished calls left behind.
 * The unwinder asks kretprobes and the graph tracer by itself. A task that was
 * preempted, as who asked for the stop often is, may hold an address in its
 * registers where the unwinder takes the stack to end, so it is believed only
 * if it came from user space; and not at all while a kretprobe keeps an address
 * for it, for the kernel warns of those who ask for that of a running task.
 */
static bool stands_elsewhere(struct stack_scan *scan, struct task_struct *task)
{
	struct unwind_state state;
	unsigned long address;

	if (task_is_running(task) && task->rethooks.first)
		return false;
	for (unwind_start(&state, task, NULL, NULL); !unwind_done(&state);
	     unwind_next_frame(&state)) {
		struct pt_regs *regs = unwind_get_entry_regs(&state, NULL);

		if (regs && user_mode(regs))
			return true;
		address = unwind_get_return_address(&state);
		if (!address || is_meant(scan, address))
			return false;
	}
	return !task_is_running(task) && !unwind_error(&state);
}
#else
static bool stands_elsewhere(struct stack_scan *scan, struct task_struct *task)
{
	return false;
}
#endif

/*
 * Whether a word may be a pointer to a function. That is never taken for stale: the
 * callback that somebody handed on may be all that is left of him. What points into
 * a function's middle is a return address, or where an interrupt came, and the
 * unwinder sees those that are in use.
 */
static bool is_pointer(const struct stack_scan *scan, unsigned long word)
{
	static char name[KSYM_SYMBOL_LEN];	/* one stop at a time */

	if (scan->no_pointers)
		return false;
	sprint_symbol(name, word);
	return !strstr(name, "+0x") || strstr(name, "+0x0/");
}

/* Each of these returns true if the scan is to end. */

/* A word within the bounds, where few are. */
static noinline bool scan_found(struct stack_scan *scan, struct task_struct *task,
				unsigned long word)
{
	if (!is_meant(scan, word))
		return false;
	if (scan->judged != task) {
		scan->judged = task;
		scan->acquitted = stands_elsewhere(scan, task);
	}
	if (scan->acquitted && !is_pointer(scan, word))
		return false;
	return scan->seen(scan, task, word);
}

/* All CPUs stand still for this loop: a few instructions for each word. */
static bool scan_words(struct stack_scan *scan, struct task_struct *task,
		       unsigned long start, unsigned long end)
{
	const unsigned long lo = scan->lo, size = scan->hi - lo, *lines = scan->lines;
	unsigned long at = ALIGN_DOWN(start, sizeof(long));

	scan->words += (end - at) / sizeof(long);
	for (; at < end; at += sizeof(long)) {
		unsigned long word = READ_ONCE_NOCHECK(*(unsigned long *)at);

		if (unlikely(word - lo < size) &&
		    (!lines || test_bit(stack_line(word), lines)) &&
		    scan_found(scan, task, word))
			return true;
	}
	return false;
}

#ifdef CONFIG_RETHOOK
static bool scan_kretprobes(struct stack_scan *scan, struct task_struct *task)
{
	struct llist_node *node;

	for (node = task->rethooks.first; node; node = node->next) {
		struct rethook_node *hook =
			container_of(node, struct rethook_node, llist);

		scan->words++;
		if (scan_found(scan, task, hook->ret_addr))
			return true;
	}
	return false;
}
#else
#error "kretprobes keep return addresses where this file does not look"
#endif

#ifdef CONFIG_FUNCTION_GRAPH_TRACER
static bool scan_graph(struct stack_scan *scan, struct task_struct *task)
{
	unsigned long start = (unsigned long)task->ret_stack;
	int used = task->curr_ret_stack + 1;

	if (!start || used <= 0)
		return false;
	return scan_words(scan, task, start,
			  start + used * sizeof(*task->ret_stack));
}
#else
static bool scan_graph(struct stack_scan *scan, struct task_struct *task)
{
	return false;
}
#endif

static bool scan_task(struct stack_scan *scan, struct task_struct *task)
{
	unsigned long low = (unsigned long)task_stack_page(task);
	unsigned long sp, end;

	if (!low)
		return false;	/* dead, its stack already freed */
	sp = stack_pointer(task);
	end = arch_stack_end(task);
	/* A stack pointer elsewhere (not yet run, foreign stack): read it all. */
	if (sp < low || sp > end)
		sp = low;
	scan->tasks++;
	return scan_words(scan, task, sp, end) || scan_kretprobes(scan, task) ||
	       scan_graph(scan, task);
}

/**
 * stack_scan() - show each stack word within bounds to a callback
 * @scan: bounds, callback, and the totals that come back
 *
 * Only inside stack_stop(). Idle tasks are on no list and are visited by CPU.
 */
void stack_scan(struct stack_scan *scan)
{
	struct task_struct *process, *task;
	int cpu;

	rcu_read_lock();
	for_each_process_thread(process, task)
		if (scan_task(scan, task))
			goto out;
	for_each_online_cpu(cpu)
		if (scan_task(scan, unexported_idle_task(cpu)))
			goto out;
out:
	rcu_read_unlock();
}

struct holders {
	const struct dynamos_range *ranges;
	u32 nr_ranges;
	struct dynamos_holder *list;
	struct task_struct *last;	/* the task that the last holder is for */
	u32 first;			/* that task's first holder */
	struct dynamos_stacks *stacks;
};

static int range_compare(const void *key, const void *element)
{
	const struct dynamos_range *range = element;
	unsigned long word = *(const unsigned long *)key;

	if (word < range->start)
		return -1;
	return word >= range->end;
}

/*
 * The stack for people to read. Only here, with all CPUs parked, is it certain
 * that a sleeping task stays asleep: /proc/PID/stack warns (and may so panic)
 * when a task wakes while it is unwound through a kretprobe.
 */
static void holder_frames(struct dynamos_holder *holder, struct task_struct *task)
{
	struct unwind_state state;
	unsigned long address;
	int i = 0;

	if (task_is_running(task))
		return;
	for (unwind_start(&state, task, NULL, NULL);
	     i < DYNAMOS_FRAMES_MAX && !unwind_done(&state);
	     unwind_next_frame(&state)) {
		address = unwind_get_return_address(&state);
		if (!address)
			return;
		holder->frames[i++] = address;
	}
}

static const struct dynamos_range *holders_range(const struct holders *holders,
						 unsigned long word)
{
	return bsearch(&word, holders->ranges, holders->nr_ranges,
		       sizeof(*holders->ranges), range_compare);
}

static bool holders_hold(const void *holders, unsigned long word)
{
	return holders_range(holders, word);
}

static bool holder_seen(struct stack_scan *scan, struct task_struct *task,
			unsigned long word)
{
	struct holders *holders = scan->context;
	struct dynamos_stacks *stacks = holders->stacks;
	u32 range = holders_range(holders, word) - holders->ranges;
	struct dynamos_holder *holder;
	u32 i;

	if (holders->last != task)
		holders->first = stacks->nr_holders;
	holders->last = task;
	for (i = holders->first; i < min(stacks->nr_holders, stacks->max_holders); i++)
		if (holders->list[i].range == range) {
			holders->list[i].words++;
			return false;
		}
	if (stacks->nr_holders++ >= stacks->max_holders)
		return false;	/* counted, no room to tell more */
	holder = &holders->list[stacks->nr_holders - 1];
	holder->pid = task->pid;
	holder->tgid = task->tgid;
	holder->address = word;
	holder->range = range;
	holder->words = 1;
	memcpy(holder->comm, task->comm, sizeof(holder->comm));
	holder_frames(holder, task);
	return false;
}

static int holders_work(void *context)
{
	struct holders *holders = context;
	struct stack_scan scan = {
		.lo = holders->ranges[0].start,
		.hi = holders->ranges[holders->nr_ranges - 1].end,
		.holds = holders_hold,
		.where = holders,
		.seen = holder_seen,
		.context = holders,
	};

	stack_scan(&scan);
	holders->stacks->tasks = scan.tasks;
	holders->stacks->words = scan.words;
	return 0;
}

/**
 * stack_holders() - list the tasks whose stacks point into given code
 * @ranges: sorted and disjoint
 * @nr_ranges: at least 1
 * @holders: room for @stacks->max_holders
 * @stacks: the totals come back here
 */
int stack_holders(const struct dynamos_range *ranges, u32 nr_ranges,
		  struct dynamos_holder *holders, struct dynamos_stacks *stacks)
{
	struct holders work = {
		.ranges = ranges,
		.nr_ranges = nr_ranges,
		.list = holders,
		.stacks = stacks,
	};

	stacks->nr_holders = 0;
	return stack_stop(holders_work, &work, &stacks->stop_ns);
}

/**
 * stack_bound_module() - bound a scan by a module's code
 * @module: the module
 * @scan: its bounds are set; in the stop, for they must not be on the asker's stack
 */
void stack_bound_module(const struct module *module, struct stack_scan *scan)
{
#ifdef DYNAMOS_MODULE_LAYOUT
	scan->lo = (unsigned long)module->core_layout.base;
	scan->hi = scan->lo + module->core_layout.text_size;
#else
	scan->lo = (unsigned long)module->mem[MOD_TEXT].base;
	scan->hi = scan->lo + module->mem[MOD_TEXT].size;
#endif
}

struct module_scan {
	const struct module *module;
	struct dynamos_retire *retire;
	bool held;
};

static bool module_seen(struct stack_scan *scan, struct task_struct *task,
			unsigned long word)
{
	struct module_scan *found = scan->context;

	found->held = true;
	culprit_task(&found->retire->culprit, task, word);
	return true;
}

static int module_work(void *context)
{
	struct module_scan *found = context;
	struct stack_scan scan = {
		.seen = module_seen,
		.context = found,
	};

	stack_bound_module(found->module, &scan);
	stack_scan(&scan);
	found->retire->tasks = scan.tasks;
	return found->held ? -ETXTBSY : 0;
}

/**
 * stack_module_clear() - prove that no stack points into a module's code
 * @module: the update's module, held by the caller
 * @retire: the culprit, if any, and the number of tasks come back here
 *
 * Return: 0, or -ETXTBSY and the first task found.
 */
int stack_module_clear(struct module *module, struct dynamos_retire *retire)
{
	struct module_scan work = { .module = module, .retire = retire };
	u64 ns;

	return stack_stop(module_work, &work, &ns);
}
