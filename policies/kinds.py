"""Every kind of policy: its versions, and how an object of it is read into policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from policies import clusternetworkpolicy, networkpolicy
from policies.cilium import policy as cilium
from policies.fields import InvalidPolicy
from policies.model import Origin, Policy

Read = Callable[[Any, Origin], tuple[Policy, ...]]
Spec = Mapping[str, Any]


class PolicyKind(msgspec.Struct, frozen=True):
    """`parse` raises InvalidPolicy; `salvage` gives what is certain of an invalid object, which may be nothing.

    `several`: an object may hold several policies. `others`: API groups that once had the same kind.
    """

    name: str
    versions: tuple[str, ...]
    parse: Read
    salvage: Read
    selector: str
    """The field of the spec that selects the pods."""
    closed: Callable[[Any], Spec]
    """From that field, a spec that denies these pods everything."""
    namespaced: bool = True
    several: bool = False
    others: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return self.versions[0].rpartition("/")[0]

    def is_of(self, api_version: str) -> bool:
        """Whether an apiVersion, good or not, means this kind: another group's kind of this name is another kind. What
        has no group is a slip: the core group has no policies."""
        return api_version.rpartition("/")[0] in ("", self.group, *self.others)

    def closing(self, raw: Any, origin: Origin, problem: str) -> tuple[Policy, ...]:
        """Policies that deny the pods which an object clearly selects, whatever else it says and however it is spelt:
        of text that breaks off behind its selector, or of another version. None where there is no selector."""
        spec = raw.get("spec") if isinstance(raw, dict) else None
        if not isinstance(spec, dict) or self.selector not in spec:
            return ()
        head = {"apiVersion": self.versions[0], "kind": self.name, "metadata": raw.get("metadata")}
        whole = {**head, "spec": self.closed(spec[self.selector])}
        try:
            policies = self.parse(whole, origin)
        except InvalidPolicy:
            policies = self.salvage(whole, origin)
        return tuple(msgspec.structs.replace(policy, problem=problem) for policy in policies)


def _alone(parse: Callable[[Any, Origin], Policy]) -> Read:
    return lambda raw, origin: (parse(raw, origin),)


def _if_any(salvage: Callable[[Any, Origin], Policy | None]) -> Read:
    def read(raw: Any, origin: Origin) -> tuple[Policy, ...]:
        policy = salvage(raw, origin)
        return () if policy is None else (policy,)

    return read


def _cilium(name: str) -> PolicyKind:
    return PolicyKind(
        name,
        (cilium.API_VERSION,),
        cilium.parse,
        cilium.salvage,
        "endpointSelector",
        lambda selector: {"endpointSelector": selector, "enableDefaultDeny": {"ingress": True, "egress": True}},
        namespaced=name == cilium.NAMESPACED,
        several=True,
    )


def _admin(name: str) -> PolicyKind:
    return PolicyKind(
        name,
        clusternetworkpolicy.API_VERSIONS[name],
        _alone(clusternetworkpolicy.parse),
        _if_any(clusternetworkpolicy.salvage),
        "subject",
        lambda subject: {"subject": subject},  # without a priority, which salvage takes for the first of all
        namespaced=False,
    )


KINDS: Mapping[str, PolicyKind] = {
    kind.name: kind
    for kind in (
        PolicyKind(
            networkpolicy.KIND,
            (networkpolicy.API_VERSION,),
            _alone(networkpolicy.parse),
            _if_any(networkpolicy.salvage),
            "podSelector",
            lambda selector: {"podSelector": selector, "policyTypes": ["Ingress", "Egress"]},
            others=("extensions",),
        ),
        *map(_cilium, cilium.KINDS),
        *map(_admin, clusternetworkpolicy.KINDS),
    )
}


def kind_of(raw: Any) -> PolicyKind | None:
    """The kind a document means to be of; None where it is no policy that is understood here."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("kind"), str):
        return None
    kind = KINDS.get(raw["kind"])
    return kind if kind is not None and kind.is_of(str(raw.get("apiVersion") or "")) else None
