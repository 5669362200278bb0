"""Likely slips in valid policies: what is probably not meant as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_interface
from itertools import pairwise
from typing import Any

import msgspec

from policies.cilium import policy as cilium
from policies.cilium.slips import cilium_slips
from policies.describe import pods_text
from policies.facts import Namespaces, PodFacts
from policies.kinds import PolicyKind
from policies.l7 import NamePattern
from policies.matching import selects
from policies.model import Direction, NamedPort, PodSelector, Policy, Protocol, Rule
from policies.networkpolicy import KIND

Slip = tuple[str, str]
"""Field path and message."""


class Surroundings(msgspec.Struct, frozen=True):
    """Pods and namespaces the manifests are meant for, where they are known: some slips show only against them."""

    pods: Sequence[PodFacts] | None = None
    namespaces: Namespaces | None = None


def slips(raw: Mapping[str, Any], kind: PolicyKind, policies: Sequence[Policy], around: Surroundings) -> Iterator[Slip]:
    """Warnings about a valid object."""
    paths = cilium.spec_paths(raw) if kind.several else ["spec"]
    for path, policy in zip(paths, policies, strict=True):
        if policy.problem:
            continue  # what is not enforced is said so
        if kind.several:
            yield from cilium_slips(raw, path)
        elif kind.name == KIND:
            yield from _network_policy_slips(raw.get("spec") or {}, policy)
        if around.pods is not None:
            yield from _unselected(f"{path}.{kind.selector}", policy, around.pods, around.namespaces or {})
            yield from _undeclared_names(policy, around.pods)


def unlearned(policies: Sequence[Policy]) -> Iterator[tuple[Policy, str]]:
    """Policies with toFQDNs to whose pods no rule about DNS can apply, and what to say of them. Addresses of names are
    learned from answers that pass the DNS proxy, and only such rules send them there."""
    learning = {p.subject.namespace for p in policies if any(r.l7 is not None and r.l7.dns for r in p.rules)}
    for policy in policies:
        where = policy.subject.namespace  # None: in several
        if None in learning or where in learning or (learning and where is None):
            continue
        asked = {peer for rule in policy.rules for peer in rule.peers or () if isinstance(peer, NamePattern)}
        if asked:
            yield (
                policy,
                (
                    f"nobody learns the addresses of {min(asked)}: no rule about these pods has rules.dns; allow them "
                    "their DNS server by a CiliumNetworkPolicy with rules.dns"
                ),
            )


def _network_policy_slips(spec: Mapping[str, Any], policy: Policy) -> Iterator[Slip]:
    yield from _ignored_sections(spec, policy)
    for section, peer_field in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(section) or ()):
            path = f"spec.{section}[{i}].{peer_field}"
            peers = rule.get(peer_field) or []
            yield from _split_peers(peers, path)
            yield from _host_bits(peers, path)


def _ignored_sections(spec: Mapping[str, Any], policy: Policy) -> Iterator[Slip]:
    for direction in Direction:
        if spec.get(direction) and direction not in policy.isolates:
            yield f"spec.{direction}", f"has no effect: policyTypes does not list {direction.capitalize()}"


def _split_peers(peers: list[Mapping[str, Any]], path: str) -> Iterator[Slip]:
    """Two list items where one with both selectors was probably meant: that allows far more."""
    for i, (peer, following) in enumerate(pairwise(peers)):
        if _selectors(peer) == {"namespaceSelector"} and _selectors(following) == {"podSelector"}:
            yield (
                f"{path}[{i + 1}]",
                "is a peer of its own: it adds pods of the policy's namespace and does not narrow the "
                "namespaceSelector before it (leave out its '-' to narrow)",
            )


def _selectors(peer: Mapping[str, Any]) -> set[str]:
    return {name for name, value in peer.items() if value is not None}


def _host_bits(peers: list[Mapping[str, Any]], path: str) -> Iterator[Slip]:
    for i, peer in enumerate(peers):
        block = peer.get("ipBlock") or {}
        fields = [("cidr", block.get("cidr")), *((f"except[{j}]", e) for j, e in enumerate(block.get("except") or ()))]
        for name, cidr in fields:
            if cidr is None:
                continue
            given = ip_interface(cidr)
            if given.ip != given.network.network_address:
                yield f"{path}[{i}].ipBlock.{name}", f"{cidr} has bits beyond its mask; it is read as {given.network}"


def _unselected(path: str, policy: Policy, pods: Sequence[PodFacts], namespaces: Namespaces) -> Iterator[Slip]:
    if not any(selects(policy.subject, pod, namespaces) for pod in pods):
        yield path, f"selects no pod: there are no {_plural(policy.subject)}"
    said = set()
    for rule in policy.rules:
        for i, peer in enumerate(rule.peers or ()):
            if isinstance(peer, PodSelector) and not any(selects(peer, pod, namespaces) for pod in pods):
                slip = _peer_path(rule, i), f"matches nothing: there are no {_plural(peer)}"
                if slip not in said:  # rules may share their peers
                    yield slip
                said.add(slip)


def _plural(selector: PodSelector) -> str:
    return pods_text(selector).replace("all pods", "pods", 1)


def _undeclared_names(policy: Policy, pods: Sequence[PodFacts]) -> Iterator[Slip]:
    declared = {(port.name, port.protocol) for pod in pods for port in pod.ports}
    names = {port.name for pod in pods for port in pod.ports}
    said = set()
    for rule in policy.rules:
        for i, port in enumerate(rule.ports or ()):
            if not isinstance(port, NamedPort) or (port.name, port.protocol) in declared:
                continue
            if rule.ref.policy.kind != KIND and port.name in names:
                continue  # of any protocol one is enough
            which = Protocol.BY_NUMBER[port.protocol] if rule.ref.policy.kind == KIND else ""
            path = f"{_rule_path(rule)}.ports[{i}]" if rule.ref.policy.kind == KIND else _rule_path(rule)
            slip = path, f"matches nothing: no pod has a {which} port named {port.name}".replace("a  ", "a ")
            if slip not in said:
                yield slip
            said.add(slip)


def _rule_path(rule: Rule) -> str:
    section = rule.ref.section or str(rule.ref.direction)
    return f"{'' if section.startswith('specs[') else 'spec.'}{section}[{rule.ref.index}]"


def _peer_path(rule: Rule, index: int) -> str:
    """Of a NetworkPolicy the peer, of other kinds, whose peers are in several lists, the rule."""
    if rule.ref.policy.kind != KIND:
        return _rule_path(rule)
    return f"{_rule_path(rule)}.{'from' if rule.ref.direction is Direction.INGRESS else 'to'}[{index}]"
