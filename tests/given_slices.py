"""Services whose backends are those of EndpointSlices that a test writes."""

from __future__ import annotations

from agents import Document
from traffic import FAMILIES, Cluster, named, objects

STATES = {
    "ready": {"ready": True},
    "unready": {"ready": False, "serving": False},
    "terminating": {"ready": False, "serving": True, "terminating": True},
    "gone": {"ready": False, "serving": False, "terminating": True},
}


def slices(service: str, port: int, *endpoints: tuple[str, str], protocol: str = "TCP") -> list[Document]:
    """EndpointSlices for a service with one port that has no name. `endpoints`: (address, state)."""
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": named(f"{service}-{kind.lower()}", {"kubernetes.io/service-name": service.partition("/")[2]}),
            "addressType": kind,
            "ports": [{"port": port, "protocol": protocol}],
            "endpoints": [
                {"addresses": [address], "conditions": STATES[state]}
                for address, state in endpoints
                if (":" in address) is (kind == "IPv6")
            ],
        }
        for kind in ("IPv4", "IPv6")
    ]


def both(cluster: Cluster, pod: str, state: str) -> list[tuple[str, str]]:
    return [(cluster.ip(pod, family), state) for family in FAMILIES]


def plain(service: str, protocol: str = "TCP") -> list[Document]:
    """A service without selector."""
    return objects("Service", f"{service}: {{ports: [{{port: 80, protocol: {protocol}}}]}}")
