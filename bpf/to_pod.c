/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress on the host side of a pod's veth: what the stack sends to the pod. Pods of this node reach it by from_pod. */
#include "identity.h"
#include "nat.h"
#include "policy.h"

/* Sent by the node itself, not forwarded by it. */
INLINE bool is_from_node(const struct __sk_buff *skb)
{
	return !skb->ingress_ifindex;
}

INLINE enum drop_reason judge_to_pod(struct packet *p, const struct endpoint *near)
{
	set_ways(p, NULL, near);
	party_of_endpoint(p->is_reply ? &p->source : &p->destination, near, p->ipv6);
	party_of_address(p->is_reply ? &p->destination : &p->source, &p->tuple.source, p->ipv6);
	return judge(p, p->is_reply ? p->tuple.source_port_be : p->after.destination_port_be);
}

/* The node always reaches its pods, tracked or not: probes must not depend on room in a map. */
INLINE int pass_from_node(struct __sk_buff *skb, struct packet *p, const struct endpoint *near)
{
	struct conntrack *dead, *e = conntrack_find(p, true, &dead);

	if (e && e->ifindex == near->ifindex) {
		conntrack_follow(p, e);
		if (!p->is_error)
			conntrack_track(skb, p, e, true);
		return PASS;
	}
	if (p->is_error)
		return -DROP_ICMP_UNRELATED;
	p->ingress_judged = 1;
	p->rule_egress = RULE_NONE;
	p->rule_ingress = RULE_HOST;
	turn_round(&p->answer, &p->after);
	prepare_entries(skb, p);
	conntrack_create(skb, p, NULL, NULL, true);
	return PASS;
}

/* The next packet of a flow whose verdict stands. */
INLINE bool is_settled_to_pod(const struct __sk_buff *skb, const struct packet *p, const struct conntrack *e)
{
	return e && is_current(p, e) && !e->sender_ifindex && e->receiver_ifindex == skb->ifindex;
}

/* Whether this can have come by the stack, for this pod. `reason`: what parsing found. */
INLINE enum drop_reason admit_receiver(struct packet *p, const struct endpoint *near, enum drop_reason reason)
{
	if (!near)
		return DROP_UNKNOWN_ENDPOINT;
	p->destination.identity = near->identity;
	if (reason)
		return reason;
	if (!owns(near, packet_destination(p), p->ipv6))
		return DROP_WRONG_DESTINATION;
	return endpoint_of_address(packet_source(p)) ? DROP_SPOOFED_SOURCE : DROP_NONE;
}

/* Anything else. Returns as consider_from_pod. */
INLINE struct conntrack *consider_to_pod(struct __sk_buff *skb, struct packet *p, enum drop_reason reason,
					 struct conntrack *known, struct conntrack *dead, int *act)
{
	const struct endpoint *near = endpoint_of_interface(skb);
	struct conntrack *dead_answer = NULL;

	reason = admit_receiver(p, near, reason);
	*act = -reason;
	if (reason || !near)
		return NULL;
	fragment_remember(p);
	if (known && known->ifindex != near->ifindex) {
		dead = known;
		known = NULL;
	}
	if (known)
		conntrack_follow(p, known);
	else
		p->is_new = 1;
	if (p->is_error && p->flags & CT_LOCAL)
		reason = DROP_ICMP_UNRELATED;
	if (!reason && !is_settled_to_pod(skb, p, known)) {
		reason = judge_to_pod(p, near);
		if (!known && p->source.identity == IDENTITY_HOST && is_from_node(skb)) {
			*act = pass_from_node(skb, p, near);
			return NULL;
		}
		if (known)
			conntrack_store_verdict(p, known, reason);
		else if (p->is_error)
			reason = DROP_ICMP_UNRELATED;
	}
	if (!reason && !known) {
		turn_round(&p->answer, &p->after);
		if (is_answer_taken(p, near->ifindex, dead, &dead_answer))
			reason = DROP_TUPLE_TAKEN;
	}
	if (!reason && !known) {
		prepare_entries(skb, p);
		reason = conntrack_create(skb, p, dead, dead_answer, false);
		known = &p->entry;
	}
	*act = -reason;
	return reason ? NULL : known;
}

/* A TC action, or minus a drop reason. */
INLINE int to_pod_steps(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason = parse(skb, p);
	struct conntrack *e = NULL, *dead = NULL;
	int act;

	set_clocks(p);
	if (!reason)
		e = conntrack_find(p, false, &dead);
	if (is_settled_to_pod(skb, p, e) && !needs_thought(p)) {
		conntrack_follow(p, e);
	} else {
		e = consider_to_pod(skb, p, reason, e, dead, &act);
		if (!e)
			return act;
	}
	if (!p->is_new && !p->is_error)
		conntrack_track(skb, p, e, false);
	reason = translate(skb, p);
	return reason ? -reason : PASS;
}

INLINE int to_pod_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_TO_POD);
	int act;

	if (!p) {
		count_outcome(DROP_INTERNAL);
		return DROP;
	}
	act = to_pod_steps(skb, p);
	if (act < 0)
		act = drop(skb, p, -act);
	else
		count_outcome(DROP_NONE);
	release(p);
	return act;
}
