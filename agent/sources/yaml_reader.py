"""YAML text of one document as plain values: bounded in depth and aliases, duplicate keys refused.

Values are what Kubernetes makes of YAML (1.1 booleans and numbers), except that dates stay text.
PyYAML's composer recurses in C and can be made to overflow the stack; its event stream does not recurse.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from agent.sources.yaml_words import kind_of, plain

MAX_DEPTH = 64
MAX_ALIASED_NODES = 10_000

_TAB_INDENT = re.compile(rb" *\t")
_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_STANDARD + name for name in ("int", "bool", "float", "null"))


class Fault(msgspec.Struct, frozen=True):
    line: int  # from 0 at the start of the text
    message: str
    path: str = ""


class BadYaml(Exception):
    """Why a text is refused, and what can be told of it all the same.

    `partial`: where the text could be read to its end (duplicate keys, keys that are no text), its value with the first
    of each duplicate. Otherwise what comes before the fault, without collections whose end was not reached, but for the
    document itself and its spec.
    """

    def __init__(self, faults: list[Fault], partial: Any) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults
        self.partial = partial


class _Fatal(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(line, message)


class Place(msgspec.Struct, gc=False):
    """Where a field stands (line from 0) and, for a scalar, how it is spelled."""

    line: int
    text: str | None


class Document(msgspec.Struct):
    line: int  # of its first key, from 0
    value: Any
    items: list[int]  # the lines of the elements of a member of that name, from 0
    places: dict[str, Place]  # by field path, steps joined by dots; empty unless asked for

    def place(self, path: str) -> Place:
        """Where a field such as spec.ports[0].name or metadata.labels[app] stands; if absent, what encloses it."""
        steps = path.replace("[", ".").replace("]", "")
        while steps not in self.places and steps:
            steps = steps.rpartition(".")[0]
        return self.places.get(steps) or Place(self.line, None)


def read(text: bytes, *, places: bool = False) -> Document | None:
    """Read one document; None where there is nothing but comments. Raises BadYaml."""
    builder = _Builder(places)
    fault: Fault | None = None
    loader = None
    try:
        loader = yaml.CSafeLoader(text)
        for event in iter(loader.get_event, None):
            builder.take(event)
    except _Fatal as error:
        fault = error.fault
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count(b"\n")
        fault = Fault(line, "a character that YAML does not allow: save the file as plain UTF-8 text")
    except yaml.MarkedYAMLError as error:
        fault = _fault(error, text)
    finally:
        if loader is not None:
            loader.dispose()
    if fault is not None:
        raise BadYaml([*builder.faults, fault], builder.partial())
    if builder.faults:
        raise BadYaml(builder.faults, builder.root)
    if builder.line < 0:
        return None
    return Document(builder.line, builder.root, builder.items, builder.places)


def _fault(error: yaml.MarkedYAMLError, text: bytes) -> Fault:
    lines = text.rstrip().split(b"\n")
    mark = error.problem_mark
    if mark is None or mark.line >= len(lines):
        # What is missing at the end of the text is told where it was opened.
        mark = error.context_mark or mark
    line = min(mark.line, len(lines) - 1) if mark is not None else 0
    if _TAB_INDENT.match(lines[line]):
        return Fault(line, "a tab cannot be used for indentation: use spaces")
    context = f"{error.context}, " if error.context else ""
    return Fault(line, f"not valid YAML: {context}{error.problem}")


class _Frame:
    """A collection being read. `key` is the mapping key whose value comes next; `path` its own field path."""

    __slots__ = ("anchor", "key", "line", "merges", "path", "repeated", "started", "value", "wants_key")

    def __init__(self, value: dict[str, Any] | list[Any], path: str, anchor: str | None, started: int) -> None:
        self.value = value
        self.path = path
        self.anchor = anchor
        self.started = started
        self.key = ""
        self.line = 0
        self.repeated = False
        self.wants_key = isinstance(value, dict)
        self.merges: list[dict[str, Any]] | None = None


class _Builder:
    def __init__(self, places: bool) -> None:
        self.root: Any = None
        self.line = -1
        self.items: list[int] = []
        self.places: dict[str, Place] = {}
        self.faults: list[Fault] = []
        self._record = places
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._aliased = 0

    def take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._nodes += 1
            frame = self._stack[-1] if self._stack else None
            if frame is not None and frame.wants_key:
                self._key(frame, event)
                return
            value = _scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = (value, 1)
            self._add(value, event, event.value)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._open(event, {} if kind is yaml.MappingStartEvent else [])
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._close()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent and self.line >= 0:
            raise _Fatal(event.start_mark.line, "a second document starts without a line of three dashes")

    def partial(self) -> Any:
        """What was read so far, without what was not read to its end."""
        if not self._stack:
            return self.root
        root = self._stack[0].value
        if isinstance(root, dict) and len(self._stack) > 1 and self._stack[0].key == "spec":
            spec = self._stack[1].value
            return {**root, "spec": dict(spec)} if isinstance(spec, dict) else root
        return root

    def _where(self, key: str) -> str:
        """Field path of a key of the mapping being read."""
        steps = [
            f"[{len(frame.value)}]" if isinstance(frame.value, list) else f".{frame.key}" for frame in self._stack[:-1]
        ]
        return "".join([*steps, f".{key}"])[1:]

    def _path(self, frame: _Frame) -> str:
        if isinstance(frame.value, list):
            return f"{frame.path}.{len(frame.value)}"
        return f"{frame.path}.{frame.key}" if frame.path else frame.key

    def _key(self, frame: _Frame, event: Any) -> None:
        key = _scalar(event)
        line: int = event.start_mark.line
        if not isinstance(key, str):
            message = f"the key {event.value or 'null'} is read as {kind_of(key)}: put it in quotes"
            self.faults.append(Fault(line, message, self._where(event.value)))
            key = event.value
        frame.repeated = key in frame.value
        if frame.repeated:
            self.faults.append(Fault(line, "the same key twice in one mapping", self._where(key)))
        frame.key = key
        frame.line = line
        frame.wants_key = False

    def _open(self, event: Any, value: dict[str, Any] | list[Any]) -> None:
        self._nodes += 1
        line: int = event.start_mark.line
        if event.tag is not None and not event.tag.startswith((_STANDARD + "map", _STANDARD + "seq")):
            raise _Fatal(line, f"the tag {event.tag.replace(_STANDARD, '!!')} is not supported")
        path = ""
        if self._stack:
            parent = self._stack[-1]
            if parent.wants_key:
                raise _Fatal(line, "a key must be text, not a mapping or list")
            path = self._path(parent) if self._record else ""
            if len(self._stack) >= MAX_DEPTH:
                raise _Fatal(line, f"nested more than {MAX_DEPTH} levels deep")
            if len(self._stack) == 2 and self._stack[0].key == "items":
                self.items.append(line)
        self._mark(path, line, None)
        if not self._stack:
            self.line = line
        self._stack.append(_Frame(value, path, event.anchor, self._nodes + self._aliased))

    def _close(self) -> None:
        frame = self._stack.pop()
        if frame.merges is not None and isinstance(frame.value, dict):
            for merged in frame.merges:
                for key, value in merged.items():
                    frame.value.setdefault(key, value)
        if frame.anchor:
            self._anchors[frame.anchor] = (frame.value, self._nodes + self._aliased - frame.started + 1)
        self._attach(frame.value)

    def _alias(self, event: Any) -> None:
        line: int = event.start_mark.line
        if event.anchor not in self._anchors:
            raise _Fatal(line, f"the alias *{event.anchor} names nothing that is complete before it")
        value, size = self._anchors[event.anchor]
        self._aliased += size
        if self._aliased > MAX_ALIASED_NODES:
            raise _Fatal(line, f"aliases repeat more than {MAX_ALIASED_NODES} values: write them out")
        frame = self._stack[-1]
        if frame.wants_key:
            raise _Fatal(line, "a key must be text, not an alias")
        self._add(value, event, None)

    def _add(self, value: Any, event: Any, text: str | None) -> None:
        line: int = event.start_mark.line
        if not self._stack:
            self.line = line
        elif self._record:
            self._mark(self._path(self._stack[-1]), line, text)
        self._attach(value)

    def _mark(self, path: str, line: int, text: str | None) -> None:
        if self._record:
            frame = self._stack[-1] if self._stack else None
            at = frame.line if frame is not None and isinstance(frame.value, dict) else line
            self.places[path] = Place(at, text)

    def _attach(self, value: Any) -> None:
        if not self._stack:
            self.root = value
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        frame.wants_key = True
        if frame.key == "<<":
            frame.merges = _merged(frame, value)
        elif not frame.repeated:
            frame.value[frame.key] = value


def _merged(frame: _Frame, value: Any) -> list[dict[str, Any]]:
    sources = value if isinstance(value, list) else [value]
    if frame.merges is not None or not all(isinstance(source, dict) for source in sources):
        raise _Fatal(frame.line, "<< takes one mapping or one list of mappings")
    return sources


def _scalar(event: Any) -> Any:
    if event.tag is None:
        return plain(event.value) if event.implicit[0] else event.value
    if event.tag in _PLAIN_TAGS:
        return plain(event.value)
    if event.tag in (_STANDARD + "str", "!"):
        return event.value
    raise _Fatal(event.start_mark.line, f"the tag {event.tag.replace(_STANDARD, '!!')} is not supported")
