"""The cluster of the goals, as manifests: 200 pods here, 5,000 identities, 5,000 policies, 10,000 services.

All pods of this node are in one namespace, `busy`, so that a policy can be about all of them; the other pods, each an
identity of its own, are on other nodes, in 49 namespaces. 4 in 100 policies are about pods of this node, as are 4 in
100 identities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import rig
from agents import Document

NAMESPACE = "busy"
LOCAL_PODS = 200
IDENTITIES = 5000
POLICIES = 5000
SERVICES = 10_000
BACKENDS = 5
NAMESPACES = 49
IN_A_FILE = 500
SLICE_FILE = "slice-0.json"

POD_CIDRS = "10.244.0.0/16,fd00:10:244::/64"
SERVICE_CIDRS = "10.96.0.0/12,fd00:10:96::/112"
REMOTE_PODS = IDENTITIES - LOCAL_PODS
LOCAL_POLICIES = LOCAL_PODS
PROBE_PORT = 9999
"""Every pod here may send to the node at this UDP port."""


def large() -> Iterator[tuple[str, Document]]:
    """All of it, as files by name."""
    yield from files("namespaces", "Namespace", namespaces())
    yield from files("pods", "Pod", [*local_pods(), *remote_pods()])
    yield from files("policies", "NetworkPolicy", [base_policy(), *local_policies(), *other_policies()])
    yield from load_balancing()


def load_balancing(services: int = SERVICES, backends: int = BACKENDS) -> Iterator[tuple[str, Document]]:
    """Services and their slices; one slice is in a file of its own, to be changed."""
    yield from files("services", "Service", map(service, range(services)))
    yield from files(
        "slices", "EndpointSlice", (endpoint_slice(number, backends=backends) for number in range(1, services))
    )
    yield SLICE_FILE, endpoint_slice(0, backends=backends)


def files(name: str, kind: str, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    for number, items in enumerate(batched(documents, IN_A_FILE)):
        yield f"{name}-{number}.json", {"apiVersion": "v1", "kind": f"{kind}List", "items": items}


def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, size)):
        yield batch


def namespaces() -> list[Document]:
    names = [NAMESPACE, *(f"team-{number}" for number in range(NAMESPACES))]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}}
        for name in names
    ]


# ---- pods


def pod(namespace: str, name: str, labels: dict[str, str], address: str = "", node: str = "") -> Document:
    found: Document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
    }
    if node:
        found["spec"]["nodeName"] = node
        found["status"] = {"podIP": address, "podIPs": [{"ip": address}]}
    return found


def local_pods() -> list[Document]:
    """Their containers have no command: nothing is run."""
    return [pod(NAMESPACE, f"pod-{number}", local_labels(number)) for number in range(LOCAL_PODS)]


def local_labels(number: int) -> dict[str, str]:
    return {"app": f"local-{number}", "tier": ("front", "back")[number % 2]}


def remote_pods() -> list[Document]:
    return [
        pod(
            f"team-{number % NAMESPACES}",
            f"pod-{number}",
            {"app": f"app-{number // NAMESPACES}", "tier": ("front", "back")[number % 2]},
            remote_address(number),
            node=f"node-{number % 30}",
        )
        for number in range(REMOTE_PODS)
    ]


def remote_address(number: int) -> str:
    return f"10.245.{number >> 8}.{number & 255}"


# ---- policies


def policy(namespace: str, name: str, selector: dict[str, str], **spec: Any) -> Document:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": {"matchLabels": selector}, **spec},
    }


def base_policy() -> Document:
    """Every pod here is isolated, and may send to the node at one port."""
    node = [
        {"ipBlock": {"cidr": f"{address}/{128 if ':' in address else 32}"}} for address in (rig.NODE_V4, rig.NODE_V6)
    ]
    return policy(
        NAMESPACE,
        "base",
        {},
        policyTypes=["Ingress", "Egress"],
        egress=[{"to": node, "ports": [{"protocol": "UDP", "port": PROBE_PORT}]}],
    )


def local_policies() -> list[Document]:
    return [app_policy(NAMESPACE, f"local-{number}", number) for number in range(LOCAL_POLICIES - 1)]


def other_policies() -> list[Document]:
    return [
        app_policy(f"team-{number % NAMESPACES}", f"app-{number // NAMESPACES}", number)
        for number in range(POLICIES - LOCAL_POLICIES)
    ]


def app_policy(namespace: str, app: str, number: int) -> Document:
    """What a policy for one application usually says."""
    neighbours = {"app": app.rpartition("-")[0] + f"-{number % 97}"}
    team = {"namespaceSelector": {"matchLabels": {"team": f"team-{number % NAMESPACES}"}}}
    return policy(
        namespace,
        app,
        {"app": app},
        policyTypes=["Ingress", "Egress"],
        ingress=[
            {"from": [{"podSelector": {"matchLabels": neighbours}}], "ports": [_tcp(8080)]},
            {"from": [{**team, "podSelector": {"matchLabels": {"tier": "front"}}}], "ports": [_tcp(8443), _tcp(9090)]},
        ],
        egress=[
            {"to": [team], "ports": [_tcp(5432)]},
            {"to": [{"ipBlock": {"cidr": f"203.0.{number % 50}.0/24", "except": [f"203.0.{number % 50}.128/25"]}}]},
        ],
    )


def _tcp(port: int) -> Document:
    return {"protocol": "TCP", "port": port}


# ---- services


def cluster_ip(number: int) -> str:
    return f"10.97.{number >> 8}.{number & 255}"


def service(number: int) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": f"team-{number % NAMESPACES}", "name": f"service-{number}"},
        "spec": {"clusterIP": cluster_ip(number), "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }


def endpoint_slice(number: int, version: int = 0, backends: int = BACKENDS) -> Document:
    """Few services have the same backends. Another version has another last one."""
    stride = 1 + number // REMOTE_PODS
    first = number * 7
    members = [*(first + place * stride for place in range(backends - 1)), first + backends * stride + version]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": f"team-{number % NAMESPACES}",
            "name": f"service-{number}-x",
            "labels": {"kubernetes.io/service-name": f"service-{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [remote_address(member % REMOTE_PODS)]} for member in members],
    }
