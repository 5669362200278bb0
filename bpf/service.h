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
INLINE enum drop_reason service_select(struct packet *p, const struct service_value *service)
{
	struct backend_key key = { .pool = service->pool };
	__u32 count = service->count, start;
	bool found = false;

	if (!count)
		return DROP_NO_BACKEND;
	start = bpf_get_prandom_u32();
	for (__u32 i = 0; i < BACKEND_TRIES; i++) {
		struct backend_value *backend;

		asm volatile("" : "+r"(i)); /* count from 0, or the verifier does not see the loop's end */
		key.slot = (start + i) % count;
		backend = LOOKUP(backends, &key);
		if (!backend)
			continue;
		found = true;
		towards_backend(p, backend);
		if (!is_live_at(&p->answer, p->now_ns))
			break;
	}
	if (!found)
		return DROP_NO_BACKEND;
	if (p->tuple.protocol == PROTO_SCTP && p->after.destination_port_be != p->tuple.destination_port_be)
		return DROP_SCTP_PORT;
	return DROP_NONE;
}

/* Where a new flow goes: to a backend if its destination is a frontend, else where it says. */
INLINE enum drop_reason service_resolve(struct packet *p)
{
	const struct service_value *service = service_of(p);

	turn_round(&p->answer, &p->after);
	return service ? service_select(p, service) : DROP_NONE;
}

#endif
