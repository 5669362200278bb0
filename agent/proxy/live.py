"""Flows that live at listeners of proxies, found in the kernel's conntrack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from agent.datapath import abi
from agent.datapath.maps import Map
from agent.plan.live import LiveFlow

NUMBERS = abi.load().constants
CHUNK = 4096


async def live_flows(conntrack: Map, listeners: frozenset[int]) -> list[LiveFlow]:
    """Those that began at one of these. Other work of the loop goes on between chunks."""
    found: list[LiveFlow] = []
    for keys, values in conntrack.chunks(CHUNK):
        found += _of_chunk(conntrack, keys, values, listeners)
        await asyncio.sleep(0)
    return found


def _of_chunk(conntrack: Map, keys: memoryview, values: memoryview, listeners: frozenset[int]) -> Iterator[LiveFlow]:
    entry, key = conntrack.spec.value, conntrack.spec.key
    assert entry is not None and key is not None
    words = values.cast("Q")[entry.offset("listener") // 8 :: entry.size // 8].tolist()
    for index, listener in enumerate(words):
        if listener not in listeners:
            continue
        fields = entry.unpack(values[index * entry.size : (index + 1) * entry.size])
        if fields.flags & NUMBERS.CT_TO_PROXY and not fields.flags & (NUMBERS.CT_REPLY | NUMBERS.CT_CLOSED):
            yield LiveFlow(
                listener=listener,
                source=fields.after_source,
                destination=fields.after_destination,
                protocol=key.unpack(keys[index * key.size : (index + 1) * key.size]).protocol,
                port=abi.be16(fields.after_destination_port_be),
            )
