"""Random clusters as plain data: namespaces, pods, NetworkPolicies as manifests, flows between any two addresses.

Everything is drawn from small sets of values, so that policies, pods and addresses meet often. A cluster prints as
data that can be pasted into a test as a permanent row. `classes_of` and `subject_of` derive, plainly, what the agent's
World derives incrementally.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st

from policies.address import Prefix, is_v4, parse_address
from policies.entities import LOCAL_MIN
from policies.facts import HOST, Flow, Party, PodFacts, ServiceFacts
from policies.index import PolicyIndex
from policies.matching import peer_selects
from policies.model import ContainerPort, ObjectRef, Origin, Policy, Protocol, RemoteClass, Subject, Workload
from policies.networkpolicy import parse

Raw = dict[str, Any]

NAMESPACES = ("blue", "green")
KEYS = ("app", "env")
VALUES = ("a", "b", "")
PORT_NAMES = ("dns", "http")
PROTOCOLS = ("TCP", "UDP", "SCTP")
PORTS = tuple(range(78, 86))
HOST_ADDRESSES = ("10.0.0.1", "fd00::1")
OUTSIDE = ("10.1.9.9", "10.9.9.9", "192.0.2.7", "fd00:1:0:1::99", "fd00:9::9", "2001:db8::7")
UNMANAGED = ("10.1.0.99", "fd00:1::1:99")
ENTITIES: Mapping[str, str] = {
    **dict.fromkeys(HOST_ADDRESSES, HOST),
    **dict.fromkeys(OUTSIDE, "world"),
    **dict.fromkeys(UNMANAGED, "unmanaged"),
    "10.8.0.1": "remote-node",
    "fd00:8::1": "remote-node",
    "10.9.9.10": "kube-apiserver",
    "fd00:9::10": "kube-apiserver",
    "10.1.0.101": "health",
    "10.1.0.102": "init",
    "10.1.0.103": "ingress",
}
"""Addresses that are no pod's. Those of the last kinds are in a cluster only where it has facts about them."""
# Each block with blocks inside it, for except.
BLOCKS: Mapping[str, tuple[str, ...]] = {
    "0.0.0.0/0": ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "10.1.0.0/24"),
    "10.0.0.0/8": ("10.1.0.0/16", "10.1.0.0/24", "10.9.9.9/32", "10.0.0.1/32", "10.1.1.0/25"),
    "10.1.0.0/16": ("10.1.0.0/24", "10.1.1.0/24", "10.1.0.2/32"),
    "10.1.0.0/24": ("10.1.0.0/30", "10.1.0.4/30", "10.1.0.1/32"),
    "10.1.0.2/31": ("10.1.0.2/32", "10.1.0.3/32"),
    "192.0.2.0/24": ("192.0.2.0/29",),
    "::/0": ("fd00::/8", "fd00:1::/32", "2001:db8::/32"),
    "fd00::/8": ("fd00:1::/64", "fd00:1::2/127", "fd00:9::9/128"),
    "fd00:1::/64": ("fd00:1::/126", "fd00:1::4/126"),
}


class PodSpec(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    labels: dict[str, str]
    ports: tuple[ContainerPort, ...]
    addresses: tuple[str, ...]
    host_ports: tuple[tuple[int, int, str], ...] = ()  # protocol, hostPort (to 8080), hostIP
    ready: bool = True
    terminating: bool = False

    @property
    def facts(self) -> PodFacts:
        return PodFacts(self.namespace, self.name, self.labels, frozenset(self.ports))


class Facts(msgspec.Struct, frozen=True):
    """What is known of an address: as policies.evaluate.Party."""

    entity: str = ""
    node: dict[str, str] | None = None
    names: tuple[str, ...] = ()
    services: tuple[ServiceFacts, ...] = ()


class Cluster(msgspec.Struct, frozen=True):
    """`namespaces` maps a name to its labels; policies are NetworkPolicy manifests, and `values` of whatever kind (see
    tests/drawn_policies.py); `facts` are by address."""

    namespaces: dict[str, dict[str, str]]
    pods: tuple[PodSpec, ...]
    policies: tuple[Raw, ...]
    values: tuple[Policy, ...] = ()
    facts: dict[str, Facts] = {}


# ---- labels, selectors, policies


@cache
def label_maps() -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)


@cache
def namespace_labels(name: str) -> st.SearchStrategy[dict[str, str]]:
    return label_maps().map(lambda labels: {**labels, "kubernetes.io/metadata.name": name})


@cache
def expressions() -> st.SearchStrategy[Raw]:
    values = st.lists(st.sampled_from(VALUES), min_size=1, max_size=2)
    keys = st.sampled_from(KEYS)
    return st.one_of(
        st.fixed_dictionaries({"key": keys, "operator": st.sampled_from(("In", "In", "NotIn")), "values": values}),
        st.fixed_dictionaries({"key": keys, "operator": st.sampled_from(("Exists", "DoesNotExist"))}),
    )


@cache
def selectors() -> st.SearchStrategy[Raw]:
    some_labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=2)
    return st.one_of(
        st.just({}),
        st.fixed_dictionaries({"matchLabels": some_labels}),
        st.fixed_dictionaries({"matchExpressions": st.lists(expressions(), min_size=1, max_size=2)}),
        st.fixed_dictionaries({"matchLabels": some_labels, "matchExpressions": st.lists(expressions(), max_size=1)}),
    )


@cache
@st.composite
def ip_blocks(draw: st.DrawFn) -> Raw:
    cidr = draw(st.sampled_from(sorted(BLOCKS)))
    excepts = draw(st.lists(st.sampled_from(BLOCKS[cidr]), max_size=2, unique=True))
    return {"ipBlock": {"cidr": cidr, "except": excepts} if excepts else {"cidr": cidr}}


@cache
def peers() -> st.SearchStrategy[Raw]:
    return st.one_of(
        st.fixed_dictionaries({"podSelector": selectors()}),
        st.fixed_dictionaries({"namespaceSelector": selectors()}),
        st.fixed_dictionaries({"namespaceSelector": selectors(), "podSelector": selectors()}),
        ip_blocks(),
    )


@cache
@st.composite
def ports(draw: st.DrawFn) -> Raw:
    out: Raw = draw(st.fixed_dictionaries({}, optional={"protocol": st.sampled_from(PROTOCOLS)}))
    kind = draw(st.sampled_from(("number", "range", "name", "any")))
    if kind == "name":
        out["port"] = draw(st.sampled_from(PORT_NAMES))
    elif kind != "any":
        out["port"] = draw(st.sampled_from(PORTS))
    if kind == "range":
        out["endPort"] = draw(st.sampled_from([p for p in PORTS if p >= out["port"]]))
    return out


@cache
def rules(peer_field: str) -> st.SearchStrategy[Raw]:
    return st.fixed_dictionaries(
        {},
        optional={peer_field: st.lists(peers(), max_size=3), "ports": st.lists(ports(), max_size=3)},
    )


@cache
@st.composite
def policies(draw: st.DrawFn, namespace: str | None = None, name: str = "p") -> Raw:
    spec: Raw = {"podSelector": draw(st.just({}) | selectors())}
    types = draw(st.sampled_from(([], ["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Ingress", "Egress"])))
    if types:
        spec["policyTypes"] = types
    for section, peer_field in (("ingress", "from"), ("egress", "to")):
        if draw(st.sampled_from((True, True, False))):
            spec[section] = draw(st.lists(rules(peer_field), max_size=3))
    metadata = {"namespace": namespace or draw(st.sampled_from(NAMESPACES)), "name": name}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def parsed(raw: Raw) -> Policy:
    return parse(raw, Origin("drawn", 0))


# ---- clusters


@cache
def container_ports() -> st.SearchStrategy[tuple[ContainerPort, ...]]:
    """One number behind a name in one pod, another in the next; the same name for two protocols."""
    port = st.builds(
        ContainerPort,
        st.sampled_from(PORT_NAMES),
        st.sampled_from([Protocol.BY_NAME[p] for p in PROTOCOLS]),
        st.sampled_from(PORTS),
    )
    return st.lists(port, max_size=2, unique_by=lambda p: (p.name, p.protocol)).map(lambda drawn: tuple(sorted(drawn)))


@cache
def pod_specs(number: int) -> st.SearchStrategy[PodSpec]:
    """The pod with this number: its name and addresses follow from it."""
    return st.builds(
        PodSpec,
        namespace=st.sampled_from(NAMESPACES),
        name=st.just(f"pod-{number}"),
        labels=label_maps(),
        ports=container_ports(),
        addresses=st.just((f"10.1.{number % 2}.{number + 1}", f"fd00:1::{number + 1:x}")),
    )


@cache
def live_pod_specs(number: int) -> st.SearchStrategy[PodSpec]:
    """As `pod_specs`, and with what only services look at."""
    host_port = st.tuples(
        st.sampled_from((6, 17)),
        st.sampled_from((8080, 30001)),
        st.sampled_from(("", "", HOST_ADDRESSES[0], "127.0.0.1", "192.0.2.7")),
    )
    return st.builds(
        msgspec.structs.replace,
        pod_specs(number),
        host_ports=st.just(()) | st.lists(host_port, max_size=2, unique=True).map(tuple),
        ready=st.sampled_from((True, True, False)),
        terminating=st.sampled_from((False, False, True)),
    )


@st.composite
def clusters(draw: st.DrawFn, max_pods: int = 6, max_policies: int = 6) -> Cluster:
    return Cluster(
        namespaces={name: draw(namespace_labels(name)) for name in NAMESPACES},
        pods=tuple(draw(pod_specs(n)) for n in range(draw(st.sampled_from(range(max_pods, 1, -1))))),
        policies=tuple(draw(policies(name=f"p{n}")) for n in range(draw(st.sampled_from(range(max_policies, 0, -1))))),
    )


def policies_of(cluster: Cluster) -> list[Policy]:
    return [*map(parsed, cluster.policies), *cluster.values]


def parties(cluster: Cluster) -> list[Party]:
    """Every address a flow may have: of pods, of the node, outside, in the pod CIDR without a pod, and those that
    something is known of."""
    owners = {address: pod.facts for pod in cluster.pods for address in pod.addresses}
    always = (*HOST_ADDRESSES, *OUTSIDE, *UNMANAGED)
    return [_party(cluster, text, owners.get(text)) for text in dict.fromkeys((*owners, *always, *cluster.facts))]


def _party(cluster: Cluster, text: str, pod: PodFacts | None) -> Party:
    known = cluster.facts.get(text, Facts())
    entity = "world" if pod is not None else ENTITIES[text]
    return Party(parse_address(text), pod, entity, known.node, frozenset(known.names), known.services)


def flows_of(cluster: Cluster, seed: int, count: int) -> list[Flow]:
    """New flows with at least one pod end; both addresses of one family. Of ICMP, echo requests.

    From a seed rather than drawn one by one: that is far faster, and the seed is all there is to print.
    """
    random = Random(seed)
    everyone = parties(cluster)
    pods = [p for p in everyone if p.pod is not None]
    out = []
    for _ in range(count):
        one = random.choice(pods)
        other = random.choice([p for p in everyone if is_v4(p.address) == is_v4(one.address)])
        source, destination = random.sample((one, other), 2)
        icmp, echo = (1, 8) if is_v4(one.address) else (58, 128)
        protocol = random.choice((6, 6, 6, 17, 17, 132, icmp))
        out.append(Flow(source, destination, protocol, echo if protocol == icmp else random.choice(PORTS)))
    return out


# ---- what the World derives from a cluster

RESERVED = {
    "host": 1, "unmanaged": 3, "health": 4, "init": 5, "remote-node": 6, "kube-apiserver": 7, "ingress": 8,
}  # fmt: skip
WORLD_IPV4, WORLD_IPV6 = 9, 10


def identities(pods: Iterable[PodSpec]) -> dict[int, Workload]:
    """A number for every namespace and label set."""
    distinct = {(pod.namespace, tuple(sorted(pod.labels.items()))) for pod in pods}
    return {256 + n: Workload(namespace, dict(labels)) for n, (namespace, labels) in enumerate(sorted(distinct))}


def identity_of(party: Party, numbers: Mapping[int, Workload]) -> int:
    if party.pod is None and party.entity == "world":
        return WORLD_IPV4 if is_v4(party.address) else WORLD_IPV6
    if party.pod is None:
        return RESERVED[party.entity]
    workload = Workload(party.pod.namespace, party.pod.labels)
    return next(number for number, known in numbers.items() if known == workload)


def class_of(party: Party, identity: int, index: PolicyIndex) -> RemoteClass:
    prefixes = frozenset(p for p in index.prefixes() if p.contains(party.address))
    declared = party.pod.ports if party.pod is not None else frozenset()
    named = frozenset(p for p in declared if (p.protocol, p.name) in index.egress_port_names())
    marks = frozenset(mark for mark in index.marks() if peer_selects(mark, party, {}))
    if identity == RESERVED["kube-apiserver"]:
        prefixes |= {Prefix.parse("0.0.0.0/0" if is_v4(party.address) else "::/0")}  # tells its family
    if identity in (WORLD_IPV4, WORLD_IPV6) and prefixes:
        # A number of this node's own, of the narrowest block.
        narrowest = max(prefixes, key=lambda prefix: prefix.bits)
        identity = LOCAL_MIN + sorted(index.prefixes()).index(narrowest)
    return RemoteClass(identity, prefixes, named, marks)


def subject_of(pod: PodFacts, identity: int, index: PolicyIndex) -> Subject:
    return Subject(identity, frozenset(p for p in pod.ports if (p.protocol, p.name) in index.ingress_port_names()))


def policy_ref(raw: Raw) -> ObjectRef:
    return ObjectRef("NetworkPolicy", raw["metadata"]["namespace"], raw["metadata"]["name"])


def index_of(cluster: Cluster, *, enforce_always: bool = False) -> PolicyIndex:
    """Built from scratch: every pod is local, every party's class is in use."""
    index = PolicyIndex(enforce_always=enforce_always)
    for name, labels in cluster.namespaces.items():
        index.set_namespace(name, labels)
    numbers = identities(cluster.pods)
    for number, workload in numbers.items():
        index.set_identity(number, workload)
    for raw in cluster.policies:
        index.set_policy(policy_ref(raw), parsed(raw))
    for policy in cluster.values:
        index.set_policy(policy.ref, policy)
    for party in parties(cluster):
        identity = identity_of(party, numbers)
        index.add_class(class_of(party, identity, index))
        if party.pod is not None:
            index.add_subject(subject_of(party.pod, identity, index))
    return index
