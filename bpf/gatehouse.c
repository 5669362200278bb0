/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The datapath's programs. bcc makes programs only of the functions that stand in the file it is given. */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "from_pod.c"
#include "to_pod.c"

int from_pod(struct __sk_buff *skb)
{
	return from_pod_act(skb);
}

int to_pod(struct __sk_buff *skb)
{
	return to_pod_act(skb);
}
