/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rewriting p->tuple to p->after, checksums included: addresses, ports, and of ICMP the id of an echo. */
#ifndef GATEHOUSE_NAT_H
#define GATEHOUSE_NAT_H

#include "parse.h"

#define IPV4_CHECKSUM_AT 10
#define IPV4_ADDRESSES_AT 12
#define IPV6_ADDRESSES_AT 8
#define ICMP_CHECKSUM_AT 2
#define UDP_CHECKSUM_AT 6
#define TCP_CHECKSUM_AT 16
#define ICMP_ID_AT 4

#define ADDRESSES_SIZE 32       /* of struct tuple, source and destination */
#define PORTS_SIZE 4

/* What to add to a checksum where `words` words of 4 bytes change. */
INLINE __u32 difference(const void *from, const void *to, int words)
{
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < words; i++)
		sum += (__u64)(__u32)~((const half *)from)[i] + ((const half *)to)[i];
	return fold_to_32(sum);
}

INLINE __u32 addresses_difference(const struct tuple *from, const struct tuple *to)
{
	return difference(from, to, ADDRESSES_SIZE / 4);
}

INLINE __u32 ports_difference(const struct tuple *from, const struct tuple *to)
{
	return difference(&from->source_port_be, &to->source_port_be, PORTS_SIZE / 4);
}

/* Writes the addresses of `t` to the IP header at `at`, and its own checksum if it has one. True: that failed. */
INLINE bool store_addresses(struct __sk_buff *skb, __u32 at, bool ipv6, const struct tuple *t, __u32 difference)
{
	__u32 ipv4[2] = { *(half *)&t->source.bytes[12], *(half *)&t->destination.bytes[12] };

	if (ipv6)
		return bpf_skb_store_bytes(skb, at + IPV6_ADDRESSES_AT, (void *)t, ADDRESSES_SIZE, 0);
	return bpf_l3_csum_replace(skb, at + IPV4_CHECKSUM_AT, 0, difference, 0) ||
	       bpf_skb_store_bytes(skb, at + IPV4_ADDRESSES_AT, ipv4, sizeof(ipv4), 0);
}

/* Of ICMP: whichever of the two is the id; the other is 0. */
INLINE __u16 icmp_id_be(const struct tuple *t)
{
	return t->source_port_be | t->destination_port_be;
}

/* Where a device has summed the whole packet, the kernel's update for a pseudo header takes it that IPv4's own checksum
 * makes up for the addresses; IPv6 has none. bcc 0.26 takes 16 bits. */
INLINE void account_for_ipv6(struct __sk_buff *skb, const struct packet *p, __u32 addresses)
{
	if (p->ipv6)
		bpf_csum_update(skb, (__u16)~fold(addresses));
}

/* Ports, or the id of an echo, of `t` into the transport header at `l4`. */
INLINE bool store_ports(struct __sk_buff *skb, const struct packet *p, __u32 l4, const struct tuple *t)
{
	__u16 id_be = icmp_id_be(t);

	if (has_ports(p->tuple.protocol))
		return bpf_skb_store_bytes(skb, l4, (void *)&t->source_port_be, PORTS_SIZE, 0);
	if (!is_icmp(p) || id_be == icmp_id_be(&p->tuple)) /* other messages may have something else there */
		return false;
	return bpf_skb_store_bytes(skb, l4 + ICMP_ID_AT, &id_be, sizeof(id_be), 0);
}

/* Where the checksum stands in the transport header; 0: there is none to change. SCTP's covers no addresses and cannot
 * be updated in part: its ports are never translated. */
INLINE __u32 checksum_at(const struct packet *p)
{
	__u8 protocol = p->tuple.protocol;

	return protocol == PROTO_TCP ? TCP_CHECKSUM_AT : protocol == PROTO_UDP ? UDP_CHECKSUM_AT : is_icmp(p) ? ICMP_CHECKSUM_AT : 0;
}

/* Addresses and ports of a plain packet, where parse_plain found them. */
INLINE bool store_plain(struct __sk_buff *skb, const struct packet *p, __u32 difference)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv4_header *ipv4 = data + ETHERNET_SIZE;
	struct ipv6_header *ipv6 = data + ETHERNET_SIZE;
	struct l4_header *l4;

	if (p->ipv6) {
		l4 = (void *)(ipv6 + 1);
		if ((void *)(l4 + 1) > end)
			return true;
		copy_address(&ipv6->source, &p->after.source);
		copy_address(&ipv6->destination, &p->after.destination);
		*(half *)l4 = *(const half *)&p->after.source_port_be;
	} else {
		l4 = (void *)(ipv4 + 1);
		if ((void *)(l4 + 1) > end)
			return true;
		ipv4->checksum = fold(fold_to_32((__u64)(__u16)~ipv4->checksum + difference));
		ipv4->source = *(const half *)&p->after.source.bytes[12];
		ipv4->destination = *(const half *)&p->after.destination.bytes[12];
		*(half *)l4 = *(const half *)&p->after.source_port_be;
	}
	return false;
}

INLINE bool rewrite_l4_checksum(struct __sk_buff *skb, const struct packet *p, __u32 addresses)
{
	__u32 at = checksum_at(p), ports = ports_difference(&p->tuple, &p->after);
	__u32 flags = at == UDP_CHECKSUM_AT ? BPF_F_MARK_MANGLED_0 : 0;

	if (!at)
		return false;
	return (p->tuple.protocol != PROTO_ICMP &&
		bpf_l4_csum_replace(skb, p->outer.l4 + at, 0, addresses, flags | BPF_F_PSEUDO_HDR)) ||
	       (ports && ports != 0xffffffff && bpf_l4_csum_replace(skb, p->outer.l4 + at, 0, ports, flags));
}

INLINE enum drop_reason rewrite(struct __sk_buff *skb, struct packet *p)
{
	__u32 addresses = addresses_difference(&p->tuple, &p->after);
	bool failed;

	account_for_ipv6(skb, p, addresses);
	if (p->outer.fragment_offset)
		failed = store_addresses(skb, p->outer.at, p->ipv6, &p->after, addresses);
	else if (rewrite_l4_checksum(skb, p, addresses))
		failed = true;
	else if (p->is_plain)
		failed = store_plain(skb, p, addresses);
	else
		failed = store_addresses(skb, p->outer.at, p->ipv6, &p->after, addresses) ||
			 store_ports(skb, p, p->outer.l4, &p->after);
	return failed ? DROP_TRANSLATION : DROP_NONE;
}

/* The checksum of the quoted packet's own payload protocol, where enough of it is quoted. `icmp` is where the ICMP
 * checksum stands, which covers it. */
INLINE bool rewrite_quoted_checksum(struct __sk_buff *skb, const struct packet *p, __u32 icmp, __u32 addresses,
				    __u32 ports)
{
	__u32 in_header = checksum_at(p), at = p->inner.l4 + in_header;
	__u32 change = p->tuple.protocol == PROTO_ICMP ? ports : fold_to_32((__u64)addresses + ports);
	__u16 before, after;

	if (!in_header || at + sizeof(before) > p->inner.end)
		return false;
	return bpf_skb_load_bytes(skb, at, &before, sizeof(before)) ||
	       bpf_l4_csum_replace(skb, at, 0, change, in_header == UDP_CHECKSUM_AT ? BPF_F_MARK_MANGLED_0 : 0) ||
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
	    store_ports(skb, p, p->inner.l4, &p->answer) || bpf_l4_csum_replace(skb, icmp, 0, ports, 0) ||
	    rewrite_quoted_checksum(skb, p, icmp, addresses, ports))
		return DROP_TRANSLATION;

	copy_address(&p->other.source, &p->outer.source);
	copy_address(&p->other.destination, &p->outer.destination);
	copy_address(&p->answer.source,
		     same_address(&p->outer.source, &p->tuple.source) ? &p->after.source : &p->outer.source);
	copy_address(&p->answer.destination, &p->after.destination);
	addresses = addresses_difference(&p->other, &p->answer);
	account_for_ipv6(skb, p, addresses);
	if (store_addresses(skb, p->outer.at, p->ipv6, &p->answer, addresses) ||
	    (p->ipv6 && bpf_l4_csum_replace(skb, icmp, 0, addresses, BPF_F_PSEUDO_HDR)))
		return DROP_TRANSLATION;
	return DROP_NONE;
}

/* Only where p->flags say so (CT_TRANSLATED). */
INLINE enum drop_reason translate(struct __sk_buff *skb, struct packet *p)
{
	if (!(p->flags & CT_TRANSLATED))
		return DROP_NONE;
	return p->is_error ? rewrite_error(skb, p) : rewrite(skb, p);
}

#endif
