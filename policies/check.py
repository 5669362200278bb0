"""What `gatehouse policy check` says of manifests: errors with file, line and field, and warnings of likely slips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from policies.fields import InvalidPolicy
from policies.kinds import PolicyKind, kind_of
from policies.l7 import NamePattern
from policies.model import ObjectRef, Origin, Policy
from policies.slips import Surroundings, slips


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
        policy = f"{self.policy}: " if self.policy else ""
        return f"{where}: {self.severity}: {policy}{field}{self.message}"


class Report(msgspec.Struct, frozen=True):
    """`policies` counts those that were looked at."""

    policies: int
    errors: int
    warnings: int
    findings: tuple[Finding, ...]


def check(documents: Iterable[tuple[Any, Origin]], around: Surroundings | None = None) -> Report:
    """Look at every policy among parsed YAML documents; other kinds are passed over."""
    around = around or Surroundings()
    findings: list[Finding] = []
    valid: dict[ObjectRef, tuple[Policy, ...]] = {}
    count = 0
    for raw, origin in documents:
        kind = kind_of(raw)
        if kind is None:
            continue
        count += 1
        try:
            policies = kind.parse(raw, origin)
        except InvalidPolicy as invalid:
            findings += [_finding("error", origin, _name(raw, kind), p.path, p.message) for p in invalid.problems]
            continue
        ref = policies[0].ref
        if ref in valid:
            first = valid[ref][0].origin
            findings.append(_finding("error", origin, str(ref), "metadata.name", f"given already at {first}"))
        valid.setdefault(ref, policies)
        slipped = slips(raw, kind, policies, around)
        findings += [_finding("warning", origin, str(ref), path, text) for path, text in slipped]
    findings += _unlearned([policy for policies in valid.values() for policy in policies])
    errors = sum(f.severity == "error" for f in findings)
    return Report(count, errors, len(findings) - errors, tuple(findings))


def _unlearned(policies: Sequence[Policy]) -> Iterator[Finding]:
    """toFQDNs in policies to whose pods no rule for DNS can apply: addresses are known from answers to these alone."""
    learning = {p.subject.namespace for p in policies if any(r.l7 is not None and r.l7.dns for r in p.rules)}
    for policy in policies:
        if None in learning or policy.subject.namespace in learning or (learning and policy.subject.namespace is None):
            continue
        if any(isinstance(peer, NamePattern) for rule in policy.rules for peer in rule.peers or ()):
            message = (
                "toFQDNs matches nothing: no policy for these pods has a dns rule (toPorts of port 53 with rules.dns), "
                "and addresses are learned from the answers such a rule lets pass"
            )
            yield _finding("warning", policy.origin, str(policy.ref), "spec", message)


def _name(raw: Mapping[str, Any], kind: PolicyKind) -> str:
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    namespace = str(metadata.get("namespace") or "default") if kind.namespaced else ""
    return str(ObjectRef(kind.name, namespace, str(metadata.get("name") or "?")))


def _finding(severity: Literal["error", "warning"], origin: Origin, policy: str, path: str, message: str) -> Finding:
    return Finding(severity, origin.file, origin.line, policy, path, message)
