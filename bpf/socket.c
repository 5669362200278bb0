/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services at the socket, for processes of the node and of its pods: a process that connects to a frontend is connected to
 * a backend, and no packet has to be translated. Programs of a cgroup. An AF_INET6 socket that speaks IPv4 comes by the
 * hooks of IPv6 with mapped addresses (only sendmsg: by that of IPv4).
 */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "socket_translate.h"

int gh_connect4(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv4(&peer, ctx);
	return finish_call(ctx, false, &peer, false);
}

int gh_connect6(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv6(&peer, ctx);
	return finish_call(ctx, true, &peer, false);
}

int gh_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv4(&peer, ctx);
	return is_connected_to(ctx, &peer) ? 1 : finish_call(ctx, false, &peer, true);
}

int gh_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv6(&peer, ctx);
	return finish_call(ctx, true, &peer, true);
}

int gh_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv4(&peer, ctx);
	return name_frontend(ctx, false, &peer);
}

int gh_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv6(&peer, ctx);
	return name_frontend(ctx, true, &peer);
}

int gh_getpeername4(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv4(&peer, ctx);
	return name_frontend(ctx, false, &peer);
}

int gh_getpeername6(struct bpf_sock_addr *ctx)
{
	struct peer peer;

	peer_of_ipv6(&peer, ctx);
	return name_frontend(ctx, true, &peer);
}

int gh_sock_release(struct bpf_sock *sock)
{
	__u32 protocol = sock->protocol;

	if (protocol == PROTO_TCP)
		forget_connection(sock);
	else if (protocol == PROTO_UDP)
		forget_datagrams(bpf_get_socket_cookie(sock));
	return 1;
}
