/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who an address is: a local pod (endpoints, interfaces) or somebody else (ipcache). */
#ifndef GATEHOUSE_IDENTITY_H
#define GATEHOUSE_IDENTITY_H

#include "packet.h"

INLINE struct endpoint *endpoint_of_interface(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;

	return LOOKUP(interfaces, &ifindex);
}

INLINE struct endpoint *endpoint_of_address(const struct address *address)
{
	return LOOKUP(endpoints, (void *)address);
}

/* An endpoint without an address of a family has zero there, which is nobody's. */
INLINE bool owns(const struct endpoint *ep, const struct address *address, bool ipv6)
{
	return !is_no_address(address) && same_address(address, ipv6 ? &ep->ipv6 : &ep->ipv4);
}

INLINE void party_of_endpoint(struct party *party, const struct endpoint *ep, bool ipv6)
{
	party->subject = ep->subject;
	party->remote_class = ipv6 ? ep->class_v6 : ep->class_v4;
	party->identity = ep->identity;
	party->ifindex = ep->ifindex;
}

/* The hairpin address is nobody's, whatever prefix covers it: only entries of conntrack make it mean something. */
INLINE void party_of_address(struct party *party, const struct address *address, bool ipv6)
{
	struct ipcache_value *value;

	ON_STACK(ipcache_key, key);
	key->prefixlen = 128;
	__builtin_memcpy(&key->address, address, sizeof(key->address));
	value = is_hairpin_address(address, ipv6) ? NULL : LOOKUP(ipcache, key);
	party->subject = 0;
	party->remote_class = value ? value->remote_class : 0;
	party->identity = value ? value->identity : IDENTITY_UNKNOWN;
	party->ifindex = 0;
}

/* `ep` if the address is a local pod's. */
INLINE void party_of(struct party *party, const struct endpoint *ep, const struct address *address, bool ipv6)
{
	if (ep)
		party_of_endpoint(party, ep, ipv6);
	else
		party_of_address(party, address, ipv6);
}

#endif
