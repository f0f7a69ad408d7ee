// SPDX-License-Identifier: GPL-2.0
/*
 * struct char_device_struct with two new fields: who registered the region. When
 * the update is activated, each region there is moves into a structure that has
 * them. The new one begins as the old one did, so what only uses old fields works
 * on both, and no region need move back.
 */
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kdev_t.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "dynamos_update.h"

#define MAJORS 255		/* CHRDEV_MAJOR_HASH_SIZE of fs/char_dev.c */

struct region {
	struct region *next;
	unsigned int major;
	unsigned int baseminor;
	int minorct;
	char name[64];
	struct cdev *cdev;
	/* New from here on. */
	pid_t pid;		/* 0: registered before the update */
	char comm[TASK_COMM_LEN];
};

extern struct region *chrdevs[MAJORS];
extern struct mutex chrdevs_lock;

struct region *__register_chrdev_region_v2(unsigned int major, unsigned int baseminor,
					   int minorct, const char *name);
void chrdev_show_v2(struct seq_file *f, off_t offset);

/* Nobody is in any of the functions that use regions. */
static int move(void)
{
	struct region **at, *moved = NULL, *region;
	int i, count = 0;

	if (mutex_is_locked(&chrdevs_lock))
		return -EAGAIN;
	for (i = 0; i < MAJORS; i++)
		for (region = chrdevs[i]; region; region = region->next)
			count++;
	while (count--) {
		region = kzalloc(sizeof(*region), GFP_ATOMIC);
		if (!region)
			goto no_memory;
		region->next = moved;
		moved = region;
	}
	for (i = 0; i < MAJORS; i++) {
		for (at = &chrdevs[i]; *at; at = &(*at)->next) {
			region = moved;
			moved = moved->next;
			memcpy(region, *at, offsetof(struct region, pid));
			kfree(*at);
			*at = region;
		}
	}
	return 0;
no_memory:
	while (moved) {
		region = moved;
		moved = moved->next;
		kfree(region);
	}
	return -ENOMEM;
}

DYNAMOS_IN_STOP(move, NULL);

void chrdev_show_v2(struct seq_file *f, off_t offset)
{
	struct region *region;

	mutex_lock(&chrdevs_lock);
	for (region = chrdevs[offset % MAJORS]; region; region = region->next) {
		if (region->major != offset)
			continue;
		seq_printf(f, "%3d %s", region->major, region->name);
		if (region->pid)
			seq_printf(f, " (%s, PID %d)", region->comm, region->pid);
		seq_putc(f, '\n');
	}
	mutex_unlock(&chrdevs_lock);
}

static struct region *of_major(unsigned int major)
{
	struct region *region = chrdevs[major % MAJORS];

	while (region && region->major != major)
		region = region->next;
	return region;
}

/* As the original: the low majors count as taken if anything shares their place. */
static unsigned int free_major(void)
{
	unsigned int major;

	for (major = MAJORS - 1; major >= CHRDEV_MAJOR_DYN_END; major--)
		if (!chrdevs[major])
			return major;
	for (major = CHRDEV_MAJOR_DYN_EXT_START; major >= CHRDEV_MAJOR_DYN_EXT_END; major--)
		if (!of_major(major))
			return major;
	return 0;
}

struct region *__register_chrdev_region_v2(unsigned int major, unsigned int baseminor,
					   int minorct, const char *name)
{
	struct region *region, **at;

	if (major >= CHRDEV_MAJOR_MAX || minorct > MINORMASK + 1 - baseminor)
		return ERR_PTR(-EINVAL);
	region = kzalloc(sizeof(*region), GFP_KERNEL);
	if (!region)
		return ERR_PTR(-ENOMEM);
	region->baseminor = baseminor;
	region->minorct = minorct;
	strscpy(region->name, name, sizeof(region->name));
	region->pid = task_tgid_nr(current);
	get_task_comm(region->comm, current);

	mutex_lock(&chrdevs_lock);
	region->major = major ?: free_major();
	if (!region->major)
		goto out;
	/* In order of majors, then of minors; none overlaps another. */
	for (at = &chrdevs[region->major % MAJORS]; *at; at = &(*at)->next) {
		struct region *other = *at;

		if (other->major < region->major)
			continue;
		if (other->major > region->major)
			break;
		if (other->baseminor + other->minorct <= baseminor)
			continue;
		if (other->baseminor >= baseminor + minorct)
			break;
		goto out;
	}
	region->next = *at;
	*at = region;
	mutex_unlock(&chrdevs_lock);
	return region;
out:
	mutex_unlock(&chrdevs_lock);
	kfree(region);
	return ERR_PTR(-EBUSY);
}
