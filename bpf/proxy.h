/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that proxies judge. A proxy has sockets in the node's namespace: one that listens on loopback, and for each flow
 * one connection towards either end, with addresses that are not the node's. Packets reach them by their mark, which leads to a
 * table in which every address is local, and by being given to a socket, which only tc ingress can do. */
#ifndef GATEHOUSE_PROXY_H
#define GATEHOUSE_PROXY_H

#include "conntrack.h"

#define PACKET_HOST 0
#define CURRENT_NETNS (-1)

#define STATE_ESTABLISHED 1     /* BPF_TCP_…: of connected UDP sockets as well */
#define STATE_TIME_WAIT 6
#define STATE_LISTEN 10

#define LOOPBACK_V4_BE_BYTES "\x7f\x00\x00\x01"
#define LOOPBACK_V6_BE_BYTES "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"

INLINE bool has_proxies(void)
{
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);

	return config && config->features & FEATURE_PROXY;
}

/* What a proxy of this node says of a packet it sends; 0: none sent it. A packet that was forwarded is nobody's here. */
INLINE __u32 mark_of_proxy(const struct __sk_buff *skb)
{
	__u32 mark = skb->mark;

	if (skb->ingress_ifindex || mark < MARK_FROM_EGRESS || mark > MARK_PROXY_ANSWERS)
		return 0;
	return mark;
}

INLINE bool is_sent_on(__u32 mark)
{
	return mark == MARK_FROM_EGRESS || mark == MARK_FROM_INGRESS;
}

/* Nothing may make a proxy connect to the node's loopback, or to its own listener. */
INLINE bool is_loopback(const struct address *a, bool ipv6)
{
	return ipv6 ? !((const word *)a)[0] && !((const half *)a)[2] : a->bytes[12] == 127 || !a->bytes[12];
}

/* As p->after has it, or towards the listener. The verifier wants to see the size. */
INLINE int set_socket_tuple(struct packet *p, __u16 listener_port_be)
{
	struct bpf_sock_tuple *t = &p->sockets;

	if (p->ipv6) {
		__builtin_memcpy(t->ipv6.saddr, &p->after.source, 16);
		__builtin_memcpy(t->ipv6.daddr, &p->after.destination, 16);
		t->ipv6.sport = p->after.source_port_be;
		t->ipv6.dport = p->after.destination_port_be;
		if (listener_port_be) {
			__builtin_memcpy(t->ipv6.daddr, LOOPBACK_V6_BE_BYTES, 16);
			t->ipv6.dport = listener_port_be;
		}
		return sizeof(t->ipv6);
	}
	t->ipv4.saddr = *(const half *)&p->after.source.bytes[12];
	t->ipv4.daddr = *(const half *)&p->after.destination.bytes[12];
	t->ipv4.sport = p->after.source_port_be;
	t->ipv4.dport = p->after.destination_port_be;
	if (listener_port_be) {
		__builtin_memcpy(&t->ipv4.daddr, LOOPBACK_V4_BE_BYTES, 4);
		t->ipv4.dport = listener_port_be;
	}
	return sizeof(t->ipv4);
}

INLINE bool is_syn(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Of exactly these two ends: the kernel's search ends with sockets that listen for anybody. A SYN begins a new connection
 * where an old one has ended; but what `lingers` of that has to hear of it first: it answers, the originator resets it, and
 * the next SYN finds the listener, which would not take one whose place in the kernel's table is occupied. */
INLINE struct bpf_sock *tcp_connection(struct __sk_buff *skb, struct packet *p, bool lingers)
{
	int size = set_socket_tuple(p, 0);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &p->sockets, size, CURRENT_NETNS, 0);

	if (sk && (sk->state == STATE_LISTEN || (sk->state == STATE_TIME_WAIT && is_syn(p) && !lingers))) {
		bpf_sk_release(sk);
		return NULL;
	}
	return sk;
}

INLINE struct bpf_sock *tcp_listener(struct __sk_buff *skb, struct packet *p, __u16 port_be)
{
	int size = set_socket_tuple(p, port_be);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &p->sockets, size, CURRENT_NETNS, 0);

	if (sk && sk->state != STATE_LISTEN) {
		bpf_sk_release(sk);
		return NULL;
	}
	return sk;
}

INLINE struct bpf_sock *udp_connection(struct __sk_buff *skb, struct packet *p)
{
	int size = set_socket_tuple(p, 0);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &p->sockets, size, CURRENT_NETNS, 0);

	if (sk && sk->state != STATE_ESTABLISHED) {
		bpf_sk_release(sk);
		return NULL;
	}
	return sk;
}

INLINE struct bpf_sock *udp_listener(struct __sk_buff *skb, struct packet *p, __u16 port_be)
{
	int size = set_socket_tuple(p, port_be);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &p->sockets, size, CURRENT_NETNS, 0);

	if (sk && sk->state == STATE_ESTABLISHED) {
		bpf_sk_release(sk);
		return NULL;
	}
	return sk;
}

/* Whether a proxy has a connection for this packet (or the one it quotes). */
INLINE bool has_connection(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock *sk;

	if (p->tuple.protocol == PROTO_TCP) {
		sk = tcp_connection(skb, p, false);
		if (!sk)
			return false;
		bpf_sk_release(sk);
		return true;
	}
	if (p->tuple.protocol == PROTO_UDP) {
		sk = udp_connection(skb, p);
		if (!sk)
			return false;
		bpf_sk_release(sk);
		return true;
	}
	return false;
}

/* Where the proxy of these demands listens; 0: nowhere yet. */
INLINE __u16 listener_port_be(const struct packet *p, __u64 listener)
{
	const struct listener_value *value = LOOKUP(listeners, &listener);

	if (!value)
		return 0;
	return p->tuple.protocol == PROTO_UDP ? value->udp_port_be : value->tcp_port_be;
}

/* Only what may begin a connection, and every datagram, is for the listener. */
INLINE bool needs_listener(const struct packet *p)
{
	return !p->is_error && (p->tuple.protocol == PROTO_UDP || is_syn(p));
}

/* `port_be` 0: to a connection, which must be there; else UDP goes to the listener, and so does TCP that has none. */
INLINE bool assign(struct __sk_buff *skb, struct packet *p, __u16 port_be)
{
	struct bpf_sock *sk;
	long failed;

	if (p->tuple.protocol == PROTO_TCP) {
		sk = tcp_connection(skb, p, true);
		if (!sk && port_be)
			sk = tcp_listener(skb, p, port_be);
		if (!sk)
			return false;
		failed = bpf_sk_assign(skb, sk, 0);
		bpf_sk_release(sk);
		return !failed;
	}
	asm volatile(""); /* a socket and what may be half of one are two types to the verifier, at one instruction one too many */
	sk = port_be ? udp_listener(skb, p, port_be) : udp_connection(skb, p);
	if (!sk)
		return false;
	failed = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	return !failed;
}

/* The packet, as p->after has it, to the proxy's socket, by the stack. Errors and fragments find a connection there by
 * themselves. `port_be`: see assign. Sets p->is_refused where the sender is to know at once that nobody is there. */
INLINE enum drop_reason give_to_proxy(struct __sk_buff *skb, struct packet *p, __u16 port_be)
{
	bool in_pieces = p->outer.fragment_offset || p->outer.more_fragments;

	if (p->is_error || in_pieces) {
		if (!has_connection(skb, p))
			return p->is_error ? DROP_ICMP_UNRELATED : DROP_PROXY_FRAGMENT;
	} else if (!assign(skb, p, port_be)) {
		p->is_refused = 1;
		return DROP_PROXY_UNREADY;
	}
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return DROP_TRANSLATION;
	skb->mark = MARK_TO_PROXY;
	return DROP_NONE;
}

/* Of a flow whose entry is `e`. */
INLINE enum drop_reason find_listener(const struct packet *p, const struct conntrack *e, __u16 *port_be)
{
	*port_be = 0;
	if (!needs_listener(p) || (p->tuple.leg && e->flags & CT_REPLY))
		return DROP_NONE;
	*port_be = listener_port_be(p, e->listener);
	return *port_be ? DROP_NONE : DROP_PROXY_UNREADY;
}

/* At tc egress: on to from_pod of the same device. */
INLINE int hand_on(struct __sk_buff *skb, __u16 port_be)
{
	skb->mark = MARK_HAND_ON | bpf_ntohs(port_be);
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

INLINE bool is_handed_on(const struct __sk_buff *skb)
{
	return (skb->mark & 0xffff0000) == MARK_HAND_ON;
}

/* The flag of this direction that says whether the flow is redirected. */
INLINE __u16 redirect_flag(const struct packet *p)
{
	return p->is_reply ? CT_FROM_PROXY : CT_TO_PROXY;
}

/* After judge: does the flow go by a proxy? A connection stays with whom it has begun with: a proxy goes on to judge it by
 * the rules of the day, and one that is to be judged by a proxy only now cannot go on. `known`: its entry. */
INLINE enum drop_reason join_proxy(struct packet *p, const struct conntrack *known)
{
	__u16 flag = redirect_flag(p);
	bool stays = known && p->tuple.protocol == PROTO_TCP;

	if (stays && !(p->flags & flag) && p->listener) {
		p->is_refused = !is_syn(p); /* which comes again, and then begins another */
		return DROP_PROXY_UNREADY;
	}
	if (!known && p->listener && needs_listener(p) && !listener_port_be(p, p->listener)) /* a SYN will be sent again */
		return DROP_PROXY_UNREADY;
	if (p->listener)
		p->flags |= flag;
	else if (!stays)
		p->flags &= ~flag;
	if (stays && (!p->listener || known->flags & CT_ESTABLISHED))
		p->listener = known->listener; /* user space finds live flows by the listener they began at */
	if (p->flags & CT_TO_PROXY && p->hook == HOOK_FROM_POD)
		set_way(&p->receiver, NULL);
	if (p->flags & CT_FROM_PROXY)
		set_way(&p->sender, NULL);
	if (p->flags & CT_OF_PROXY)
		p->flags &= ~CT_LOCAL;
	return DROP_NONE;
}

#endif
