/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Telling a sender at once that its packet goes nowhere: it becomes an answer from the address that was asked, and leaves by
 * the Ethernet device it came from. An RST (RFC 9293), or an ICMP error (RFC 792, RFC 4443). For tc ingress hooks; the packet
 * must be as it came. */
#ifndef GATEHOUSE_REFUSE_H
#define GATEHOUSE_REFUSE_H

#include "parse.h"
#include "proxy.h"

#define ICMP_SIZE 8
#define REFUSAL_TTL 64

struct tcp_header {
	__u16 source_port_be;
	__u16 destination_port_be;
	__u32 sequence_be;
	__u32 acknowledgement_be;
	__u8 length;            /* in words of 4 bytes, in the upper half */
	__u8 flags;
	__u16 window_be;
	__u16 checksum;
	__u16 urgent_be;
};

/* What a checksum covers beside the message (RFC 8200, 8.1). IPv4-mapped addresses add nothing to those of IPv4: the sum of
 * TCP's is the same. */
struct pseudo_header {
	struct address source;
	struct address destination;
	__u32 length_be;
	__u32 next_be;
};

INLINE bool swap_ethernet(struct __sk_buff *skb)
{
	struct ethernet_addresses came, goes;

	if (bpf_skb_load_bytes(skb, 0, &came, sizeof(came)))
		return true;
	__builtin_memcpy(goes.destination, came.source, 6);
	__builtin_memcpy(goes.source, came.destination, 6);
	return bpf_skb_store_bytes(skb, 0, &goes, sizeof(goes), 0);
}

INLINE bool store_ipv4_header(struct __sk_buff *skb, const struct packet *p, __u8 protocol, __u32 size)
{
	struct ipv4_header ip = {
		.version_and_length = 0x45,
		.length_be = bpf_htons(IPV4_SIZE + size),
		.ttl = REFUSAL_TTL,
		.protocol = protocol,
		.source = *(half *)&p->tuple.destination.bytes[12],
		.destination = *(half *)&p->tuple.source.bytes[12],
	};

	ip.checksum = fold(bpf_csum_diff(NULL, 0, &ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, ETHERNET_SIZE, &ip, sizeof(ip), 0);
}

INLINE bool store_ipv6_header(struct __sk_buff *skb, const struct packet *p, __u8 protocol, __u32 size)
{
	struct ipv6_header ip = {
		.version_and_flow_be = bpf_htonl(0x60000000),
		.length_be = bpf_htons(size),
		.next = protocol,
		.hop_limit = REFUSAL_TTL,
	};

	copy_address(&ip.source, &p->tuple.destination);
	copy_address(&ip.destination, &p->tuple.source);
	return bpf_skb_store_bytes(skb, ETHERNET_SIZE, &ip, sizeof(ip), 0);
}

INLINE __u32 pseudo_header_sum(const struct packet *p, __u8 protocol, __u32 size)
{
	struct pseudo_header pseudo = { .length_be = bpf_htonl(size), .next_be = bpf_htonl(protocol) };

	copy_address(&pseudo.source, &p->tuple.destination);
	copy_address(&pseudo.destination, &p->tuple.source);
	return bpf_csum_diff(NULL, 0, &pseudo, sizeof(pseudo), 0);
}

/* Make the packet one of so many bytes, back to its sender: its payload is still to be stored. Returns whether that failed. */
INLINE bool turn_back(struct __sk_buff *skb, const struct packet *p, __u8 protocol, __u32 size)
{
	__u32 ip_size = p->ipv6 ? IPV6_SIZE : IPV4_SIZE;

	return bpf_skb_change_tail(skb, ETHERNET_SIZE + ip_size + size, 0) || swap_ethernet(skb) ||
	       (p->ipv6 ? store_ipv6_header(skb, p, protocol, size) : store_ipv4_header(skb, p, protocol, size));
}

/* Handed on from the stack, so back by the stack: to a proxy's connection here or to wherever it came from. */
INLINE int send_back_by_stack(struct __sk_buff *skb, struct packet *p)
{
	turn_round(&p->after, &p->tuple);
	skb->mark = has_connection(skb, p) ? MARK_TO_PROXY : 0;
	return bpf_skb_change_type(skb, PACKET_HOST) ? DROP : PASS;
}

/* A pod's device leads to the pod past the program at its way out, which would take the answer for a spoofed one. */
INLINE int send_back(struct __sk_buff *skb, struct packet *p)
{
	if (p->hook == HOOK_FROM_POD && p->is_handed_on)
		return send_back_by_stack(skb, p);
	return p->hook == HOOK_FROM_POD ? bpf_redirect_peer(skb->ifindex, 0) : bpf_redirect(skb->ifindex, 0);
}

/* RFC 9293, 3.10.7.1. A SYN's data need not be acknowledged. An ICMP error would not do: Linux takes an ICMPv6 error that
 * comes while connect() is still sending for a passing one, and tries again a second later. */
INLINE int refuse_tcp(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = ETHERNET_SIZE + (p->ipv6 ? IPV6_SIZE : IPV4_SIZE);
	struct tcp_header came, goes = { .length = sizeof(goes) / 4 << 4 };

	if (p->tcp_flags & TCP_RST || bpf_skb_load_bytes(skb, at, &came, sizeof(came)))
		return DROP;
	goes.source_port_be = came.destination_port_be;
	goes.destination_port_be = came.source_port_be;
	if (p->tcp_flags & TCP_ACK) {
		goes.flags = TCP_RST;
		goes.sequence_be = came.acknowledgement_be;
	} else {
		goes.flags = TCP_RST | TCP_ACK;
		goes.acknowledgement_be = bpf_htonl(bpf_ntohl(came.sequence_be) + (p->tcp_flags & TCP_SYN ? 1 : 0));
	}
	goes.checksum = fold(bpf_csum_diff(NULL, 0, &goes, sizeof(goes), pseudo_header_sum(p, PROTO_TCP, sizeof(goes))));
	if (turn_back(skb, p, PROTO_TCP, sizeof(goes)) || bpf_skb_store_bytes(skb, at, &goes, sizeof(goes), 0))
		return DROP;
	return send_back(skb, p);
}

/* Quotes all up to the first 8 bytes of the transport header, which is what a socket is found by. `mtu`: what the second
 * word of the message says, 0 but for packets that are too big. */
INLINE int answer_by_icmp(struct __sk_buff *skb, struct packet *p, __u8 type, __u8 code, __u32 mtu)
{
	__u64 quoted = p->outer.l4 + 8 - ETHERNET_SIZE;
	__u32 ip_size = p->ipv6 ? IPV6_SIZE : IPV4_SIZE;
	__u8 protocol = p->ipv6 ? PROTO_ICMPV6 : PROTO_ICMP;
	__u32 size;

	/* One value in one register, each bound on its own: made one comparison of a copy, they mean nothing to 6.1's verifier. */
	asm volatile("" : "+r"(quoted));
	if (quoted > QUOTE_MAX)
		return DROP;
	asm volatile("" : "+r"(quoted));
	if (quoted < IPV4_SIZE)
		return DROP;
	asm volatile("" : "+r"(quoted));
	size = ICMP_SIZE + quoted;
	*(word *)p->message = 0;
	*(half *)&p->message[4] = bpf_htonl(mtu);
	p->message[0] = type;
	p->message[1] = code;
	if (bpf_skb_load_bytes(skb, ETHERNET_SIZE, p->message + ICMP_SIZE, quoted))
		return DROP;
	*(__u16 *)&p->message[2] =
		fold(bpf_csum_diff(NULL, 0, p->message, size, p->ipv6 ? pseudo_header_sum(p, protocol, size) : 0));
	if (turn_back(skb, p, protocol, size) || bpf_skb_store_bytes(skb, ETHERNET_SIZE + ip_size, p->message, size, 0))
		return DROP;
	return send_back(skb, p);
}

/* Nobody is there: port unreachable. */
INLINE int refuse_by_icmp(struct __sk_buff *skb, struct packet *p)
{
	return answer_by_icmp(skb, p, p->ipv6 ? 1 : 3, p->ipv6 ? 4 : 3, 0);
}

/* RFC 1191, RFC 8201: what the sender should have sent. Also about a later fragment, but then nobody heeds it. */
INLINE int refuse_too_big(struct __sk_buff *skb, struct packet *p, __u16 mtu)
{
	return answer_by_icmp(skb, p, p->ipv6 ? 2 : 3, p->ipv6 ? 0 : 4, mtu);
}

/* What stands behind options or extension headers cannot be cut short while its checksum is left to the device. */
INLINE int refuse(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = ETHERNET_SIZE + (p->ipv6 ? IPV6_SIZE : IPV4_SIZE);

	if (p->outer.fragment_offset) /* data, not a header */
		return DROP;
	if (p->tuple.protocol == PROTO_TCP && p->outer.l4 == at)
		return refuse_tcp(skb, p);
	return refuse_by_icmp(skb, p);
}

#endif
