"""Numbers by content: what the kernel calls rows, pools, classes, subjects and rules. See ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeVar

import msgspec

from agent.datapath import abi
from policies.l7 import Demands
from policies.model import (
    DEFAULT_DENY,
    NODE,
    NOT_ISOLATED,
    SELF,
    ContainerPort,
    Direction,
    ObjectRef,
    RemoteClass,
    RuleRef,
    Subject,
)

NUMBERS = abi.load().constants
CLASS_ANY = NUMBERS.CLASS_ANY
BUILT_IN = {
    DEFAULT_DENY: NUMBERS.RULE_NONE,
    NOT_ISOLATED: NUMBERS.RULE_NOT_ISOLATED,
    NODE: NUMBERS.RULE_HOST,
    SELF: NUMBERS.RULE_SELF,
}

HASHED = 1 << 63
"""Set in class and subject numbers that are hashes: the others are identity numbers."""
RESERVED = 256
"""Rule, row and pool numbers below this are never hashes."""

UNKNOWN_RULE = "Rule"
"""Kind of the ref that stands for a rule whose name is not known: its name is the number, in hex."""

T = TypeVar("T")


class CollisionError(Exception):
    """Two different contents have one 64-bit hash. Renaming either object resolves it."""


def content_id(kind: str, content: bytes) -> int:
    """64-bit hash of content, never a reserved number. Kinds have separate number spaces."""
    number, again = 0, b""
    while number < RESERVED or number == CLASS_ANY:
        digest = blake2b(content + again, digest_size=8, person=kind.encode())
        number = int.from_bytes(digest.digest(), "big")
        again += b"\0"
    return number


def class_id(remote: RemoteClass) -> int:
    """The identity where nothing else tells the class apart, so that most numbers can be read."""
    if not remote.prefixes and not remote.ports and not remote.marks:
        return remote.identity
    marks = sorted(_content(mark).decode() for mark in remote.marks)
    parts = [str(remote.identity), *sorted(map(str, remote.prefixes)), *_ports(remote.ports), *marks]
    return _hashed("class", parts)


def subject_id(subject: Subject) -> int:
    if not subject.ports:
        return subject.identity
    return _hashed("subject", [str(subject.identity), *_ports(subject.ports)])


def move_id(old: int, new: int) -> int:
    """What an address is while it moves from one class (or subject) to another. See transition."""
    return _hashed("move", [str(old), str(new)])


def rule_id(rule: RuleRef) -> int:
    if (number := BUILT_IN.get(rule)) is not None:
        return number
    if rule.policy.kind == UNKNOWN_RULE:
        return int(rule.policy.name, 16)
    ref = rule.policy
    return content_id(
        "rule", "\n".join((ref.kind, ref.namespace, ref.name, rule.section or rule.direction, str(rule.index))).encode()
    )


class Asked(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What a proxy is asked of flows, for the side whose rules these are."""

    direction: Direction
    demands: Demands


def listener_id(asked: Asked) -> int:
    """By content: also the name of the proxy's listener, in hex."""
    demands = sorted(map(_content, asked.demands))
    return content_id("listener", b"\n".join((asked.direction.encode(), *demands)))


def unknown_rule(number: int) -> RuleRef:
    return RuleRef(ObjectRef(UNKNOWN_RULE, "", f"{number:016x}"), Direction.INGRESS, -1)


class Names:
    """What numbers stand for: collected as they are made, which is also how a collision is noticed."""

    def __init__(self) -> None:
        self.rules: dict[int, RuleRef] = {number: rule for rule, number in BUILT_IN.items()}
        self.classes: dict[int, RemoteClass] = {}
        self.subjects: dict[int, Subject] = {}
        self.listeners: dict[int, Asked] = {}
        self._rule_ids: dict[RuleRef, int] = {rule: number for number, rule in self.rules.items()}
        self._class_ids: dict[RemoteClass, int] = {}
        self._subject_ids: dict[Subject, int] = {}
        self._listener_ids: dict[Asked, int] = {}

    def rule(self, rule: RuleRef) -> int:
        if rule.policy.kind == UNKNOWN_RULE:
            return rule_id(rule)  # it is no name: the rule itself may come
        if (number := self._rule_ids.get(rule)) is None:
            number = self._rule_ids[rule] = _note(self.rules, rule_id(rule), rule)
        return number

    def remote_class(self, remote: RemoteClass) -> int:
        if (number := self._class_ids.get(remote)) is None:
            number = self._class_ids[remote] = _note(self.classes, class_id(remote), remote)
        return number

    def remote_classes(self, remotes: Iterable[RemoteClass]) -> list[int]:
        known = self._class_ids
        return [known[remote] if remote in known else self.remote_class(remote) for remote in remotes]

    def subject(self, subject: Subject) -> int:
        if (number := self._subject_ids.get(subject)) is None:
            number = self._subject_ids[subject] = _note(self.subjects, subject_id(subject), subject)
        return number

    def listener(self, asked: Asked) -> int:
        if (number := self._listener_ids.get(asked)) is None:
            number = self._listener_ids[asked] = _note(self.listeners, listener_id(asked), asked)
        return number

    def rule_ref(self, number: int) -> RuleRef:
        """The rule of a number; one that stands for it where it is not known."""
        return self.rules.get(number) or unknown_rule(number)

    def keep_only(self, rules: set[int], classes: set[int], subjects: set[int], listeners: set[int]) -> None:
        """Forget all other names."""
        _keep(self.rules, self._rule_ids, rules | set(BUILT_IN.values()))
        _keep(self.classes, self._class_ids, classes)
        _keep(self.subjects, self._subject_ids, subjects)
        _keep(self.listeners, self._listener_ids, listeners)

    def __len__(self) -> int:
        return len(self.rules) + len(self.classes) + len(self.subjects) + len(self.listeners)


def _note(names: dict[int, T], number: int, content: T) -> int:
    known = names.setdefault(number, content)
    if known != content:
        raise CollisionError(f"{content} and {known} have the same number {number:#x}: rename one of them")
    return number


def _keep(names: dict[int, T], numbers: dict[T, int], wanted: set[int]) -> None:
    for number in names.keys() - wanted:
        del numbers[names.pop(number)]


def _ports(ports: Iterable[ContainerPort]) -> list[str]:
    return [f"{port.name}/{port.protocol}/{port.number}" for port in sorted(ports)]


def _content(value: object) -> bytes:
    """A value of the policy language as bytes that say all of it, whatever order its sets happen to have."""
    return msgspec.json.encode(_plain(value))


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return [type(value).__name__, *(_plain(getattr(value, name)) for name in value.__struct_fields__)]
    if isinstance(value, frozenset):
        return sorted((_plain(one) for one in value), key=msgspec.json.encode)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _hashed(kind: str, parts: Iterable[str]) -> int:
    content = "\n".join(parts).encode()
    number = content_id(kind, content) | HASHED
    while number == CLASS_ANY:
        content += b"\0"
        number = content_id(kind, content) | HASHED
    return number
