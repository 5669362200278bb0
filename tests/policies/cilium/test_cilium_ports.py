"""On which ports a rule of a CiliumNetworkPolicy is, and what is asked there."""

from __future__ import annotations

import pytest
from cilium_rules import (
    OUT,
    WHERE,
    one,
)

from policies.cilium.policy import NAMESPACED
from policies.l7 import L7, HeaderMatch, HttpRule, Mismatch
from policies.model import (
    Entity,
    EntityPeer,
    ObjectRef,
    Port,
    Rule,
    RuleRef,
)


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
