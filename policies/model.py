"""What a policy means, whatever language it was written in.

Parsers produce these values, the compiler and the oracle consume them. All are immutable and hashable.
None can be part of a reference cycle, so the collector need not track them (gc=False): there are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

from policies.address import Prefix
from policies.l7 import L7, Demands, NamePattern


class Direction(StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


class Verdict(StrEnum):
    """REDIRECT: a proxy decides, request by request."""

    DENY = "deny"
    ALLOW = "allow"
    REDIRECT = "redirect"


class Action(StrEnum):
    """What a rule says of what it matches. PASS: let the next tier decide (policy.networking.k8s.io)."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"  # noqa: S105


class Tier(IntEnum):
    """In which order policies are asked. In ADMIN and BASELINE the first rule that matches decides, by priority of the
    policy, then by its place; in NAMESPACED a deny goes before any allow, and what isolates denies the rest."""

    ADMIN = 0
    NAMESPACED = 1
    BASELINE = 2


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
    """One rule of one policy: how people are told what decided. `index` is its position in the section, which is named
    where it is not the direction's own: ingressDeny, specs[1].egress."""

    policy: ObjectRef
    direction: Direction
    index: int
    section: str = ""

    def __str__(self) -> str:
        return f"{self.policy} {self.section or self.direction}[{self.index}]" if self.index >= 0 else str(self.policy)


def _built_in(name: str) -> RuleRef:
    return RuleRef(ObjectRef("Built-in", "", name), Direction.INGRESS, -1)


NOT_ISOLATED = _built_in("not-isolated")
"""No policy isolates the pod in this direction."""
NODE = _built_in("node")
"""The node always reaches its own pods."""
SELF = _built_in("self")
"""A pod always reaches itself."""
DEFAULT_DENY = _built_in("default-deny")
"""No rule allows it. Named only where a wider cell of a row would decide otherwise."""


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
    """Addresses in `block` and in none of `excepts`. An except only narrows its own block.

    `inside`: also those of pods and nodes (NetworkPolicy's ipBlock); else only those outside the cluster
    (cilium.io/v2).
    """

    block: Prefix
    excepts: tuple[Prefix, ...] = ()
    inside: bool = True


class Entity(StrEnum):
    """Names of cilium.io/v2 for kinds of remotes, by identity number. `all` is no peer of its own: peers None."""

    WORLD = "world"
    WORLD_IPV4 = "world-ipv4"
    WORLD_IPV6 = "world-ipv6"
    HOST = "host"
    REMOTE_NODE = "remote-node"
    CLUSTER = "cluster"
    INIT = "init"
    HEALTH = "health"
    UNMANAGED = "unmanaged"
    KUBE_APISERVER = "kube-apiserver"
    INGRESS = "ingress"
    NONE = "none"


class EntityPeer(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    entity: Entity


class NodePeer(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Nodes by the labels of their Node objects, this one included."""

    nodes: LabelSelector


class ServicePeer(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """The endpoints of services: of one by name, or of all whose labels match, in one namespace or ("") in all."""

    namespace: str
    name: str = ""
    selector: LabelSelector | None = None


KUBERNETES = ServicePeer("default", "kubernetes")
"""Whose endpoints are the API server's addresses. Where these are a node's they keep its identity: a rule about
kube-apiserver names this peer besides the entity."""

Mark = NamePattern | NodePeer | ServicePeer
"""What a rule can ask of an address that neither its identity nor a prefix tells: the World says who has it.
NamePattern: an address outside the cluster that such a DNS name was answered with."""

Peer = PodSelector | CidrBlock | EntityPeer | NamePattern | NodePeer | ServicePeer


class PortRange(msgspec.Struct, frozen=True, gc=False):
    """Inclusive. A rule for every port of a protocol is 0–65535. Of ICMP (1) and ICMPv6 (58) ports are types."""

    protocol: int
    first: int
    last: int


class NamedPort(msgspec.Struct, frozen=True, gc=False):
    """A container port by name, resolved in the destination pod; matches nothing where it is not declared."""

    protocol: int
    name: str


Port = PortRange | NamedPort


class Rule(msgspec.Struct, frozen=True, gc=False):
    """`peers` None: any remote; `ports` None: any protocol and port, ICMP included. An empty tuple: none.

    `l7`: what else is asked of what it allows. Several rules may have one ref: toPorts of one rule as it is written.
    """

    ref: RuleRef
    peers: tuple[Peer, ...] | None
    ports: tuple[Port, ...] | None
    action: Action = Action.ALLOW
    l7: L7 | None = None


class Policy(msgspec.Struct, frozen=True, gc=False):
    """`isolates`: directions in which the subject's pods are denied what no rule allows.

    `problem` is set where the policy could not be understood: it then has no rules and only isolates or, in the other
    tiers, has the rules that are certain and denies what the others may have denied.
    `priority`: in the tiers ADMIN and BASELINE, the lower goes first. An object with several specs is several policies;
    the further ones have refs named NAME:specs[1] and so on.
    """

    ref: ObjectRef
    origin: Origin
    subject: PodSelector
    isolates: frozenset[Direction]
    rules: tuple[Rule, ...]
    problem: str = ""
    tier: Tier = Tier.NAMESPACED
    priority: int = 0


SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
"""The label by which policies select pods of a service account (cilium.io/v2)."""


class Workload(msgspec.Struct, frozen=True):
    """The policy-relevant labels of pods, with that of the service account: what an identity number stands for."""

    namespace: str
    labels: Mapping[str, str]


class ContainerPort(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A port a pod gives a name to."""

    name: str
    protocol: int
    number: int


class RemoteClass(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What rules can tell apart in a remote address: its identity, the policy prefixes that cover it, those of its
    named ports that some egress rule names, and the marks that rules ask for."""

    identity: int
    prefixes: frozenset[Prefix] = frozenset()
    ports: frozenset[ContainerPort] = frozenset()
    marks: frozenset[Mark] = frozenset()


class Subject(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What rules can tell apart in a pod they apply to: its identity and those of its named ports that some
    ingress rule names."""

    identity: int
    ports: frozenset[ContainerPort] = frozenset()


class Cell(msgspec.Struct, frozen=True, gc=False):
    """One part of a row. `protocol` None: everything that no cell of the row with a protocol covers.

    `demands`: of a REDIRECT; `rule` is then the first of the rules they are from."""

    protocol: int | None
    first: int
    last: int
    verdict: Verdict
    rule: RuleRef
    demands: Demands | None = None


Row = tuple[Cell, ...]
"""Disjoint, sorted by (protocol or -1, first). What no cell covers is denied. The empty row denies everything."""
