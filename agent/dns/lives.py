"""Which addresses have live connections, asked of conntrack a little at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set

from agent.datapath import abi
from agent.datapath.maps import Map

KEY = abi.load().records["tuple"]
ENTRY = abi.load().records["conntrack"]
NUMBERS = abi.load().constants
OVER = NUMBERS.CT_CLOSED | NUMBERS.CT_ENDED | NUMBERS.CT_GONE
CHUNK = 1024
"""Entries that are read before others get their turn."""

_SOURCE, _DESTINATION, _BYTES = KEY.offset("source"), KEY.offset("destination"), 16


async def live_addresses(conntrack: Map, wanted: Set[bytes]) -> set[bytes]:
    """Those of the addresses that some flow goes to that is not over: by either of its entries, as the later of them
    says how long it lives. What begins meanwhile may not be seen."""
    found: set[bytes] = set()
    if not wanted:
        return found
    now_ns = time.monotonic_ns()
    for keys, values in conntrack.chunks(CHUNK):
        packed = bytes(keys)
        for number, start in enumerate(range(0, len(packed), KEY.size)):
            source = packed[start + _SOURCE : start + _SOURCE + _BYTES]
            destination = packed[start + _DESTINATION : start + _DESTINATION + _BYTES]
            if source not in wanted and destination not in wanted:
                continue
            entry = ENTRY.unpack(values[number * ENTRY.size : (number + 1) * ENTRY.size])
            if entry.expires_ns > now_ns and not entry.flags & OVER:
                found.add(source if entry.flags & NUMBERS.CT_REPLY else destination)
        if wanted <= found:
            break
        await asyncio.sleep(0)
    return found & wanted
