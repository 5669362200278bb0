"""What services must know of the node they are seen from: what agent.world.config holds, without its imports."""

from __future__ import annotations

from typing import Protocol

from policies.address import Prefix


class Settings(Protocol):
    """See agent.world.config.ServiceConfig."""

    @property
    def node_port_addresses(self) -> tuple[Prefix, ...]: ...
    @property
    def external_ips(self) -> bool: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def maglev_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def forwarding(self) -> str: ...


class Node(Protocol):
    """See agent.world.config.NodeConfig."""

    @property
    def name(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def addresses(self) -> tuple[bytes, ...]: ...
    @property
    def services(self) -> Settings: ...
