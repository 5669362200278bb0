"""What of a request may be shown: nothing in which people put secrets. Pure.

A query, a fragment and path parameters are left out whole, names included: `/reset?TOKEN` is all name. So is all that
could be one to somebody: where any of their marks stands as an escape, and from an escape of an escape, an overlong or
a broken one on, for servers differ in what they decode, and how often.
"""

from __future__ import annotations

import re

LEFT_OUT = "…"
PATH_LENGTH = 512
HOST_LENGTH = 255

_MARKS = "?#;"
_ESCAPES = r"3f|23|3b|25|c[01]|e0%[89]|f0%8|f[5-9a-f]|(?![0-9a-f]{2})"
_END = re.compile(f"[{_MARKS}]|%(?:{_ESCAPES})", re.IGNORECASE)
_AT = re.compile(r"@|%(?:25)*40", re.IGNORECASE)
_ORIGIN_FORM = re.compile(r"/(?![/\\]|%(?:2f|5c|25))", re.IGNORECASE)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)


def path(text: str) -> str:
    """A request target: /x?…. At most PATH_LENGTH characters and two."""
    if not _ORIGIN_FORM.match(text) and _AT.search(text):
        # user:password@ may stand in it, and where a password ends only its reader knows: //a:b?c@d
        scheme = _SCHEME.match(text)
        return (scheme[0] if scheme else "") + LEFT_OUT
    found = _END.search(text)
    if found is None:
        return shortened(text, PATH_LENGTH)
    mark = found[0] if found[0] in _MARKS else ""
    hidden = LEFT_OUT if not mark or found.end() < len(text) else ""
    return shortened(text[: found.start()], PATH_LENGTH) + mark + hidden


def host(text: str) -> str:
    """An authority: host and port. One that names a user is not shown."""
    return LEFT_OUT if _AT.search(text) or _END.search(text) else shortened(text, HOST_LENGTH)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + LEFT_OUT
