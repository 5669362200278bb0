"""A map from a key to the set of values under it; keys without values do not exist."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class MultiMap(dict[K, set[V]]):
    __slots__ = ()

    def put(self, key: K, value: V) -> None:
        if (values := self.get(key)) is None:
            self[key] = {value}
        else:
            values.add(value)

    def take(self, key: K, value: V) -> None:
        """Remove a value, if it is there."""
        if (values := self.get(key)) is not None:
            values.discard(value)
            if not values:
                del self[key]
