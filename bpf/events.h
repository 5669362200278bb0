/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Telling user space: counters, and events in the ring. */
#ifndef GATEHOUSE_EVENTS_H
#define GATEHOUSE_EVENTS_H

#include "packet.h"

/* Others may use bits of their own (kube-proxy: 0x4000, 0x8000) of a mark that is on its way through the stack. */
#define MARK_BITS 0xffff000f

INLINE bool has_mark(const struct __sk_buff *skb, __u32 mark)
{
	return (skb->mark & MARK_BITS) == mark;
}

INLINE void count_outcome(__u32 reason)
{
	__u64 *count = LOOKUP(drops, &reason);

	if (count)
		(*count)++;
}

INLINE void event_addresses(struct event *e, const struct packet *p, bool backwards)
{
	bool service = p->flags & CT_SERVICE;
	const struct address *frontend = p->is_reply ? &p->after.source : &p->tuple.destination;
	__u16 frontend_port_be = p->is_reply ? p->after.source_port_be : p->tuple.destination_port_be;

	copy_address(&e->source, backwards ? &p->after.destination : &p->tuple.source);
	copy_address(&e->destination, backwards ? &p->tuple.source : &p->after.destination);
	e->source_port_be = backwards ? p->after.destination_port_be : p->tuple.source_port_be;
	e->destination_port_be = backwards ? p->tuple.source_port_be : p->after.destination_port_be;
	e->protocol = p->tuple.protocol;
	__builtin_memset(&e->service, 0, sizeof(e->service));
	if (service)
		copy_address(&e->service, frontend);
	e->service_port_be = service ? frontend_port_be : 0;
}

/* A dropped ICMP error is shown as the packet it is, not as the flow it quotes. */
INLINE void event_addresses_of_error(struct event *e, const struct packet *p)
{
	copy_address(&e->source, &p->outer.source);
	copy_address(&e->destination, &p->outer.destination);
	e->source_port_be = 0;
	e->destination_port_be = 0;
	e->protocol = p->outer.protocol;
	__builtin_memset(&e->service, 0, sizeof(e->service));
	e->service_port_be = 0;
}

/* What was translated at its sender's socket has its backend's address from the start; the socket is known here still. */
INLINE void name_service(struct __sk_buff *skb, struct event *e)
{
	struct socket_key key = { .cookie = bpf_get_socket_cookie(skb), .protocol = e->protocol };
	const struct socket_value *frontend;

	copy_address(&key.address, &e->destination);
	key.port_be = e->destination_port_be;
	frontend = LOOKUP(socket_frontends, &key);
	if (!frontend)
		return;
	copy_address(&e->service, &frontend->address);
	e->service_port_be = frontend->port_be;
}

/* NEW and END go in the originator's direction, DROP in the packet's. `packets` and `bytes`: see struct event. */
INLINE void emit(struct __sk_buff *skb, const struct packet *p, __u8 type, __u8 reason, __u64 time_ns, __u64 packets,
		 __u64 bytes)
{
	struct event *e = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*e), 0);
	bool as_seen = type == EVENT_DROP && p->is_reply;

	if (!e) {
		add_to_tally(TALLY_EVENTS_LOST);
		return;
	}
	if (type == EVENT_DROP && p->is_error)
		event_addresses_of_error(e, p);
	else
		event_addresses(e, p, type != EVENT_DROP && p->is_reply);
	e->time_ns = time_ns;
	e->rule_egress = p->rule_egress;
	e->rule_ingress = p->rule_ingress;
	e->packets = packets;
	e->bytes = bytes;
	e->source_identity = as_seen ? p->destination.identity : p->source.identity;
	e->destination_identity = as_seen ? p->source.identity : p->destination.identity;
	e->ifindex = skb->ifindex;
	e->type = type;
	e->verdict = type == EVENT_DROP ? VERDICT_DENY : p->flags & CT_OF_PROXY ? VERDICT_REDIRECT : VERDICT_ALLOW;
	e->reason = reason;
	e->hook = p->hook;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
	e->egress_judged = p->egress_judged;
	e->ingress_judged = p->ingress_judged;
	*(half *)&e->refused = p->is_refused;
	e->encrypted = p->flags & CT_ENCRYPTED || has_mark(skb, MARK_DECRYPTED);
	if (type != EVENT_END && !p->is_reply && !(p->flags & CT_SERVICE) && (p->hook == HOOK_FROM_POD || p->hook == HOOK_TO_POD))
		name_service(skb, e);
	bpf_ringbuf_submit(e, 0);
}

/* Every packet that does not pass comes by here. */
INLINE int drop(struct __sk_buff *skb, const struct packet *p, enum drop_reason reason)
{
	count_outcome(reason);
	if (reason == DROP_CONNTRACK_FULL)
		add_to_tally(TALLY_CONNTRACK_FULL);
	if (reason == DROP_NAT_FULL)
		add_to_tally(TALLY_NAT_FULL);
	if (reason != DROP_LINK_CONTROL)
		emit(skb, p, EVENT_DROP, reason, bpf_ktime_get_ns(), 1, p->length);
	return DROP;
}

#endif
