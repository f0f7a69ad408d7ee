/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What an update module shows dynamos.ko.
 *
 * Generated assembler (dynamos_ng/rewrite) lays these structures out in words
 * of the machine, so every member is one word or a multiple of it.
 */
#ifndef _DYNAMOS_UPDATE_H
#define _DYNAMOS_UPDATE_H

#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/types.h>

struct dynamos_edition {
	unsigned long number;		/* 1 is the clone of the original */
	unsigned long start;
	unsigned long end;
	unsigned long flags;		/* DYNAMOS_NEVER_RETURNS */
	void **use;			/* slot: per-CPU address of its use counter */
};

/* The compiler may have split a function. */
struct dynamos_part {
	unsigned long start;
	unsigned long end;
};

/* The module that a function belongs to, in one load of it. */
struct dynamos_module {
	const char *name;
	unsigned long load;		/* what the MODULE ioctl called it */
};

struct dynamos_function {
	const char *name;
	unsigned long address;		/* of the original */
	unsigned long size;
	unsigned long site;		/* where the trampoline goes */
	u8 expected[8];			/* five bytes found there when built */
	unsigned long handler;
	unsigned long end;		/* of all code made for this function */
	unsigned long nr_editions;
	const struct dynamos_edition *editions;
	void **row;			/* slot: its row of the editions map */
	const struct dynamos_part *parts;	/* of the original */
	unsigned long nr_parts;
	void **adapt;			/* slot: its struct adapt; NULL if it has none */
	const struct dynamos_module *module;	/* NULL: the kernel's own */
	unsigned long below;		/* five bytes in edition 1, before it counts */
	unsigned long flags;		/* DYNAMOS_TELLS */
};

/* The generated table of an update, and its end. */
extern const struct dynamos_function dynamos_functions[];
extern const struct dynamos_function dynamos_functions_end[];
extern void *dynamos_tasks;	/* slot */

/* Four bytes of an update's code, to which what a slot holds is added: i386 reaches all memory so. */
struct dynamos_direct {
	unsigned long field;
	void **slot;
};

extern const struct dynamos_direct dynamos_directs[];
extern const struct dynamos_direct dynamos_directs_end[];

/* A variable that an update writes; bytes beyond its size are zero. */
struct dynamos_variable {
	const char *name;
	unsigned long address;
	unsigned long size;		/* 1, 2, 4 or 8 */
	unsigned long flags;		/* DYNAMOS_EXPECTS */
	u8 value[8];
	u8 expected[8];			/* what it must hold when the update is activated */
};

/* The generated table of an update's variables, and its end. */
extern const struct dynamos_variable dynamos_variables[];
extern const struct dynamos_variable dynamos_variables_end[];

/*
 * Hooks: an update's own steps of its activation, each with its undo.
 *
 *	activation		context			on failure
 *	before			process, may sleep	refused; before cleans up itself
 *	(compare, stacks)	in the stop		refused; undo of before
 *	in_stop			in the stop		refused; undo of before
 *	(write all)		in the stop		cannot fail
 *	after			process, may sleep	cannot fail
 *
 *	deactivation
 *	undo of after		process, may sleep	refused
 *	(compare)		in the stop		refused; after again
 *	undo of in_stop		in the stop		refused; after again
 *	(write all)		in the stop		cannot fail
 *
 *	retirement, when no call is left in the update's code
 *	undo of before		process, may sleep	cannot fail
 *
 * So what before makes may be used by editions as long as one runs. An update
 * that is activated again before it was retired has it still: before is not run
 * again. A step that can fail returns 0 or a negative errno; -EAGAIN has the
 * whole change tried again for about two seconds, so before may run often.
 *
 * In the stop every CPU is parked, interrupts are off, and nothing may sleep or
 * take long. No spinlock is held by anybody. A mutex or an rwsem may be: its
 * holder sleeps in the midst of what it guards, so look (mutex_is_locked()) and
 * return -EAGAIN.
 *
 * Hooks run under a lock of dynamos.ko: they must not wait for anything that
 * loads, activates or unloads an update. Each kind is given once in an update;
 * either function may be NULL.
 */
struct dynamos_before {
	int (*run)(void);
	void (*undo)(void);
};

struct dynamos_in_stop {
	int (*run)(void);
	int (*undo)(void);
};

struct dynamos_after {
	void (*run)(void);
	int (*undo)(void);
};

extern const struct dynamos_before dynamos_before;
extern const struct dynamos_in_stop dynamos_in_stop;
extern const struct dynamos_after dynamos_after;

#define DYNAMOS_BEFORE(run, undo) \
	const struct dynamos_before dynamos_before = { run, undo }
#define DYNAMOS_IN_STOP(run, undo) \
	const struct dynamos_in_stop dynamos_in_stop = { run, undo }
#define DYNAMOS_AFTER(run, undo) \
	const struct dynamos_after dynamos_after = { run, undo }

/*
 * Shadow data: fields that an object has beside its own, by the object's address
 * and a number that the update chooses.
 *
 * Objects have shadows only while the update is active. Those that were born
 * before have none, nor has any after deactivation, nor one for which there was
 * no memory: code must do without, and so does the original's work then.
 *
 * All of this may be called from any context but NMI. A shadow is to be detached
 * where its object is freed; whoever may then still look at it does so within
 * rcu_read_lock(), as he looks at the object.
 */
struct dynamos_shadows;

/* The update's own table, NULL while it is not active; the build provides it. */
extern struct dynamos_shadows *dynamos_shadows;

void *dynamos_shadow_add(struct dynamos_shadows *shadows, void *object,
			 unsigned long id, size_t size, gfp_t gfp,
			 void (*ctor)(void *object, void *shadow));
void *dynamos_shadow_find(struct dynamos_shadows *shadows, const void *object,
			  unsigned long id);
void *dynamos_shadow_take(struct dynamos_shadows *shadows, const void *object,
			  unsigned long id);
/* Frees what was detached, after a grace period; NULL is nothing to free. */
void dynamos_shadow_free(void *shadow);

/* The object's shadow, a new one (zeroed, then given to @ctor) if it has none; or NULL. */
#define dynamos_shadow_attach(object, id, size, gfp, ctor) \
	dynamos_shadow_add(READ_ONCE(dynamos_shadows), object, id, size, gfp, ctor)
/* The object's shadow, or NULL. */
#define dynamos_shadow_get(object, id) \
	dynamos_shadow_find(READ_ONCE(dynamos_shadows), object, id)
/* The object's shadow, or NULL, which from now on it has no more. */
#define dynamos_shadow_detach(object, id) \
	dynamos_shadow_take(READ_ONCE(dynamos_shadows), object, id)

struct dynamos_thread;

/*
 * At file scope: let BPF sources of adaptation handlers use NAME. They are
 * compiled without the kernel's headers, and so are told where members of its
 * structures lie.
 */
#define DYNAMOS_CONSTANT(name, value)					\
	extern const unsigned long dynamos_constant_##name;		\
	const unsigned long dynamos_constant_##name = (value)

/*
 * An update. It must live as long as its module; what is reserved is zero. The
 * slots of the functions are written once, when it registers, so they may be
 * read-only after init. A parameter of the module, with dynamos_update_param for
 * operations, leads dynamos.ko here before the module loader follows what the
 * update's tables say.
 */
struct dynamos_update {
	unsigned long size;		/* of this structure */
	struct module *owner;
	const struct dynamos_function *functions;
	const struct dynamos_function *functions_end;
	unsigned long anchor;		/* the address of init_task that the build assumed */
	const struct dynamos_variable *variables;
	unsigned long nr_variables;
	const struct dynamos_before *before;
	const struct dynamos_in_stop *in_stop;
	const struct dynamos_after *after;
	struct dynamos_shadows **shadows;
	unsigned long flags;		/* DYNAMOS_QUIESCENT, _CONSISTENT, _PHASED */
	void **tasks;			/* slot: the tasks' states, if consistent */
	unsigned long *phase;		/* what dynamos_updated() reads */
	const struct dynamos_thread *thread;	/* dynamos_thread.h */
	const struct dynamos_direct *directs;
	unsigned long nr_directs;
	unsigned long reserved[6];
};

extern const struct kernel_param_ops dynamos_update_param;

/* Where a synchronised update stands; it changes in one stop for all functions. */
extern unsigned long dynamos_phase;

/*
 * For edition 2 of a synchronised update: whether phase 3 has begun. Ask after
 * each wake-up, once what the function's state needs is held again.
 */
static inline bool dynamos_updated(void)
{
	return READ_ONCE(dynamos_phase) == 3;
}

/* Called from the update's init and exit. */
int dynamos_register(const struct dynamos_update *update);
void dynamos_unregister(const struct dynamos_update *update);

struct adapt;

/* Called by the redirection handlers that have such a slot. */
unsigned long dynamos_adapt(struct adapt *adapt, const unsigned long *words);

#endif /* _DYNAMOS_UPDATE_H */
