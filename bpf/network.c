/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The programs of the node's network devices, and of WireGuard's. bcc makes programs only of the functions that stand in the file it is
 * given. */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "from_network.c"
#include "from_wireguard.c"
#include "to_network.c"
#include "xdp_network.c"

int from_network(struct __sk_buff *skb)
{
	return from_network_act(skb);
}

int to_network(struct __sk_buff *skb)
{
	return to_network_act(skb);
}

int from_wireguard(struct __sk_buff *skb)
{
	return from_wireguard_act(skb);
}

int xdp_network(struct xdp_md *context)
{
	return xdp_network_act(context);
}
