// SPDX-License-Identifier: GPL-2.0
/*
 * Shadow data: fields of an update's own beside objects of the kernel.
 *
 * Each activation of an update has a table of its own. Deactivation takes it out
 * of the update's sight within its stop, for from then on the original frees
 * objects and detaches nothing: their addresses would be found again with other
 * objects there. The table itself, which calls under way may still use, is freed
 * when the update is retired.
 *
 * Readers hold RCU alone; writers hold the lock of one bucket, with interrupts off.
 */
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/rculist.h>
#include <linux/slab.h>

#include "dynamos.h"

#define BUCKET_BITS 10

struct bucket {
	spinlock_t lock;
	struct hlist_head shadows;
};

struct dynamos_shadows {
	struct dynamos_shadows *older;	/* of the same update, still to be freed */
	atomic_long_t count;
	struct bucket buckets[1 << BUCKET_BITS];
};

struct shadow {
	struct hlist_node node;
	struct rcu_head rcu;
	const void *object;
	unsigned long id;
	unsigned char data[] __aligned(__alignof__(unsigned long long));
};

static struct bucket *bucket_of(struct dynamos_shadows *shadows, const void *object)
{
	return &shadows->buckets[hash_ptr(object, BUCKET_BITS)];
}

/* Under rcu_read_lock() or the bucket's lock. */
static struct shadow *shadow_in(struct bucket *bucket, const void *object,
				unsigned long id)
{
	struct shadow *shadow;

	hlist_for_each_entry_rcu(shadow, &bucket->shadows, node,
				 lockdep_is_held(&bucket->lock))
		if (shadow->object == object && shadow->id == id)
			return shadow;
	return NULL;
}

__visible void *dynamos_shadow_find(struct dynamos_shadows *shadows, const void *object,
			  unsigned long id)
{
	struct shadow *shadow;

	if (!shadows)
		return NULL;
	rcu_read_lock();
	shadow = shadow_in(bucket_of(shadows, object), object, id);
	rcu_read_unlock();
	return shadow ? shadow->data : NULL;
}
EXPORT_SYMBOL_GPL(dynamos_shadow_find);

__visible void *dynamos_shadow_add(struct dynamos_shadows *shadows, void *object,
			 unsigned long id, size_t size, gfp_t gfp,
			 void (*ctor)(void *object, void *shadow))
{
	void *data = dynamos_shadow_find(shadows, object, id);
	struct shadow *new, *there;
	struct bucket *bucket;
	unsigned long flags;

	if (!shadows || data)
		return data;
	new = kzalloc(struct_size(new, data, size), gfp);
	if (!new)
		return NULL;
	new->object = object;
	new->id = id;
	if (ctor)
		ctor(object, new->data);
	bucket = bucket_of(shadows, object);
	spin_lock_irqsave(&bucket->lock, flags);
	there = shadow_in(bucket, object, id);
	if (!there)
		hlist_add_head_rcu(&new->node, &bucket->shadows);
	spin_unlock_irqrestore(&bucket->lock, flags);
	if (there) {
		kfree(new);
		return there->data;
	}
	atomic_long_inc(&shadows->count);
	return new->data;
}
EXPORT_SYMBOL_GPL(dynamos_shadow_add);

__visible void *dynamos_shadow_take(struct dynamos_shadows *shadows, const void *object,
			  unsigned long id)
{
	struct bucket *bucket;
	struct shadow *shadow;
	unsigned long flags;

	if (!shadows)
		return NULL;
	bucket = bucket_of(shadows, object);
	spin_lock_irqsave(&bucket->lock, flags);
	shadow = shadow_in(bucket, object, id);
	if (shadow)
		hlist_del_rcu(&shadow->node);
	spin_unlock_irqrestore(&bucket->lock, flags);
	if (!shadow)
		return NULL;
	atomic_long_dec(&shadows->count);
	return shadow->data;
}
EXPORT_SYMBOL_GPL(dynamos_shadow_take);

__visible void dynamos_shadow_free(void *data)
{
	struct shadow *shadow;

	if (!data)
		return;
	shadow = container_of(data, struct shadow, data);
	kfree_rcu(shadow, rcu);
}
EXPORT_SYMBOL_GPL(dynamos_shadow_free);

/**
 * shadows_new() - make the table of an activation
 * @older: the update's tables that are still to be freed, or NULL
 *
 * Return: an empty table, owned by the caller, or NULL.
 */
struct dynamos_shadows *shadows_new(struct dynamos_shadows *older)
{
	struct dynamos_shadows *shadows = kvzalloc(sizeof(*shadows), GFP_KERNEL);
	size_t i;

	if (!shadows)
		return NULL;
	shadows->older = older;
	for (i = 0; i < ARRAY_SIZE(shadows->buckets); i++)
		spin_lock_init(&shadows->buckets[i].lock);
	return shadows;
}

/**
 * shadows_count() - count the objects' shadows in a table
 * @shadows: the table, or NULL
 */
unsigned long shadows_count(const struct dynamos_shadows *shadows)
{
	return shadows ? atomic_long_read(&shadows->count) : 0;
}

/**
 * shadows_free() - free tables with all that is in them
 * @shadows: the newest of them, or NULL
 * @last: the one to stop at
 *
 * Nobody may be using them.
 */
void shadows_free(struct dynamos_shadows *shadows, const struct dynamos_shadows *last)
{
	while (shadows != last) {
		struct dynamos_shadows *older = shadows->older;
		struct hlist_node *next;
		struct shadow *shadow;
		size_t i;

		for (i = 0; i < ARRAY_SIZE(shadows->buckets); i++)
			hlist_for_each_entry_safe(shadow, next,
						  &shadows->buckets[i].shadows, node)
				kfree(shadow);
		kvfree(shadows);
		shadows = older;
	}
}
