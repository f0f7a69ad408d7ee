/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What an update's adaptation handlers have, beside BPF's helpers and those of
 * bcc's maps that libbpf.h knows. They include no header of the kernel: see
 * DYNAMOS_CONSTANT() in kmod/update/dynamos_update.h.
 *
 * KERNEL_WORD: how many bytes a pointer or a long of the kernel has.
 */
#ifndef _DYNAMOS_ADAPT_H
#define _DYNAMOS_ADAPT_H

#ifndef BPF_LRU_HASH
#define BPF_LRU_HASH(name, key, value, entries) \
	BPF_TABLE("lru_hash", key, value, name, entries)
#endif

/* Members of the kernel's structures, by their address; 0 if it cannot be read. */
static inline __attribute__((always_inline)) u32 kernel_u32(u64 address)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static inline __attribute__((always_inline)) u64 kernel_u64(u64 address)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static inline __attribute__((always_inline)) u64 kernel_word(u64 address)
{
	return KERNEL_WORD == 8 ? kernel_u64(address) : kernel_u32(address);
}

#endif /* _DYNAMOS_ADAPT_H */
