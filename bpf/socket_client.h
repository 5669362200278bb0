/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose socket it is, and what it speaks to. These programs run in the process that calls, which may be preempted: all they
 * know is on the stack, never in the scratch map.
 */
#ifndef GATEHOUSE_SOCKET_CLIENT_H
#define GATEHOUSE_SOCKET_CLIENT_H

#include "backend.h"

/* The other end, as the process names it or as the kernel does. */
struct peer {
	struct address address;
	__u16 port_be;
	__u8 protocol;
};

struct client {
	struct address address; /* zero: it has none of the peer's family */
	__u32 ifindex;          /* of a pod */
	bool is_node;
};

INLINE void peer_of_ipv4(struct peer *peer, struct bpf_sock_addr *ctx)
{
	((word *)&peer->address)[0] = 0;
	((half *)&peer->address)[2] = bpf_htonl(0xffff);
	((half *)&peer->address)[3] = ctx->user_ip4;
	peer->port_be = ctx->user_port;
	peer->protocol = ctx->protocol;
}

INLINE void peer_of_ipv6(struct peer *peer, struct bpf_sock_addr *ctx)
{
	((half *)&peer->address)[0] = ctx->user_ip6[0];
	((half *)&peer->address)[1] = ctx->user_ip6[1];
	((half *)&peer->address)[2] = ctx->user_ip6[2];
	((half *)&peer->address)[3] = ctx->user_ip6[3];
	peer->port_be = ctx->user_port;
	peer->protocol = ctx->protocol;
}

INLINE void set_peer(struct bpf_sock_addr *ctx, bool ipv6, const struct address *address, __u16 port_be)
{
	if (ipv6) {
		ctx->user_ip6[0] = ((const half *)address)[0];
		ctx->user_ip6[1] = ((const half *)address)[1];
		ctx->user_ip6[2] = ((const half *)address)[2];
		ctx->user_ip6[3] = ((const half *)address)[3];
	} else {
		ctx->user_ip4 = ((const half *)address)[3];
	}
	ctx->user_port = port_be;
}

/* An AF_INET6 socket that is connected to an IPv4 peer passes by the hook of sendmsg with each datagram all the same. */
INLINE bool is_connected_to(struct bpf_sock_addr *ctx, const struct peer *peer)
{
	struct bpf_sock *sock = ctx->sk;

	return sock && sock->state == BPF_TCP_ESTABLISHED && sock->dst_port == peer->port_be &&
	       sock->dst_ip4 == ((const half *)&peer->address)[3];
}

/* 127.0.0.0/8 and ::1, and no address, by which the kernel understands them. */
INLINE bool is_loopback(const struct address *a)
{
	if (is_ipv4_mapped(a))
		return a->bytes[12] == 127 || !((const half *)a)[3];
	return !((const word *)a)[0] && !((const half *)a)[2] && !(((const half *)a)[3] & ~bpf_htonl(1));
}

INLINE void loopback_address(struct address *to, bool ipv6)
{
	((word *)to)[0] = 0;
	((half *)to)[2] = ipv6 ? 0 : bpf_htonl(0xffff);
	((half *)to)[3] = bpf_htonl(ipv6 ? 1 : 0x7f000001);
}

/* False where sockets of this network namespace are not to be translated. */
INLINE bool client_of(struct bpf_sock_addr *ctx, bool ipv6, struct client *client)
{
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);
	__u64 cookie = bpf_get_netns_cookie(ctx);
	const struct netns *pod;

	if (!config || !cookie)
		return false;
	if (cookie == config->host_netns) {
		client->is_node = true;
		client->ifindex = 0;
		copy_address(&client->address, ipv6 ? &config->ipv6 : &config->ipv4);
		return true;
	}
	if (!(config->features & FEATURE_SOCKET_PODS))
		return false;
	pod = LOOKUP(namespaces, &cookie);
	if (!pod)
		return false;
	client->is_node = false;
	client->ifindex = pod->ifindex;
	copy_address(&client->address, ipv6 ? &pod->ipv6 : &pod->ipv4);
	return true;
}

#endif
