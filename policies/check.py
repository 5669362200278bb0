"""What `gatehouse policy check` says of manifests: errors with file, line and field, and warnings of likely slips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from policies.fields import InvalidPolicy
from policies.kinds import PolicyKind, kind_of
from policies.model import ObjectRef, Origin, Policy
from policies.slips import Surroundings, slips, unlearned


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
    for policy, message in unlearned([policy for policies in valid.values() for policy in policies]):
        findings.append(_finding("warning", policy.origin, str(policy.ref), "", message))
    errors = sum(f.severity == "error" for f in findings)
    return Report(count, errors, len(findings) - errors, tuple(findings))


def _name(raw: Mapping[str, Any], kind: PolicyKind) -> str:
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    namespace = str(metadata.get("namespace") or "default") if kind.namespaced else ""
    return str(ObjectRef(kind.name, namespace, str(metadata.get("name") or "?")))


def _finding(severity: Literal["error", "warning"], origin: Origin, policy: str, path: str, message: str) -> Finding:
    return Finding(severity, origin.file, origin.line, policy, path, message)
