/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which packets that leave the node by one of its devices go by WireGuard instead. */
#ifndef GATEHOUSE_STEER_H
#define GATEHOUSE_STEER_H

#include "backend.h"
#include "encrypt.h"

/* What a pod answers to a node whose packets came encrypted: from_pod has marked it, or, where a proxy answers in the pod's
 * name, its entry tells. */
INLINE bool answers_encrypted(const struct __sk_buff *skb, const struct packet *p)
{
	const struct conntrack *e;

	if (has_mark(skb, MARK_ENCRYPT))
		return true;
	e = conntrack_at(&p->tuple, false);
	return e && e->flags & CT_REPLY && e->flags & CT_ENCRYPTED;
}

/* A node port of another node may lead to a pod there: it is open here under the same number. */
INLINE bool is_node_port(const struct packet *p, __u16 port_be, const struct config *config)
{
	const struct service_value *service;

	if (p->is_error || !has_ports(p->tuple.protocol))
		return false;
	service = frontend_at(p->ipv6 ? &config->ipv6 : &config->ipv4, port_be, p->tuple.protocol);
	return service && service->flags & SERVICE_NODE_PORT;
}

/* A pod's packet to another node. */
INLINE bool is_private_to_node(const struct __sk_buff *skb, const struct packet *p, const struct config *config)
{
	return config->features & FEATURE_NODE_ENCRYPTION || answers_encrypted(skb, p) ||
	       is_node_port(p, p->tuple.destination_port_be, config);
}

/* What the node itself says to another's pod: an error, which quotes what came encrypted; or that a node port, which is
 * asked encrypted, has nobody. */
INLINE bool is_private_to_pod(const struct packet *p, const struct config *config)
{
	return config->features & FEATURE_NODE_ENCRYPTION || p->is_error ||
	       is_node_port(p, p->tuple.source_port_be, config);
}

/* After all else, when the packet is as it is to leave. `forwards`: this node sends it on to a backend or from one. A TC
 * action, PASS if it is to go its way, or minus a drop reason. Uses p->other. */
INLINE int steer(struct __sk_buff *skb, struct packet *p, bool forwards)
{
	const struct config *config = config_of_encryption();
	bool between_pods, is_ours = false;
	__u32 from, to;

	if (!config || has_mark(skb, MARK_WIREGUARD) || !read_ends(skb, p))
		return PASS;
	to = whose(&p->other.destination);
	if (!(to & (ENCRYPTION_PODS | ENCRYPTION_PEER_NODE)))
		return PASS;
	from = whose_end(&p->other.source);
	if (p->flags || p->is_error) /* whose it was before it was translated, or whose packet it quotes */
		from |= whose(&p->tuple.source) & ENCRYPTION_PODS;
	between_pods = to & ENCRYPTION_PODS && from & ENCRYPTION_PODS;
	if (to & ENCRYPTION_OWN_PODS) /* a pod that is gone: nobody out there is meant */
		return between_pods && !endpoint_of_address(&p->other.destination) ? -DROP_UNENCRYPTED : PASS;
	if (to & ENCRYPTION_PEER_PODS)
		is_ours = from & ENCRYPTION_OWN_PODS ||
			  (from & ENCRYPTION_OWN_NODE && (forwards || between_pods || is_private_to_pod(p, config)));
	else if (to & ENCRYPTION_PEER_NODE && from & ENCRYPTION_OWN_PODS)
		is_ours = is_private_to_node(skb, p, config);
	if (is_ours && to & ENCRYPTION_READY && config->wireguard_ifindex && !is_tag(skb->protocol))
		return bpf_redirect(config->wireguard_ifindex, 0);
	if (!is_ours && !between_pods)
		return PASS;
	if (config->features & FEATURE_STRICT)
		return -DROP_UNENCRYPTED;
	if (between_pods)
		count_plaintext(skb);
	return PASS;
}

#endif
