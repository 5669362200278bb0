/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Service frontends: which backend a new flow goes to. Later packets follow conntrack. */
#ifndef GATEHOUSE_SERVICE_H
#define GATEHOUSE_SERVICE_H

#include "backend.h"
#include "proxy.h"

/* Nothing stands under p->answer, of either leg: sockets know no legs. */
INLINE bool is_answer_free(struct packet *p)
{
	if (conntrack_at(&p->answer, false))
		return false;
	copy_tuple(&p->other, &p->answer);
	p->other.leg ^= 1;
	return !conntrack_at(&p->other, false);
}

/* Sets p->after and p->answer to another source port, under which no entry stands, not even of a flow that is over: the
 * fewer ways there are through the loop, the fewer the verifier walks, that many times. False: none was found. */
INLINE bool another_port(struct packet *p)
{
	__u64 zero = 0;
	const struct config *c = LOOKUP(config, &zero);
	__u32 min = c ? c->port_min : 0, ports = c ? c->port_max - min + 1 : 0;

	if (!min || (__s32)ports <= 0)
		return false;
	for (__u32 i = 0; i < PORT_TRIES; i++) {
		asm volatile("" : "+r"(i)); /* count from 0, or the verifier does not see the loop's end */
		p->answer.destination_port_be = bpf_htons(min + bpf_get_prandom_u32() % ports);
		if (is_answer_free(p)) {
			p->after.source_port_be = p->answer.destination_port_be;
			p->flags |= CT_SOURCE;
			return true;
		}
	}
	return false;
}

/* Whether a proxy has a connection in this pod's name from the same port to the same end: another proxy there would take the
 * one for the other. (Of what a proxy sends on, to_pod asks the same: is_port_in_use.) */
INLINE bool is_port_lent(struct packet *p)
{
	const struct conntrack *e;

	if (!has_proxies())
		return false;
	copy_tuple(&p->other, &p->answer);
	p->other.leg = 1;
	e = conntrack_at(&p->other, false);
	if (!e)
		return false;
	turn_round(&p->other, &e->after);
	return is_live(e, &p->other, p->now_ns, false);
}

/* Sets p->answer, under which no other flow's answers come; where one's do, this flow gets another source port. */
INLINE enum drop_reason find_answer(struct packet *p, __u32 ifindex, const struct conntrack *dead,
				    struct conntrack **dead_answer)
{
	__u8 protocol = p->tuple.protocol;

	turn_round(&p->answer, &p->after);
	if (!is_answer_taken(p, ifindex, dead, dead_answer) && !is_port_lent(p))
		return DROP_NONE;
	*dead_answer = NULL;
	return (protocol == PROTO_TCP || protocol == PROTO_UDP) && another_port(p) ? DROP_NONE : DROP_TUPLE_TAKEN;
}

/* A pod that is its own backend would take an answer to its own address for its own packet. */
INLINE void towards_backend(struct packet *p, const struct backend_value *backend)
{
	copy_address(&p->after.source, &p->tuple.source);
	copy_address(&p->after.destination, &backend->address);
	p->after.destination_port_be = backend->port_be;
	if (same_address(&p->tuple.source, &backend->address)) {
		p->flags |= CT_SOURCE;
		hairpin_address(&p->after.source, p->ipv6);
	}
}

/* Sets p->after: to a backend of the frontend, for a pod. */
INLINE enum drop_reason service_select(struct packet *p, const struct service_value *service)
{
	const struct config *config;
	enum drop_reason reason;
	__u64 zero = 0;
	__u32 hash;

	ON_STACK(backend_value, backend);
	p->flags = CT_SERVICE; /* events of drops name the frontend, too */
	if (!is_in_ranges(service, &p->tuple.source))
		return DROP_SOURCE_RANGE;
	if (service->flags & SERVICE_MAGLEV) {
		config = LOOKUP(config, &zero);
		hash = maglev_hash(service, &p->tuple, config ? config->hash_seed : 0);
	} else {
		hash = bpf_get_prandom_u32();
	}
	reason = choose_backend(service, true, &p->tuple.source, hash, backend);
	if (reason)
		return reason;
	if (is_ipv4_mapped(&backend->address) == p->ipv6)
		return DROP_NO_BACKEND;
	towards_backend(p, backend);
	if (p->tuple.protocol == PROTO_SCTP && backend->port_be != p->tuple.destination_port_be)
		return DROP_SCTP_PORT;
	return DROP_NONE;
}

/* Where a new flow goes: to a backend if its destination is a frontend, else where it says. Sets p->after, p->answer. */
INLINE enum drop_reason service_resolve(struct packet *p, __u32 ifindex, const struct conntrack *dead,
					struct conntrack **dead_answer)
{
	const struct service_value *service = NULL;
	enum drop_reason reason;

	if (has_ports(p->tuple.protocol))
		service = frontend_at(&p->tuple.destination, p->tuple.destination_port_be, p->tuple.protocol);
	if (service && !(service->flags & SERVICE_LOOPBACK)) {
		reason = service_select(p, service);
		if (reason)
			return reason;
	}
	return find_answer(p, ifindex, dead, dead_answer);
}

#endif
