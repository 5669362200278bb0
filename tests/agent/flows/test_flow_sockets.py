"""Sockets that were given to backends that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from flow_events import ABI

from agent.datapath.abi import be16
from agent.datapath.maps import Maps
from agent.datapath.sockets import Backend
from agent.flows.pairs import Pair
from agent.flows.sockets import Sockets
from policies.address import parse_address

KEY, VALUE = ABI.records["socket_key"], ABI.records["socket_value"]
FRONTEND, OTHER = ("10.96.0.9", 53), ("192.0.2.1", 30053)
OLD, NEW = ("10.0.0.2", 5353), ("10.0.0.3", 5353)
UDP, TCP = 17, 6
Ends = tuple[str, int]

SOCKETS: list[tuple[int, Ends, int, Ends]] = [
    # cookie, frontend, protocol, backend
    (1, FRONTEND, UDP, OLD),
    (2, FRONTEND, UDP, NEW),
    (3, FRONTEND, TCP, OLD),
    (4, OTHER, UDP, OLD),
    (5, FRONTEND, UDP, OLD),
]


def pair(frontend: Ends, protocol: int, backend: Ends) -> Pair:
    return parse_address(frontend[0]), be16(frontend[1]), protocol, parse_address(backend[0]), be16(backend[1])


def key(cookie: int, ends: Ends, protocol: int) -> bytes:
    return KEY.pack(cookie=cookie, address=parse_address(ends[0]), port_be=be16(ends[1]), protocol=protocol)


def value(ends: Ends) -> bytes:
    return VALUE.pack(address=parse_address(ends[0]), port_be=be16(ends[1]))


class Kernel:
    """Remembers what it was asked to end."""

    def __init__(self, error: OSError | None = None) -> None:
        self.asked: list[tuple[list[str], set[tuple[int, Backend]]]] = []
        self._error = error

    def destroy(self, namespaces: Collection[str], wanted: Collection[tuple[int, Backend]]) -> int:
        self.asked.append((list(namespaces), set(wanted)))
        if self._error is not None:
            raise self._error
        return len(wanted)


def translated(maps: Maps) -> None:
    """As the socket hooks leave the maps: slots (see bpf/socket_memory.h) stay."""
    for cookie, frontend, protocol, backend in SOCKETS:
        maps["socket_frontends"].update(key(cookie, backend, protocol), value(frontend))
        if protocol == UDP:
            maps["socket_backends"].update(key(cookie, frontend, protocol), value(backend))
        maps["socket_backends"].update(
            key(cookie, ("::", 0), protocol), value(backend if protocol == TCP else frontend)
        )


def retire(maps: Maps, kernel: Kernel, *pairs: Pair) -> int:
    sockets = Sockets(ABI, maps["socket_frontends"], maps["socket_backends"], kernel.destroy)
    return asyncio.run(sockets.retire(frozenset(pairs), ["/run/netns/a", "/run/netns/b"]))


@pytest.mark.parametrize(
    ("retired", "expected"),
    [
        (pair(FRONTEND, UDP, OLD), {1, 5}),
        (pair(FRONTEND, TCP, OLD), {3}),
        (pair(OTHER, UDP, OLD), {4}),
        (pair(OTHER, UDP, NEW), set()),
    ],
)
def test_sockets_of_a_pair_end_lesson_20(maps: Maps, retired: Pair, expected: set[int]) -> None:
    translated(maps)
    kernel = Kernel()
    assert retire(maps, kernel, retired) == len(expected)
    wanted = {(cookie, (parse_address(OLD[0]), OLD[1])) for cookie in expected}
    assert kernel.asked == ([(["/run/netns/a", "/run/netns/b"], wanted)] if expected else [])
    for name in ("socket_frontends", "socket_backends"):
        left = {KEY.unpack(k).cookie for k, _ in maps[name].items() if any(KEY.unpack(k).address)}
        kept = {s[0] for s in SOCKETS if name == "socket_frontends" or s[2] == UDP} - expected
        assert left == kept


def test_both_frontends_of_one_backend_are_forgotten(maps: Maps) -> None:
    """A datagram socket spoke to FRONTEND, then to OTHER."""
    for frontend in (FRONTEND, OTHER):
        maps["socket_frontends"].update(key(1, OLD, UDP), value(frontend))
        maps["socket_backends"].update(key(1, frontend, UDP), value(OLD))
    retire(maps, Kernel(), pair(FRONTEND, UDP, OLD))
    assert [KEY.unpack(k).port_be for k, _ in maps["socket_backends"].items()] == [be16(OTHER[1])]
    retire(maps, Kernel(), pair(OTHER, UDP, OLD))
    assert not list(maps["socket_backends"].items()) and not list(maps["socket_frontends"].items())


def test_pairs_in_use(maps: Maps) -> None:
    translated(maps)
    sockets = Sockets(ABI, maps["socket_frontends"], maps["socket_backends"], Kernel().destroy)
    expected = {pair(frontend, protocol, backend) for _, frontend, protocol, backend in SOCKETS}
    assert asyncio.run(sockets.used()) == expected


def test_a_kernel_that_cannot_is_logged(maps: Maps, capsys: pytest.CaptureFixture[str]) -> None:
    translated(maps)
    assert retire(maps, Kernel(OSError("this kernel cannot")), pair(FRONTEND, UDP, OLD)) == 0
    assert "this kernel cannot" in "".join(capsys.readouterr())
