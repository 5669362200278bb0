"""Services as they are shown: which endpoint serves whom, and why another does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from worlds import CONFIG, ORIGIN

from agent.history import History
from agent.objects import (
    Change,
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Interface,
    Object,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.service_views import ServiceViews, Wanted
from agent.services.endpoints import ELSEWHERE, NOT_READY, NOT_SERVING, OTHER_HINTS, TERMINATING
from agent.status import BackendView, ServiceView
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

ANYTHING = Wanted()
HERE, THERE = CONFIG.name, "there"
WEB = Service(
    ObjectRef("Service", "shop", "web"),
    ORIGIN,
    "LoadBalancer",
    None,
    (parse_address("10.96.9.1"),),
    False,
    (ServicePort("http", 6, 80, 8080, node_port=30002),),
    families=("IPv4",),
    exposure=Exposure(balancer_ips=(parse_address("203.0.113.9"),)),
)


def endpoint(number: int, node: str = HERE, **conditions: Any) -> SliceEndpoint:
    return SliceEndpoint((parse_address(f"10.1.0.{number}"),), node=node, **conditions)


def slice_of(*endpoints: SliceEndpoint, service: str = "web") -> EndpointSlice:
    ref = ObjectRef("EndpointSlice", "shop", f"{service}-1")
    return EndpointSlice(ref, ORIGIN, service, (SlicePort("http", 6, 8080),), endpoints)


def shown(*objects: Object, wanted: Wanted = ANYTHING) -> list[ServiceView]:
    world = World(CONFIG)
    for one in objects:
        world.apply(Change(one.ref, one))
        if isinstance(one, Pod):
            world.set_interface(one.ref, Interface(7, "gh7", bytes(6), bytes(6), "/run/netns/pod"))
    world.take_dirty()
    problem = {ObjectRef("Service", "shop", "ill"): "health check port 31000 cannot be opened"}
    return [view for view in ServiceViews(world, History(), lambda: problem).views(wanted) if view is not None]


def short(backends: Iterable[BackendView]) -> dict[str, tuple[str, str, str]]:
    """Last byte of the address → state, who gets it, why not everybody."""
    return {
        b.address.rpartition(".")[2]: (b.state, "i" * b.inside + "o" * b.outside, b.why.split(":")[0]) for b in backends
    }


LOCAL = msgspec.structs.replace(WEB, exposure=msgspec.structs.replace(WEB.exposure, external_local=True))
INTERNAL = msgspec.structs.replace(WEB, exposure=msgspec.structs.replace(WEB.exposure, internal_local=True))
UNREADY = endpoint(3, ready=False, serving=False)
SERVING = endpoint(4, ready=False, terminating=True)
LEAVING = endpoint(5, ready=False, serving=False, terminating=True)


@pytest.mark.parametrize(
    ("service", "kind", "endpoints", "expected"),
    [
        (WEB, "ClusterIP", [endpoint(1)], {"1": ("ready", "io", "")}),
        (
            WEB,
            "NodePort",
            [endpoint(1), UNREADY, SERVING, LEAVING],
            {
                "1": ("ready", "io", ""),
                "3": ("not ready", "", NOT_READY),
                "4": ("serving", "", TERMINATING),
                "5": ("terminating", "", NOT_SERVING),
            },
        ),
        (WEB, "ClusterIP", [SERVING, LEAVING], {"4": ("serving", "io", ""), "5": ("terminating", "", NOT_SERVING)}),
        (
            LOCAL,
            "LoadBalancer",
            [endpoint(1), endpoint(2, THERE)],
            {"1": ("ready", "io", ""), "2": ("ready", "i", "clients outside")},
        ),
        (LOCAL, "ClusterIP", [endpoint(1), endpoint(2, THERE)], {"1": ("ready", "io", ""), "2": ("ready", "io", "")}),
        (
            INTERNAL,
            "ClusterIP",
            [endpoint(2, THERE)],
            {"2": ("ready", "", ELSEWHERE)},
        ),
        (
            WEB,
            "ClusterIP",
            [endpoint(1, nodes=(HERE,)), endpoint(2, THERE, nodes=(THERE,))],
            {"1": ("ready", "io", ""), "2": ("ready", "", OTHER_HINTS)},
        ),
    ],
)
def test_backends(
    service: Service, kind: str, endpoints: list[SliceEndpoint], expected: dict[str, tuple[str, str, str]]
) -> None:
    (view,) = shown(service, slice_of(*endpoints))
    (frontend, *_) = (f for f in view.frontends if f.kind == kind)
    assert short((*frontend.backends, *frontend.unused)) == expected
    assert {b.inside or b.outside for b in frontend.unused} <= {False}


def test_all_frontends_and_settings() -> None:
    (view,) = shown(LOCAL, slice_of(endpoint(2, THERE)))
    kinds = [(f.kind, f.address, f.port, f.node_port, f.without_outside) for f in view.frontends]
    assert ("ClusterIP", "10.96.9.1", 80, 30002, "refused") in kinds
    assert ("LoadBalancer", "203.0.113.9", 80, 30002, "dropped") in kinds
    assert ("NodePort", "10.0.0.1", 30002, 30002, "dropped") in kinds
    assert ("Loopback", "127.0.0.1", 30002, 30002, "refused") in kinds  # only sockets of the node know it
    assert view.external_traffic_policy == "Local"
    assert view.health_check_node_port
    assert view.internal_traffic_policy == "Cluster"


def test_a_pod_is_named_with_its_node() -> None:
    ports = (DeclaredPort("http", 6, 8080, host_port=8888),)
    pod = Pod(ObjectRef("Pod", "shop", "a"), ORIGIN, {}, addresses=(parse_address("10.1.0.1"),), ports=ports)
    host, view = shown(WEB, slice_of(endpoint(1)), pod)
    (backend,) = view.frontends[0].backends
    assert (backend.pod, backend.node) == ("shop/a", HERE)
    assert (host.type, host.namespace, host.name, host.ips) == ("HostPort", "shop", "a", ("10.1.0.1",))
    assert {f.port for f in host.frontends} == {8888}
    assert {b.pod for f in host.frontends for b in f.backends} == {"shop/a"}


def test_filters() -> None:
    def named(name: str, namespace: str = "shop") -> Service:
        ref = ObjectRef("Service", namespace, name)
        return Service(ref, ORIGIN, "ClusterIP", None, (), True, ())

    def names(wanted: Wanted) -> list[str]:
        objects = (WEB, slice_of(endpoint(1)), named("web-1"), named("ill"), named("web", "other"))
        return [f"{view.namespace}/{view.name}" for view in shown(*objects, wanted=wanted)]

    assert names(Wanted()) == ["other/web", "shop/ill", "shop/web", "shop/web-1"]
    assert names(Wanted(namespace="shop", name="web*")) == ["shop/web", "shop/web-1"]
    assert names(Wanted(problems=True)) == ["shop/ill"]


def test_a_service_nobody_serves_is_a_problem() -> None:
    (view,) = shown(WEB, slice_of(UNREADY), wanted=Wanted(problems=True))
    assert view.problem == ""
    assert {f.backends for f in view.frontends} == {()}
