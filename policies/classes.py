"""The remote classes some address has, found by what rules ask for: identity, prefix, named port or mark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from itertools import chain
from typing import TypeVar

from policies.address import Prefix
from policies.entities import SINGLE, entities_of, is_outside
from policies.model import CidrBlock, EntityPeer, Mark, NamedPort, Peer, PodSelector, RemoteClass
from policies.multimap import MultiMap
from policies.selectors import SelectorIndex

ANSWERS_KEPT = 50_000
"""Classes in all remembered answers together."""


class ClassIndex:
    """Which classes are in use. The caller counts how many addresses have each, and says when selectors match otherwise
    (`forget_answers`)."""

    def __init__(self, selectors: SelectorIndex) -> None:
        self._selectors = selectors
        self._classes: set[RemoteClass] = set()
        self._by_identity: dict[int, tuple[RemoteClass, ...]] = {}
        self._by_prefix: MultiMap[Prefix, RemoteClass] = MultiMap()
        self._by_port: MultiMap[NamedPort, RemoteClass] = MultiMap()
        self._by_mark: MultiMap[Mark, RemoteClass] = MultiMap()
        self._answers: dict[Peer, frozenset[RemoteClass]] = {}  # of `matched`, until something changes
        self._answered = 0

    def __contains__(self, remote: RemoteClass) -> bool:
        return remote in self._classes

    def __len__(self) -> int:
        return len(self._classes)

    def add(self, remote: RemoteClass) -> bool:
        """False where it is in use already."""
        if remote in self._classes:
            return False
        self.forget_answers()
        self._classes.add(remote)
        _append(self._by_identity, remote.identity, remote)
        for prefix in remote.prefixes:
            self._by_prefix.put(prefix, remote)
        for port in named_ports(remote):
            self._by_port.put(port, remote)
        for mark in remote.marks:
            self._by_mark.put(mark, remote)
        return True

    def drop(self, remote: RemoteClass) -> bool:
        """False where it is not in use."""
        if remote not in self._classes:
            return False
        self.forget_answers()
        self._classes.discard(remote)
        _remove(self._by_identity, remote.identity, remote)
        for prefix in remote.prefixes:
            self._by_prefix.take(prefix, remote)
        for port in named_ports(remote):
            self._by_port.take(port, remote)
        for mark in remote.marks:
            self._by_mark.take(mark, remote)
        return True

    def of_identity(self, identity: int) -> Sequence[RemoteClass]:
        return self._by_identity.get(identity, ())

    def naming(self, port: NamedPort) -> Collection[RemoteClass]:
        """Classes that give a port this name."""
        return self._by_port.get(port, ())

    def matched(self, peer: Peer) -> Set[RemoteClass]:
        """Classes in use that a peer matches. One answer serves all subjects of a turn."""
        if (answer := self._answers.get(peer)) is None:
            answer = frozenset(self._matched(peer))
            if self._answered > ANSWERS_KEPT:
                self.forget_answers()
            self._answers[peer] = answer
            self._answered += len(answer)
        return answer

    def forget_answers(self) -> None:
        if self._answers:
            self._answers.clear()
            self._answered = 0

    def forget_answer(self, peer: Peer) -> None:
        """Of a selector that is out of use: whatever changes until it is used again would pass it by."""
        self._answered -= len(self._answers.pop(peer, ()))

    def _matched(self, peer: Peer) -> Iterable[RemoteClass]:
        if isinstance(peer, CidrBlock):
            return (c for c in self._by_prefix.get(peer.block, ()) if in_block(c, peer))
        if isinstance(peer, PodSelector):
            return chain.from_iterable(filter(None, map(self._by_identity.get, self._selectors.matched(peer))))
        if not isinstance(peer, EntityPeer):
            return self._by_mark.get(peer, ())
        if (identity := SINGLE.get(peer.entity)) is not None:
            return self.of_identity(identity)
        return (c for c in self._classes if peer in entities_of(c))

    def selecting(self, remote: RemoteClass) -> Set[PodSelector]:
        """Selectors in use that match a class."""
        return self._selectors.matching(remote.identity)


def in_block(remote: RemoteClass, block: CidrBlock) -> bool:
    """Whether a class lies in a block, and in none of its excepts."""
    if block.block not in remote.prefixes or not remote.prefixes.isdisjoint(block.excepts):
        return False
    return block.inside or is_outside(remote.identity)


def named_ports(remote: RemoteClass) -> set[NamedPort]:
    return {NamedPort(port.protocol, port.name) for port in remote.ports}


K = TypeVar("K")


def _append(index: dict[K, tuple[RemoteClass, ...]], key: K, remote: RemoteClass) -> None:
    index[key] = (*index.get(key, ()), remote)


def _remove(index: dict[K, tuple[RemoteClass, ...]], key: K, remote: RemoteClass) -> None:
    rest = tuple(other for other in index[key] if other != remote)
    if rest:
        index[key] = rest
    else:
        del index[key]
