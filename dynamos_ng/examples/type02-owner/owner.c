// SPDX-License-Identifier: GPL-2.0
/*
 * The owner of one inode, changed and put back under the inode's lock.
 *
 * /sys/module/dynamos_type02_owner/parameters/ tells which inode, by a path, and
 * whom it shall belong to; both are read at the first activation after a load.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/path.h>

#include "dynamos_update.h"

static char *path = "";
module_param(path, charp, 0644);
static unsigned int owner;
module_param(owner, uint, 0644);

static struct path found;
static kuid_t ours, theirs;

/* Finding sleeps and may fail, so it comes before anything else does. */
static int find(void)
{
	int err;

	kernel_param_lock(THIS_MODULE);
	ours = make_kuid(&init_user_ns, owner);
	err = uid_valid(ours) ? kern_path(path, LOOKUP_FOLLOW, &found) : -EINVAL;
	kernel_param_unlock(THIS_MODULE);
	if (err)
		return err;
	err = mnt_want_write(found.mnt);
	if (err)
		path_put(&found);
	return err;
}

static void let_go(void)
{
	mnt_drop_write(found.mnt);
	path_put(&found);
}

static void change(void)
{
	struct inode *inode = d_inode(found.dentry);

	inode_lock(inode);
	theirs = inode->i_uid;
	inode->i_uid = ours;
	inode_unlock(inode);
	mark_inode_dirty(inode);
}

static int change_back(void)
{
	struct inode *inode = d_inode(found.dentry);

	inode_lock(inode);
	if (uid_eq(inode->i_uid, ours))
		inode->i_uid = theirs;
	else
		pr_notice("somebody else has changed the owner meanwhile: it is left\n");
	inode_unlock(inode);
	mark_inode_dirty(inode);
	return 0;
}

DYNAMOS_BEFORE(find, let_go);
DYNAMOS_AFTER(change, change_back);
