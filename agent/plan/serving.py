"""Which flows through services must end because their backend is gone. Pure.

Established TCP connections stay with a backend that is not ready or terminates; they end when no EndpointSlice of the
service lists it any more. A UDP (or SCTP) client learns of no end and would send on to nobody for ever: its flows end
once the backend neither is ready nor serves (EndpointSlice conditions), or the frontend is gone, and its next datagram
goes to another backend.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from agent.services.model import Backend
from agent.world.world import World
from policies.address import is_v4
from policies.model import ObjectRef, Protocol

TCP = Protocol.BY_NAME["TCP"]

Pair = tuple[bytes, int, int, bytes, int]
"""A frontend (address of 16 bytes, port, protocol) and a backend (address, port)."""

MANY = 4096
"""Where more pairs than that end at once, those in use are asked for instead."""

_FRONTEND, _BACKEND = 19, 18

Groups = tuple[tuple[bytes, bytes], ...]
"""Of a service: frontends and the backends whose flows through them go on, each joined from packed ones. As bytes, for
there may be 50,000 services."""


class Serving:
    """Remembers what served, to tell what no longer does: `lost`, by number, until it is said to be `done`.

    `asks`: which pairs are in use must be asked for and given to `check`; at the start, for nobody remembers what an
    earlier agent did, and where too much is lost at once.
    """

    def __init__(self) -> None:
        self.lost: dict[Pair, int] = {}
        self.asks = False
        self._known: dict[ObjectRef, Groups] = {}
        self._unknown: list[ObjectRef] = []
        self._number = 0

    def start(self, refs: Iterable[ObjectRef]) -> None:
        """Of these services nothing is remembered: `learn` before anything else is asked."""
        self._unknown = list(refs)
        self.asks = True

    def learn(self, world: World, limit: int) -> bool:
        """Look at so many of those services; whether there are more."""
        for ref in self._unknown[-limit:]:
            if ref not in self._known and (groups := _groups(world, ref)):
                self._known[ref] = groups
        del self._unknown[-limit:]
        return bool(self._unknown)

    def update(self, world: World, refs: Iterable[ObjectRef]) -> bool:
        """These services have changed; whether flows must end."""
        before: list[tuple[Groups, frozenset[bytes]]] = []
        now: dict[bytes, bytes] = {}
        for ref in refs:
            old, new = self._known.pop(ref, ()), _groups(world, ref)
            if new:
                self._known[ref] = new
            if old != new:
                before.append((old, _of_tcp(new)))
            now.update(_by_frontend(new))
        self._keep(now)
        for groups, tcp in before:
            for frontend, backends in _by_frontend(groups):
                left = now.get(frontend, b"")
                if left != backends:
                    stay = tcp if frontend[16] == TCP else frozenset()
                    self._lose(frontend, set(_split(backends, _BACKEND)).difference(_split(left, _BACKEND), stay))
        return bool(self.lost) or self.asks

    def check(self, used: Iterable[Pair]) -> None:
        """Of these pairs, in use, those that must end are lost."""
        wanted: defaultdict[bytes, set[bytes]] = defaultdict(set)
        for address, port, protocol, backend, backend_port in used:
            wanted[_frontend(address, protocol, port)].add(_backend((backend, backend_port)))
        of_nobody = {frontend for frontend in wanted if frontend[16] == TCP}
        for groups in self._known.values():
            if len(groups) == 1 and len(groups[0][0]) == _FRONTEND and groups[0][0] not in wanted:
                continue  # as nearly all of 50,000
            tcp: frozenset[bytes] | None = None
            for frontend, backends in _by_frontend(groups):
                if frontend in wanted:
                    of_nobody.discard(frontend)
                    wanted[frontend].difference_update(_split(backends, _BACKEND))
                    if frontend[16] == TCP:
                        tcp = _of_tcp(groups) if tcp is None else tcp
                        wanted[frontend] -= tcp
        if of_nobody:
            unserved = set[bytes]().union(*(wanted[frontend] for frontend in of_nobody))
            for groups in self._known.values():
                if not unserved:
                    break
                unserved -= _of_tcp(groups)
            for frontend in of_nobody:
                wanted[frontend] &= unserved
        for frontend, gone in wanted.items():
            self._number += 1
            self.lost.update(dict.fromkeys(_pairs(frontend, gone), self._number))

    def done(self, ended: Mapping[Pair, int]) -> None:
        """These were `lost`, and their flows have ended. What was lost again since is lost still."""
        for pair, number in ended.items():
            if self.lost.get(pair) == number:
                del self.lost[pair]

    def _lose(self, frontend: bytes, backends: Iterable[bytes]) -> None:
        self._number += 1
        self.lost.update(dict.fromkeys(_pairs(frontend, backends), self._number))
        if len(self.lost) > MANY:
            self.lost.clear()
            self.asks = True

    def _keep(self, now: Mapping[bytes, bytes]) -> None:
        """What is lost and not yet done, but serves again, may have new flows."""
        serves: dict[bytes, frozenset[bytes]] = {}
        for pair in list(self.lost):
            address, port, protocol, backend, backend_port = pair
            frontend = _frontend(address, protocol, port)
            if frontend in now and frontend not in serves:
                serves[frontend] = frozenset(_split(now[frontend], _BACKEND))
            if _backend((backend, backend_port)) in serves.get(frontend, ()):
                del self.lost[pair]


def _groups(world: World, ref: ObjectRef) -> Groups:
    """By service port and family."""
    keys: defaultdict[tuple[str, int, bool], set[bytes]] = defaultdict(set)
    backends: defaultdict[tuple[str, int, bool], set[bytes]] = defaultdict(set)
    for one in world.frontends(ref, served=False):
        group = one.port_name, one.protocol, is_v4(one.address)
        keys[group].add(_frontend(one.address, one.protocol, one.port))
        for target in (one.inside, one.outside):
            backends[group].update(map(_backend, target.backends))
    service = world.services.get(ref) if keys else None
    for given in world.slices(service) if service else ():
        for port in given.ports:
            for address, member in given.addressed():
                if port.protocol == TCP or member.ready or member.serving:
                    backends[port.name, port.protocol, is_v4(address)].add(_backend((address, port.port)))
    return tuple((b"".join(sorted(some)), b"".join(sorted(backends[group]))) for group, some in keys.items())


def _by_frontend(groups: Groups) -> Iterator[tuple[bytes, bytes]]:
    for joined, backends in groups:
        for frontend in _split(joined, _FRONTEND):
            yield frontend, backends


def _of_tcp(groups: Groups) -> frozenset[bytes]:
    return frozenset(b for joined, backends in groups if joined[16] == TCP for b in _split(backends, _BACKEND))


def _split(joined: bytes, size: int) -> list[bytes]:
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def _frontend(address: bytes, protocol: int, port: int) -> bytes:
    return address + bytes((protocol,)) + port.to_bytes(2, "big")


def _backend(backend: Backend) -> bytes:
    return backend[0] + backend[1].to_bytes(2, "big")


def _pairs(frontend: bytes, backends: Iterable[bytes]) -> Iterator[Pair]:
    address, protocol, port = frontend[:16], frontend[16], int.from_bytes(frontend[17:], "big")
    for backend in backends:
        yield address, port, protocol, backend[:16], int.from_bytes(backend[16:], "big")
