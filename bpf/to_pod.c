/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress on the host side of a pod's veth: what the stack sends to the pod. Pods of this node send to it by from_pod. */
#include "identity.h"
#include "nat.h"
#include "policy.h"

/* The live entry of the packet's flow, if this pod is still the one that has it. */
INLINE struct conntrack *flow_to_pod(struct packet *p, const struct endpoint *near, bool host)
{
	struct conntrack *e = conntrack_find(p, host);

	if (!e)
		return NULL;
	conntrack_follow(p, e);
	if (e->ifindex == near->ifindex)
		return e;
	conntrack_abandon(p, e, host);
	return NULL;
}

/* Sent by the node itself, not forwarded by it. */
INLINE bool is_from_node(const struct __sk_buff *skb)
{
	return !skb->ingress_ifindex;
}

INLINE bool continues_node_flow(struct __sk_buff *skb, struct packet *p, const struct endpoint *near)
{
	struct conntrack *e;

	if (!is_from_node(skb))
		return false;
	e = flow_to_pod(p, near, true);
	if (!e)
		return false;
	if (!p->is_error)
		conntrack_track(skb, p, e, true);
	return true;
}

/* The node always reaches its pods, tracked or not: kubelet probes must never depend on room in a map. */
INLINE void allow_node(struct __sk_buff *skb, struct packet *p, const struct endpoint *near)
{
	p->ingress_judged = 1;
	p->rule_ingress = RULE_HOST;
	conntrack_create(skb, p, near->ifindex, true);
}

/* A TC action, or minus a drop reason. */
INLINE int to_pod_steps(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason = parse(skb, p);
	struct endpoint *near = endpoint_of_interface(skb);
	struct conntrack *e;
	bool current;

	if (!near)
		return -DROP_UNKNOWN_ENDPOINT;
	p->destination.identity = near->identity;
	if (reason)
		return -reason;
	if (!owns(near, &p->outer.destination, p->ipv6))
		return -DROP_WRONG_DESTINATION;
	set_clocks(p);

	e = flow_to_pod(p, near, false);
	if (!e && continues_node_flow(skb, p, near))
		return PASS;
	current = e && is_current(p, e, near) && !(p->flags & CT_LOCAL);
	if (!current && endpoint_of_address(&p->outer.source))
		return -DROP_SPOOFED_SOURCE;
	if (p->is_error && (!e || p->flags & CT_LOCAL))
		return -DROP_ICMP_UNRELATED;
	if (!current) {
		party_of_endpoint(p->is_reply ? &p->source : &p->destination, near, p->ipv6);
		party_of_address(p->is_reply ? &p->destination : &p->source, &p->tuple.source);
		if (!e) {
			turn_round(&p->answer, &p->after);
			if (p->source.identity == IDENTITY_HOST && is_from_node(skb)) {
				allow_node(skb, p, near);
				return PASS;
			}
		}
		reason = judge(p, p->is_reply ? p->tuple.source_port_be : p->after.destination_port_be);
		if (e)
			conntrack_store_verdict(p, e, !reason, false);
		else if (!reason && is_answer_taken(p, near->ifindex))
			reason = DROP_TUPLE_TAKEN;
		if (reason)
			return -reason;
	}
	if (!e)
		reason = conntrack_create(skb, p, near->ifindex, false);
	else if (!p->is_error)
		conntrack_track(skb, p, e, false);
	if (!reason)
		reason = translate(skb, p);
	return reason ? -reason : PASS;
}

INLINE int to_pod_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_TO_POD);
	int act;

	if (!p)
		return DROP;
	act = to_pod_steps(skb, p);
	if (act < 0)
		return drop(skb, p, -act);
	count_outcome(DROP_NONE);
	return act;
}
