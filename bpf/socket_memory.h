/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is remembered of a translated socket, until it is closed:
 *
 *   socket_frontends  backend            -> the frontend its owner takes it for
 *   socket_backends   frontend           -> UDP: the backend its datagrams go to
 *                     no address, slot   -> UDP: a frontend it has spoken to. By these the other entries are found at the end
 *
 * A TCP socket is found by the peer it is connected to; an attempt that failed leaves its entry to the LRU, as does a UDP
 * socket that speaks to more than SOCKET_PEERS frontends. Nobody else comes by such an entry: cookies are given once.
 */
#ifndef GATEHOUSE_SOCKET_MEMORY_H
#define GATEHOUSE_SOCKET_MEMORY_H

#include "socket_client.h"

#define SOCKET_PEERS 16
#ifndef AF_INET6 /* linux/socket.h */
#define AF_INET6 10
#endif

INLINE void socket_key_of(struct socket_key *key, __u64 cookie, const struct address *address, __u16 port_be,
			  __u8 protocol)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	copy_address(&key->address, address);
	key->port_be = port_be;
	key->protocol = protocol;
}

INLINE bool is_at(const struct socket_value *value, const struct address *address, __u16 port_be)
{
	return value->port_be == port_be && same_address(&value->address, address);
}

INLINE long put(uintptr_t map, const struct socket_key *key, const struct address *address, __u16 port_be)
{
	struct socket_value value = {};

	copy_address(&value.address, address);
	value.port_be = port_be;
	return bpf_map_update_elem_(map, (void *)key, &value, BPF_ANY);
}

INLINE void slot_key_of(struct socket_key *key, __u32 slot)
{
	((word *)&key->address)[0] = 0;
	((word *)&key->address)[1] = 0;
	key->port_be = slot;
}

/* Remove what a slot leads to. The key is the socket's. */
INLINE void forget(struct socket_key *key, const struct socket_value *end)
{
	struct socket_value *backend;
	struct socket_key other = *key;

	copy_address(&key->address, &end->address);
	key->port_be = end->port_be;
	backend = LOOKUP(socket_backends, key);
	if (!backend)
		return;
	copy_address(&other.address, &backend->address);
	other.port_be = backend->port_be;
	DELETE(socket_backends, key);
	DELETE(socket_frontends, &other);
}

/* Put an end into a slot. */
INLINE void note(struct socket_key *key, const struct address *address, __u16 port_be)
{
	struct socket_value *known = NULL;
	__u32 slot;

	for (slot = 0; slot < SOCKET_PEERS; slot++) {
		asm volatile("" : "+r"(slot)); /* count from 0, or the verifier does not see the loop's end */
		slot_key_of(key, slot);
		known = LOOKUP(socket_backends, key);
		if (!known)
			break;
		if (is_at(known, address, port_be))
			return;
	}
	slot_key_of(key, known ? bpf_get_prandom_u32() % SOCKET_PEERS : slot);
	put(MAP(socket_backends), key, address, port_be);
}

/* The frontend that is the key gets another backend than it had: answers of that one are no longer its own. */
INLINE void leave_backend(const struct socket_key *key, const struct backend_value *backend)
{
	const struct socket_value *had = LOOKUP(socket_backends, (void *)key), *frontend;
	struct socket_key other = *key;

	if (!had || is_at(had, &backend->address, backend->port_be))
		return;
	copy_address(&other.address, &had->address);
	other.port_be = had->port_be;
	frontend = LOOKUP(socket_frontends, &other);
	if (frontend && is_at(frontend, &key->address, key->port_be))
		DELETE(socket_frontends, &other);
}

/* False: there is no room. */
INLINE bool remember(__u64 cookie, const struct peer *frontend, const struct backend_value *backend)
{
	struct socket_key key;

	socket_key_of(&key, cookie, &frontend->address, frontend->port_be, frontend->protocol);
	if (frontend->protocol == PROTO_UDP) {
		leave_backend(&key, backend);
		if (put(MAP(socket_backends), &key, &backend->address, backend->port_be))
			return false;
		note(&key, &frontend->address, frontend->port_be);
	}
	copy_address(&key.address, &backend->address);
	key.port_be = backend->port_be;
	return !put(MAP(socket_frontends), &key, &frontend->address, frontend->port_be);
}

/* The backend that this socket's datagrams to a frontend go to. Of one that is gone user space removes the entry here, then
 * the one in socket_frontends: who finds only one of them chooses anew. */
INLINE bool recall(__u64 cookie, const struct peer *frontend, struct backend_value *backend)
{
	struct socket_key key;
	struct socket_value *known;

	socket_key_of(&key, cookie, &frontend->address, frontend->port_be, frontend->protocol);
	known = LOOKUP(socket_backends, &key);
	if (!known)
		return false;
	copy_address(&backend->address, &known->address);
	backend->port_be = known->port_be;
	copy_address(&key.address, &backend->address);
	key.port_be = backend->port_be;
	known = LOOKUP(socket_frontends, &key);
	if (!known)
		return false;
	/* Another frontend of the same backend may have been spoken to last. */
	return is_at(known, &frontend->address, frontend->port_be) ||
	       !put(MAP(socket_frontends), &key, &frontend->address, frontend->port_be);
}

/* The socket speaks to a peer by its own address: what comes from there is no frontend's answer. */
INLINE void disown(__u64 cookie, const struct peer *peer)
{
	struct socket_key key;

	socket_key_of(&key, cookie, &peer->address, peer->port_be, peer->protocol);
	if (LOOKUP(socket_frontends, &key))
		DELETE(socket_frontends, &key);
}

/* All that is known of a TCP socket that is being closed. */
INLINE void forget_connection(struct bpf_sock *sock)
{
	struct socket_key key;
	struct address peer;

	((word *)&peer)[0] = 0;
	((half *)&peer)[2] = bpf_htonl(0xffff);
	((half *)&peer)[3] = sock->dst_ip4;
	if (sock->family == AF_INET6) {
		((half *)&peer)[0] = sock->dst_ip6[0];
		((half *)&peer)[1] = sock->dst_ip6[1];
		((half *)&peer)[2] = sock->dst_ip6[2];
		((half *)&peer)[3] = sock->dst_ip6[3];
	}
	socket_key_of(&key, bpf_get_socket_cookie(sock), &peer, sock->dst_port, PROTO_TCP);
	DELETE(socket_frontends, &key);
}

/* All that is known of a UDP socket that is being closed. */
INLINE void forget_datagrams(__u64 cookie)
{
	const struct address none = {};
	struct socket_key key;
	struct socket_value end, *known;

	socket_key_of(&key, cookie, &none, 0, PROTO_UDP);
	for (__u32 slot = 0; slot < SOCKET_PEERS; slot++) {
		asm volatile("" : "+r"(slot));
		slot_key_of(&key, slot);
		known = LOOKUP(socket_backends, &key);
		if (!known)
			break;
		end = *known;
		DELETE(socket_backends, &key);
		forget(&key, &end);
	}
}

#endif
