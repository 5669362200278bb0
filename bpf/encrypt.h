/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Between nodes packets go by WireGuard. Which do is said by addresses, as they stand in the packet that is about to leave,
 * so that nothing that changes a packet's way (routes, proxies, translation, fragments) changes that. The WireGuard
 * device takes what is redirected to it, and what it decrypts goes on as if it had come by a device of the node.
 */
#ifndef GATEHOUSE_ENCRYPT_H
#define GATEHOUSE_ENCRYPT_H

#include "conntrack.h"
#include "identity.h"
#include "parse.h"

#define ENCRYPTION_PODS (ENCRYPTION_OWN_PODS | ENCRYPTION_PEER_PODS)

#define IPV4_ENDS_AT 12         /* in its header */
#define IPV6_ENDS_AT 8

#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_PROVIDER_VLAN 0x88a8
#define VLAN_TAGS 2

/* It came by WireGuard. */
INLINE bool was_encrypted(const struct __sk_buff *skb)
{
	return has_mark(skb, MARK_DECRYPTED);
}

/* NULL: nothing is to be encrypted. */
INLINE const struct config *config_of_encryption(void)
{
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);

	return config && config->features & FEATURE_ENCRYPT ? config : NULL;
}

/* Whose it is: of enum encryption_flags. */
INLINE __u32 whose(const struct address *address)
{
	const struct encryption_value *value;

	ON_STACK(ipcache_key, key);
	key->prefixlen = 128;
	__builtin_memcpy(&key->address, address, sizeof(key->address));
	value = LOOKUP(encryption, key);
	return value ? value->flags : 0;
}

struct vlan_tag { __u16 control_be; __u16 protocol_be; };

/* VLAN tags that stand in the packet itself: behind them is its IP header. One that the device adds is none of these. */
INLINE bool is_tag(__u16 protocol_be)
{
	return protocol_be == bpf_htons(ETHERTYPE_VLAN) || protocol_be == bpf_htons(ETHERTYPE_PROVIDER_VLAN);
}

/* The addresses of p->other become those that the packet has now, whatever else is to be made of it. False: it has none. */
INLINE bool read_ends(struct __sk_buff *skb, struct packet *p)
{
	__u16 protocol_be = skb->protocol;
	struct vlan_tag tag;
	__u32 at = ETHERNET_SIZE;
	half ends[2];

#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (!is_tag(protocol_be))
			break;
		if (bpf_skb_load_bytes(skb, at, &tag, sizeof(tag)))
			return false;
		protocol_be = tag.protocol_be;
		at += sizeof(tag);
	}
	if (protocol_be == bpf_htons(ETHERTYPE_IPV6))
		return !bpf_skb_load_bytes(skb, at + IPV6_ENDS_AT, &p->other, 2 * sizeof(struct address));
	if (protocol_be != bpf_htons(ETHERTYPE_IPV4) || bpf_skb_load_bytes(skb, at + IPV4_ENDS_AT, ends, sizeof(ends)))
		return false;
	map_ipv4(&p->other.source, ends[0]);
	map_ipv4(&p->other.destination, ends[1]);
	return true;
}

/* The same of an end of a packet; a pod here is one wherever its address is from. */
INLINE __u32 whose_end(const struct address *address)
{
	__u32 flags = whose(address);

	return flags & ENCRYPTION_PODS || !endpoint_of_address(address) ? flags : flags | ENCRYPTION_OWN_PODS;
}

/* Whether what this node's pods send there leaves it encrypted. */
INLINE bool is_encrypted_towards(const struct address *address)
{
	const struct config *config = config_of_encryption();
	__u32 to;

	if (!config || !config->wireguard_ifindex)
		return false;
	to = whose(address);
	return to & ENCRYPTION_READY &&
	       (to & ENCRYPTION_PEER_PODS || (to & ENCRYPTION_PEER_NODE && config->features & FEATURE_NODE_ENCRYPTION));
}

INLINE void count_plaintext(const struct __sk_buff *skb)
{
	__u32 tally = TALLY_PLAINTEXT;
	__u64 *count = LOOKUP(tallies, &tally);

	if (count)
		*count += packets_in(skb);
}

/* What comes in by a device: between pods it must have come by WireGuard. Uses p->other. */
INLINE enum drop_reason refuse_plaintext(struct __sk_buff *skb, struct packet *p)
{
	const struct config *config = config_of_encryption();

	if (!config || was_encrypted(skb) || !read_ends(skb, p) || !(whose_end(&p->other.destination) & ENCRYPTION_OWN_PODS) ||
	    !(whose_end(&p->other.source) & ENCRYPTION_PODS))
		return DROP_NONE;
	if (config->features & FEATURE_STRICT)
		return DROP_UNENCRYPTED;
	count_plaintext(skb);
	return DROP_NONE;
}

/* The same of its source alone: what a backend elsewhere answers to this node, which has sent it somebody's packets by
 * WireGuard. */
INLINE bool is_plaintext_answer_refused(const struct __sk_buff *skb, const struct packet *p)
{
	const struct config *config = was_encrypted(skb) ? NULL : config_of_encryption();

	return config && config->features & FEATURE_STRICT && whose(packet_source(p)) & ENCRYPTION_PEER_PODS;
}

/* The same, where a pod is reached: by whatever way it came, and of new flows only, and those that were encrypted. */
INLINE bool is_plaintext_refused(const struct __sk_buff *skb, const struct packet *p)
{
	return skb->ingress_ifindex && is_plaintext_answer_refused(skb, p);
}

/* What is for the node itself is nobody's concern any more. If the node unwraps it, what was in it did not come by
 * WireGuard as it is now: nobody has looked whose its source may be. Uses p->other. */
INLINE void forget_encryption(struct __sk_buff *skb, struct packet *p)
{
	if (was_encrypted(skb) && !(read_ends(skb, p) && whose_end(&p->other.destination) & ENCRYPTION_OWN_PODS))
		skb->mark = 0;
}

/* Another node says through the tunnel what only this one, or a pod of its own, can say. WireGuard takes of a node all
 * addresses that it tells to be its own, and one may tell of such as are this node's, too. */
INLINE bool is_own_source_forged(const struct __sk_buff *skb, const struct packet *p)
{
	return was_encrypted(skb) && whose(packet_source(p)) & (ENCRYPTION_OWN_NODE | ENCRYPTION_OWN_PODS);
}

/* The flow's packets come encrypted now and did not before, or the other way round. What proxies send is no sign. */
INLINE bool has_encryption_changed(const struct __sk_buff *skb, const struct conntrack *e)
{
	return skb->ingress_ifindex && was_encrypted(skb) != !!(e->flags & CT_ENCRYPTED);
}

/* Both entries say so from now on. */
INLINE void conntrack_note_encryption(struct packet *p, struct conntrack *e)
{
	__u16 flag = ~e->flags & CT_ENCRYPTED;
	struct conntrack *partner;

	turn_round(&p->answer, &p->after);
	partner = conntrack_at(&p->answer, false);
	e->flags = (e->flags & ~CT_ENCRYPTED) | flag;
	p->flags = (p->flags & ~CT_ENCRYPTED) | flag;
	if (are_partners(e, partner))
		partner->flags = (partner->flags & ~CT_ENCRYPTED) | flag;
}

#endif
