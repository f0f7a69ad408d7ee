/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bcc gives the programs in this folder, for libbpf: see Kbuild. The
 * loader sets each map's number of entries, and puts the pinned map in the place
 * of one that is to be pinned (dynamos_ng/engine.py).
 *
 * DYNAMOS_ADAPT: for an update's adaptation handlers, which say their maps' room
 * themselves.
 */
#ifndef _DYNAMOS_LIBBPF_H
#define _DYNAMOS_LIBBPF_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;

#ifdef DYNAMOS_ADAPT
#define MAP_ROOM(entries) entries
#else
#define MAP_ROOM(entries) 1
#endif

#define MAP(kind, name, key_type, value_type, entries)		\
	struct {						\
		__uint(type, BPF_MAP_TYPE_##kind);		\
		__uint(max_entries, MAP_ROOM(entries));		\
		__type(key, key_type);				\
		__type(value, value_type);			\
	} name SEC(".maps")

#define BPF_ARRAY(name, value, entries) \
	MAP(ARRAY, name, u32, value, entries)
#define BPF_PERCPU_ARRAY(name, value, entries) \
	MAP(PERCPU_ARRAY, name, u32, value, entries)
#define BPF_HASH(name, key, value, entries) \
	MAP(HASH, name, key, value, entries)
#define BPF_LRU_HASH(name, key, value, entries) \
	MAP(LRU_HASH, name, key, value, entries)
#define BPF_TABLE_PINNED(kind, key, value, name, entries, pin) \
	MAP(HASH, name, key, value, entries)
#define BPF_STACK_TRACE(name, entries) \
	MAP(STACK_TRACE, name, u32, struct { u64 ip[127]; }, entries)
#define BPF_RINGBUF_OUTPUT(name, pages)				\
	struct {						\
		__uint(type, BPF_MAP_TYPE_RINGBUF);		\
		__uint(max_entries, 4096);			\
	} name SEC(".maps")

#define lookup(map, key)		bpf_map_lookup_elem(map, key)
#define update(map, key, value)		bpf_map_update_elem(map, key, value, BPF_ANY)
#define delete(map, key)		bpf_map_delete_elem(map, key)
#define get_stackid(map, ctx, flags)	bpf_get_stackid(ctx, map, flags)
#define ringbuf_output(map, data, size, flags) \
	bpf_ringbuf_output(map, data, size, flags)

static __always_inline void *lookup_or_try_init(void *map, const void *key,
						const void *value)
{
	void *found = lookup(map, key);

	if (found)
		return found;
	bpf_map_update_elem(map, key, value, BPF_NOEXIST);
	return lookup(map, key);
}

/* The first and only variable of .rodata. */
const volatile struct {
	u32 task_pid, task_tgid, task_signal, signal_live, return_value;
} offsets = {};

#define TASK_PID	offsets.task_pid
#define TASK_TGID	offsets.task_tgid
#define TASK_SIGNAL	offsets.task_signal
#define SIGNAL_LIVE	offsets.signal_live
#define RETURN_VALUE	offsets.return_value

char LICENSE[] SEC("license") = "GPL";

#pragma clang section text = "programs"

#endif /* _DYNAMOS_LIBBPF_H */
