/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc egress on the host side of a pod's veth: what the stack sends to the pod. Pods of this node reach it by from_pod. */
#include "encrypt.h"
#include "nat.h"
#include "policy.h"
#include "proxy.h"
#include "resolve.h"
#include "service.h"

/* Sent by the node itself, not forwarded by it. */
INLINE bool is_from_node(const struct __sk_buff *skb)
{
	return !skb->ingress_ifindex;
}

/* The plugin that made a pod's veth may have given the node an address there, its gateway, of which nobody else knows. */
INLINE bool is_host(const struct packet *p, const struct endpoint *near)
{
	return p->source.identity == IDENTITY_HOST || near->flags & ENDPOINT_RESOLVES;
}

/* `mark`: what a proxy says of it. Another local pod comes in only by one; whether that pod may ask is said of its own flow
 * to the proxy. */
INLINE enum drop_reason judge_to_pod(struct packet *p, const struct endpoint *near, __u32 mark)
{
	const struct endpoint *far = mark ? endpoint_of_address(&p->tuple.source) : NULL;

	set_ways(p, far, near);
	party_of_endpoint(p->is_reply ? &p->source : &p->destination, near, p->ipv6);
	party_of(p->is_reply ? &p->destination : &p->source, far, &p->tuple.source, p->ipv6);
	if (p->tuple.leg)
		p->source.ifindex = 0;
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
	p->listener = 0;
	p->flags = 0;
	turn_round(&p->answer, &p->after);
	prepare_entries(skb, p);
	conntrack_create(skb, p, NULL, NULL, true);
	return PASS;
}

/* The mark that packets of an entry carry which come from a proxy; 0: they do not. */
INLINE __u32 mark_of_entry(const struct packet *p, const struct conntrack *e)
{
	if (!(e->flags & CT_FROM_PROXY))
		return 0;
	if (!p->tuple.leg)
		return MARK_PROXY_ANSWERS;
	return e->flags & CT_FROM_INGRESS ? MARK_FROM_INGRESS : MARK_FROM_EGRESS;
}

/* User space has found that this flow's proxy judges it by rules of an earlier day. */
INLINE bool is_to_end(const struct conntrack *e)
{
	return e->flags & CT_GONE && e->flags & CT_TO_PROXY;
}

/* The next packet of a flow whose verdict stands. */
INLINE bool is_settled_to_pod(const struct __sk_buff *skb, const struct packet *p, const struct conntrack *e, __u32 mark)
{
	return e && is_current(p, e) && !e->sender_ifindex && e->receiver_ifindex == skb->ifindex && !is_to_end(e) &&
	       (!(e->flags & CT_OF_PROXY) || mark_of_entry(p, e) == mark);
}

/* An answer, not to the pod, but to a proxy that asked in its name. */
INLINE bool is_for_proxy(struct __sk_buff *skb, struct packet *p, const struct conntrack *known, __u32 mark)
{
	if (is_sent_on(mark) || (known && (mark == MARK_PROXY_ANSWERS || !(known->flags & CT_FROM_PROXY))))
		return false;
	return has_proxies() && has_connection(skb, p);
}

/* What the proxy of an ingress rule answers to that of an egress rule, whose port it may know as another. */
INLINE void readdress(struct packet *p)
{
	struct conntrack *e;

	p->tuple.leg = 1;
	e = conntrack_at(&p->tuple, false);
	if (e && e->flags & CT_REPLY && e->flags & CT_SOURCE && is_flow_live(p, e, false)) {
		copy_tuple(&p->after, &e->after);
		p->flags |= CT_SOURCE;
	}
	p->tuple.leg = 0;
}

INLINE int to_asker(struct __sk_buff *skb, struct packet *p)
{
	return translate(skb, p) ? -DROP_TRANSLATION : hand_on(skb, 0);
}

/* What a proxy sends on has a port that is new to its sockets, but not always to whoever gets it: the pod may have a
 * connection of its own from there to the same pod, or to a proxy, and the next proxy would take the one for the other.
 * So it would where the pod's has just been closed: its entries are still those of such packets. */
INLINE bool is_port_in_use(struct packet *p)
{
	const struct conntrack *e;

	copy_tuple(&p->other, &p->answer);
	p->other.leg = 0;
	e = conntrack_at(&p->other, false);
	if (!e || (e->flags & CT_FROM_PROXY && !(p->flags & CT_TO_PROXY)))
		return false;
	turn_round(&p->other, &e->after);
	return is_live(e, &p->other, p->now_ns, false);
}

/* Sets p->answer, under which no other flow's answers come; `dead_answer`: see is_answer_taken. */
INLINE enum drop_reason find_answer_to_pod(struct packet *p, __u32 ifindex, const struct conntrack *dead,
					   struct conntrack **dead_answer)
{
	bool taken;

	turn_round(&p->answer, &p->after);
	taken = is_answer_taken(p, ifindex, dead, dead_answer);
	if (!p->tuple.leg)
		return taken ? DROP_TUPLE_TAKEN : DROP_NONE;
	if (!taken && !is_port_in_use(p))
		return DROP_NONE;
	*dead_answer = NULL;
	return another_port(p) ? DROP_NONE : DROP_TUPLE_TAKEN;
}

/* Also whether it goes by a proxy. */
INLINE enum drop_reason judge_again_to_pod(struct packet *p, const struct endpoint *near, struct conntrack *known, __u32 mark)
{
	enum drop_reason reason;

	p->first_icmp_type = known ? known->icmp_type : p->icmp_type;
	if (known && is_to_end(known) && !p->is_error) {
		p->is_refused = 1;
		return DROP_PROXY_UNREADY;
	}
	if (!known && is_sent_on(mark))
		p->flags |= CT_FROM_PROXY | (mark == MARK_FROM_INGRESS ? CT_FROM_INGRESS : 0);
	reason = judge_to_pod(p, near, mark);
	return reason ? reason : join_proxy(p, known);
}

/* Whether this can have come by the stack, for this pod. `reason`: what parsing found. */
INLINE enum drop_reason admit_receiver(struct packet *p, const struct endpoint *near, enum drop_reason reason,
					__u32 mark)
{
	if (!near)
		return DROP_UNKNOWN_ENDPOINT;
	p->destination.identity = near->identity;
	if (reason)
		return reason;
	if (!owns(near, packet_destination(p), p->ipv6))
		return DROP_WRONG_DESTINATION;
	return !mark && endpoint_of_address(packet_source(p)) ? DROP_SPOOFED_SOURCE : DROP_NONE;
}

/* Anything else. Returns as consider_from_pod. */
INLINE struct conntrack *consider_to_pod(struct __sk_buff *skb, struct packet *p, enum drop_reason reason,
					 struct conntrack *known, struct conntrack *dead, __u32 mark, int *act)
{
	const struct endpoint *near = endpoint_of_interface(skb);
	struct conntrack *dead_answer = NULL;

	reason = admit_receiver(p, near, reason, mark);
	if (!reason && is_plaintext_refused(skb, p))
		reason = DROP_UNENCRYPTED;
	if (!reason && is_own_source_forged(skb, p))
		reason = DROP_SPOOFED_SOURCE;
	*act = -reason;
	if (reason || !near)
		return NULL;
	fragment_remember(p);
	if (known && (known->ifindex != near->ifindex || (p->tuple.leg && mark_of_entry(p, known) != mark))) {
		dead = known;
		known = NULL;
	}
	if (!known && mark == MARK_PROXY_ANSWERS)
		readdress(p);
	if (is_for_proxy(skb, p, known, mark)) {
		*act = to_asker(skb, p);
		return NULL;
	}
	if (!known && mark == MARK_PROXY_ANSWERS) { /* nobody has asked */
		*act = -DROP_POLICY_INGRESS;
		return NULL;
	}
	if (known)
		conntrack_follow(p, known);
	else
		p->is_new = 1;
	if (p->is_error && p->flags & CT_LOCAL)
		reason = DROP_ICMP_UNRELATED;
	if (!reason && !is_settled_to_pod(skb, p, known, mark)) {
		reason = judge_again_to_pod(p, near, known, mark);
		if (!known && !mark && is_host(p, near) && is_from_node(skb)) {
			*act = pass_from_node(skb, p, near);
			return NULL;
		}
		if (known)
			conntrack_store_verdict(p, known, reason);
		else if (p->is_error)
			reason = DROP_ICMP_UNRELATED;
		if (known && reason == DROP_PROXY_UNREADY)
			conntrack_forsake(p, known);
		if (known && p->is_refused) { /* which from_pod can do */
			*act = hand_on(skb, 0);
			return NULL;
		}
		if (!reason && !mark && p->flags & CT_FROM_PROXY)
			reason = DROP_TUPLE_TAKEN;
	}
	if (!reason && !known) {
		reason = find_answer_to_pod(p, near->ifindex, dead, &dead_answer);
	}
	if (!reason && !known) {
		p->flags |= was_encrypted(skb) ? CT_ENCRYPTED : 0;
		prepare_entries(skb, p);
		reason = conntrack_create(skb, p, dead, dead_answer, false);
		known = &p->entry;
	}
	*act = -reason;
	return reason ? NULL : known;
}

/* To the proxy that judges what reaches this pod. A TC action, or minus a drop reason. */
INLINE int to_listener(struct __sk_buff *skb, const struct packet *p, const struct conntrack *e)
{
	__u16 port_be;
	enum drop_reason reason = find_listener(p, e, &port_be);

	return reason ? -reason : hand_on(skb, port_be);
}

/* A TC action, or minus a drop reason. */
INLINE int to_pod_steps(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason = parse(skb, p);
	struct conntrack *e = NULL, *dead = NULL;
	__u32 mark = mark_of_proxy(skb);
	bool changed = false;
	int act;

	set_clocks(p);
	p->tuple.leg = is_sent_on(mark);
	p->after.leg = p->tuple.leg;
	if (!reason)
		e = conntrack_find(p, false, &dead);
	if (e)
		changed = has_encryption_changed(skb, e);
	if (is_settled_to_pod(skb, p, e, mark) && !needs_thought(p) && !changed) {
		conntrack_follow(p, e);
	} else {
		e = consider_to_pod(skb, p, reason, e, dead, mark, &act);
		if (!e)
			return act;
	}
	if (!p->is_new && !p->is_error) {
		if (changed)
			conntrack_note_encryption(p, e);
		conntrack_track(skb, p, e, false);
	}
	reason = translate(skb, p);
	if (!reason && p->flags & CT_TO_PROXY)
		return to_listener(skb, p, e);
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
	if (act == -DROP_LINK_CONTROL && is_from_node(skb) && is_resolution(skb, p, false))
		act = PASS;
	if (act < 0)
		act = drop(skb, p, -act);
	else
		count_outcome(DROP_NONE);
	release(p);
	return act;
}
