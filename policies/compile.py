"""Rules of one subject in one direction → a row for every remote class that differs from any other remote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import chain
from operator import attrgetter

from policies.classes import ClassIndex, in_block
from policies.entities import entities_of
from policies.flatten import Claim, allows_everything, flatten
from policies.model import (
    Action,
    CidrBlock,
    ContainerPort,
    Direction,
    EntityPeer,
    Mark,
    NamedPort,
    Peer,
    PodSelector,
    Policy,
    PortRange,
    RemoteClass,
    Row,
    Rule,
    Subject,
    Tier,
)
from policies.multimap import MultiMap

NO_PORTS: frozenset[ContainerPort] = frozenset()


NO_RULES: frozenset[int] = frozenset()

Groups = dict[frozenset[int], Set[RemoteClass]]
"""Classes by the positions of the rules that have them as peers; disjoint."""

FEW_CLASSES = 64
FEW_PEERS = 16
"""Up to so many peers every set is split, however small."""

REF = attrgetter("ref")

SINGLE_CLASSES = 4
"""Up to so many wanted classes are looked at one by one, whatever the number of peers."""

ROWS_KEPT = 4096
"""Per side, so that classes which come and go do not fill the memory."""


class Side:
    """What applies to one subject in one direction, with the rows computed so far.

    Rules are told apart by their position in `rules`, which is their precedence.
    """

    __slots__ = (
        "_all_anywhere", "_anywhere", "_blocks", "_facts", "_isolated", "_named", "_open", "_row_anywhere", "_rows",
        "_selectors", "_subject_ports", "rules",
    )  # fmt: skip

    def __init__(
        self, subject: Subject, direction: Direction, policies: Iterable[Policy], *, isolated: bool = False
    ) -> None:
        """`isolated`: also where no policy says so."""
        policies = list(policies)
        self._isolated = isolated or any(direction in policy.isolates for policy in policies)
        self.rules: Sequence[tuple[Tier, Rule]] = in_order(policies, direction)
        self._anywhere = tuple(i for i, (_, rule) in enumerate(self.rules) if rule.peers is None)
        self._selectors: MultiMap[PodSelector, int] = MultiMap()
        self._blocks: MultiMap[CidrBlock, int] = MultiMap()
        self._facts: MultiMap[EntityPeer | Mark, int] = MultiMap()
        for index, (_, rule) in enumerate(self.rules):
            for peer in rule.peers or ():
                if isinstance(peer, PodSelector):
                    self._selectors.put(peer, index)
                elif isinstance(peer, CidrBlock):
                    self._blocks.put(peer, index)
                else:
                    self._facts.put(peer, index)
        # An ingress rule's port names are the subject's own; an egress rule's are the remote's.
        self._subject_ports = subject.ports if direction is Direction.INGRESS else None
        self._named = frozenset() if self._subject_ports is not None else frozenset(named_by(r for _, r in self.rules))
        self._rows: dict[tuple[frozenset[int], frozenset[ContainerPort]], Row] = {}
        self._row_anywhere = self._row(NO_RULES, NO_PORTS)
        self._all_anywhere = allows_everything(self._row_anywhere)
        self._open = self._all_anywhere and not any(self._may_restrict(*rule) for rule in self.rules)

    def _may_restrict(self, tier: Tier, rule: Rule) -> bool:
        """Whether a rule can make less of what is allowed from anywhere."""
        if tier is not Tier.NAMESPACED or rule.action is not Action.ALLOW:
            return True
        return rule.l7 is not None and rule.l7.dns is not None

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
                if in_block(remote, block):
                    ranks |= indexes
        if self._facts:
            for fact in self._facts.keys() & (entities_of(remote) | remote.marks):
                ranks |= self._facts[fact]
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
        few_peers = len(self._selectors) + len(self._blocks) + len(self._facts) <= FEW_PEERS
        few: MultiMap[RemoteClass, int] = MultiMap()
        peers: Iterable[tuple[Peer, set[int]]] = chain(
            self._selectors.items(), self._blocks.items(), self._facts.items()
        )
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
        """What the rules at these positions and those for any remote say together."""
        key = (ranks, remote_ports)
        if (row := self._rows.get(key)) is None:
            row = self._flattened(ranks.union(self._anywhere), remote_ports)
            if ranks and self._adds_nothing(ranks, row):
                row = self._row_anywhere
            if len(self._rows) >= ROWS_KEPT:
                self._rows.clear()
            self._rows[key] = row
        return row

    def _flattened(self, ranks: Iterable[int], remote_ports: frozenset[ContainerPort]) -> Row:
        declared = self._subject_ports if self._subject_ports is not None else remote_ports
        claims = [
            Claim(rule.ref, resolve(rule, declared), rule.action, tier, rule.l7)
            for tier, rule in map(self.rules.__getitem__, sorted(ranks))
        ]
        return flatten(claims, self._isolated)

    def _adds_nothing(self, ranks: Iterable[int], row: Row) -> bool:
        """Where everything is allowed from anywhere, narrower rules that allow it are not named for single remotes."""
        if not (self._all_anywhere and allows_everything(row)):
            return False
        return all(self.rules[rank][0] is Tier.NAMESPACED for rank in ranks)


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


def in_order(policies: Iterable[Policy], direction: Direction) -> list[tuple[Tier, Rule]]:
    """The rules of one direction by precedence, which in the namespaced tier only says who is named."""
    namespaced: list[Rule] = []
    ordered: list[Policy] = []
    for policy in policies:
        if policy.tier is Tier.NAMESPACED:
            namespaced += [rule for rule in policy.rules if rule.ref.direction is direction]
        else:
            ordered.append(policy)
    namespaced.sort(key=REF)
    rules = [(Tier.NAMESPACED, rule) for rule in namespaced]
    if not ordered:
        return rules
    ordered.sort(key=lambda policy: (policy.priority, policy.ref.name, policy.ref))
    admin, baseline = (
        [(tier, rule) for p in ordered if p.tier is tier for rule in p.rules if rule.ref.direction is direction]
        for tier in (Tier.ADMIN, Tier.BASELINE)
    )
    return [*admin, *rules, *baseline]


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
