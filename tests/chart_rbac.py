"""What the chart's roles grant, as tuples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Object = dict[str, Any]


class Grant(NamedTuple):
    """`namespace` "": in all of the cluster; `name` "": of all objects."""

    verb: str
    group: str
    resource: str  # with the subresource: nodestatuses/status
    namespace: str = ""
    name: str = ""

    def covers(self, asked: Grant) -> bool:
        return (
            self[:3] == asked[:3] and self.namespace in ("", asked.namespace) and self.name in ("", asked.name)
        )  # fmt: skip


def granted(objects: Iterable[Object], account: tuple[str, str]) -> list[Grant]:
    """To a service account (namespace, name), by its bindings; once for each place where it is written."""
    found = list(objects)
    roles = {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o["rules"] for o in _rules(found)}
    grants: list[Grant] = []
    for one in found:
        if not one["kind"].endswith("RoleBinding") or account not in map(_account, one["subjects"]):
            continue
        namespace = one["metadata"].get("namespace", "")
        for rule in roles[one["roleRef"]["kind"], namespace, one["roleRef"]["name"]]:
            assert rule.keys() <= {"apiGroups", "resources", "verbs", "resourceNames"}
            grants += [
                Grant(verb, group, resource, namespace, name)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
                for name in rule.get("resourceNames", [""])
            ]
    return grants


def _rules(objects: Iterable[Object]) -> Iterable[Object]:
    return (one for one in objects if one["kind"] in ("Role", "ClusterRole"))


def _account(subject: Object) -> tuple[str, str]:
    assert subject["kind"] == "ServiceAccount"
    return subject["namespace"], subject["name"]
