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
#include <linux/types.h>

struct dynamos_edition {
	unsigned long number;		/* 1 is the clone of the original */
	unsigned long start;
	unsigned long end;
	unsigned long flags;		/* DYNAMOS_NEVER_RETURNS */
	void **use;			/* slot: per-CPU address of its use counter */
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
	unsigned long reserved[4];
};

/* The generated table of an update, and its end. */
extern const struct dynamos_function dynamos_functions[];
extern const struct dynamos_function dynamos_functions_end[];

/*
 * Both are called from the update's init and exit. The table must live as long
 * as the module; the slots are written here once, so they may be read-only
 * after init. @anchor is the address of init_task that the build assumed.
 */
int dynamos_register(struct module *owner,
		     const struct dynamos_function *functions,
		     unsigned long count, unsigned long anchor);
void dynamos_unregister(struct module *owner);

#endif /* _DYNAMOS_UPDATE_H */
