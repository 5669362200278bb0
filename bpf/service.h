/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Service frontends: which backend a new flow goes to. Later packets follow conntrack. */
#ifndef GATEHOUSE_SERVICE_H
#define GATEHOUSE_SERVICE_H

#include "conntrack.h"

INLINE struct service_value *service_of(const struct packet *p)
{
	struct service_key key;

	if (!has_ports(p->tuple.protocol))
		return NULL;
	copy_address(&key.address, &p->tuple.destination);
	key.port_be = p->tuple.destination_port_be;
	key.protocol = p->tuple.protocol;
	key.pad = 0;
	return LOOKUP(services, &key);
}

/* A pod that is its own backend would take an answer to its own address for its own packet. */
INLINE void towards_backend(struct packet *p, const struct backend_value *backend)
{
	p->flags = CT_SERVICE;
	copy_address(&p->after.source, &p->tuple.source);
	copy_address(&p->after.destination, &backend->address);
	p->after.destination_port_be = backend->port_be;
	if (same_address(&p->tuple.source, &backend->address)) {
		p->flags |= CT_HAIRPIN;
		hairpin_address(&p->after.source, p->ipv6);
	}
	turn_round(&p->answer, &p->after);
}

/* Sets p->after and p->answer. Tries the next backend where the client already has a flow to one from the same port. */
INLINE enum drop_reason service_select(struct packet *p, const struct service_value *service, __u32 ifindex,
				       const struct conntrack *dead, struct conntrack **dead_answer)
{
	enum drop_reason reason = DROP_NO_BACKEND;
	struct backend_key key = { .pool = service->pool };
	__u32 count = service->count, start;

	if (!count)
		return DROP_NO_BACKEND;
	start = bpf_get_prandom_u32();
	for (__u32 i = 0; i < BACKEND_TRIES; i++) {
		struct backend_value *backend;

		asm volatile("" : "+r"(i)); /* count from 0, or the verifier does not see the loop's end */
		key.slot = (start + i) % count;
		backend = LOOKUP(backends, &key);
		if (!backend || is_ipv4_mapped(&backend->address) == p->ipv6)
			continue;
		towards_backend(p, backend);
		if (p->tuple.protocol == PROTO_SCTP && backend->port_be != p->tuple.destination_port_be)
			return DROP_SCTP_PORT;
		if (!is_answer_taken(p, ifindex, dead, dead_answer))
			return DROP_NONE;
		reason = DROP_TUPLE_TAKEN;
	}
	return reason;
}

/* Where a new flow goes: to a backend if its destination is a frontend, else where it says. */
INLINE enum drop_reason service_resolve(struct packet *p, __u32 ifindex, const struct conntrack *dead,
					struct conntrack **dead_answer)
{
	const struct service_value *service = service_of(p);

	if (service)
		return service_select(p, service, ifindex, dead, dead_answer);
	turn_round(&p->answer, &p->after);
	return is_answer_taken(p, ifindex, dead, dead_answer) ? DROP_TUPLE_TAKEN : DROP_NONE;
}

#endif
