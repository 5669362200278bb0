/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Live flows. The two entries of a flow share `created_ns`, and the key of each follows from the other. */
#ifndef GATEHOUSE_CONNTRACK_H
#define GATEHOUSE_CONNTRACK_H

#include "events.h"

#define EEXIST 17

/* Flows the node originates have a map of their own (`host`), so that no pod can use up the node's room. */
INLINE struct conntrack *conntrack_at(const struct tuple *key, bool host)
{
	return host ? LOOKUP(conntrack_host, (void *)key) : LOOKUP(conntrack, (void *)key);
}

INLINE void conntrack_delete(const struct tuple *key, bool host)
{
	if (host)
		DELETE(conntrack_host, (void *)key);
	else
		DELETE(conntrack, (void *)key);
}

INLINE bool are_partners(const struct conntrack *a, const struct conntrack *b)
{
	return a && b && a->created_ns == b->created_ns;
}

/* Expiry is the later of the two entries': a one-way stream keeps only one of them fresh. */
INLINE bool is_live(const struct conntrack *e, const struct tuple *partner, __u64 now_ns, bool host)
{
	const struct conntrack *other;

	if (e->expires_ns > now_ns)
		return true;
	other = conntrack_at(partner, host);
	return are_partners(e, other) && other->expires_ns > now_ns;
}

/* Where the packet goes on to, by its flow's entry. p->after is p->tuple before. */
INLINE void translate_tuple(struct packet *p, const struct conntrack *e)
{
	if (e->flags & CT_TRANSLATED)
		copy_tuple(&p->after, &e->after);
}

/* Take over what the entry says. The near end is the pod this hook is for. */
INLINE void conntrack_follow(struct packet *p, const struct conntrack *e)
{
	bool local = e->flags & CT_LOCAL, near_originated;

	translate_tuple(p, e);
	p->flags = e->flags;
	p->is_reply = (e->flags & CT_REPLY) != 0;
	p->source.identity = e->source_identity;
	p->destination.identity = e->destination_identity;
	p->rule_egress = e->rule_egress;
	p->rule_ingress = e->rule_ingress;
	near_originated = (p->hook == HOOK_FROM_POD) != p->is_reply;
	if (e->flags & CT_OF_PROXY) {
		p->egress_judged = e->rule_egress != RULE_NONE;
		p->ingress_judged = e->rule_ingress != RULE_NONE;
		return;
	}
	p->egress_judged = near_originated || local;
	p->ingress_judged = !near_originated || local;
}

/* Undo that: the entry is of a flow whose pod is gone, and another has its address now. */
INLINE void conntrack_unfollow(struct packet *p)
{
	copy_tuple(&p->after, &p->tuple);
	p->source.identity = 0;
	p->destination.identity = 0;
	p->flags = 0;
	p->is_reply = 0;
}

/* Whether the flow of p->tuple's entry lives. A SYN to a connection that is closed, or whose backend is gone, begins another,
 * as does a query that looks like an answer: types share a tuple where they have no id, and queries and answers that of id 0. */
INLINE bool is_flow_live(struct packet *p, const struct conntrack *e, bool host)
{
	if (e->flags & (CT_CLOSED | CT_GONE) && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return false;
	if (e->flags & CT_REPLY && p->is_query)
		return false;
	if (e->expires_ns > p->now_ns)
		return true;
	turn_round(&p->answer, &e->after);
	return is_live(e, &p->answer, p->now_ns, host);
}

/* The entry of p->tuple, if its flow lives; else `dead` is what stands in its place, if anything does. */
INLINE struct conntrack *conntrack_find(struct packet *p, bool host, struct conntrack **dead)
{
	struct conntrack *e = conntrack_at(&p->tuple, host);

	*dead = NULL;
	if (!e || is_flow_live(p, e, host))
		return e;
	*dead = e;
	return NULL;
}

INLINE bool is_current(const struct packet *p, const struct conntrack *e)
{
	return e->epoch == p->epoch && e->verdict == VERDICT_ALLOW;
}

/* Whether another flow's answers already come under p->answer; `replaced` is what stands under p->tuple, of a flow that
 * is over. If so is the one under p->answer, it becomes `dead`. */
INLINE bool is_answer_taken(struct packet *p, __u32 ifindex, const struct conntrack *replaced, struct conntrack **dead)
{
	struct conntrack *e = conntrack_at(&p->answer, false);

	*dead = e;
	if (!e || are_partners(e, replaced) || e->flags & CT_CLOSED || (e->flags & CT_REPLY && e->ifindex != ifindex))
		return false;
	turn_round(&p->other, &e->after);
	return is_live(e, &p->other, p->now_ns, false);
}

INLINE __u64 timeout_ns(__u8 protocol, __u16 flags)
{
	__u64 zero = 0;
	const struct config *c = LOOKUP(config, &zero);

	if (!c)
		return 0;
	if (protocol == PROTO_TCP)
		return flags & CT_CLOSED ? c->timeout_close_ns : flags & CT_ESTABLISHED ? c->timeout_tcp_ns : c->timeout_syn_ns;
	return has_ports(protocol) && flags & CT_ESTABLISHED ? c->timeout_udp_ns : c->timeout_other_ns;
}

INLINE __u64 packets_in(const struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

/* Who sends the packet in hand, and who receives it. (Copied: the verifier walks a path for each pointer that may be NULL,
 * as often as there are others; what stands in memory costs it nothing.) */
INLINE void set_way(struct way *way, const struct endpoint *ep)
{
	if (ep) {
		way->ifindex = ep->ifindex;
		__builtin_memcpy(way->mac, ep->mac, 6);
		__builtin_memcpy(way->host_mac, ep->host_mac, 6);
	} else {
		__builtin_memset(way, 0, sizeof(*way));
	}
}

INLINE void set_ways(struct packet *p, const struct endpoint *sender, const struct endpoint *receiver)
{
	set_way(&p->sender, sender);
	set_way(&p->receiver, receiver);
}

/* Who sends this entry's packets, and whom they are delivered to. */
INLINE void store_ways(struct conntrack *e, const struct way *sender, const struct way *receiver)
{
	e->sender_ifindex = sender->ifindex;
	e->receiver_ifindex = receiver->ifindex;
	__builtin_memcpy(e->mac, receiver->mac, 6);
	__builtin_memcpy(e->host_mac, receiver->host_mac, 6);
}

/* Nobody takes the entry for live before all of it is written. */
INLINE void conntrack_overwrite(struct conntrack *dead, const struct conntrack *e)
{
	*(volatile __u64 *)&dead->expires_ns = 0;
	asm volatile("" ::: "memory");
#pragma unroll
	for (int i = 1; i < sizeof(*e) / 8; i++)
		((word *)dead)[i] = ((const word *)e)[i];
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&dead->expires_ns = e->expires_ns;
}

/* Over the entry of a flow that is dead, or a new one. The node's own are replaced whole: an LRU map may give the memory of
 * a dead one to another key at any time. */
INLINE int conntrack_put(const struct tuple *key, const struct conntrack *e, struct conntrack *dead, bool host)
{
	if (host)
		return UPDATE(conntrack_host, (void *)key, (void *)e, BPF_ANY);
	if (!dead)
		return UPDATE(conntrack, (void *)key, (void *)e, BPF_NOEXIST);
	conntrack_overwrite(dead, e);
	return 0;
}

/* The flags of a flow's other direction: what goes to a proxy in one comes from it in the other. */
INLINE __u16 flags_of_answer(__u16 flags)
{
	__u16 turned = (flags & CT_TO_PROXY ? CT_FROM_PROXY : 0) | (flags & CT_FROM_PROXY ? CT_TO_PROXY : 0);

	return (flags & ~CT_OF_PROXY) | turned | CT_REPLY;
}

/* Of a new flow, from p->sender to p->receiver. What a proxy sends on is no flow of its own to people: its end is not
 * reported. */
INLINE void prepare_entries(struct __sk_buff *skb, struct packet *p)
{
	struct conntrack *e = &p->entry, *answer = &p->answer_entry;

	__builtin_memset(e, 0, sizeof(*e));
	e->created_ns = bpf_ktime_get_ns();
	e->expires_ns = p->now_ns + timeout_ns(p->tuple.protocol, 0);
	e->epoch = p->epoch;
	e->rule_egress = p->rule_egress;
	e->rule_ingress = p->rule_ingress;
	e->listener = p->listener;
	e->source_identity = p->source.identity;
	e->destination_identity = p->destination.identity;
	e->verdict = VERDICT_ALLOW;
	e->icmp_type = p->icmp_type;
	p->flags |= p->tuple.leg ? CT_ENDED : 0;
	e->ifindex = p->source.ifindex ? p->source.ifindex : p->destination.ifindex;
	*answer = *e;

	e->packets = packets_in(skb);
	e->bytes = p->length;
	e->flags = p->flags;
	e->acknowledged = p->tcp_acknowledged;
	copy_tuple(&e->after, &p->after);
	store_ways(e, &p->sender, &p->receiver);

	answer->flags = flags_of_answer(p->flags);
	turn_round(&answer->after, &p->tuple);
	store_ways(answer, &p->receiver, &p->sender);
}

/* Both entries of a new flow: p->tuple → p->after, answered under p->answer. `dead` and `dead_answer`: what stands
 * there of flows that are over. If another CPU has just made the same flow, that one is followed. */
INLINE enum drop_reason conntrack_create(struct __sk_buff *skb, struct packet *p, struct conntrack *dead,
					 struct conntrack *dead_answer, bool host)
{
	int error = conntrack_put(&p->tuple, &p->entry, dead, host);

	if (error == -EEXIST) {
		struct conntrack *winner = conntrack_at(&p->tuple, host);

		if (!winner || !is_current(p, winner))
			return DROP_TUPLE_TAKEN;
		p->entry = *winner;
		copy_tuple(&p->after, &p->tuple);
		conntrack_follow(p, &p->entry);
		return DROP_NONE;
	}
	if (error)
		return DROP_CONNTRACK_FULL;
	error = conntrack_put(&p->answer, &p->answer_entry, dead_answer, host);
	if (error) {
		conntrack_delete(&p->tuple, host);
		return error == -EEXIST ? DROP_TUPLE_TAKEN : DROP_CONNTRACK_FULL;
	}
	if (!p->tuple.leg)
		emit(skb, p, EVENT_NEW, DROP_NONE, p->entry.created_ns, p->entry.packets, p->entry.bytes);
	return DROP_NONE;
}

/* A verdict is visible before the epoch that vouches for it. */
INLINE void conntrack_store_verdict(struct packet *p, struct conntrack *e, enum drop_reason reason)
{
	__u16 flags = (e->flags & ~(CT_LOCAL | CT_OF_PROXY)) | (p->flags & CT_OF_PROXY) |
		      (p->sender.ifindex && p->receiver.ifindex ? CT_LOCAL : 0);

	if (e->epoch != p->epoch)
		add_to_tally(TALLY_REJUDGED);
	e->rule_egress = p->rule_egress;
	e->rule_ingress = p->rule_ingress;
	if (!reason) /* a flow that is denied may go on later, at the proxy where it began */
		e->listener = p->listener;
	e->source_identity = p->source.identity;
	e->destination_identity = p->destination.identity;
	e->flags = flags;
	p->flags = flags;
	store_ways(e, &p->sender, &p->receiver);
	*(volatile __u8 *)&e->verdict = reason ? VERDICT_DENY : VERDICT_ALLOW;
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&e->epoch = p->epoch;
}

INLINE void conntrack_close(struct __sk_buff *skb, struct packet *p, struct conntrack *e, struct conntrack *partner)
{
	__u64 expires_ns = p->now_ns + timeout_ns(PROTO_TCP, CT_CLOSED);
	bool ended = e->flags & CT_ENDED;
	__u64 packets = e->packets, bytes = e->bytes;

	e->flags |= CT_CLOSED | CT_ENDED;
	e->expires_ns = expires_ns;
	if (partner) {
		ended |= partner->flags & CT_ENDED;
		packets += partner->packets;
		bytes += partner->bytes;
		partner->flags |= CT_CLOSED | CT_ENDED;
		partner->expires_ns = expires_ns;
	}
	if (!ended)
		emit(skb, p, EVENT_END, DROP_NONE, bpf_ktime_get_ns(), packets, bytes);
}

/* As conntrack_close, of a flow that the packet in hand does not belong to any more: its end is for the sweeper to report. */
INLINE void conntrack_forsake(struct packet *p, struct conntrack *e)
{
	__u64 expires_ns = p->now_ns + timeout_ns(PROTO_TCP, CT_CLOSED);
	struct conntrack *partner;

	e->flags |= CT_CLOSED;
	e->expires_ns = expires_ns;
	turn_round(&p->answer, &e->after);
	partner = conntrack_at(&p->answer, false);
	if (are_partners(e, partner)) {
		partner->flags |= CT_CLOSED;
		partner->expires_ns = expires_ns;
	}
}

INLINE void set_clocks(struct packet *p)
{
	__u64 zero = 0;
	const __u64 *epoch = LOOKUP(epoch, &zero);

	p->epoch = epoch ? *epoch : 0; /* before anything it vouches for is read */
	p->now_ns = bpf_ktime_get_coarse_ns();
}

/* Whether the sender of a reset knows the connection: `partner` is the entry of the direction that it answers. */
INLINE bool is_believable_reset(const struct packet *p, const struct conntrack *partner)
{
	if (!partner || !partner->packets)
		return true;
	return p->tcp_sequence - partner->acknowledged + RESET_WINDOW < 2 * RESET_WINDOW;
}

/* A packet of a live flow passes: count it, keep the flow alive, follow TCP. */
INLINE void conntrack_track(struct __sk_buff *skb, struct packet *p, struct conntrack *e, bool host)
{
	bool first_answer = e->flags & CT_REPLY && !(e->flags & CT_ESTABLISHED);
	bool closing = p->tcp_flags & (TCP_FIN | TCP_RST) && !(e->flags & CT_CLOSED);
	bool one_way = e->flags & CT_TO_PROXY && p->hook == HOOK_TO_POD; /* the proxy's answers do not come by here */
	struct conntrack *partner = NULL;

	__sync_fetch_and_add(&e->packets, packets_in(skb));
	__sync_fetch_and_add(&e->bytes, (__u64)p->length);
	if (first_answer || closing) {
		turn_round(&p->answer, &p->after);
		partner = conntrack_at(&p->answer, host);
		if (!are_partners(e, partner))
			partner = NULL;
	}
	if (first_answer) {
		e->flags |= CT_ESTABLISHED;
		if (partner)
			partner->flags |= CT_ESTABLISHED;
	}
	if (one_way && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_ACK)
		e->flags |= CT_ESTABLISHED;
	e->expires_ns = p->now_ns + timeout_ns(p->tuple.protocol, e->flags);
	if (p->tcp_flags & TCP_ACK && !(p->tcp_flags & TCP_RST))
		e->acknowledged = p->tcp_acknowledged;
	if (closing) {
		if (p->tcp_flags & TCP_FIN)
			e->flags |= CT_FIN;
		if (p->tcp_flags & TCP_RST ? is_believable_reset(p, partner) : one_way || (partner && partner->flags & CT_FIN))
			conntrack_close(skb, p, e, partner);
	}
}

#endif
