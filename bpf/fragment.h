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

INLINE void fragment_record(const struct header *h, const struct tuple *t)
{
	struct fragment_key key;
	struct fragment_value value = { t->source_port_be, t->destination_port_be };

	fragment_key(&key, h);
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
