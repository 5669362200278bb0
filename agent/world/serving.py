"""Frontends that services and hostPorts have on this node, and the slices of services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.objects import EndpointSlice, Service
from agent.services import frontends
from agent.services.model import Frontend
from agent.services.places import is_served
from agent.world.hostports import KIND as HOST_PORT
from policies.model import ObjectRef

if TYPE_CHECKING:
    from agent.world.world import World


def frontends_of(world: World, ref: ObjectRef, *, served: bool) -> tuple[Frontend, ...]:
    """See World.frontends; those, too, that another service has the better claim to."""
    return _host_port_frontends(world, ref) if ref.kind == HOST_PORT else _service_frontends(world, ref, served)


def slices_of(world: World, service: Service) -> tuple[EndpointSlice, ...]:
    """Those given, else those its selector gives."""
    given = world.services.slices(service.ref)
    if given or world.derive is None or not service.selector:
        return given
    pods = world.pods.selected(service.ref.namespace, service.selector)
    return tuple(world.derive(service, pods, world.nodes.zones))


def all_slices_of(world: World, service: Service) -> tuple[EndpointSlice, ...]:
    """And those that nobody serves, as of headless services."""
    unserved = world.services.unserved_slices(service.ref)
    return (*unserved, *world.services.slices(service.ref)) if unserved else slices_of(world, service)


def _service_frontends(world: World, ref: ObjectRef, served: bool) -> tuple[Frontend, ...]:
    service = world.services.get(ref)
    if service is None or not is_served(service):
        return ()
    addresses, ports = world.services.addresses(ref), world.services.node_ports(ref)
    return frontends.frontends(service, addresses, ports, slices_of(world, service) if served else (), world.config)


def _host_port_frontends(world: World, ref: ObjectRef) -> tuple[Frontend, ...]:
    """None before the pod's network stands."""
    state = world.pods.get(ObjectRef("Pod", ref.namespace, ref.name))
    if state is None or state.interface is None or ref not in world.host_ports:
        return ()
    pod = msgspec.structs.replace(state.pod, addresses=world.own_addresses(state.pod.ref))
    return frontends.host_ports(pod, world.config)
