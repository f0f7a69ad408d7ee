/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What dynamos.ko needs to know of x86, 32 and 64 bits.
 */
#ifndef _DYNAMOS_ARCH_X86_H
#define _DYNAMOS_ARCH_X86_H

#include <asm/current.h>
#include <asm/processor.h>
#include <asm/sync_core.h>
#include <linux/sched/task_stack.h>

#define JMP_REL32	0xe9
#ifdef CONFIG_X86_64
#define ARGUMENT_REGISTERS 6
#else
#define ARGUMENT_REGISTERS 3
#endif

/* Where __switch_to_asm() left the stack of a task that is not on a CPU. */
static inline unsigned long arch_saved_sp(struct task_struct *task)
{
	return task->thread.sp;
}

/*
 * Words above this are the user's registers, which say nothing about kernel
 * code and which a user could fill with any address.
 */
static inline unsigned long arch_stack_end(struct task_struct *task)
{
	return (unsigned long)task_pt_regs(task);
}

/* The per-CPU offset at which code finds the current task, behind %gs or %fs. */
static inline unsigned long arch_current_offset(void)
{
#ifdef DYNAMOS_PCPU_HOT
	return (__force unsigned long)&pcpu_hot.current_task;
#else
	return (__force unsigned long)&current_task;
#endif
}

/* Likewise the word that says whether this CPU is in an interrupt. */
static inline unsigned long arch_preempt_offset(void)
{
#ifdef DYNAMOS_PCPU_HOT
	return (__force unsigned long)&pcpu_hot.preempt_count;
#else
	return (__force unsigned long)&__preempt_count;
#endif
}

static inline void arch_serialise(void)
{
	sync_core();
}

#endif /* _DYNAMOS_ARCH_X86_H */
