"""Things only one object can have, such as an address: who wants it, and who gets it."""

from __future__ import annotations

from collections.abc import Iterator

from policies.model import ObjectRef

Claim = tuple[int, ObjectRef]
"""Rank and object. The smallest wins, so the winner does not depend on who came first."""


class Claims:
    """Keys are any bytes: an address, or an address with port and protocol."""

    def __init__(self) -> None:
        self._winners: dict[bytes, Claim] = {}
        self._losers: dict[bytes, list[Claim]] = {}

    def add(self, key: bytes, rank: int, ref: ObjectRef) -> None:
        winner = self._winners.get(key)
        if winner is None:
            self._winners[key] = (rank, ref)
            return
        everyone = sorted([winner, (rank, ref), *self._losers.get(key, ())])
        self._winners[key], self._losers[key] = everyone[0], everyone[1:]

    def remove(self, key: bytes, rank: int, ref: ObjectRef) -> None:
        losers = self._losers.get(key)
        if losers is None:
            del self._winners[key]
            return
        everyone = [self._winners[key], *losers]
        everyone.remove((rank, ref))
        self._winners[key] = everyone[0]
        if len(everyone) > 1:
            self._losers[key] = everyone[1:]
        else:
            del self._losers[key]

    def winner(self, key: bytes) -> ObjectRef | None:
        claim = self._winners.get(key)
        return None if claim is None else claim[1]

    def best(self, key: bytes) -> Claim | None:
        return self._winners.get(key)

    def lost(self) -> Iterator[tuple[bytes, Claim, ObjectRef]]:
        """(key, claim, winner) of every claim that did not win."""
        for key, losers in self._losers.items():
            for claim in losers:
                yield key, claim, self._winners[key][1]
