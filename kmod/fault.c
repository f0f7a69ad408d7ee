// SPDX-License-Identifier: GPL-2.0
/*
 * Steps that fail on demand, for tests of what comes after: kernels as they are
 * shipped have no fault injection. The parameter counts down; the step at which it
 * arrives at zero fails as if it had found no memory.
 */
#include <linux/moduleparam.h>

#include "dynamos.h"

static unsigned int fail;
module_param(fail, uint, 0600);
MODULE_PARM_DESC(fail, "let the how manieth step that may fail do so (0: none)");

/**
 * fault() - tell a step that may fail whether it is to
 */
bool fault(void)
{
	return unlikely(READ_ONCE(fail)) && !--fail;
}
