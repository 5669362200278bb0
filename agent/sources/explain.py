"""msgspec's complaint about a value's type, as a field path and a sentence for the one who wrote it."""

from __future__ import annotations

import re
from typing import Any

_COMPLAINT = re.compile(r"(?P<what>.*?)(?: - at `(?P<part>key)` in `\$(?P<in>.*)`| - at `\$(?P<at>.*)`)?\Z", re.S)
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_GOT = {**_WORDS, "bool": "a boolean", "int": "a number"}


def type_error(error: Exception, raw: Any) -> tuple[str, str]:
    """(field path, message). `raw` is the document's value: it tells which label a complaint about a label means."""
    match = _COMPLAINT.match(str(error))
    assert match is not None
    path = (match["at"] or match["in"] or "").lstrip(".")
    if path.endswith("[...]"):
        path = _member(path.removesuffix("[...]"), raw)
    if missing := _MISSING.match(match["what"]):
        return f"{path}.{missing['field']}".lstrip("."), "must be given"
    if expected := _EXPECTED.match(match["what"]):
        return path, _mismatch(expected["wanted"], expected["got"])
    return path, match["what"][0].lower() + match["what"][1:]


def _mismatch(wanted: str, got: str) -> str:
    types = [t for t in wanted.split(" | ") if t != "null"]
    hint = " (put it in quotes)" if "str" in types and got in ("int", "float", "bool") else ""
    return f"must be {' or '.join(_WORDS.get(t, t) for t in types)}, not {_GOT.get(got, got)}{hint}"


def _member(path: str, raw: Any) -> str:
    """Which member of a map of strings is none."""
    value = raw
    for step in filter(None, path.replace("[", ".").replace("]", "").split(".")):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return next((f"{path}[{key}]" for key, member in value.items() if not isinstance(member, str)), path)
