/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From bytes to a tuple. Headers are copied out of the packet, so it need not be linear. */
#ifndef GATEHOUSE_PARSE_H
#define GATEHOUSE_PARSE_H

#include "fragment.h"

struct ipv4_header {
	__u8 version_and_length;
	__u8 tos;
	__u16 length_be;
	__u16 id_be;
	__u16 fragment_be;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct ipv6_header {
	__u32 version_and_flow_be;
	__u16 length_be;
	__u8 next;
	__u8 hop_limit;
	struct address source;
	struct address destination;
};

/* What every IPv6 extension header starts with, read as the longest of them here. */
struct extension_header {
	__u8 next;
	__u8 length;            /* fragment: reserved */
	union {
		__u16 offset_be;                                /* fragment */
		struct { __u8 routing_type, segments_left; };   /* routing */
	};
	__u32 id;               /* fragment */
};

/* A hop-by-hop header with the jumbo payload option and nothing else, as BIG TCP writes it. */
struct jumbo_header {
	__u8 next;
	__u8 length;
	__u8 type;
	__u8 size;
	__u32 payload_be;
};

/* The first bytes of TCP, UDP, SCTP and ICMP. */
struct l4_header {
	union {
		struct { __u16 source_port_be, destination_port_be; };
		struct { __u8 icmp_type, icmp_code; __u16 icmp_checksum; };
	};
	__u16 icmp_id;
	__u16 icmp_sequence;
};

#define IPV4_SIZE 20
#define IPV6_SIZE 40
#define TCP_SIZE 20
#define TCP_NUMBERS_AT 4
#define TCP_FLAGS_AT 13
#define UDP_SIZE 8
#define SCTP_SIZE 12

#define IPV4_OPTION_END 0
#define IPV4_OPTION_NOP 1
#define IPV4_OPTION_LSRR 131
#define IPV4_OPTION_SSRR 137
#define IPV4_OPTIONS_MAX 40

#define LENGTH_MAX 0xffff       /* that an IP header can say */
#define OPTION_JUMBO 0xc2       /* RFC 2675 */
#define OPTION_JUMBO_SIZE 4

#define EXTENSION_HOP_BY_HOP 0
#define EXTENSION_ROUTING 43
#define EXTENSION_FRAGMENT 44
#define EXTENSION_AH 51
#define EXTENSION_DESTINATION 60

INLINE __u32 l4_size(__u8 protocol)
{
	return protocol == PROTO_TCP ? TCP_SIZE : protocol == PROTO_SCTP ? SCTP_SIZE : UDP_SIZE;
}

INLINE void map_ipv4(struct address *to, __u32 ipv4)
{
	((half *)to)[0] = 0;
	((half *)to)[1] = 0;
	((half *)to)[2] = bpf_htonl(0xffff);
	((half *)to)[3] = ipv4;
}

/* RFC 791: a source route lets the sender choose the path, and so where the packet really goes. */
INLINE enum drop_reason refuse_source_route(struct __sk_buff *skb, const struct header *h)
{
	__u32 at = h->at + IPV4_SIZE;

	for (int i = 0; i < IPV4_OPTIONS_MAX; i++) {
		__u8 option[2] = {};

		if (at >= h->l4)
			break;
		if (bpf_skb_load_bytes(skb, at, option, 1))
			return DROP_MALFORMED;
		if (option[0] == IPV4_OPTION_END)
			break;
		if (option[0] == IPV4_OPTION_LSRR || option[0] == IPV4_OPTION_SSRR)
			return DROP_SOURCE_ROUTE;
		if (option[0] == IPV4_OPTION_NOP) {
			at++;
			continue;
		}
		if (bpf_skb_load_bytes(skb, at + 1, option + 1, 1) || option[1] < 2)
			return DROP_MALFORMED;
		at += option[1];
	}
	return at > h->l4 ? DROP_MALFORMED : DROP_NONE;
}

/* BIG TCP: inside a machine a packet may stand for more segments than its length field can say, which is then 0. The
 * kernel goes by the buffer, and so must we. Bytes from `at` on; 0: it is no such packet. */
INLINE __u32 big_size(const struct __sk_buff *skb, __u32 at)
{
	return skb->gso_size && skb->len > at + LENGTH_MAX ? skb->len - at : 0;
}

/* Up to Linux 6.18 with the jumbo payload option, where nothing but TCP's header may follow; later without. */
INLINE void find_big_ipv6_end(struct __sk_buff *skb, struct header *h)
{
	struct jumbo_header jumbo;
	__u32 size = big_size(skb, h->l4);

	if (!size)
		return;
	if (h->protocol == PROTO_TCP) {
		h->end = h->l4 + size;
		return;
	}
	if (h->protocol != EXTENSION_HOP_BY_HOP || bpf_skb_load_bytes(skb, h->l4, &jumbo, sizeof(jumbo)) ||
	    jumbo.next != PROTO_TCP || jumbo.length || jumbo.type != OPTION_JUMBO || jumbo.size != OPTION_JUMBO_SIZE ||
	    jumbo.payload_be != bpf_htonl(size))
		return;
	h->end = h->l4 + size;
	h->l4 += sizeof(jumbo);
	h->jumbo_size = sizeof(jumbo);
	h->protocol = PROTO_TCP;
}

INLINE enum drop_reason parse_ipv4(struct __sk_buff *skb, struct header *h, bool quoted)
{
	struct ipv4_header ip;
	__u32 header_size, length;
	__u16 fragment;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)))
		return DROP_MALFORMED;
	header_size = (ip.version_and_length & 15) * 4;
	length = bpf_ntohs(ip.length_be);
	if (!length && !quoted && ip.protocol == PROTO_TCP && !(ip.fragment_be & bpf_htons(0x3fff)))
		length = big_size(skb, h->at);
	if (ip.version_and_length >> 4 != 4 || header_size < IPV4_SIZE || length < header_size)
		return DROP_MALFORMED;
	h->l4 = h->at + header_size;
	h->end = h->at + length;
	if (quoted && h->end > skb->len)
		h->end = skb->len;
	if (h->end > skb->len || h->l4 > h->end)
		return DROP_MALFORMED;

	fragment = bpf_ntohs(ip.fragment_be);
	h->fragment_offset = (fragment & 0x1fff) * 8;
	h->more_fragments = fragment >> 13 & 1;
	h->fragment_id = ip.id_be;
	h->protocol = ip.protocol;
	map_ipv4(&h->source, ip.source);
	map_ipv4(&h->destination, ip.destination);
	return quoted || header_size == IPV4_SIZE ? DROP_NONE : refuse_source_route(skb, h);
}

INLINE bool is_extension(__u8 protocol)
{
	return protocol == EXTENSION_HOP_BY_HOP || protocol == EXTENSION_ROUTING || protocol == EXTENSION_FRAGMENT ||
	       protocol == EXTENSION_AH || protocol == EXTENSION_DESTINATION;
}

/* Returns whether `h->protocol` is an extension header that was stepped over; sets `reason` if it must not pass. */
INLINE bool step_over_extension(struct __sk_buff *skb, struct header *h, enum drop_reason *reason)
{
	struct extension_header extension;
	__u8 kind = h->protocol;

	if (!is_extension(kind))
		return false;
	if (h->l4 + sizeof(extension) > h->end || bpf_skb_load_bytes(skb, h->l4, &extension, sizeof(extension))) {
		*reason = DROP_MALFORMED;
		return false;
	}
	h->protocol = extension.next;
	if (kind == EXTENSION_FRAGMENT) {
		if (h->is_fragment)
			*reason = DROP_MALFORMED;
		h->is_fragment = 1;
		h->fragment_offset = bpf_ntohs(extension.offset_be) & 0xfff8;
		h->more_fragments = bpf_ntohs(extension.offset_be) & 1;
		h->fragment_id = extension.id;
		h->l4 += 8;
		if (h->fragment_offset && is_extension(h->protocol)) /* its real protocol is in the first one */
			*reason = DROP_FRAGMENT_UNKNOWN;
		return !h->fragment_offset; /* what follows a later fragment's header is data */
	}
	if (kind == EXTENSION_ROUTING && (extension.segments_left || !extension.routing_type)) /* RFC 5095 */
		*reason = DROP_SOURCE_ROUTE;
	h->l4 += kind == EXTENSION_AH ? (extension.length + 2) * 4 : (extension.length + 1) * 8;
	if (h->l4 > h->end)
		*reason = DROP_MALFORMED;
	return true;
}

INLINE enum drop_reason parse_ipv6(struct __sk_buff *skb, struct header *h, bool quoted)
{
	enum drop_reason reason = DROP_NONE;
	struct ipv6_header ip;

	if (bpf_skb_load_bytes(skb, h->at, &ip, sizeof(ip)) || bpf_ntohl(ip.version_and_flow_be) >> 28 != 6)
		return DROP_MALFORMED;
	h->l4 = h->at + IPV6_SIZE;
	h->end = h->l4 + bpf_ntohs(ip.length_be);
	if (quoted && h->end > skb->len)
		h->end = skb->len;
	if (h->end > skb->len)
		return DROP_MALFORMED;
	h->fragment_offset = 0;
	h->more_fragments = 0;
	h->is_fragment = 0;
	h->protocol = ip.next;
	h->jumbo_size = 0;
	if (!ip.length_be && !quoted)
		find_big_ipv6_end(skb, h);
	copy_address(&h->source, &ip.source);
	copy_address(&h->destination, &ip.destination);
	if (is_ipv4_mapped(&h->source) || is_ipv4_mapped(&h->destination))
		return DROP_MALFORMED;
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		bool again = step_over_extension(skb, h, &reason);

		if (reason || !again)
			return reason;
	}
	return is_extension(h->protocol) ? DROP_EXTENSION_HEADERS : DROP_NONE;
}

INLINE void icmp_ports(struct tuple *t, bool ipv6, const struct l4_header *l4)
{
	if (l4->icmp_type == (ipv6 ? 128 : 8))
		t->source_port_be = l4->icmp_id;
	else if (l4->icmp_type == (ipv6 ? 129 : 0))
		t->destination_port_be = l4->icmp_id;
}

INLINE bool is_icmp_error(bool ipv6, __u8 type)
{
	return ipv6 ? type >= 1 && type <= 4 : type == 3 || type == 11 || type == 12;
}

INLINE bool is_icmp_answer(bool ipv6, __u8 type)
{
	return ipv6 ? type == 129 || type == 140 : type == 0 || type == 14 || type == 16 || type == 18;
}

/* Neighbour discovery, redirects and multicast listener reports: the gateway's neighbour entry is permanent. */
INLINE bool is_link_control(bool ipv6, __u8 type)
{
	return ipv6 ? (type >= 130 && type <= 137) || type == 143 : type == 5;
}

INLINE bool is_multicast(bool ipv6, const struct address *a)
{
	return ipv6 ? a->bytes[0] == 0xff : (a->bytes[12] & 0xf0) == 0xe0 || *(const half *)&a->bytes[12] == 0xffffffff;
}

INLINE enum drop_reason parse_header(struct __sk_buff *skb, bool ipv6, struct header *h, bool quoted)
{
	return ipv6 ? parse_ipv6(skb, h, quoted) : parse_ipv4(skb, h, quoted);
}

INLINE void set_tuple(struct tuple *t, const struct header *h)
{
	copy_address(&t->source, &h->source);
	copy_address(&t->destination, &h->destination);
	t->source_port_be = 0;
	t->destination_port_be = 0;
	*(half *)&t->protocol = h->protocol;
}

/* An ICMP error belongs to the flow of the packet it quotes, and travels against it. */
INLINE enum drop_reason parse_quoted(struct __sk_buff *skb, struct packet *p)
{
	bool ipv6 = p->ipv6;
	struct header *h = &p->inner;
	struct l4_header l4;

	p->is_error = 1;
	h->at = p->outer.l4 + 8;
	if (parse_header(skb, ipv6, h, true))
		return DROP_ICMP_UNRELATED;
	if (!same_address(&h->source, &p->outer.destination) || h->fragment_offset)
		return DROP_ICMP_UNRELATED;
	set_tuple(&p->other, h);
	if (has_ports(h->protocol) || h->protocol == (ipv6 ? PROTO_ICMPV6 : PROTO_ICMP)) {
		if (bpf_skb_load_bytes(skb, h->l4, &l4, sizeof(l4)))
			return DROP_ICMP_UNRELATED;
		if (has_ports(h->protocol)) {
			p->other.source_port_be = l4.source_port_be;
			p->other.destination_port_be = l4.destination_port_be;
		} else if (is_icmp_error(ipv6, l4.icmp_type)) {
			return DROP_ICMP_UNRELATED;
		} else {
			icmp_ports(&p->other, ipv6, &l4);
		}
	}
	turn_round(&p->tuple, &p->other);
	return DROP_NONE;
}

INLINE enum drop_reason parse_icmp(struct __sk_buff *skb, struct packet *p, const struct l4_header *l4)
{
	p->icmp_type = l4->icmp_type;
	p->icmp_code = l4->icmp_code;
	if (is_link_control(p->ipv6, l4->icmp_type))
		return DROP_LINK_CONTROL;
	if (is_icmp_error(p->ipv6, l4->icmp_type))
		return parse_quoted(skb, p);
	p->is_query = !is_icmp_answer(p->ipv6, l4->icmp_type);
	icmp_ports(&p->tuple, p->ipv6, l4);
	return DROP_NONE;
}

INLINE void set_tcp_numbers(struct packet *p, const half *numbers)
{
	p->tcp_sequence = bpf_ntohl(numbers[0]);
	p->tcp_acknowledged = bpf_ntohl(numbers[1]);
}

INLINE enum drop_reason parse_tcp(struct __sk_buff *skb, struct packet *p)
{
	half numbers[2];

	if (bpf_skb_load_bytes(skb, p->outer.l4 + TCP_FLAGS_AT, &p->tcp_flags, 1) ||
	    bpf_skb_load_bytes(skb, p->outer.l4 + TCP_NUMBERS_AT, numbers, sizeof(numbers)))
		return DROP_MALFORMED;
	set_tcp_numbers(p, numbers);
	return DROP_NONE;
}

/* Ports, or what stands for them, and of TCP what conntrack follows. */
INLINE enum drop_reason parse_l4(struct __sk_buff *skb, struct packet *p)
{
	struct header *h = &p->outer;
	__u8 protocol = h->protocol;
	bool icmp = protocol == (p->ipv6 ? PROTO_ICMPV6 : PROTO_ICMP);
	__u32 needed = l4_size(protocol); /* ICMP: as long as UDP's */
	struct l4_header l4;

	if (!icmp && !has_ports(protocol))
		return DROP_NONE;
	if (h->fragment_offset) {
		if (protocol == PROTO_TCP && h->fragment_offset < TCP_SIZE) /* RFC 3128: it would overlap the flags */
			return DROP_FRAGMENT_TINY;
		return fragment_ports(h, &p->tuple);
	}
	if (h->l4 + needed > h->end)
		return h->more_fragments ? DROP_FRAGMENT_TINY : DROP_MALFORMED;
	if (bpf_skb_load_bytes(skb, h->l4, &l4, sizeof(l4)))
		return DROP_MALFORMED;
	if (icmp) {
		enum drop_reason reason = parse_icmp(skb, p, &l4);

		if (reason || p->is_error)
			return reason;
	} else {
		p->tuple.source_port_be = l4.source_port_be;
		p->tuple.destination_port_be = l4.destination_port_be;
	}
	return protocol == PROTO_TCP ? parse_tcp(skb, p) : DROP_NONE;
}

INLINE bool parse_plain_l4(struct packet *p, const struct l4_header *l4, __u8 protocol, __u32 length, const void *end)
{
	const __u8 *tcp = (const void *)l4;

	if ((const void *)(l4 + 1) > end || length < l4_size(protocol) || !has_ports(protocol))
		return false;
	if (protocol == PROTO_TCP) {
		if (tcp + TCP_SIZE > (const __u8 *)end)
			return false;
		p->tcp_flags = tcp[TCP_FLAGS_AT];
		set_tcp_numbers(p, (const half *)(tcp + TCP_NUMBERS_AT));
	}
	p->tuple.source_port_be = l4->source_port_be;
	p->tuple.destination_port_be = l4->destination_port_be;
	*(half *)&p->tuple.protocol = protocol;
	return true;
}

INLINE bool parse_plain_ipv4(struct packet *p, const struct ipv4_header *ip, const void *end)
{
	__u32 length;

	if ((const void *)(ip + 1) > end || ip->version_and_length != 0x45 || ip->fragment_be & bpf_htons(0xbfff))
		return false;
	length = bpf_ntohs(ip->length_be);
	if (length < IPV4_SIZE || length > p->length - ETHERNET_SIZE)
		return false;
	map_ipv4(&p->tuple.source, ip->source);
	map_ipv4(&p->tuple.destination, ip->destination);
	p->outer.l4 = ETHERNET_SIZE + IPV4_SIZE;
	return parse_plain_l4(p, (const void *)(ip + 1), ip->protocol, length - IPV4_SIZE, end);
}

INLINE bool parse_plain_ipv6(struct packet *p, const struct ipv6_header *ip, const void *end)
{
	__u32 length;

	if ((const void *)(ip + 1) > end || bpf_ntohl(ip->version_and_flow_be) >> 28 != 6)
		return false;
	length = bpf_ntohs(ip->length_be);
	if (length > p->length - ETHERNET_SIZE - IPV6_SIZE)
		return false;
	if (is_ipv4_mapped(&ip->source) || is_ipv4_mapped(&ip->destination))
		return false;
	copy_address(&p->tuple.source, &ip->source);
	copy_address(&p->tuple.destination, &ip->destination);
	p->outer.l4 = ETHERNET_SIZE + IPV6_SIZE;
	return parse_plain_l4(p, (const void *)(ip + 1), ip->next, length, end);
}

/* Nearly every packet: unicast TCP, UDP or SCTP, in one piece, without options or extension headers, and its headers
 * in the linear part, where they can be read in place. False: nothing is known yet. */
INLINE bool parse_plain(struct __sk_buff *skb, struct packet *p)
{
	const void *ip = (void *)(long)skb->data + ETHERNET_SIZE, *end = (void *)(long)skb->data_end;

	if (p->ipv6 ? !parse_plain_ipv6(p, ip, end) : !parse_plain_ipv4(p, ip, end))
		return false;
	if (is_multicast(p->ipv6, &p->tuple.destination))
		return false;
	p->outer.fragment_offset = 0;
	p->outer.more_fragments = 0;
	p->outer.jumbo_size = 0;
	p->is_plain = 1;
	copy_tuple(&p->after, &p->tuple);
	return true;
}

INLINE enum drop_reason parse(struct __sk_buff *skb, struct packet *p)
{
	enum drop_reason reason;

	p->ipv6 = skb->protocol == bpf_htons(ETHERTYPE_IPV6);
	if ((p->ipv6 || skb->protocol == bpf_htons(ETHERTYPE_IPV4)) && !skb->vlan_present && parse_plain(skb, p))
		return DROP_NONE;
	__builtin_memset(&p->tuple, 0, 2 * sizeof(p->tuple)); /* p->after as well */
	__builtin_memset(&p->outer, 0, sizeof(p->outer));

	if (skb->protocol == bpf_htons(ETHERTYPE_ARP))
		return DROP_LINK_CONTROL;
	if ((!p->ipv6 && skb->protocol != bpf_htons(ETHERTYPE_IPV4)) || skb->vlan_present)
		return DROP_UNSUPPORTED_PROTOCOL;
	p->outer.at = ETHERNET_SIZE;
	reason = parse_header(skb, p->ipv6, &p->outer, false);
	set_tuple(&p->tuple, &p->outer);
	if (!reason)
		reason = is_multicast(p->ipv6, &p->outer.destination) ? DROP_LINK_CONTROL : parse_l4(skb, p);
	copy_tuple(&p->after, &p->tuple);
	return reason;
}

#endif
