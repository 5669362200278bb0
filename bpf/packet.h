/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is known of the packet in hand. It stands in a per-CPU map: a BPF stack is 512 bytes, and the verifier forgets
 * what memory of a map holds, which keeps the paths it walks few. Programs of one CPU do not interrupt each other, as
 * tc runs them with bottom halves off; where a kernel lets them all the same (PREEMPT_RT from 6.18 on), the second one
 * drops its packet rather than mix two packets up.
 */
#ifndef GATEHOUSE_PACKET_H
#define GATEHOUSE_PACKET_H

#include "maps.h"

#define ETHERNET_SIZE 14
#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86dd

#define PASS 0                  /* TC_ACT_OK */
#define DROP 2                  /* TC_ACT_SHOT */

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMPV6 58
#define PROTO_SCTP 132

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define CT_TRANSLATED (CT_SERVICE | CT_SOURCE)
#define CT_OF_PROXY (CT_TO_PROXY | CT_FROM_PROXY)

#define QUOTE_MAX 128           /* of a refused packet, in the ICMP message that says so */

struct ethernet_addresses { __u8 destination[6]; __u8 source[6]; };

/* An IP header: the packet's own, or the one an ICMP error quotes. */
struct header {
	struct address source;
	struct address destination;
	__u32 fragment_id;
	__u32 at;               /* where it starts, from the start of the frame */
	__u32 l4;               /* where what it carries starts, behind extension headers */
	__u32 end;              /* where the packet ends by its own account */
	__u16 fragment_offset;  /* bytes */
	__u8 more_fragments;
	__u8 is_fragment;
	__u8 protocol;
	__u8 jumbo_size;        /* of the jumbo payload option, which is on no wire; see find_big_ipv6_end */
	__u8 pad[2];
};

/* One end of a flow, as policy sees it. */
struct party {
	__u64 subject;
	__u64 remote_class;
	__u32 identity;
	__u32 ifindex;          /* 0: no local pod */
};

/* A local pod as packets reach it: as in struct endpoint. All zero: the stack. */
struct way {
	__u32 ifindex;
	__u8 mac[6];
	__u8 host_mac[6];
};

struct packet {
	struct party source;    /* the flow's originator … */
	struct party destination; /* … and the other end, after translation */
	__u64 rule_egress;
	__u64 rule_ingress;
	__u64 listener;         /* what a proxy is asked about the flow; 0: nothing */
	__u32 length;
	__u8 ipv6;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 is_error;          /* an ICMP error: it belongs to another flow */
	__u8 is_reply;          /* it travels towards the flow's originator */
	__u8 hook;
	__u8 egress_judged;
	__u8 ingress_judged;
	__u8 is_plain;          /* see parse_plain */
	__u8 is_new;            /* the first packet of its flow */
	__u8 is_query;          /* an ICMP message that answers nothing */
	__u8 is_refused;        /* its sender is told that it is dropped */
	__u8 first_icmp_type;   /* of the flow's first packet */
	__u16 flags;            /* of its conntrack entry */
	__u32 tcp_sequence;
	__u32 tcp_acknowledged;
	__u16 nat_flags;        /* of its entry in the nat map */
	__u8 is_handed_on;      /* by to_pod: it did not come from this device's pod */
	__u8 pad;
	/* The rest is set before it is read; what is above starts as zero. */
	struct tuple tuple;     /* as it came; of an ICMP error: that of the packet it quotes, turned round */
	struct tuple after;     /* as it will leave: service addresses translated */
	struct tuple answer;    /* after turned round: the key of the flow's other entry */
	struct tuple other;
	struct way sender;      /* of this packet, and … */
	struct way receiver;    /* … whom it is delivered to */
	__u64 now_ns;           /* coarse */
	__u64 epoch;
	struct header outer;    /* addresses: not of a plain packet */
	struct header inner;
	union {                 /* of a new flow */
		struct conntrack entry;
		struct nat nat_entry;
	};
	struct conntrack answer_entry;
	struct bpf_sock_tuple sockets;
	__u8 message[8 + QUOTE_MAX];
	__u32 busy;             /* a program is at work here */
};
_Static_assert(sizeof(struct packet) <= sizeof(struct scratch), "struct scratch is too small");

INLINE void copy_address(struct address *to, const struct address *from)
{
	((word *)to)[0] = ((const word *)from)[0];
	((word *)to)[1] = ((const word *)from)[1];
}

INLINE bool same_address(const struct address *a, const struct address *b)
{
	return ((const word *)a)[0] == ((const word *)b)[0] && ((const word *)a)[1] == ((const word *)b)[1];
}

INLINE bool is_no_address(const struct address *a)
{
	return !(((const word *)a)[0] | ((const word *)a)[1]);
}

/* Such an address stands for an IPv4 one in maps and sockets, and on the wire for an attempt to be taken for one. */
INLINE bool is_ipv4_mapped(const struct address *a)
{
	return !((const word *)a)[0] && ((const half *)a)[2] == bpf_htonl(0xffff);
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

INLINE bool is_hairpin_address(const struct address *a, bool ipv6)
{
	word hairpin[2];

	hairpin_address((struct address *)hairpin, ipv6);
	return same_address(a, (struct address *)hairpin);
}

INLINE void copy_tuple(struct tuple *to, const struct tuple *from)
{
#pragma unroll
	for (int i = 0; i < sizeof(*to) / 8; i++)
		((word *)to)[i] = ((const word *)from)[i];
}

INLINE void turn_round(struct tuple *to, const struct tuple *from)
{
	copy_address(&to->source, &from->destination);
	copy_address(&to->destination, &from->source);
	to->source_port_be = from->destination_port_be;
	to->destination_port_be = from->source_port_be;
	*(half *)&to->protocol = *(const half *)&from->protocol; /* and the leg */
}

INLINE bool has_ports(__u8 protocol)
{
	return protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
}

INLINE bool is_icmp(const struct packet *p)
{
	return p->tuple.protocol == (p->ipv6 ? PROTO_ICMPV6 : PROTO_ICMP);
}

INLINE __u32 fold_to_32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* A sum of 16-bit words as a checksum (RFC 1071). */
INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The addresses the packet itself carries. */
INLINE const struct address *packet_source(const struct packet *p)
{
	return p->is_error ? &p->outer.source : &p->tuple.source;
}

INLINE const struct address *packet_destination(const struct packet *p)
{
	return p->is_error ? &p->outer.destination : &p->tuple.destination;
}

/* The scratch space, cleared as far as it is read unset; release it at the end. NULL: it is in use. */
INLINE struct packet *packet_of_length(__u32 length, __u8 hook)
{
	__u64 zero = 0;
	struct packet *p = LOOKUP(scratch, &zero);

	if (!p || *(volatile __u32 *)&p->busy)
		return NULL;
	*(volatile __u32 *)&p->busy = 1;
	asm volatile("" ::: "memory");
	__builtin_memset(p, 0, __builtin_offsetof(struct packet, tuple));
	p->hook = hook;
	p->length = length;
	return p;
}

INLINE struct packet *packet_of(struct __sk_buff *skb, __u8 hook)
{
	return packet_of_length(skb->len, hook);
}

INLINE void release(struct packet *p)
{
	asm volatile("" ::: "memory");
	*(volatile __u32 *)&p->busy = 0;
}

#endif
