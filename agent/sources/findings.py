"""What is wrong with one document, by field, and the checks that all kinds share."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import lru_cache
from sys import intern
from typing import Any, TypeVar

from agent.sources.schema import Metadata
from policies.kinds import KINDS
from policies.model import ObjectRef, Protocol
from policies.syntax import (
    dns_label_problem,
    dns_subdomain_problem,
    label_key_problem,
    label_value_problem,
    port_name_problem,
)

T = TypeVar("T", bound=Hashable)

CLUSTER_SCOPED = (
    "Namespace",
    "Node",
    "SecurityIdentity",
    "NodeEndpoints",
    *(kind.name for kind in KINDS.values() if not kind.namespaced),
)
"""Kinds whose objects are in no namespace."""

Check = Callable[[str], str | None]
NO_LABELS: dict[str, str] = {}

_DNS_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class Findings:
    """Errors keep the object out of force, warnings do not. Each is (field path, message)."""

    __slots__ = ("errors", "warnings")

    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []

    def error(self, path: str, message: str) -> None:
        self.errors.append((path, message))

    def warn(self, path: str, message: str) -> None:
        self.warnings.append((path, message))

    def check(self, path: str, text: str, check: Check) -> None:
        if problem := check(text):
            self.errors.append((path, problem))


@lru_cache(maxsize=4096)
def label_problem(key: str, value: str) -> str | None:
    """Cached: manifests repeat the same labels."""
    return label_key_problem(key) or label_value_problem(value)


dns_label = lru_cache(maxsize=4096)(dns_label_problem)
dns_subdomain = lru_cache(maxsize=4096)(dns_subdomain_problem)
port_name = lru_cache(maxsize=4096)(port_name_problem)


def dns_label_1035(name: str) -> str | None:
    """RFC 1035 label: what a Service may be called."""
    if not _DNS_LABEL_1035.fullmatch(name):
        return f"{name!r} must be 1–63 lower-case letters, digits or '-', begin with a letter and not end with '-'"
    return None


_NAME_CHECKS: dict[str, Check] = {"Service": dns_label_1035, "Namespace": dns_label_problem}


def reference(kind: str, meta: Metadata, findings: Findings) -> ObjectRef:
    """The object's reference; the namespace is "default" where none is given, "" for what is in none."""
    name = meta.name or ""
    if not name:
        findings.error("metadata.name", "must be given")
    elif problem := _NAME_CHECKS.get(kind, dns_subdomain_problem)(name):
        findings.error("metadata.name", problem)
    if kind in CLUSTER_SCOPED:
        if meta.namespace:
            findings.error("metadata.namespace", f"must not be given: a {kind} is in no namespace")
        return ObjectRef(kind, "", intern(name))
    namespace = meta.namespace or "default"
    if problem := dns_label(namespace):
        findings.error("metadata.namespace", problem)
    # Slices are told by their service, not by name: to intern those would cost more than it shares.
    return ObjectRef(kind, intern(namespace), name if kind == "EndpointSlice" else intern(name))


def shared(values: T) -> T:
    """One of equals: what many objects have in common, such as their ports, is held once."""
    one: T = _first_of_equals(values)
    return one


@lru_cache(maxsize=4096)
def _first_of_equals(values: Hashable) -> Any:
    return values


def check_labels(path: str, given: dict[str, str] | None, findings: Findings) -> None:
    for key, value in (given or NO_LABELS).items():
        if problem := label_problem(key, value):
            findings.error(f"{path}[{key}]", problem)


def labels(path: str, given: dict[str, str] | None, findings: Findings) -> dict[str, str]:
    """Checked and interned. Callers do not change what they get: it may be shared."""
    check_labels(path, given, findings)
    return {intern(key): intern(value) for key, value in given.items()} if given else NO_LABELS


def protocol(path: str, name: str | None, findings: Findings) -> int:
    """Protocol number; TCP where none is given."""
    number = Protocol.BY_NAME.get(name or "TCP")
    if number is None:
        findings.error(path, f"must be TCP, UDP or SCTP, not {name!r}")
        return 0
    return number


def port_number(path: str, number: int | None, findings: Findings) -> int:
    if number is None:
        findings.error(path, "must be given")
        return 0
    if not 1 <= number <= 65535:
        findings.error(path, f"must be 1–65535, not {number}")
        return 0
    return number
