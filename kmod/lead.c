// SPDX-License-Identifier: GPL-2.0
/*
 * Where calls of a function lead when several updates redirect it.
 *
 * The one activated last is on top: the trampoline leads to it, and its edition 1
 * on to the one below, whose own is the lowest's clone of the original. Whoever
 * goes is left out, wherever it lies. A jump on is written over one instruction,
 * so that no task can be inside it, in front of all that counts.
 */
#include "arch/x86.h"
#include "dynamos.h"

/* Who has the trampoline of a function, or NULL. */
static struct redirect *on_top(unsigned long address)
{
	struct redirect *top = NULL;
	u32 id;

	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX; id++)
		if (redirects[id] && redirects[id]->state == DYNAMOS_REDIRECTED &&
		    redirects[id]->function->address == address &&
		    (!top || redirects[id]->order > top->order))
			top = redirects[id];
	return top;
}

/* The bytes at a place that lead on to a redirection, or that lead nowhere. */
static int leads_to(u8 code[TRAMPOLINE_SIZE], unsigned long from,
		    const struct redirect *to, const u8 *nowhere)
{
	if (to)
		return text_jump(code, from, to->function->handler);
	memcpy(code, nowhere, TRAMPOLINE_SIZE);
	return 0;
}

/* Have a place lead to @now instead of @before. */
static int lead(struct patching *patching, u32 id, unsigned long from,
		const struct redirect *before, const struct redirect *now, const u8 *nowhere)
{
	struct text_patch *patch = &patching->patches[patching->count];
	int err;

	if (before == now)
		return 0;
	if (WARN_ON_ONCE(patching->count == patching->most))
		return -E2BIG;
	patch->function = id;
	patch->address = from;
	err = leads_to(patch->old, from, before, nowhere);
	if (!err)
		err = leads_to(patch->new, from, now, nowhere);
	if (!err)
		err = text_map(patch);
	if (!err)
		patching->count++;
	return err;
}

/**
 * lead_to() - have the calls of a function reach a redirection that comes
 * @patching: what is to be written; grows
 * @id: the redirection
 *
 * Return: 0, -EEXIST if it can stand neither above nor below another, or an errno.
 */
int lead_to(struct patching *patching, u32 id)
{
	const struct redirect *redirect = redirects[id];
	const struct dynamos_function *function = redirect->function;
	const struct redirect *top = on_top(function->address);
	int err;

	if (top && (phase_together(update_by_name(top->owner->name)) ||
		    phase_together(update_by_name(redirect->owner->name))))
		return -EEXIST;
	err = lead(patching, id, function->site, top, redirect, function->expected);
	if (!err)
		err = lead(patching, id, function->below, redirect->below, top, redirect->alone);
	return err;
}

/**
 * lead_past() - have the calls of a function reach what is below a redirection
 * @patching: what is to be written; grows
 * @id: the redirection, which goes
 */
int lead_past(struct patching *patching, u32 id)
{
	const struct redirect *redirect = redirects[id];
	const struct dynamos_function *function = redirect->function;
	u32 other;
	int err = 0;

	if (on_top(function->address) == redirect)
		err = lead(patching, id, function->site, redirect, redirect->below,
			   function->expected);
	for (other = 0; other < DYNAMOS_FUNCTIONS_MAX && !err; other++)
		if (redirects[other] && redirects[other]->below == redirect)
			err = lead(patching, id, redirects[other]->function->below,
				   redirect, redirect->below, redirects[other]->alone);
	return err;
}

/**
 * lead_changed() - note what the code says already
 * @redirect: has come, or gone
 * @activate: which
 */
void lead_changed(struct redirect *redirect, bool activate)
{
	static u32 activations;
	u32 id;

	if (activate) {
		redirect->below = on_top(redirect->function->address);
		redirect->order = ++activations;
		return;
	}
	for (id = 0; id < DYNAMOS_FUNCTIONS_MAX; id++)
		if (redirects[id] && redirects[id]->below == redirect)
			redirects[id]->below = redirect->below;
}
