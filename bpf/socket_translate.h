/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From frontend to backend, once per connection, and back where a process asks who it speaks to. */
#ifndef GATEHOUSE_SOCKET_TRANSLATE_H
#define GATEHOUSE_SOCKET_TRANSLATE_H

#include "socket_memory.h"
#include "socket_refuse.h"

#define LEAVE 0                 /* as the process says: it is no service, or tc's to translate */
#define TRANSLATED 1            /* less than LEAVE: minus errno */

/* A node port at 127.0.0.1 is one at every address that leads there. What the kernel makes of no address, the process is
 * told afterwards. */
INLINE struct service_value *frontend_of(struct peer *peer, bool is_node)
{
	struct service_value *service = frontend_at(&peer->address, peer->port_be, peer->protocol);
	bool ipv6 = !is_ipv4_mapped(&peer->address);
	struct address loopback;

	if (service || !is_node || !is_loopback(&peer->address))
		return service;
	loopback_address(&loopback, ipv6);
	if (is_no_address(&peer->address) || (!ipv6 && !((half *)&peer->address)[3]))
		copy_address(&peer->address, &loopback);
	return frontend_at(&loopback, peer->port_be, peer->protocol);
}

INLINE enum drop_reason admit(const struct service_value *service, const struct client *client)
{
	return client->is_node && service->ranges && !(service->flags & SERVICE_NODE_IN_RANGES) ? DROP_SOURCE_RANGE : DROP_NONE;
}

/* Any backend of the pool; with Maglev and affinity the one that every node gives this client. */
INLINE enum drop_reason choose(const struct service_value *service, const struct client *client, const struct peer *peer,
			       struct backend_value *backend)
{
	__u32 zero = 0, hash = bpf_get_prandom_u32();
	const struct config *config;
	enum drop_reason reason;
	struct tuple tuple = {};

	if (service->affinity && service->flags & SERVICE_MAGLEV) {
		config = LOOKUP(config, &zero);
		copy_address(&tuple.source, &client->address);
		hash = maglev_hash(service, &tuple, config ? config->hash_seed : 0);
	}
	reason = choose_backend(service, true, &client->address, hash, backend);
	if (!reason && is_ipv4_mapped(&backend->address) != is_ipv4_mapped(&peer->address))
		reason = DROP_NO_BACKEND;
	return reason;
}

/* What a pod's packets would be dropped for, they are dropped for at its veth. The node's may pass no hook that drops. */
INLINE int fail(const struct client *client, const struct peer *frontend, enum drop_reason reason)
{
	if (reason != DROP_NO_BACKEND && !client->is_node)
		return LEAVE;
	tell_of(client, frontend, reason);
	return reason == DROP_NO_BACKEND ? REFUSED : UNREACHABLE;
}

/* Sets `backend` if it returns TRANSLATED. `keeps`: datagrams of a socket that go to one frontend go to one backend. */
INLINE int translate_call(struct bpf_sock_addr *ctx, struct peer *peer, bool keeps, struct backend_value *backend)
{
	struct client client = {};
	struct service_value *service;
	enum drop_reason reason;
	__u64 cookie;

	if (peer->protocol != PROTO_TCP && peer->protocol != PROTO_UDP)
		return LEAVE;
	if (!client_of(ctx, !is_ipv4_mapped(&peer->address), &client))
		return LEAVE;
	cookie = bpf_get_socket_cookie(ctx);
	service = frontend_of(peer, client.is_node);
	if (!service) {
		disown(cookie, peer);
		return LEAVE;
	}
	/* tc sees the packet's own source, and is the place for what only the node may use. */
	if (!client.is_node && (service->ranges || service->flags & SERVICE_LOOPBACK))
		return LEAVE;
	reason = admit(service, &client);
	if (!reason && keeps && recall(cookie, peer, backend))
		return TRANSLATED;
	if (!reason)
		reason = choose(service, &client, peer, backend);
	if (reason)
		return fail(&client, peer, reason);
	if (remember(cookie, peer, backend))
		return TRANSLATED;
	add_to_tally(TALLY_SOCKETS_FULL);
	return LEAVE;
}

/* What a cgroup hook returns: 0 fails the call with the error set. */
INLINE int finish_call(struct bpf_sock_addr *ctx, bool ipv6, struct peer *peer, bool keeps)
{
	struct backend_value backend = {};
	int result = translate_call(ctx, peer, keeps, &backend);

	if (result < LEAVE) {
		bpf_set_retval(result);
		return 0;
	}
	if (result == TRANSLATED)
		set_peer(ctx, ipv6, &backend.address, backend.port_be);
	return 1;
}

/* The process sees the address it asked for. */
INLINE int name_frontend(struct bpf_sock_addr *ctx, bool ipv6, const struct peer *peer)
{
	struct socket_key key;
	const struct socket_value *frontend;

	socket_key_of(&key, bpf_get_socket_cookie(ctx), &peer->address, peer->port_be, peer->protocol);
	frontend = LOOKUP(socket_frontends, &key);
	if (frontend)
		set_peer(ctx, ipv6, &frontend->address, frontend->port_be);
	return 1;
}

#endif
