"""The parser, row by row: what a spec means, and what each slip is reported as."""

from __future__ import annotations

from typing import Any

import pytest
import strategies
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import Prefix
from policies.fields import InvalidPolicy
from policies.model import (
    CidrBlock,
    Direction,
    LabelSelector,
    NamedPort,
    ObjectRef,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Port,
    PortRange,
    Requirement,
)
from policies.networkpolicy import parse, salvage

IN, OUT = Direction.INGRESS, Direction.EGRESS
HERE = Origin("policies.yaml", 7)
ALL = LabelSelector()
ALL_TCP = PortRange(6, 0, 65535)


def manifest(spec: Any, **metadata: Any) -> dict[str, Any]:
    meta = {"name": "p", "namespace": "shop", **metadata}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def from_yaml(text: str) -> Any:
    return manifest(yaml.safe_load(text))


def labels(**wanted: str) -> LabelSelector:
    return LabelSelector(frozenset(Requirement(k, Operator.IN, frozenset({v})) for k, v in wanted.items()))


def block(cidr: str, *excepts: str) -> CidrBlock:
    return CidrBlock(Prefix.parse(cidr), tuple(map(Prefix.parse, excepts)))


# spec → (directions isolated, how many rules are in force per direction)
TYPES: list[tuple[str, set[Direction], int, int]] = [
    ("{podSelector: {}}", {IN}, 0, 0),
    ("{}", {IN}, 0, 0),
    ("null", {IN}, 0, 0),
    ("{podSelector: }", {IN}, 0, 0),
    ("{podSelector: {}, policyTypes: []}", {IN}, 0, 0),
    ("{podSelector: {}, policyTypes: null, egress: [{}]}", {IN, OUT}, 0, 1),
    ("{podSelector: {}, egress: []}", {IN}, 0, 0),
    ("{podSelector: {}, egress: null}", {IN}, 0, 0),
    ("{podSelector: {}, policyTypes: [Egress]}", {OUT}, 0, 0),
    ("{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{}, {}]}", {OUT}, 0, 2),
    ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", {IN}, 0, 0),
    ("{podSelector: {}, policyTypes: [Ingress, Ingress], ingress: [{}]}", {IN}, 1, 0),
    ("{podSelector: {}, policyTypes: [Egress, Ingress], ingress: null}", {IN, OUT}, 0, 0),
]


@pytest.mark.parametrize(("spec", "isolates", "ingress", "egress"), TYPES)
def test_directions(spec: str, isolates: set[Direction], ingress: int, egress: int) -> None:
    policy = parse(from_yaml(spec), HERE)
    assert policy.isolates == isolates
    assert policy.subject == PodSelector(ALL, namespace="shop")
    assert [r.ref.direction for r in policy.rules] == [IN] * ingress + [OUT] * egress
    assert policy.origin == HERE
    assert policy.problem == ""


# one ingress rule → peers (None: any) and ports (None: any, ICMP too)
RULES: list[tuple[str, tuple[Peer, ...] | None, tuple[Port, ...] | None]] = [
    ("{}", None, None),
    ("{from: [], ports: []}", None, None),
    ("{from: null, ports: null}", None, None),
    ("{ports: [{}]}", None, (ALL_TCP,)),
    ("{ports: [{protocol: null, port: null}]}", None, (ALL_TCP,)),
    ("{ports: [{protocol: UDP}]}", None, (PortRange(17, 0, 65535),)),
    ("{ports: [{protocol: SCTP, port: 7}]}", None, (PortRange(132, 7, 7),)),
    ("{ports: [{port: 80}]}", None, (PortRange(6, 80, 80),)),
    ("{ports: [{port: 80, endPort: 80}]}", None, (PortRange(6, 80, 80),)),
    ("{ports: [{port: 1, endPort: 65535}]}", None, (PortRange(6, 1, 65535),)),
    ("{ports: [{port: web-1}, {port: a, protocol: UDP}]}", None, (NamedPort(6, "web-1"), NamedPort(17, "a"))),
    ("{from: [{podSelector: {}}]}", (PodSelector(ALL, namespace="shop"),), None),
    ("{from: [{podSelector: {matchLabels: }}]}", (PodSelector(ALL, namespace="shop"),), None),
    ("{from: [{namespaceSelector: {}}]}", (PodSelector(ALL, namespaces=ALL),), None),
    ("{from: [{namespaceSelector: {}, podSelector: null, ipBlock: null}]}", (PodSelector(ALL, namespaces=ALL),), None),
    (
        "{from: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: b}}}]}",
        (PodSelector(labels(app="b"), namespaces=labels(team="a")),),
        None,
    ),
    (
        "{from: [{namespaceSelector: {matchLabels: {team: a}}}, {podSelector: {matchLabels: {app: b}}}]}",
        (PodSelector(ALL, namespaces=labels(team="a")), PodSelector(labels(app="b"), namespace="shop")),
        None,
    ),
    ('{from: [{podSelector: {matchLabels: {app: ""}}}]}', (PodSelector(labels(app=""), namespace="shop"),), None),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}", (block("10.0.0.0/8"),), None),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: }}]}", (block("10.0.0.0/8"),), None),
    ("{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}", (block("10.0.0.0/8"),), None),
    ("{from: [{ipBlock: {cidr: '::/0', except: ['fd00::/8']}}]}", (block("::/0", "fd00::/8"),), None),
    (
        "{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 10.1.0.0/16, 192.0.2.1/32]}}]}",
        (block("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"),),
        None,
    ),
]


@pytest.mark.parametrize(("rule", "peers", "ports"), RULES)
def test_rules(rule: str, peers: tuple[Peer, ...] | None, ports: tuple[Port, ...] | None) -> None:
    (parsed,) = parse(from_yaml(f"{{podSelector: {{}}, ingress: [{rule}]}}"), HERE).rules
    assert parsed.peers == peers
    assert parsed.ports == ports
    egress = rule.replace("from:", "to:")
    (parsed,) = parse(from_yaml(f"{{podSelector: {{}}, policyTypes: [Egress], egress: [{egress}]}}"), HERE).rules
    assert parsed.peers == peers
    assert parsed.ports == ports


# a matchExpressions list → the labels it holds for, out of these
LABEL_SETS: list[dict[str, str]] = [{}, {"k": ""}, {"k": "a"}, {"k": "b"}, {"other": "a"}]
EXPRESSIONS: list[tuple[str, list[int]]] = [
    ("[]", [0, 1, 2, 3, 4]),
    ("[{key: k, operator: In, values: [a]}]", [2]),
    ('[{key: k, operator: In, values: [a, ""]}]', [1, 2]),
    ("[{key: k, operator: NotIn, values: [a]}]", [0, 1, 3, 4]),
    ("[{key: k, operator: Exists}]", [1, 2, 3]),
    ("[{key: k, operator: DoesNotExist, values: []}]", [0, 4]),
    ("[{key: k, operator: Exists}, {key: k, operator: NotIn, values: [a, b]}]", [1]),
    ("[{key: k, operator: Exists}, {key: k, operator: DoesNotExist}]", []),
]


@pytest.mark.parametrize(("expressions", "held"), EXPRESSIONS)
def test_operators(expressions: str, held: list[int]) -> None:
    subject = parse(from_yaml(f"{{podSelector: {{matchExpressions: {expressions}}}}}"), HERE).subject
    assert [i for i, labels in enumerate(LABEL_SETS) if subject.pods.matches(labels)] == held


# spec (or whole manifest) → the paths of its problems, and a word of the first message
INVALID: list[tuple[str, list[str], str]] = [
    ("[]", ["spec"], "must be an object, not a list"),
    ("{podselector: {}}", ["spec.podselector"], "did you mean podSelector?"),
    ("{podSelector: []}", ["spec.podSelector"], "must be an object"),
    ("{podSelector: {matchLabel: {}}}", ["spec.podSelector.matchLabel"], "unknown field"),
    ("{podSelector: {matchLabels: [a]}}", ["spec.podSelector.matchLabels"], "must be an object, not a list"),
    ("{podSelector: {matchLabels: {a: 1}}}", ["spec.podSelector.matchLabels[a]"], "put it in quotes"),
    ("{podSelector: {matchLabels: {a: yes}}}", ["spec.podSelector.matchLabels[a]"], "not a boolean"),
    ("{podSelector: {matchLabels: {a: }}}", ["spec.podSelector.matchLabels[a]"], "not null"),
    ("{podSelector: {matchLabels: {1: a}}}", ["spec.podSelector.matchLabels[1]"], "the key must be a string"),
    ("{podSelector: {matchLabels: {-a: b}}}", ["spec.podSelector.matchLabels[-a]"], "label key"),
    ("{podSelector: {matchLabels: {a: b c}}}", ["spec.podSelector.matchLabels[a]"], "label value"),
    ("{podSelector: {matchLabels: {X/a/b: c}}}", ["spec.podSelector.matchLabels[X/a/b]"], "prefix"),
    ("{podSelector: {matchLabels: {Up.io/a: c}}}", ["spec.podSelector.matchLabels[Up.io/a]"], "prefix"),
    ("{podSelector: {matchLabels: {/a: c}}}", ["spec.podSelector.matchLabels[/a]"], "prefix"),
    ("{podSelector: {matchExpressions: {}}}", ["spec.podSelector.matchExpressions"], "must be a list"),
    ("{podSelector: {matchExpressions: [{key: a}]}}", ["spec.podSelector.matchExpressions[0].operator"], "In, NotIn"),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
        ["spec.podSelector.matchExpressions[0].operator"],
        "must be In",
    ),
    (
        "{podSelector: {matchExpressions: [{operator: Exists}, {key: '', operator: Exists}]}}",
        ["spec.podSelector.matchExpressions[0].key", "spec.podSelector.matchExpressions[1].key"],
        "must be given",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In}, {key: a, operator: NotIn, values: []}]}}",
        ["spec.podSelector.matchExpressions[0].values", "spec.podSelector.matchExpressions[1].values"],
        "must be given",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        ["spec.podSelector.matchExpressions[0].values"],
        "must not be given",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In, values: [1, null, 'b c']}]}}",
        [f"spec.podSelector.matchExpressions[0].values[{i}]" for i in range(3)],
        "must be a string",
    ),
    ("{policyTypes: Ingress}", ["spec.policyTypes"], "must be a list"),
    ("{policyTypes: [ingress, null]}", ["spec.policyTypes[0]", "spec.policyTypes[1]"], "Ingress or Egress"),
    ("{policyTypes: [1]}", ["spec.policyTypes[0]"], "must be a string"),
    ("{policyTypes: [Ingress, Egress, Egress]}", ["spec.policyTypes"], "more than two"),
    ("{ingress: {}}", ["spec.ingress"], "must be a list"),
    ("{ingress: [null]}", ["spec.ingress[0]"], "not null"),
    ("{ingress: [allow]}", ["spec.ingress[0]"], "must be an object, not a string"),
    ("{ingress: [{to: []}]}", ["spec.ingress[0].to"], "unknown field"),
    ("{egress: [{from: []}]}", ["spec.egress[0].from"], "unknown field"),
    ("{ingress: [{from: [{}, null]}]}", ["spec.ingress[0].from[0]", "spec.ingress[0].from[1]"], "must have"),
    ("{ingress: [{from: [{podSelector: null}]}]}", ["spec.ingress[0].from[0]"], "must have"),
    ("{ingress: [{from: {podSelector: {}}}]}", ["spec.ingress[0].from"], "must be a list"),
    (
        "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        ["spec.ingress[0].from[0]"],
        "both ipBlock and a selector",
    ),
    ("{ingress: [{from: [{ipBlock: {}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "must be given"),
    ("{ingress: [{from: [{ipBlock: {cidr: ''}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "must be given"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "must be a string"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "CIDR block"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "CIDR"),
    ("{ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "CIDR"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "CIDR"),
    ("{ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "v4"),
    ("{ingress: [{from: [{ipBlock: {cidr: 'fe80::%1/64'}}]}]}", ["spec.ingress[0].from[0].ipBlock.cidr"], "CIDR"),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/9, '::/0', 0.0.0.0/0, x]}}]}]}",
        [f"spec.ingress[0].from[0].ipBlock.except[{i}]" for i in range(5)],
        "must lie within cidr 10.0.0.0/8",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: '::/0', except: [10.0.0.0/8]}}]}]}",
        ["spec.ingress[0].from[0].ipBlock.except[0]"],
        "must lie within",
    ),
    (
        "{egress: [{to: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: null, not: 1}}]}]}",
        ["spec.egress[0].to[1].ipBlock.not"],
        "unknown field",
    ),
    ("{ingress: [{ports: {port: 80}}]}", ["spec.ingress[0].ports"], "must be a list"),
    ("{ingress: [{ports: [null]}]}", ["spec.ingress[0].ports[0]"], "not null"),
    ("{ingress: [{ports: [80]}]}", ["spec.ingress[0].ports[0]"], "must be an object, not a number"),
    ("{ingress: [{ports: [{Port: 80}]}]}", ["spec.ingress[0].ports[0].Port"], "did you mean port?"),
    ("{ingress: [{ports: [{protocol: tcp}]}]}", ["spec.ingress[0].ports[0].protocol"], "TCP, UDP or SCTP"),
    ("{ingress: [{ports: [{protocol: ICMP}]}]}", ["spec.ingress[0].ports[0].protocol"], "TCP, UDP or SCTP"),
    ("{ingress: [{ports: [{protocol: ''}]}]}", ["spec.ingress[0].ports[0].protocol"], "TCP, UDP or SCTP"),
    ("{ingress: [{ports: [{protocol: 6}]}]}", ["spec.ingress[0].ports[0].protocol"], "must be a string"),
    (
        "{ingress: [{ports: [{port: 0}, {port: 65536}, {port: -1}, {port: true}, {port: 1.5}, {port: []}]}]}",
        [f"spec.ingress[0].ports[{i}].port" for i in range(6)],
        "must be 1–65535",
    ),
    (
        "{ingress: [{ports: [{port: HTTP}, {port: a--b}, {port: -a}, {port: sixteen-letters-}, {port: ''}]}]}",
        [f"spec.ingress[0].ports[{i}].port" for i in range(5)],
        "port name",
    ),
    ("{ingress: [{ports: [{port: '80'}]}]}", ["spec.ingress[0].ports[0].port"], "must not be in quotes"),
    ("{ingress: [{ports: [{port: 80, endPort: 79}]}]}", ["spec.ingress[0].ports[0].endPort"], "below port 80"),
    ("{ingress: [{ports: [{port: 80, endPort: 65536}]}]}", ["spec.ingress[0].ports[0].endPort"], "1–65535"),
    ("{ingress: [{ports: [{port: 80, endPort: '90'}]}]}", ["spec.ingress[0].ports[0].endPort"], "an integer"),
    ("{ingress: [{ports: [{endPort: 90}]}]}", ["spec.ingress[0].ports[0].endPort"], "without port"),
    ("{ingress: [{ports: [{port: http, endPort: 90}]}]}", ["spec.ingress[0].ports[0].endPort"], "with a port name"),
    (
        "{policyTypes: [Ingress], ingress: [{}], egress: [{ports: [{port: 0}], to: [{}]}]}",
        ["spec.egress[0].ports[0].port", "spec.egress[0].to[0]"],
        "must have",
    ),
]


@pytest.mark.parametrize(("spec", "paths", "message"), INVALID)
def test_every_problem_is_reported(spec: str, paths: list[str], message: str) -> None:
    with pytest.raises(InvalidPolicy) as raised:
        parse(from_yaml(spec), HERE)
    assert sorted(p.path for p in raised.value.problems) == sorted(paths)
    assert message in raised.value.problems[0].message
    assert str(raised.value.problems[0]) in str(raised.value)


METADATA: list[tuple[dict[str, Any], list[str]]] = [
    ({"name": None}, ["metadata.name"]),
    ({"name": ""}, ["metadata.name"]),
    ({"name": "Web"}, ["metadata.name"]),
    ({"name": "a" * 254}, ["metadata.name"]),
    ({"name": 5}, ["metadata.name"]),
    ({"namespace": "a.b"}, ["metadata.namespace"]),
    ({"namespace": 5}, ["metadata.namespace"]),
    ({"labels": {"a": 1, "b c": "d"}}, ["metadata.labels[a]", "metadata.labels[b c]"]),
    ({"annotations": {"a": True}}, ["metadata.annotations[a]"]),
    ({"colour": "red"}, ["metadata.colour"]),
]


@pytest.mark.parametrize(("metadata", "paths"), METADATA)
def test_metadata(metadata: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(InvalidPolicy) as raised:
        parse(manifest({}, **metadata), HERE)
    assert [p.path for p in raised.value.problems] == paths


@pytest.mark.parametrize("raw", [None, [], "text", 5, {}, {"kind": "Pod", "metadata": {"name": "a"}}])
def test_other_documents_are_refused(raw: Any) -> None:
    with pytest.raises(InvalidPolicy):
        parse(raw, HERE)
    assert salvage(raw, HERE) is None


def test_namespace_defaults() -> None:
    for namespace in (None, ""):
        policy = parse(manifest({"ingress": [{"from": [{"podSelector": {}}]}]}, namespace=namespace), HERE)
        assert policy.ref == ObjectRef("NetworkPolicy", "default", "p")
        assert policy.subject.namespace == "default"
        assert policy.rules[0].peers == (PodSelector(ALL, namespace="default"),)


def test_what_the_api_server_adds_is_no_problem() -> None:
    added = {"uid": "x", "resourceVersion": "1", "generation": 1, "creationTimestamp": "t", "managedFields": [{}]}
    assert parse({**manifest({}, **added), "status": {}}, HERE).isolates == {IN}


BAD_RULE = "ingress: [{ports: [{port: 0}]}]"
# An invalid spec → the directions it isolates all the same; None: nothing is certain of it.
SALVAGED: list[tuple[str, set[Direction] | None]] = [
    ("{podSelector: {}, %s}", {IN}),
    ("{podSelector: {}, policyTypes: [Egress], %s}", {OUT}),
    ("{podSelector: {}, policyTypes: [Ingress, Egress], %s}", {IN, OUT}),
    ("{podSelector: {}, egress: [{}], %s}", {IN, OUT}),
    ("{podSelector: {}, egress: [{to: [{}]}], %s}", {IN, OUT}),
    ("{podSelector: {}, egress: {}, %s}", {IN, OUT}),
    ("{podSelector: {}, policyTypes: [egress], %s}", {IN, OUT}),
    ("{podSelector: {}, policyTypes: Egress, %s}", {IN, OUT}),
    ("{podSelector: {}, policyTypes: [Egress, Egress, Egress], %s}", {IN, OUT}),
    ("{podSelector: {}, policytypes: [Egress], %s}", {IN, OUT}),
    ("{podSelector: {}, ingress: {}}", {IN}),
    ("{%s}", {IN}),
    ("{podSelector: , %s}", {IN}),
    ("{podSelectors: {matchLabels: {a: b}}, %s}", None),
    ("{podSelector: {matchLabels: {a: 1}}, %s}", None),
    ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", None),
    ("{podSelector: [], %s}", None),
    ("[]", None),
]


@pytest.mark.parametrize(("spec", "isolates"), SALVAGED)
def test_salvage(spec: str, isolates: set[Direction] | None) -> None:
    raw = from_yaml(spec.replace("%s", BAD_RULE))
    policy = salvage(raw, HERE)
    if isolates is None:
        assert policy is None
        return
    assert policy is not None
    assert policy.isolates == isolates
    assert policy.rules == ()
    assert policy.subject == PodSelector(ALL, namespace="shop")
    with pytest.raises(InvalidPolicy) as raised:
        parse(raw, HERE)
    assert policy.problem.startswith(str(raised.value.problems[0]))


SALVAGED_METADATA: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"name": "Not_Valid"}, True),
    ({"name": None}, False),
    ({"name": 7}, False),
    ({"namespace": "a.b"}, False),
    ({"namespace": 7}, False),
    ({"labels": {"a": 1}}, True),
]


@pytest.mark.parametrize(("metadata", "saved"), SALVAGED_METADATA)
def test_salvage_needs_a_name_and_namespace(metadata: dict[str, Any], saved: bool) -> None:
    spec = yaml.safe_load(f"{{podSelector: {{}}, {BAD_RULE}}}")
    assert (salvage(manifest(spec, **metadata), HERE) is not None) is saved


def test_nothing_to_salvage_of_a_valid_policy_or_another_kind() -> None:
    assert salvage(manifest({}), HERE) is None
    bad = yaml.safe_load(f"{{podSelector: {{}}, {BAD_RULE}}}")
    assert salvage({**manifest(bad), "apiVersion": "crd.projectcalico.org/v1"}, HERE) is None
    assert salvage({**manifest(bad), "extra": 1}, HERE) is not None


@given(strategies.policies())
@settings(max_examples=100)
def test_drawn_policies_are_valid(raw: strategies.Raw) -> None:
    policy = parse(raw, HERE)
    assert policy.isolates
    assert all(rule.ref.direction in policy.isolates for rule in policy.rules)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70000) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("podSelector", "ipBlock", "cidr", "ports", "port", "key", "from")), inner)
    ),
    max_leaves=8,
)


@given(raw=strategies.policies(), junk=JSON, data=st.data())
@settings(max_examples=300)
def test_junk_anywhere_is_reported_and_never_opens(raw: strategies.Raw, junk: Any, data: st.DataObject) -> None:
    """One value somewhere in a valid policy replaced: parsed or refused, never another exception."""
    spots: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            spots.append((value, key))
            walk(value[key])

    walk(raw)
    holder, key = data.draw(st.sampled_from(spots))
    holder[key] = junk
    try:
        parse(raw, HERE)
    except InvalidPolicy as invalid:
        assert invalid.problems
        saved = salvage(raw, HERE)
        assert saved is None or (saved.rules == () and saved.isolates and saved.problem)
