"""Rules of one subject in one direction → a row for every remote class that differs from any other remote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policies.classes import ClassIndex
from policies.flatten import LAST_PORT, flatten
from policies.model import (
    NOT_ISOLATED,
    Cell,
    ContainerPort,
    Direction,
    NamedPort,
    Policy,
    PortRange,
    RemoteClass,
    Row,
    Rule,
    Subject,
    Verdict,
)

NOT_ISOLATED_ROW: Row = (Cell(None, 0, LAST_PORT, Verdict.ALLOW, NOT_ISOLATED),)

NO_PORTS: frozenset[ContainerPort] = frozenset()


ROWS_KEPT = 4096
"""Per side, so that classes which come and go do not fill the memory."""


class Side:
    """What applies to one subject in one direction, with the rows computed so far.

    Rules are told apart by their position in `rules`, which is their precedence.
    """

    __slots__ = ("_anywhere", "_named", "_open", "_row_anywhere", "_rows", "_subject_ports", "isolated", "rules")

    def __init__(self, subject: Subject, direction: Direction, policies: Iterable[Policy]) -> None:
        isolating = [p for p in policies if direction in p.isolates]
        self.isolated = bool(isolating)
        rules = sorted((r for p in isolating for r in p.rules if r.ref.direction is direction), key=lambda r: r.ref)
        self.rules: Sequence[Rule] = rules
        self._anywhere = tuple(i for i, rule in enumerate(rules) if rule.peers is None)
        # An ingress rule's port names are the subject's own; an egress rule's are the remote's.
        self._subject_ports = subject.ports if direction is Direction.INGRESS else None
        self._named = frozenset() if self._subject_ports is not None else frozenset(named_by(rules))
        self._rows: dict[tuple[tuple[int, ...], frozenset[ContainerPort]], Row] = {}
        self._row_anywhere = self._row(self._anywhere, NO_PORTS) if self.isolated else NOT_ISOLATED_ROW
        # Everything is allowed from anywhere: narrower rules are not named for single remotes.
        self._open = any(cell.protocol is None for cell in self._row_anywhere)

    def rows(self, classes: ClassIndex) -> dict[RemoteClass | None, Row]:
        """Rows of all classes in use that differ from the row of any remote (key None; absent where it is empty)."""
        if self._open:
            return {None: self._row_anywhere}
        hits: dict[RemoteClass, list[int]] = {}
        for index, rule in enumerate(self.rules):
            for remote in self._told_apart(rule, classes):
                ranks = hits.setdefault(remote, [])
                if not ranks or ranks[-1] != index:
                    ranks.append(index)
        out: dict[RemoteClass | None, Row] = {None: self._row_anywhere} if self._row_anywhere else {}
        for remote, ranks in hits.items():
            if (row := self._row_of(remote, ranks)) is not None:
                out[remote] = row
        return out

    def row(self, remote: RemoteClass, classes: ClassIndex) -> Row | None:
        """The row of one class; None where it is that of any remote."""
        if self._open:
            return None
        return self._row_of(remote, [i for i, rule in enumerate(self.rules) if classes.matches(rule.peers, remote)])

    def _told_apart(self, rule: Rule, classes: ClassIndex) -> Iterable[RemoteClass]:
        """Classes for which a rule may allow something that it does not allow for any remote."""
        if rule.peers is not None:
            return (remote for peer in rule.peers for remote in classes.matched(peer))
        if not self._named:
            return ()
        return (remote for port in named_by([rule]) for remote in classes.naming(port))

    def _row_of(self, remote: RemoteClass, ranks: list[int]) -> Row | None:
        indexes = tuple(ranks) if not self._anywhere else tuple(sorted({*ranks, *self._anywhere}))
        ports = NO_PORTS
        if self._named and remote.ports:
            ports = frozenset(p for p in remote.ports if NamedPort(p.protocol, p.name) in self._named)
        row = self._row(indexes, ports)
        return row if row != self._row_anywhere else None

    def _row(self, indexes: tuple[int, ...], remote_ports: frozenset[ContainerPort]) -> Row:
        key = (indexes, remote_ports)
        if (row := self._rows.get(key)) is None:
            declared = self._subject_ports if self._subject_ports is not None else remote_ports
            row = flatten([(self.rules[i].ref, resolve(self.rules[i], declared)) for i in indexes])
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
