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

_FIRST = KEY.offset("destination")
_LAST = _FIRST + 16


async def live_addresses(conntrack: Map, wanted: Set[bytes]) -> set[bytes]:
    """Those of the addresses that some flow goes to that is not over. What begins meanwhile may not be seen."""
    found: set[bytes] = set()
    if not wanted:
        return found
    now_ns = time.monotonic_ns()
    for keys, values in conntrack.chunks(CHUNK):
        packed = bytes(keys)
        for number, start in enumerate(range(0, len(packed), KEY.size)):
            address = packed[start + _FIRST : start + _LAST]
            if address in wanted and address not in found:
                entry = ENTRY.unpack(values[number * ENTRY.size : (number + 1) * ENTRY.size])
                if entry.expires_ns > now_ns and not entry.flags & (OVER | NUMBERS.CT_REPLY):
                    found.add(address)
        if len(found) == len(wanted):
            break
        await asyncio.sleep(0)
    return found
