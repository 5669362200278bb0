/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress of a device of the node: what leaves it. Answers of backends here take their frontend's address, and pods'
 * flows out of the cluster that of the device. What is for pods of other nodes leaves by WireGuard instead. */
#include "masquerade.h"
#include "nat.h"
#include "steer.h"

/* The entry stands for another address of the node than packets leave with now. */
INLINE bool has_moved(const struct nat *e, __u32 ifindex)
{
	return e->flags & NAT_MASQUERADE && e->ifindex != ifindex;
}

/* A TC action, or minus a drop reason. p->flags stay 0 where the packet is left as it is. */
INLINE int to_network_steps(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);
	enum drop_reason reason = parse(skb, p);
	struct nat *e;

	if (reason)
		return PASS;
	p->now_ns = bpf_ktime_get_coarse_ns();
	e = nat_find(p);
	if (e && comes_in(e->flags))
		e = NULL;
	if (e && has_moved(e, skb->ifindex)) {
		nat_forget(p, &p->tuple, e);
		e = NULL;
	}
	if (e) {
		nat_follow(p, e);
	} else if (is_to_masquerade(p, config)) {
		reason = masquerade(p, skb->ifindex);
		if (!reason)
			e = nat_create(p, skb->ifindex, true, &reason);
	} else {
		return !skb->ingress_ifindex && is_tuple_taken(p, config) ? -DROP_TUPLE_TAKEN : PASS;
	}
	if (reason || !e)
		return -reason;
	fragment_remember(p);
	if (!p->is_error)
		nat_track(p, e, packets_in(skb));
	reason = translate(skb, p);
	return reason ? -reason : PASS;
}

INLINE int to_network_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_TO_NETWORK);
	int act;

	if (!p) {
		count_outcome(DROP_INTERNAL);
		return DROP;
	}
	act = to_network_steps(skb, p);
	if (act == PASS)
		act = steer(skb, p, false);
	if (act < 0)
		act = drop(skb, p, -act);
	else if (p->flags || act != PASS)
		count_outcome(DROP_NONE);
	release(p);
	return act;
}
