"""Many services, and services with many endpoints; an agent that is killed while it loads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import rig
from agents import START_S, Document, RunningAgent

from agent.datapath import abi
from agent.datapath.apply import read_state
from agent.datapath.bpf import NoEntry
from agent.datapath.maps import Maps
from agent.objects import Change
from agent.plan.plan import Plan
from agent.plan.state import SERVICES, MapState
from agent.sources.manifest import parse
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import format_address, parse_address

SERVICE_COUNT, BACKENDS = 2000, 25
SLICES, IN_A_SLICE = 10, 1000
FILE = "services.json"
LOAD_S = 240.0
LOOK_S = 0.0005
CONTENT = (SERVICES, "backends", "members", "maglev", "source_ranges")
"""The maps that services fill."""

Moment = Callable[["Load"], bool]


def the_first_backend_is_there(load: Load) -> bool:
    return load.share("backends", load.fresh) > 0


def half_of_the_backends_are_there(load: Load) -> bool:
    return load.share("backends", load.fresh) >= 0.5


def the_first_service_is_there(load: Load) -> bool:
    return load.share(SERVICES, load.wanted[SERVICES]) > 0


def the_first_stale_backend_is_gone(load: Load) -> bool:
    return load.share("backends", load.stale) < 1


MOMENTS: tuple[Moment, ...] = (
    half_of_the_backends_are_there,
    the_first_backend_is_there,
    the_first_service_is_there,
    the_first_stale_backend_is_gone,
)


class Load:
    """What the maps are to hold once a set of manifests is in force, and how far they are."""

    def __init__(self, maps: Maps, wanted: MapState, before: MapState) -> None:
        self.maps = maps
        self.wanted = wanted
        self.fresh = {key: value for key, value in wanted["backends"].items() if key not in before["backends"]}
        self.stale = {key: value for key, value in before["backends"].items() if key not in wanted["backends"]}

    def share(self, name: str, entries: Mapping[bytes, bytes]) -> float:
        """How many of these entries a map has, by a sample: there is little time between two looks."""
        sample = list(entries.items())[:: len(entries) // 40 or 1]
        return sum(self.maps[name].lookup(key) == value for key, value in sample) / max(len(sample), 1)

    def is_done(self) -> bool:
        return read_state(self.maps, CONTENT) == self.wanted


def manifests(version: int) -> Iterator[Document]:
    """Each version has other backends for every service, and a tenth of the services for itself."""
    for number in range(SERVICE_COUNT):
        owner = number if number % 10 else number + version * SERVICE_COUNT
        first = number * BACKENDS + version
        yield service(owner)
        yield endpoint_slice(owner, 0, (backend(first + place) for place in range(BACKENDS)))


def service(number: int) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": f"s{number}"},
        "spec": {"clusterIP": f"10.97.{number >> 8}.{number & 255}", "ports": [{"port": 80, "targetPort": 8080}]},
    }


def endpoint_slice(owner: int, number: int, addresses: Iterator[str]) -> Document:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop",
            "name": f"s{owner}-{number}",
            "labels": {"kubernetes.io/service-name": f"s{owner}"},
        },
        "addressType": "IPv4",
        "ports": [{"protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def backend(number: int) -> str:
    return format_address(parse_address("10.64.0.0")[:12] + (0x0A400000 + number).to_bytes(4, "big"))


def write(agent: RunningAgent, documents: Iterator[Document]) -> None:
    agent.write(FILE, {"apiVersion": "v1", "kind": "List", "items": list(documents)})


def planned(manifest: Path) -> MapState:
    """What services' maps are to hold, worked out from the manifests alone, with no kernel and no history."""
    world = World(NodeConfig("n1", ()))
    for item in parse(manifest.read_bytes(), manifest.name).items:
        assert item.object is not None, item
        world.apply(Change(item.object.ref, item.object))
    plan = Plan()
    plan.take_over(plan.update(world, world.take_dirty()))
    return {name: entries for name, entries in plan.state.maps().items() if name in CONTENT}


def opened(agent: RunningAgent) -> Maps:
    def attempt() -> Maps | None:
        try:
            return Maps.open_pinned(agent.instance.pins.maps)
        except NoEntry:
            return None

    found = rig.wait_until(attempt, START_S)
    assert found is not None
    return found


@pytest.mark.timeout(600)
def test_killed_while_it_loads_the_next_one_ends_where_it_should(agent: RunningAgent) -> None:
    nothing: MapState = {name: {} for name in CONTENT}
    before, unfinished = nothing, 0
    for version, moment in enumerate(MOMENTS):
        write(agent, manifests(version))
        wanted = planned(agent.manifests / FILE)
        agent.start(settle=False)
        with opened(agent) as maps:
            load = Load(maps, wanted, before)
            deadline = time.monotonic() + LOAD_S
            while not moment(load):
                assert time.monotonic() < deadline, (moment, agent.log())
                time.sleep(LOOK_S)
            agent.kill()
            unfinished += not load.is_done()
            before = {name: dict(entries) for name, entries in read_state(maps, CONTENT).items()}
    assert unfinished, "it is never killed in the middle: there are too few services for this machine"
    agent.start()
    with opened(agent) as maps:
        assert Load(maps, wanted, nothing).is_done()
    assert agent.status()["problems"] == []


def test_a_service_with_ten_thousand_endpoints(agent: RunningAgent) -> None:
    """In slices of 1,000, the most that discovery/v1 allows."""

    def slices(count: int) -> Iterator[Document]:
        for number in range(count):
            first = number * IN_A_SLICE
            yield endpoint_slice(1, number, (backend(first + place) for place in range(IN_A_SLICE)))

    write(agent, iter([service(1), *slices(SLICES)]))
    agent.start()
    value, key = abi.load().records["service_value"], abi.load().records["service_key"]
    frontend = key.pack_values(parse_address("10.97.0.1"), abi.be16(80), 6)
    (shown,) = agent.json("services")
    assert len(shown["frontends"][0]["backends"]) == SLICES * IN_A_SLICE
    with opened(agent) as maps:
        for count in (SLICES, SLICES - 1):
            write(agent, iter([service(1), *slices(count)]))
            agent.settle()
            held = maps[SERVICES].lookup(frontend)
            assert held is not None
            assert value.unpack(held).count_inside == count * IN_A_SLICE
            assert read_state(maps, CONTENT) == planned(agent.manifests / FILE)
    assert agent.status()["state"] == "ready"
