"""Pages of a list, all of them as of the version of the first."""

from __future__ import annotations

import base64
import bisect
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import msgspec

from apiserver.errors import Refused, bad_request, expired
from apiserver.selectors import Selector
from apiserver.store import Collection, Entry, Store
from apiserver.writes import head

_MOST = 1 << 62


class _Token(msgspec.Struct, rename={"version": "rv"}):
    """Where the next page starts. `version` negative: in the newest state."""

    version: int
    start: str
    v: str = "meta.k8s.io/v1"

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def page(store: Store, collection: Collection, version: str, selector: Selector, query: Mapping[str, str]) -> bytes:
    """The list's JSON. Raises Refused (400, 410, 504)."""
    limit, token = _limit(query), query.get("continue", "")
    with store.lock:
        at, start = _resume(store, query, token) if token else (_as_of(store, query, limit), "")
        try:
            state = collection.at(at)
        except Refused as refused:
            if token:
                raise expired("the continue token is too old", str(_Token(-1, start))) from refused
            raise
    if query.get("resourceVersion") == "0":
        limit = _MOST  # answered from a cache, whole
    items, more, left = _cut(state, start, limit, selector)
    metadata: dict[str, Any] = {"resourceVersion": str(at)}
    if more:
        metadata["continue"] = str(_Token(at, more))
        if not (selector.labels or selector.fields or selector.namespace):
            metadata["remainingItemCount"] = left
    resource = collection.resource
    opening = head(resource, version) if resource.custom else b"{"
    body = b",".join([opening + entry.rest for entry in items])
    kind, api_version = f"{resource.kind}List", resource.api_version(version)
    if resource.custom:  # its fields are sorted: the version comes after all items
        after = {"kind": kind, "metadata": {"continue": ""} | metadata}
        return b'{"apiVersion":"%s","items":[%s],%s' % (api_version.encode(), body, msgspec.json.encode(after)[1:])
    before = {"kind": kind, "apiVersion": api_version, "metadata": metadata}
    return b'%s,"items":[%s]}' % (msgspec.json.encode(before)[:-1], body)


def number(query: Mapping[str, str], name: str, default: int = 0) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise bad_request(f"{name}: {text!r} is no number")
    return int(text)


def _limit(query: Mapping[str, str]) -> int:
    return number(query, "limit") or _MOST


def _as_of(store: Store, query: Mapping[str, str], limit: int) -> int:
    asked, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    if match and not asked:
        raise Refused(422, "Invalid", "resourceVersionMatch is forbidden unless resourceVersion is provided")
    version = number(query, "resourceVersion")
    store.not_before(version)
    exact = match == "Exact" or (not match and limit != _MOST)
    return version if version and exact else store.version


def _resume(store: Store, query: Mapping[str, str], token: str) -> tuple[int, str]:
    if query.get("resourceVersion", "") not in ("", "0"):
        raise bad_request("specifying resource version is not allowed when using continue")
    try:
        read = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=_Token)
    except ValueError as error:  # msgspec's are, too
        raise bad_request("continue key is not valid") from error
    return (read.version if read.version >= 0 else store.version), read.start


def _cut(state: list[Entry], start: str, limit: int, selector: Selector) -> tuple[list[Entry], str, int]:
    """A page, the key that the next one starts with ("": there is none), and how many are left."""
    index = bisect.bisect_left(state, start, key=attrgetter("key")) if start else 0
    if not (selector.labels or selector.fields or selector.namespace):
        rest = state[index + limit] if index + limit < len(state) else None
        return state[index : index + limit], rest.key if rest else "", len(state) - index - limit
    items: list[Entry] = []
    for entry in state[index:]:
        if selector(entry.namespace, entry.name, entry.node, entry.labels):
            if len(items) == limit:
                return items, entry.key, 0
            items.append(entry)
    return items, "", 0
