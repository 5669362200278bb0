"""Clusters that are mostly services: most frontends have backends, here, elsewhere, outside or on the node itself.

tests/worlds.py draws what a world may be told at all; here the draws meet where packets do.
"""

from __future__ import annotations

from functools import cache

import msgspec
import strategies as drawn
from hypothesis import strategies as st
from worlds import ORIGIN, ZONES, Objects, Scene, exposures

from agent.objects import EndpointSlice, Exposure, Service, ServicePort, SliceEndpoint, SlicePort
from policies.address import Prefix, is_v4, parse_address
from policies.model import ObjectRef

PODS, SERVICES = 6, 5
TCP, UDP, SCTP = 6, 17, 132
TYPES = ("ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer")
READY, LEAVING, ENDED, UNREADY = (True, True, False), (False, True, True), (False, False, True), (False, False, False)
STATES = (READY, READY, READY, LEAVING, ENDED, UNREADY)
"""ready, serving, terminating"""

_ELSEWHERE = ("198.51.100.9", "2001:db8::9", *drawn.HOST_ADDRESSES)
_FAMILIES = {True: "IPv4", False: "IPv6"}


def cluster_addresses(number: int) -> tuple[bytes, bytes]:
    return parse_address(f"10.96.9.{number + 1}"), parse_address(f"fd00:96::9:{number + 1:x}")


@cache
def endpoints(*, v4: bool) -> st.SearchStrategy[SliceEndpoint]:
    pods = [(parse_address(f"10.1.{n % 2}.{n + 1}" if v4 else f"fd00:1::{n + 1:x}"), n) for n in range(PODS)]
    nodes = {address: "there" if n % 3 == 2 else "here" for address, n in pods}
    others = [address for address in map(parse_address, _ELSEWHERE) if is_v4(address) is v4]
    return st.builds(
        lambda address, state, zones: SliceEndpoint(
            (address,), state[0], state[1], state[2], nodes.get(address, ""), zones
        ),
        st.sampled_from((*nodes, *nodes, *others)),
        st.sampled_from(STATES),
        st.sampled_from(((), (), (), (ZONES[0],), ZONES)),
    )


@st.composite
def balanced(draw: st.DrawFn, number: int) -> Exposure:
    """A load balancer whose addresses not everybody may use."""
    addresses = parse_address(f"203.0.113.{number + 1}"), parse_address(f"2001:db8::{number + 1:x}")
    ranges = st.sampled_from((("192.0.2.0/24",), ("10.0.0.0/8", "::/0"), ("192.0.2.0/24", "fd00::/8")))
    return msgspec.structs.replace(
        draw(exposures("LoadBalancer")),
        balancer_ips=addresses,
        source_ranges=tuple(map(Prefix.parse, draw(ranges))),
    )


@st.composite
def services(draw: st.DrawFn, number: int) -> Objects:
    """The service with this number and its slices, one a family."""
    kind = draw(st.sampled_from(TYPES))
    protocols = draw(st.sampled_from(((TCP,), (UDP,), (TCP, UDP), (TCP, SCTP))))
    ports = [
        ServicePort(
            f"p{protocol}",
            protocol,
            draw(st.sampled_from((53, 80))),
            8080,
            0 if kind == "ClusterIP" else draw(st.sampled_from((0, 30001, 31000 + number))),
        )
        for protocol in protocols
    ]
    families = draw(st.sampled_from(((True, False), (True, False), (True,), (False,))))
    addresses = tuple(address for address in cluster_addresses(number) if is_v4(address) in families)
    service = Service(
        ObjectRef("Service", "blue", f"s{number}"),
        ORIGIN,
        kind,
        None,
        addresses,
        False,
        tuple(ports),
        tuple(_FAMILIES[v4] for v4 in families),
        exposure=draw(exposures(kind) if kind != "LoadBalancer" else exposures(kind) | balanced(number)),
    )
    return {service.ref: service} | draw(slices(service))


@st.composite
def slices(draw: st.DrawFn, service: Service) -> Objects:
    """The endpoints of a service. SCTP's cannot have another port."""
    found: Objects = {}
    for v4, family in _FAMILIES.items():
        targets = tuple(
            SlicePort(p.name, p.protocol, p.port if p.protocol == SCTP else draw(st.sampled_from((8080, 8080, 9090))))
            for p in service.ports
        )
        count = draw(st.sampled_from((0, 1, 2, 3, 4)))
        members = tuple(draw(endpoints(v4=v4)) for _ in range(count))
        ref = ObjectRef("EndpointSlice", "blue", f"{service.ref.name}-{family.lower()}")
        found[ref] = EndpointSlice(ref, ORIGIN, service.ref.name, targets, members)
    return found


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    pods = tuple(draw(drawn.live_pod_specs(number)) for number in range(PODS) if draw(st.integers(0, 5)))
    found: Objects = {}
    for number in range(draw(st.sampled_from(range(SERVICES, 0, -1)))):
        found |= draw(services(number))
    return Scene(drawn.Cluster({name: {} for name in drawn.NAMESPACES}, pods, ()), found)


@st.composite
def edits(draw: st.DrawFn, scene: Scene) -> Scene:
    """A service is another, has other endpoints, comes or goes. Pods are as before."""
    number = draw(st.integers(0, SERVICES - 1))
    name = f"s{number}"
    mine = {ref: one for ref, one in scene.services.items() if ref.name.split("-")[0] == name}
    others = {ref: one for ref, one in scene.services.items() if ref not in mine}
    known = next((one for one in mine.values() if isinstance(one, Service)), None)
    what = draw(st.sampled_from(("endpoints", "endpoints", "endpoints", "service", "gone")))
    if what == "gone" and known is not None:
        return msgspec.structs.replace(scene, services=others)
    if what == "endpoints" and known is not None:
        return msgspec.structs.replace(scene, services=others | {known.ref: known} | draw(slices(known)))
    return msgspec.structs.replace(scene, services=others | draw(services(number)))


@st.composite
def histories(draw: st.DrawFn, steps: int, batch: int = 3) -> list[Scene]:
    """Scenes, each a few edits after the one before."""
    found = [draw(scenes())]
    for _ in range(steps):
        scene = found[-1]
        for _ in range(draw(st.integers(1, batch))):
            scene = draw(edits(scene))
        found.append(scene)
    return found
