// SPDX-License-Identifier: GPL-2.0
/*
 * Adaptive paging: the page-out thread keeps a reserve of free memory beyond what
 * the watermarks ask for, so that the next job finds memory when its turn comes.
 * It looks after the reserve unasked; the original sleeps until somebody lacks
 * memory.
 *
 * kswapd() never returns, and sleeps where its entry stands in a wait queue. Once
 * awake it calls balance_pgdat(), which nobody else does, holding nothing: there
 * the original's thread ends, and what it was asked for goes to its successor.
 */
#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/memory_hotplug.h>
#include <linux/mmzone.h>
#include <linux/swap.h>
#include <linux/vmstat.h>
#include <linux/wait.h>

#include "dynamos_thread.h"

#define LOOK_AGAIN (HZ / 5)
#define RESERVE_SHIFT 3		/* an eighth of the node's memory */

int kswapd(void *data);
int kswapd_v2(void *data);
int balance_pgdat(pg_data_t *pgdat, int order, int highest_zoneidx);
int balance_pgdat_v1(pg_data_t *pgdat, int order, int highest_zoneidx);
int balance_pgdat_v2(pg_data_t *pgdat, int order, int highest_zoneidx);
bool pgdat_balanced_v1(pg_data_t *pgdat, int order, int highest_zoneidx);
bool pgdat_balanced_v2(pg_data_t *pgdat, int order, int highest_zoneidx);

/* One thread for each node. */
static void *each_node(void *pgdat)
{
	return pgdat ? next_online_pgdat(pgdat) : first_online_pgdat();
}

static struct task_struct *find_thread(void *data)
{
	pg_data_t *pgdat = data;
	struct task_struct *task;

	pgdat_kswapd_lock(pgdat);
	task = pgdat->kswapd;
	if (task)
		get_task_struct(task);
	pgdat_kswapd_unlock(pgdat);
	return task;
}

static struct task_struct *create_thread(void *data)
{
	int nid = ((pg_data_t *)data)->node_id;

	return kthread_create_on_node(kswapd, data, nid, "kswapd%d", nid);
}

/* Memory hotplug stops the thread with the lock held. */
static bool publish_thread(void *data, struct task_struct *next)
{
	pg_data_t *pgdat = data;
	bool ours;

#ifdef CONFIG_MEMORY_HOTPLUG
	if (!mutex_trylock(&pgdat->kswapd_lock))
		return false;
#endif
	ours = pgdat->kswapd == current;
	if (ours)
		WRITE_ONCE(pgdat->kswapd, next);
	pgdat_kswapd_unlock(pgdat);
	return ours;
}

static void wake_thread(void *data)
{
	wake_up_interruptible(&((pg_data_t *)data)->kswapd_wait);
}

DYNAMOS_THREAD(each_node, find_thread, create_thread, publish_thread, wake_thread);

/* Where the kernel's own callers leave what they ask kswapd for. */
static void ask(pg_data_t *pgdat, int order, int highest_zoneidx)
{
	int zoneidx = READ_ONCE(pgdat->kswapd_highest_zoneidx);

	if (zoneidx == MAX_NR_ZONES || zoneidx < highest_zoneidx)
		WRITE_ONCE(pgdat->kswapd_highest_zoneidx, highest_zoneidx);
	if (READ_ONCE(pgdat->kswapd_order) < order)
		WRITE_ONCE(pgdat->kswapd_order, order);
}

int balance_pgdat_v2(pg_data_t *pgdat, int order, int highest_zoneidx)
{
	if (dynamos_thread_leaves(pgdat)) {
		ask(pgdat, order, highest_zoneidx);
		current->flags &= ~(PF_MEMALLOC | PF_KSWAPD);
		dynamos_thread_hand_over(pgdat);
		kthread_exit(0);
	}
	return balance_pgdat_v1(pgdat, order, highest_zoneidx);
}

static bool has_reserve(pg_data_t *pgdat)
{
	unsigned long free = 0;
	int i;

	for (i = 0; i < MAX_NR_ZONES; i++)
		free += zone_page_state(&pgdat->node_zones[i], NR_FREE_PAGES);
	return free >= pgdat->node_present_pages >> RESERVE_SHIFT;
}

/* Allocations ask too, whether to wake kswapd: for them all is as it was. */
bool pgdat_balanced_v2(pg_data_t *pgdat, int order, int highest_zoneidx)
{
	return pgdat_balanced_v1(pgdat, order, highest_zoneidx) &&
	       (!current_is_kswapd() || has_reserve(pgdat));
}

static void sleep_until_asked(pg_data_t *pgdat)
{
	DEFINE_WAIT(wait);

	prepare_to_wait(&pgdat->kswapd_wait, &wait, TASK_INTERRUPTIBLE);
	/* Whoever waits here for reclaim to help tries again. */
	if (waitqueue_active(&pgdat->pfmemalloc_wait))
		wake_up_all(&pgdat->pfmemalloc_wait);
	if (!freezing(current) && !kthread_should_stop() &&
	    READ_ONCE(pgdat->kswapd_highest_zoneidx) == MAX_NR_ZONES) {
		set_pgdat_percpu_threshold(pgdat, calculate_normal_threshold);
		/* Out of reach, it is not worth the search. */
		schedule_timeout(has_reserve(pgdat) ? LOOK_AGAIN : 50 * LOOK_AGAIN);
		set_pgdat_percpu_threshold(pgdat, calculate_pressure_threshold);
	}
	finish_wait(&pgdat->kswapd_wait, &wait);
}

/* What was asked for before it began is still to be done: it forgets nothing. */
int kswapd_v2(void *data)
{
	pg_data_t *pgdat = data;
	int order, zoneidx;

	current->flags |= PF_MEMALLOC | PF_KSWAPD;
	set_freezable();
	dynamos_thread_begins(pgdat);
	while (!kthread_should_stop() && !dynamos_thread_leaves(pgdat)) {
		order = READ_ONCE(pgdat->kswapd_order);
		zoneidx = READ_ONCE(pgdat->kswapd_highest_zoneidx);
		WRITE_ONCE(pgdat->kswapd_order, 0);
		WRITE_ONCE(pgdat->kswapd_highest_zoneidx, MAX_NR_ZONES);
		if (zoneidx != MAX_NR_ZONES || !has_reserve(pgdat))
			balance_pgdat(pgdat, order, min(zoneidx, MAX_NR_ZONES - 1));
		sleep_until_asked(pgdat);
		try_to_freeze();
	}
	current->flags &= ~(PF_MEMALLOC | PF_KSWAPD);
	dynamos_thread_hand_over(pgdat);
	return 0;
}
