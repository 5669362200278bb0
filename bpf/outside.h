/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a new flow that comes in by a device goes, if a frontend is meant. tc and XDP share it. */
#ifndef GATEHOUSE_OUTSIDE_H
#define GATEHOUSE_OUTSIDE_H

#include "backend.h"
#include "encrypt.h"
#include "natmap.h"

/* Of a ClusterIP, and of a loopback address, clients outside know nothing. */
INLINE const struct service_value *outside_frontend(const struct packet *p)
{
	const struct service_value *service = NULL;

	if (has_ports(p->tuple.protocol))
		service = frontend_at(&p->tuple.destination, p->tuple.destination_port_be, p->tuple.protocol);
	return service && !(service->flags & (SERVICE_CLUSTER_IP | SERVICE_LOOPBACK)) ? service : NULL;
}

/* A pod here, or this node itself. */
INLINE bool is_local(const struct address *address, bool ipv6)
{
	struct party party;

	if (endpoint_of_address(address))
		return true;
	party_of_address(&party, address, ipv6);
	return party.identity == IDENTITY_HOST;
}

/* WireGuard takes nothing that comes from neither a pod nor a node, and nothing is to go past it. */
INLINE bool needs_own_source(const struct address *backend)
{
	const struct config *config = config_of_encryption();

	return config && (config->features & FEATURE_STRICT || is_encrypted_towards(backend));
}

/* To a backend here its packets are only readdressed. To one elsewhere they go with this node's address, so that its
 * answers come back here, or with their own, so that it answers directly: it cannot do that to itself. */
INLINE __u16 way_to(const struct packet *p, const struct service_value *service, const struct address *backend)
{
	if (is_local(backend, p->ipv6))
		return 0;
	if (!(service->flags & SERVICE_DSR) || same_address(backend, &p->tuple.source) || needs_own_source(backend))
		return NAT_FORWARD;
	return NAT_DSR;
}

/* Sets p->after but for its source, and p->nat_flags. */
INLINE enum drop_reason choose_for_outside(struct packet *p, const struct service_value *service)
{
	struct backend_value backend = {};
	enum drop_reason reason;
	__u32 hash, zero = 0;
	const struct config *config = LOOKUP(config, &zero);
	bool inside;

	p->is_new = 1;
	p->flags = CT_SERVICE;
	party_of_address(&p->source, &p->tuple.source, p->ipv6);
	if (!is_in_ranges(service, &p->tuple.source))
		return DROP_SOURCE_RANGE;
	hash = service->flags & SERVICE_MAGLEV ? maglev_hash(service, &p->tuple, config ? config->hash_seed : 0)
					       : bpf_get_prandom_u32();
	inside = p->source.identity >= IDENTITY_CLUSTER_MIN && p->source.identity <= IDENTITY_CLUSTER_MAX;
	reason = choose_backend(service, inside, &p->tuple.source, hash, &backend);
	if (reason)
		return reason;
	if (is_ipv4_mapped(&backend.address) == p->ipv6)
		return DROP_NO_BACKEND;
	if (p->tuple.protocol == PROTO_SCTP && backend.port_be != p->tuple.destination_port_be)
		return DROP_SCTP_PORT;
	copy_address(&p->after.destination, &backend.address);
	p->after.destination_port_be = backend.port_be;
	p->nat_flags = way_to(p, service, &backend.address);
	return DROP_NONE;
}

#endif
