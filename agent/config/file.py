"""A file of settings: YAML (JSON is YAML, too), one map of field names.

Plain values are taken by their spelling, as flags are: `routing: off` is the word, which YAML 1.1 would read as false.
Lists and maps may be YAML's, or texts as flags have them. Paths in it are relative to its folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from agent.config.fields import Config, ConfigError
from agent.config.layers import Given, Value, nearest

_NULL = "tag:yaml.org,2002:null"


def read(path: Path) -> dict[str, Given]:
    """Field → what the file gives. Raises ConfigError, which names file and line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"the file of settings cannot be read ({why}): correct --config", place=str(path)) from None
    return parse(text, str(path), str(path.absolute().parent))


def parse(text: str, name: str, folder: str = "") -> dict[str, Given]:
    """`name`: of the file, as errors and origins have it. Raises ConfigError."""
    found: dict[str, Given] = {}
    try:
        root = yaml.compose(text, yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"it is not YAML: {error.problem}", place=f"{name}:{line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not YAML: {str(error).splitlines()[0]}", place=f"{name}:1") from None
    if root is None or root.tag == _NULL:
        return found
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("settings are NAME: VALUE lines", place=_place(name, root))
    for field, key, node in _entries(root, name):
        if field not in Config.__struct_fields__:
            near = f"did you mean {meant}?" if (meant := nearest(field)) else "see `gatehouse agent --help`"
            raise ConfigError(f"{field} is not a setting of Gatehouse; {near}", place=_place(name, key))
        found[field] = Given(_value(node, name, field), _place(name, key), folder)
    return found


def _value(node: yaml.Node, name: str, field: str) -> Value:
    if isinstance(node, yaml.SequenceNode):
        return [_item(item, name, field) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key: _text(value, name, f"{field}.{key}") for key, _, value in _entries(node, name, f"{field}.")}
    return _text(node, name, field)


def _item(node: yaml.Node, name: str, field: str) -> str:
    text = _text(node, name, f"an element of {field}")
    if not text:
        raise ConfigError(f"an element of {field} is empty: remove it", place=_place(name, node))
    return text


def _text(node: yaml.Node, name: str, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{what} is a list or a map where one value is meant", place=_place(name, node))
    if node.tag == _NULL:
        raise ConfigError(f'{what} has no value: remove the line, or write ""', place=_place(name, node))
    return str(node.value)


def _entries(node: yaml.MappingNode, name: str, before: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key, its node, and that of its value. Raises ConfigError for a key that stands there twice."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError("a name is a list or a map", place=_place(name, key))
        if key.value in lines:
            raise ConfigError(
                f"{before}{key.value} stands there twice: already on line {lines[key.value]}", place=_place(name, key)
            )
        lines[key.value] = key.start_mark.line + 1
        yield key.value, key, value


def _place(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}"
