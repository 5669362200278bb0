"""The ends of a flow as a person names them, found in the world."""

from __future__ import annotations

import msgspec

from agent.cli.offline import facts
from agent.cli.output import Failure
from agent.objects import Service
from agent.services.endpoints import REFUSED, candidates
from agent.world.world import World
from policies.address import format_address, is_v4, parse_address
from policies.facts import HOST, Flow, Party, ServiceFacts
from policies.model import Entity, ObjectRef, Protocol

ECHO = {True: (1, 8), False: (58, 128)}
"""ICMP and the type of a request, by whether it is IPv4: rules know types as ports."""
UNSPECIFIED = {True: parse_address("0.0.0.0"), False: parse_address("::")}  # noqa: S104 - the node's, where none is known


def flows(world: World, source: str, destination: str, port: str, *, ipv6: bool) -> list[Flow]:
    """One flow, or one for each backend where the destination is a service. Raises Failure."""
    v4 = _family(source, destination, ipv4=not ipv6)
    if destination.startswith("service/"):
        found = _to_service(world, _party(world, source, v4), destination, port, v4)
    else:
        to = _party(world, destination, v4)
        found = [Flow(_party(world, source, v4), to, *_port(to, port, v4))]
    replace = msgspec.structs.replace
    return [replace(f, source=_known(world, f.source), destination=_known(world, f.destination)) for f in found]


def _known(world: World, party: Party) -> Party:
    """With what else the manifests say of its address. Which DNS names it has they do not say."""
    services = tuple(
        ServiceFacts(service.ref.namespace, service.ref.name, service.labels)
        for service in world.services
        if any(address == party.address for one in world.slices(service) for address, _ in one.addressed())
    )
    name = world.config.name if party.entity == HOST else world.nodes.at(party.address)
    entity, node = party.entity, None
    if party.pod is None and name is not None:
        entity, node = (HOST if entity == HOST else Entity.REMOTE_NODE), world.nodes.labels(name)
    elif party.pod is None and entity == Entity.WORLD and world.marks.is_apiserver(party.address):
        entity = Entity.KUBE_APISERVER
    return msgspec.structs.replace(party, entity=entity, node=node, services=services)


def _to_service(world: World, source: Party, text: str, port: str, v4: bool) -> list[Flow]:
    namespace, _, name = text.removeprefix("service/").partition("/")
    service = world.services.get(ObjectRef("Service", namespace, name))
    if service is None:
        raise Failure(f"there is no service {namespace}/{name} in the manifests")
    protocol, wanted = _split(port)
    for offered in service.ports:
        if offered.protocol == protocol and wanted in (str(offered.port), offered.name):
            members = candidates(world.slices(service), offered).get(v4)
            found = (members.cluster(world.config) if members else REFUSED).backends
            if not found:
                raise Failure(f"service {namespace}/{name} has no ready backend: connections are refused")
            return [Flow(source, _party(world, format_address(a), v4), protocol, number) for a, number in found]
    raise Failure(f"service {namespace}/{name} has no port {port}: it has {_offered(service)}")


def _offered(service: Service) -> str:
    return ", ".join(f"{port.port}/{Protocol.BY_NUMBER[port.protocol]}" for port in service.ports) or "none"


def _family(source: str, destination: str, *, ipv4: bool) -> bool:
    """That of an address, where one is given; else as asked."""
    for text in (source, destination):
        if "/" not in text and text != HOST:
            return is_v4(_address(text))
    return ipv4


def _party(world: World, text: str, v4: bool) -> Party:
    if text == HOST:
        own = [a for a in world.config.addresses if is_v4(a) is v4]
        return Party(own[0] if own else UNSPECIFIED[v4], entity=HOST)
    if "/" not in text:
        return _at(world, _address(text))
    namespace, _, name = text.partition("/")
    state = world.pods.get(ObjectRef("Pod", namespace, name))
    if state is None:
        raise Failure(f"there is no pod {text} in the manifests")
    if state.pod.host_network:
        return _party(world, HOST, v4)
    own = [a for a in state.pod.addresses if is_v4(a) is v4]
    if not own:
        raise Failure(f"pod {text} has no {'IPv4' if v4 else 'IPv6'} address")
    return Party(own[0], facts(state.pod))


def _at(world: World, address: bytes) -> Party:
    if address in world.config.addresses:
        return Party(address, entity=HOST)
    owner = world.addresses.owner(address)
    state = world.pods.get(owner) if owner else None
    if state is not None and not state.pod.host_network:
        return Party(address, facts(state.pod))
    inside = any(cidr.contains(address) for cidr in world.config.pod_cidrs)
    return Party(address, entity="unmanaged" if inside else "world")


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError:
        raise Failure(
            f"{text!r} is no pod (NAMESPACE/POD), address, host or service (service/NAMESPACE/NAME)"
        ) from None


def _port(to: Party, text: str, v4: bool) -> tuple[int, int]:
    """(protocol, number); a name is looked up in the destination pod."""
    if text.lower() == "icmp":
        return ECHO[v4]
    protocol, wanted = _split(text)
    if wanted.isdigit():
        if not 1 <= int(wanted) <= 65535:
            raise Failure(f"port {wanted} is not between 1 and 65535")
        return protocol, int(wanted)
    for port in to.pod.ports if to.pod else ():
        if (port.name, port.protocol) == (wanted, protocol):
            return protocol, port.number
    raise Failure(f"{to} has no {Protocol.BY_NUMBER[protocol]} port named {wanted}")


def _split(text: str) -> tuple[int, str]:
    wanted, _, name = text.partition("/")
    protocol = Protocol.BY_NAME.get((name or "TCP").upper())
    if protocol is None:
        raise Failure(f"{name!r} is none of {', '.join(Protocol.BY_NAME)}")
    return protocol, wanted
