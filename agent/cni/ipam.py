"""Addresses of pods by attachment, one of each block. Pure but for the clock it is given.

What is given back rests a while before anybody else gets it: other nodes may know its last owner a moment longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from agent.cni.protocol import TRY_AGAIN_LATER, CniError, Key
from agent.identity.allocator import AddressPool, ExhaustedError
from policies.address import Prefix

REST_S = 30.0


class Ipam:
    """`clock`: seconds, never backwards."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pools: tuple[AddressPool, ...] = ()
        self._held: dict[Key, tuple[bytes, ...]] = {}
        self._resting: deque[tuple[float, bytes]] = deque()
        self.problem = "this node has no block of pod addresses yet"
        """Why nothing can be given; empty where something can."""

    def set_blocks(self, blocks: Sequence[Prefix], reserved: Iterable[bytes] = (), why_none: str = "") -> None:
        """From now on addresses come from these blocks, without the reserved ones. What is held stays held."""
        kept = list(reserved)
        self._pools = tuple(AddressPool("pod address", block, kept) for block in blocks)
        self._resting.clear()
        self.problem = "" if blocks else (why_none or "this node has no block of pod addresses yet")
        for key, addresses in self._held.items():
            self._restore(key, addresses)

    def give(self, key: Key) -> tuple[bytes, ...]:
        """16 bytes of each block, or what the key holds. Raises CniError where a block is used up."""
        if (held := self._held.get(key)) is not None:
            return held
        if self.problem and not self._pools:
            raise CniError(TRY_AGAIN_LATER, "no address to give", self.problem)
        self._wake(self._clock() - REST_S)
        try:
            given = self._allocate(key)
        except ExhaustedError:
            self._wake(float("inf"))
            try:
                given = self._allocate(key)
            except ExhaustedError as error:
                self.problem = f"{error}: remove pods from this node, or give it a larger block"
                raise CniError(TRY_AGAIN_LATER, "no address is left", self.problem) from None
        self._held[key] = given
        return given

    def hold(self, key: Key, addresses: tuple[bytes, ...]) -> None:
        """What an attachment from before has."""
        self._held[key] = addresses
        self._restore(key, addresses)

    def take_back(self, key: Key) -> None:
        for address in self._held.pop(key, ()):
            for pool in self._pools:
                if pool.block.contains(address):
                    pool.avoid(address)
                    self._resting.append((self._clock(), address))
        for pool in self._pools:
            pool.release(str(key))
        if self._pools:
            self.problem = ""

    def held(self) -> dict[Key, tuple[bytes, ...]]:
        """Who has what."""
        return dict(self._held)

    def _allocate(self, key: Key) -> tuple[bytes, ...]:
        try:
            return tuple(pool.allocate(str(key)) for pool in self._pools)
        except ExhaustedError:
            for pool in self._pools:
                pool.release(str(key))
            raise

    def _restore(self, key: Key, addresses: Iterable[bytes]) -> None:
        for address in addresses:
            for pool in self._pools:
                if pool.block.contains(address):
                    first = int.from_bytes(pool.block.network, "big")
                    pool.restore({str(key): int.from_bytes(address, "big") - first})

    def _wake(self, until_s: float) -> None:
        while self._resting and self._resting[0][0] <= until_s:
            address = self._resting.popleft()[1]
            for pool in self._pools:
                pool.unavoid(address)
