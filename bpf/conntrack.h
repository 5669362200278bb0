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

INLINE void hairpin_address(struct address *to, bool ipv6)
{
	if (ipv6) {
		__builtin_memcpy(to, HAIRPIN_V6_BE_BYTES, 16);
	} else {
		__builtin_memset(to, 0, 10);
		__builtin_memset(to->bytes + 10, 0xff, 2);
		__builtin_memcpy(to->bytes + 12, HAIRPIN_V4_BE_BYTES, 4);
	}
}

/* The key of the flow's other entry: what is sent in answer to `t` as it leaves here. */
INLINE void partner_key(struct tuple *to, const struct tuple *t, const struct conntrack *e, bool ipv6)
{
	turn_round(to, t);
	if (!(e->flags & CT_SERVICE))
		return;
	if (e->flags & CT_REPLY) {
		copy_address(&to->destination, &e->nat_address);
		to->destination_port_be = e->nat_port_be;
		if (e->flags & CT_HAIRPIN)
			copy_address(&to->source, &t->source);
	} else {
		copy_address(&to->source, &e->nat_address);
		to->source_port_be = e->nat_port_be;
		if (e->flags & CT_HAIRPIN)
			hairpin_address(&to->destination, ipv6);
	}
}

INLINE bool are_partners(const struct conntrack *a, const struct conntrack *b)
{
	return a && b && a->created_ns == b->created_ns;
}

INLINE void conntrack_forget(const struct tuple *key, const struct tuple *partner, const struct conntrack *e, bool host)
{
	bool both = are_partners(e, conntrack_at(partner, host));

	conntrack_delete(key, host);
	if (both)
		conntrack_delete(partner, host);
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

/* The entry of p->tuple, if its flow lives. Sets p->after and p->answer. A SYN to a closed flow begins another. */
INLINE struct conntrack *conntrack_find(struct packet *p, bool host)
{
	struct conntrack *e = conntrack_at(&p->tuple, host);

	if (!e)
		return NULL;
	partner_key(&p->answer, &p->tuple, e, p->ipv6);
	if (!is_live(e, &p->answer, p->now_ns, host) ||
	    (e->flags & CT_CLOSED && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)) {
		conntrack_forget(&p->tuple, &p->answer, e, host);
		return NULL;
	}
	return e;
}

/* Take over what the entry says. The near end is the pod this hook is for. */
INLINE void conntrack_follow(struct packet *p, const struct conntrack *e)
{
	bool local = e->flags & CT_LOCAL, near_originated;

	turn_round(&p->after, &p->answer);
	p->flags = e->flags;
	p->is_reply = (e->flags & CT_REPLY) != 0;
	p->source.identity = e->source_identity;
	p->destination.identity = e->destination_identity;
	p->rule_egress = e->rule_egress;
	p->rule_ingress = e->rule_ingress;
	near_originated = (p->hook == HOOK_FROM_POD) != p->is_reply;
	p->egress_judged = near_originated || local;
	p->ingress_judged = !near_originated || local;
}

/* The entry is of a flow whose pod is gone: another has its address now. */
INLINE void conntrack_abandon(struct packet *p, const struct conntrack *e, bool host)
{
	conntrack_forget(&p->tuple, &p->answer, e, host);
	copy_tuple(&p->after, &p->tuple);
	p->flags = 0;
	p->is_reply = 0;
}

INLINE bool is_current(const struct packet *p, const struct conntrack *e, const struct endpoint *near)
{
	__u32 identity = (p->hook == HOOK_FROM_POD) != p->is_reply ? e->source_identity : e->destination_identity;

	return e->epoch == p->epoch && e->verdict == VERDICT_ALLOW && identity == near->identity;
}

/* Whether an entry stands there that looks live by itself: a hint, which is_answer_taken settles. */
INLINE bool is_live_at(const struct tuple *key, __u64 now_ns)
{
	const struct conntrack *e = conntrack_at(key, false);

	return e && e->expires_ns > now_ns && !(e->flags & CT_CLOSED);
}

/* Whether another flow's answers already come under p->answer. A dead one's entries are removed. */
INLINE bool is_answer_taken(struct packet *p, __u32 ifindex)
{
	struct conntrack *e = conntrack_at(&p->answer, false);

	if (!e)
		return false;
	partner_key(&p->other, &p->answer, e, p->ipv6);
	if (!(e->flags & CT_CLOSED) && !(e->flags & CT_REPLY && e->ifindex != ifindex) &&
	    is_live(e, &p->other, p->now_ns, false))
		return true;
	conntrack_forget(&p->answer, &p->other, e, false);
	return false;
}

INLINE __u64 timeout_ns(__u8 protocol, __u8 flags)
{
	__u32 zero = 0;
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

/* Both entries of a new flow: p->tuple → p->after, answered under p->answer. If another CPU has just made the same flow,
 * that one is followed. */
INLINE enum drop_reason conntrack_create(struct __sk_buff *skb, struct packet *p, __u32 ifindex, bool host)
{
	struct conntrack *e = &p->entry;
	int error;

	__builtin_memset(e, 0, sizeof(*e));
	e->created_ns = bpf_ktime_get_ns();
	e->expires_ns = p->now_ns + timeout_ns(p->tuple.protocol, 0);
	e->epoch = p->epoch;
	e->packets = packets_in(skb);
	e->bytes = p->length;
	e->rule_egress = p->rule_egress;
	e->rule_ingress = p->rule_ingress;
	e->source_identity = p->source.identity;
	e->destination_identity = p->destination.identity;
	e->flags = p->flags;
	e->verdict = VERDICT_ALLOW;
	e->ifindex = ifindex;
	copy_address(&e->nat_address, &p->after.destination);
	e->nat_port_be = p->after.destination_port_be;
	error = host ? UPDATE(conntrack_host, &p->tuple, e, BPF_NOEXIST) : UPDATE(conntrack, &p->tuple, e, BPF_NOEXIST);
	if (error == -EEXIST) {
		struct conntrack *winner = conntrack_at(&p->tuple, host);

		if (!winner || winner->flags & CT_REPLY || winner->verdict != VERDICT_ALLOW)
			return DROP_TUPLE_TAKEN;
		partner_key(&p->answer, &p->tuple, winner, p->ipv6);
		conntrack_follow(p, winner);
		return DROP_NONE;
	}
	if (error)
		return DROP_CONNTRACK_FULL;

	e->flags |= CT_REPLY;
	e->packets = 0;
	e->bytes = 0;
	copy_address(&e->nat_address, &p->tuple.destination);
	e->nat_port_be = p->tuple.destination_port_be;
	error = host ? UPDATE(conntrack_host, &p->answer, e, BPF_NOEXIST) : UPDATE(conntrack, &p->answer, e, BPF_NOEXIST);
	if (error) {
		conntrack_delete(&p->tuple, host);
		return error == -EEXIST ? DROP_TUPLE_TAKEN : DROP_CONNTRACK_FULL;
	}
	emit(skb, p, EVENT_NEW, DROP_NONE, e->packets, e->bytes);
	return DROP_NONE;
}

/* A verdict is visible before the epoch that vouches for it. */
INLINE void conntrack_store_verdict(struct packet *p, struct conntrack *e, bool allowed, bool local)
{
	__u8 flags = (e->flags & ~CT_LOCAL) | (local ? CT_LOCAL : 0);

	if (e->epoch != p->epoch)
		add_to_tally(TALLY_REJUDGED);
	e->rule_egress = p->rule_egress;
	e->rule_ingress = p->rule_ingress;
	e->source_identity = p->source.identity;
	e->destination_identity = p->destination.identity;
	e->flags = flags;
	p->flags = flags;
	*(volatile __u8 *)&e->verdict = allowed ? VERDICT_ALLOW : VERDICT_DENY;
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
		emit(skb, p, EVENT_END, DROP_NONE, packets, bytes);
}

INLINE void set_clocks(struct packet *p)
{
	__u32 zero = 0;
	const __u64 *epoch = LOOKUP(epoch, &zero);

	p->epoch = epoch ? *epoch : 0; /* before anything it vouches for is read */
	p->now_ns = bpf_ktime_get_coarse_ns();
}

/* A packet of a live flow passes: count it, keep the flow alive, follow TCP. */
INLINE void conntrack_track(struct __sk_buff *skb, struct packet *p, struct conntrack *e, bool host)
{
	bool first_answer = e->flags & CT_REPLY && !(e->flags & CT_ESTABLISHED);
	bool closing = p->tcp_flags & (TCP_FIN | TCP_RST) && !(e->flags & CT_CLOSED);
	struct conntrack *partner = NULL;

	__sync_fetch_and_add(&e->packets, packets_in(skb));
	__sync_fetch_and_add(&e->bytes, (__u64)p->length);
	if (first_answer || closing) {
		partner = conntrack_at(&p->answer, host);
		if (!are_partners(e, partner))
			partner = NULL;
	}
	if (first_answer) {
		e->flags |= CT_ESTABLISHED;
		if (partner)
			partner->flags |= CT_ESTABLISHED;
	}
	e->expires_ns = p->now_ns + timeout_ns(p->tuple.protocol, e->flags);
	if (closing) {
		if (p->tcp_flags & TCP_FIN)
			e->flags |= CT_FIN;
		if (p->tcp_flags & TCP_RST || (partner && partner->flags & CT_FIN))
			conntrack_close(skb, p, e, partner);
	}
}

#endif
