"""Flows that live at listeners of proxies, found in the kernel's conntrack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from agent.datapath import abi
from agent.datapath.bpf import EXIST
from agent.datapath.maps import Map
from agent.plan.live import LiveFlow

NUMBERS = abi.load().constants
CHUNK = 4096


async def live_flows(conntrack: Map, listeners: frozenset[int] | None = None) -> list[LiveFlow]:
    """Those that began at one of these; None: at any. Other work of the loop goes on between chunks."""
    found: list[LiveFlow] = []
    for keys, values in conntrack.chunks(CHUNK):
        found += _of_chunk(conntrack, keys, values, listeners)
        await asyncio.sleep(0)
    return found


def _of_chunk(
    conntrack: Map, keys: memoryview, values: memoryview, listeners: frozenset[int] | None
) -> Iterator[LiveFlow]:
    entry, key = conntrack.spec.value, conntrack.spec.key
    assert entry is not None and key is not None
    words = values.cast("Q")[entry.offset("listener") // 8 :: entry.size // 8].tolist()
    for index, listener in enumerate(words):
        if not listener or (listeners is not None and listener not in listeners):
            continue
        fields = entry.unpack(values[index * entry.size : (index + 1) * entry.size])
        if fields.flags & NUMBERS.CT_TO_PROXY and not fields.flags & (NUMBERS.CT_REPLY | NUMBERS.CT_CLOSED):
            own = bytes(keys[index * key.size : (index + 1) * key.size])
            yield LiveFlow(
                key=own,
                listener=listener,
                source=fields.after_source,
                destination=fields.after_destination,
                protocol=key.unpack(own).protocol,
                port=abi.be16(fields.after_destination_port_be),
            )


def end(conntrack: Map, flows: Iterable[LiveFlow]) -> int:
    """Have the next packet of each answered by a reset; how many are new. Packets counted meanwhile may be lost to
    the count."""
    entry = conntrack.spec.value
    assert entry is not None
    ended = 0
    for flow in flows:
        if (value := conntrack.lookup(flow.key)) is None:
            continue
        fields = entry.unpack(value)
        if not fields.flags & NUMBERS.CT_GONE:
            gone = fields._asdict() | {"flags": fields.flags | NUMBERS.CT_GONE}
            conntrack.update(flow.key, entry.pack(**gone), EXIST)
            ended += 1
    return ended
