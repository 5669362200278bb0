"""What goes between the agent and the DNS proxy, and how either's words become the other's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from agent.dns.configuration import Listening, Standing, StandingClass
from agent.plan.ids import Asked, class_id
from agent.world.names import NameClasses
from policies.address import Prefix, parse_address
from policies.l7 import NamePattern
from policies.model import Direction

Known = dict[str, frozenset[bytes]]
"""Addresses (16 bytes) by name."""
NOWHERE: frozenset[bytes] = frozenset()


class News(msgspec.Struct):
    """One item of what it knows. `full`: there is nothing else."""

    id: int
    full: bool
    learned: dict[str, list[str]]
    gone: list[tuple[str, str]]


class Port(msgspec.Struct):
    tcp: int
    udp: int


class Listens(msgspec.Struct):
    """What it answers to `configure`. By number in hex; problems under "" are of the whole."""

    ports: dict[str, Port]
    problems: dict[str, str]


def listening(asked: Asked, port: int) -> Listening:
    """Names that some rule of those that meet allows."""
    names = {pattern for one in asked.demands for pattern in one.dns or ()}
    return Listening(tuple(sorted(names)), port, "egress" if asked.direction is Direction.EGRESS else "ingress")


def standing(classes: NameClasses) -> Standing:
    """The same in the words of the proxy's file: of classes, those that nothing but prefixes and names tell apart."""
    known = [
        StandingClass(class_id(one), one.identity, _texts(one.prefixes), tuple(sorted(names)))
        for one in classes.classes
        if len(names := [mark for mark in one.marks if isinstance(mark, NamePattern)]) == len(one.marks)
    ]
    known.sort(key=lambda one: one.number)
    return Standing(_texts(classes.prefixes), _texts(classes.inside), tuple(known))


def _texts(prefixes: Iterable[Prefix]) -> tuple[str, ...]:
    return tuple(map(str, sorted(prefixes)))


def changes(known: Mapping[str, frozenset[bytes]], news: Iterable[News]) -> Known:
    """Names that have other addresses after all of these items; none: they are gone."""
    after: Known = {}
    for item in news:
        if item.full:
            after = dict.fromkeys(known, NOWHERE)
        for name, texts in item.learned.items():
            after[name] = after.get(name, known.get(name, NOWHERE)) | set(map(parse_address, texts))
        for name, text in item.gone:
            after[name] = after.get(name, known.get(name, NOWHERE)) - {parse_address(text)}
    return {name: now for name, now in after.items() if now != known.get(name, NOWHERE)}
