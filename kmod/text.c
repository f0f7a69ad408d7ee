// SPDX-License-Identifier: GPL-2.0
/*
 * Trampolines: compare, check, write, all in one stop.
 *
 * Kernel text is read-only; it is written through a second, writable mapping of
 * the same pages that exists only around the stop.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include <asm/page.h>

#include "arch/x86.h"
#include "dynamos.h"

bool text_in_module(unsigned long address)
{
	return address >= MODULES_VADDR && address < MODULES_END;
}

/* A module's code lies in pages of its own, the kernel's in a linear mapping. */
static struct page *text_page(unsigned long address)
{
	return text_in_module(address) ? vmalloc_to_page((void *)address)
				       : pfn_to_page(__pa_symbol(address) >> PAGE_SHIFT);
}

/**
 * text_map() - map the bytes that a patch will write
 * @patch: its address and function are set; mapping and alias come back
 *
 * Undone by text_unmap().
 */
int text_map(struct text_patch *patch)
{
	unsigned long first = patch->address & PAGE_MASK;
	unsigned long last = (patch->address + TRAMPOLINE_SIZE - 1) & PAGE_MASK;
	struct page *pages[2];
	int count = 1 + (first != last);

	pages[0] = text_page(first);
	pages[1] = text_page(last);
	if (!pages[0] || !pages[1])
		return -EFAULT;
	patch->mapping = fault() ? NULL : vmap(pages, count, VM_MAP, PAGE_KERNEL);
	if (!patch->mapping)
		return -ENOMEM;
	patch->alias = patch->mapping + offset_in_page(patch->address);
	return 0;
}

void text_unmap(struct text_patch *patch)
{
	vunmap(patch->mapping);
	patch->mapping = NULL;
}

/**
 * text_complete() - add to an update's code what its slots hold
 * @told: the update; its slots are filled, and none of its code has run
 *
 * Return: 0, -ENOEXEC if a field is not in the update's module, or -ENOMEM.
 */
int text_complete(const struct dynamos_update *told)
{
	unsigned long lo = ULONG_MAX, hi = 0, i, count;
	const struct dynamos_direct *direct;
	struct page **pages;
	void *alias;

	if (!told->nr_directs)
		return 0;
	for (i = 0; i < told->nr_directs; i++) {
		direct = &told->directs[i];
		if (!IS_ENABLED(CONFIG_X86_32) ||
		    !within_module(direct->field, told->owner) ||
		    !within_module(direct->field + sizeof(u32) - 1, told->owner))
			return -ENOEXEC;
		lo = min(lo, direct->field);
		hi = max(hi, direct->field + sizeof(u32) - 1);
	}
	lo &= PAGE_MASK;
	count = (hi - lo) / PAGE_SIZE + 1;
	pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		pages[i] = vmalloc_to_page((void *)(lo + i * PAGE_SIZE));
	alias = fault() ? NULL : vmap(pages, count, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	if (!alias)
		return -ENOMEM;
	for (i = 0; i < told->nr_directs; i++) {
		direct = &told->directs[i];
		*(u32 *)(alias + (direct->field - lo)) += (unsigned long)*direct->slot;
	}
	vunmap(alias);
	return 0;
}

/**
 * text_jump() - encode a direct jump
 * @code: five bytes, out
 * @from: where the jump will stand
 * @to: its target
 *
 * Return: 0, or -ERANGE if a 32-bit displacement does not reach.
 */
int text_jump(u8 code[TRAMPOLINE_SIZE], unsigned long from, unsigned long to)
{
	long distance = to - (from + TRAMPOLINE_SIZE);
	s32 rel = distance;

	if (rel != distance)
		return -ERANGE;
	code[0] = JMP_REL32;
	memcpy(code + 1, &rel, sizeof(rel));
	return 0;
}

/* Of the patches that are being written. */
static DECLARE_BITMAP(lines, STACK_LINES);

struct text_work {
	struct text_patch *patches;	/* sorted by address */
	u32 count;
	bool activate;
	bool held;
	struct update *update;
	struct dynamos_switch *sw;
};

/* A return here, strictly inside the bytes, would land within the jump. */
static const struct text_patch *patch_inside(const struct text_work *work, unsigned long word)
{
	u32 low = 0, high = work->count;

	while (low < high) {
		u32 middle = low + (high - low) / 2;
		const struct text_patch *patch = &work->patches[middle];

		if (word <= patch->address)
			high = middle;
		else if (word >= patch->address + TRAMPOLINE_SIZE)
			low = middle + 1;
		else
			return patch;
	}
	return NULL;
}

static bool inside_holds(const void *work, unsigned long word)
{
	return patch_inside(work, word);
}

static bool inside_seen(struct stack_scan *scan, struct task_struct *task,
			unsigned long word)
{
	struct text_work *work = scan->context;

	work->held = true;
	work->sw->culprit.function = patch_inside(work, word)->function;
	culprit_task(&work->sw->culprit, task, word);
	return true;
}

static int text_work(void *context)
{
	struct text_work *work = context;
	struct dynamos_culprit *culprit = &work->sw->culprit;
	int err;
	u32 i;

	for (i = 0; i < work->count; i++) {
		struct text_patch *patch = &work->patches[i];

		if (!memcmp(patch->alias, patch->old, TRAMPOLINE_SIZE))
			continue;
		culprit->function = patch->function;
		culprit->address = patch->address;
		memcpy(culprit->found, patch->alias, TRAMPOLINE_SIZE);
		return -EILSEQ;
	}
	/* A trampoline is one instruction: no task can be inside it. */
	if (work->activate && work->count) {
		struct stack_scan scan = {
			.lo = work->patches[0].address + 1,
			.hi = work->patches[work->count - 1].address + TRAMPOLINE_SIZE,
			.lines = lines,
			.holds = inside_holds,
			.where = work,
			.no_pointers = true,
			.seen = inside_seen,
			.context = work,
		};

		stack_scan(&scan);
		work->sw->tasks = scan.tasks;
		if (work->held)
			return -EAGAIN;
	}
	err = update_ready(work->update, work->activate, work->sw);
	if (err)
		return err;
	for (i = 0; i < work->count; i++)
		memcpy(work->patches[i].alias, work->patches[i].new,
		       TRAMPOLINE_SIZE);
	/* Written elsewhere than where it runs: this very CPU may run it next. */
	arch_serialise();
	update_write(work->update, work->activate, work->sw);
	return 0;
}

/**
 * text_write_all() - write every patch or none, in one stop
 * @patches: mapped, sorted by address, disjoint
 * @count: how many
 * @activate: whether trampolines are written or taken away
 * @update: what else comes or goes in this stop, or NULL; begun
 * @sw: time, tasks and culprit come back here
 *
 * Visible, and so as it is written: an update may redirect it, to tell how long
 * installing takes.
 *
 * Return: 0; -EILSEQ if bytes differ from patch->old; -EAGAIN if a task is in
 * the way; or what update_ready() says.
 */
__visible noinline int text_write_all(struct text_patch *patches, u32 count, bool activate,
				      struct update *update, struct dynamos_switch *sw)
{
	struct text_work work = {
		.patches = patches,
		.count = count,
		.activate = activate,
		.update = update,
		.sw = sw,
	};
	u32 i;

	bitmap_zero(lines, STACK_LINES);
	for (i = 0; i < count; i++) {
		__set_bit(stack_line(patches[i].address + 1), lines);
		__set_bit(stack_line(patches[i].address + TRAMPOLINE_SIZE - 1), lines);
	}
	return stack_stop(text_work, &work, &sw->stop_ns);
}
