"""Label and field selectors of list and watch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from apiserver.errors import bad_request

Labels = Mapping[str, str]
Requirement = Callable[[Labels], bool]

_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s+\(([^()]*)\)")
_EQUAL = re.compile(rf"({_KEY})\s*(==|=|!=)\s*([-A-Za-z0-9_.]*)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_FIELDS = ("metadata.name", "metadata.namespace", "spec.nodeName")


class Selector(msgspec.Struct, frozen=True):
    """`fields`: (name, value, whether it must be that one)."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[tuple[str, str, bool], ...] = ()
    namespace: str = ""  # "" for all

    def __call__(self, namespace: str, name: str, node: str, labels: Labels) -> bool:
        if self.namespace and namespace != self.namespace:
            return False
        has = {"metadata.name": name, "metadata.namespace": namespace, "spec.nodeName": node}
        return all((has[field] == value) == wanted for field, value, wanted in self.fields) and all(
            requirement(labels) for requirement in self.labels
        )


def parse(labels: str, fields: str, namespace: str) -> Selector:
    return Selector(tuple(map(_label, _split(labels))), tuple(map(_field, _split(fields))), namespace)


def _split(text: str) -> list[str]:
    """At the commas outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text)] if text.strip() else []


def _label(text: str) -> Requirement:
    if match := _SET.fullmatch(text):
        key, operator, listed = match.groups()
        values = frozenset(value.strip() for value in listed.split(","))
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.fullmatch(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.fullmatch(text):
        absent, key = match.groups()
        return lambda labels: (key in labels) != bool(absent)
    raise bad_request(f"unable to parse requirement: {text!r}")


def _field(text: str) -> tuple[str, str, bool]:
    match = re.fullmatch(r"([A-Za-z.]+)(==|=|!=)(.*)", text)
    if match is None or match[1] not in _FIELDS:
        raise bad_request(f"field label not supported: {text!r}")
    return match[1], match[3], match[2] != "!="
