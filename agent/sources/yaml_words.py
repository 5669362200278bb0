"""What an unquoted word of YAML means: what Kubernetes makes of it (1.1 booleans and numbers), but dates stay text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_INT = re.compile(r"[-+]?(?:0b[01_]*[01]|0x[0-9a-fA-F_]*[0-9a-fA-F]|0o?[0-7_]*[0-7]|[1-9][0-9_]*|0)\Z")

_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.inf|\.Inf|\.INF)\Z"
)

_WORDS: dict[str, bool | None] = {
    **{form: True for word in ("true", "yes", "on") for form in (word, word.title(), word.upper())},
    **{form: False for word in ("false", "no", "off") for form in (word, word.title(), word.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}

_MAX_DIGITS = 64  # longer ones stay text: they fit no field


@lru_cache(maxsize=4096)
def plain(text: str) -> Any:
    """The value of an unquoted scalar. Cached, so that equal strings are one string."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789" and len(text) < _MAX_DIGITS:
        if _INT.match(text):
            return _integer(text)
        if _FLOAT.match(text):
            return float(text.replace("_", "").lower().replace(".inf", "inf"))
    return text


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    unsigned = digits.lstrip("+-")
    octal = len(unsigned) > 1 and unsigned[0] == "0" and unsigned[1].isdigit()
    return int(digits, 8 if octal else 0)


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return "a boolean" if isinstance(value, bool) else "a number"
