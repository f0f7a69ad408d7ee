/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Kernel threads: how an update replaces one that the kernel has started.
 *
 * A kernel thread is one call that never ends, of a function that may sleep for
 * ever: redirected, it goes on in the original until the thread begins anew. So
 * a successor is created while all is as it was, the same way for both
 * directions, with the kernel's own main function: what that leads to when the
 * successor begins depends on the trampoline.
 *
 *	activation				deactivation
 *	before	create the successor		the same
 *	stop	trampolines are written		trampolines are taken back
 *	after	wake the thread, which comes to a place where it may end, says
 *		that it leaves, hands over and ends; the successor begins, and
 *		runs the edition		and runs the original
 *
 * A thread may end where it holds nothing: no lock, and no entry of its stack in
 * a list or a wait queue. That is for the author to find. For a thread in the
 * original it is the beginning of a redirected function that the thread alone
 * calls (an edition of the routine in which it sleeps, or of what it calls once
 * it is awake); for one in an edition, anywhere in it.
 *
 * Nothing is lost where a thread does not come there: it stays in charge until
 * it does, and the successor waits. As long as a thread runs in the update, the
 * update is in use, and stays.
 */
#ifndef _DYNAMOS_THREAD_H
#define _DYNAMOS_THREAD_H

#include <linux/module.h>
#include <linux/sched.h>

/*
 * What an author says of a kernel thread, once in an update. @data, which @each
 * goes through, tells several threads of a kind apart.
 */
struct dynamos_thread {
	/* What comes behind @data; NULL leads to the first and comes after the last. */
	void *(*each)(void *data);
	/* The thread in charge, with a reference to it; NULL if there is none. */
	struct task_struct *(*find)(void *data);
	/* A new one, by kthread_create(), not woken, named as the kernel names it. */
	struct task_struct *(*create)(void *data);
	/*
	 * Called by the thread in charge: put @next in its place, where the
	 * kernel keeps it. False: not now, for others hold what guards it; they
	 * may be waiting for the thread, so wait for nobody.
	 */
	bool (*publish)(void *data, struct task_struct *next);
	/* Wake the thread as the kernel does when there is work. */
	void (*wake)(void *data);
};

extern const struct dynamos_thread dynamos_thread;

#define DYNAMOS_THREAD(each, find, create, publish, wake) \
	const struct dynamos_thread dynamos_thread = { each, find, create, publish, wake }

bool dynamos_threads_leave(const struct dynamos_thread *told, void *data);
void dynamos_threads_wake(const struct dynamos_thread *told, void *data);
void dynamos_threads_begin(const struct dynamos_thread *told, void *data);

/* First thing in an edition of the main function. */
#define dynamos_thread_begins(data) dynamos_threads_begin(&dynamos_thread, data)

/*
 * Asked by the thread where it may end. True, once: it is in charge no more, and
 * must save what its successor is to know, hand over, and end: by a return from
 * the main function, or by kthread_exit(), for which the exit of the edition that
 * calls it is counted. Only that edition's own: not those that called it.
 */
#define dynamos_thread_leaves(data) dynamos_threads_leave(&dynamos_thread, data)
#define dynamos_thread_hand_over(data) dynamos_threads_wake(&dynamos_thread, data)

#endif /* _DYNAMOS_THREAD_H */
