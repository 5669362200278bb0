/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A call that fails because of the service it is for: counted, and told of as the packet it would have sent. */
#ifndef GATEHOUSE_SOCKET_REFUSE_H
#define GATEHOUSE_SOCKET_REFUSE_H

#include "socket_client.h"

#define REFUSED (-111)          /* ECONNREFUSED: as an RST or an ICMP port unreachable would say */
#define UNREACHABLE (-113)      /* EHOSTUNREACH: at once, and true; applications try again, as they do after a time-out */

INLINE __u32 identity_of(const struct client *client)
{
	const struct endpoint *pod;

	if (client->is_node)
		return IDENTITY_HOST;
	pod = LOOKUP(endpoints, (void *)&client->address);
	return pod ? pod->identity : IDENTITY_UNKNOWN;
}

INLINE void tell_of(const struct client *client, const struct peer *frontend, enum drop_reason reason)
{
	__u32 identity = identity_of(client), index = reason;
	__u64 *count = LOOKUP(drops, &index);
	struct event *e;

	if (count)
		__sync_fetch_and_add(count, 1); /* another task may come between on this CPU */
	e = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*e), 0);
	if (!e) {
		add_to_tally(TALLY_EVENTS_LOST);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time_ns = bpf_ktime_get_ns();
	e->packets = 1;
	copy_address(&e->source, &client->address);
	copy_address(&e->destination, &frontend->address);
	copy_address(&e->service, &frontend->address);
	e->destination_port_be = frontend->port_be;
	e->service_port_be = frontend->port_be;
	e->source_identity = identity;
	e->ifindex = client->ifindex;
	e->type = EVENT_DROP;
	e->verdict = VERDICT_DENY;
	e->reason = reason;
	e->protocol = frontend->protocol;
	e->hook = HOOK_SOCKET;
	bpf_ringbuf_submit(e, 0);
}

#endif
