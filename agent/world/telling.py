"""What this node tells the others of its pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.identity.labels import key_digest
from agent.objects import DeclaredPort, NodeEndpoint
from policies.model import ObjectRef

if TYPE_CHECKING:
    from agent.world.world import World


class Told:
    """Pods by name, kept as they change: the whole is asked for after every turn."""

    def __init__(self) -> None:
        self._by_pod: dict[ObjectRef, NodeEndpoint] = {}
        self._all: tuple[NodeEndpoint, ...] | None = ()

    def all(self) -> tuple[NodeEndpoint, ...]:
        if self._all is None:
            self._all = tuple(sorted(self._by_pod.values(), key=lambda one: one.pod))
        return self._all

    def put(self, ref: ObjectRef, endpoint: NodeEndpoint | None) -> None:
        """What there is to tell of a pod now; None: nothing."""
        if self._by_pod.get(ref) == endpoint:
            return
        if endpoint is None:
            del self._by_pod[ref]
        else:
            self._by_pod[ref] = endpoint
        self._all = None


def endpoint_told(world: World, ref: ObjectRef) -> NodeEndpoint | None:
    """See World.local_endpoints. With the number that a pod has goes what that number means to this node."""
    state = world.pods.get(ref)
    if state is None or not state.identity or not world.is_local(ref):
        return None
    if not (addresses := world.own_addresses(ref)):
        return None
    named = (DeclaredPort(port.name, port.protocol, port.number) for port in state.pod.ports if port.name)
    return NodeEndpoint(ref, addresses, state.identity, key_digest(state.key), tuple(named))
