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


NO_RULES: frozenset[int] = frozenset()

Groups = dict[frozenset[int], Set[RemoteClass]]
"""Classes by the positions of the rules that have them as peers; disjoint."""

FEW_CLASSES = 64
FEW_PEERS = 16
"""Up to so many peers every set is split, however small."""

SINGLE_CLASSES = 4
"""Up to so many wanted classes are looked at one by one, whatever the number of peers."""

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

    def rows(
        self, classes: ClassIndex, wanted: Set[RemoteClass] | None = None
    ) -> Iterator[tuple[Row, Iterable[RemoteClass] | None]]:
        """Each row with the classes in use that have it; of the `wanted` classes alone, where they are given.

        None: it is the row of any remote, left out where it is empty. Classes that have that one are left out, too.
        """
        if wanted is None and self._row_anywhere:
            yield self._row_anywhere, None
        if self._open:
            return
        if wanted is not None and len(wanted) <= SINGLE_CLASSES:
            for remote in wanted:
                if remote in classes and (row := self._row_of(remote, classes)) != self._row_anywhere:
                    yield row, (remote,)
            return
        for ranks, remotes in self._groups(classes, wanted).items():
            for ports, some in self._by_ports(remotes):
                row = self._row(ranks, ports)
                if row != self._row_anywhere:
                    yield row, some

    def _row_of(self, remote: RemoteClass, classes: ClassIndex) -> Row:
        """The row of one class: asks which selectors match it, where `_groups` asks what each peer matches."""
        ranks: set[int] = set()
        for selector in self._selectors.keys() & classes.selecting(remote):
            ranks |= self._selectors[selector]
        if remote.prefixes:
            for block, indexes in self._blocks.items():
                if block.block in remote.prefixes and remote.prefixes.isdisjoint(block.excepts):
                    ranks |= indexes
        return self._row(frozenset(ranks), self._ports(remote))

    def _groups(self, classes: ClassIndex, wanted: Set[RemoteClass] | None) -> Groups:
        """Classes in use (and wanted) that some rule tells apart, by the positions of the rules that do.

        A peer that matches many splits whole sets, one that matches few adds to single classes: each is slow where
        the other is fast.
        """
        groups: Groups = {}
        if self._named:
            naming = {c for n in self._named for c in classes.naming(n)}
            groups[NO_RULES] = naming if wanted is None else naming & wanted
        few_peers = len(self._selectors) + len(self._blocks) <= FEW_PEERS
        few: MultiMap[RemoteClass, int] = MultiMap()
        peers: Iterable[tuple[Peer, set[int]]] = chain(self._selectors.items(), self._blocks.items())
        for peer, indexes in peers:
            matched = classes.matched(peer)
            if wanted is not None:
                matched = matched & wanted
            if few_peers or len(matched) > FEW_CLASSES:
                groups = _split(groups, matched, frozenset(indexes))
                continue
            for remote in matched:
                for index in indexes:
                    few.put(remote, index)
        return _regroup(groups, few) if few else groups

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


def _split(groups: Groups, matched: Set[RemoteClass], indexes: frozenset[int]) -> Groups:
    """The groups after rules at `indexes` have matched these classes."""
    out: Groups = {}
    for ranks, remotes in groups.items():
        if matched.isdisjoint(remotes):
            _join(out, ranks, remotes)
            continue
        _join(out, ranks, remotes - matched)
        _join(out, ranks | indexes, remotes & matched)
        matched = matched - remotes
    _join(out, indexes, matched)
    return out


def _regroup(groups: Groups, few: MultiMap[RemoteClass, int]) -> Groups:
    """The groups after single classes were matched by further rules."""
    out: Groups = {}
    moved: MultiMap[frozenset[int], RemoteClass] = MultiMap()
    for remote, indexes in few.items():
        ranks = next((ranks for ranks, remotes in groups.items() if remote in remotes), NO_RULES)
        moved.put(ranks.union(indexes), remote)
    for ranks, remotes in chain(((r, c - few.keys()) for r, c in groups.items()), moved.items()):
        _join(out, ranks, remotes)
    return out


def _join(groups: Groups, ranks: frozenset[int], remotes: Set[RemoteClass]) -> None:
    if remotes:
        groups[ranks] = groups[ranks] | remotes if ranks in groups else remotes


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
