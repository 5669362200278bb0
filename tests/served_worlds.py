"""A World of one node, its services, and pods with hostPorts."""

from __future__ import annotations

from typing import Any

import small_worlds
from worlds import ORIGIN

from agent.objects import (
    DeclaredPort,
    Exposure,
    Object,
    Pod,
    Service,
    ServicePort,
)
from agent.sources.slices import derive
from agent.world.config import NodeConfig, ServiceConfig
from agent.world.world import World
from policies.address import Prefix, format_address, parse_address
from policies.model import ObjectRef

TCP, UDP, SCTP = 6, 17, 132

NODE = "192.0.2.1"

CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"),),
    service_cidrs=(Prefix.parse("10.96.0.0/28"),),
    addresses=(parse_address(NODE),),
    services=ServiceConfig(node_ports=(30000, 30009), external_ips=True),
)


def world_of(*objects: Object, config: NodeConfig = CONFIG) -> World:
    world = World(config, derive)
    put(world, *objects)
    return world


def put(world: World, *objects: Object) -> set[ObjectRef]:
    """Returns the services that are dirty then."""
    return small_worlds.put(world, *objects).services


def remove(world: World, *refs: ObjectRef) -> set[ObjectRef]:
    return small_worlds.remove(world, *refs).services


def ref_of(name: str, kind: str = "Service") -> ObjectRef:
    return ObjectRef(kind, "shop", name)


def service(name: str, *ports: ServicePort, ip: str = "", kind: str = "ClusterIP", **fields: Any) -> Service:
    """Of TCP port 80, unless ports are given."""
    addresses = (parse_address(ip),) if ip else ()
    own = {key: fields.pop(key) for key in list(fields) if key in Exposure.__struct_fields__}
    given = {"selector": None, "headless": False, "exposure": Exposure(**own), **fields}
    return Service(
        ref_of(name), ORIGIN, kind, addresses=addresses, ports=ports or (ServicePort("", TCP, 80, 80),), **given
    )


def port(number: int, protocol: int = TCP, node_port: int = 0) -> ServicePort:
    return ServicePort(f"p{number}-{protocol}", protocol, number, number, node_port)


def pod(name: str, *host_ports: tuple[int, int, str], node: str = "", **fields: Any) -> Pod:
    ports = tuple(DeclaredPort("", p, 8080, n, parse_address(ip) if ip else b"") for p, n, ip in host_ports)
    return Pod(ObjectRef("Pod", "shop", name), ORIGIN, {"app": "web"}, node=node, ports=ports, **fields)


def shown(world: World, name: str, kind: str = "Service") -> set[str]:
    """The frontends of a service: "ClusterIP 10.96.0.2:80/6"."""
    return {f"{f.kind} {format_address(f.address)}:{f.port}/{f.protocol}" for f in world.frontends(ref_of(name, kind))}


def messages(world: World) -> list[str]:
    return sorted(f"{problem.subject}: {problem.message}" for problem in world.problems())
