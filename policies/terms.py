"""What policies speak of, counted: the prefixes and port names by which addresses and pods must be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Set
from typing import Generic, TypeVar

import msgspec

from policies.address import Prefix
from policies.l7 import NamePattern
from policies.model import CidrBlock, Direction, Mark, NamedPort, NodePeer, Policy, ServicePeer

PortName = tuple[int, str]
"""Protocol number and name."""


class Terms(msgspec.Struct, frozen=True):
    """Blocks and excepts of CIDR peers; port names of egress rules (remotes' ports) and of ingress rules (subjects');
    peers that the World is asked about."""

    prefixes: frozenset[Prefix] = frozenset()
    egress_ports: frozenset[PortName] = frozenset()
    ingress_ports: frozenset[PortName] = frozenset()
    marks: frozenset[Mark] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.egress_ports or self.ingress_ports or self.marks)


T = TypeVar("T", bound=Hashable)


class Tally(Generic[T]):
    """How many policies use each term, and which came or went since that was last asked."""

    def __init__(self) -> None:
        self._uses: Counter[T] = Counter()
        self._before: dict[T, bool] = {}  # terms counted since: whether they were in use before

    def __call__(self) -> Set[T]:
        return self._uses.keys()

    def replace(self, old: Set[T], new: Set[T]) -> None:
        for term in old ^ new:
            self._before.setdefault(term, term in self._uses)
            self._uses[term] += 1 if term in new else -1
            if not self._uses[term]:
                del self._uses[term]

    def take_changed(self) -> frozenset[T]:
        changed = frozenset(term for term, was in self._before.items() if (term in self._uses) is not was)
        self._before.clear()
        return changed


class TermCount:
    def __init__(self) -> None:
        self.prefixes: Tally[Prefix] = Tally()
        self.egress_ports: Tally[PortName] = Tally()
        self.ingress_ports: Tally[PortName] = Tally()
        self.marks: Tally[Mark] = Tally()

    def replace(self, old: Policy | None, new: Policy | None) -> None:
        before, after = terms_of(old), terms_of(new)
        if before is after:
            return
        self.prefixes.replace(before.prefixes, after.prefixes)
        self.egress_ports.replace(before.egress_ports, after.egress_ports)
        self.ingress_ports.replace(before.ingress_ports, after.ingress_ports)
        self.marks.replace(before.marks, after.marks)

    def take_changed(self) -> Terms:
        """Terms that came or went since the last call."""
        return Terms(
            self.prefixes.take_changed(),
            self.egress_ports.take_changed(),
            self.ingress_ports.take_changed(),
            self.marks.take_changed(),
        )


def terms_of(policy: Policy | None) -> Terms:
    """The terms of one policy's rules. Most have none."""
    prefixes: set[Prefix] = set()
    marks: set[Mark] = set()
    names: dict[Direction, set[PortName]] = {direction: set() for direction in Direction}
    for rule in () if policy is None else policy.rules:
        for peer in rule.peers or ():
            if isinstance(peer, CidrBlock):
                prefixes.update((peer.block, *peer.excepts))
            elif isinstance(peer, NamePattern | NodePeer | ServicePeer):
                marks.add(peer)
        for port in rule.ports or ():
            if isinstance(port, NamedPort):
                names[rule.ref.direction].add((port.protocol, port.name))
    egress, ingress = names[Direction.EGRESS], names[Direction.INGRESS]
    if not (prefixes or marks or egress or ingress):
        return NOTHING
    return Terms(frozenset(prefixes), frozenset(egress), frozenset(ingress), frozenset(marks))


NOTHING = Terms()
