"""A datapath small enough for tests of what loads, attaches and reads it."""

from __future__ import annotations

from pathlib import Path

from agent.datapath.abi import bpf_dir

SMALL_SIZES = {
    "interfaces": 64,
    "endpoints": 64,
    "ipcache": 1000,
    "policy_class": 16384,
    "policy_row": 1000,
    "conntrack": 64,
    "services": 64,
    "backends": 64,
    "events": 4096,
}

PROGRAM = r"""
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "abi.h"
#define MAP(name) ((uintptr_t)bpf_pseudo_fd(1, FD_##name))

/* One event a packet. Its first byte says what becomes of it: 'd' discarded, 's' a record of another size;
 * the 8 bytes from the second on are its number. */
int from_pod(struct __sk_buff *skb)
{
	__u8 what = 0;
	__u64 number = 0;
	__u32 reason = DROP_MALFORMED;
	__u64 *count = bpf_map_lookup_elem_(MAP(drops), &reason);
	struct event *event;

	if (count)
		(*count)++;
	if (bpf_skb_load_bytes(skb, 0, &what, 1) || bpf_skb_load_bytes(skb, 1, &number, 8))
		return TC_ACT_SHOT;
	if (what == 's') {
		__u64 *other = bpf_ringbuf_reserve((void *)MAP(events), 8, 0);

		if (!other)
			return TC_ACT_SHOT;
		*other = 7;
		bpf_ringbuf_submit(other, 0);
		return TC_ACT_OK;
	}
	event = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*event), 0);
	if (!event)
		return TC_ACT_SHOT;
	__builtin_memset(event, 0, sizeof(*event));
	event->ifindex = skb->ifindex;
	event->packets = number;
	if (what == 'd')
		bpf_ringbuf_discard(event, 0);
	else
		bpf_ringbuf_submit(event, 0);
	return TC_ACT_OK;
}

int to_pod(struct __sk_buff *skb)
{
	skb->mark = skb->mark + 1;
	return TC_ACT_REDIRECT;
}
"""


def write_source(folder: Path, text: str = PROGRAM) -> Path:
    """A C file that compiles as bpf/gatehouse.c does."""
    for part in ("abi.h", "include"):
        (folder / part).symlink_to(bpf_dir() / part)
    source = folder / "small.c"
    source.write_text(text)
    return source


NETWORK_PROGRAM = r"""
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "abi.h"
#define MAP(name) ((uintptr_t)bpf_pseudo_fd(1, FD_##name))

/* Each passes everything on and counts it. */
static inline __attribute__((always_inline)) void seen(__u32 number)
{
	__u64 *count = bpf_map_lookup_elem_(MAP(drops), &number);

	if (count)
		(*count)++;
}

int from_network(struct __sk_buff *skb)
{
	seen(1);
	return TC_ACT_OK;
}

int to_network(struct __sk_buff *skb)
{
	seen(2);
	return TC_ACT_OK;
}

int from_wireguard(struct __sk_buff *skb)
{
	seen(4);
	return TC_ACT_OK;
}

int xdp_network(struct xdp_md *xdp)
{
	seen(3);
	return XDP_PASS;
}
"""
"""Counts what passes in `drops`: 1 from_network, 2 to_network, 3 xdp_network, 4 from_wireguard."""
