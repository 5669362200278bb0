"""Flows, and what is known of their ends: what the oracle is asked about."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from policies.address import format_address
from policies.model import ContainerPort, Direction

Namespaces = Mapping[str, Mapping[str, str]]
"""Labels of each known namespace, kubernetes.io/metadata.name included."""

HOST = "host"
"""The entity of the node itself, and of its hostNetwork pods."""


class PodFacts(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    labels: Mapping[str, str]
    ports: frozenset[ContainerPort] = frozenset()


class ServiceFacts(msgspec.Struct, frozen=True):
    """A service of which an address is an endpoint."""

    namespace: str
    name: str
    labels: Mapping[str, str]


class Party(msgspec.Struct, frozen=True):
    """One end of a flow. `entity` says what an address is that is no pod's (policies.model.Entity).

    `node`: labels of the Node that has the address. `names`: DNS names it was the answer to. `services`: those it is an
    endpoint of.
    """

    address: bytes
    pod: PodFacts | None = None
    entity: str = "world"
    node: Mapping[str, str] | None = None
    names: frozenset[str] = frozenset()
    services: tuple[ServiceFacts, ...] = ()

    def __str__(self) -> str:
        who = f"pod {self.pod.namespace}/{self.pod.name}" if self.pod is not None else self.entity
        return f"{who} ({format_address(self.address)})"


class Flow(msgspec.Struct, frozen=True):
    """`port` is the destination's; 0 for protocols without ports, such as ICMP."""

    source: Party
    destination: Party
    protocol: int
    port: int = 0


def ends(flow: Flow, direction: Direction) -> tuple[Party, Party]:
    """The subject whose policies are asked in a direction, and the remote."""
    if direction is Direction.EGRESS:
        return flow.source, flow.destination
    return flow.destination, flow.source
