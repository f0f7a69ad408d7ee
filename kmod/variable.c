// SPDX-License-Identifier: GPL-2.0
/*
 * Variables: written in the stop that activates their update, put back in the
 * one that deactivates it.
 *
 * Like kernel text, they are written through a second mapping of their page, for
 * they may be read-only, since boot or ever. Nothing is put back into a variable
 * that somebody else has written meanwhile: his value stays, and is told of.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dynamos.h"

/**
 * variable_check() - whether this is a variable of the kernel's image
 * @told: what the update says
 *
 * Return: 0 or -ENOEXEC.
 */
int variable_check(const struct dynamos_variable *told)
{
	unsigned long last = told->address + told->size - 1;

	if (!is_power_of_2(told->size) || told->size > sizeof(told->value) ||
	    strnlen(told->name, DYNAMOS_NAME_MAX) == DYNAMOS_NAME_MAX ||
	    (told->flags & ~DYNAMOS_EXPECTS) ||
	    (told->address & PAGE_MASK) != (last & PAGE_MASK) ||
	    !virt_addr_valid((void *)told->address))
		return -ENOEXEC;
	return 0;
}

/**
 * variable_overlaps() - whether two variables share a byte
 * @a: one
 * @b: the other
 */
bool variable_overlaps(const struct dynamos_variable *a,
		       const struct dynamos_variable *b)
{
	return a->address < b->address + b->size && b->address < a->address + a->size;
}

static int variable_map(struct variable *variable)
{
	unsigned long address = variable->told->address;
	struct page *page = virt_to_page((void *)address);

	variable->mapping = fault() ? NULL : vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!variable->mapping)
		return -ENOMEM;
	variable->alias = variable->mapping + offset_in_page(address);
	return 0;
}

/**
 * variables_unmap() - release what variables_map() mapped
 * @variables: all of an update, or the first of them
 * @count: how many
 */
void variables_unmap(struct variable *variables, unsigned long count)
{
	while (count--) {
		vunmap(variables[count].mapping);
		variables[count].mapping = NULL;
	}
}

/**
 * variables_map() - make an update's variables writable for us
 * @variables: all of them
 * @count: how many
 */
int variables_map(struct variable *variables, unsigned long count)
{
	unsigned long i;
	int err;

	for (i = 0; i < count; i++) {
		err = variable_map(&variables[i]);
		if (err) {
			variables_unmap(variables, i);
			return err;
		}
	}
	return 0;
}

/**
 * variables_expected() - compare what the update's author wants compared
 * @variables: mapped; in the stop
 * @count: how many
 * @culprit: names the first that holds something else
 */
int variables_expected(const struct variable *variables, unsigned long count,
		       struct dynamos_culprit *culprit)
{
	unsigned long i;

	for (i = 0; i < count; i++) {
		const struct dynamos_variable *told = variables[i].told;

		if (!(told->flags & DYNAMOS_EXPECTS) ||
		    !memcmp(variables[i].alias, told->expected, told->size))
			continue;
		culprit->address = told->address;
		memcpy(culprit->found, variables[i].alias, told->size);
		return -EILSEQ;
	}
	return 0;
}

/**
 * variables_write() - keep the old values and write the new ones
 * @variables: mapped; in the stop
 * @count: how many
 */
void variables_write(struct variable *variables, unsigned long count)
{
	unsigned long i;

	for (i = 0; i < count; i++) {
		const struct dynamos_variable *told = variables[i].told;

		memcpy(variables[i].old, variables[i].alias, told->size);
		memcpy(variables[i].alias, told->value, told->size);
	}
}

/**
 * variables_restore() - put the old values back where the new ones still stand
 * @variables: mapped; in the stop
 * @count: how many
 *
 * Return: how many were left as they are, for somebody else wrote them.
 */
u32 variables_restore(struct variable *variables, unsigned long count)
{
	unsigned long i;
	u32 left = 0;

	for (i = 0; i < count; i++) {
		const struct dynamos_variable *told = variables[i].told;

		if (memcmp(variables[i].alias, told->value, told->size))
			left++;
		else
			memcpy(variables[i].alias, variables[i].old, told->size);
	}
	return left;
}

/**
 * variable_info() - describe a variable as it is now
 * @variable: of an update
 * @info: out
 */
void variable_info(const struct variable *variable, struct dynamos_variable_info *info)
{
	const struct dynamos_variable *told = variable->told;

	info->bytes = told->size;
	info->address = told->address;
	memcpy(info->value, told->value, told->size);
	memcpy(info->old, variable->old, told->size);
	memcpy(info->now, (void *)told->address, told->size);
	strscpy(info->name, told->name, sizeof(info->name));
}
