/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows of local pods that leave the cluster take the address of the device they leave by. TCP, UDP, SCTP (which keeps
 * its port) and ICMP echo requests can; whatever else could not find back, and is dropped. */
#ifndef GATEHOUSE_MASQUERADE_H
#define GATEHOUSE_MASQUERADE_H

#include "identity.h"
#include "natmap.h"

/* Pods, services' backends and nodes are to see who asks. */
INLINE bool knows_pods(const struct address *address, bool ipv6)
{
	struct ipcache_key key = { .prefixlen = 128 };
	struct party party;

	__builtin_memcpy(&key.address, address, sizeof(key.address));
	if (LOOKUP(unmasqueraded, &key))
		return true;
	party_of_address(&party, address, ipv6);
	return party.identity == IDENTITY_HOST || party.identity == IDENTITY_REMOTE_NODE;
}

/* What a pod answers to somebody who asked it by its own address. */
INLINE bool answers_pod_flow(const struct packet *p)
{
	const struct conntrack *e = conntrack_at(&p->tuple, false);

	return e && e->flags & CT_REPLY;
}

/* Whether a flow that is not translated yet is to be. */
INLINE bool is_to_masquerade(const struct packet *p, const struct config *config)
{
	return config && config->features & FEATURE_MASQUERADE && !p->is_error && endpoint_of_address(&p->tuple.source) &&
	       !knows_pods(&p->tuple.destination, p->ipv6) && !answers_pod_flow(p);
}

/* Sets p->after but for the port, and p->nat_flags. */
INLINE enum drop_reason masquerade(struct packet *p, __u32 ifindex)
{
	const struct device *device = LOOKUP(devices, &ifindex);
	const struct address *own;
	bool is_echo = p->outer.protocol == (p->ipv6 ? PROTO_ICMPV6 : PROTO_ICMP) && p->icmp_type == (p->ipv6 ? 128 : 8);

	p->is_new = 1;
	if (!has_ports(p->tuple.protocol) && !is_echo)
		return DROP_UNSUPPORTED_PROTOCOL;
	if (!device)
		return DROP_NO_ROUTE;
	own = p->ipv6 ? &device->ipv6 : &device->ipv4;
	if (is_no_address(own))
		return DROP_NO_ROUTE;
	copy_address(&p->after.source, own);
	p->flags = CT_SOURCE;
	p->nat_flags = NAT_MASQUERADE;
	return DROP_NONE;
}

/* A packet of the node's own whose answers would be taken for those of a flow that is translated. */
INLINE bool is_tuple_taken(struct packet *p, const struct config *config)
{
	const struct nat *e;

	if (!has_own_port(config, p->tuple.source_port_be))
		return false;
	turn_round(&p->answer, &p->tuple);
	e = nat_at(&p->answer);
	return e && e->flags & NAT_REPLY && is_nat_live(p, e);
}

#endif
