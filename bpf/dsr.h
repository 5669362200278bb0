/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Direct server return: a packet goes on to a backend on another node with its client's address, and carries the
 * frontend's, in whose name that node answers: in an IPv4 option, or an option in an IPv6 destination options header,
 * of the types RFC 4727 keeps for experiments. Nodes that do not know them skip them; that of IPv4 is copied into
 * fragments. TCP carries it until the client has had an answer (a SYN fits any MTU), all else in each packet: a node
 * that does not see the answers cannot know that an earlier packet arrived.
 */
#ifndef GATEHOUSE_DSR_H
#define GATEHOUSE_DSR_H

#include "nat.h"
#include "outside.h"

#define DSR_IPV4_TYPE 0x9e
#define DSR_IPV6_TYPE 0x1e
#define OPTION_PADN 1

struct dsr_ipv4 {
	__u8 type;
	__u8 size;
	__u16 port_be;
	__u32 address;
};

/* A whole extension header. */
struct dsr_ipv6 {
	__u8 next;
	__u8 length;            /* in units of 8 bytes, the first not counted */
	__u8 type;
	__u8 size;              /* of what follows, padding not counted */
	__u32 address[4];
	__u16 port_be;
	__u8 pad_type;
	__u8 pad_size;
};

#define DSR_IPV6_LENGTH (sizeof(struct dsr_ipv6) / 8 - 1)
#define DSR_IPV6_SIZE (sizeof(struct dsr_ipv6) - 6)

INLINE __u32 dsr_size(bool ipv6)
{
	return ipv6 ? sizeof(struct dsr_ipv6) : sizeof(struct dsr_ipv4);
}

/* Whether the frontend is to be named in the packet. */
INLINE bool needs_dsr_option(const struct packet *p)
{
	return p->nat_flags & NAT_DSR && !p->is_reply && !p->is_error && !p->outer.fragment_offset &&
	       (p->tuple.protocol != PROTO_TCP || p->is_new || p->tcp_flags & TCP_SYN);
}

/* As the first option there is. */
INLINE bool add_dsr_ipv4(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_ipv4 option = {
		.type = DSR_IPV4_TYPE,
		.size = sizeof(option),
		.port_be = p->tuple.destination_port_be,
		.address = *(const half *)&p->tuple.destination.bytes[12],
	};
	__u32 before[3] = {}, after[3];
	__u8 *first = (__u8 *)&after[0];

	if (bpf_skb_load_bytes(skb, ETHERNET_SIZE, before, 4))
		return false;
	after[0] = before[0];
	if ((*first & 15) + sizeof(option) / 4 > 15)
		return false;
	*first += sizeof(option) / 4;
	*(__u16 *)(first + 2) = bpf_htons(bpf_ntohs(*(__u16 *)(first + 2)) + sizeof(option));
	__builtin_memcpy(&after[1], &option, sizeof(option));
	return !bpf_skb_adjust_room(skb, sizeof(option), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       !bpf_skb_store_bytes(skb, ETHERNET_SIZE, &after[0], 4, 0) &&
	       !bpf_skb_store_bytes(skb, ETHERNET_SIZE + IPV4_SIZE, &after[1], sizeof(option), 0) &&
	       !bpf_l3_csum_replace(skb, ETHERNET_SIZE + IPV4_CHECKSUM_AT, 0, difference(before, after, 3), 0);
}

/* Length and next header of the IPv6 header, with the bytes that come or go behind it. */
INLINE bool store_ipv6_next(struct __sk_buff *skb, __u8 next, int more)
{
	__u8 place[3];

	if (bpf_skb_load_bytes(skb, ETHERNET_SIZE + 4, place, sizeof(place)))
		return false;
	*(__u16 *)place = bpf_htons(bpf_ntohs(*(__u16 *)place) + more);
	place[2] = next;
	return !bpf_skb_store_bytes(skb, ETHERNET_SIZE + 4, place, sizeof(place), BPF_F_RECOMPUTE_CSUM);
}

/* Behind the IPv6 header itself, where hop-by-hop options alone may not be pushed back (RFC 8200, 4.1). */
INLINE bool add_dsr_ipv6(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_ipv6 option = {
		.length = DSR_IPV6_LENGTH,
		.type = DSR_IPV6_TYPE,
		.size = DSR_IPV6_SIZE,
		.port_be = p->tuple.destination_port_be,
		.pad_type = OPTION_PADN,
	};

	__builtin_memcpy(option.address, &p->tuple.destination, sizeof(option.address));
	return !bpf_skb_load_bytes(skb, ETHERNET_SIZE + 6, &option.next, 1) && option.next != EXTENSION_HOP_BY_HOP &&
	       !bpf_skb_adjust_room(skb, sizeof(option), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       store_ipv6_next(skb, EXTENSION_DESTINATION, sizeof(option)) &&
	       !bpf_skb_store_bytes(skb, ETHERNET_SIZE + IPV6_SIZE, &option, sizeof(option), BPF_F_RECOMPUTE_CSUM);
}

/* After the translation. */
INLINE enum drop_reason add_dsr_option(struct __sk_buff *skb, const struct packet *p)
{
	return (p->ipv6 ? add_dsr_ipv6(skb, p) : add_dsr_ipv4(skb, p)) ? DROP_NONE : DROP_TRANSLATION;
}

/* The frontend a packet names, as destination of p->other; false: it names none. */
INLINE bool read_dsr_option(struct __sk_buff *skb, struct packet *p)
{
	struct dsr_ipv4 ipv4;
	struct dsr_ipv6 ipv6;

	if (p->ipv6) {
		if (bpf_skb_load_bytes(skb, ETHERNET_SIZE + 6, &ipv6.next, 1) || ipv6.next != EXTENSION_DESTINATION ||
		    bpf_skb_load_bytes(skb, ETHERNET_SIZE + IPV6_SIZE, &ipv6, sizeof(ipv6)) ||
		    ipv6.length != DSR_IPV6_LENGTH || ipv6.type != DSR_IPV6_TYPE || ipv6.size != DSR_IPV6_SIZE)
			return false;
		__builtin_memcpy(&p->other.destination, ipv6.address, sizeof(ipv6.address));
		p->other.destination_port_be = ipv6.port_be;
		return true;
	}
	if (p->outer.l4 < p->outer.at + IPV4_SIZE + sizeof(ipv4) ||
	    bpf_skb_load_bytes(skb, ETHERNET_SIZE + IPV4_SIZE, &ipv4, sizeof(ipv4)) || ipv4.type != DSR_IPV4_TYPE ||
	    ipv4.size != sizeof(ipv4))
		return false;
	map_ipv4(&p->other.destination, ipv4.address);
	p->other.destination_port_be = ipv4.port_be;
	return true;
}

INLINE bool strip_dsr_ipv4(struct __sk_buff *skb)
{
	__u32 before[3], after[3] = {};
	__u8 *first = (__u8 *)&after[0];

	if (bpf_skb_load_bytes(skb, ETHERNET_SIZE, before, 4) ||
	    bpf_skb_load_bytes(skb, ETHERNET_SIZE + IPV4_SIZE, &before[1], 8))
		return false;
	after[0] = before[0];
	*first -= sizeof(struct dsr_ipv4) / 4;
	*(__u16 *)(first + 2) = bpf_htons(bpf_ntohs(*(__u16 *)(first + 2)) - sizeof(struct dsr_ipv4));
	/* What a device has summed loses the option; the rest of the header makes up for it. */
	bpf_csum_update(skb, (__u16)~fold(fold_to_32((__u64)before[1] + before[2])));
	return !bpf_skb_adjust_room(skb, -(int)sizeof(struct dsr_ipv4), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       !bpf_skb_store_bytes(skb, ETHERNET_SIZE, &after[0], 4, 0) &&
	       !bpf_l3_csum_replace(skb, ETHERNET_SIZE + IPV4_CHECKSUM_AT, 0, difference(before, after, 3), 0);
}

INLINE bool strip_dsr_ipv6(struct __sk_buff *skb)
{
	__u8 next;

	return !bpf_skb_load_bytes(skb, ETHERNET_SIZE + IPV6_SIZE, &next, 1) &&
	       !bpf_skb_adjust_room(skb, -(int)sizeof(struct dsr_ipv6), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO) &&
	       store_ipv6_next(skb, next, -(int)sizeof(struct dsr_ipv6));
}

/* The client has ended the earlier flow of this tuple: policy has seen it, while of DSR no entry here does. */
INLINE bool was_ended(const struct packet *p)
{
	const struct conntrack *e = conntrack_at(&p->tuple, false);

	return e && e->flags & (CT_FIN | CT_CLOSED) && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Answers of this flow will take the frontend's address: p->other's destination, asked for by p->tuple's source. */
INLINE enum drop_reason remember_dsr(struct packet *p, __u32 ifindex)
{
	struct nat *known;

	turn_round(&p->answer, &p->tuple);
	nat_prepare(p, ifindex, NAT_REPLY | NAT_DSR);
	turn_round(&p->nat_entry.after, &p->tuple);
	copy_address(&p->nat_entry.after.source, &p->other.destination);
	p->nat_entry.after.source_port_be = p->other.destination_port_be;
	known = nat_at(&p->answer);
	if (known && !is_begun_anew(p, known) && !was_ended(p) && is_nat_live(p, known)) {
		if (!same_address(&known->after.source, &p->nat_entry.after.source) ||
		    known->after.source_port_be != p->nat_entry.after.source_port_be)
			return DROP_TUPLE_TAKEN;
		known->expires_ns = p->now_ns + nat_timeout_ns(p->tuple.protocol, known->flags);
		return DROP_NONE;
	}
	return UPDATE(nat, &p->answer, &p->nat_entry, BPF_ANY) ? DROP_NAT_FULL : DROP_NONE;
}

INLINE const struct service_value *node_port_at(const struct address *own, const struct packet *p)
{
	const struct service_value *service = frontend_at(own, p->other.destination_port_be, p->tuple.protocol);

	return service && service->flags & SERVICE_NODE_PORT ? service : NULL;
}

/* A node port is open at each node's own addresses: where another node's is named, this node's stands for it. */
INLINE const struct service_value *named_frontend(const struct packet *p, __u32 ifindex)
{
	const struct address *named = &p->other.destination;
	const struct service_value *service = frontend_at(named, p->other.destination_port_be, p->tuple.protocol);
	const struct device *device = LOOKUP(devices, &ifindex);
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);
	struct party party;

	if (service || !device || !config)
		return service;
	party_of_address(&party, named, p->ipv6);
	if (party.identity != IDENTITY_REMOTE_NODE)
		return NULL;
	service = node_port_at(p->ipv6 ? &device->ipv6 : &device->ipv4, p);
	return service ? service : node_port_at(p->ipv6 ? &config->ipv6 : &config->ipv4, p);
}

/* A packet for a pod of this node or the node itself, sent on by another node. Who may be named are frontends that
 * answer directly: nobody outside can have a pod speak in any other name. */
INLINE enum drop_reason accept_dsr(struct __sk_buff *skb, struct packet *p)
{
	const struct service_value *service;
	enum drop_reason reason;

	if (p->is_error || !has_ports(p->tuple.protocol) || !read_dsr_option(skb, p))
		return DROP_NONE;
	service = named_frontend(p, skb->ifindex);
	if (!service || !(service->flags & SERVICE_DSR) || !is_local(&p->tuple.destination, p->ipv6))
		return DROP_NONE;
	p->is_new = 1;
	reason = remember_dsr(p, skb->ifindex);
	if (reason)
		return reason;
	p->flags = CT_SERVICE;
	return (p->ipv6 ? strip_dsr_ipv6(skb) : strip_dsr_ipv4(skb)) ? DROP_NONE : DROP_TRANSLATION;
}

#endif
