/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the node's devices translate: entries found, made, followed. tc and XDP share it, so nothing here knows of a
 * packet's bytes. The two entries of a flow share `created_ns`, and the key of each follows from the other. */
#ifndef GATEHOUSE_NATMAP_H
#define GATEHOUSE_NATMAP_H

#include "conntrack.h"

INLINE struct nat *nat_at(const struct tuple *key)
{
	return LOOKUP(nat, (void *)key);
}

/* Packets of such an entry come in by a device; those of all others leave by one. */
INLINE bool comes_in(__u16 flags)
{
	return flags & NAT_REPLY ? (flags & (NAT_FORWARD | NAT_MASQUERADE)) != 0 : !(flags & NAT_MASQUERADE);
}

/* Where answers go past this node (DSR), an end is seen of one direction only: what follows it may take a while. */
INLINE __u64 nat_timeout_ns(__u8 protocol, __u16 flags)
{
	bool half_closed = flags & NAT_DSR && flags & NAT_FIN;
	__u16 state = flags & NAT_CLOSED ? CT_CLOSED : 0;

	return timeout_ns(protocol, state | (flags & NAT_ESTABLISHED && !half_closed ? CT_ESTABLISHED : 0));
}

/* The other entry of `e`'s flow, if it has one. Uses p->other. */
INLINE struct nat *nat_partner(struct packet *p, const struct nat *e)
{
	struct nat *partner;

	turn_round(&p->other, &e->after);
	partner = nat_at(&p->other);
	return partner && partner->created_ns == e->created_ns ? partner : NULL;
}

/* As conntrack's: expiry is the later of the two. */
INLINE bool is_nat_live(struct packet *p, const struct nat *e)
{
	const struct nat *partner;

	if (e->expires_ns > p->now_ns)
		return true;
	partner = nat_partner(p, e);
	return partner && partner->expires_ns > p->now_ns;
}

/* A SYN begins another flow where one has ended. Of DSR only one end's FIN is seen: the other's is taken as read. */
INLINE bool is_begun_anew(const struct packet *p, const struct nat *e)
{
	__u16 ended = NAT_CLOSED | NAT_GONE | (e->flags & NAT_DSR ? NAT_FIN : 0);

	return e->flags & ended && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Both entries of a flow that is over. */
INLINE void nat_forget(struct packet *p, const struct tuple *key, const struct nat *e)
{
	if (nat_partner(p, e))
		DELETE(nat, &p->other);
	DELETE(nat, (void *)key);
}

/* Whether answers to p->after are another flow's. What is left of one that is over is removed. */
INLINE bool is_nat_answer_taken(struct packet *p)
{
	const struct nat *e, *partner;

	turn_round(&p->answer, &p->after);
	e = nat_at(&p->answer);
	if (!e)
		return false;
	partner = nat_partner(p, e);
	if (!is_begun_anew(p, e) && !(partner && is_begun_anew(p, partner)) && is_nat_live(p, e))
		return true;
	nat_forget(p, &p->answer, e);
	return false;
}

/* The entry of p->tuple, if its flow lives; what is left of another is removed. */
INLINE struct nat *nat_find(struct packet *p)
{
	struct nat *e = nat_at(&p->tuple);

	if (!e || (!is_begun_anew(p, e) && is_nat_live(p, e)))
		return e;
	if (!(e->flags & NAT_REPLY)) /* a reply may be fresh by the next moment: its originator decides */
		nat_forget(p, &p->tuple, e);
	return NULL;
}

/* Take over what the entry says. */
INLINE void nat_follow(struct packet *p, const struct nat *e)
{
	copy_tuple(&p->after, &e->after);
	p->nat_flags = e->flags;
	p->is_reply = (e->flags & NAT_REPLY) != 0;
	p->flags = e->flags & NAT_MASQUERADE ? CT_SOURCE : CT_SERVICE;
}

/* A source port that this node gives out; 0: it has none to give. */
INLINE __u16 own_port_be(const struct config *c)
{
	__u32 min = c ? c->port_min : 0, ports = c ? c->port_max - min + 1 : 0;

	return min && (__s32)ports > 0 ? bpf_htons(min + bpf_get_prandom_u32() % ports) : 0;
}

INLINE bool has_own_port(const struct config *c, __u16 port_be)
{
	__u16 port = bpf_ntohs(port_be);

	return c && port >= c->port_min && port <= c->port_max;
}

/* SCTP's ports are under its checksum, which cannot be updated in part. */
INLINE bool may_change_port(const struct packet *p)
{
	return p->tuple.protocol != PROTO_SCTP;
}

/* Puts p->nat_entry under p->answer, where no other flow's answers come: with the source port that p->after has, or
 * (`own`: always) with one that this node gives out. */
INLINE enum drop_reason nat_claim_answer(struct packet *p, bool own)
{
	__u32 zero = 0;
	const struct config *c = LOOKUP(config, &zero);
	int error = -EEXIST;

	turn_round(&p->answer, &p->after);
	if (!own || !may_change_port(p)) {
		const struct nat *taken = nat_at(&p->answer);

		if (taken && (taken->flags & NAT_CLOSED || !is_nat_live(p, taken)))
			nat_forget(p, &p->answer, taken);
		error = UPDATE(nat, &p->answer, &p->nat_entry, BPF_NOEXIST);
	}
	if (error == -EEXIST && p->nat_flags & NAT_DSR) /* its client is to be answered under the port it has */
		return DROP_TUPLE_TAKEN;
	if (error == -EEXIST && !may_change_port(p))
		return DROP_NAT_PORTS;
	for (__u32 i = 0; error == -EEXIST && i < PORT_TRIES; i++) {
		asm volatile("" : "+r"(i)); /* as in another_port */
		p->after.source_port_be = own_port_be(c);
		if (!p->after.source_port_be)
			return DROP_NAT_PORTS;
		p->answer.destination_port_be = p->after.source_port_be;
		error = UPDATE(nat, &p->answer, &p->nat_entry, BPF_NOEXIST);
	}
	return !error ? DROP_NONE : error == -EEXIST ? DROP_NAT_PORTS : DROP_NAT_FULL;
}

INLINE void nat_prepare(struct packet *p, __u32 ifindex, __u16 flags)
{
	struct nat *e = &p->nat_entry;

	__builtin_memset(e, 0, sizeof(*e));
	e->created_ns = bpf_ktime_get_ns();
	e->expires_ns = p->now_ns + nat_timeout_ns(p->tuple.protocol, 0);
	e->ifindex = ifindex;
	e->flags = flags;
}

/* Both entries of a new flow: p->tuple → p->after, whose source port may become another. Where answers do not come by
 * this node (DSR) theirs only keeps other flows off. `own`: the source is to be this node's. The packet is still to be tracked: returns its
 * entry, NULL where `reason` says why not. If another CPU has just made the same flow, that one is followed. */
INLINE struct nat *nat_create(struct packet *p, __u32 ifindex, bool own, enum drop_reason *reason)
{
	struct nat *e = NULL;
	int error;

	nat_prepare(p, ifindex, p->nat_flags | NAT_REPLY);
	turn_round(&p->nat_entry.after, &p->tuple);
	*reason = nat_claim_answer(p, own);
	if (*reason)
		return NULL;
	p->nat_entry.flags = p->nat_flags;
	copy_tuple(&p->nat_entry.after, &p->after);
	error = UPDATE(nat, &p->tuple, &p->nat_entry, BPF_NOEXIST);
	if (error)
		DELETE(nat, &p->answer);
	if (!error || error == -EEXIST)
		e = nat_at(&p->tuple);
	if (!e)
		*reason = DROP_NAT_FULL;
	else if (error)
		nat_follow(p, e);
	return e;
}

/* A connection is over once both ends have said so, or one that knows of it has broken it off. */
INLINE bool is_over(const struct packet *p, const struct nat *partner)
{
	if (p->tcp_flags & TCP_RST)
		return !partner || !partner->packets ||
		       p->tcp_sequence - partner->acknowledged + RESET_WINDOW < 2 * RESET_WINDOW;
	return partner && partner->flags & NAT_FIN;
}

/* A packet of a live flow passes: count it, keep the flow alive, follow TCP. Of DSR the answers go another way: there
 * the client's next packet shows that it had one. */
INLINE void nat_track(struct packet *p, struct nat *e, __u64 packets)
{
	bool shows_answer = e->flags & NAT_REPLY || (e->flags & NAT_DSR && !p->is_new && !(p->tcp_flags & TCP_SYN));
	bool first_answer = shows_answer && !(e->flags & NAT_ESTABLISHED);
	bool closing = p->tcp_flags & (TCP_FIN | TCP_RST) && !(e->flags & NAT_CLOSED);
	struct nat *partner = NULL;

	__sync_fetch_and_add(&e->packets, packets);
	__sync_fetch_and_add(&e->bytes, (__u64)p->length);
	if (first_answer || closing)
		partner = nat_partner(p, e);
	if (first_answer) {
		e->flags |= NAT_ESTABLISHED;
		if (partner)
			partner->flags |= NAT_ESTABLISHED;
	}
	if (closing && p->tcp_flags & TCP_FIN)
		e->flags |= NAT_FIN;
	if (closing && is_over(p, partner)) {
		e->flags |= NAT_CLOSED;
		if (partner) {
			partner->flags |= NAT_CLOSED;
			partner->expires_ns = p->now_ns + nat_timeout_ns(PROTO_TCP, NAT_CLOSED);
		}
	}
	e->expires_ns = p->now_ns + nat_timeout_ns(p->tuple.protocol, e->flags);
	if (p->tcp_flags & TCP_ACK && !(p->tcp_flags & TCP_RST))
		e->acknowledged = p->tcp_acknowledged;
}

#endif
