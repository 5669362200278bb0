"""ClusterNetworkPolicy and its older kinds, row by row: what a spec means, what a slip is reported as, what is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import Prefix
from policies.clusternetworkpolicy import API_VERSIONS, KINDS, parse, salvage
from policies.fields import InvalidPolicy
from policies.l7 import NamePattern
from policies.model import (
    Action,
    CidrBlock,
    Direction,
    LabelSelector,
    NamedPort,
    NodePeer,
    ObjectRef,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Port,
    PortRange,
    Requirement,
    Rule,
    RuleRef,
    Tier,
)

IN, OUT = Direction.INGRESS, Direction.EGRESS
HERE = Origin("policies.yaml", 3)
ALL = LabelSelector()
CNP, ANP, BANP = KINDS
SUBJECT = "subject: {namespaces: {}}"
HEAD = f"tier: Admin, priority: 7, {SUBJECT}"
HEADS = {CNP: HEAD, ANP: f"priority: 7, {SUBJECT}", BANP: SUBJECT}


def manifest(spec: str, kind: str = CNP, name: str = "", **metadata: Any) -> dict[str, Any]:
    """`spec` in YAML."""
    meta = {"name": name or ("default" if kind == BANP else "p"), **metadata}
    return {"apiVersion": API_VERSIONS[kind][0], "kind": kind, "metadata": meta, "spec": yaml.safe_load(spec)}


def with_rules(rules: str, kind: str = CNP) -> dict[str, Any]:
    return manifest(f"{{{HEADS[kind]}, {rules}}}", kind)


def labels(**wanted: str) -> LabelSelector:
    return LabelSelector(frozenset(Requirement(k, Operator.IN, frozenset({v})) for k, v in wanted.items()))


def named(name: str) -> tuple[Port, ...]:
    return tuple(NamedPort(protocol, name) for protocol in (6, 17, 132))


def problems_of(raw: Any) -> dict[str, str]:
    with pytest.raises(InvalidPolicy) as caught:
        parse(raw, HERE)
    return {p.path: p.message for p in caught.value.problems}


# ---- what is right


def test_tier_and_priority() -> None:
    policy = parse(manifest(f"{{tier: Baseline, priority: 1000, {SUBJECT}}}"), HERE)
    assert (policy.tier, policy.priority, policy.isolates, policy.rules) == (Tier.BASELINE, 1000, frozenset(), ())
    assert policy.ref == ObjectRef(CNP, "", "p")
    assert policy.subject == PodSelector(ALL, namespaces=ALL)
    admin = parse(manifest(f"{{priority: 3, {SUBJECT}}}", ANP), HERE)
    assert (admin.tier, admin.priority) == (Tier.ADMIN, 3)
    baseline = parse(manifest(f"{{{SUBJECT}}}", BANP), HERE)
    assert baseline.tier is Tier.BASELINE
    assert baseline.priority > policy.priority, "any ClusterNetworkPolicy of the tier goes first"


def test_the_current_version_and_the_next() -> None:
    for version in ("v1alpha2", "v1beta1"):
        raw = {**manifest(f"{{{HEAD}}}"), "apiVersion": f"policy.networking.k8s.io/{version}"}
        assert parse(raw, HERE).priority == 7


SUBJECTS = [
    ("{namespaces: {}}", PodSelector(ALL, namespaces=ALL)),
    ("{namespaces: {matchLabels: {a: b}}}", PodSelector(ALL, namespaces=labels(a="b"))),
    (
        "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}",
        PodSelector(labels(a="b"), namespaces=ALL),
    ),
    ("{pods: {podSelector: {matchLabels: {a: b}}}}", PodSelector(labels(a="b"), namespaces=ALL)),
]


@pytest.mark.parametrize(("text", "expected"), SUBJECTS)
def test_subjects(text: str, expected: PodSelector) -> None:
    assert parse(manifest(f"{{tier: Admin, priority: 0, subject: {text}}}"), HERE).subject == expected


@pytest.mark.parametrize(
    ("kind", "word", "action"),
    [
        (CNP, "Accept", Action.ALLOW), (CNP, "Deny", Action.DENY), (CNP, "Pass", Action.PASS),
        (ANP, "Allow", Action.ALLOW), (ANP, "Deny", Action.DENY), (ANP, "Pass", Action.PASS),
        (BANP, "Allow", Action.ALLOW), (BANP, "Deny", Action.DENY),
    ],
)  # fmt: skip
def test_actions(kind: str, word: str, action: Action) -> None:
    raw = with_rules(
        f"ingress: [{{action: {word}, name: n, from: [{{namespaces: {{}}}}]}}], "
        f"egress: [{{action: {word}, to: [{{namespaces: {{}}}}]}}]",
        kind,
    )
    policy = parse(raw, HERE)
    peers = (PodSelector(ALL, namespaces=ALL),)
    assert policy.rules == tuple(Rule(RuleRef(policy.ref, d, 0), peers, None, action) for d in Direction)


PEERS: list[tuple[str, tuple[Peer, ...]]] = [
    ("{namespaces: {matchLabels: {a: b}}}", (PodSelector(ALL, namespaces=labels(a="b")),)),
    ("{pods: {namespaceSelector: {}, podSelector: {}}}", (PodSelector(ALL, namespaces=ALL),)),
    ("{nodes: {}}", (NodePeer(ALL),)),
    ("{nodes: {matchLabels: {zone: a}}}", (NodePeer(labels(zone="a")),)),
    (
        "{networks: [10.0.0.0/8, 'fd00::/8']}",
        (CidrBlock(Prefix.parse("10.0.0.0/8")), CidrBlock(Prefix.parse("fd00::/8"))),
    ),
    ("{domainNames: [Example.com.]}", (NamePattern(exact="example.com"),)),
    ("{domainNames: ['*.example.com', a.b]}", (NamePattern(pattern="**.example.com"), NamePattern(exact="a.b"))),
]


@pytest.mark.parametrize(("text", "expected"), PEERS)
def test_egress_peers(text: str, expected: tuple[Peer, ...]) -> None:
    """networks hold pods, too; `*.` at the start of a name stands for one or more labels."""
    (rule,) = parse(with_rules(f"egress: [{{action: Accept, to: [{text}]}}]"), HERE).rules
    assert rule.peers == expected


def test_rules_keep_their_order_and_place() -> None:
    rules = ", ".join(f"{{action: {a}, from: [{{namespaces: {{}}}}]}}" for a in ("Pass", "Accept", "Deny"))
    policy = parse(with_rules(f"ingress: [{rules}]"), HERE)
    assert [(r.ref.index, r.action) for r in policy.rules] == [(0, Action.PASS), (1, Action.ALLOW), (2, Action.DENY)]


PORTS: list[tuple[str, str, tuple[Port, ...]]] = [
    (CNP, "{tcp: {destinationPort: {number: 80}}}", (PortRange(6, 80, 80),)),
    (CNP, "{udp: {destinationPort: {range: {start: 1, end: 65535}}}}", (PortRange(17, 1, 65535),)),
    (CNP, "{sctp: {destinationPort: {number: 9}}}", (PortRange(132, 9, 9),)),
    (CNP, "{destinationNamedPort: http}", named("http")),
    (ANP, "{portNumber: {port: 80}}", (PortRange(6, 80, 80),)),
    (ANP, "{portNumber: {protocol: UDP, port: 53}}", (PortRange(17, 53, 53),)),
    (ANP, "{portRange: {protocol: SCTP, start: 1, end: 9}}", (PortRange(132, 1, 9),)),
    (BANP, "{portRange: {start: 1, end: 9}}", (PortRange(6, 1, 9),)),
    (BANP, "{namedPort: http}", named("http")),
]


@pytest.mark.parametrize(("kind", "text", "expected"), PORTS)
def test_ports(kind: str, text: str, expected: tuple[Port, ...]) -> None:
    field = "protocols" if kind == CNP else "ports"
    (rule,) = parse(
        with_rules(f"ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], {field}: [{text}]}}]", kind), HERE
    ).rules
    assert rule.ports == expected


# ---- what is wrong

SPECS: list[tuple[str, str, str, str]] = [
    (CNP, "{}", "spec.tier", "Admin or Baseline"),
    (CNP, "{}", "spec.priority", "must be given"),
    (CNP, "{}", "spec.subject", "must be given"),
    (CNP, f"{{tier: admin, priority: 0, {SUBJECT}}}", "spec.tier", "Admin or Baseline"),
    (CNP, f"{{tier: 1, priority: 0, {SUBJECT}}}", "spec.tier", "must be a string"),
    (CNP, f"{{tier: Admin, priority: 1001, {SUBJECT}}}", "spec.priority", "0–1000"),
    (CNP, f"{{tier: Admin, priority: -1, {SUBJECT}}}", "spec.priority", "0–1000"),
    (CNP, f"{{tier: Admin, priority: '1', {SUBJECT}}}", "spec.priority", "must be an integer"),
    (CNP, f"{{tier: Admin, priority: true, {SUBJECT}}}", "spec.priority", "must be an integer"),
    (CNP, "{tier: Admin, priority: 0, subject: {}}", "spec.subject", "one of namespaces and pods"),
    (CNP, "{tier: Admin, priority: 0, subject: {namespaces: {}, pods: {podSelector: {}}}}", "spec.subject", "one of"),
    (CNP, "{tier: Admin, priority: 0, subject: {pods: {}}}", "spec.subject.pods.podSelector", "must be given"),
    (ANP, "{priority: 0, subject: {pods: {podSelector: {}}}}", "spec.subject.pods.namespaceSelector", "must be given"),
    (CNP, f"{{{HEAD}, Ingress: []}}", "spec.Ingress", "did you mean ingress?"),
    (CNP, f"{{{HEAD}, ingress: {{}}}}", "spec.ingress", "must be a list"),
    (ANP, f"{{tier: Admin, priority: 0, {SUBJECT}}}", "spec.tier", "unknown field"),
    (BANP, f"{{priority: 0, {SUBJECT}}}", "spec.priority", "unknown field"),
    (CNP, "null", "spec", "must be given"),
    (CNP, "[]", "spec", "must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spec", "path", "message"), SPECS)
def test_specs_that_are_wrong(kind: str, spec: str, path: str, message: str) -> None:
    assert message in problems_of(manifest(spec, kind))[path]


PEER = "from: [{namespaces: {}}]"
RULES: list[tuple[str, str, str]] = [
    ("null", "", "not null"),
    ("{}", ".action", "Accept, Deny or Pass"),
    ("{}", ".from", "at least one peer"),
    (f"{{action: Allow, {PEER}}}", ".action", "Accept, Deny or Pass"),
    (f"{{action: 1, {PEER}}}", ".action", "must be a string"),
    ("{action: Deny, from: []}", ".from", "at least one peer"),
    ("{action: Deny, from: {}}", ".from", "must be a list"),
    ("{action: Deny, from: [null]}", ".from[0]", "must not be null"),
    ("{action: Deny, from: [{}]}", ".from[0]", "must have one of namespaces and pods"),
    ("{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}", ".from[0]", "must have one of"),
    ("{action: Deny, from: [{networks: [10.0.0.0/8]}]}", ".from[0].networks", "unknown field"),
    ("{action: Deny, from: [{namespaces: {matchLabels: {a: 1}}}]}", ".from[0].namespaces.matchLabels[a]", "quotes"),
    ("{action: Deny, to: [{namespaces: {}}]}", ".to", "unknown field"),
    (f"{{action: Deny, {PEER}, ports: []}}", ".ports", "unknown field"),
    (f"{{action: Deny, {PEER}, protocols: []}}", ".protocols", "at least one port"),
    (f"{{action: Deny, {PEER}, protocols: [{{}}]}}", ".protocols[0]", "one of tcp"),
    (f"{{action: Deny, {PEER}, protocols: [{{tcp: {{}}}}]}}", ".protocols[0].tcp.destinationPort", "must be given"),
    (
        f"{{action: Deny, {PEER}, protocols: [{{tcp: {{destinationPort: {{}}}}}}]}}",
        ".protocols[0].tcp.destinationPort",
        "one of number and range",
    ),
    (
        f"{{action: Deny, {PEER}, protocols: [{{tcp: {{destinationPort: {{number: 0}}}}}}]}}",
        ".protocols[0].tcp.destinationPort.number",
        "1–65535",
    ),
    (
        f"{{action: Deny, {PEER}, protocols: [{{tcp: {{destinationPort: {{range: {{start: 9, end: 9}}}}}}}}]}}",
        ".protocols[0].tcp.destinationPort.range.end",
        "above start",
    ),
    (
        f"{{action: Deny, {PEER}, protocols: [{{tcp: {{destinationPort: {{range: {{start: 9}}}}}}}}]}}",
        ".protocols[0].tcp.destinationPort.range.end",
        "must be given",
    ),
    (
        f"{{action: Deny, {PEER}, protocols: [{{icmp: {{}}}}]}}",
        ".protocols[0].icmp",
        "unknown field",
    ),
    (
        f"{{action: Deny, {PEER}, protocols: [{{destinationNamedPort: '80'}}]}}",
        ".protocols[0].destinationNamedPort",
        "port name",
    ),
    (f"{{action: Deny, {PEER}, name: {'n' * 101}}}", ".name", "100 characters"),
]


@pytest.mark.parametrize(("rule", "path", "message"), RULES)
def test_rules_that_are_wrong(rule: str, path: str, message: str) -> None:
    assert message in problems_of(with_rules(f"ingress: [{rule}]"))[f"spec.ingress[0]{path}"]


EGRESS: list[tuple[str, str, str, str]] = [
    (CNP, "{action: Deny, to: [{networks: []}]}", ".to[0].networks", "at least one block"),
    (CNP, "{action: Deny, to: [{networks: [10.0.0.1]}]}", ".to[0].networks[0]", "CIDR block"),
    (CNP, "{action: Deny, to: [{networks: ['::ffff:10.0.0.0/104']}]}", ".to[0].networks[0]", "IPv4-mapped"),
    (CNP, "{action: Deny, to: [{domainNames: [a.b]}]}", ".to[0].domainNames", "only a rule that accepts"),
    (CNP, "{action: Pass, to: [{domainNames: [a.b]}]}", ".to[0].domainNames", "only a rule that accepts"),
    (CNP, "{action: Accept, to: [{domainNames: ['*']}]}", ".to[0].domainNames[0]", "domain name"),
    (CNP, "{action: Accept, to: [{domainNames: [a*.b]}]}", ".to[0].domainNames[0]", "domain name"),
    (CNP, "{action: Accept, to: [{domainNames: [com]}]}", ".to[0].domainNames[0]", "domain name"),
    (CNP, "{action: Accept, to: [{domainNames: ['']}]}", ".to[0].domainNames[0]", "domain name"),
    (CNP, f"{{action: Accept, to: [{{domainNames: [{'a.' * 127}b]}}]}}", ".to[0].domainNames[0]", "domain name"),
    (
        CNP,
        "{action: Accept, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}",
        ".to[0].nodes",
        "port name",
    ),
    (ANP, "{action: Allow, to: [{networks: ['::/0']}], ports: [{namedPort: http}]}", ".to[0].networks", "port name"),
    (ANP, "{action: Allow, to: [{namespaces: {}}], ports: [{}]}", ".ports[0]", "one of portNumber"),
    (ANP, "{action: Allow, to: [{namespaces: {}}], ports: [{portNumber: {}}]}", ".ports[0].portNumber.port", "given"),
    (
        ANP,
        "{action: Allow, to: [{namespaces: {}}], ports: [{portNumber: {protocol: tcp, port: 1}}]}",
        ".ports[0].portNumber.protocol",
        "TCP, UDP or SCTP",
    ),
    (ANP, "{action: Accept, to: [{namespaces: {}}]}", ".action", "Allow, Deny or Pass"),
    (BANP, "{action: Pass, to: [{namespaces: {}}]}", ".action", "Allow or Deny"),
    (BANP, "{action: Allow, to: [{domainNames: [a.b]}]}", ".to[0].domainNames", "unknown field"),
]


@pytest.mark.parametrize(("kind", "rule", "path", "message"), EGRESS)
def test_egress_rules_that_are_wrong(kind: str, rule: str, path: str, message: str) -> None:
    assert message in problems_of(with_rules(f"egress: [{rule}]", kind))[f"spec.egress[0]{path}"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "NetworkPolicy"}, "kind"),
        ({"kind": ["x"]}, "kind"),
        ({"apiVersion": "policy.networking.k8s.io/v1alpha1"}, "apiVersion"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "p", "namespace": "shop"}}, "metadata.namespace"),
        ({"specs": []}, "specs"),
    ],
)
def test_documents_that_are_wrong(change: dict[str, Any], path: str) -> None:
    assert path in problems_of({**manifest(f"{{{HEAD}}}"), **change})


def test_one_baseline_admin_network_policy() -> None:
    assert "must be 'default'" in problems_of(manifest(f"{{{SUBJECT}}}", BANP, name="other"))["metadata.name"]


@pytest.mark.parametrize(("kind", "most"), [(CNP, 25), (ANP, 100)])
def test_how_many(kind: str, most: int) -> None:
    peers = ", ".join(["{namespaces: {}}"] * (most + 1))
    rule = f"{{action: Deny, from: [{peers}]}}"
    found = problems_of(with_rules(f"ingress: [{', '.join([rule] * (most + 1))}]", kind))
    assert f"at most {most} rules" in found["spec.ingress"]
    assert f"at most {most} peers" in found["spec.ingress[0].from"]


# ---- what is left of what is wrong

GOOD = "{action: Accept, from: [{namespaces: {}}]}"
DENIES_ALL = (None, None, Action.DENY)
SALVAGED: list[tuple[str, Tier, int, dict[tuple[Direction, int], tuple[Any, ...] | None]]] = [
    # A rule that is wrong: an Accept is left out, all else denies everything in its place.
    (f"{HEAD}, ingress: [{GOOD}, {{action: Accept, from: [{{}}]}}]", Tier.ADMIN, 7, {(IN, 0): None}),
    (f"{HEAD}, ingress: [{GOOD}, {{action: Deny, from: [{{}}]}}]", Tier.ADMIN, 7, {(IN, 0): None, (IN, 1): DENIES_ALL}),
    (f"{HEAD}, ingress: [{{action: Pass, from: [{{}}]}}, {GOOD}]", Tier.ADMIN, 7, {(IN, 0): DENIES_ALL, (IN, 1): None}),
    (f"{HEAD}, egress: [{{action: deny, to: [{{namespaces: {{}}}}]}}]", Tier.ADMIN, 7, {(OUT, 0): DENIES_ALL}),
    (f"{HEAD}, egress: [null]", Tier.ADMIN, 7, {(OUT, 0): DENIES_ALL}),
    # More than a rule: all is denied, first of all.
    (f"tier: Baseline, priority: x, {SUBJECT}, ingress: [{GOOD}]", Tier.BASELINE, 0, {(IN, -1): DENIES_ALL}),
    (f"tier: base, priority: 5, {SUBJECT}, egress: [null]", Tier.ADMIN, 0, {(OUT, -1): DENIES_ALL}),
    (f"{HEAD}, ingres: [{GOOD}]", Tier.ADMIN, 0, {(IN, -1): DENIES_ALL, (OUT, -1): DENIES_ALL}),
    (f"{HEAD}, ingress: {GOOD}", Tier.ADMIN, 0, {(IN, -1): DENIES_ALL}),
    (f"tier: Admin, {SUBJECT}", Tier.ADMIN, 0, {}),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "tier", "priority", "expected"), SALVAGED)
def test_salvage(
    spec: str, tier: Tier, priority: int, expected: dict[tuple[Direction, int], tuple[Any, ...] | None]
) -> None:
    policy = salvage(manifest(f"{{{spec}}}"), HERE)
    assert policy is not None
    assert (policy.tier, policy.priority) == (tier, priority)
    assert policy.problem
    assert policy.subject == PodSelector(ALL, namespaces=ALL)
    as_written = ((PodSelector(ALL, namespaces=ALL),), None, Action.ALLOW)
    found = {(r.ref.direction, r.ref.index): (r.peers, r.ports, r.action) for r in policy.rules}
    assert found == {place: as_written if rule is None else rule for place, rule in expected.items()}


@pytest.mark.parametrize(
    "raw",
    [
        manifest(f"{{{HEAD}}}"),  # valid
        manifest("{tier: Admin, priority: 0}"),
        manifest("{tier: Admin, priority: 0, subject: {namespace: {}}}"),
        manifest("{tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {a: 1}}}}"),
        {**manifest("{}"), "kind": "Unknown"},
        {**manifest(f"{{tier: x, {SUBJECT}}}"), "metadata": {}},
        None,
        [],
    ],
)
def test_nothing_to_salvage(raw: Any) -> None:
    assert salvage(raw, HERE) is None


# ---- junk

WORDS = st.sampled_from(
    ("namespaces", "pods", "nodes", "networks", "domainNames", "action", "from", "to", "tcp", "Accept", "Deny", "x")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | st.floats() | st.text(max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3),
    max_leaves=6,
)
VALID = [
    with_rules(
        "ingress: [{action: Accept, from: [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {}}}], "
        "protocols: [{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: http}]}], "
        "egress: [{action: Accept, to: [{networks: ['10.0.0.0/8']}, {nodes: {}}, {domainNames: [a.b]}], "
        "protocols: [{udp: {destinationPort: {range: {start: 1, end: 9}}}}]}, "
        "{action: Deny, to: [{namespaces: {matchLabels: {a: b}}}]}]"
    ),
    with_rules(
        "ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {namedPort: a}]}], "
        "egress: [{action: Pass, to: [{nodes: {}}], ports: [{portRange: {start: 1, end: 2}}]}]",
        ANP,
    ),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@given(raw=st.sampled_from(VALID).map(copy.deepcopy), junk=JSON, data=st.data())
@settings(max_examples=400)
def test_junk_anywhere_is_refused_and_what_is_left_opens_nothing(raw: Any, junk: Any, data: st.DataObject) -> None:
    """Never anything but InvalidPolicy; what is salvaged accepts at most by rules as they were written."""
    written = {(r.ref, r.peers, r.ports) for r in parse(raw, HERE).rules if r.action is Action.ALLOW}
    holder, key = data.draw(st.sampled_from(places(raw)))
    holder[key] = junk
    try:
        parse(raw, HERE)
    except InvalidPolicy as error:
        assert error.problems
        left = salvage(raw, HERE)
        if left is not None and left.ref.name == "p":
            assert {(r.ref, r.peers, r.ports) for r in left.rules if r.action is Action.ALLOW} <= written
    else:
        assert salvage(raw, HERE) is None


@given(JSON)
@settings(max_examples=100)
def test_any_document(raw: Any) -> None:
    with pytest.raises(InvalidPolicy):
        parse(raw, HERE)
    assert salvage(raw, HERE) is None
