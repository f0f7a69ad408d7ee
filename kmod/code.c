// SPDX-License-Identifier: GPL-2.0
/*
 * Pieces of code, sorted, in which an address may lie.
 */
#include <linux/slab.h>
#include <linux/sort.h>

#include "dynamos.h"

/**
 * code_new() - make room for pieces of code
 * @most: how many there will be at most
 *
 * Freed by kfree(). Return: the empty set, or NULL.
 */
struct code *code_new(u32 most)
{
	struct code *code;	/* for its size */

	return fault() ? NULL : kzalloc(struct_size(code, parts, most), GFP_KERNEL);
}

static int part_compare(const void *a, const void *b)
{
	const struct dynamos_part *left = a, *right = b;

	return left->start < right->start ? -1 : left->start > right->start;
}

/**
 * code_add() - add pieces of code, for which there must be room
 * @code: the set
 * @parts: disjoint from those that it has
 * @count: how many
 */
void code_add(struct code *code, const struct dynamos_part *parts, u32 count)
{
	memcpy(&code->parts[code->count], parts, count * sizeof(*parts));
	code->count += count;
	sort(code->parts, code->count, sizeof(*parts), part_compare, NULL);
}

/**
 * code_holds() - tell whether a call can return to an address in the code
 * @set: a struct code, not empty
 * @address: none of a piece's first byte, for its address is a pointer to it
 */
bool code_holds(const void *set, unsigned long address)
{
	const struct code *code = set;
	u32 low = 0, high = code->count;

	while (low < high) {
		u32 middle = low + (high - low) / 2;

		if (address <= code->parts[middle].start)
			high = middle;
		else if (address >= code->parts[middle].end)
			low = middle + 1;
		else
			return true;
	}
	return false;
}

/**
 * code_scan() - read all stacks for addresses in the code, only inside a stop
 * @code: not empty
 * @seen: called for each
 * @context: for @seen
 */
void code_scan(const struct code *code, bool (*seen)(struct stack_scan *scan,
	       struct task_struct *task, unsigned long word), void *context)
{
	struct stack_scan scan = {
		.lo = code->parts[0].start + 1,
		.hi = code->parts[code->count - 1].end,
		.holds = code_holds,
		.where = code,
		.no_pointers = true,
		.seen = seen,
		.context = context,
	};

	stack_scan(&scan);
}
