/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting p->tuple to p->after, checksums included. */
#ifndef GATEHOUSE_NAT_H
#define GATEHOUSE_NAT_H

#include "parse.h"

#define IPV4_CHECKSUM_AT 10
#define IPV4_ADDRESSES_AT 12
#define IPV6_ADDRESSES_AT 8
#define ICMP_CHECKSUM_AT 2
#define UDP_CHECKSUM_AT 6
#define TCP_CHECKSUM_AT 16

#define ADDRESSES_SIZE 32       /* of struct tuple, source and destination */
#define PORTS_SIZE 4

INLINE __u32 addresses_difference(const struct tuple *from, const struct tuple *to)
{
	return bpf_csum_diff((void *)from, ADDRESSES_SIZE, (void *)to, ADDRESSES_SIZE, 0);
}

INLINE __u32 ports_difference(const struct tuple *from, const struct tuple *to)
{
	return bpf_csum_diff((void *)&from->source_port_be, PORTS_SIZE, (void *)&to->source_port_be, PORTS_SIZE, 0);
}

/* Writes the addresses of `t` to the IP header at `at`, and its own checksum if it has one. Returns whether that failed. */
INLINE bool store_addresses(struct __sk_buff *skb, __u32 at, bool ipv6, const struct tuple *t, __u32 difference)
{
	__u32 ipv4[2] = { *(__u32 *)&t->source.bytes[12], *(__u32 *)&t->destination.bytes[12] };

	if (ipv6)
		return bpf_skb_store_bytes(skb, at + IPV6_ADDRESSES_AT, (void *)t, ADDRESSES_SIZE, 0);
	return bpf_l3_csum_replace(skb, at + IPV4_CHECKSUM_AT, 0, difference, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV4_ADDRESSES_AT, ipv4, sizeof(ipv4), 0);
}

INLINE bool store_ports(struct __sk_buff *skb, __u32 l4, const struct tuple *t)
{
	return bpf_skb_store_bytes(skb, l4, (void *)&t->source_port_be, PORTS_SIZE, 0);
}

/* SCTP's checksum covers neither addresses nor can it be updated in part: its ports are never translated. */
INLINE enum drop_reason rewrite(struct __sk_buff *skb, struct packet *p)
{
	__u32 difference = addresses_difference(&p->tuple, &p->after);
	__u8 protocol = p->tuple.protocol;
	__u32 flags = protocol == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 at = p->outer.l4 + (protocol == PROTO_UDP ? UDP_CHECKSUM_AT : TCP_CHECKSUM_AT);

	if (store_addresses(skb, p->outer.at, p->ipv6, &p->after, difference))
		return DROP_TRANSLATION;
	if (p->outer.fragment_offset || protocol == PROTO_SCTP)
		return DROP_NONE;
	if (bpf_l4_csum_replace(skb, at, 0, difference, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(skb, at, 0, ports_difference(&p->tuple, &p->after), flags) ||
	    store_ports(skb, p->outer.l4, &p->after))
		return DROP_TRANSLATION;
	return DROP_NONE;
}

/* The checksum of the quoted packet's own payload protocol, where enough of it is quoted. `icmp` is where the ICMP
 * checksum stands, which covers it. */
INLINE bool rewrite_quoted_checksum(struct __sk_buff *skb, const struct packet *p, __u32 icmp, __u32 difference)
{
	__u8 protocol = p->tuple.protocol;
	__u32 at = p->inner.l4 + (protocol == PROTO_UDP ? UDP_CHECKSUM_AT : TCP_CHECKSUM_AT);
	__u16 before, after;

	if (protocol == PROTO_SCTP || at + sizeof(before) > p->inner.end)
		return false;
	return bpf_skb_load_bytes(skb, at, &before, sizeof(before)) ||
	       bpf_l4_csum_replace(skb, at, 0, difference, protocol == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0) ||
	       bpf_skb_load_bytes(skb, at, &after, sizeof(after)) ||
	       bpf_l4_csum_replace(skb, icmp, before, after, sizeof(before));
}

/* An ICMP error about a flow: the packet it quotes goes the other way, as that flow's far end knows it. The error's own
 * source is translated only if it is the flow's end, not a router on the way. */
INLINE enum drop_reason rewrite_error(struct __sk_buff *skb, struct packet *p)
{
	__u32 icmp = p->outer.l4 + ICMP_CHECKSUM_AT;
	__u32 addresses, ports;

	turn_round(&p->other, &p->tuple);
	turn_round(&p->answer, &p->after);
	addresses = addresses_difference(&p->other, &p->answer);
	ports = ports_difference(&p->other, &p->answer);
	if (store_addresses(skb, p->inner.at, p->ipv6, &p->answer, addresses) ||
	    (p->ipv6 && bpf_l4_csum_replace(skb, icmp, 0, addresses, 0)) || /* IPv4: its header's checksum makes up for it */
	    store_ports(skb, p->inner.l4, &p->answer) || bpf_l4_csum_replace(skb, icmp, 0, ports, 0) ||
	    rewrite_quoted_checksum(skb, p, icmp, bpf_csum_diff(NULL, 0, &ports, sizeof(ports), addresses)))
		return DROP_TRANSLATION;

	copy_address(&p->other.source, &p->outer.source);
	copy_address(&p->other.destination, &p->outer.destination);
	copy_address(&p->answer.source, same_address(&p->outer.source, &p->tuple.source) ? &p->after.source : &p->outer.source);
	copy_address(&p->answer.destination, &p->after.destination);
	addresses = addresses_difference(&p->other, &p->answer);
	if (store_addresses(skb, p->outer.at, p->ipv6, &p->answer, addresses) ||
	    (p->ipv6 && bpf_l4_csum_replace(skb, icmp, 0, addresses, BPF_F_PSEUDO_HDR)))
		return DROP_TRANSLATION;
	return DROP_NONE;
}

INLINE enum drop_reason translate(struct __sk_buff *skb, struct packet *p)
{
	if (!(p->flags & CT_SERVICE))
		return DROP_NONE;
	return p->is_error ? rewrite_error(skb, p) : rewrite(skb, p);
}

#endif
