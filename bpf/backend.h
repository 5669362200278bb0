/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend of a frontend a new flow goes to. Knows of no packet: sockets ask, too. */
#ifndef GATEHOUSE_BACKEND_H
#define GATEHOUSE_BACKEND_H

#include "packet.h"

#define NANOSECONDS 1000000000ULL

INLINE struct service_value *frontend_at(const struct address *address, __u16 port_be, __u8 protocol)
{
	struct service_key key;

	copy_address(&key.address, address);
	key.port_be = port_be;
	key.protocol = protocol;
	key.pad = 0;
	return LOOKUP(services, &key);
}

/* agent/services/maglev.py computes the same. */
INLINE __u64 mix(__u64 hash, __u64 word_)
{
	hash = (hash ^ word_) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

/* What a Maglev table is asked with: the flow, or where clients keep their backend the client alone. */
INLINE __u32 maglev_hash(const struct service_value *s, const struct tuple *t, __u64 seed)
{
	__u64 hash = mix(mix(seed, ((const word *)&t->source)[0]), ((const word *)&t->source)[1]);

	if (s->affinity)
		return hash;
	hash = mix(mix(hash, ((const word *)&t->destination)[0]), ((const word *)&t->destination)[1]);
	return mix(hash, (__u64)t->source_port_be << 32 | (__u64)t->destination_port_be << 16 | t->protocol);
}

/* Whether a client may use the frontend at all. */
INLINE bool is_in_ranges(const struct service_value *s, const struct address *client)
{
	struct range_key key = { .prefixlen = RANGES_BITS + 128 };

	if (!s->ranges)
		return true;
	key.ranges_high_be = bpf_htonl(s->ranges >> 32);
	key.ranges_low_be = bpf_htonl(s->ranges);
	__builtin_memcpy(&key.address, client, sizeof(key.address));
	return LOOKUP(source_ranges, &key) != NULL;
}

/* The slot a Maglev table has for a hash; any slot where there is no table. */
INLINE __u32 slot_of(__u64 pool, __u32 count, __u32 flags, __u32 hash)
{
	__u32 element = 0, index;
	const __u64 *slots;
	void *table;

	if (!(flags & SERVICE_MAGLEV))
		return hash % count;
	table = LOOKUP(maglev, &pool);
	slots = table ? bpf_map_lookup_elem_((uintptr_t)table, &element) : NULL;
	if (!slots || !*slots)
		return hash % count;
	index = hash % (__u32)*slots;
	element = 1 + index / MAGLEV_LANES;
	slots = bpf_map_lookup_elem_((uintptr_t)table, &element);
	return slots ? (*slots >> (index % MAGLEV_LANES * 16) & 0xffff) % count : hash % count;
}

/* The backend this client had, if it is still to have it. */
INLINE bool kept_backend(const struct service_value *s, __u64 pool, const struct affinity_key *key,
			 struct backend_value *to)
{
	struct affinity_value *known = LOOKUP(affinity, (void *)key);
	struct member_key member = { .pool = pool };
	__u64 now_ns = bpf_ktime_get_coarse_ns();

	if (!known || known->used_ns + s->affinity_timeout_s * NANOSECONDS <= now_ns)
		return false;
	copy_address(&member.address, &known->address);
	member.port_be = known->port_be;
	if (!LOOKUP(members, &member))
		return false;
	known->used_ns = now_ns;
	copy_address(&to->address, &member.address);
	to->port_be = member.port_be;
	return true;
}

/* For a flow of `client`, which is inside the cluster (a pod, a node) or not. `hash`: any number, or maglev_hash.
 * The frontend's source ranges are the caller's to ask. */
INLINE enum drop_reason choose_backend(const struct service_value *s, bool inside, const struct address *client,
				       __u32 hash, struct backend_value *to)
{
	struct backend_key key = { .pool = inside ? s->pool_inside : s->pool_outside };
	__u32 count = inside ? s->count_inside : s->count_outside;
	struct affinity_key who = { .affinity = s->affinity };
	const struct backend_value *backend;
	struct affinity_value value = {};

	if (!count)
		return s->flags & (inside ? SERVICE_DROP_INSIDE : SERVICE_DROP_OUTSIDE) ? DROP_NO_LOCAL_BACKEND : DROP_NO_BACKEND;
	if (s->affinity) {
		copy_address(&who.client, client);
		if (kept_backend(s, key.pool, &who, to))
			return DROP_NONE;
	}
	key.slot = slot_of(key.pool, count, s->flags, hash);
	backend = LOOKUP(backends, &key);
	if (!backend)
		return DROP_NO_BACKEND;
	*to = *backend;
	if (s->affinity) {
		value.used_ns = bpf_ktime_get_coarse_ns();
		copy_address(&value.address, &to->address);
		value.port_be = to->port_be;
		if (UPDATE(affinity, &who, &value, BPF_ANY)) {
			add_to_tally(TALLY_AFFINITY_FULL);
			return DROP_AFFINITY_FULL;
		}
	}
	return DROP_NONE;
}

#endif
