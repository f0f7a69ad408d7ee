// SPDX-License-Identifier: GPL-2.0
/*
 * The BPF maps that generated code reads and counts in.
 *
 * policy	array of bytes, indexed by tgid: the process's policy class
 * editions	one row of 256 bytes per function: the edition of each class
 * use		per CPU and per function and edition: entered, exited
 * must_update	by an update's first function: whether phase 3 is wanted
 *
 * The addresses of their value areas are compiled into running handlers, so
 * the maps are held from the first MAPS call until this module goes, which
 * no loaded update allows.
 */
#include <linux/bpf.h>
#include <linux/module.h>
#include <linux/threads.h>

#include "dynamos.h"

struct use_count {
	u64 entered;
	u64 exited;
};

/*
 * A processor of 32 bits counts the low word and then carries, perhaps after a
 * while and on another CPU. The low words alone are always right, modulo their
 * size, and no difference between them comes near that.
 */
static unsigned long use_word(const u64 *count)
{
	return READ_ONCE(*(const unsigned long *)count);
}

enum { POLICY, EDITIONS, USE, MUST_UPDATE, NR_MAPS };

struct map_shape {
	enum bpf_map_type type;
	u32 value_size;
	u32 max_entries;
	u32 flags;
};

/* Policy values are eight processes wide: a BPF array pads smaller ones to that. */
static const struct map_shape shapes[NR_MAPS] = {
	[POLICY] = { BPF_MAP_TYPE_ARRAY, 8, PID_MAX_LIMIT / 8, BPF_F_MMAPABLE },
	[EDITIONS] = { BPF_MAP_TYPE_ARRAY, DYNAMOS_CLASSES,
		       DYNAMOS_FUNCTIONS_MAX, BPF_F_MMAPABLE },
	[USE] = { BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(struct use_count),
		  DYNAMOS_FUNCTIONS_MAX * DYNAMOS_EDITIONS_MAX, 0 },
	[MUST_UPDATE] = { BPF_MAP_TYPE_ARRAY, sizeof(u64), DYNAMOS_FUNCTIONS_MAX,
			  BPF_F_MMAPABLE },
};

/* Written under redirect_lock, once. */
static struct bpf_map *maps[NR_MAPS];

/* Read by every redirection handler; set before any update can register. */
__visible u8 *dynamos_policy;
EXPORT_SYMBOL_GPL(dynamos_policy);

static struct bpf_array *array_of(int which)
{
	return container_of(maps[which], struct bpf_array, map);
}

static int map_check(const struct bpf_map *map, const struct map_shape *shape)
{
	if (map->map_type != shape->type)
		return -EPROTOTYPE;
	if (map->key_size != sizeof(u32))
		return -EKEYREJECTED;
	if (map->value_size != shape->value_size)
		return -EMSGSIZE;
	if (map->max_entries != shape->max_entries)
		return -EDOM;
	if ((map->map_flags & BPF_F_MMAPABLE) != shape->flags)
		return -EPROTO;
	return 0;
}

/**
 * maps_set() - check the four maps and hold them
 * @policy_fd: descriptor of the policy map
 * @editions_fd: descriptor of the editions map
 * @use_fd: descriptor of the use map
 * @must_update_fd: descriptor of the must_update map
 *
 * Return: 0, also when the same maps are held already; or the uapi's errno.
 */
int maps_set(int policy_fd, int editions_fd, int use_fd, int must_update_fd)
{
	const int fds[NR_MAPS] = { policy_fd, editions_fd, use_fd, must_update_fd };
	struct bpf_map *got[NR_MAPS] = {};
	int i, err = 0;

	lockdep_assert_held(&redirect_lock);
	for (i = 0; i < NR_MAPS && !err; i++) {
		got[i] = bpf_map_get(fds[i]);
		if (IS_ERR(got[i])) {
			got[i] = NULL;
			err = -EBADF;
		} else {
			err = map_check(got[i], &shapes[i]);
		}
	}
	if (!err && maps_ready()) {
		if (memcmp(got, maps, sizeof(maps)))
			err = -EBUSY;
	} else if (!err) {
		memcpy(maps, got, sizeof(maps));
		dynamos_policy = (u8 *)array_of(POLICY)->value;
		return 0;
	}
	for (i = 0; i < NR_MAPS; i++)
		if (got[i])
			bpf_map_put(got[i]);
	return err;
}

void maps_put(void)
{
	int i;

	for (i = 0; i < NR_MAPS; i++)
		if (maps[i])
			bpf_map_put(maps[i]);
}

bool maps_ready(void)
{
	return maps[USE];
}

void maps_ids(u32 id[4])
{
	int i;

	for (i = 0; i < NR_MAPS; i++)
		id[i] = maps[i] ? maps[i]->id : 0;
}

u8 *editions_row(u32 function)
{
	return (u8 *)array_of(EDITIONS)->value + function * DYNAMOS_CLASSES;
}

u64 *must_update(u32 function)
{
	return (u64 *)array_of(MUST_UPDATE)->value + function;
}

void __percpu *use_counter(u32 function, u32 edition)
{
	return array_of(USE)->pptrs[function * DYNAMOS_EDITIONS_MAX + edition];
}

void use_reset(u32 function, u32 edition)
{
	int cpu;

	for_each_possible_cpu(cpu)
		memset(per_cpu_ptr(use_counter(function, edition), cpu), 0,
		       sizeof(struct use_count));
}

/**
 * use_in_flight() - calls of one edition that have entered and not yet left
 * @function: the function's id
 * @edition: the edition's number
 *
 * Exits are summed before entries: a call that runs while we sum is then seen
 * too often rather than never.
 */
unsigned long use_in_flight(u32 function, u32 edition)
{
	struct use_count __percpu *use = use_counter(function, edition);
	unsigned long entered = 0, exited = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		exited += use_word(&per_cpu_ptr(use, cpu)->exited);
	smp_rmb(); /* orders the two sums; each CPU counts in program order */
	for_each_possible_cpu(cpu)
		entered += use_word(&per_cpu_ptr(use, cpu)->entered);
	return entered - exited;
}
