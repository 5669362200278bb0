/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP (RFC 826) and neighbour discovery (RFC 4861), between a pod on a veth that another CNI plugin made and its node. Other
 * pods have permanent entries instead. Nobody but the two ends sees these packets: each resolves for its own end alone. */
#ifndef GATEHOUSE_RESOLVE_H
#define GATEHOUSE_RESOLVE_H

#include "identity.h"

#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_TARGET_AT 8          /* from the start of the ICMPv6 header */
#define ND_HOP_LIMIT 255        /* it has crossed no router */

struct arp {
	__u16 hardware_be;
	__u16 protocol_be;
	__u16 sizes_be;
	__u16 operation_be;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

struct discovery { __u8 type; __u8 code; __u16 checksum; __u32 flags_be; struct address target; };

INLINE bool is_link_local(const struct address *a)
{
	return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

/* What the pod says of itself: its own address, in its own name. */
INLINE bool may_arp(struct __sk_buff *skb, const struct endpoint *ep, bool from_pod)
{
	struct arp arp;

	if (bpf_skb_load_bytes(skb, ETHERNET_SIZE, &arp, sizeof(arp)) || arp.hardware_be != bpf_htons(1) ||
	    arp.protocol_be != bpf_htons(ETHERTYPE_IPV4) || arp.sizes_be != bpf_htons(0x0604))
		return false;
	return !from_pod || (*(half *)arp.sender == *(const half *)&ep->ipv4.bytes[12] && *(half *)arp.sender);
}

/* Its own addresses are the one it has, and any link-local one: nothing is routed to these. */
INLINE bool may_discover(struct __sk_buff *skb, const struct packet *p, const struct endpoint *ep, bool from_pod)
{
	const struct header *h = &p->outer;
	struct discovery nd;
	__u8 hops;

	if (h->protocol != PROTO_ICMPV6 || h->is_fragment || h->l4 != ETHERNET_SIZE + 40 ||
	    bpf_skb_load_bytes(skb, ETHERNET_SIZE + 7, &hops, 1) || hops != ND_HOP_LIMIT ||
	    bpf_skb_load_bytes(skb, ETHERNET_SIZE + 40, &nd, sizeof(nd)) || nd.code ||
	    (nd.type != ND_SOLICITATION && nd.type != ND_ADVERTISEMENT))
		return false;
	if (!from_pod)
		return true;
	if (!same_address(&h->source, &ep->ipv6) && !is_link_local(&h->source))
		return false;
	return nd.type == ND_SOLICITATION || same_address(&nd.target, &ep->ipv6) || is_link_local(&nd.target);
}

/* Whether what would be dropped as DROP_LINK_CONTROL is such a packet, of a pod that needs them. */
INLINE bool is_resolution(struct __sk_buff *skb, const struct packet *p, bool from_pod)
{
	const struct endpoint *ep = endpoint_of_interface(skb);

	if (!ep || !(ep->flags & ENDPOINT_RESOLVES) || skb->vlan_present)
		return false;
	return p->ipv6 ? may_discover(skb, p, ep, from_pod) : may_arp(skb, ep, from_pod);
}

#endif
