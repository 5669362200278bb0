"""What this node tells the others of its pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.identity.labels import key_digest
from agent.objects import DeclaredPort, NodeEndpoint

if TYPE_CHECKING:
    from agent.world.world import World


def endpoints_told(world: World) -> tuple[NodeEndpoint, ...]:
    """See World.local_endpoints. With the number that a pod has goes what that number means to this node."""
    told: list[NodeEndpoint] = []
    for state in sorted(world.pods, key=lambda state: state.pod.ref):
        ref = state.pod.ref
        addresses = world.own_addresses(ref) if state.identity and world.is_local(ref) else ()
        if addresses:
            named = (DeclaredPort(port.name, port.protocol, port.number) for port in state.pod.ports if port.name)
            told.append(NodeEndpoint(ref, addresses, state.identity, key_digest(state.key), tuple(named)))
    return tuple(told)
