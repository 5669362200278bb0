"""Hints of EndpointSlices: which endpoints are for clients of this node or zone. Pure.

The endpoint slice controller gives hints where the service asks for it (trafficDistribution PreferSameZone, PreferClose
or PreferSameNode; annotation service.kubernetes.io/topology-mode: Auto). They are obeyed wherever they are written, as
kube-proxy does, and only where they are complete: each ready endpoint has a hint, and at least one is for us. Node
hints go before zone hints (KEP-2433, KEP-3015).
"""

from __future__ import annotations

from agent.objects import SliceEndpoint
from agent.services.model import Backend
from agent.services.node import Node

Members = dict[Backend, SliceEndpoint]

ALL = ""
FOR_NODE = "those hinted for this node"
FOR_ZONE = "those hinted for this zone"


def nearby(ready: Members, node: Node) -> tuple[Members, str]:
    """Those that clients here are to use, and which these are: ALL, FOR_NODE or FOR_ZONE. `ready`: at least one."""
    first = next(iter(ready.values()))
    if first.nodes and all(one.nodes for one in ready.values()):
        near = {backend: one for backend, one in ready.items() if node.name in one.nodes}
        if near:
            return near, FOR_NODE
    if node.zone and first.zones and all(one.zones for one in ready.values()):
        near = {backend: one for backend, one in ready.items() if node.zone in one.zones}
        if near:
            return near, FOR_ZONE
    return ready, ALL
