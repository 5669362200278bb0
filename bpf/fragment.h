/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Only the first fragment of a packet has ports: it leaves them here for the others. */
#ifndef GATEHOUSE_FRAGMENT_H
#define GATEHOUSE_FRAGMENT_H

#include "packet.h"

INLINE void fragment_key(struct fragment_key *key, const struct header *h)
{
	key->source = h->source;
	key->destination = h->destination;
	key->id = h->fragment_id;
	key->protocol = h->protocol;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
}

INLINE bool is_first_fragment(const struct packet *p)
{
	return p->outer.more_fragments && !p->outer.fragment_offset;
}

/* It is not enough to find the flow of such a packet: more hangs on it. */
INLINE bool needs_thought(const struct packet *p)
{
	return p->is_error || is_first_fragment(p);
}

/* Only once it is known to be in the sender's own name: it speaks for the others. Those of an ICMP error are not
 * followed. */
INLINE void fragment_remember(const struct packet *p)
{
	struct fragment_key key;
	struct fragment_value value = { p->tuple.source_port_be, p->tuple.destination_port_be };

	if (!is_first_fragment(p) || p->is_error)
		return;
	fragment_key(&key, &p->outer);
	if (UPDATE(fragments, &key, &value, BPF_ANY))
		add_to_tally(TALLY_FRAGMENT_FULL);
}

INLINE enum drop_reason fragment_ports(const struct header *h, struct tuple *t)
{
	struct fragment_key key;
	struct fragment_value *value;

	fragment_key(&key, h);
	value = LOOKUP(fragments, &key);
	if (!value)
		return DROP_FRAGMENT_UNKNOWN;
	t->source_port_be = value->source_port_be;
	t->destination_port_be = value->destination_port_be;
	return DROP_NONE;
}

#endif
