"""Selectors of cilium.io/v2: label keys with a source, and labels that stand for namespace and service account.

Keys are `source:key`; without a source, or with `any:`, they are looked for among all labels, which here are the pod's
(`k8s:`). Some keys are no labels of pods, whatever a pod calls its own: its namespace, its namespace's labels, its
service account, its cluster. `reserved:` keys are names of remotes that are no pods.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policies.fields import Field
from policies.labelselector import parse_selector, requirement, selector
from policies.model import SERVICE_ACCOUNT, Entity, EntityPeer, LabelSelector, Operator, Peer, PodSelector, Requirement
from policies.syntax import label_key_problem

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
CLUSTER = "io.cilium.k8s.policy.cluster"
METADATA_NAME = "kubernetes.io/metadata.name"
OWN_CLUSTER = "default"
"""Cilium's name for a cluster that was given none."""

_CILIUM = "io.cilium.k8s."
_RESERVED = "reserved:"
_ALL = "all"
_SOURCES = ("", "any", "k8s")


class Selected(msgspec.Struct, frozen=True):
    """A selector taken apart. `namespaces`: None where it says nothing of them."""

    pods: LabelSelector
    namespaces: frozenset[Requirement] | None
    reserved: tuple[Requirement, ...]


def key_problem(key: str) -> str | None:
    """What is wrong with a label key of an endpoint selector."""
    source, bare = _split(key)
    if source == "reserved":
        known = bare == _ALL or bare in set(Entity) - {Entity.CLUSTER}
        return None if known else f"no reserved label is called {bare!r}"
    if source not in _SOURCES:
        return f"labels of source {source!r} are not supported: pods have k8s: labels"
    if bare.startswith(NAMESPACE_LABELS):
        return label_key_problem(bare.removeprefix(NAMESPACE_LABELS))
    if bare.startswith(_CILIUM) and bare not in (SERVICE_ACCOUNT, CLUSTER):
        return f"label {bare} is not supported"
    return label_key_problem(bare)


def parse_peer(field: Field, home: str) -> Peer | None:
    """A member of fromEndpoints or toEndpoints; None is any remote. `home`: the policy's namespace, "" for none.

    A selector that says nothing of namespaces means the policy's own, or where it has none every namespace.
    """
    if not field.given:
        field.problem("must be an object, not null (write {} for every pod)")
    found = _parse(field)
    if found.reserved:
        return _reserved_peer(field, found)
    if found.namespaces is None:
        return PodSelector(found.pods, namespace=home) if home else PodSelector(found.pods, namespaces=LabelSelector())
    name = _one_name(found.namespaces)
    if name is not None:
        return PodSelector(found.pods, namespace=name)
    return PodSelector(found.pods, namespaces=selector(found.namespaces))


def parse_subject(field: Field, home: str) -> PodSelector | None:
    """An endpointSelector; None where it selects what is no pod, so that there is nothing to enforce it on."""
    found = _parse(field)
    if not all(one.matches({}) for one in found.reserved):  # no pod has such a label
        return None
    if not home:
        return PodSelector(found.pods, namespaces=selector(found.namespaces or frozenset()))
    asked = found.namespaces or frozenset()
    if not all(one.matches({METADATA_NAME: home}) for one in asked if one.key == METADATA_NAME):
        field.problem(f"must not name another namespace than the policy's own, {home}")
    labels = frozenset(one for one in asked if one.key != METADATA_NAME)
    if not labels:
        return PodSelector(found.pods, namespace=home)
    return PodSelector(found.pods, namespaces=selector(labels | {requirement(METADATA_NAME, Operator.IN, (home,))}))


def parse_plain(field: Field, *sources: str) -> LabelSelector:
    """A selector of nodes or services, whose keys may have one of these sources, any: or k8s: in front."""
    if not field.given:
        field.problem("must be given (write {} for all)")

    def check(key: str) -> str | None:
        source, bare = _split(key)
        if source not in (*_SOURCES, *sources):
            return f"labels of source {source!r} are not supported here"
        return label_key_problem(bare)

    return _bare(parse_selector(field, check).requirements)


# ---- inside


def _split(key: str) -> tuple[str, str]:
    source, colon, bare = key.partition(":")
    return (source, bare) if colon else ("", key)


def _parse(field: Field) -> Selected:
    pods: list[Requirement] = []
    namespaces: list[Requirement] = []
    reserved: list[Requirement] = []
    for one in sorted(parse_selector(field, key_problem).requirements, key=lambda r: (r.key, r.operator)):
        bare = _split(one.key)[1]
        if one.key.startswith(_RESERVED):
            reserved.append(one)
        elif bare == NAMESPACE:
            if one.operator is Operator.DOES_NOT_EXIST:
                field.problem(f"{one.key} must not be asked to be absent: every pod has a namespace")
            namespaces.append(_renamed(one, METADATA_NAME))
        elif bare.startswith(NAMESPACE_LABELS):
            namespaces.append(_renamed(one, bare.removeprefix(NAMESPACE_LABELS)))
        elif bare == CLUSTER:
            if not one.matches({one.key: OWN_CLUSTER}):
                field.problem(f"{one.key}: there is one cluster, called {OWN_CLUSTER!r}; others are not supported")
        else:
            pods.append(_renamed(one, bare))
    return Selected(selector(frozenset(pods)), frozenset(namespaces) if namespaces else None, tuple(reserved))


def _renamed(one: Requirement, key: str) -> Requirement:
    return requirement(key, one.operator, tuple(sorted(one.values)))


def _bare(requirements: Iterable[Requirement]) -> LabelSelector:
    return selector(frozenset(_renamed(one, _split(one.key)[1]) for one in requirements))


def _one_name(requirements: frozenset[Requirement]) -> str | None:
    """The namespace, where exactly one is named and nothing else is asked of it."""
    if len(requirements) != 1:
        return None
    (one,) = requirements
    if one.key != METADATA_NAME or one.operator is not Operator.IN or len(one.values) != 1:
        return None
    return next(iter(one.values))


def _reserved_peer(field: Field, found: Selected) -> Peer | None:
    first = found.reserved[0]
    asked = first.matches({first.key: ""}) and not first.matches({})
    if len(found.reserved) > 1 or not asked or found.pods.requirements or found.namespaces is not None:
        field.problem(f"{first.key} must be asked for alone, and to be there")
        return EntityPeer(Entity.NONE)
    name = _split(first.key)[1]
    if name != _ALL and name not in set(Entity):
        return EntityPeer(Entity.NONE)  # noted already
    return None if name == _ALL else EntityPeer(Entity(name))
