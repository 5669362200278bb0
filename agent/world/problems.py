"""What was written but is not in force, put so that its author can act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from agent.objects import Node, NodeEndpoints, Pod, Problem, Service
from agent.services.frontends import EXTERNAL, wants_maglev
from agent.services.maglev import most_backends
from agent.services.places import NODE_PORT_TYPES
from agent.world.blocks import SAID
from agent.world.frontends import (
    BALANCER,
    CLUSTER_IP_ALLOCATED,
    CLUSTER_IP_GIVEN,
    EXTERNAL_IP,
    HOST_PORT,
    NODE_PORT_ALLOCATED,
    NODE_PORT_GIVEN,
    Lost,
)
from agent.world.hostports import KIND
from policies.address import format_address
from policies.model import ObjectRef, Protocol
from policies.slips import unlearned

if TYPE_CHECKING:
    from agent.world.world import World

SERVICE_NAME = "kubernetes.io/service-name"
NO_EXTERNAL_IPS = "externalIPs are not obeyed: set --external-ips if all who write services may take over any address"
_ADVICE = {
    CLUSTER_IP_ALLOCATED: "choose another clusterIP or port",
    CLUSTER_IP_GIVEN: "choose another clusterIP or port",
    NODE_PORT_ALLOCATED: "choose another node port",
    NODE_PORT_GIVEN: "choose another node port, or none",
    BALANCER: "give services that share a load balancer's address different ports",
    EXTERNAL_IP: "choose another externalIP or port",
    HOST_PORT: "choose another hostPort or hostIP",
}


def describe_problems(world: World, failures: Mapping[ObjectRef, str]) -> list[Problem]:
    """Sorted by file and line. `failures`: what else is known to be wrong with an object."""
    found: list[Problem] = []
    for ref, message in (*failures.items(), *world.services.failures().items()):
        found += _problem(world, ref, message)
    for address, loser, winner in world.addresses.lost():
        taken = f"{winner}" if winner else f"node {world.config.name}"
        message = f"address {format_address(address)} belongs to {taken}: give it another one"
        found += _problem(world, loser, message) or _of_remote(world, address, loser, message)
    found += _not_taken(world)
    found += _lost_frontends(world)
    for service in world.services:
        if not service.addresses or service.type in NODE_PORT_TYPES:  # of 50,000 few: what follows takes its time
            for message in _unmet(world, service):
                found += _problem(world, service.ref, message)
        if service.exposure.external_ips and not world.config.services.external_ips:
            found += _problem(world, service.ref, NO_EXTERNAL_IPS, warning=True)
    found += _beyond_maglev(world)
    found += _host_addresses(world)
    found += _stray_slices(world)
    found += _names_nobody_learns(world)
    return sorted(found)


def _of_remote(world: World, address: bytes, ref: ObjectRef, message: str) -> Iterator[Problem]:
    """Of pods of other nodes that lost an address."""
    for remote in world.remotes.claiming(address):
        told = world.nodes.said(remote.node)
        if remote.ref == ref and told is not None:
            yield Problem(told.origin.file, told.origin.line, message, subject=str(ref))


def _not_taken(world: World) -> Iterator[Problem]:
    """What nodes say they have that is another's."""
    for ((rank, name), block), owner in world.nodes.blocks.refused().items():
        if rank != SAID and not world.config.cluster:
            continue
        ref = ObjectRef("NodeEndpoints" if rank == SAID else "Node", "", name)
        yield from _problem(world, ref, f"block {block} overlaps one of node {owner}: it is not taken")
    for name, address in world.nodes.refused_addresses():
        owner = world.nodes.blocks.owner(address) or ""
        message = f"address {format_address(address)} is in a block of node {owner}: it is not taken for this node's"
        yield from _problem(world, ObjectRef("NodeEndpoints", "", name), message)
    for remote, address in world.remotes.refused():
        holder = world.nodes.blocks.owner(address)
        where = f"a block of node {holder}" if holder else "no block of its node"
        pod = f"{remote.ref.namespace}/{remote.ref.name}"
        message = f"pod {pod} has address {format_address(address)}, which is in {where}: it is not taken"
        yield from _problem(world, ObjectRef("NodeEndpoints", "", remote.node), message)


def _lost_frontends(world: World) -> Iterator[Problem]:
    """A node port that is lost is lost at every address of the node: that is said once."""
    said: set[tuple[ObjectRef, ObjectRef, int, int]] = set()
    for lost in sorted(world.services.lost(), key=_whole_ports_first):
        address, protocol, port = lost.key
        if lost.rank in (NODE_PORT_ALLOCATED, NODE_PORT_GIVEN, HOST_PORT):
            case = (lost.service, lost.winner, protocol, port)
            if case in said:
                continue
            said.add(case)
        at = "host" if lost.rank == HOST_PORT else format_address(address) if address else "node"
        message = (
            f"{at} port {port}/{Protocol.BY_NUMBER[protocol]} belongs to {owner_of(lost.winner)}: {_ADVICE[lost.rank]}"
        )
        yield from _problem(world, owner_of(lost.service), message)


def _whole_ports_first(lost: Lost) -> tuple[bool, tuple[bytes, int, int], ObjectRef]:
    return lost.key[0] != b"", lost.key, lost.service


def owner_of(service: ObjectRef) -> ObjectRef:
    """The object that somebody has written: of hostPorts the pod."""
    return ObjectRef("Pod", service.namespace, service.name) if service.kind == KIND else service


def _unmet(world: World, service: Service) -> Iterator[str]:
    for family in world.services.missing_families(service):
        yield f"there is no {family} service CIDR to allocate from: set --service-cidrs or remove the family"
    first, last = world.config.services.node_ports
    for number in world.services.out_of_range(service):
        yield f"node port {number} is not in {first}-{last} (--node-ports): choose another one, or none"


def _beyond_maglev(world: World) -> Iterator[Problem]:
    """Services whose backends are too many for a Maglev table."""
    size = world.config.services.maglev_size
    most = most_backends(size)
    pods = sum(1 for _ in world.pods)
    by_default = world.config.services.algorithm == "maglev"
    for service in world.services:
        if not (by_default or service.exposure.algorithm) or not wants_maglev(service, world.config):
            continue
        given = world.services.slices(service.ref)
        if (sum(len(one.endpoints) for one in given) if given else pods) <= most:
            continue
        reached = [f for f in world.frontends(service.ref) if service.exposure.algorithm or f.kind in EXTERNAL]
        backends = max((len(f.inside.backends) for f in reached), default=0)
        if backends > most:
            message = (
                f"{backends} backends are more than a Maglev table of {size} slots serves ({most}): they are chosen at "
                "random; set --maglev-size"
            )
            yield from _problem(world, service.ref, message, warning=True)


def _host_addresses(world: World) -> Iterator[Problem]:
    for state in world.pods:
        if world.is_local(state.pod.ref):
            for address in world.host_ports.elsewhere(state.pod):
                message = (
                    f"hostIP {format_address(address)} is no address of node {world.config.name}: its port is not open"
                )
                yield from _problem(world, state.pod.ref, message)


def _stray_slices(world: World) -> Iterator[Problem]:
    for stray in world.services.strays():
        why = (
            f"there is no Service {stray.ref.namespace}/{stray.service}"
            if stray.service
            else f"it has no label {SERVICE_NAME}"
        )
        message = f"no service uses this slice: {why}"
        yield Problem(stray.origin.file, stray.origin.line, message, subject=str(stray.ref), warning=True)


def _names_nobody_learns(world: World) -> Iterator[Problem]:
    if not world.marks.names.patterns:
        return
    for policy, message in unlearned(list(world.index.policies())):
        yield Problem(policy.origin.file, policy.origin.line, message, subject=str(policy.ref), warning=True)


def _problem(world: World, ref: ObjectRef, message: str, *, warning: bool = False) -> list[Problem]:
    written: Node | NodeEndpoints | Pod | Service | None = None
    if ref.kind == "Pod":
        state = world.pods.get(ref)
        written = state.pod if state else None
    elif ref.kind == "Node":
        written = world.nodes.get(ref.name)
    elif ref.kind == "NodeEndpoints":
        written = world.nodes.said(ref.name)
    elif ref.kind == "Service":
        written = world.services.get(ref)
    if written is None:
        return []
    return [Problem(written.origin.file, written.origin.line, message, subject=str(ref), warning=warning)]
