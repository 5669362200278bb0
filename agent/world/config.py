"""What the world must know of the node it is seen from."""

from __future__ import annotations

import msgspec

from policies.address import Prefix
from policies.entities import CLUSTER_IDENTITIES

FIRST_IDENTITY, LAST_IDENTITY = CLUSTER_IDENTITIES[0], CLUSTER_IDENTITIES[-1]
"""Numbers of the cluster's identities."""


class ServiceConfig(msgspec.Struct, frozen=True):
    """What this node makes of services. `node_ports`: first and last of the range, as is Config's."""

    node_ports: tuple[int, int] = (30000, 32767)
    node_port_addresses: tuple[Prefix, ...] = ()  # () for every address of the node
    external_ips: bool = False  # spec.externalIPs are obeyed (CVE-2020-8554)
    algorithm: str = "random"  # random | maglev
    maglev_size: int = 16381
    seed: int = 0  # of Maglev tables; the same on every node
    forwarding: str = "snat"  # snat | dsr | hybrid (TCP by DSR, UDP by SNAT)


class NodeConfig(msgspec.Struct, frozen=True):
    """At most one block a family in `pod_cidrs` and `service_cidrs`. For label patterns see LabelFilter."""

    name: str
    pod_cidrs: tuple[Prefix, ...]
    service_cidrs: tuple[Prefix, ...] = ()
    addresses: tuple[bytes, ...] = ()
    labels_include: tuple[str, ...] = ()
    labels_exclude: tuple[str, ...] = ()
    zone: str = ""  # topology.kubernetes.io/zone of this node
    services: ServiceConfig = ServiceConfig()
    proxy_ports: tuple[int, int] = (16384, 20479)  # first and last at which proxies listen on loopback
    implicit_namespaces: bool = True
    """A namespace that no manifest declares has the label kubernetes.io/metadata.name once it has a pod. False, where
    an API server declares every namespace: until it does, no namespaceSelector matches its pods."""
    cluster: bool = False
    """Identity numbers are those of SecurityIdentity objects; none is invented here."""
    attached: bool = False
    """Pods of this node have the addresses and interfaces that a runtime attached, whatever their status says."""
    enforce_always: bool = False
    """Every pod is isolated in both directions, whatever selects it."""
