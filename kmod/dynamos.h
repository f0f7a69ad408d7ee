/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of dynamos.ko share.
 *
 * One mutex, redirect_lock (redirect.c), guards the tables of updates and of
 * functions, their states and the maps. Stops are made with it held; nothing is taken inside it
 * but what stop_machine() and vmap() take.
 */
#ifndef _DYNAMOS_H
#define _DYNAMOS_H

#include <linux/bpf.h>
#include <linux/mutex.h>
#include <linux/types.h>

#include "uapi/dynamos.h"
#include "update/dynamos_thread.h"
#include "update/dynamos_update.h"

#define TRAMPOLINE_SIZE 5

/* dynamos.c: what module_init() and module_exit() define, for the module loader. */
__visible int init_module(void);
__visible void cleanup_module(void);

/* The answer to "who stands in the way", in stop and out of it. */
static inline void culprit_clear(struct dynamos_culprit *culprit)
{
	*culprit = (struct dynamos_culprit){ .function = ~0U };
}

static inline void culprit_task(struct dynamos_culprit *culprit,
				const struct task_struct *task, unsigned long address)
{
	culprit->pid = task->pid;
	culprit->address = address;
	memcpy(culprit->comm, task->comm, sizeof(culprit->comm));
}

/* For work that waits. */
#ifdef DYNAMOS_DFL_WQ
#define DYNAMOS_WQ system_dfl_wq
#else
#define DYNAMOS_WQ system_unbound_wq
#endif

/* fault.c: whether a step that may fail is to, for tests. */
bool fault(void);

/* maps.c: the BPF maps, handed over once and held until the module goes. */
extern u8 *dynamos_policy;
int maps_set(int policy_fd, int editions_fd, int use_fd, int must_update_fd);
void maps_put(void);
bool maps_ready(void);
void maps_ids(u32 id[4]);
u8 *editions_row(u32 function);
void __percpu *use_counter(u32 function, u32 edition);
void use_reset(u32 function, u32 edition);
unsigned long use_in_flight(u32 function, u32 edition);
u64 *must_update(u32 function);

/* update.c: the table of updates. */
struct update {
	struct list_head list;
	const struct dynamos_update *told;	/* lives in its module */
	u32 id;
	u32 state;
	struct variable *variables;		/* owned, as many as it told of */
	struct dynamos_shadows *shadows;	/* owned: all tables, newest first */
	struct dynamos_shadows *fresh;		/* of an activation under way */
	struct group *group;			/* owned; NULL unless it is consistent */
	struct code *old;			/* owned; NULL unless it is phased */
	u32 phase;
	u32 pinned;				/* tasks that keep to edition 1 */
	struct dynamos_culprit culprit;		/* who delays it */
	u32 confirm;
	unsigned long confirm_by;		/* jiffies, while WAITING */
	int confirm_error;			/* of the last try to revert */
	u32 confirm_tries;
};

static inline unsigned long function_count(const struct dynamos_update *told)
{
	return told->functions_end - told->functions;
}

extern struct list_head updates;

int update_check(const struct dynamos_update *told);
struct update *update_by_name(const char *name);
struct update *update_by_id(u32 id);
bool update_allows(const struct module *owner, const struct update *named, bool activate);
int update_begin(struct update *update, bool activate, struct dynamos_switch *sw);
int update_ready(struct update *update, bool activate, struct dynamos_switch *sw);
void update_write(struct update *update, bool activate, struct dynamos_switch *sw);
void update_end(struct update *update, bool activate, int err);
void update_retired(struct update *update);
int update_info(struct dynamos_update_info *info);
int update_variable(struct dynamos_variable_info *info);

/* variable.c: an update's variables, mapped writable around a stop. */
struct variable {
	const struct dynamos_variable *told;
	void *mapping;			/* owned: from variables_map() to _unmap() */
	u8 *alias;
	u8 old[8];
};

int variable_check(const struct dynamos_variable *told);
bool variable_overlaps(const struct dynamos_variable *a,
		       const struct dynamos_variable *b);
int variables_map(struct variable *variables, unsigned long count);
void variables_unmap(struct variable *variables, unsigned long count);
int variables_expected(const struct variable *variables, unsigned long count,
		       struct dynamos_culprit *culprit);
void variables_write(struct variable *variables, unsigned long count);
u32 variables_restore(struct variable *variables, unsigned long count);
void variable_info(const struct variable *variable, struct dynamos_variable_info *info);

/* quiet.c */
int update_quiet(const struct dynamos_update *told, bool activate,
		 struct dynamos_culprit *culprit);

/* shadow.c: fields of an update's own beside objects of the kernel. */
struct dynamos_shadows *shadows_new(struct dynamos_shadows *older);
unsigned long shadows_count(const struct dynamos_shadows *shadows);
void shadows_free(struct dynamos_shadows *shadows, const struct dynamos_shadows *last);

/* adapt.c: BPF programs that choose editions. */
struct adapt *adapt_create(const struct dynamos_function *function, const u8 *row);
void adapt_destroy(struct adapt *adapt);
int adapt_attach(struct adapt *adapt, int fd);
void adapt_info(const struct adapt *adapt, struct dynamos_function_info *info);

/* redirect.c: the table of functions and their states. */
extern struct mutex redirect_lock;
struct redirect {
	const struct dynamos_function *function;	/* lives in owner */
	struct module *owner;
	struct adapt *adapt;		/* owned; NULL if the policy alone decides */
	struct redirect *below;		/* what its edition 1 leads on to, or NULL */
	u8 alone[TRAMPOLINE_SIZE];	/* what stands there without one below */
	u32 state;
	u32 order;			/* of its activation */
};

extern struct redirect *redirects[DYNAMOS_FUNCTIONS_MAX];
int redirect_add(const struct dynamos_update *update);
void redirect_remove(const struct module *owner);
int redirect_info(struct dynamos_function_info *info);
u32 redirect_next(const struct update *update, u32 id);
const struct dynamos_function *redirect_function(u32 id);
void redirect_totals(u32 *functions, u32 *redirected);
int redirect_activate(const u32 *ids, u32 count, struct dynamos_switch *sw);
int redirect_deactivate(const u32 *ids, u32 count, struct dynamos_switch *sw);
int redirect_adapt(u32 id, int fd);

/*
 * text.c: writes to kernel text. A text_patch is prepared (mapped writable) and
 * released outside the stop; compare and write happen inside.
 */
struct text_patch {
	unsigned long address;
	u8 old[TRAMPOLINE_SIZE];
	u8 new[TRAMPOLINE_SIZE];
	void *mapping;			/* owned: from text_map() to text_unmap() */
	u8 *alias;
	u32 function;
};

bool text_in_module(unsigned long address);
int text_map(struct text_patch *patch);
void text_unmap(struct text_patch *patch);
int text_complete(const struct dynamos_update *told);
int text_jump(u8 code[TRAMPOLINE_SIZE], unsigned long from, unsigned long to);
int text_write_all(struct text_patch *patches, u32 count, bool activate,
		   struct update *update, struct dynamos_switch *sw);

/* retire.c */
int redirect_retire(struct dynamos_retire *retire);

/* lead.c: where calls of a function lead when several updates redirect it. */
struct patching {
	struct text_patch *patches;
	u32 count, most;
};

int lead_to(struct patching *patching, u32 id);
int lead_past(struct patching *patching, u32 id);
void lead_changed(struct redirect *redirect, bool activate);

/*
 * stack.c: reads every task's stack while all CPUs are parked.
 *
 * stack_stop() parks the CPUs, calls @work on one of them, and makes all of
 * them serialise before they go on. Inside @work, stack_scan() reads the words
 * of each stack and calls @seen for each that lies in [lo, hi), is meant, and is
 * not known to be stale.
 */
struct stack_scan {
	unsigned long lo, hi;
	/* Which lines may hold what is meant, so that most words cost no search; NULL: all. */
	const unsigned long *lines;
	/* Whether what lies within these bounds is meant; NULL: all is. */
	bool (*holds)(const void *where, unsigned long address);
	const void *where;
	bool no_pointers;		/* no function's first byte is meant */
	/* Return true to stop the scan of everything. */
	bool (*seen)(struct stack_scan *scan, struct task_struct *task,
		     unsigned long word);
	void *context;
	struct task_struct *judged;	/* the last one that had a word in bounds */
	bool acquitted;			/* whose return addresses are stale */
	u32 tasks;			/* out */
	u64 words;			/* out */
};

/* A line's bit, which it shares with others: their number has 16 bits. */
#define STACK_LINES BIT(16)
static inline unsigned long stack_line(unsigned long address)
{
	return address / 64 % STACK_LINES;
}

int stack_stop(int (*work)(void *context), void *context, u64 *stop_ns);
void stack_scan(struct stack_scan *scan);
int stack_holders(const struct dynamos_range *ranges, u32 nr_ranges,
		  struct dynamos_holder *holders, struct dynamos_stacks *stacks);
void stack_bound_module(const struct module *module, struct stack_scan *scan);
int stack_module_clear(struct module *module, struct dynamos_retire *retire);

/* nudge.c */
int nudge(pid_t pid);

/* code.c: pieces of code, sorted. */
struct code {
	u32 count;
	struct dynamos_part parts[];
};

struct code *code_new(u32 most);
void code_add(struct code *code, const struct dynamos_part *parts, u32 count);
bool code_holds(const void *set, unsigned long address);
void code_scan(const struct code *code, bool (*seen)(struct stack_scan *scan,
	       struct task_struct *task, unsigned long word), void *context);

/* group.c: the states of tasks in a consistent group. */
struct group *group_new(const struct dynamos_function *functions, unsigned long count);
void group_free(struct group *group);
void *group_states(struct group *group);
u32 group_settle(struct group *group, bool pin);

/* phase.c: how an update gets on by itself. */
int phase_add(struct update *update);
void phase_remove(struct update *update);
bool phase_together(const struct update *update);
int phase_check(struct update *update, bool activate);
void phase_switched(struct update *update, bool activate);
void phase_follow(void);
int phase_leave(struct update *update);
int phase_ioctl(struct dynamos_phase *phase);
void phase_exit(void);

/* confirm.c: activations that must be confirmed. */
void confirm_switched(struct update *update, bool activate, u32 seconds);
void confirm_info(const struct update *update, struct dynamos_update_info *info);
int confirm(const char *name);
void confirm_exit(void);

/* modules.c: loadable modules whose functions updates change. */
int modules_init(void);
void modules_exit(void);
int modules_info(struct dynamos_module_info *info);
const struct module *modules_held(const struct module *update, const char *name);

/* classify.c: no fork, exec or exit is passed over. */
int classify_init(void);
void classify_exit(void);

/* unexported.c: the one place that reaches for what the kernel does not export. */
int unexported_init(void);
struct task_struct *unexported_idle_task(int cpu);

/* thread.c: successors of kernel threads. */
int threads_prepare(const struct dynamos_thread *told, bool edition);
void threads_keep(const struct dynamos_thread *told, bool edition);
void threads_replace(const struct dynamos_thread *told, bool edition);
void threads_forget(const struct dynamos_thread *told);
void threads_exit(void);

/* device.c */
int device_init(void);
void device_exit(void);

#endif /* _DYNAMOS_H */
