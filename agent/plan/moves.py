"""Addresses and endpoints that change subject or class in a transition, and the writes that move them."""

from __future__ import annotations

from agent.plan.ids import NUMBERS, move_id
from agent.plan.state import (
    ENDPOINT,
    ENDPOINTS,
    INTERFACES,
    IPCACHE,
    IPCACHE_KEY,
    IPCACHE_VALUE,
    NO_ADDRESS,
    Changes,
    State,
    Uses,
)
from agent.plan.step import Step

CLOSED = bytes(ENDPOINT.size)
"""An endpoint without subject and class: denied both ways."""

Pair = tuple[int, int]
"""The old number and the new one."""


class Moves:
    """`classes` and `subjects`: the pairs that somebody moves along. `aliased`: by way of numbers of their own."""

    def __init__(self, old: State, changes: Changes, uses: Uses) -> None:
        self._old = old
        self._changes = changes
        self._uses = uses
        self.classes: set[Pair] = set()
        self.subjects: set[Pair] = set()
        self.aliased = False
        self._passing_classes: set[int] = set()
        self._passing_subjects: set[int] = set()
        self._owners: set[int] = set()  # local endpoints that move, by interface
        self._remotes = 0  # other addresses that move
        self.comings = 0
        """How many entries pods that appear or vanish have."""
        for name in (ENDPOINTS, INTERFACES):
            for key, new in changes.tables[name].items():
                self._find_endpoint(old.tables[name].get(key), new)
        for key, new in changes.tables[IPCACHE].items():
            self._find_address(key, new)

    @property
    def any(self) -> bool:
        return bool(self._owners or self._remotes)

    @property
    def only_one(self) -> bool:
        """Whether at most one end of any flow moves."""
        return not self.comings and (not self._owners or (len(self._owners) == 1 and not self._remotes))

    @property
    def arriving_classes(self) -> set[int]:
        return {new for _, new in self.classes}

    @property
    def arriving_subjects(self) -> set[int]:
        return {new for _, new in self.subjects}

    def by_way_of_own_numbers(self) -> None:
        self.aliased = True
        self._passing_classes = {between(*pair) for pair in self.classes}
        self._passing_subjects = {between(*pair) for pair in self.subjects}

    def is_passing_class(self, remote: int) -> bool:
        return remote in self._passing_classes

    def is_passing_subject(self, subject: int) -> bool:
        return subject in self._passing_subjects

    def orphans(self) -> list[tuple[str, int]]:
        """(map, number) of blocks that nothing points at any more."""
        return [
            (name, number)
            for name, counts in self._uses.blocks.items()
            for number, step in counts.items()
            if step < 0 and self._old.uses.blocks[name][number] + step == 0
        ]

    def used_before(self, subject: int) -> bool:
        return subject in self._old.uses.subjects

    def used_after(self, subject: int) -> bool:
        return self._old.uses.subjects.get(subject, 0) + self._uses.subjects.get(subject, 0) > 0

    def class_used_before(self, remote: int) -> bool:
        return remote in self._old.uses.classes

    def class_used_after(self, remote: int) -> bool:
        return self._old.uses.classes.get(remote, 0) + self._uses.classes.get(remote, 0) > 0

    # ---- writes

    def aside(self) -> list[Step]:
        """Everyone that moves takes numbers of its own; pods that come or go are closed meanwhile."""
        if not self.aliased:
            return []
        steps = [Step(INTERFACES, {}, _gone(self._changes.tables[INTERFACES]))]
        for name in (ENDPOINTS, INTERFACES):
            updates: dict[bytes, bytes] = {}
            for key, new in self._changes.tables[name].items():
                before = self._old.tables[name].get(key)
                if before is not None and new is not None:
                    updates[key] = _endpoint_between(before, new)
                elif name == ENDPOINTS:
                    updates[key] = CLOSED
            steps.append(Step(name, updates))
        moving = {}
        for key, new in self._changes.tables[IPCACHE].items():
            before, after = self._around(key, new)
            if before is not None and after is not None and before != after:
                number, identity = IPCACHE_VALUE.unpack_values(before)
                moving[key] = IPCACHE_VALUE.pack_values(between(number, _class(after)), identity)
        return [*steps, Step(IPCACHE, moving)]

    def home(self) -> list[Step]:
        """Everyone where it is to be.

        Sources go first and come last. An address of a pod here stops being local last and becomes so first; narrow
        prefixes are written before wide ones and deleted after them, so that none uncovers a wrong one.
        """
        interfaces, endpoints = self._changes.tables[INTERFACES], self._changes.tables[ENDPOINTS]
        ipcache = self._changes.tables[IPCACHE]
        narrow_first = sorted(ipcache, key=_length, reverse=True)
        updates = {key: value for key in narrow_first if (value := ipcache[key]) is not None}
        return [
            Step(INTERFACES, {}, () if self.aliased else _gone(interfaces)),  # aside: gone already
            Step(ENDPOINTS, {key: value for key, value in endpoints.items() if value is not None}),
            Step(IPCACHE, updates, tuple(key for key in reversed(narrow_first) if ipcache[key] is None)),
            Step(ENDPOINTS, {}, _gone(endpoints)),
            Step(INTERFACES, {key: value for key, value in interfaces.items() if value is not None}),
        ]

    # ---- inside

    def _find_endpoint(self, old: bytes | None, new: bytes | None) -> None:
        if old is None or new is None:
            self.comings += 1
            return
        before, after = ENDPOINT.unpack(old), ENDPOINT.unpack(new)
        if before.subject != after.subject:
            self._owners.add(before.ifindex)
            self.subjects.add((before.subject, after.subject))
        for old_class, new_class, old_address, new_address in (
            (before.class_v4, after.class_v4, before.ipv4, after.ipv4),
            (before.class_v6, after.class_v6, before.ipv6, after.ipv6),
        ):
            if old_class != new_class and NO_ADDRESS not in (old_address, new_address):
                self._owners.add(before.ifindex)
                self.classes.add((old_class, new_class))

    def _find_address(self, key: bytes, new: bytes | None) -> None:
        before, after = self._around(key, new)
        if before is None or after is None or _class(before) == _class(after):
            return
        self.classes.add((_class(before), _class(after)))
        here = new if new is not None else self._old.tables[IPCACHE][key]
        came_or_went = new is None or key not in self._old.tables[IPCACHE]
        address = IPCACHE_KEY.unpack_values(key)[1]
        if came_or_went and _is_pod(here):
            self.comings += 1
        elif not self._is_local(address):
            self._remotes += 1

    def _around(self, key: bytes, new: bytes | None) -> tuple[bytes | None, bytes | None]:
        """The values that hold for an ipcache key before and after, be they its own or of a prefix around it."""
        before = self._old.tables[IPCACHE].get(key) or self._old.covering(key)
        return before, new or self._old.covering(key, self._changes.tables[IPCACHE])

    def _is_local(self, address: bytes) -> bool:
        """Whether this is an endpoint's address throughout: then it moves with the endpoint."""
        return address in self._old.tables[ENDPOINTS] and self._changes.tables[ENDPOINTS].get(address, b"") is not None


def between(old: int, new: int) -> int:
    """The number under which one moves from one number to another."""
    return old if old == new else move_id(old, new)


def _endpoint_between(old: bytes, new: bytes) -> bytes:
    before, after = ENDPOINT.unpack(old), ENDPOINT.unpack(new)
    values = before._asdict()
    values["subject"] = between(before.subject, after.subject)
    for number, address in (("class_v4", "ipv4"), ("class_v6", "ipv6")):
        if NO_ADDRESS not in (getattr(before, address), getattr(after, address)):
            values[number] = between(getattr(before, number), getattr(after, number))
    return ENDPOINT.pack(**values)


def _class(value: bytes) -> int:
    return int(IPCACHE_VALUE.unpack_values(value)[0])


def _is_pod(value: bytes) -> bool:
    identity = IPCACHE_VALUE.unpack_values(value)[1]
    return bool(NUMBERS.IDENTITY_CLUSTER_MIN <= identity <= NUMBERS.IDENTITY_CLUSTER_MAX)


def _length(key: bytes) -> int:
    return int(IPCACHE_KEY.unpack_values(key)[0])


def _gone(entries: dict[bytes, bytes | None]) -> tuple[bytes, ...]:
    return tuple(key for key, value in entries.items() if value is None)
