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

INLINE void add_to_tally(__u32 tally)
{
	__u64 *count = LOOKUP(tallies, &tally);

	if (count)
		(*count)++;
}

#endif
