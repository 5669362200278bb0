"""Rules of CiliumNetworkPolicies as they are written, with what they are to be read as."""

from __future__ import annotations

from typing import Any

import yaml

from policies.address import Prefix
from policies.cilium.policy import API_VERSION, CLUSTERWIDE, NAMESPACED, parse
from policies.l7 import L7, HttpRule, NamePattern, TlsContext
from policies.model import (
    KUBERNETES,
    SERVICE_ACCOUNT,
    CidrBlock,
    Direction,
    Entity,
    EntityPeer,
    LabelSelector,
    NamedPort,
    NodePeer,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Policy,
    Port,
    PortRange,
    Requirement,
)

IN, OUT = Direction.INGRESS, Direction.EGRESS

HERE = Origin("policies.yaml", 3)

ALL = LabelSelector()

NAME = "kubernetes.io/metadata.name"

TCP, UDP, SCTP = 6, 17, 132


def manifest(spec: str, kind: str = NAMESPACED) -> dict[str, Any]:
    """`spec` in YAML: of a list, specs."""
    value = yaml.safe_load(spec)
    metadata = {"name": "p"} if kind == CLUSTERWIDE else {"name": "p", "namespace": "shop"}
    head = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata}
    return {**head, ("specs" if isinstance(value, list) else "spec"): value}


def with_rules(rules: str, kind: str = NAMESPACED) -> dict[str, Any]:
    return manifest(f"{{endpointSelector: {{}}, {rules}}}", kind)


def one(rules: str, kind: str = NAMESPACED) -> Policy:
    (policy,) = parse(with_rules(rules, kind), HERE)
    return policy


def required(key: str, *values: str, operator: Operator = Operator.IN) -> Requirement:
    return Requirement(key, operator, frozenset(values))


def labels(**wanted: str) -> LabelSelector:
    return LabelSelector(frozenset(required(key, value) for key, value in wanted.items()))


def pods(**wanted: str) -> PodSelector:
    return PodSelector(labels(**wanted), namespace="shop")


def block(cidr: str, *excepts: str) -> CidrBlock:
    return CidrBlock(Prefix.parse(cidr), tuple(map(Prefix.parse, excepts)), inside=False)


def ports(*numbers: int, protocol: int = TCP) -> tuple[Port, ...]:
    return tuple(PortRange(protocol, number, number) for number in numbers)


def any_of(first: int, last: int | None = None) -> tuple[Port, ...]:
    return tuple(PortRange(protocol, first, last or first) for protocol in (TCP, UDP, SCTP))


WITH_APISERVER = (Entity.CLUSTER, Entity.KUBE_APISERVER)

# rule of ingress (a YAML object) → peers; None is any remote
INGRESS_PEERS: list[tuple[str, tuple[Peer, ...] | None]] = [
    ("fromEndpoints: [{}]", (pods(),)),
    ("fromEndpoints: [{matchLabels: {app: web}}]", (pods(app="web"),)),
    ("fromEndpoints: [{matchLabels: {'k8s:app': web, 'any:tier': a}}]", (pods(app="web", tier="a"),)),
    ("fromEndpoints: [{matchLabels: {app: a}}, {matchLabels: {app: b}}]", (pods(app="a"), pods(app="b"))),
    (
        "fromEndpoints: [{matchExpressions: [{key: 'k8s:app', operator: NotIn, values: [a, b]}]}]",
        (PodSelector(LabelSelector(frozenset({required("app", "a", "b", operator=Operator.NOT_IN)})), "shop"),),
    ),
    (
        "fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: pay, app: web}}]",
        (PodSelector(labels(app="web"), namespace="pay"),),
    ),
    ("fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': pay}}]", (PodSelector(ALL, namespace="pay"),)),
    (
        "fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [a, b]}]}]",
        (PodSelector(ALL, namespaces=LabelSelector(frozenset({required(NAME, "a", "b")}))),),
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: 'any:io.kubernetes.pod.namespace', operator: Exists}]}]",
        (PodSelector(ALL, namespaces=LabelSelector(frozenset({required(NAME, operator=Operator.EXISTS)}))),),
    ),
    (
        "fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: a, app: web}}]",
        (PodSelector(labels(app="web"), namespaces=labels(team="a")),),
    ),
    (
        "fromEndpoints: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.example.org/team': a,"
        " 'k8s:io.kubernetes.pod.namespace': pay}}]",
        (
            PodSelector(
                ALL, namespaces=LabelSelector(frozenset({required("example.org/team", "a"), required(NAME, "pay")}))
            ),
        ),
    ),
    (
        "fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: luke}}]",
        (PodSelector(LabelSelector(frozenset({required(SERVICE_ACCOUNT, "luke")})), namespace="shop"),),
    ),
    ("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: default, app: web}}]", (pods(app="web"),)),
    ("fromEndpoints: [{matchLabels: {'reserved:host': ''}}]", (EntityPeer(Entity.HOST),)),
    (
        "fromEndpoints: [{matchExpressions: [{key: 'reserved:world', operator: Exists}]}]",
        (EntityPeer(Entity.WORLD),),
    ),
    ("fromEndpoints: [{matchLabels: {'reserved:all': ''}}]", None),
    ("fromEndpoints: []", ()),
    ("fromEntities: []", ()),
    ("fromCIDR: []", ()),
    ("fromCIDRSet: []", ()),
    ("fromNodes: []", ()),
    ("fromEndpoints: [], fromEntities: [all]", ()),
    ("fromEntities: [world, host, world]", (EntityPeer(Entity.WORLD), EntityPeer(Entity.HOST))),
    ("fromEntities: [world, all]", None),
    *[(f"fromEntities: [{name}]", (EntityPeer(name),)) for name in Entity if name not in WITH_APISERVER],
    *[(f"fromEntities: [{name}]", (EntityPeer(name), KUBERNETES)) for name in WITH_APISERVER],
    (
        "fromEndpoints: [{matchLabels: {'reserved:kube-apiserver': ''}}]",
        (EntityPeer(Entity.KUBE_APISERVER), KUBERNETES),
    ),
    ("fromCIDR: [10.0.0.0/8, 192.0.2.7]", (block("10.0.0.0/8"), block("192.0.2.7/32"))),
    ("fromCIDR: ['2001:db8::7', '::/0']", (block("2001:db8::7/128"), block("::/0"))),
    ("fromCIDR: [10.1.2.3/8]", (block("10.0.0.0/8"),)),
    (
        "fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12, 10.0.0.0/8]}, {cidr: 192.0.2.0/24}]",
        (block("10.0.0.0/8", "10.96.0.0/12", "10.0.0.0/8"), block("192.0.2.0/24")),
    ),
    ("fromNodes: [{matchLabels: {role: gateway}}]", (NodePeer(labels(role="gateway")),)),
    ("fromNodes: [{matchLabels: {'node:role': gateway}}, {}]", (NodePeer(labels(role="gateway")), NodePeer(ALL))),
]

HTTP = frozenset({HttpRule()})

# rest of a rule of egress → (ports, l7) of its rules; None is every port
WHERE: list[tuple[str, list[tuple[tuple[Port, ...] | None, L7 | None]]]] = [
    ("toPorts: [{ports: [{port: '80', protocol: TCP}]}]", [(ports(80), None)]),
    ("toPorts: [{ports: [{port: '80', protocol: tcp}]}]", [(ports(80), None)]),
    ("toPorts: [{ports: [{port: '80'}]}]", [(any_of(80), None)]),
    ("toPorts: [{ports: [{port: '80', protocol: ANY, endPort: 90}]}]", [(any_of(80, 90), None)]),
    ("toPorts: [{ports: [{port: '80', protocol: UDP, endPort: 0}]}]", [(ports(80, protocol=UDP), None)]),
    ("toPorts: [{ports: [{port: '0', protocol: TCP}]}]", [((PortRange(TCP, 0, 65535),), None)]),
    ("toPorts: [{ports: [{port: '0'}]}]", [(any_of(0, 65535), None)]),
    ("toPorts: [{ports: [{port: Web, protocol: TCP}]}]", [((NamedPort(TCP, "web"),), None)]),
    (
        "toPorts: [{ports: [{port: dns}]}]",
        [(tuple(NamedPort(protocol, "dns") for protocol in (TCP, UDP, SCTP)), None)],
    ),
    ("toPorts: [{ports: [{port: '8', protocol: ICMP}]}]", [(ports(8, protocol=1), None)]),
    ("toPorts: [{ports: [{port: '0', protocol: ICMPv6}]}]", [((PortRange(58, 0, 255),), None)]),
    (
        "toPorts: [{ports: [{port: '80', protocol: TCP}]}, {ports: [{port: '81', protocol: TCP}]}]",
        [(ports(80, 81), None)],
    ),
    ("icmps: [{fields: [{type: 8}]}]", [(ports(8, protocol=1), None)]),
    ("icmps: [{fields: [{type: '8', family: IPv4}]}]", [(ports(8, protocol=1), None)]),
    (
        "icmps: [{fields: [{type: EchoRequest, family: IPv6}, {type: 0}]}, {fields: [{type: EchoRequest}]}]",
        [((*ports(128, protocol=58), *ports(0, 8, protocol=1)), None)],
    ),
    (
        "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}},"
        " {ports: [{port: '90', protocol: TCP}]}]",
        [(ports(90), None), (ports(80), L7(http=HTTP))],
    ),
    ("toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: []}}]", [(ports(80), L7(http=frozenset()))]),
    (
        "toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchPattern: '*'}, {matchName: a.org}]}}]",
        [
            (
                (*ports(53), *ports(53, protocol=UDP)),
                L7(dns=frozenset({NamePattern(pattern="*"), NamePattern(exact="a.org")})),
            )
        ],
    ),
    (
        "toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: []}}]",
        [(ports(53, protocol=UDP), L7(dns=frozenset()))],
    ),
    (
        "toPorts: [{ports: [{port: '443'}], serverNames: ['A.example.com', '*.b.org']}]",
        [
            (
                ports(443),
                L7(server_names=frozenset({NamePattern(exact="a.example.com"), NamePattern(pattern="*.b.org")})),
            )
        ],
    ),
    (
        "toPorts: [{ports: [{port: '443', protocol: TCP}], rules: {http: [{}]}, serverNames: [a.org],"
        " terminatingTLS: {secret: {name: s, namespace: keys}, certificate: c, privateKey: k},"
        " originatingTLS: {secret: {name: t}, trustedCA: ca}}]",
        [
            (
                ports(443),
                L7(
                    HTTP,
                    server_names=frozenset({NamePattern(exact="a.org")}),
                    terminating=TlsContext("keys", "s", "c", "k"),
                    originating=TlsContext("shop", "t", trusted_ca="ca"),
                ),
            )
        ],
    ),
]
