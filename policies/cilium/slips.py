"""Likely slips in a valid cilium.io/v2 spec. Paths are those of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_interface
from typing import Any

from policies.cilium.selectors import CLUSTER, METADATA_NAME, NAMESPACE
from policies.model import SERVICE_ACCOUNT

Slip = tuple[str, str]
"""Field path and message."""

_SECTIONS = ("ingress", "ingressDeny", "egress", "egressDeny")
_SPECIAL = (NAMESPACE, SERVICE_ACCOUNT, CLUSTER)
_MISTAKEN = {METADATA_NAME: NAMESPACE, "io.kubernetes.pod.serviceaccount": SERVICE_ACCOUNT}
_LIKENESS = 0.85
"""Of keys that are probably misspelt (difflib's ratio)."""


def cilium_slips(raw: Mapping[str, Any], path: str) -> Iterator[Slip]:
    """About the spec at a path: spec, or specs[0]."""
    spec = raw["spec"] if path == "spec" else raw["specs"][int(path[len("specs[") : -1])]
    yield from _keys(spec.get("endpointSelector"), f"{path}.endpointSelector")
    for name in _SECTIONS:
        rules = spec.get(name)
        if rules == []:
            yield f"{path}.{name}", "has no effect: an empty list isolates nothing (write [{}] to deny everything else)"
        for index, rule in enumerate(rules or ()):
            yield from _rule(rule, f"{path}.{name}[{index}]", deny=name.endswith("Deny"))


def _rule(rule: Mapping[str, Any], path: str, *, deny: bool) -> Iterator[Slip]:
    given = {name: value for name, value in rule.items() if value is not None and name != "authentication"}
    if not given and deny:
        yield path, "denies nothing by itself: name whom it denies, such as the entity all"
    for name, value in given.items():
        where = f"{path}.{name}"
        if value == []:
            yield where, "matches nothing: an empty list is nobody (leave it out for everybody)"
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if name.endswith("Endpoints"):
                yield from _keys(item, f"{where}[{index}]")
            elif name.endswith("CIDR"):
                yield from _host_bits(item, f"{where}[{index}]")
            elif name.endswith("CIDRSet"):
                yield from _host_bits(item["cidr"], f"{where}[{index}].cidr")
                for at, block in enumerate(item.get("except") or ()):
                    yield from _host_bits(block, f"{where}[{index}].except[{at}]")
            elif name == "toPorts":
                yield from _http((item.get("rules") or {}).get("http") or (), f"{where}[{index}].rules.http")


def _keys(selector: Mapping[str, Any] | None, path: str) -> Iterator[Slip]:
    """Labels of pods whose keys look like those that stand for something else."""
    selector = selector or {}
    found = [(f"matchLabels[{key}]", key) for key in selector.get("matchLabels") or ()]
    expressions = enumerate(selector.get("matchExpressions") or ())
    found += [(f"matchExpressions[{index}].key", item["key"]) for index, item in expressions]
    for where, key in found:
        bare = key.partition(":")[2] or key
        close = get_close_matches(bare, _SPECIAL, n=1, cutoff=_LIKENESS)
        meant = _MISTAKEN.get(bare) or (close[0] if close else "")
        if meant and bare not in _SPECIAL:
            yield f"{path}.{where}", f"is looked for among the labels of the pod itself, did you mean {meant}?"


def _host_bits(cidr: str, path: str) -> Iterator[Slip]:
    given = ip_interface(cidr)
    if given.ip != given.network.network_address:
        yield path, f"{cidr} has bits beyond its mask; it is read as {given.network}"


def _http(rules: Any, path: str) -> Iterator[Slip]:
    for index, rule in enumerate(rules):
        wanted, method = rule.get("path") or "", rule.get("method") or ""
        if wanted[:1].isalnum():
            yield f"{path}[{index}].path", f"matches nothing: a path begins with '/', as in '/{wanted}'"
        if method.isalpha() and method != method.upper():
            yield f"{path}[{index}].method", f"matches {method!r} alone: methods are upper-case, as in {method.upper()}"
