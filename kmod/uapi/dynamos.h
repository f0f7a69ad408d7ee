/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The protocol of /dev/dynamos.
 *
 * The device is mode 0600, and every open and every ioctl needs CAP_SYS_ADMIN.
 * Each ioctl takes one structure. Its first member is its size, set by the
 * caller; members named "reserved" must be zero. Fields marked "out" are
 * written back, also when the call fails, so that a refusal names its cause.
 * A call that fails has changed nothing. Every member lies at a multiple of its
 * own size, so that all is the same for 32 and 64 bits.
 *
 * In the order of a change's life:
 *
 *	INFO		what this module is, and the constants that generated
 *			code and BPF programs need
 *	MAPS		hand over the policy, editions, use and must_update maps
 *			(once; again with the same maps is a no-op)
 *	(insmod)	an update module registers its functions
 *	FUNCTION	walk over the registered functions
 *	ADAPT		let a BPF program choose a function's editions
 *	UPDATE		walk over the updates
 *	VARIABLE	tell of one variable of an update
 *	ACTIVATE	write the trampolines of a function group, and what
 *			else an update brings, in one stop
 *	CONFIRM		let an activation stay that would be taken back by itself
 *	PHASE		where an update that gets on by itself stands; move it
 *	DEACTIVATE	take them back in one stop
 *	STACKS		which tasks hold an address inside given code
 *	NUDGE		have a task leave the system call in which it sleeps
 *	MODULE		where a loadable module's code and tables lie
 *	RETIRE		prove an update unused and let it be unloaded
 *	(rmmod)		the update's memory is freed
 *
 * Errors, each with one meaning:
 *
 *	EPERM		the caller lacks CAP_SYS_ADMIN
 *	EINVAL		wrong size, non-zero reserved field, empty or
 *			duplicate list, unsorted ranges
 *	E2BIG		a list longer than the limit
 *	EFAULT		a pointer that cannot be read or written
 *	ENOTTY		no such ioctl
 *	ENOMEM		no memory
 *   MAPS
 *	EBADF		not the descriptor of a BPF map
 *	EPROTOTYPE	wrong map type
 *	EKEYREJECTED	wrong key size
 *	EMSGSIZE	wrong value size
 *	EDOM		wrong number of entries
 *	EPROTO		the map is not mmapable (BPF_F_MMAPABLE)
 *	EBUSY		other maps are in use already
 *   registration of an update (insmod reports it)
 *	ENODATA		no maps have been handed over yet
 *	ESTALE		built for another boot or another kernel, or for another
 *			load of a module
 *	ENOEXEC		the update's table is malformed
 *	ERANGE		the handler is out of reach of a 5-byte jump
 *	EXDEV		the function does not lie in its module's code
 *	ENOSPC		all function ids are taken
 *   ADAPT
 *	ENOENT		no function has this id
 *	ENOLINK		the function was built without an adaptation handler
 *	EBADFD		not the descriptor of a BPF program of type
 *			RAW_TRACEPOINT that does not sleep
 *   ACTIVATE, DEACTIVATE
 *	ENOENT		no function has this id, or no update
 *	EALREADY	the function is redirected, or the update active,
 *			already (ACTIVATE); or is not (DEACTIVATE)
 *	EEXIST		another update redirects the same function, and one of
 *			both switches only as a whole; or it writes the same
 *			variable
 *	ENODEV		the update is being unloaded
 *	EILSEQ		the bytes at the site, or of a variable, are not the
 *			expected ones: somebody else changed them
 *	EAGAIN		a task is inside the bytes to be overwritten, or in a
 *			function of an update that wants quiescence, or a hook
 *			wants another try
 *	EUNATCH		the function's update has hooks or variables, and is
 *			not active nor named; or its functions switch only all
 *			together, and with no others
 *	ECANCELED	a hook of the update refused
 *	EISCONN		a synchronised update is in phase 3 (DEACTIVATE)
 *	EUSERS		other editions than the first of a consistent group are
 *			in use, or its rows name them (DEACTIVATE)
 *   CONFIRM
 *	ENOENT		no such update
 *	ENOMSG		it waits for no confirmation
 *	ETIME		too late: it is being taken back, or has been
 *   PHASE
 *	ENOENT		no such update
 *	ENOTCONN	no such move from where the update stands
 *   NUDGE
 *	ESRCH		no such thread
 *	EOPNOTSUPP	it is a kernel thread
 *	EBUSY		it sleeps and must not be interrupted
 *   MODULE
 *	ENOENT		no such module is loaded, or it is coming or going
 *   RETIRE
 *	ENOENT		no such update, or it was never activated
 *	EBUSY		one of its functions is redirected
 *	EINPROGRESS	its use counters say that calls are in progress
 *	ETXTBSY		a task's stack holds an address inside its code
 */
#ifndef _UAPI_DYNAMOS_H
#define _UAPI_DYNAMOS_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DYNAMOS_ABI		14
#define DYNAMOS_FUNCTIONS_MAX	1024	/* registered at one time */
#define DYNAMOS_EDITIONS_MAX	16	/* per function; number 0 is not used */
#define DYNAMOS_CLASSES		256	/* policy classes: one byte per process */
#define DYNAMOS_INTERRUPTS	255	/* the class of calls made in interrupts */
#define DYNAMOS_RANGES_MAX	4096	/* per STACKS call */
#define DYNAMOS_HOLDERS_MAX	65536	/* per STACKS call */
#define DYNAMOS_NAME_MAX	128	/* a function's name, with its NUL */
#define DYNAMOS_UPDATE_MAX	64	/* a module's name, with its NUL */
#define DYNAMOS_COMM_MAX	16
#define DYNAMOS_FRAMES_MAX	12	/* told of a holder's stack */
#define DYNAMOS_CONFIRM_MAX	86400	/* seconds */

/* States of functions, and of updates. */
#define DYNAMOS_LOADED		0	/* registered, never redirected or retired */
#define DYNAMOS_REDIRECTED	1	/* its trampoline is in place */
#define DYNAMOS_DRAINING	2	/* trampoline gone, old calls may still run */

/* What an activation waits for, or what became of it (kmod/confirm.c). */
#define DYNAMOS_SETTLED		0	/* nothing */
#define DYNAMOS_WAITING		1	/* taken back unless CONFIRM comes in time */
#define DYNAMOS_REVERTING	2	/* none came: being taken back */
#define DYNAMOS_REVERTED	3	/* none came: taken back */

/* Edition flags. */
#define DYNAMOS_NEVER_RETURNS	1	/* judged by the stack walk alone */

/* Function flags. */
#define DYNAMOS_ADAPTS		1	/* it has an adaptation handler */
#define DYNAMOS_TELLS		2	/* it tells calls made in interrupts from others */

/* Update flags. */
#define DYNAMOS_QUIESCENT	1	/* switched while no task is in its functions */
#define DYNAMOS_CONSISTENT	2	/* a task keeps to one edition */
#define DYNAMOS_PHASED		4	/* a synchronised update */

/* Variable flags. */
#define DYNAMOS_EXPECTS		1	/* refused unless it holds what is expected */

struct dynamos_info {
	__u32 size;
	__u32 abi;		/* out */
	__u64 current_offset;	/* out: per-CPU offset of the current task */
	__u32 tgid_offset;	/* out: of tgid in struct task_struct */
	__u32 pid_limit;	/* out: no PID reaches this */
	__u64 anchor;		/* out: address of init_task in this boot */
	__u32 functions;	/* out: registered now */
	__u32 redirected;	/* out: redirected now */
	__u32 map_id[4];	/* out: policy, editions, use, must_update; or 0 */
	__u32 pid_offset;	/* out: of pid in struct task_struct */
	__u32 signal_offset;	/* out: of signal in struct task_struct */
	__u32 live_offset;	/* out: of live in struct signal_struct */
	__u32 cpu_offset;	/* out: of the CPU's number in struct task_struct */
	__u64 preempt_offset;	/* out: per-CPU offset of the preemption count */
	__u32 interrupt_mask;	/* out: its bits that are set in an interrupt */
	__u32 reserved;
};

struct dynamos_maps {
	__u32 size;
	__s32 policy_fd;
	__s32 editions_fd;
	__s32 use_fd;
	__s32 must_update_fd;
};

struct dynamos_edition_info {
	__u32 number;
	__u32 flags;
	__u64 start;
	__u64 end;
};

struct dynamos_function_info {
	__u32 size;
	__u32 id;		/* in: the first id to consider; out: the id */
	__u32 state;		/* out */
	__u32 nr_editions;	/* out */
	__u32 flags;		/* out */
	__u32 program;		/* out: id of the BPF program that adapts, or 0 */
	__u64 unknown;		/* out: calls for which it named no edition there is */
	__u64 avoided;		/* out: calls on which it must not run */
	__u32 order;		/* out: of its activation; the latest is on top */
	__u32 reserved;
	__u64 address;		/* out: of the original */
	__u64 image_size;	/* out: of the original, bytes */
	__u64 site;		/* out: of the trampoline */
	__u64 handler;		/* out */
	__u64 end;		/* out: end of all code made for the function */
	__u8 original_bytes[8];	/* out: five bytes at the site */
	__u8 trampoline[8];	/* out: five bytes */
	char name[DYNAMOS_NAME_MAX];		/* out */
	char update[DYNAMOS_UPDATE_MAX];	/* out: module name */
	char module[DYNAMOS_UPDATE_MAX];	/* out: of the original, "" for the kernel */
	struct dynamos_edition_info editions[DYNAMOS_EDITIONS_MAX];
};

struct dynamos_update_info {
	__u32 size;
	__u32 id;		/* in: the first id to consider; out: the id, above 0 */
	__u32 state;		/* out: of its hooks and variables */
	__u32 functions;	/* out: how many it has */
	__u32 variables;	/* out: how many it has */
	__u32 confirm;		/* out: WAITING and so on */
	__u32 confirm_left;	/* out: seconds until it is taken back */
	__u32 confirm_error;	/* out: errno with which that was refused last */
	__u64 shadows;		/* out: shadows that objects have now */
	char name[DYNAMOS_UPDATE_MAX];	/* out: module name */
};

struct dynamos_variable_info {
	__u32 size;
	__u32 update;		/* in: the update's id */
	__u32 index;		/* in: 0 is its first variable */
	__u32 bytes;		/* out: how many the variable has */
	__u64 address;		/* out */
	__u8 value[8];		/* out: what the update writes */
	__u8 old[8];		/* out: what the last activation found */
	__u8 now[8];		/* out: what it holds now */
	char name[DYNAMOS_NAME_MAX];	/* out */
};

/* Who or what stood in the way. */
struct dynamos_culprit {
	__u32 function;		/* id, or ~0 */
	__s32 pid;		/* thread id, or 0 */
	__u64 address;		/* found on its stack; of site, variable or hook */
	__u8 found[8];		/* EILSEQ: the bytes that are there */
	char comm[DYNAMOS_COMM_MAX];
};

struct dynamos_switch {
	__u32 size;
	__u32 count;		/* function ids in the group; 0 only with an update */
	__u64 ids;		/* pointer to __u32[count] */
	__u64 stop_ns;		/* out: time the work in the stop took */
	__u32 tasks;		/* out: tasks whose stacks were read */
	__u32 update;		/* id: its hooks and variables come or go too; or 0 */
	__s32 hook_error;	/* out: what the hook returned that refused */
	__u32 left;		/* out: variables not put back: somebody else wrote them */
	__u32 confirm;		/* ACTIVATE with an update: seconds for CONFIRM; or 0 */
	__u32 reserved;
	struct dynamos_culprit culprit;	/* out */
};

struct dynamos_range {
	__u64 start;
	__u64 end;		/* exclusive */
};

struct dynamos_holder {
	__s32 pid;		/* thread id */
	__s32 tgid;
	__u64 address;		/* the innermost one found in the range */
	__u32 range;		/* its index; a task has a holder for each, innermost first */
	__u32 words;		/* how many such words its stack has */
	char comm[DYNAMOS_COMM_MAX];
	__u64 frames[DYNAMOS_FRAMES_MAX];	/* innermost first, ends with 0; none if runnable */
};

struct dynamos_stacks {
	__u32 size;
	__u32 nr_ranges;
	__u64 ranges;		/* pointer to struct dynamos_range[], sorted, disjoint */
	__u64 holders;		/* pointer to struct dynamos_holder[] */
	__u32 max_holders;	/* room there */
	__u32 nr_holders;	/* out: found, may exceed max_holders */
	__u32 tasks;		/* out: tasks whose stacks were read */
	__u32 reserved;
	__u64 words;		/* out: stack words read */
	__u64 stop_ns;		/* out */
};

/*
 * The program's context is the function's arguments, each a u64: those in
 * registers, then the words on the stack. It returns the number of an edition,
 * or 0: the policy map decides. One that is attached is replaced.
 */
struct dynamos_adapt {
	__u32 size;
	__u32 function;		/* id */
	__s32 program_fd;	/* -1: detach */
	__u32 reserved;
};

struct dynamos_retire {
	__u32 size;
	__u32 tasks;		/* out */
	char update[DYNAMOS_UPDATE_MAX];
	struct dynamos_culprit culprit;	/* out */
};

struct dynamos_confirm {
	__u32 size;
	__u32 reserved;
	char update[DYNAMOS_UPDATE_MAX];
};

struct dynamos_nudge {
	__u32 size;
	__s32 pid;		/* thread id */
};

/* Moves of a synchronised update. */
#define DYNAMOS_PHASE_ASK	0	/* none: just tell */
#define DYNAMOS_PHASE_RAISE	1	/* raise must_update: 3 follows on 2 */
#define DYNAMOS_PHASE_BACK	2	/* lower it: from 3 to 2 */

struct dynamos_phase {
	__u32 size;
	__u32 move;
	char update[DYNAMOS_UPDATE_MAX];
	__u32 flags;		/* out */
	__u32 phase;		/* out: 0 to 3 */
	__u32 must_update;	/* out: whether it is raised */
	__u32 pinned;		/* out: tasks that a group keeps to edition 1 */
	__u64 stop_ns;		/* out */
	struct dynamos_culprit culprit;	/* out: who delays phase 2 */
};

/* Bytes in the kernel; size is 0 where there is no such thing. */
struct dynamos_area {
	__u64 start;
	__u64 size;
};

/* A loaded module; its tables are as in the kernel, with entries as in its headers. */
struct dynamos_module_info {
	__u32 size;
	__u32 bug_size;				/* out: of an entry of bugs */
	char name[DYNAMOS_UPDATE_MAX];
	__u64 load;				/* out: no other load of a module has it */
	struct dynamos_area text;		/* out */
	struct dynamos_area ro_after_init;	/* out: data */
	struct dynamos_area fixups;		/* out */
	struct dynamos_area keys;		/* out */
	struct dynamos_area bugs;		/* out */
	struct dynamos_area static_calls;	/* out */
	struct dynamos_area orc_ips;		/* out */
	struct dynamos_area orc;		/* out */
};

#define DYNAMOS_IOC		0xD7
#define DYNAMOS_IOC_INFO	_IOWR(DYNAMOS_IOC, 0, struct dynamos_info)
#define DYNAMOS_IOC_MAPS	_IOW(DYNAMOS_IOC, 1, struct dynamos_maps)
#define DYNAMOS_IOC_FUNCTION	_IOWR(DYNAMOS_IOC, 2, struct dynamos_function_info)
#define DYNAMOS_IOC_ACTIVATE	_IOWR(DYNAMOS_IOC, 3, struct dynamos_switch)
#define DYNAMOS_IOC_DEACTIVATE	_IOWR(DYNAMOS_IOC, 4, struct dynamos_switch)
#define DYNAMOS_IOC_STACKS	_IOWR(DYNAMOS_IOC, 5, struct dynamos_stacks)
#define DYNAMOS_IOC_RETIRE	_IOWR(DYNAMOS_IOC, 6, struct dynamos_retire)
#define DYNAMOS_IOC_ADAPT	_IOW(DYNAMOS_IOC, 7, struct dynamos_adapt)
#define DYNAMOS_IOC_PHASE	_IOWR(DYNAMOS_IOC, 8, struct dynamos_phase)
#define DYNAMOS_IOC_UPDATE	_IOWR(DYNAMOS_IOC, 9, struct dynamos_update_info)
#define DYNAMOS_IOC_VARIABLE	_IOWR(DYNAMOS_IOC, 10, struct dynamos_variable_info)
#define DYNAMOS_IOC_NUDGE	_IOW(DYNAMOS_IOC, 11, struct dynamos_nudge)
#define DYNAMOS_IOC_CONFIRM	_IOW(DYNAMOS_IOC, 12, struct dynamos_confirm)
#define DYNAMOS_IOC_MODULE	_IOWR(DYNAMOS_IOC, 16, struct dynamos_module_info)

#endif /* _UAPI_DYNAMOS_H */
