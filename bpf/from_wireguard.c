/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tc ingress of the WireGuard device: what came from another node, decrypted. It has no Ethernet header; it gets one, and
 * goes on as if it had come by a device of the node; or at once to the pod, where to_pod judges it. Whose a source may be
 * WireGuard itself has seen to. */
#include "outside.h"

/* Room for the header; its addresses are still to be set. */
INLINE bool push_ethernet(struct __sk_buff *skb)
{
	__u16 type_be = skb->protocol;

	return !bpf_skb_change_head(skb, ETHERNET_SIZE, 0) &&
	       !bpf_skb_store_bytes(skb, sizeof(struct ethernet_addresses), &type_be, sizeof(type_be), 0);
}

INLINE bool set_ethernet(struct __sk_buff *skb, const __u8 *destination, const __u8 *source)
{
	struct ethernet_addresses *ethernet = (void *)(long)skb->data;

	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return false;
	__builtin_memcpy(ethernet->destination, destination, 6);
	__builtin_memcpy(ethernet->source, source, 6);
	return true;
}

/* A packet that is too big for the pod is left to the stack, which tells its sender. */
INLINE bool fits(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return !bpf_check_mtu(skb, ifindex, &mtu, 0, 0);
}

INLINE int to_device(struct __sk_buff *skb, const struct config *config)
{
	__u32 ifindex = config->decrypted_ifindex;
	const struct device *device = LOOKUP(devices, &ifindex);

	if (!device)
		return -DROP_NO_ROUTE;
	return set_ethernet(skb, device->mac, device->mac) ? bpf_redirect(ifindex, BPF_F_INGRESS) : -DROP_TRANSLATION;
}

/* A TC action, or minus a drop reason. */
INLINE int from_wireguard_steps(struct __sk_buff *skb, struct packet *p)
{
	__u32 zero = 0;
	const struct config *config = LOOKUP(config, &zero);
	const struct endpoint *pod;

	if (!config)
		return -DROP_INTERNAL;
	if (!push_ethernet(skb))
		return -DROP_TRANSLATION;
	p->length = skb->len;
	if (parse(skb, p) == DROP_LINK_CONTROL) /* of a link that is none; to_pod judges what else is wrong with it */
		return -DROP_LINK_CONTROL;
	skb->mark = MARK_DECRYPTED;
	pod = endpoint_of_address(packet_destination(p));
	if (pod && fits(skb, pod->ifindex))
		return set_ethernet(skb, pod->mac, pod->host_mac) ? bpf_redirect(pod->ifindex, 0) : -DROP_TRANSLATION;
	if (!pod && !is_local(packet_destination(p), p->ipv6))
		return -DROP_WRONG_DESTINATION;
	return to_device(skb, config);
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
