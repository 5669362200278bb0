"""What every policy object has besides its spec: apiVersion, kind and metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from sys import intern

from policies.fields import Field
from policies.labelselector import parse_labels
from policies.model import ObjectRef
from policies.syntax import dns_label_problem, dns_subdomain_problem

_METADATA = (
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers",
    "managedFields",
)  # fmt: skip


def check_kind(root: Field, versions: Collection[str], kind: str) -> None:
    """Notes a problem where the document is of another kind, or of none of these apiVersions."""
    for name, expected in (("apiVersion", versions), ("kind", (kind,))):
        field = root.get(name)
        if isinstance(root.value, Mapping) and field.value not in list(expected):
            field.problem(f"must be {' or '.join(expected)}")


def parse_metadata(field: Field, kind: str, *, namespaced: bool = True) -> ObjectRef:
    """The object's reference: its namespace is "default" where none is given, "" for a kind that is in none."""
    field.expect_object(_METADATA)
    name, namespace = field.get("name"), field.get("namespace")
    if not name.given:
        name.problem("must be given")
    given_name, given_namespace = name.string(), namespace.string()
    if given_name is not None:
        name.check(dns_subdomain_problem(given_name))
    if given_namespace and not namespaced:
        namespace.problem(f"must not be given: a {kind} is in no namespace")
    elif given_namespace:
        namespace.check(dns_label_problem(given_namespace))
    parse_labels(field.get("labels"))
    field.get("annotations").string_map()
    return ObjectRef(kind, intern(given_namespace or "default") if namespaced else "", given_name or "")
