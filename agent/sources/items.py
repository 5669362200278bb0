"""One object as it is written → an Item: the object, or what is wrong with it and which object it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from agent.objects import Object, PolicySet, Problem
from agent.sources import clusterstate, endpointslices, nodes, pods, schema, secrets, services
from agent.sources.documents import JsonSource, YamlSource
from agent.sources.explain import type_error
from agent.sources.findings import CLUSTER_SCOPED, Findings
from agent.sources.yaml_reader import BadYaml
from policies.fields import InvalidPolicy
from policies.kinds import KINDS, PolicyKind
from policies.model import ObjectRef, Origin, Policy

Wrong = Sequence[tuple[str, str]]  # (field path, message)


class Item(msgspec.Struct, frozen=True, gc=False):
    """One object as it is written, or a part of the file in which no object can be told.

    `object` is None where it is not valid; `isolating` is then what is certain of a policy.
    `unidentified`: it may be any object that this file had before.
    """

    origin: Origin
    ref: ObjectRef | None = None
    object: Object | None = None
    isolating: Policy | PolicySet | None = None
    problems: tuple[Problem, ...] = ()
    unidentified: bool = False

    def moved(self, by: int) -> Item:
        """The same, so many lines further down."""
        return Item(
            Origin(self.origin.file, self.origin.line + by),
            self.ref,
            _moved(self.object, by),
            _moved(self.isolating, by),
            tuple(msgspec.structs.replace(p, line=p.line + by) for p in self.problems),
            self.unidentified,
        )


def _moved(value: Any, by: int) -> Any:
    if value is None:
        return None
    moved = msgspec.structs.replace(value, origin=Origin(value.origin.file, value.origin.line + by))
    if isinstance(moved, PolicySet):
        moved = msgspec.structs.replace(moved, policies=tuple(_moved(policy, by) for policy in moved.policies))
    return moved


class Written(msgspec.Struct, frozen=True):
    """Values of one object, where its text begins, and how many lines of the file stand before its document."""

    source: YamlSource | JsonSource
    origin: Origin
    before: int

    def problems(self, ref: ObjectRef | None, wrong: Wrong, *, warning: bool = False) -> tuple[Problem, ...]:
        if not wrong:
            return ()
        subject = str(ref) if ref else ""
        return tuple(
            Problem(self.origin.file, line, message, path, subject, warning=warning)
            for (path, message), line in zip(wrong, self.lines([path for path, _ in wrong]), strict=True)
        )

    def lines(self, paths: list[str]) -> list[int]:
        """The lines of fields in the file, from 1."""
        return [line + self.before + 1 for line in self.source.lines(paths)]

    def refused(self, ref: ObjectRef | None, wrong: Wrong, isolating: Policy | PolicySet | None = None) -> Item:
        return Item(self.origin, ref, None, isolating, self.problems(ref, wrong), unidentified=ref is None)


def item(written: Written) -> Item:
    try:
        head = written.source.convert(schema.Envelope)
    except msgspec.ValidationError as error:
        raw = written.source.value()
        return written.refused(_named(raw), [type_error(error, raw)])
    kind, version = head.kind or "", head.api_version or ""
    if kind not in VERSIONS:
        return _unknown_kind(written, kind, version)
    if version not in VERSIONS[kind]:
        return _unknown_version(written, head)
    return _policy(written, KINDS[kind], _ref(head)) if kind in KINDS else _object(written, kind, _ref(head))


def _object(written: Written, kind: str, ref: ObjectRef | None) -> Item:
    findings = Findings()
    try:
        found = _READERS[kind](written, findings)
    except msgspec.ValidationError as error:
        return written.refused(ref, [type_error(error, written.source.value())])
    if findings.errors:
        return written.refused(ref, findings.errors)
    return Item(written.origin, found.ref, found, problems=written.problems(found.ref, findings.warnings, warning=True))


def broken(bad: BadYaml, file: str, before: int) -> Item:
    """An item for text that cannot be read as values: which object it is, if that much is certain."""
    ref = _named(bad.partial)
    origin = Origin(file, bad.faults[0].line + before + 1)
    subject = str(ref) if ref else ""
    return Item(
        origin,
        ref,
        isolating=_isolating(bad, KINDS[ref.kind], ref, origin) if ref is not None and ref.kind in KINDS else None,
        problems=tuple(Problem(file, f.line + before + 1, f.message, f.path, subject) for f in bad.faults),
        unidentified=ref is None and _may_be_ours(bad.partial),
    )


def _policy(written: Written, kind: PolicyKind, ref: ObjectRef | None) -> Item:
    raw = written.source.value()
    try:
        policies = kind.parse(raw, written.origin)
    except InvalidPolicy as invalid:
        wrong = [(problem.path, problem.message) for problem in invalid.problems]
        isolating = _held(kind, ref, kind.salvage(raw, written.origin), salvaged=True)
        return written.refused(ref, wrong, isolating)
    own = policies[0].ref
    unenforced = [_unenforced(policy) for policy in policies if policy.problem]
    problems = written.problems(own, unenforced, warning=True)
    return Item(written.origin, own, _held(kind, own, policies), problems=problems)


def _held(
    kind: PolicyKind, ref: ObjectRef | None, policies: tuple[Policy, ...], *, salvaged: bool = False
) -> Policy | PolicySet | None:
    """The policies of one object as one value."""
    if ref is None or not policies:
        return None
    return PolicySet(ref, policies[0].origin, policies, salvaged) if kind.several else policies[0]


def _unenforced(policy: Policy) -> tuple[str, str]:
    """Where a valid policy that is not enforced says so: field path and message."""
    path, _, message = policy.problem.partition(": ")
    return path, message


def _unknown_kind(written: Written, kind: str, version: str) -> Item:
    """A misspelling is one of the kind and perhaps of its group; a like kind of quite another group is meant so."""
    if not kind:
        return written.refused(None, [("kind", "must be given")])
    meant = _meant(kind)
    if meant and (not version or get_close_matches(_group(version), map(_group, VERSIONS[meant]), cutoff=0.7)):
        return written.refused(None, [("kind", f"unknown kind {kind!r}, did you mean {meant}?")])
    return _not_handled(written, f"not handled: kind {kind}")


def _unknown_version(written: Written, head: schema.Envelope) -> Item:
    """A kind of the same name in another API group is another kind; extensions/… once held NetworkPolicy itself."""
    kind, version = head.kind or "", head.api_version or ""
    policy = KINDS.get(kind)
    wanted = " or ".join(VERSIONS[kind])
    same = policy.is_of(version) if policy else _group(version) in map(_group, VERSIONS[kind])
    if version and not same:
        return _not_handled(written, f"not handled: kind {kind} of {version}")
    wrong = [("apiVersion", f"must be {wanted}" + (f", not {version!r}" if version else ""))]
    ref = _ref(head)
    if policy is None:
        return written.refused(ref, wrong)
    # What selects the pods is the same in every version there was.
    closing = policy.closing(written.source.value(), written.origin, wrong[0][1])
    return written.refused(ref, wrong, _held(policy, ref, closing, salvaged=True))


def _group(version: str) -> str:
    """Of an apiVersion; "" is the core group."""
    return version.rpartition("/")[0]


def _not_handled(written: Written, message: str) -> Item:
    return Item(written.origin, problems=written.problems(None, [("kind", message)], warning=True))


def _isolating(bad: BadYaml, kind: PolicyKind, ref: ObjectRef, origin: Origin) -> Policy | PolicySet | None:
    """Of a policy whose text breaks off, if what selects its pods is whole: they are denied everything."""
    if any(fault.path.startswith((f"spec.{kind.selector}", "metadata")) for fault in bad.faults):
        return None
    problem = "; ".join(fault.message for fault in bad.faults)
    return _held(kind, ref, kind.closing(bad.partial, origin, problem), salvaged=True)


def _may_be_ours(partial: Any) -> bool:
    """Whether text of which this much was read can hold an object that is handled."""
    kind = partial.get("kind") if isinstance(partial, dict) else None
    # Where the text breaks off right behind it, the next words are read as part of it: then it is not known either.
    if not isinstance(kind, str) or not kind.isalnum():
        return True
    return kind in VERSIONS or kind.endswith("List") or _meant(kind) is not None


def _ref(head: schema.Envelope) -> ObjectRef | None:
    """Of an object that may not be valid; None without a name."""
    if not head.kind or head.metadata is None or not head.metadata.name:
        return None
    namespace = "" if head.kind in CLUSTER_SCOPED else head.metadata.namespace or "default"
    return ObjectRef(head.kind, namespace, head.metadata.name)


def _named(raw: Any) -> ObjectRef | None:
    """The object that values are about, whatever else is wrong with them."""
    try:
        head = msgspec.convert(raw, schema.Envelope)
    except msgspec.ValidationError:
        return None
    return _ref(head) if head.kind in VERSIONS else None


def _meant(kind: str) -> str | None:
    """The kind of which this one is a misspelling."""
    close = get_close_matches(kind.lower(), _LOWER, n=1, cutoff=0.87)
    return _LOWER[close[0]] if close else None


_READERS: dict[str, Callable[[Written, Findings], Object]] = {
    "Namespace": lambda w, f: pods.namespace(w.source.convert(schema.NamespaceDoc), w.origin, f),
    "Node": lambda w, f: nodes.node(w.source.convert(schema.NodeDoc), w.origin, f),
    "Pod": lambda w, f: pods.pod(w.source.convert(schema.PodDoc), w.origin, f),
    "Service": lambda w, f: services.service(w.source.convert(schema.ServiceDoc), w.origin, f),
    "EndpointSlice": lambda w, f: endpointslices.endpoint_slice(w.source.convert(schema.EndpointSliceDoc), w.origin, f),
    "Secret": lambda w, f: secrets.secret(w.source.convert(schema.SecretDoc), w.origin, f),
    "SecurityIdentity": lambda w, f: clusterstate.security_identity(
        w.source.convert(schema.SecurityIdentityDoc), w.origin, f
    ),
    "NodeEndpoints": lambda w, f: clusterstate.node_endpoints(w.source, w.origin, f),
}
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "Namespace": ("v1",),
    "Node": ("v1",),
    "Pod": ("v1",),
    "Service": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "Secret": ("v1",),
    "SecurityIdentity": ("gatehouse.io/v1alpha1",),
    "NodeEndpoints": ("gatehouse.io/v1alpha1",),
    **{kind.name: kind.versions for kind in KINDS.values()},
}
_LOWER = {kind.lower(): kind for kind in VERSIONS}
