/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sending packets on to other machines, past the stack. */
#ifndef GATEHOUSE_FORWARD_H
#define GATEHOUSE_FORWARD_H

#include "parse.h"

#define FAMILY_IPV4 2           /* AF_INET, AF_INET6 */
#define FAMILY_IPV6 10

#define IPV4_TTL_AT 8
#define IPV6_HOP_LIMIT_AT 7
#define TCP_LENGTH_AT 12

/* Asks the routes for p->after's destination, as for a packet of `size` bytes from its IP header on. `context` is the
 * program's. Whether the next hop's link address is known is not asked: `result` tells. */
INLINE enum drop_reason find_route(void *context, const struct packet *p, __u32 ifindex, __u32 size,
				   struct bpf_fib_lookup *route, long *result)
{
	__builtin_memset(route, 0, sizeof(*route));
	route->ifindex = ifindex;
	route->l4_protocol = p->tuple.protocol;
	route->sport = p->tuple.source_port_be;
	route->dport = p->after.destination_port_be;
	route->tot_len = size;
	if (p->ipv6) {
		route->family = FAMILY_IPV6;
		__builtin_memcpy(route->ipv6_src, &p->tuple.source, sizeof(route->ipv6_src));
		__builtin_memcpy(route->ipv6_dst, &p->after.destination, sizeof(route->ipv6_dst));
	} else {
		route->family = FAMILY_IPV4;
		route->ipv4_src = *(const half *)&p->tuple.source.bytes[12];
		route->ipv4_dst = *(const half *)&p->after.destination.bytes[12];
	}
	*result = bpf_fib_lookup(context, route, sizeof(*route), 0);
	if (*result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return DROP_TOO_BIG;
	return *result == BPF_FIB_LKUP_RET_SUCCESS || *result == BPF_FIB_LKUP_RET_NO_NEIGH ? DROP_NONE : DROP_NO_ROUTE;
}

/* What this node calls itself towards that route. Returns whether it has an address of the family. */
INLINE bool own_address(struct address *to, __u32 ifindex, bool ipv6)
{
	const struct device *device = LOOKUP(devices, &ifindex);
	const struct address *own = NULL;
	__u32 zero = 0;
	const struct config *config;

	if (device)
		own = ipv6 ? &device->ipv6 : &device->ipv4;
	if (!own || is_no_address(own)) {
		config = LOOKUP(config, &zero);
		if (!config)
			return false;
		own = ipv6 ? &config->ipv6 : &config->ipv4;
	}
	copy_address(to, own);
	return !is_no_address(own);
}

/* Bytes on the wire from the IP header on: of each segment, where the packet stands for many. */
INLINE __u32 wire_size(struct __sk_buff *skb, const struct packet *p)
{
	__u32 headers = p->outer.l4 - p->outer.jumbo_size - ETHERNET_SIZE + UDP_SIZE;
	__u8 length;

	if (!skb->gso_size)
		return skb->len - ETHERNET_SIZE;
	if (p->tuple.protocol == PROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->outer.l4 + TCP_LENGTH_AT, &length, 1))
			length = 0;
		headers += (length >> 4) * 4 - UDP_SIZE;
	}
	return headers + skb->gso_size;
}

INLINE bool has_hops_left(struct __sk_buff *skb, const struct packet *p)
{
	__u8 hops;

	return !bpf_skb_load_bytes(skb, ETHERNET_SIZE + (p->ipv6 ? IPV6_HOP_LIMIT_AT : IPV4_TTL_AT), &hops, 1) && hops > 1;
}

INLINE bool take_hop(struct __sk_buff *skb, const struct packet *p)
{
	struct ipv4_header *ipv4 = (void *)(long)skb->data + ETHERNET_SIZE;
	struct ipv6_header *ipv6 = (void *)(long)skb->data + ETHERNET_SIZE;
	void *end = (void *)(long)skb->data_end;

	if (p->ipv6) {
		if ((void *)(ipv6 + 1) > end)
			return false;
		ipv6->hop_limit--;
		bpf_csum_update(skb, (__u16)~bpf_htons(1)); /* of the word that ends with it */
		return true;
	}
	if ((void *)(ipv4 + 1) > end)
		return false;
	ipv4->ttl--;
	ipv4->checksum = fold((__u32)(__u16)~ipv4->checksum + (__u16)~bpf_htons(0x100)); /* RFC 1624 */
	return true;
}

/* bcc 0.26 declares it without its third argument. */
static long (*redirect_to_neighbour)(__u32 ifindex, struct bpf_redir_neigh *next, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* The neighbour's link address is found, or asked for, on the way. */
INLINE int send_on(const struct bpf_fib_lookup *route)
{
	struct bpf_redir_neigh next = { .nh_family = route->family };

	__builtin_memcpy(next.ipv6_nh, route->ipv6_dst, sizeof(next.ipv6_nh)); /* or IPv4's, in the same place */
	return redirect_to_neighbour(route->ifindex, &next, sizeof(next), 0);
}

#endif
