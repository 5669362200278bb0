"""What `gatehouse policy check` says of manifests: errors with file, line and field, and warnings of likely slips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_interface
from itertools import pairwise
from typing import Any, Literal

import msgspec

from policies.describe import pods_text
from policies.evaluate import Namespaces, PodFacts, selects
from policies.fields import InvalidPolicy
from policies.model import Direction, NamedPort, ObjectRef, Origin, PodSelector, Policy, Protocol
from policies.networkpolicy import API_VERSION, KIND, parse

Slip = tuple[str, str]
"""Field path and message."""


class Finding(msgspec.Struct, frozen=True):
    """`path` is a field path such as spec.ingress[0].ports[1]; empty for the document."""

    severity: Literal["error", "warning"]
    file: str
    line: int
    policy: str
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        field = f"{self.path}: " if self.path else ""
        return f"{where}: {self.severity}: {self.policy}: {field}{self.message}"


class Report(msgspec.Struct, frozen=True):
    """`policies` counts those that were looked at."""

    policies: int
    errors: int
    warnings: int
    findings: tuple[Finding, ...]


class Surroundings(msgspec.Struct, frozen=True):
    """Pods and namespaces the manifests are meant for, where they are known: some slips show only against them."""

    pods: Sequence[PodFacts] | None = None
    namespaces: Namespaces | None = None


def check(documents: Iterable[tuple[Any, Origin]], around: Surroundings | None = None) -> Report:
    """Look at every NetworkPolicy among parsed YAML documents; other kinds are passed over."""
    around = around or Surroundings()
    findings: list[Finding] = []
    first: dict[ObjectRef, Origin] = {}
    count = 0
    for raw, origin in documents:
        if not is_policy(raw):
            continue
        count += 1
        try:
            policy = parse(raw, origin)
        except InvalidPolicy as invalid:
            findings += [_finding("error", origin, _name(raw), p.path, p.message) for p in invalid.problems]
            continue
        name = str(policy.ref)
        if policy.ref in first:
            findings.append(_finding("error", origin, name, "metadata.name", f"given already at {first[policy.ref]}"))
        first.setdefault(policy.ref, origin)
        findings += [_finding("warning", origin, name, path, text) for path, text in slips(raw, policy, around)]
    errors = sum(f.severity == "error" for f in findings)
    return Report(count, errors, len(findings) - errors, tuple(findings))


def is_policy(raw: Any) -> bool:
    """Whether a document means to be a NetworkPolicy of the API that is understood here."""
    if not isinstance(raw, Mapping) or raw.get("kind") != KIND:
        return False
    # Calico and others have a kind of the same name in an API group of their own.
    group = str(raw.get("apiVersion", "")).partition("/")[0]
    return group in ("", API_VERSION.partition("/")[0], "extensions")


def slips(raw: Mapping[str, Any], policy: Policy, around: Surroundings) -> Iterator[Slip]:
    """Warnings about a valid policy."""
    spec = raw.get("spec") or {}
    yield from _ignored_sections(spec, policy)
    for section, peer_field in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(section) or ()):
            path = f"spec.{section}[{i}].{peer_field}"
            peers = rule.get(peer_field) or []
            yield from _split_peers(peers, path)
            yield from _host_bits(peers, path)
    if around.pods is not None:
        yield from _unselected(policy, around.pods, around.namespaces or {})
        yield from _undeclared_names(policy, around.pods)


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


def _unselected(policy: Policy, pods: Sequence[PodFacts], namespaces: Namespaces) -> Iterator[Slip]:
    if not any(selects(policy.subject, pod, namespaces) for pod in pods):
        yield "spec.podSelector", f"selects no pod: there are no {_plural(policy.subject)}"
    for rule in policy.rules:
        peer_field = "from" if rule.ref.direction is Direction.INGRESS else "to"
        for i, peer in enumerate(rule.peers or ()):
            if isinstance(peer, PodSelector) and not any(selects(peer, pod, namespaces) for pod in pods):
                path = f"spec.{rule.ref.direction}[{rule.ref.index}].{peer_field}[{i}]"
                yield path, f"matches nothing: there are no {_plural(peer)}"


def _plural(selector: PodSelector) -> str:
    return pods_text(selector).replace("all pods", "pods", 1)


def _undeclared_names(policy: Policy, pods: Sequence[PodFacts]) -> Iterator[Slip]:
    declared = {(port.name, port.protocol) for pod in pods for port in pod.ports}
    for rule in policy.rules:
        for i, port in enumerate(rule.ports or ()):
            if isinstance(port, NamedPort) and (port.name, port.protocol) not in declared:
                protocol = Protocol.BY_NUMBER[port.protocol]
                path = f"spec.{rule.ref.direction}[{rule.ref.index}].ports[{i}]"
                yield path, f"matches nothing: no pod has a {protocol} port named {port.name}"


def _name(raw: Mapping[str, Any]) -> str:
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    return str(ObjectRef(KIND, str(metadata.get("namespace") or "default"), str(metadata.get("name") or "?")))


def _finding(severity: Literal["error", "warning"], origin: Origin, policy: str, path: str, message: str) -> Finding:
    return Finding(severity, origin.file, origin.line, policy, path, message)
