// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/dynamos: checks what comes in, copies what goes out, decides nothing.
 */
#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/threads.h>
#include <linux/uaccess.h>

#include "arch/x86.h"
#include "dynamos.h"

/*
 * The caller's first word is the size of its structure. We know one size only;
 * a later protocol may grow.
 */
static int copy_in(void *to, const void __user *from, size_t size)
{
	if (copy_from_user(to, from, size))
		return -EFAULT;
	return *(u32 *)to == size ? 0 : -EINVAL;
}

/* A refusal carries its culprit, so the structure goes back either way. */
static int copy_out(void __user *to, const void *from, size_t size, int err)
{
	return copy_to_user(to, from, size) ? -EFAULT : err;
}

static int ioctl_info(void __user *arg)
{
	struct dynamos_info info;
	int err = copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	memset(&info, 0, sizeof(info));
	info.size = sizeof(info);
	info.abi = DYNAMOS_ABI;
	info.current_offset = arch_current_offset();
	info.tgid_offset = offsetof(struct task_struct, tgid);
	info.pid_offset = offsetof(struct task_struct, pid);
	info.signal_offset = offsetof(struct task_struct, signal);
	info.live_offset = offsetof(struct signal_struct, live);
	info.cpu_offset = offsetof(struct task_struct, thread_info.cpu);
	info.preempt_offset = arch_preempt_offset();
	info.interrupt_mask = NMI_MASK | HARDIRQ_MASK | SOFTIRQ_OFFSET;
	info.pid_limit = PID_MAX_LIMIT;
	info.anchor = (unsigned long)&init_task;
	mutex_lock(&redirect_lock);
	redirect_totals(&info.functions, &info.redirected);
	maps_ids(info.map_id);
	mutex_unlock(&redirect_lock);
	return copy_out(arg, &info, sizeof(info), 0);
}

static int ioctl_maps(void __user *arg)
{
	struct dynamos_maps maps;
	int err = copy_in(&maps, arg, sizeof(maps));

	if (err)
		return err;
	mutex_lock(&redirect_lock);
	err = maps_set(maps.policy_fd, maps.editions_fd, maps.use_fd,
		       maps.must_update_fd);
	mutex_unlock(&redirect_lock);
	return err;
}

static int ioctl_function(void __user *arg)
{
	struct dynamos_function_info *info;
	int err;

	info = fault() ? NULL : kzalloc(sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	err = copy_in(info, arg, sizeof(*info));
	if (!err) {
		mutex_lock(&redirect_lock);
		err = redirect_info(info);
		mutex_unlock(&redirect_lock);
		if (!err)
			err = copy_out(arg, info, sizeof(*info), 0);
	}
	kfree(info);
	return err;
}

static int ioctl_update(void __user *arg)
{
	struct dynamos_update_info info;
	int err = copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	mutex_lock(&redirect_lock);
	err = update_info(&info);
	mutex_unlock(&redirect_lock);
	return err ?: copy_out(arg, &info, sizeof(info), 0);
}

static int ioctl_variable(void __user *arg)
{
	struct dynamos_variable_info info;
	int err = copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	mutex_lock(&redirect_lock);
	err = update_variable(&info);
	mutex_unlock(&redirect_lock);
	return err ?: copy_out(arg, &info, sizeof(info), 0);
}

static int ioctl_switch(void __user *arg, bool activate)
{
	struct dynamos_switch sw;
	u32 *ids;
	int err = copy_in(&sw, arg, sizeof(sw));

	if (err)
		return err;
	if ((!sw.count && !sw.update) || sw.reserved ||
	    sw.confirm > DYNAMOS_CONFIRM_MAX ||
	    (sw.confirm && !(activate && sw.update)))
		return -EINVAL;
	if (sw.count > DYNAMOS_FUNCTIONS_MAX)
		return -E2BIG;
	sw.hook_error = 0;
	sw.left = 0;
	ids = memdup_user(u64_to_user_ptr(sw.ids), sw.count * sizeof(*ids));
	if (IS_ERR(ids))
		return PTR_ERR(ids);
	mutex_lock(&redirect_lock);
	err = activate ? redirect_activate(ids, sw.count, &sw)
		       : redirect_deactivate(ids, sw.count, &sw);
	mutex_unlock(&redirect_lock);
	kfree(ids);
	return copy_out(arg, &sw, sizeof(sw), err);
}

static int ranges_check(const struct dynamos_range *ranges, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++) {
		if (ranges[i].start >= ranges[i].end)
			return -EINVAL;
		if (i && ranges[i].start < ranges[i - 1].end)
			return -EINVAL;
	}
	return 0;
}

static int ioctl_stacks(void __user *arg)
{
	struct dynamos_holder *holders = NULL;
	struct dynamos_range *ranges;
	struct dynamos_stacks stacks;
	u32 filled;
	int err = copy_in(&stacks, arg, sizeof(stacks));

	if (err)
		return err;
	if (!stacks.nr_ranges || stacks.reserved)
		return -EINVAL;
	if (stacks.nr_ranges > DYNAMOS_RANGES_MAX ||
	    stacks.max_holders > DYNAMOS_HOLDERS_MAX)
		return -E2BIG;
	ranges = vmemdup_user(u64_to_user_ptr(stacks.ranges),
			      stacks.nr_ranges * sizeof(*ranges));
	if (IS_ERR(ranges))
		return PTR_ERR(ranges);
	err = ranges_check(ranges, stacks.nr_ranges);
	if (err)
		goto out;
	holders = fault() ? NULL :
		kvcalloc(stacks.max_holders + 1, sizeof(*holders), GFP_KERNEL);
	if (!holders) {
		err = -ENOMEM;
		goto out;
	}
	mutex_lock(&redirect_lock);
	err = stack_holders(ranges, stacks.nr_ranges, holders, &stacks);
	mutex_unlock(&redirect_lock);
	if (err)
		goto out;
	filled = min(stacks.nr_holders, stacks.max_holders);
	if (copy_to_user(u64_to_user_ptr(stacks.holders), holders,
			 filled * sizeof(*holders)))
		err = -EFAULT;
	err = copy_out(arg, &stacks, sizeof(stacks), err);
out:
	kvfree(holders);
	kvfree(ranges);
	return err;
}

static int ioctl_module(void __user *arg)
{
	struct dynamos_module_info info;
	int err = copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	if (strnlen(info.name, sizeof(info.name)) == sizeof(info.name))
		return -EINVAL;
	err = modules_info(&info);
	return err ?: copy_out(arg, &info, sizeof(info), 0);
}

static int ioctl_retire(void __user *arg)
{
	struct dynamos_retire retire;
	int err = copy_in(&retire, arg, sizeof(retire));

	if (err)
		return err;
	if (strnlen(retire.update, sizeof(retire.update)) == sizeof(retire.update))
		return -EINVAL;
	err = redirect_retire(&retire);
	return copy_out(arg, &retire, sizeof(retire), err);
}

static int ioctl_confirm(void __user *arg)
{
	struct dynamos_confirm which;
	int err = copy_in(&which, arg, sizeof(which));

	if (err)
		return err;
	if (which.reserved ||
	    strnlen(which.update, sizeof(which.update)) == sizeof(which.update))
		return -EINVAL;
	mutex_lock(&redirect_lock);
	err = confirm(which.update);
	mutex_unlock(&redirect_lock);
	return err;
}

static int ioctl_nudge(void __user *arg)
{
	struct dynamos_nudge who;
	int err = copy_in(&who, arg, sizeof(who));

	return err ?: nudge(who.pid);
}

static int ioctl_phase(void __user *arg)
{
	struct dynamos_phase phase;
	int err = copy_in(&phase, arg, sizeof(phase));

	if (err)
		return err;
	if (phase.move > DYNAMOS_PHASE_BACK ||
	    strnlen(phase.update, sizeof(phase.update)) == sizeof(phase.update))
		return -EINVAL;
	mutex_lock(&redirect_lock);
	err = phase_ioctl(&phase);
	mutex_unlock(&redirect_lock);
	return copy_out(arg, &phase, sizeof(phase), err);
}

static int ioctl_adapt(void __user *arg)
{
	struct dynamos_adapt adapt;
	int err = copy_in(&adapt, arg, sizeof(adapt));

	if (err)
		return err;
	if (adapt.reserved)
		return -EINVAL;
	mutex_lock(&redirect_lock);
	err = redirect_adapt(adapt.function, adapt.program_fd);
	mutex_unlock(&redirect_lock);
	return err;
}

static noinline_for_stack long answer(unsigned int command, void __user *user)
{
	switch (command) {
	case DYNAMOS_IOC_INFO:
		return ioctl_info(user);
	case DYNAMOS_IOC_MAPS:
		return ioctl_maps(user);
	case DYNAMOS_IOC_FUNCTION:
		return ioctl_function(user);
	case DYNAMOS_IOC_ACTIVATE:
		return ioctl_switch(user, true);
	case DYNAMOS_IOC_DEACTIVATE:
		return ioctl_switch(user, false);
	case DYNAMOS_IOC_STACKS:
		return ioctl_stacks(user);
	case DYNAMOS_IOC_RETIRE:
		return ioctl_retire(user);
	case DYNAMOS_IOC_ADAPT:
		return ioctl_adapt(user);
	case DYNAMOS_IOC_UPDATE:
		return ioctl_update(user);
	case DYNAMOS_IOC_VARIABLE:
		return ioctl_variable(user);
	case DYNAMOS_IOC_CONFIRM:
		return ioctl_confirm(user);
	case DYNAMOS_IOC_PHASE:
		return ioctl_phase(user);
	case DYNAMOS_IOC_NUDGE:
		return ioctl_nudge(user);
	case DYNAMOS_IOC_MODULE:
		return ioctl_module(user);
	default:
		return -ENOTTY;
	}
}

/*
 * Who asks for a stop is read like any other task. What earlier system calls of
 * his left where the frames of this one will lie, and have holes, must not be
 * taken for addresses: a pointer into an update would hold it for ever. What
 * lies above, where the kernel moves each call's frames by a random offset, is
 * left to the unwinder.
 */
static noinline_for_stack void clean_stack(void)
{
	unsigned long left[192];

	memset(left, 0, sizeof(left));
	barrier_data(left);
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	clean_stack();
	return answer(command, (void __user *)arg);
}

static int device_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dynamos",
	.mode = 0600,
	.fops = &device_operations,
};

int device_init(void)
{
	return misc_register(&device);
}

void device_exit(void)
{
	misc_deregister(&device);
}
