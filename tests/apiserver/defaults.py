"""What the server fills in or takes away when an object is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

_cluster_ip = itertools.count(1)


def fill(plural: str, obj: dict[str, Any]) -> None:
    if filler := _FILLERS.get(plural):
        filler(obj)


def _namespace(obj: dict[str, Any]) -> None:
    metadata = obj["metadata"]
    labels = metadata["labels"] = dict(metadata.get("labels") or {})
    labels["kubernetes.io/metadata.name"] = metadata["name"]
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    obj.setdefault("status", {"phase": "Active"})


def _network_policy(obj: dict[str, Any]) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
        for port in rule.get("ports") or []:
            port.setdefault("protocol", "TCP")


def _service(obj: dict[str, Any]) -> None:
    spec = obj.setdefault("spec", {})
    if spec.setdefault("type", "ClusterIP") != "ExternalName" and not spec.get("clusterIP"):
        number = next(_cluster_ip)
        spec["clusterIP"] = f"10.96.{number >> 8 & 255}.{number & 255}"
    if spec.get("clusterIP"):
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        spec.setdefault("internalTrafficPolicy", "Cluster")
        spec.setdefault("ipFamilies", ["IPv6" if ":" in spec["clusterIP"] else "IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    obj.setdefault("status", {"loadBalancer": {}})


def _pod(obj: dict[str, Any]) -> None:
    spec = obj.setdefault("spec", {})
    for key, value in _POD.items():
        spec.setdefault(key, value)
    for container in spec.get("containers") or []:
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")
    obj.setdefault("status", {"phase": "Pending"})


def _node(obj: dict[str, Any]) -> None:
    spec = obj.setdefault("spec", {})
    if spec.get("podCIDR"):
        spec.setdefault("podCIDRs", [spec["podCIDR"]])


def _slice(obj: dict[str, Any]) -> None:
    for port in obj.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("name", "")


_POD = {
    "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst",
    "serviceAccountName": "default",
    "terminationGracePeriodSeconds": 30,
    "enableServiceLinks": True,
}
_FILLERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "namespaces": _namespace,
    "networkpolicies": _network_policy,
    "services": _service,
    "pods": _pod,
    "nodes": _node,
    "endpointslices": _slice,
}
