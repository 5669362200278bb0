"""Rules of one subject in one direction → a row for every remote class that differs from any other remote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import chain

from policies.classes import ClassIndex
from policies.flatten import LAST_PORT, flatten
from policies.model import (
    NOT_ISOLATED,
    Cell,
    CidrBlock,
    ContainerPort,
    Direction,
    NamedPort,
    Peer,
    PodSelector,
    Policy,
    PortRange,
    RemoteClass,
    Row,
    Rule,
    Subject,
    Verdict,
)
from policies.multimap import MultiMap

NOT_ISOLATED_ROW: Row = (Cell(None, 0, LAST_PORT, Verdict.ALLOW, NOT_ISOLATED),)

NO_PORTS: frozenset[ContainerPort] = frozenset()


ROWS_KEPT = 4096
"""Per side, so that classes which come and go do not fill the memory."""


class Side:
    """What applies to one subject in one direction, with the rows computed so far.

    Rules are told apart by their position in `rules`, which is their precedence.
    """

    __slots__ = (
        "_anywhere", "_blocks", "_named", "_open", "_row_anywhere", "_rows", "_selectors", "_subject_ports", "rules",
    )  # fmt: skip

    def __init__(self, subject: Subject, direction: Direction, policies: Iterable[Policy]) -> None:
        isolating = [p for p in policies if direction in p.isolates]
        rules = sorted((r for p in isolating for r in p.rules if r.ref.direction is direction), key=lambda r: r.ref)
        self.rules: Sequence[Rule] = rules
        self._anywhere = tuple(i for i, rule in enumerate(rules) if rule.peers is None)
        self._selectors: MultiMap[PodSelector, int] = MultiMap()
        self._blocks: MultiMap[CidrBlock, int] = MultiMap()
        for index, rule in enumerate(rules):
            for peer in rule.peers or ():
                if isinstance(peer, CidrBlock):
                    self._blocks.put(peer, index)
                else:
                    self._selectors.put(peer, index)
        # An ingress rule's port names are the subject's own; an egress rule's are the remote's.
        self._subject_ports = subject.ports if direction is Direction.INGRESS else None
        self._named = frozenset() if self._subject_ports is not None else frozenset(named_by(rules))
        self._rows: dict[tuple[frozenset[int], frozenset[ContainerPort]], Row] = {}
        self._row_anywhere = self._row(frozenset(), NO_PORTS) if isolating else NOT_ISOLATED_ROW
        # Everything is allowed from anywhere: narrower rules are not named for single remotes.
        self._open = any(cell.protocol is None for cell in self._row_anywhere)

    def rows(self, classes: ClassIndex) -> Iterator[tuple[Row, Iterable[RemoteClass | None]]]:
        """Each row with the classes in use that have it.

        Classes with the row of any remote (None) are left out; so is that, where it is empty.
        """
        if self._row_anywhere:
            yield self._row_anywhere, (None,)
        if self._open:
            return
        for ranks, remotes in self._groups(classes).items():
            for ports, some in self._by_ports(remotes):
                row = self._row(ranks, ports)
                if row != self._row_anywhere:
                    yield row, some

    def row(self, remote: RemoteClass, classes: ClassIndex) -> Row | None:
        """The row of one class; None where it is that of any remote."""
        if self._open:
            return None
        ranks: set[int] = set()
        for selector in self._selectors.keys() & classes.selecting(remote):
            ranks |= self._selectors[selector]
        if remote.prefixes:
            for block, indexes in self._blocks.items():
                if block.block in remote.prefixes and remote.prefixes.isdisjoint(block.excepts):
                    ranks |= indexes
        row = self._row(frozenset(ranks), self._ports(remote))
        return row if row != self._row_anywhere else None

    def _groups(self, classes: ClassIndex) -> dict[frozenset[int], Set[RemoteClass]]:
        """Classes in use by the rules that name them as peers: sets are split as whole sets, for speed."""
        groups: dict[frozenset[int], Set[RemoteClass]] = {}
        if self._named:
            groups[frozenset()] = {c for n in self._named for c in classes.naming(n)}
        peers: Iterable[tuple[Peer, set[int]]] = chain(self._selectors.items(), self._blocks.items())
        for peer, indexes in peers:
            matched: Set[RemoteClass] = classes.matched(peer)
            split: dict[frozenset[int], Set[RemoteClass]] = {}
            for ranks, remotes in groups.items():
                if matched.isdisjoint(remotes):
                    split[ranks] = split[ranks] | remotes if ranks in split else remotes
                    continue
                for key, part in ((ranks, remotes - matched), (ranks | indexes, remotes & matched)):
                    if part:
                        split[key] = split[key] | part if key in split else part
                matched = matched - remotes
            if matched:
                key = frozenset(indexes)
                split[key] = split[key] | matched if key in split else matched
            groups = split
        return groups

    def _by_ports(self, remotes: Set[RemoteClass]) -> Iterable[tuple[frozenset[ContainerPort], Iterable[RemoteClass]]]:
        if not self._named:
            return ((NO_PORTS, remotes),)
        split: MultiMap[frozenset[ContainerPort], RemoteClass] = MultiMap()
        for remote in remotes:
            split.put(self._ports(remote), remote)
        return split.items()

    def _ports(self, remote: RemoteClass) -> frozenset[ContainerPort]:
        """Ports of a class that a rule of this side names."""
        if not self._named or not remote.ports:
            return NO_PORTS
        return frozenset(p for p in remote.ports if NamedPort(p.protocol, p.name) in self._named)

    def _row(self, ranks: frozenset[int], remote_ports: frozenset[ContainerPort]) -> Row:
        """What the rules at these positions and those for any remote allow."""
        key = (ranks, remote_ports)
        if (row := self._rows.get(key)) is None:
            declared = self._subject_ports if self._subject_ports is not None else remote_ports
            rules = [self.rules[i] for i in sorted(ranks.union(self._anywhere))]
            row = flatten([(rule.ref, resolve(rule, declared)) for rule in rules])
            if len(self._rows) >= ROWS_KEPT:
                self._rows.clear()
            self._rows[key] = row
        return row


def named_by(rules: Iterable[Rule]) -> set[NamedPort]:
    """The port names that rules use."""
    return {port for rule in rules if rule.ports for port in rule.ports if isinstance(port, NamedPort)}


def resolve(rule: Rule, declared: Iterable[ContainerPort]) -> list[PortRange] | None:
    """The numbers a rule's ports have in a pod that declares these; None: every port. Unknown names are nothing."""
    if rule.ports is None:
        return None
    out: list[PortRange] = []
    for port in rule.ports:
        if isinstance(port, PortRange):
            out.append(port)
        else:
            out += [
                PortRange(d.protocol, d.number, d.number)
                for d in declared
                if d.name == port.name and d.protocol == port.protocol
            ]
    return out
