/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of a device of the node: what comes from outside. Nothing but frontends and what is translated is touched:
 * all else is the stack's, and for pods to_pod's to judge; but what should have come by WireGuard may be dropped. */
#include "dsr.h"
#include "forward.h"
#include "refuse.h"
#include "steer.h"

/* Its entry says what becomes of it. */
INLINE enum drop_reason continue_from_network(const struct __sk_buff *skb, struct packet *p, const struct nat *e)
{
	nat_follow(p, e);
	if (p->is_reply && p->nat_flags & NAT_FORWARD && is_plaintext_answer_refused(skb, p))
		return DROP_UNENCRYPTED;
	return e->flags & NAT_GONE && !p->is_reply && !p->is_error ? DROP_BACKEND_GONE : DROP_NONE;
}

/* Two flows of one client by direct server return that have the same backend could not be told apart by its answers:
 * the second goes by way of this node. */
INLINE void avoid_taken(struct packet *p)
{
	if (p->nat_flags & NAT_DSR && is_nat_answer_taken(p))
		p->nat_flags = NAT_FORWARD;
}

/* Not to a pod or process of this node. */
INLINE bool goes_on(const struct packet *p)
{
	return p->nat_flags & NAT_FORWARD || (p->nat_flags & NAT_DSR && !p->is_reply);
}

/* The source of what goes on by SNAT: by WireGuard it is the one that other nodes know this node by. */
INLINE bool hop_address(struct packet *p, __u32 ifindex)
{
	return own_address(&p->after.source, is_encrypted_towards(&p->after.destination) ? 0 : ifindex, p->ipv6);
}

INLINE enum drop_reason route_from_network(struct __sk_buff *skb, struct packet *p, struct bpf_fib_lookup *route)
{
	__u32 option = needs_dsr_option(p) ? dsr_size(p->ipv6) : 0;
	enum drop_reason reason;
	long result;

	if (!has_hops_left(skb, p))
		return DROP_TTL_EXCEEDED;
	reason = find_route(skb, p, skb->ifindex, wire_size(skb, p) + option, route, &result);
	route->tot_len -= reason == DROP_TOO_BIG ? option : 0;
	return reason;
}

/* An error comes from whoever found it: on its way to another node it takes this node's address, as all of its flow. */
INLINE enum drop_reason hide_router(struct __sk_buff *skb, struct packet *p)
{
	__u32 change;

	if (!p->is_error || p->is_reply || !(p->nat_flags & NAT_FORWARD) || same_address(&p->outer.source, &p->tuple.source))
		return DROP_NONE;
	copy_address(&p->other.source, &p->outer.source);
	copy_address(&p->other.destination, &p->after.destination);
	copy_address(&p->answer.source, &p->after.source);
	copy_address(&p->answer.destination, &p->after.destination);
	change = addresses_difference(&p->other, &p->answer);
	account_for_ipv6(skb, p, change);
	return store_addresses(skb, p->outer.at, p->ipv6, &p->answer, change) ||
			       (p->ipv6 && bpf_l4_csum_replace(skb, p->outer.l4 + ICMP_CHECKSUM_AT, 0, change, BPF_F_PSEUDO_HDR))
		       ? DROP_TRANSLATION
		       : DROP_NONE;
}

INLINE int send_from_network(struct __sk_buff *skb, struct packet *p, const struct bpf_fib_lookup *route)
{
	enum drop_reason reason = hide_router(skb, p);
	int act;

	if (!reason && !take_hop(skb, p))
		reason = DROP_TRANSLATION;
	if (!reason && needs_dsr_option(p))
		reason = add_dsr_option(skb, p);
	if (reason)
		return -reason;
	act = steer(skb, p, true);
	return act == PASS ? send_on(route) : act;
}

/* A TC action, or minus a drop reason. p->flags stay 0 where the packet is left as it is. `mtu`: of the way on. */
INLINE int from_network_steps(struct __sk_buff *skb, struct packet *p, __u16 *mtu)
{
	enum drop_reason reason = parse(skb, p), refused = refuse_plaintext(skb, p);
	const struct service_value *service;
	struct bpf_fib_lookup route;
	struct nat *e;

	if (refused)
		return -refused;
	if (reason || skb->pkt_type != PACKET_HOST)
		return PASS;
	p->now_ns = bpf_ktime_get_coarse_ns();
	e = nat_find(p);
	if (e && !comes_in(e->flags))
		return PASS;
	if (e) {
		reason = continue_from_network(skb, p, e);
	} else {
		service = p->is_error ? NULL : outside_frontend(p);
		if (!service)
			return p->is_plain ? PASS : -accept_dsr(skb, p);
		reason = choose_for_outside(p, service);
		avoid_taken(p);
	}
	if (!reason && goes_on(p)) {
		reason = route_from_network(skb, p, &route);
		*mtu = route.mtu_result;
		if (!reason && !e && p->nat_flags & NAT_FORWARD && !hop_address(p, route.ifindex))
			reason = DROP_NO_ROUTE;
	}
	if (!reason && !e)
		e = nat_create(p, skb->ifindex, p->nat_flags & NAT_FORWARD, &reason);
	if (reason || !e)
		return -reason;
	fragment_remember(p);
	if (!p->is_error)
		nat_track(p, e, packets_in(skb));
	reason = translate(skb, p);
	if (reason)
		return -reason;
	return goes_on(p) ? send_from_network(skb, p, &route) : PASS;
}

/* Who is told why his packet does not go on: one whose service has nobody (left), and where it does not fit. */
INLINE int tell_from_network(struct __sk_buff *skb, struct packet *p, enum drop_reason reason, __u16 mtu)
{
	if (reason == DROP_NO_BACKEND || reason == DROP_BACKEND_GONE)
		return refuse(skb, p);
	if (p->is_error || p->outer.fragment_offset)
		return DROP;
	if (reason == DROP_TOO_BIG)
		return refuse_too_big(skb, p, mtu);
	if (reason == DROP_TTL_EXCEEDED)
		return answer_by_icmp(skb, p, p->ipv6 ? 3 : 11, 0, 0);
	return DROP;
}

INLINE int from_network_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_FROM_NETWORK);
	__u16 mtu = 0;
	int act;

	if (!p) {
		count_outcome(DROP_INTERNAL);
		return DROP;
	}
	act = from_network_steps(skb, p, &mtu);
	if (act < 0) {
		drop(skb, p, -act);
		act = tell_from_network(skb, p, -act, mtu);
	} else {
		if (act == PASS)
			forget_encryption(skb, p);
		if (p->flags)
			count_outcome(DROP_NONE);
	}
	release(p);
	return act;
}
