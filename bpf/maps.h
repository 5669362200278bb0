/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Maps are created and pinned by user space, which passes each one's file descriptor as FD_<name>. bcc only compiles
 * and loads: it can call no function of ours, so all are inlined, and has no global data.
 */
#ifndef GATEHOUSE_MAPS_H
#define GATEHOUSE_MAPS_H

#define INLINE static inline __attribute__((always_inline))

#define MAP(name) ((uintptr_t)bpf_pseudo_fd(1, FD_##name))
#define LOOKUP(name, key) bpf_map_lookup_elem_(MAP(name), key)
#define UPDATE(name, key, value, flags) bpf_map_update_elem_(MAP(name), key, value, flags)
#define DELETE(name, key) bpf_map_delete_elem_(MAP(name), key)

/* Addresses, tuples and keys are bytes to the compiler; all of those it meets here start at a multiple of 8. */
typedef __u64 __attribute__((may_alias)) word;
typedef __u32 __attribute__((may_alias)) half;

/* A struct for a helper, zeroed by whole words: to the verifier, what is written to the stack in smaller pieces does not
 * replace what stood there before, and it walks on from two states that differ in nothing else. */
#define ON_STACK(type, name) \
	word name##_words[(sizeof(struct type) + 7) / 8]; \
	struct type *const name = (struct type *)name##_words; \
	_Pragma("unroll") for (int i_ = 0; i_ < sizeof(name##_words) / 8; i_++) ((volatile word *)name##_words)[i_] = 0

INLINE void add_to_tally(__u32 tally)
{
	__u64 *count = LOOKUP(tallies, &tally);

	if (count)
		(*count)++;
}

#endif
