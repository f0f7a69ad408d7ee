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
 * An update. It must live as long as its module; what is reserved is zero. The
 * slots of the functions are written once, when it registers, so they may be
 * read-only after init.
 */
struct dynamos_update {
	unsigned long size;		/* of this structure */
	struct module *owner;
	const struct dynamos_function *functions;
	unsigned long count;		/* of functions */
	unsigned long anchor;		/* the address of init_task that the build assumed */
	unsigned long reserved[8];
};

/* Called from the update's init and exit. */
int dynamos_register(const struct dynamos_update *update);
void dynamos_unregister(const struct dynamos_update *update);

#endif /* _DYNAMOS_UPDATE_H */
