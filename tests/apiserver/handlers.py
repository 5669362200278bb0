"""One request: what it asks for, what is wrong on purpose, and the answer."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec
from aiohttp import web

from apiserver import discovery, patches, writes
from apiserver.errors import Refused, bad_request, not_allowed, unauthorized, unsupported
from apiserver.faults import Faults, Rule, send_reset
from apiserver.listing import page
from apiserver.selectors import Selector, parse
from apiserver.store import Store
from apiserver.watching import Watch, Watches, dribble
from apiserver.writes import Target

_OPEN = ("/healthz", "/livez", "/readyz", "/version")
"""Asked without a token, too."""


_BODIES = ("application/json", "application/yaml")


class Seen(msgspec.Struct, frozen=True):
    """A request as it came: an attribute record of it, as RBAC judges them. `verb` "" where it is of no resource."""

    verb: str
    group: str
    resource: str  # with the subresource: pods/status
    namespace: str
    name: str
    path: str
    query: dict[str, str]
    agent: str


class Handler:
    """`tokens`: those that are good; None: anybody may ask."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store, self.faults = store, faults
        self.tokens: frozenset[str] | None = None
        self.watches = Watches()
        self.seen: deque[Seen] = deque(maxlen=200_000)
        self.bookmark_every_s = 60.0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        target = self._target(path, request)
        verb = _verb(request.method, target, query) if target else ""
        seen = _seen(path, query, verb, target, request.headers.get("User-Agent", ""))
        self.seen.append(seen)
        rule = self.faults.for_request(verb, target.resource.plural if target else "")
        if rule is not None and (rule.hang or rule.delay_s):
            await asyncio.sleep(rule.delay_s or 1e9)
        if rule is not None and rule.status:
            return _status(Refused(rule.status, _REASONS.get(rule.status, "InternalError"), "on purpose"), rule)
        try:
            self._authenticate(path, request)
            if verb == "watch" and target is not None:
                return await self._watch(request, target, rule)
            code, body = self._answer(request.method, target, query, verb, await request.read(), request)
        except Refused as refused:
            return _status(refused, rule)
        if rule is not None and (rule.bytes_per_s or rule.reset_after >= 0):
            return await _slowly(request, code, body, rule)
        return web.Response(
            status=code, body=body, content_type="text/plain" if path in _OPEN[:3] else "application/json"
        )

    def _target(self, path: str, request: web.Request) -> Target | None:
        parts = path.strip("/").split("/")
        if parts[0] not in ("api", "apis"):
            return None
        start = 3 if parts[0] == "apis" else 2
        if len(parts) <= start:
            return None
        group, version, rest = "" if start == 2 else parts[1], parts[start - 1], parts[start:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and (len(rest) > 3 or rest[2] != "status"):
            namespace, rest = rest[1], rest[2:]
        collection = self.store.find(group, version, rest[0])
        if collection is None or len(rest) > 3 or (namespace and not collection.resource.namespaced):
            return None
        name, subresource = [*rest[1:], "", ""][:2]
        if subresource and (subresource != "status" or not collection.resource.status):
            return None
        agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
        manager = request.query.get("fieldManager", "" if _is_apply(request) else agent)
        return Target(collection, version, namespace, name, subresource, manager)

    def _authenticate(self, path: str, request: web.Request) -> None:
        if self.tokens is None or path in _OPEN:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise unauthorized()

    def _answer(
        self, method: str, target: Target | None, query: dict[str, str], verb: str, body: bytes, request: web.Request
    ) -> tuple[int, bytes]:
        if target is None:
            if request.path in _OPEN[:3]:
                return 200, b"ok"
            found = discovery.answer(self.store, request.path)
            if found is None:
                return 404, b"404 page not found\n"
            return 200, msgspec.json.encode(found)
        if verb == "list":
            return 200, page(self.store, target.collection, target.version, _selector(target, query), query)
        with self.store.lock:
            if verb == "get":
                return 200, target.whole(writes.present(target))
            return self._write(method, target, query, body, request.content_type)

    def _write(
        self, method: str, target: Target, query: dict[str, str], body: bytes, content_type: str
    ) -> tuple[int, bytes]:
        if target.resource.namespaced and not target.namespace:
            raise not_allowed()
        if method in ("POST", "PUT") and content_type not in _BODIES:
            raise unsupported(content_type)
        if method == "POST" and not target.name:
            return 201, target.whole(writes.create(self.store, target, _object(body)))
        if method == "PUT" and target.name:
            return 200, target.whole(writes.update(self.store, target, _object(body)))
        if method == "PATCH" and target.name:
            entry, new = writes.patch(self.store, target, content_type, body)
            return (201 if new else 200), target.whole(entry)
        if method == "DELETE" and not target.subresource:
            options = _object(body) if body else {}
            if "gracePeriodSeconds" in query:
                options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
            return 200, self._delete(target, options, _selector(target, query))
        raise not_allowed()

    def _delete(self, target: Target, options: writes.Object, selector: Selector) -> bytes:
        if target.name:
            last, gone = writes.delete(self.store, target, options)
            if not gone or target.resource.returned:
                return target.whole(last)
            details = {"name": target.name, "kind": target.resource.plural, "uid": last.read()["metadata"]["uid"]}
            if target.resource.group:
                details["group"] = target.resource.group
            about = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
            return msgspec.json.encode(about)
        chosen = [e for e in target.collection.entries.values() if selector(e.namespace, e.name, e.node, e.labels)]
        for each in chosen:
            writes.delete(self.store, target.named(each.name), options)
        resource = target.resource
        about = {"apiVersion": resource.api_version(target.version), "kind": f"{resource.kind}List", "metadata": {}}
        items = b",".join([target.whole(each) for each in chosen])
        return msgspec.json.encode(about)[:-1] + b',"items":[' + items + b"]}"

    async def _watch(self, request: web.Request, target: Target, rule: Rule | None) -> web.StreamResponse:
        selector = _selector(target, dict(request.query))
        watch = Watch(self.store, self.faults, target.collection, target.version, selector, rule)
        self.watches.add(watch)
        try:
            return await watch.serve(request, self.bookmark_every_s)
        finally:
            self.watches.discard(watch)


_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    410: "Expired",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def _verb(method: str, target: Target, query: dict[str, str]) -> str:
    if method == "GET":
        if target.name:
            return "get"
        return "watch" if query.get("watch") in ("true", "1") else "list"
    if method == "DELETE":
        return "delete" if target.name else "deletecollection"
    return _VERBS.get(method, method.lower())


def _is_apply(request: web.Request) -> bool:
    return request.method == "PATCH" and request.content_type == patches.APPLY


def _selector(target: Target, query: dict[str, str]) -> Selector:
    fields = query.get("fieldSelector", "")
    if target.name:
        fields = f"metadata.name={target.name}"
    return parse(query.get("labelSelector", ""), fields, target.namespace)


def _object(body: bytes) -> writes.Object:
    read = patches.read(body)
    if not isinstance(read, dict):
        raise bad_request("the body is no object")
    return read


def _seen(path: str, query: dict[str, str], verb: str, target: Target | None, agent: str) -> Seen:
    if target is None:
        return Seen("", "", "", "", "", path, query, agent)
    resource = target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
    return Seen(verb, target.resource.group, resource, target.namespace, target.name, path, query, agent)


def _status(refused: Refused, rule: Rule | None) -> web.Response:
    headers = {"Retry-After": str(rule.retry_after_s)} if rule is not None and rule.retry_after_s else None
    body = msgspec.json.encode(refused.status)
    return web.Response(status=refused.code, body=body, content_type="application/json", headers=headers)


async def _slowly(request: web.Request, code: int, body: bytes, rule: Rule) -> web.StreamResponse:
    response = web.StreamResponse(status=code, headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    part = body[: rule.reset_after] if rule.reset_after >= 0 else body
    if rule.bytes_per_s:
        await dribble(response, part, rule.bytes_per_s)
    else:
        await response.write(part)
    if rule.reset_after >= 0 and request.transport is not None:
        await asyncio.sleep(0.05)  # lets the client read what a reset would throw away
        send_reset(request.transport.get_extra_info("socket"))
        request.transport.abort()
    return response
