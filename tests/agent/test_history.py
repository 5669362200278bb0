"""The last change of each frontend, from real plans before and after."""

from __future__ import annotations

import pytest
from worlds import CONFIG, ORIGIN

from agent.datapath import abi
from agent.history import History
from agent.objects import Change, EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort
from agent.plan.plan import Plan
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

SERVICE_KEY = abi.load().records["service_key"]
WEB = ObjectRef("Service", "shop", "web")
VIP = parse_address("10.96.9.1")
KEY = SERVICE_KEY.pack_values(VIP, abi.be16(80), 6)


def service(port: int = 80) -> Service:
    return Service(WEB, ORIGIN, "ClusterIP", None, (VIP,), False, (ServicePort("", 6, port, 80),))


def backends(*last_bytes: int) -> EndpointSlice:
    endpoints = tuple(SliceEndpoint((parse_address(f"10.1.0.{n}"),)) for n in last_bytes)
    return EndpointSlice(ObjectRef("EndpointSlice", "shop", "s"), ORIGIN, "web", (SlicePort("", 6, 8080),), endpoints)


class Scene:
    def __init__(self, history: History) -> None:
        self.world, self.plan, self.history = World(CONFIG), Plan(), history

    def apply(self, *objects: Service | EndpointSlice) -> None:
        for one in objects:
            self.world.apply(Change(one.ref, one))
        self._turn()

    def remove(self, ref: ObjectRef) -> None:
        self.world.apply(Change(ref, None))
        self._turn()

    def _turn(self) -> None:
        changes = self.plan.update(self.world, self.world.take_dirty())
        self.history.note(self.plan.state, changes)
        self.plan.advance(changes)

    def last(self) -> str:
        found = self.history.last(KEY)
        return found.text if found else ""


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((), (1,), "backend 10.1.0.1:8080 added"),
        ((1,), (), "backend 10.1.0.1:8080 removed"),
        ((1,), (2, 3), "backends 10.1.0.2:8080 10.1.0.3:8080 added, backend 10.1.0.1:8080 removed"),
        ((1, 2, 3, 4), (5,), "backend 10.1.0.5:8080 added, 4 backends removed"),
    ],
)
def test_backends_that_come_and_go(before: tuple[int, ...], after: tuple[int, ...], text: str) -> None:
    scene = Scene(History(now=lambda: 5.0))
    scene.apply(service(), backends(*before))
    assert scene.last() == "frontend added"
    scene.apply(backends(*after))
    assert scene.last() == text
    found = scene.history.last(KEY)
    assert found is not None
    assert found.at == "1970-01-01T00:00:05.000Z"


def test_what_did_not_change_is_not_mentioned() -> None:
    scene = Scene(History())
    scene.apply(service(), backends(1))
    scene.apply(backends(1))
    assert scene.last() == "frontend added"


def test_what_is_gone_has_no_history() -> None:
    scene = Scene(History())
    scene.apply(service(), backends(1))
    scene.remove(WEB)
    assert scene.last() == ""


def test_only_so_much_is_kept() -> None:
    scene = Scene(History(kept=1))
    scene.apply(service(), backends(1))
    scene.apply(service(port=81))
    scene.apply(
        Service(
            ObjectRef("Service", "shop", "b"), ORIGIN, "ClusterIP", None, (VIP,), False, (ServicePort("", 6, 80, 1),)
        )
    )
    assert scene.last() == "frontend added"
    assert scene.history.last(SERVICE_KEY.pack_values(VIP, abi.be16(81), 6)) is None
