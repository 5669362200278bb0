"""Numbers and addresses by hash: whoever asks with the same key gets the same one, and keeps it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from policies.address import Prefix


class ExhaustedError(Exception):
    """Nothing is left to give. The message says of what, and how many there are."""


def first_choice(key: str, span: int) -> int:
    """Where in 0 … span-1 the search for a number of `key` begins."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % span


class Allocator:
    """Numbers base … base+span-1, each given to one key. `reserved` ones are never given.

    First choice: base + hash(key) mod span; if that is taken, the next one that is not.
    """

    def __init__(self, what: str, base: int, span: int, reserved: Iterable[int] = ()) -> None:
        self._what = what
        self._base = base
        self._span = span
        self._reserved = {n for n in reserved if base <= n < base + span}
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self._avoided: dict[int, int] = {}
        self._changed: set[str] = set()
        self.freed = 0
        """How often something was given up: whoever found nothing left may ask again."""

    def allocate(self, key: str) -> int:
        """The number of `key`, now or already given. Raises ExhaustedError."""
        if (known := self._numbers.get(key)) is not None:
            return known
        start = first_choice(key, self._span)
        if len(self._keys) + len(self._reserved) < self._span:
            for step in range(self._span):
                number = self._base + (start + step) % self._span
                if number not in self._keys and number not in self._reserved and number not in self._avoided:
                    self._numbers[key] = number
                    self._keys[number] = key
                    self._changed.add(key)
                    return number
        raise ExhaustedError(f"no {self._what} is left for {key}: all {self._span - len(self._reserved)} are in use")

    def get(self, key: str) -> int | None:
        return self._numbers.get(key)

    def release(self, key: str) -> None:
        number = self._numbers.pop(key, None)
        if number is not None:
            del self._keys[number]
            self._changed.add(key)
            self.freed += 1

    def avoid(self, number: int) -> None:
        """Someone holds this number without having asked: do not give it from now on. Counted, undone by `unavoid`."""
        self._avoided[number] = self._avoided.get(number, 0) + 1

    def unavoid(self, number: int) -> None:
        left = self._avoided.pop(number, 0) - 1
        if left > 0:
            self._avoided[number] = left
        else:
            self.freed += 1

    def held(self) -> list[str]:
        """The keys that have a number."""
        return list(self._numbers)

    def snapshot(self) -> dict[str, int]:
        return dict(self._numbers)

    def take_changes(self) -> dict[str, int | None]:
        """Keys that were given or restored a number, or (None) have none any more, since the last call."""
        changes = {key: self._numbers.get(key) for key in self._changed}
        self._changed.clear()
        return changes

    def restore(self, given: Mapping[str, int]) -> None:
        """What an earlier run had given. Numbers that are out of range, reserved or taken by now are forgotten."""
        for key, number in given.items():
            fits = self._base <= number < self._base + self._span and number not in self._reserved
            if fits and number not in self._keys and key not in self._numbers:
                self._numbers[key] = number
                self._keys[number] = key
            self._changed.add(key)


class AddressPool:
    """Addresses of one block: not the first two, nor in IPv4 the last; of a large block only the first 2^32."""

    MAX_SPAN = 1 << 32

    def __init__(self, what: str, block: Prefix, reserved: Iterable[bytes] = ()) -> None:
        self.block = block
        self._first = int.from_bytes(block.network, "big")
        size = 1 << (128 - block.bits)
        taken = [int.from_bytes(a, "big") - self._first for a in reserved if block.contains(a)]
        edges = [0, 1, size - 1] if block.is_v4 else [0, 1]
        self._indexes = Allocator(f"{what} in {block}", 0, min(size, self.MAX_SPAN), [*edges, *taken])

    @property
    def freed(self) -> int:
        return self._indexes.freed

    def allocate(self, key: str) -> bytes:
        """16 address bytes. Raises ExhaustedError."""
        return (self._first + self._indexes.allocate(key)).to_bytes(16, "big")

    def get(self, key: str) -> bytes | None:
        index = self._indexes.get(key)
        return None if index is None else (self._first + index).to_bytes(16, "big")

    def release(self, key: str) -> None:
        self._indexes.release(key)

    def avoid(self, address: bytes) -> None:
        """An address somebody was given by hand; one outside the block is no matter."""
        if self.block.contains(address):
            self._indexes.avoid(int.from_bytes(address, "big") - self._first)

    def unavoid(self, address: bytes) -> None:
        if self.block.contains(address):
            self._indexes.unavoid(int.from_bytes(address, "big") - self._first)

    def held(self) -> list[str]:
        return self._indexes.held()

    def snapshot(self) -> dict[str, int]:
        return self._indexes.snapshot()

    def take_changes(self) -> dict[str, int | None]:
        return self._indexes.take_changes()

    def restore(self, given: Mapping[str, int]) -> None:
        self._indexes.restore(given)
