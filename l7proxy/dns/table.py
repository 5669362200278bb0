"""Which names have which addresses, and until when. Pure: whoever asks says what time it is (wall clock, seconds).

A pair of name and address lives for its TTL, `min_ttl_s` at least, from the last answer that held it. After that it is
*due*: whoever knows connections keeps it, by doing nothing, or forgets it. Pairs beyond `max_addresses` of one name are
due at once, the oldest first; such may be kept, too, but no more than that many again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

MAX_PAIRS = 100_000
"""In the whole table. When it is full nothing new is learned. Names that no rule needs get half of it, and what one pod
has asked for a quarter."""

Pair = tuple[str, bytes]
"""Name (canonical) and address (16 bytes)."""


class Limits(msgspec.Struct, frozen=True):
    """As Cilium's tofqdns-min-ttl and tofqdns-endpoint-max-ip-per-hostname, with the latter's default."""

    min_ttl_s: int = 60
    max_addresses: int = 1000
    max_pairs: int = MAX_PAIRS


class Learned(msgspec.Struct):
    """What one answer changed. `refused`: how many addresses found no room."""

    new: list[Pair]
    gone: list[Pair]
    refused: int = 0


class Table:
    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._names: dict[str, dict[bytes, float]] = {}  # addresses in the order of the last answers
        self._beyond: dict[str, set[bytes]] = {}  # what a name may have
        self._owners: dict[Pair, bytes] = {}
        self._owned: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._owners

    def items(self) -> Iterator[tuple[str, Mapping[bytes, float]]]:
        """Name → address → when it ends."""
        return iter(self._names.items())

    def pairs(self) -> Iterator[Pair]:
        return iter(self._owners)

    def addresses(self, name: str) -> Mapping[bytes, float]:
        return self._names.get(name, {})

    def restore(self, name: str, address: bytes, expires_s: float) -> None:
        self._put((name, address), expires_s, b"")

    def learn(
        self, name: str, addresses: Iterable[bytes], expires_s: float, *, owner: bytes = b"", needed: bool = True
    ) -> Learned:
        """`expires_s`: see `end`. `owner`: the pod that asked. `needed`: some rule names it."""
        result = Learned([], [])
        held = self._names.get(name, {})
        for address in addresses:
            before = held.get(address)
            if before is None:
                if not self._has_room(owner, needed):
                    result.refused += 1
                    continue
                result.new.append((name, address))
            else:
                del held[address]
            self._put((name, address), max(expires_s, before or 0), owner)
            held = self._names[name]
        if result.new or name in self._beyond:
            self._bound(name, result.gone)
        return result

    def end(self, ttl_s: int, now_s: float) -> float:
        return now_s + max(ttl_s, self.limits.min_ttl_s)

    def due(self, now_s: float) -> list[Pair]:
        """Pairs to be kept or forgotten."""
        found = [(name, address) for name, held in self._names.items() for address, end in held.items() if end <= now_s]
        found += [(name, address) for name, beyond in self._beyond.items() for address in beyond]
        return list(dict.fromkeys(found))

    def forget(self, pair: Pair) -> None:
        if pair not in self._owners:
            return
        name, address = pair
        owner = self._owners.pop(pair)
        self._owned[owner] -= 1
        if not self._owned[owner]:
            del self._owned[owner]
        _drop(self._names, name, address)
        _drop(self._beyond, name, address)

    def _put(self, pair: Pair, expires_s: float, owner: bytes) -> None:
        name, address = pair
        self._names.setdefault(name, {})[address] = expires_s
        _drop(self._beyond, name, address)
        if pair not in self._owners:
            self._owners[pair] = owner
            self._owned[owner] += 1

    def _has_room(self, owner: bytes, needed: bool) -> bool:
        most = self.limits.max_pairs
        return len(self) < (most if needed else most // 2) and self._owned[owner] < max(1, most // 4)

    def _bound(self, name: str, gone: list[Pair]) -> None:
        held, limit = self._names.get(name, {}), self.limits.max_addresses
        oldest = list(held)[: max(0, len(held) - limit)]
        for address in oldest[: max(0, len(held) - 2 * limit)]:
            self.forget((name, address))
            gone.append((name, address))
        if beyond := {address for address in oldest if (name, address) in self}:
            self._beyond.setdefault(name, set()).update(beyond)


def _drop(names: dict[str, dict[bytes, float]] | dict[str, set[bytes]], name: str, address: bytes) -> None:
    held = names.get(name)
    if held is None:
        return
    if isinstance(held, dict):
        held.pop(address, None)
    else:
        held.discard(address)
    if not held:
        del names[name]
