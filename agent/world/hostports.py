"""Ports of the host that pods of this node ask for (hostPort): each such pod is a service of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.objects import Pod
from agent.services.model import Kind
from agent.services.places import host_port_places
from agent.world.config import NodeConfig
from agent.world.frontends import HOST_PORT, FrontendClaims, Key
from policies.model import ObjectRef

KIND = "HostPort"


def host_port_ref(pod: ObjectRef) -> ObjectRef:
    """The service that a pod's hostPorts are."""
    return ObjectRef(KIND, pod.namespace, pod.name)


class HostPortBook:
    def __init__(self, claims: FrontendClaims, config: NodeConfig) -> None:
        self._claims = claims
        self._config = config
        self._keys: dict[ObjectRef, tuple[Key, ...]] = {}

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter(self._keys)

    def __contains__(self, ref: ObjectRef) -> bool:
        return ref in self._keys

    def of(self, pods: Iterable[ObjectRef]) -> set[ObjectRef]:
        """The services that these pods are, where they are any."""
        return {ref for pod in pods if (ref := host_port_ref(pod)) in self._keys} if self._keys else set()

    def put(self, pod: Pod) -> set[ObjectRef]:
        """A pod of this node. Returns the services whose frontends may differ now."""
        ref = host_port_ref(pod.ref)
        touched = self.take(ref)
        wanted = dict.fromkeys(
            (address, port.protocol, number)
            for port in pod.ports
            for address, number, kind in host_port_places(port, pod, self._config)
            if kind is Kind.LOOPBACK or address in self._config.addresses
        )
        if wanted:
            self._keys[ref] = tuple(wanted)
            touched |= {ref} | self._claims.add(ref, dict.fromkeys(wanted, HOST_PORT))
        return touched

    def take(self, ref: ObjectRef) -> set[ObjectRef]:
        keys = self._keys.pop(ref, None)
        return set() if keys is None else {ref} | self._claims.remove(ref, dict.fromkeys(keys, HOST_PORT))

    def elsewhere(self, pod: Pod) -> list[bytes]:
        """Each hostIP that is no address of this node: nobody is to take over somebody else's."""
        places = [place for port in pod.ports for place in host_port_places(port, pod, self._config)]
        own = self._config.addresses
        return sorted({address for address, _, kind in places if kind is Kind.HOST_PORT and address not in own})
