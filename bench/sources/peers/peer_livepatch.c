// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch of noop_llseek that does what the original does.
 */
#include <linux/fs.h>
#include <linux/livepatch.h>
#include <linux/module.h>

static loff_t position(struct file *file, loff_t offset, int whence)
{
	return file->f_pos;
}

static struct klp_func functions[] = {
	{ .old_name = "noop_llseek", .new_func = position }, { },
};
static struct klp_object objects[] = { { .funcs = functions }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };

static int __init peer_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit peer_exit(void)
{
}

module_init(peer_init);
module_exit(peer_exit);
MODULE_DESCRIPTION("A livepatch that changes nothing");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
