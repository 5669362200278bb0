"""EndpointSlices that a service's selector gives."""

from __future__ import annotations

from typing import Any

import pytest

from agent.objects import DeclaredPort, EndpointSlice, Exposure, Pod, Service, ServicePort, SliceEndpoint, SlicePort
from agent.sources.slices import derive
from policies.address import parse_address
from policies.model import ObjectRef, Origin

TCP, UDP = 6, 17
V4, V6 = parse_address("10.0.0.1"), parse_address("fd00::1")
OTHER = parse_address("10.0.0.2")
HERE = Origin("s.yaml", 1)


def service(*ports: ServicePort, **fields: Any) -> Service:
    given: dict[str, Any] = {
        "type": "ClusterIP",
        "selector": {"app": "web"},
        "addresses": (),
        "headless": False,
        **fields,
    }
    return Service(ObjectRef("Service", "shop", "s"), HERE, ports=ports, **given)


def pod(name: str = "a", *addresses: bytes, **fields: Any) -> Pod:
    given: dict[str, Any] = {"labels": {"app": "web", "more": "x"}, **fields}
    namespace = given.pop("namespace", "shop")
    return Pod(ObjectRef("Pod", namespace, name), HERE, addresses=addresses or (V4,), **given)


def flat(slices: tuple[EndpointSlice, ...]) -> list[tuple[tuple[int, ...], list[bytes]]]:
    """(port numbers, addresses) of each slice."""
    return [(tuple(p.port for p in s.ports), [a for e in s.endpoints for a in e.addresses]) for s in slices]


NUMBER = ServicePort("", TCP, 80, 8080)
NAMED = ServicePort("http", TCP, 80, "web")
DNS = ServicePort("dns", UDP, 53, "dns")


def ports(*given: tuple[str, int, int]) -> dict[str, Any]:
    return {"ports": tuple(DeclaredPort(*port) for port in given)}


ROWS = {
    "a number": (service(NUMBER), [pod()], [((8080,), [V4])]),
    "by name of the pod": (service(NUMBER), [pod("b", OTHER), pod("a", V4)], [((8080,), [V4, OTHER])]),
    "both families": (service(NUMBER), [pod("a", V4, V6)], [((8080,), [V4]), ((8080,), [V6])]),
    "one family wanted": (service(NUMBER, families=("IPv6",)), [pod("a", V4, V6)], [((8080,), [V6])]),
    "other labels": (service(NUMBER), [pod(labels={"app": "db"}), pod(labels={})], []),
    "other namespace": (service(NUMBER), [pod(namespace="default")], []),
    "no address yet": (service(NUMBER), [Pod(ObjectRef("Pod", "shop", "a"), HERE, {"app": "web"})], []),
    "no selector": (service(NUMBER, selector=None), [pod()], []),
    "an empty selector selects nothing": (service(NUMBER, selector={}), [pod()], []),
    "external name": (service(NUMBER, type="ExternalName"), [pod()], []),
    "headless without ports": (service(headless=True), [pod()], [((), [V4])]),
    "a name": (service(NAMED), [pod(**ports(("web", TCP, 81)))], [((81,), [V4])]),
    "the first port of the name": (service(NAMED), [pod(**ports(("web", TCP, 81), ("web", TCP, 82)))], [((81,), [V4])]),
    "a name of the other protocol": (service(NAMED), [pod(**ports(("web", UDP, 81)))], []),
    "a name that is not declared": (service(NAMED), [pod()], []),
    "different numbers behind one name": (
        service(NAMED),
        [pod("a", V4, **ports(("web", TCP, 82))), pod("b", OTHER, **ports(("web", TCP, 81)))],
        [((81,), [OTHER]), ((82,), [V4])],
    ),
    "one of two names": (service(NAMED, DNS), [pod(**ports(("dns", UDP, 5353)))], [((5353,), [V4])]),
    "one number and a name that is not declared": (service(NUMBER, DNS), [pod()], [((8080,), [V4])]),
}


@pytest.mark.parametrize(("given", "pods", "expected"), ROWS.values(), ids=ROWS)
def test_endpoints(given: Service, pods: list[Pod], expected: Any) -> None:
    found = derive(given, pods)
    assert flat(found) == expected
    assert derive(given, reversed(pods)) == found
    assert len({s.ref for s in found}) == len(found)


def test_a_slice_in_full() -> None:
    (found,) = derive(service(ServicePort("http", TCP, 80, 8080)), [pod(node="n")])
    assert found.ref.kind == "EndpointSlice"
    assert found.ref.namespace == "shop"
    assert found.ref.name.startswith("s-ipv4-")
    assert (found.origin, found.service, found.ports) == (HERE, "s", (SlicePort("http", TCP, 8080),))
    assert tuple(found.endpoints) == (SliceEndpoint((V4,), ready=True, serving=True, terminating=False, node="n"),)


# ready, terminating, publishNotReadyAddresses → ready, serving (KEP-1672)
CONDITIONS = [
    ((True, False, False), (True, True)),
    ((False, False, False), (False, False)),
    ((False, False, True), (True, False)),
    ((True, True, False), (False, True)),
    ((False, True, False), (False, False)),
    ((True, True, True), (True, True)),
]


@pytest.mark.parametrize(("given", "expected"), CONDITIONS)
def test_conditions(given: tuple[bool, bool, bool], expected: tuple[bool, bool]) -> None:
    ready, terminating, publish = given
    (found,) = derive(service(NUMBER, publish_not_ready=publish), [pod(ready=ready, terminating=terminating)])
    (endpoint,) = found.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (*expected, terminating)


HINTS: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = [
    ("PreferSameNode", "n", ("n",), ("z",)),
    ("PreferSameNode", "m", ("m",), ()),
    ("PreferSameZone", "n", (), ("z",)),
    ("PreferSameZone", "m", (), ()),
    ("", "n", (), ()),
]


@pytest.mark.parametrize(("distribution", "node", "nodes", "zones"), HINTS)
def test_hints(distribution: str, node: str, nodes: tuple[str, ...], zones: tuple[str, ...]) -> None:
    given = service(NUMBER, exposure=Exposure(distribution=distribution))
    (found,) = derive(given, [pod(node=node)], {"n": "z"})
    (endpoint,) = found.endpoints
    assert (endpoint.nodes, endpoint.zones) == (nodes, zones)
