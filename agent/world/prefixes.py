"""Which policy prefixes cover an address, and which addresses lie in a prefix."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from policies.address import V4_MAPPED_BITS, Prefix


class PrefixSet:
    """Prefixes, asked which of them cover a given one."""

    def __init__(self, members: Iterable[Prefix] = ()) -> None:
        self._by_bits: dict[tuple[bool, int], dict[int, Prefix]] = {}
        self._shared: dict[frozenset[Prefix], frozenset[Prefix]] = {}  # many addresses, few different answers
        for member in members:
            self.add(member)

    def __contains__(self, prefix: Prefix) -> bool:
        return _number(prefix) in self._by_bits.get((prefix.is_v4, prefix.bits), ())

    def __iter__(self) -> Iterator[Prefix]:
        for members in self._by_bits.values():
            yield from members.values()

    def add(self, prefix: Prefix) -> None:
        self._by_bits.setdefault((prefix.is_v4, prefix.bits), {})[_number(prefix)] = prefix
        self._shared.clear()

    def remove(self, prefix: Prefix) -> None:
        kept = self._by_bits[prefix.is_v4, prefix.bits]
        del kept[_number(prefix)]
        if not kept:
            del self._by_bits[prefix.is_v4, prefix.bits]
        self._shared.clear()

    def covering(self, prefix: Prefix) -> frozenset[Prefix]:
        """All members that cover `prefix`, itself included where it is one."""
        number, is_v4 = int.from_bytes(prefix.network, "big"), prefix.is_v4
        found = []
        for (v4, bits), members in self._by_bits.items():
            if v4 is is_v4 and bits <= prefix.bits:
                member = members.get(number >> (128 - bits))
                if member is not None:
                    found.append(member)
        result = frozenset(found)
        return self._shared.setdefault(result, result)


FEW = 16
"""So many new ones are put in their places one by one; more, by sorting all anew."""


class SortedPrefixes:
    """Prefixes in the order of their addresses, to find those inside a block without looking at the rest."""

    def __init__(self) -> None:
        self._keys: list[tuple[bytes, int]] = []
        self._new: list[tuple[bytes, int]] = []  # not in their places yet

    def add(self, prefix: Prefix) -> None:
        self._new.append((prefix.network, prefix.bits))

    def remove(self, prefix: Prefix) -> None:
        self._settle()
        del self._keys[bisect_left(self._keys, (prefix.network, prefix.bits))]

    def _settle(self) -> None:
        if len(self._new) <= FEW:
            for key in self._new:
                insort(self._keys, key)
        else:
            self._keys += self._new
            self._keys.sort()
        self._new.clear()

    def inside(self, block: Prefix) -> Iterator[Prefix]:
        """Members that `block` covers."""
        self._settle()
        last = int.from_bytes(block.network, "big") | ((1 << (128 - block.bits)) - 1)
        low = bisect_left(self._keys, (block.network, block.bits))
        high = bisect_right(self._keys, (last.to_bytes(16, "big"), 128))
        # ::/0 spans the IPv4-mapped range by number, but one family never contains the other.
        mixed = not block.is_v4 and block.bits < V4_MAPPED_BITS
        for network, bits in self._keys[low:high]:
            prefix = Prefix(network, bits)
            if bits >= block.bits and (not mixed or block.covers(prefix)):
                yield prefix


def _number(prefix: Prefix) -> int:
    return int.from_bytes(prefix.network, "big") >> (128 - prefix.bits)
