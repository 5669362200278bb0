"""CiliumNetworkPolicy, row by row: what a rule means, what a slip is reported as, what is salvaged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import Prefix
from policies.cilium.policy import API_VERSION, CLUSTERWIDE, HOST_POLICY, NAMESPACED, NO_POD, parse, salvage, spec_paths
from policies.fields import InvalidPolicy
from policies.l7 import L7, HeaderMatch, HttpRule, Mismatch, NamePattern, TlsContext
from policies.model import (
    KUBERNETES,
    SERVICE_ACCOUNT,
    Action,
    CidrBlock,
    Direction,
    Entity,
    EntityPeer,
    LabelSelector,
    NamedPort,
    NodePeer,
    ObjectRef,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Policy,
    Port,
    PortRange,
    Requirement,
    Rule,
    RuleRef,
    ServicePeer,
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


# ---- whom a rule is about

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


@pytest.mark.parametrize(("rule", "peers"), INGRESS_PEERS)
def test_peers_of_ingress(rule: str, peers: tuple[Peer, ...] | None) -> None:
    ref = RuleRef(ObjectRef(NAMESPACED, "shop", "p"), IN, 0)
    assert one(f"ingress: [{{{rule}}}]").rules == (Rule(ref, peers, None),)
    denied = one(f"ingressDeny: [{{{rule}}}]").rules
    assert denied == (Rule(RuleRef(ref.policy, IN, 0, "ingressDeny"), peers, None, Action.DENY),)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        (rule.replace("from", "to"), peers) for rule, peers in INGRESS_PEERS
    ] + [
        ("toFQDNs: [{matchName: API.Example.com.}]", (NamePattern(exact="api.example.com"),)),
        ("toFQDNs: [{matchPattern: '*.Example.com'}]", (NamePattern(pattern="*.example.com"),)),
        ("toFQDNs: [{matchPattern: '***.a.com'}]", (NamePattern(pattern="**.a.com"),)),
        ("toFQDNs: [{matchPattern: 'a**b.**.com'}]", (NamePattern(pattern="a*b.*.com"),)),
        ("toFQDNs: [{matchPattern: '**'}]", (NamePattern(pattern="*"),)),
        ("toFQDNs: [{matchPattern: plain.com, matchName: ''}]", (NamePattern(exact="plain.com"),)),
        ("toFQDNs: []", ()),
        ("toServices: []", ()),
        ("toServices: [{k8sService: {serviceName: db}}]", (ServicePeer("shop", "db"),)),
        ("toServices: [{k8sService: {serviceName: db, namespace: data}}]", (ServicePeer("data", "db"),)),
        (
            "toServices: [{k8sServiceSelector: {selector: {matchLabels: {'k8s:app': db}}}}]",
            (ServicePeer("", selector=labels(app="db")),),
        ),
        (
            "toServices: [{k8sServiceSelector: {selector: {}, namespace: data}}]",
            (ServicePeer("data", selector=ALL),),
        ),
    ],
)  # fmt: skip
def test_peers_of_egress(rule: str, peers: tuple[Peer, ...] | None) -> None:
    ref = RuleRef(ObjectRef(NAMESPACED, "shop", "p"), OUT, 0)
    assert one(f"egress: [{{{rule}}}]").rules == (Rule(ref, peers, None),)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ("fromEndpoints: [{}]", (PodSelector(ALL, namespaces=ALL),)),
        ("fromEndpoints: [{matchLabels: {app: web}}]", (PodSelector(labels(app="web"), namespaces=ALL),)),
        (
            "fromEndpoints: [{matchLabels: {app: web, io.kubernetes.pod.namespace: pay}}]",
            (PodSelector(labels(app="web"), namespace="pay"),),
        ),
    ],
)
def test_peers_of_a_clusterwide_policy_are_of_every_namespace(rule: str, peers: tuple[Peer, ...]) -> None:
    policy = one(f"ingress: [{{{rule}}}]", CLUSTERWIDE)
    assert (policy.ref, policy.subject) == (ObjectRef(CLUSTERWIDE, "", "p"), PodSelector(ALL, namespaces=ALL))
    assert [rule.peers for rule in policy.rules] == [peers]


# ---- on which ports, and what is asked there

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


@pytest.mark.parametrize(("where", "expected"), WHERE)
def test_ports(where: str, expected: list[tuple[tuple[Port, ...] | None, L7 | None]]) -> None:
    """Alone, they are for any remote."""
    ref = RuleRef(ObjectRef(NAMESPACED, "shop", "p"), OUT, 0)
    assert one(f"egress: [{{{where}}}]").rules == tuple(Rule(ref, None, on, l7=l7) for on, l7 in expected)
    both = one(f"egress: [{{toEntities: [world], {where}}}]").rules
    assert both == tuple(Rule(ref, (EntityPeer(Entity.WORLD),), on, l7=l7) for on, l7 in expected)


HTTP_RULES = [
    ("{}", HttpRule()),
    ("{method: GET, path: /public/.*}", HttpRule("GET", "/public/.*")),
    ("{method: 'GET|HEAD', host: 'a\\.org'}", HttpRule("GET|HEAD", host=r"a\.org")),
    ("{path: '/[[:alpha:]]+'}", HttpRule(path="/[A-Za-z]+")),
    ("{headers: ['X-My-Header: true']}", HttpRule(headers=(HeaderMatch("x-my-header", "true"),))),
    ("{headers: ['X-A:b c', 'X-D']}", HttpRule(headers=(HeaderMatch("x-a", "b c"), HeaderMatch("x-d")))),
    ("{headers: ['X-A b']}", HttpRule(headers=(HeaderMatch("x-a", "b"),))),
    ("{headerMatches: [{name: X-A, value: b}]}", HttpRule(headers=(HeaderMatch("x-a", "b"),))),
    ("{headerMatches: [{name: X-A}]}", HttpRule(headers=(HeaderMatch("x-a"),))),
    (
        "{headerMatches: [{name: X-A, value: b, mismatch: REPLACE}, {name: B, mismatch: LOG}]}",
        HttpRule(headers=(HeaderMatch("b", None, Mismatch.LOG), HeaderMatch("x-a", "b", Mismatch.REPLACE))),
    ),
]


@pytest.mark.parametrize(("written", "expected"), HTTP_RULES)
def test_http_rules(written: str, expected: HttpRule) -> None:
    (rule,) = one(
        f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{written}]}}}}]}}]"
    ).rules
    assert rule.l7 == L7(http=frozenset({expected}))


# ---- the policy itself

ISOLATES: list[tuple[str, set[Direction]]] = [
    ("ingress: [{}]", {IN}),
    ("ingressDeny: [{}]", {IN}),
    ("egress: [{}]", {OUT}),
    ("egressDeny: [{toEntities: [world]}]", {OUT}),
    ("ingress: [{}], egress: [{}]", {IN, OUT}),
    ("ingress: [], egress: [{}]", {OUT}),
    ("ingress: [{}], egress: [{}], enableDefaultDeny: {egress: false}", {IN}),
    ("ingress: [{}], enableDefaultDeny: {ingress: false}", set()),
    ("ingress: [{}], enableDefaultDeny: {egress: true}", {IN, OUT}),
    ("enableDefaultDeny: {ingress: true}", {IN}),
    ("ingress: [{}], enableDefaultDeny: {}", {IN}),
]


@pytest.mark.parametrize(("rules", "directions"), ISOLATES)
def test_what_isolates(rules: str, directions: set[Direction]) -> None:
    assert one(rules).isolates == directions


@pytest.mark.parametrize("rules", ["ingress: [{}]", "egress: [{}]", "ingressDeny: [{}]", "egressDeny: [{}]"])
def test_a_rule_that_says_nothing_matches_nothing(rules: str) -> None:
    """It isolates: cilium.io/v2's way to say that all is denied."""
    (rule,) = one(rules).rules
    assert (rule.peers, rule.ports) == ((), None)


SUBJECTS = [
    (NAMESPACED, "{}", PodSelector(ALL, namespace="shop")),
    (NAMESPACED, "{matchLabels: {'k8s:app': web}}", pods(app="web")),
    (NAMESPACED, "{matchLabels: {io.kubernetes.pod.namespace: shop, app: web}}", pods(app="web")),
    (
        NAMESPACED,
        "{matchLabels: {io.cilium.k8s.namespace.labels.team: a}}",
        PodSelector(ALL, namespaces=LabelSelector(frozenset({required("team", "a"), required(NAME, "shop")}))),
    ),
    (NAMESPACED, "{matchExpressions: [{key: 'reserved:init', operator: DoesNotExist}]}", pods()),
    (CLUSTERWIDE, "{matchLabels: {app: web}}", PodSelector(labels(app="web"), namespaces=ALL)),
    (
        CLUSTERWIDE,
        "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}]}",
        PodSelector(
            ALL, namespaces=LabelSelector(frozenset({required(NAME, "kube-system", operator=Operator.NOT_IN)}))
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "selector", "subject"), SUBJECTS)
def test_subjects(kind: str, selector: str, subject: PodSelector) -> None:
    (policy,) = parse(manifest(f"{{endpointSelector: {selector}, ingress: [{{}}]}}", kind), HERE)
    assert policy.subject == subject
    assert not policy.problem


NO_PODS = "spec.endpointSelector: selects what is no pod"
UNENFORCED = [
    ("{nodeSelector: {}, ingress: [{fromEntities: [cluster]}]}", f"spec.nodeSelector: {HOST_POLICY}"),
    (
        "{endpointSelector: {matchLabels: {'reserved:health': ''}}, ingress: [{}]}",
        NO_PODS,
    ),
    (
        "{endpointSelector: {matchExpressions: [{key: 'reserved:host', operator: In, values: [x]}]}, ingress: [{}]}",
        NO_PODS,
    ),
]


@pytest.mark.parametrize(("spec", "status"), UNENFORCED)
def test_what_is_not_about_pods_is_said_not_to_be_enforced(spec: str, status: str) -> None:
    (policy,) = parse(manifest(spec, CLUSTERWIDE), HERE)
    assert policy.problem.startswith(status)
    assert (policy.subject, policy.isolates, policy.rules) == (NO_POD, frozenset(), ())
    assert not NO_POD.pods.matches({})


def test_several_specs_are_several_policies() -> None:
    spec = "[{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egressDeny: [{toEntities: [world]}]}]"
    first, second = parse(manifest(spec), HERE)
    assert (str(first.ref), str(second.ref)) == (f"{NAMESPACED} shop/p", f"{NAMESPACED} shop/p:specs[1]")
    assert [str(rule.ref) for policy in (first, second) for rule in policy.rules] == [
        f"{NAMESPACED} shop/p specs[0].ingress[0]",
        f"{NAMESPACED} shop/p:specs[1] specs[1].egressDeny[0]",
    ]
    both = manifest(spec) | {"spec": {"endpointSelector": {}, "ingress": [{}]}}
    assert [policy.ref.name for policy in parse(both, HERE)] == ["p", "p:specs[0]", "p:specs[1]"]
    assert spec_paths(both) == ["spec", "specs[0]", "specs[1]"]


def test_fields_that_only_describe_are_taken() -> None:
    rules = "ingress: [{}], labels: [{key: a, value: b, source: k8s}], description: why, log: {value: x}"
    assert one(rules) == one("ingress: [{}]")


# ---- what is refused

# spec (YAML) of a CiliumNetworkPolicy → path and a piece of the message of each problem
REFUSED: list[tuple[str, list[tuple[str, str]]]] = [
    ("{ingress: [{}]}", [("spec.endpointSelector", "must be given")]),
    ("{endpointSelector: {}}", [("spec", "must have a rule")]),
    ("{endpointSelector: {}, ingress: []}", [("spec", "must have a rule")]),
    ("{endpointSelector: {}, ingres: [{}]}", [("spec.ingres", "unknown field"), ("spec", "must have a rule")]),
    ("{endpointSelector: {}, ingress: {}}", [("spec.ingress", "must be a list"), ("spec", "must have a rule")]),
    ("{endpointSelector: {}, ingress: [null]}", [("spec.ingress[0]", "not null")]),
    ("{endpointSelector: {}, nodeSelector: {}, ingress: [{}]}",
     [("spec.nodeSelector", "must not be given with endpointSelector")]),
    ("{nodeSelector: {}, ingress: [{}]}", [("spec.nodeSelector", f"is for a {CLUSTERWIDE} alone")]),
    ("{endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: pay}}, ingress: [{}]}",
     [("spec.endpointSelector", "another namespace")]),
    ("{endpointSelector: {}, enableDefaultDeny: {ingress: no-way}, ingress: [{}]}",
     [("spec.enableDefaultDeny.ingress", "must be true or false")]),
    ("[{endpointSelector: {}, ingress: [{}]}, null]",
     [("specs[1]", "not null"), ("specs[1].endpointSelector", "must be given"), ("specs[1]", "must have a rule")]),
]  # fmt: skip

# rule of ingress (or, with `to`, of egress) → path within the rule, and a piece of the message of each problem
REFUSED_RULES: list[tuple[str, list[tuple[str, str]]]] = [
    ("from: []", [(".from", "unknown field")]),
    ("fromRequires: []", [(".fromRequires", "is not supported")]),
    ("toRequires: [{}]", [(".toRequires", "is not supported")]),
    ("fromGroups: [{}]", [(".fromGroups", "is not supported")]),
    ("toGroups: [{}]", [(".toGroups", "is not supported")]),
    ("fromEndpoints: [null]", [(".fromEndpoints[0]", "not null")]),
    ("fromEndpoints: [{}], fromEntities: [world]", [("", "must not have both fromEndpoints and fromEntities")]),
    ("toFQDNs: [{matchName: a.org}], toCIDR: [10.0.0.0/8]", [("", "must not have both toCIDR and toFQDNs")]),
    ("fromEndpoints: [{matchLabels: {'container:a': b}}]",
     [(".fromEndpoints[0].matchLabels[container:a]", "labels of source 'container'")]),
    ("fromEndpoints: [{matchLabels: {'reserved:nobody': ''}}]",
     [(".fromEndpoints[0].matchLabels[reserved:nobody]", "no reserved label")]),
    ("fromEndpoints: [{matchLabels: {'reserved:host': '', app: web}}]", [(".fromEndpoints[0]", "alone")]),
    ("fromEndpoints: [{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}]",
     [(".fromEndpoints[0]", "to be there")]),
    ("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.name: x}}]",
     [(".fromEndpoints[0].matchLabels[io.cilium.k8s.policy.name]", "is not supported")]),
    ("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: other}}]",
     [(".fromEndpoints[0]", "io.cilium.k8s.policy.cluster: there is one cluster")]),
    ("fromEndpoints: [{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}]",
     [(".fromEndpoints[0]", "every pod has a namespace")]),
    ("fromEndpoints: [{matchExpressions: [{key: app, operator: Inn}]}]",
     [(".fromEndpoints[0].matchExpressions[0].operator", "must be In, NotIn")]),
    ("fromEntities: [moon]", [(".fromEntities[0]", "must be one of")]),
    ("fromEntities: [null]", [(".fromEntities[0]", "must be one of")]),
    ("fromCIDR: [10.0.0.0/33]", [(".fromCIDR[0]", "must be a CIDR block")]),
    ("fromCIDR: [null]", [(".fromCIDR[0]", "must be given")]),
    ("fromCIDR: ['::ffff:10.0.0.1/128']", [(".fromCIDR[0]", "IPv4-mapped")]),
    ("fromCIDRSet: [{cidr: 10.0.0.1}]", [(".fromCIDRSet[0].cidr", "must be a CIDR block")]),
    ("fromCIDRSet: [{}]", [(".fromCIDRSet[0].cidr", "must be given")]),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]", [(".fromCIDRSet[0].except[0]", "must lie within")]),
    ("fromCIDRSet: [{cidrGroupRef: g, cidr: 10.0.0.0/8}]", [(".fromCIDRSet[0].cidrGroupRef", "is not supported")]),
    ("fromNodes: [{matchLabels: {'reserved:host': ''}}]",
     [(".fromNodes[0].matchLabels[reserved:host]", "not supported here")]),
    ("toServices: [{}]", [(".toServices[0]", "either k8sService or")]),
    ("toServices: [{k8sService: {namespace: a}}]", [(".toServices[0].k8sService.serviceName", "must be given")]),
    ("toServices: [{k8sServiceSelector: {}}]", [(".toServices[0].k8sServiceSelector.selector", "must be given")]),
    ("toFQDNs: [{}]", [(".toFQDNs[0]", "must have a matchName or a matchPattern")]),
    ("toFQDNs: [{matchName: a, matchPattern: b}]", [(".toFQDNs[0]", "must not have both")]),
    ("toFQDNs: [{matchName: '*.a.org'}]", [(".toFQDNs[0].matchName", "write it as matchPattern")]),
    ("toFQDNs: [{matchPattern: 'a b'}]", [(".toFQDNs[0].matchPattern", "must be a DNS name")]),
    ("toFQDNs: [{matchPattern: 'a..b'}]", [(".toFQDNs[0].matchPattern", "empty label")]),
    (f"toFQDNs: [{{matchName: {'a' * 256}}}]", [(".toFQDNs[0].matchName", "at most 255")]),
    ("authentication: {mode: required}", [(".authentication.mode", "'required' is not supported")]),
    ("toPorts: []", [(".toPorts", "must not be empty")]),
    ("icmps: []", [(".icmps", "must not be empty")]),
    ("toPorts: [{}]", [(".toPorts[0].ports", "at least one port")]),
    ("toPorts: [null]", [(".toPorts[0]", "not null"), (".toPorts[0].ports", "at least one port")]),
    ("toPorts: [{ports: []}]", [(".toPorts[0].ports", "at least one port")]),
    ("toPorts: [{ports: [{}]}]", [(".toPorts[0].ports[0].port", "must be given")]),
    ("toPorts: [{ports: [{port: 80}]}]", [(".toPorts[0].ports[0].port", "put it in quotes")]),
    ("toPorts: [{ports: [{port: '65536'}]}]", [(".toPorts[0].ports[0].port", "0–65535")]),
    ("toPorts: [{ports: [{port: '010'}]}]", [(".toPorts[0].ports[0].port", "leading zeros")]),
    ("toPorts: [{ports: [{port: 'a b'}]}]", [(".toPorts[0].ports[0].port", "port name")]),
    ("toPorts: [{ports: [{port: web, endPort: 90}]}]", [(".toPorts[0].ports[0].endPort", "with a port name")]),
    ("toPorts: [{ports: [{port: '80', endPort: 79}]}]", [(".toPorts[0].ports[0].endPort", "must be 80–65535")]),
    ("toPorts: [{ports: [{port: '0', endPort: 79}]}]", [(".toPorts[0].ports[0].endPort", 'with port "0"')]),
    ("toPorts: [{ports: [{port: '1', protocol: VRRP}]}]", [(".toPorts[0].ports[0].protocol", "'VRRP' is not")]),
    ("toPorts: [{ports: [{port: '256', protocol: ICMP}]}]", [(".toPorts[0].ports[0].port", "at most 255")]),
    ("toPorts: [{ports: [" + "{port: '1'}, " * 41 + "]}]", [(".toPorts[0].ports", "at most 40")]),
    ("toPorts: [{ports: [{port: '1'}], listener: {name: x}}]", [(".toPorts[0].listener", "is not supported")]),
    ("toPorts: [{ports: [{port: '1'}]}], icmps: [{fields: [{type: 8}]}]", [("", "must not have both toPorts and")]),
    ("icmps: [{fields: []}]", [(".icmps[0].fields", "at least one type")]),
    ("icmps: [{fields: [{type: 256}]}]", [(".icmps[0].fields[0].type", "must be an ICMP type of IPv4")]),
    ("icmps: [{fields: [{type: PacketTooBig}]}]", [(".icmps[0].fields[0].type", "must be an ICMP type of IPv4")]),
    ("icmps: [{fields: [{type: 8, family: IPv5}]}]", [(".icmps[0].fields[0].family", "must be IPv4 or IPv6")]),
]  # fmt: skip

# member of toPorts but for its ports, the port → path within the member, and a piece of the message of each problem
REFUSED_L7: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("rules: {}", "{port: '80', protocol: TCP}", [(".rules", "must have http or dns")]),
    ("rules: {http: [{}]}", "{port: '80'}", [(".ports[0].protocol", "must be TCP where there are http rules")]),
    ("rules: {http: [{}]}", "{port: '80', protocol: UDP}", [(".ports[0].protocol", "must be TCP")]),
    ("rules: {http: [{}]}", "{port: '0', protocol: TCP}", [(".ports[0].port", "name the ports")]),
    ("rules: {http: [{}], dns: []}", "{port: '80', protocol: TCP}", [(".rules", "both http and dns")]),
    ("rules: {kafka: [{}]}", "{port: '80', protocol: TCP}", [(".rules.kafka", "is not supported")]),
    ("rules: {l7proto: x, l7: []}", "{port: '80', protocol: TCP}",
     [(".rules.l7proto", "is not supported"), (".rules.l7", "is not supported")]),
    ("rules: {dns: [{}]}", "{port: '53'}", [(".rules.dns[0]", "must have a matchName")]),
    ("rules: {dns: []}", "{port: '53', protocol: SCTP}", [(".ports[0].protocol", "must be TCP or UDP")]),
    ("rules: {dns: []}", "{port: '53', endPort: 54}", [(".ports[0].endPort", "must not be given with dns")]),
    ("rules: {http: [null]}", "{port: '80', protocol: TCP}", [(".rules.http[0]", "not null")]),
    ("rules: {http: [{path: '/(?=a)'}]}", "{port: '80', protocol: TCP}", [(".rules.http[0].path", "look-ahead")]),
    ("rules: {http: [{method: '(GET'}]}", "{port: '80', protocol: TCP}", [(".rules.http[0].method", "without ')'")]),
    ("rules: {http: [{host: '*'}]}", "{port: '80', protocol: TCP}", [(".rules.http[0].host", "nothing to repeat")]),
    ("rules: {http: [{headers: ['a b: c', ': x']}]}", "{port: '80', protocol: TCP}",
     [(".rules.http[0].headers[1]", "must be 'Name: value'")]),
    ("rules: {http: [{headerMatches: [{value: a}]}]}", "{port: '80', protocol: TCP}",
     [(".rules.http[0].headerMatches[0].name", "must be given")]),
    ("rules: {http: [{headerMatches: [{name: a, mismatch: FAIL}]}]}", "{port: '80', protocol: TCP}",
     [(".rules.http[0].headerMatches[0].mismatch", "must be LOG, ADD")]),
    ("rules: {http: [{headerMatches: [{name: a, mismatch: ADD}]}]}", "{port: '80', protocol: TCP}",
     [(".rules.http[0].headerMatches[0].value", "must be given where mismatch is ADD")]),
    ("rules: {http: [{headerMatches: [{name: a, secret: {name: s}}]}]}", "{port: '80', protocol: TCP}",
     [(".rules.http[0].headerMatches[0].secret", "is not supported")]),
    ("serverNames: []", "{port: '443', protocol: TCP}", [(".serverNames", "must not be empty")]),
    ("serverNames: ['']", "{port: '443', protocol: TCP}", [(".serverNames[0]", "must be a DNS name")]),
    ("serverNames: [a.org]", "{port: '443', protocol: UDP}", [(".ports[0].protocol", "must be TCP")]),
    ("serverNames: [a.org], rules: {http: [{}]}", "{port: '443', protocol: TCP}",
     [(".serverNames", "must not be given with rules")]),
    ("terminatingTLS: {}", "{port: '443', protocol: TCP}", [(".terminatingTLS.secret.name", "must be given")]),
    ("terminatingTLS: {secret: {name: UP}}", "{port: '443', protocol: TCP}",
     [(".terminatingTLS.secret.name", "lower-case")]),
    ("originatingTLS: {secret: {name: s}}, rules: {dns: []}", "{port: '443', protocol: TCP}",
     [(".rules.dns", "must not be given with terminatingTLS or originatingTLS")]),
]  # fmt: skip


def refusal(raw: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidPolicy) as invalid:
        parse(raw, HERE)
    return [(problem.path, problem.message) for problem in invalid.value.problems]


def same(found: list[tuple[str, str]], expected: list[tuple[str, str]]) -> None:
    assert [path for path, _ in found] == [path for path, _ in expected], found
    for (_, message), (_, piece) in zip(found, expected, strict=True):
        assert piece in message


@pytest.mark.parametrize(("spec", "expected"), REFUSED)
def test_refused(spec: str, expected: list[tuple[str, str]]) -> None:
    same(refusal(manifest(spec)), expected)


@pytest.mark.parametrize(("rule", "expected"), REFUSED_RULES)
def test_refused_rules(rule: str, expected: list[tuple[str, str]]) -> None:
    outward = rule.startswith("to") and not rule.startswith("toPorts")
    section = "egress" if outward else "ingress"
    full = [(f"spec.{section}[0]{path}", piece) for path, piece in expected]
    same(refusal(with_rules(f"{section}: [{{{rule}}}]")), full)


@pytest.mark.parametrize(("member", "port", "expected"), REFUSED_L7)
def test_refused_at_a_port(member: str, port: str, expected: list[tuple[str, str]]) -> None:
    full = [(f"spec.egress[0].toPorts[0]{path}", piece) for path, piece in expected]
    found = refusal(with_rules(f"egress: [{{toPorts: [{{ports: [{port}], {member}}}]}}]"))
    same(sorted(found), sorted(full))


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ("ingress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: []}}]}]", "spec.ingress[0].toPorts[0].rules.dns"),
        ("ingress: [{toFQDNs: [{matchName: a.org}]}]", "spec.ingress[0].toFQDNs"),
        ("egressDeny: [{toFQDNs: [{matchName: a.org}]}]", "spec.egressDeny[0].toFQDNs"),
        ("egressDeny: [{authentication: {mode: disabled}}]", "spec.egressDeny[0].authentication"),
        (
            "egressDeny: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]",
            "spec.egressDeny[0].toPorts[0].rules",
        ),
        ("ingress: [{fromServices: []}]", "spec.ingress[0].fromServices"),
    ],
)
def test_what_has_no_place_in_a_section(rules: str, path: str) -> None:
    assert [where for where, _ in refusal(with_rules(rules))] == [path]


def test_the_head_of_an_object() -> None:
    good = with_rules("ingress: [{}]")
    same(refusal(good | {"apiVersion": "cilium.io/v1"}), [("apiVersion", "must be cilium.io/v2")])
    same(refusal(good | {"metadata": {}}), [("metadata.name", "must be given")])
    same(refusal({key: good[key] for key in ("apiVersion", "kind", "metadata")}), [("spec", "must be given")])
    wide = with_rules("ingress: [{}]", CLUSTERWIDE)
    same(
        refusal(wide | {"metadata": {"name": "p", "namespace": "shop"}}),
        [("metadata.namespace", "must not be given: a CiliumClusterwideNetworkPolicy is in no namespace")],
    )
    clusterwide = "egress: [{toServices: [{k8sService: {serviceName: db}}]}]"
    same(
        refusal(with_rules(clusterwide, CLUSTERWIDE)),
        [("spec.egress[0].toServices[0].k8sService.namespace", "must be given")],
    )
    unnamed = "ingress: [{toPorts: [{ports: [{port: '1', protocol: TCP}], terminatingTLS: {secret: {name: s}}}]}]"
    where = "spec.ingress[0].toPorts[0].terminatingTLS.secret.namespace"
    same(refusal(with_rules(unnamed, CLUSTERWIDE)), [(where, "must be given")])


# ---- what is salvaged

DENY = "{fromEntities: [world]}"
# spec of an invalid object → of each policy salvaged: directions isolated, and the deny rules that are kept
SALVAGED: list[tuple[str, list[tuple[set[Direction], list[str]]]]] = [
    ("{endpointSelector: {}, ingress: [{fromGroups: []}, {}]}", [({IN}, [])]),
    ("{endpointSelector: {}, ingress: [{from: []}], egress: [{}]}", [({IN, OUT}, [])]),
    ("{endpointSelector: {}, ingres: [{}]}", [({IN, OUT}, [])]),
    ("{endpointSelector: {}, ingress: 5}", [({IN, OUT}, [])]),
    ("{endpointSelector: {}, ingress: [{from: []}], enableDefaultDeny: {ingress: false}}", [(set(), [])]),
    ("{endpointSelector: {}, ingress: [{}], enableDefaultDeny: {ingress: 5}}", [({IN, OUT}, [])]),
    (f"{{endpointSelector: {{}}, ingress: [{{from: []}}], ingressDeny: [{DENY}]}}", [({IN}, ["ingressDeny[0]"])]),
    (
        f"{{endpointSelector: {{}}, ingressDeny: [{DENY}, {{fromEntities: [moon]}}, {DENY}]}}",
        [({IN}, ["ingressDeny[0]", "ingressDeny[2]"])],
    ),
    ("{endpointSelector: {matchLabels: {app: 5}}, ingress: [{}]}", []),
    ("{ingress: [{}]}", []),
    ("{nodeSelector: {}, ingress: [{}]}", []),
    (
        "[{endpointSelector: {}, egressDeny: [{toEntities: [world]}]}, {endpointSelector: {}, egress: [5]}]",
        [({OUT}, ["specs[0].egressDeny[0]"]), ({OUT}, [])],
    ),
    ("[{endpointSelector: {}, ingress: [{}]}, {endpointSelector: 5, egress: [{}]}]", [({IN}, [])]),
]


@pytest.mark.parametrize(("spec", "expected"), SALVAGED)
def test_salvage(spec: str, expected: list[tuple[set[Direction], list[str]]]) -> None:
    raw = manifest(spec)
    refusal(raw)
    kept = salvage(raw, HERE)
    assert [(set(p.isolates), [f"{r.ref.section}[{r.ref.index}]" for r in p.rules]) for p in kept] == expected
    assert all(policy.problem and all(rule.action is Action.DENY for rule in policy.rules) for policy in kept)


def test_nothing_is_salvaged_of_what_is_valid_or_has_no_name() -> None:
    good = with_rules("ingress: [{}]")
    assert salvage(good, HERE) == ()
    bad = with_rules("ingress: [{from: []}]")
    assert salvage(bad | {"metadata": {}}, HERE) == ()
    assert salvage(bad | {"metadata": {"name": "p", "namespace": "UP"}}, HERE) == ()
    assert salvage(None, HERE) == ()


# ---- whatever is written

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70000), st.text(max_size=8), st.just([]), st.just({}), st.just([None]),
    st.just([{}]), st.just({"matchLabels": {"reserved:host": ""}}), st.dictionaries(st.text(max_size=4), st.none()),
    st.sampled_from(["*", "80", "a.org", "10.0.0.0/8", "all", "TCP", "(", "reserved:"]),
    st.floats(allow_nan=False), st.binary(max_size=3),
)  # fmt: skip
WHOLE = [
    with_rules(f"ingress: [{{{rule}}}], ingressDeny: [{{{rule}}}], enableDefaultDeny: {{egress: true}}")
    for rule, _ in INGRESS_PEERS
] + [with_rules(f"egress: [{{toEntities: [world], {where}}}]") for where, _ in WHERE]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in members for place in places(member, (*path, key)))]


def mutated(raw: Any, path: tuple[Any, ...], junk: Any, rename: bool) -> Any:
    if not path:
        return junk
    changed = copy.deepcopy(raw)
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    if rename and isinstance(holder, dict):
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = junk
    return changed


@settings(deadline=None, max_examples=600, print_blob=True)
@given(data=st.data())
def test_whatever_is_written_is_read_or_refused_with_paths(data: st.DataObject) -> None:
    raw: Any = data.draw(st.sampled_from(WHOLE))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(places(raw)))
        raw = mutated(raw, where, data.draw(JUNK), data.draw(st.booleans()))
    try:
        policies = parse(raw, HERE)
    except InvalidPolicy as invalid:
        assert invalid.problems
        assert all(problem.message for problem in invalid.problems)
        for policy in salvage(raw, HERE):
            assert policy.problem
            assert all(rule.action is Action.DENY for rule in policy.rules)
        return
    assert policies
    assert salvage(raw, HERE) == ()
    assert len(spec_paths(raw)) == len(policies)
    assert hash(policies) == hash(parse(raw, HERE))
