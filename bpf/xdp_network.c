/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* XDP on a device of the node: from_network's work for the packets that only pass through this node, TCP and UDP without
 * options or extension headers, before the kernel has made anything of them. All else goes on to from_network as it
 * came, with its flow's entries made if it has a backend here. */
#include "dsr.h"
#include "forward.h"

INLINE bool is_for(const struct device *device, const struct ethernet_addresses *ethernet)
{
	const __u8 *mac = device->mac, *to = ethernet->destination;

	return mac[0] == to[0] && mac[1] == to[1] && mac[2] == to[2] && mac[3] == to[3] && mac[4] == to[4] && mac[5] == to[5];
}

/* Plain TCP or UDP to this device. */
INLINE bool parse_frame(struct xdp_md *context, struct packet *p)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethernet_addresses *ethernet = data;
	__u16 *type_be = (void *)(ethernet + 1);
	__u32 ifindex = context->ingress_ifindex;
	const struct device *device = LOOKUP(devices, &ifindex);

	if (!device || (void *)(type_be + 1) > end || !is_for(device, ethernet))
		return false;
	p->ipv6 = *type_be == bpf_htons(ETHERTYPE_IPV6);
	if (p->ipv6 ? !parse_plain_ipv6(p, data + ETHERNET_SIZE, end)
		    : *type_be != bpf_htons(ETHERTYPE_IPV4) || !parse_plain_ipv4(p, data + ETHERNET_SIZE, end))
		return false;
	p->outer.fragment_offset = 0;
	p->outer.more_fragments = 0;
	copy_tuple(&p->after, &p->tuple);
	return p->tuple.protocol == PROTO_TCP || p->tuple.protocol == PROTO_UDP;
}

/* A device of the node that XDP can send by. A tunnel, which alone has no address, takes no frames from it. */
INLINE bool is_link(__u32 ifindex)
{
	const struct device *device = LOOKUP(devices, &ifindex);

	return device && !(is_no_address(&device->ipv4) && is_no_address(&device->ipv6));
}

/* The packet's entry, if it passes through this node and nothing but its addresses and ports are to change. */
INLINE struct nat *find_transit(struct xdp_md *context, struct packet *p, struct bpf_fib_lookup *route)
{
	const struct service_value *service;
	enum drop_reason reason;
	struct nat *e = nat_find(p);
	long result;

	if (e) {
		if (!comes_in(e->flags) || e->flags & NAT_GONE)
			return NULL;
		nat_follow(p, e);
	} else {
		service = outside_frontend(p);
		if (!service || service->flags & SERVICE_DSR || choose_for_outside(p, service))
			return NULL;
	}
	if (p->nat_flags & NAT_DSR ? needs_dsr_option(p) : e && !(p->nat_flags & NAT_FORWARD))
		return NULL;
	if (p->nat_flags & (NAT_FORWARD | NAT_DSR) && config_of_encryption()) /* it may have to go by WireGuard */
		return NULL;
	if (p->nat_flags & (NAT_FORWARD | NAT_DSR)) {
		reason = find_route(context, p, context->ingress_ifindex, p->length - ETHERNET_SIZE, route, &result);
		if (reason || result != BPF_FIB_LKUP_RET_SUCCESS || !is_link(route->ifindex))
			return NULL;
		if (!e && !own_address(&p->after.source, route->ifindex, p->ipv6))
			return NULL;
	}
	if (!e)
		e = nat_create(p, context->ingress_ifindex, p->nat_flags & NAT_FORWARD, &reason);
	return p->nat_flags & (NAT_FORWARD | NAT_DSR) ? e : NULL;
}

/* `change`: of addresses and ports. UDP without a checksum has none, and 0 stands for that. */
INLINE void update_checksum(__u16 *checksum, __u32 change, bool udp)
{
	__u16 sum = fold(fold_to_32((__u64)(__u16)~*checksum + change));

	if (udp && !*checksum)
		return;
	*checksum = udp && !sum ? 0xffff : sum;
}

/* Whether a sender on this very machine has left the checksum to a device, as virtual ones let it, with the sum of the
 * pseudo header in its place. tc can deal with that; here one packet in 65536 is taken for such a one. */
INLINE bool is_checksum_left(const struct packet *p, __u16 checksum, __u16 size_be)
{
	__u64 sum = (__u64)bpf_htons(p->tuple.protocol) + size_be;

#pragma unroll
	for (int i = 0; i < ADDRESSES_SIZE / 4; i++)
		sum += ((const half *)&p->tuple)[i];
	return checksum == (__u16)~fold(fold_to_32(sum));
}

/* `size_be`: of header and data. */
INLINE bool store_l4(struct packet *p, void *l4, void *end, __u16 size_be)
{
	bool udp = p->tuple.protocol == PROTO_UDP;
	__u16 *checksum = l4 + (udp ? UDP_CHECKSUM_AT : TCP_CHECKSUM_AT);
	__u32 change = fold_to_32((__u64)addresses_difference(&p->tuple, &p->after) + ports_difference(&p->tuple, &p->after));

	if ((void *)(checksum + 1) > end || is_checksum_left(p, *checksum, size_be))
		return false;
	update_checksum(checksum, change, udp);
	*(half *)l4 = *(const half *)&p->after.source_port_be;
	return true;
}

INLINE bool store_ipv4(struct packet *p, struct ipv4_header *ip, void *end)
{
	__u32 change = addresses_difference(&p->tuple, &p->after);

	if ((void *)(ip + 1) > end || ip->ttl <= 1 ||
	    !store_l4(p, ip + 1, end, bpf_htons(bpf_ntohs(ip->length_be) - IPV4_SIZE)))
		return false;
	update_checksum(&ip->checksum, fold_to_32((__u64)change + (__u16)~bpf_htons(0x100)), false);
	ip->ttl--;
	ip->source = *(const half *)&p->after.source.bytes[12];
	ip->destination = *(const half *)&p->after.destination.bytes[12];
	return true;
}

INLINE bool store_ipv6(struct packet *p, struct ipv6_header *ip, void *end)
{
	if ((void *)(ip + 1) > end || ip->hop_limit <= 1 || !store_l4(p, ip + 1, end, ip->length_be))
		return false;
	ip->hop_limit--;
	copy_address(&ip->source, &p->after.source);
	copy_address(&ip->destination, &p->after.destination);
	return true;
}

/* False, with the packet as it was: it cannot be done here. */
INLINE bool rewrite_frame(struct xdp_md *context, struct packet *p, const struct bpf_fib_lookup *route)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethernet_addresses *ethernet = data;

	if (data + ETHERNET_SIZE > end)
		return false;
	if (!(p->ipv6 ? store_ipv6(p, data + ETHERNET_SIZE, end) : store_ipv4(p, data + ETHERNET_SIZE, end)))
		return false;
	__builtin_memcpy(ethernet->destination, route->dmac, 6);
	__builtin_memcpy(ethernet->source, route->smac, 6);
	return true;
}

INLINE int xdp_network_steps(struct xdp_md *context, struct packet *p)
{
	struct bpf_fib_lookup route;
	struct nat *e;

	if (!parse_frame(context, p))
		return XDP_PASS;
	p->now_ns = bpf_ktime_get_coarse_ns();
	e = find_transit(context, p, &route);
	if (!e || !rewrite_frame(context, p, &route))
		return XDP_PASS;
	nat_track(p, e, 1);
	add_to_tally(TALLY_XDP_FORWARDED);
	return route.ifindex == context->ingress_ifindex ? XDP_TX : bpf_redirect(route.ifindex, 0);
}

INLINE int xdp_network_act(struct xdp_md *context)
{
	struct packet *p = packet_of_length(context->data_end - context->data, HOOK_XDP);
	int act;

	if (!p)
		return XDP_PASS;
	act = xdp_network_steps(context, p);
	release(p);
	return act;
}
