/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is remembered of a translated socket, until it is closed:
 *
 *   socket_frontends  backend            -> the frontend its owner takes it for
 *   socket_backends   frontend           -> the backend that datagrams of an unconnected socket go to
 *                     no address, slot   -> a backend that has an entry in socket_frontends: how they are found at the end
 *
 * A TCP socket has one peer and slot 0. A UDP socket with more than SOCKET_PEERS at a time leaves entries to the LRU.
 */
#ifndef GATEHOUSE_SOCKET_MEMORY_H
#define GATEHOUSE_SOCKET_MEMORY_H

#include "socket_client.h"

#define SOCKET_PEERS 16

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

/* Remove what is known of one backend, given by a slot's value. */
INLINE void forget_backend(struct socket_key *key, const struct socket_value *backend)
{
	struct socket_value frontend, *known;

	copy_address(&key->address, &backend->address);
	key->port_be = backend->port_be;
	known = LOOKUP(socket_frontends, key);
	if (!known)
		return;
	frontend = *known;
	DELETE(socket_frontends, key);
	if (key->protocol == PROTO_UDP) {
		copy_address(&key->address, &frontend.address);
		key->port_be = frontend.port_be;
		DELETE(socket_backends, key);
	}
}

INLINE void slot_key_of(struct socket_key *key, __u32 slot)
{
	((word *)&key->address)[0] = 0;
	((word *)&key->address)[1] = 0;
	key->port_be = slot;
}

/* Note that socket_frontends has an entry for this backend. */
INLINE void note_backend(struct socket_key *key, const struct backend_value *backend)
{
	__u32 slot, slots = key->protocol == PROTO_UDP ? SOCKET_PEERS : 1;
	struct socket_value earlier, *known = NULL;

	for (slot = 0; slot < SOCKET_PEERS; slot++) {
		asm volatile("" : "+r"(slot)); /* count from 0, or the verifier does not see the loop's end */
		if (slot == slots)
			break;
		slot_key_of(key, slot);
		known = LOOKUP(socket_backends, key);
		if (!known)
			break;
		if (is_at(known, &backend->address, backend->port_be))
			return;
	}
	if (known && key->protocol != PROTO_UDP) { /* an attempt before this one */
		earlier = *known;
		forget_backend(key, &earlier);
	}
	slot_key_of(key, known && key->protocol == PROTO_UDP ? bpf_get_prandom_u32() % SOCKET_PEERS : slot % slots);
	put(MAP(socket_backends), key, &backend->address, backend->port_be);
}

/* False: there is no room. `stays`: later datagrams to the frontend are to go to the same backend. */
INLINE bool remember(__u64 cookie, const struct peer *frontend, const struct backend_value *backend, bool stays)
{
	struct socket_key key;
	struct socket_value *known;

	socket_key_of(&key, cookie, &backend->address, backend->port_be, frontend->protocol);
	known = LOOKUP(socket_frontends, &key);
	if (!(known && is_at(known, &frontend->address, frontend->port_be)) &&
	    put(MAP(socket_frontends), &key, &frontend->address, frontend->port_be))
		return false;
	if (stays) {
		copy_address(&key.address, &frontend->address);
		key.port_be = frontend->port_be;
		if (put(MAP(socket_backends), &key, &backend->address, backend->port_be))
			return false;
	}
	note_backend(&key, backend);
	return true;
}

/* The backend that this socket's datagrams to a frontend go to. User space removes the entries of backends that are gone. */
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
	/* Another frontend of the same backend was spoken to last, or the LRU has forgotten it. */
	return (known && is_at(known, &frontend->address, frontend->port_be)) ||
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

/* All that is known of a socket that is being closed. */
INLINE void forget_socket(__u64 cookie, __u8 protocol)
{
	const struct address none = {};
	struct socket_key key;
	struct socket_value backend, *known;

	socket_key_of(&key, cookie, &none, 0, protocol);
	for (__u32 slot = 0; slot < SOCKET_PEERS; slot++) {
		asm volatile("" : "+r"(slot));
		slot_key_of(&key, slot);
		known = LOOKUP(socket_backends, &key);
		if (!known)
			break;
		backend = *known;
		DELETE(socket_backends, &key);
		forget_backend(&key, &backend);
	}
}

#endif
