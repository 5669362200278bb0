"""Events put into the ring by a program of the tests' own, as fast as the kernel can."""

from __future__ import annotations

from typing import Any

from flow_events import EVENT, packed

from agent.datapath import testrun

ETHERNET = 14

FEED = rf"""
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "abi.h"
#define MAP(name) ((uintptr_t)bpf_pseudo_fd(1, FD_##name))

/* The packet is an Ethernet header and an event; that goes into the ring with the time of now. */
int feed(struct __sk_buff *skb)
{{
	__u32 lost = TALLY_EVENTS_LOST;
	__u64 *count = bpf_map_lookup_elem_(MAP(tallies), &lost);
	struct event *event = bpf_ringbuf_reserve((void *)MAP(events), sizeof(*event), 0);

	if (!event) {{
		if (count)
			(*count)++;
		return TC_ACT_SHOT;
	}}
	if (bpf_skb_load_bytes(skb, {ETHERNET}, event, sizeof(*event))) {{
		bpf_ringbuf_discard(event, 0);
		return TC_ACT_SHOT;
	}}
	event->time_ns = bpf_ktime_get_ns();
	bpf_ringbuf_submit(event, 0);
	return TC_ACT_OK;
}}
"""


class Feed:
    def __init__(self, program: int) -> None:
        self._program = program

    def put(self, count: int = 1, **changes: Any) -> None:
        """`count` times the event of flow_events, changed. Those the ring has no room for are tallied as lost."""
        packet = bytes(ETHERNET) + packed(**changes)
        assert len(packet) == ETHERNET + EVENT.size
        testrun.run(self._program, packet, repeat=count)
