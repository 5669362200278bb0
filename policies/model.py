"""What a policy means, whatever language it was written in.

Parsers produce these values, the compiler and the oracle consume them. All are immutable and hashable.
None can be part of a reference cycle, so the collector need not track them (gc=False): there are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from policies.address import Prefix


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class Verdict(StrEnum):
    DENY = "deny"
    ALLOW = "allow"


class Operator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Protocol:
    """IP protocol numbers by the names the Kubernetes API uses."""

    BY_NAME: Mapping[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}
    BY_NUMBER: Mapping[int, str] = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMP", 58: "ICMPv6"}


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where an object was written: a file and the line its document starts at; line 0 where there is no file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class ObjectRef(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class RuleRef(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """One rule of one policy: how people are told what decided. `index` is its position in the section."""

    policy: ObjectRef
    direction: Direction
    index: int

    def __str__(self) -> str:
        return f"{self.policy} {self.direction}[{self.index}]" if self.index >= 0 else str(self.policy)


def _built_in(name: str) -> RuleRef:
    return RuleRef(ObjectRef("Built-in", "", name), Direction.INGRESS, -1)


NOT_ISOLATED = _built_in("not-isolated")
"""No policy isolates the pod in this direction."""
NODE = _built_in("node")
"""The node always reaches its own pods."""
SELF = _built_in("self")
"""A pod always reaches itself."""


class Requirement(msgspec.Struct, frozen=True, gc=False):
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As apimachinery's labels.Requirement: NotIn holds where the key is missing."""
        if self.operator is Operator.IN:
            return labels.get(self.key) in self.values and self.key in labels
        if self.operator is Operator.NOT_IN:
            return self.key not in labels or labels[self.key] not in self.values
        return (self.key in labels) is (self.operator is Operator.EXISTS)


class LabelSelector(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """All requirements must hold; none at all matches everything. matchLabels are In requirements of one value."""

    requirements: frozenset[Requirement] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)


class PodSelector(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Pods in the namespaces selected. Exactly one of `namespace` (by name) and `namespaces` (by label) is set.

    Never matches an address that is not a pod's, nor a hostNetwork pod (it is the node).
    """

    pods: LabelSelector
    namespace: str | None = None
    namespaces: LabelSelector | None = None


class CidrBlock(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Addresses in `block` and in none of `excepts`; pod addresses too. An except only narrows its own block."""

    block: Prefix
    excepts: tuple[Prefix, ...] = ()


Peer = PodSelector | CidrBlock


class PortRange(msgspec.Struct, frozen=True, gc=False):
    """Inclusive. A rule for every port of a protocol is 0–65535."""

    protocol: int
    first: int
    last: int


class NamedPort(msgspec.Struct, frozen=True, gc=False):
    """A container port by name, resolved in the destination pod; matches nothing where it is not declared."""

    protocol: int
    name: str


Port = PortRange | NamedPort


class Rule(msgspec.Struct, frozen=True, gc=False):
    """Allows. `peers` None: any remote; `ports` None: any protocol and port, ICMP included. An empty tuple: none."""

    ref: RuleRef
    peers: tuple[Peer, ...] | None
    ports: tuple[Port, ...] | None


class Policy(msgspec.Struct, frozen=True, gc=False):
    """`isolates`: directions in which the subject's pods are denied what no rule allows.

    `problem` is set where the policy could not be understood: it then has no rules and only isolates.
    """

    ref: ObjectRef
    origin: Origin
    subject: PodSelector
    isolates: frozenset[Direction]
    rules: tuple[Rule, ...]
    problem: str = ""


class Workload(msgspec.Struct, frozen=True):
    """The policy-relevant labels of pods: what an identity number stands for."""

    namespace: str
    labels: Mapping[str, str]


class ContainerPort(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A port a pod gives a name to."""

    name: str
    protocol: int
    number: int


class RemoteClass(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What rules can tell apart in a remote address: its identity, the policy prefixes that cover it, and
    those of its named ports that some egress rule names."""

    identity: int
    prefixes: frozenset[Prefix] = frozenset()
    ports: frozenset[ContainerPort] = frozenset()


class Subject(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What rules can tell apart in a pod they apply to: its identity and those of its named ports that some
    ingress rule names."""

    identity: int
    ports: frozenset[ContainerPort] = frozenset()


class Cell(msgspec.Struct, frozen=True, gc=False):
    """One part of a row. `protocol` None: everything that no cell of the row with a protocol covers."""

    protocol: int | None
    first: int
    last: int
    verdict: Verdict
    rule: RuleRef


Row = tuple[Cell, ...]
"""Disjoint, sorted by (protocol or -1, first). What no cell covers is denied. The empty row denies everything."""
