/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress on the host side of a pod's veth: what the pod sends. */
#include "encrypt.h"
#include "nat.h"
#include "policy.h"
#include "refuse.h"
#include "resolve.h"
#include "service.h"

/* Whether a device of the node is still to change it. */
INLINE bool is_translated_later(const struct packet *p)
{
	return p->is_reply && LOOKUP(nat, (void *)&p->after);
}

/* To a pod of another node by WireGuard, past the stack. Strict mode knows no other way, whichever device routes lead to. All
 * else goes to the stack, with a mark by which to_network can tell what answers somebody whose packets came encrypted. */
INLINE int deliver_to_stack(struct __sk_buff *skb, const struct packet *p)
{
	const struct config *config = config_of_encryption();
	bool encrypted = p->flags & CT_ENCRYPTED;
	__u32 to;

	if (p->flags & CT_TO_PROXY)
		return PASS;
	to = config && (encrypted || config->features & FEATURE_STRICT) ? whose(&p->after.destination) : 0;
	if (config && to & ENCRYPTION_PEER_PODS && !is_translated_later(p)) {
		if (to & ENCRYPTION_READY && config->wireguard_ifindex && whose(&p->after.source) & ENCRYPTION_OWN_PODS)
			return bpf_redirect(config->wireguard_ifindex, 0);
		if (config->features & FEATURE_STRICT)
			return -DROP_UNENCRYPTED;
	}
	if (encrypted)
		skb->mark = MARK_ENCRYPT;
	return PASS;
}

/* Into the peer of the receiver's veth, past the stack; or to the stack. */
INLINE int deliver(struct __sk_buff *skb, const struct packet *p, const struct conntrack *e)
{
	struct ethernet_addresses *ethernet = (void *)(long)skb->data;

	if (!e->receiver_ifindex)
		return deliver_to_stack(skb, p);
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return -DROP_TRANSLATION;
	__builtin_memcpy(ethernet->destination, e->mac, 6);
	__builtin_memcpy(ethernet->source, e->host_mac, 6);
	return bpf_redirect_peer(e->receiver_ifindex, 0);
}

/* A packet of a flow that the node began. */
INLINE bool answers_node(struct __sk_buff *skb, struct packet *p, const struct endpoint *near)
{
	struct conntrack *dead, *e = conntrack_find(p, true, &dead);

	if (!e || e->ifindex != near->ifindex)
		return false;
	conntrack_follow(p, e);
	if (!p->is_error)
		conntrack_track(skb, p, e, true);
	return true;
}

INLINE enum drop_reason judge_from_pod(struct packet *p, const struct endpoint *near, const struct endpoint *far)
{
	set_ways(p, near, far);
	party_of_endpoint(p->is_reply ? &p->destination : &p->source, near, p->ipv6);
	party_of(p->is_reply ? &p->source : &p->destination, far, &p->after.destination, p->ipv6);
	if (p->tuple.leg) /* a proxy asked in its name: that it may is said of its own flow to the proxy */
		p->source.ifindex = 0;
	return judge(p, p->is_reply ? p->tuple.source_port_be : p->after.destination_port_be);
}

/* A flow is its originator's, or, from outside, the pod's that was reached. Is that still the one with the address? */
INLINE bool is_still_theirs(const struct packet *p, const struct conntrack *e, const struct endpoint *near,
			    const struct endpoint *far)
{
	const struct endpoint *owner = p->is_reply && far && !p->tuple.leg ? far : near;

	return e->ifindex == owner->ifindex;
}

/* What a proxy has sent on to this pod in somebody's name has an entry of its own, under which this may be the answer.
 * `e`: what is under p->tuple; returned again if it is not. */
INLINE struct conntrack *find_upstream(const struct __sk_buff *skb, struct packet *p, struct conntrack *e,
				       struct conntrack **dead)
{
	struct conntrack *upstream;

	if ((e && !(e->flags & CT_FROM_PROXY)) || !has_proxies())
		return e;
	p->tuple.leg = 1;
	upstream = conntrack_at(&p->tuple, false);
	if (upstream && upstream->flags & CT_REPLY && upstream->ifindex == skb->ifindex && is_flow_live(p, upstream, false)) {
		p->after.leg = 1;
		*dead = NULL;
		return upstream;
	}
	p->tuple.leg = 0;
	return e;
}

/* The next packet of a flow whose verdict stands. Such an entry vouches for its sender, too. */
INLINE bool is_settled_from_pod(const struct __sk_buff *skb, const struct packet *p, const struct conntrack *e)
{
	return e && is_current(p, e) && e->sender_ifindex == skb->ifindex && !(e->flags & (CT_GONE | CT_FROM_PROXY));
}

/* A packet to a backend that is no more. What still comes from there passes. */
INLINE bool is_forlorn(const struct packet *p, const struct conntrack *e)
{
	return e->flags & CT_GONE && !p->is_reply && !p->is_error;
}

/* Whether this pod may send this at all. `reason`: what parsing found. */
INLINE enum drop_reason admit_sender(struct packet *p, const struct endpoint *near, enum drop_reason reason)
{
	if (!near)
		return DROP_UNKNOWN_ENDPOINT;
	p->source.identity = near->identity;
	if (reason)
		return reason;
	if (!owns(near, packet_source(p), p->ipv6))
		return DROP_SPOOFED_SOURCE;
	if (!same_address(packet_source(p), &p->tuple.source)) /* a pod is no router: only its own flows fail with it */
		return DROP_ICMP_UNRELATED;
	return DROP_NONE;
}

/* A pod's VXLAN for a node, which would take what is in it for another node's: whose its source is nobody would look. */
INLINE bool is_for_tunnel(const struct packet *p)
{
	__u32 to = p->destination.identity, zero = 0;
	const struct config *config = LOOKUP(config, &zero);

	return p->tuple.protocol == PROTO_UDP && !p->is_reply && config && config->tunnel_port &&
	       p->after.destination_port_be == bpf_htons(config->tunnel_port) &&
	       (to == IDENTITY_HOST || to == IDENTITY_REMOTE_NODE || to == IDENTITY_APISERVER);
}

/* Also whether it goes by a proxy. */
INLINE enum drop_reason judge_again_from_pod(struct packet *p, const struct endpoint *near, const struct endpoint *far,
					     struct conntrack *known)
{
	enum drop_reason reason;

	p->first_icmp_type = known ? known->icmp_type : p->icmp_type;
	reason = judge_from_pod(p, near, far);
	if (!reason && is_for_tunnel(p))
		reason = DROP_UNSUPPORTED_PROTOCOL;
	if (!reason)
		reason = join_proxy(p, known);
	if (known)
		conntrack_store_verdict(p, known, reason);
	if (known && reason == DROP_PROXY_UNREADY)
		conntrack_forsake(p, known);
	if (!reason && p->flags & CT_FROM_PROXY) /* and not from a pod */
		return DROP_TUPLE_TAKEN;
	if (!reason && !known && p->listener && is_loopback(&p->after.destination, p->ipv6))
		return DROP_WRONG_DESTINATION;
	return reason;
}

/* Anything else: may it be sent, where does it go, and does policy allow it? Returns p->entry for a new flow, `known`
 * for one judged again; NULL where `act` is all: minus a drop reason, or PASS. */
INLINE struct conntrack *consider_from_pod(struct __sk_buff *skb, struct packet *p, enum drop_reason reason,
					   struct conntrack *known, struct conntrack *dead, int *act)
{
	const struct endpoint *near = endpoint_of_interface(skb), *far = NULL;
	struct conntrack *dead_answer = NULL;

	reason = admit_sender(p, near, reason);
	*act = -reason;
	if (reason || !near)
		return NULL;
	fragment_remember(p);
	if (known) {
		conntrack_follow(p, known);
		far = endpoint_of_address(&p->after.destination);
		if (!is_still_theirs(p, known, near, far)) {
			conntrack_unfollow(p);
			dead = known;
			known = NULL;
		} else if (is_forlorn(p, known)) {
			conntrack_forsake(p, known);
			*act = -DROP_BACKEND_GONE;
			return NULL;
		}
	}
	if (!known) {
		p->is_new = 1;
		if (!p->is_error) {
			reason = service_resolve(p, near->ifindex, dead, &dead_answer);
			far = endpoint_of_address(&p->after.destination);
		}
		if (!reason && !far && !(p->flags & CT_SERVICE) && answers_node(skb, p, near))
			return NULL;
		if (p->is_error)
			reason = DROP_ICMP_UNRELATED;
		p->flags |= far ? CT_LOCAL : is_encrypted_towards(&p->after.destination) ? CT_ENCRYPTED : 0;
	}
	if (!reason && !is_settled_from_pod(skb, p, known)) {
		reason = judge_again_from_pod(p, near, far, known);
	}
	if (!reason && !known) {
		prepare_entries(skb, p);
		reason = conntrack_create(skb, p, dead, dead_answer, false);
		known = &p->entry;
	}
	*act = -reason;
	return reason ? NULL : known;
}

/* As the flow says, whose entry is `e`. */
INLINE enum drop_reason to_proxy(struct __sk_buff *skb, struct packet *p, const struct conntrack *e)
{
	__u16 port_be;
	enum drop_reason reason = find_listener(p, e, &port_be);

	return reason ? reason : give_to_proxy(skb, p, port_be);
}

/* What to_pod has handed on: judged and tracked. A drop names whom its flow's entry names. */
INLINE int take_over(struct __sk_buff *skb, struct packet *p, enum drop_reason reason)
{
	const struct conntrack *e;

	p->is_handed_on = 1;
	if (!reason)
		reason = give_to_proxy(skb, p, bpf_htons(skb->mark));
	if (!reason)
		return PASS;
	e = conntrack_at(&p->tuple, false);
	if (e)
		conntrack_follow(p, e);
	return -reason;
}

/* A TC action, or minus a drop reason. */
INLINE int from_pod_steps(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason = parse(skb, p);
	struct conntrack *e = NULL, *dead = NULL;
	int act;

	set_clocks(p);
	if (is_handed_on(skb))
		return take_over(skb, p, reason);
	if (!reason)
		e = conntrack_find(p, false, &dead);
	if (!reason && !is_settled_from_pod(skb, p, e))
		e = find_upstream(skb, p, e, &dead);
	if (is_settled_from_pod(skb, p, e) && !needs_thought(p)) {
		conntrack_follow(p, e);
	} else {
		e = consider_from_pod(skb, p, reason, e, dead, &act);
		if (!e)
			return act;
	}
	if (!p->is_new && !p->is_error)
		conntrack_track(skb, p, e, false);
	if (p->flags & CT_TO_PROXY)
		reason = to_proxy(skb, p, e); /* a packet that is refused must be as it came */
	if (!reason)
		reason = translate(skb, p);
	return reason ? -reason : deliver(skb, p, e);
}

INLINE int from_pod_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_FROM_POD);
	int act;

	if (!p) {
		count_outcome(DROP_INTERNAL);
		return DROP;
	}
	act = from_pod_steps(skb, p);
	if (act == -DROP_LINK_CONTROL && is_resolution(skb, p, true))
		act = PASS;
	if (act >= 0) {
		count_outcome(DROP_NONE);
	} else {
		drop(skb, p, -act);
		act = act == -DROP_NO_BACKEND || act == -DROP_BACKEND_GONE || p->is_refused ? refuse(skb, p) : DROP;
	}
	release(p);
	return act;
}
