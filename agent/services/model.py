"""Frontends as the datapath is to have them, in words."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from policies.address import Prefix

Backend = tuple[bytes, int]
"""Address (16 bytes) and port."""


class Kind(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER = "LoadBalancer"
    HOST_PORT = "HostPort"
    LOOPBACK = "Loopback"  # a node port at 127.0.0.1 or ::1, for sockets of the node


class Target(msgspec.Struct, frozen=True, gc=False):
    """Who serves one sort of clients. `drops`: where there is no backend packets are dropped, not refused.

    `why`: one sentence on how these backends were chosen, for `gatehouse services trace`.
    """

    backends: tuple[Backend, ...]
    drops: bool = False
    why: str = ""


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """`inside`: for pods and the node itself; `outside`: for everybody else."""

    address: bytes
    port: int
    protocol: int
    kind: Kind
    port_name: str
    inside: Target
    outside: Target
    local_outside: bool = False  # externalTrafficPolicy: Local
    affinity_timeout_s: int = 0
    ranges: tuple[Prefix, ...] = ()  # who may use it; () for anybody
    node_in_ranges: bool = True  # an address of this node is among them
    maglev: bool = False
    dsr: bool = False
