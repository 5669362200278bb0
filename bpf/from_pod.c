/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress on the host side of a pod's veth: what the pod sends. */
#include "identity.h"
#include "nat.h"
#include "policy.h"
#include "refuse.h"
#include "service.h"

/* Into the peer of the destination's veth, past the stack; or to the stack. */
INLINE int deliver(struct __sk_buff *skb, const struct endpoint *to)
{
	struct ethernet_addresses ethernet;

	if (!to)
		return PASS;
	__builtin_memcpy(ethernet.destination, to->mac, 6);
	__builtin_memcpy(ethernet.source, to->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0))
		return -DROP_TRANSLATION;
	return bpf_redirect_peer(to->ifindex, 0);
}

/* The live entry of the packet's flow, if it is still a flow of the pods that have its addresses now. */
INLINE struct conntrack *flow_from_pod(struct packet *p, const struct endpoint *near, struct endpoint **far)
{
	struct conntrack *e = conntrack_find(p, false);
	const struct endpoint *originator = near;

	if (!e)
		return NULL;
	conntrack_follow(p, e);
	if (p->flags & CT_LOCAL || e->epoch != p->epoch)
		*far = endpoint_of_address(&p->after.destination);
	if (p->is_reply && *far)
		originator = *far;
	if (e->ifindex == originator->ifindex)
		return e;
	conntrack_abandon(p, e, false);
	*far = NULL;
	return NULL;
}

/* The far end of a local flow is still who it was when the flow was judged. */
INLINE bool is_same_far_end(const struct packet *p, const struct conntrack *e, const struct endpoint *far)
{
	if (!(p->flags & CT_LOCAL))
		return true;
	return far && far->identity == (p->is_reply ? e->source_identity : e->destination_identity);
}

INLINE bool answers_node(struct __sk_buff *skb, struct packet *p, const struct endpoint *near)
{
	struct conntrack *e = conntrack_find(p, true);

	if (!e || e->ifindex != near->ifindex)
		return false;
	conntrack_follow(p, e);
	if (!p->is_error)
		conntrack_track(skb, p, e, true);
	return true;
}

INLINE enum drop_reason judge_from_pod(struct packet *p, const struct endpoint *near, const struct endpoint *far)
{
	party_of_endpoint(p->is_reply ? &p->destination : &p->source, near, p->ipv6);
	party_of(p->is_reply ? &p->source : &p->destination, far, &p->after.destination, p->ipv6);
	return judge(p, p->is_reply ? p->tuple.source_port_be : p->after.destination_port_be);
}

/* A TC action, or minus a drop reason. */
INLINE int from_pod_steps(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason = parse(skb, p);
	struct endpoint *near = endpoint_of_interface(skb), *far = NULL;
	struct conntrack *e;

	if (!near)
		return -DROP_UNKNOWN_ENDPOINT;
	p->source.identity = near->identity;
	if (reason)
		return -reason;
	if (!owns(near, &p->outer.source, p->ipv6))
		return -DROP_SPOOFED_SOURCE;
	set_clocks(p);

	e = flow_from_pod(p, near, &far);
	if (!e) {
		if (answers_node(skb, p, near))
			return PASS;
		if (p->is_error)
			return -DROP_ICMP_UNRELATED;
		reason = service_resolve(p);
		if (!reason && is_answer_taken(p, near->ifindex))
			reason = DROP_TUPLE_TAKEN;
		if (reason)
			return -reason;
		far = endpoint_of_address(&p->after.destination);
		p->flags |= far ? CT_LOCAL : 0;
	}
	if (!e || !is_current(p, e, near) || !is_same_far_end(p, e, far)) {
		reason = judge_from_pod(p, near, far);
		if (e)
			conntrack_store_verdict(p, e, !reason, far);
		if (reason)
			return -reason;
	}
	if (!e) {
		reason = conntrack_create(skb, p, near->ifindex, false);
		if (reason)
			return -reason;
		far = p->flags & CT_LOCAL ? endpoint_of_address(&p->after.destination) : NULL;
	} else if (!p->is_error) {
		conntrack_track(skb, p, e, false);
	}
	reason = translate(skb, p);
	return reason ? -reason : deliver(skb, far);
}

INLINE int from_pod_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_FROM_POD);
	int act;

	if (!p)
		return DROP;
	act = from_pod_steps(skb, p);
	if (act >= 0) {
		count_outcome(DROP_NONE);
		return act;
	}
	drop(skb, p, -act);
	return act == -DROP_NO_BACKEND ? refuse(skb, p) : DROP;
}
