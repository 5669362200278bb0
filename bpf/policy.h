/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Verdict rows: all precedence is settled when they are compiled. What is not found is denied. */
#ifndef GATEHOUSE_POLICY_H
#define GATEHOUSE_POLICY_H

#include "packet.h"

INLINE struct policy_class_value *row_for(__u64 subject, __u64 remote_class, __u32 direction)
{
	struct policy_class_value *value;

	ON_STACK(policy_class_key, key);
	key->subject = subject;
	key->remote_class = remote_class;
	key->direction = direction;
	value = LOOKUP(policy_class, key);
	if (value)
		return value;
	key->remote_class = CLASS_ANY;
	return LOOKUP(policy_class, key);
}

/* Asks the rules of one end about the other. Sets `rule` to the one that decided, if one did, and `listener` where it leaves
 * that to a proxy. */
INLINE bool policy_allows(const struct party *subject, const struct party *remote, __u32 direction,
			  __u8 protocol, __u16 port_be, __u64 *rule, __u64 *listener)
{
	struct policy_class_value *row = row_for(subject->subject, remote->remote_class, direction);
	struct policy_row_value *cell;

	ON_STACK(policy_row_key, key);
	if (!row)
		return false;
	key->prefixlen = ROW_BITS_PORT;
	key->row_high_be = bpf_htonl(row->row >> 32);
	key->row_low_be = bpf_htonl(row->row);
	key->protocol = protocol;
	key->port_be = port_be;
	cell = LOOKUP(policy_row, key);
	if (!cell)
		return false;
	*rule = cell->rule;
	if (cell->verdict == VERDICT_REDIRECT) {
		*listener = cell->listener;
		return *listener;
	}
	return cell->verdict == VERDICT_ALLOW;
}

/* What rows know as the port. ICMP: the type of the flow's first packet. */
INLINE __u16 row_port_be(const struct packet *p, __u16 port_be)
{
	if (has_ports(p->tuple.protocol))
		return port_be;
	return is_icmp(p) ? bpf_htons(p->first_icmp_type) : 0;
}

/* Judges the flow between p->source and p->destination by the rules of those ends that are local. If both leave it to a
 * proxy, egress goes first: what that proxy sends on is judged for ingress. */
INLINE enum drop_reason judge(struct packet *p, __u16 port_be)
{
	__u8 protocol = p->tuple.protocol;
	__u64 listener = 0;

	p->rule_egress = RULE_NONE;
	p->rule_ingress = RULE_NONE;
	p->egress_judged = p->source.ifindex != 0;
	p->ingress_judged = 0;
	p->listener = 0;
	port_be = row_port_be(p, port_be);
	if (p->source.ifindex && p->source.ifindex == p->destination.ifindex) {
		p->ingress_judged = 1;
		p->rule_egress = RULE_SELF;
		p->rule_ingress = RULE_SELF;
		return DROP_NONE;
	}
	if (p->source.ifindex) {
		if (!p->destination.remote_class)
			return DROP_UNKNOWN_IDENTITY;
		if (!policy_allows(&p->source, &p->destination, DIRECTION_EGRESS, protocol, port_be, &p->rule_egress, &p->listener))
			return DROP_POLICY_EGRESS;
	}
	if (p->destination.ifindex) {
		p->ingress_judged = 1;
		if (!p->source.remote_class)
			return DROP_UNKNOWN_IDENTITY;
		if (!policy_allows(&p->destination, &p->source, DIRECTION_INGRESS, protocol, port_be, &p->rule_ingress, &listener))
			return DROP_POLICY_INGRESS;
		if (!p->listener && !(p->flags & CT_FROM_INGRESS))
			p->listener = listener;
	}
	if (p->listener && protocol != PROTO_TCP && protocol != PROTO_UDP) /* there is no proxy for it */
		return DROP_PROXY_UNREADY;
	/* Neither end is local: nobody's rules were asked. */
	return p->egress_judged || p->ingress_judged ? DROP_NONE : DROP_INTERNAL;
}

#endif
