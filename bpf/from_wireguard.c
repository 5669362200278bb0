/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of the WireGuard device: what came from another node, decrypted. It has no Ethernet header; it gets one, and
 * goes on as if it had come by a device of the node. Whose a source may be WireGuard itself has seen to. */
#include "outside.h"

/* To that device. */
INLINE bool push_ethernet(struct __sk_buff *skb, const struct device *device)
{
	struct ethernet_addresses ethernet;
	__u16 type_be = skb->protocol;

	__builtin_memcpy(ethernet.destination, device->mac, 6);
	__builtin_memcpy(ethernet.source, device->mac, 6);
	return !bpf_skb_change_head(skb, ETHERNET_SIZE, 0) && !bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0) &&
	       !bpf_skb_store_bytes(skb, sizeof(ethernet), &type_be, sizeof(type_be), 0);
}

/* A TC action, or minus a drop reason. */
INLINE int from_wireguard_steps(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0, ifindex;
	const struct config *config = LOOKUP(config, &zero);
	const struct device *device;

	if (!config)
		return -DROP_INTERNAL;
	ifindex = config->decrypted_ifindex;
	device = LOOKUP(devices, &ifindex);
	if (!device)
		return -DROP_NO_ROUTE;
	if (!push_ethernet(skb, device))
		return -DROP_TRANSLATION;
	p->length = skb->len;
	parse(skb, p); /* to_pod judges what is wrong with it */
	if (!is_local(packet_destination(p), p->ipv6))
		return -DROP_WRONG_DESTINATION;
	skb->mark = MARK_DECRYPTED;
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

INLINE int from_wireguard_act(struct __sk_buff *skb)
{
	struct packet *p = packet_of(skb, HOOK_FROM_WIREGUARD);
	int act;

	if (!p) {
		count_outcome(DROP_INTERNAL);
		return DROP;
	}
	act = from_wireguard_steps(skb, p);
	if (act < 0)
		act = drop(skb, p, -act);
	else
		count_outcome(DROP_NONE);
	release(p);
	return act;
}
