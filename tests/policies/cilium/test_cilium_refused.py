"""What slips in a CiliumNetworkPolicy are reported as, and what is salvaged of it."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_rules import (
    HERE,
    IN,
    OUT,
    manifest,
    with_rules,
)

from policies.cilium.policy import CLUSTERWIDE, parse, salvage
from policies.fields import InvalidPolicy
from policies.model import (
    Action,
    Direction,
)

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
