"""What an address becomes by its names while the agent is away.

The class of an address outside the cluster is made of the prefixes that cover it and the patterns its names match. If
the agent has said that the kernel knows that class, the address is entered into the ipcache under it, just as the agent
would; if not, nothing is entered, and the answer waits for the agent. Nothing is ever taken out here.
"""

from __future__ import annotations

from agent import log as logs
from agent.datapath import abi
from agent.datapath.bpf import MapFull
from agent.datapath.maps import Map
from agent.dns.configuration import Standing
from policies.address import Prefix, is_v4
from policies.l7 import NamePattern
from policies.names import Names

NUMBERS = abi.load().constants
KEY = abi.load().records["ipcache_key"]
VALUE = abi.load().records["ipcache_value"]
OUTSIDE = frozenset({NUMBERS.IDENTITY_WORLD, NUMBERS.IDENTITY_WORLD_IPV4, NUMBERS.IDENTITY_WORLD_IPV6})
HOST_BITS = 128

_Class = tuple[int, frozenset[Prefix], frozenset[NamePattern]]

log = logs.get("dns")


class AbsentAgent:
    """`ipcache` is the kernel's map."""

    def __init__(self, ipcache: Map) -> None:
        self._ipcache = ipcache
        self._prefixes: list[Prefix] = []
        self._inside: list[Prefix] = []
        self._names = Names(())
        self._classes: dict[_Class, int] = {}

    def configure(self, standing: Standing, patterns: tuple[NamePattern, ...]) -> None:
        self._prefixes = [Prefix.parse(text) for text in standing.prefixes]
        self._inside = [Prefix.parse(text) for text in standing.inside]
        self._names = Names(patterns)
        self._classes = {
            (one.identity, frozenset(map(Prefix.parse, one.prefixes)), frozenset(one.names)): one.number
            for one in standing.classes
        }

    def settle(self, address: bytes, names: frozenset[str]) -> bool:
        """Whether the address now means what its names make of it."""
        key = KEY.pack_values(HOST_BITS, address)
        found = self._ipcache.lookup(key)  # the longest prefix that holds it
        if self._is_inside(address, found):
            return True  # names make nothing of it
        identity = NUMBERS.IDENTITY_WORLD_IPV4 if is_v4(address) else NUMBERS.IDENTITY_WORLD_IPV6
        number = self._class_of(identity, address, names)
        if found is None or number is None:
            return False
        value = VALUE.pack_values(number, identity)
        try:
            if value != found:
                self._ipcache.update(key, value)
        except MapFull:
            log.error("no room for an address: it stays denied", address=str(Prefix.host(address)))
            return False
        return True

    def _is_inside(self, address: bytes, found: bytes | None) -> bool:
        if any(block.contains(address) for block in self._inside):
            return True
        identity = VALUE.unpack(found).identity if found else NUMBERS.IDENTITY_WORLD
        # Otherwise it is that of a pod or node the blocks do not tell of.
        return identity not in OUTSIDE and identity < NUMBERS.IDENTITY_LOCAL_MIN

    def _class_of(self, identity: int, address: bytes, names: frozenset[str]) -> int | None:
        """Its number, as the agent has said."""
        prefixes = frozenset(block for block in self._prefixes if block.contains(address))
        marks = frozenset(pattern for name in names for pattern in self._names.matching(name))
        return self._classes.get((identity, prefixes, marks))
