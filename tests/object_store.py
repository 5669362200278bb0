"""Objects of one kind as an API server keeps them, in memory, with hooks by which requests interleave or fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import msgspec

from agent.kube.writes import Conflict, Missing

Hook = Callable[[str, str], Awaitable[None]]
"""Of the request (get, create, replace, merge, delete, list) and the name; what it raises, the request raises."""
VERSIONS = count(1000)


async def at_once(_request: str, _name: str) -> None:
    await asyncio.sleep(0)


class ObjectStore:
    """`requests` counts all of them; `gone` has the objects that were deleted."""

    def __init__(self, before: Hook = at_once, after: Hook = at_once) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.before, self.after = before, after
        self.requests: list[tuple[str, str]] = []
        self.gone: list[dict[str, Any]] = []
        self._uids = count(1)

    def put(self, body: dict[str, Any], namespace: str = "") -> dict[str, Any]:
        """As if somebody else had written it."""
        name = _key(body["metadata"]["name"], namespace)
        old = self.objects.get(name)
        uid = old["metadata"]["uid"] if old else f"uid-{next(self._uids)}"
        metadata = {"annotations": {}, **body["metadata"], "uid": uid, "resourceVersion": str(next(VERSIONS))}
        if namespace:
            metadata["namespace"] = namespace
        self.objects[name] = _copy({**body, "metadata": metadata})
        return self.objects[name]

    def version(self, name: str) -> str:
        version: str = self.objects[name]["metadata"]["resourceVersion"]
        return version

    # ---- agent.kube.writes.Objects

    async def get(self, name: str, namespace: str = "") -> bytes:
        await self._ask("get", name)
        found = msgspec.json.encode(self._found(_key(name, namespace)))
        await self.after("get", name)
        return found

    async def create(self, body: bytes, namespace: str = "") -> bytes:
        made = msgspec.json.decode(body)
        name = made["metadata"]["name"]
        await self._ask("create", name)
        if _key(name, namespace) in self.objects:
            raise Conflict(f"{name} already exists")
        return await self._answer("create", name, self.put(made, namespace))

    async def replace(self, name: str, body: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        await self._ask("replace-status" if status else "replace", name)
        made = msgspec.json.decode(body)
        self._check(_key(name, namespace), made["metadata"].get("resourceVersion"))
        return await self._answer("replace", name, self.put(made, namespace))

    async def merge(self, name: str, patch: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        await self._ask("merge-status" if status else "merge", name)
        given = msgspec.json.decode(patch)
        key = _key(name, namespace)
        self._check(key, given.get("metadata", {}).get("resourceVersion"))
        return await self._answer("merge", name, self.put(_merged(self.objects[key], given), namespace))

    async def delete(self, name: str, uid: str, resource_version: str, namespace: str = "") -> None:
        await self._ask("delete", name)
        key = _key(name, namespace)
        self._check(key, resource_version)
        if self.objects[key]["metadata"]["uid"] != uid:
            raise Conflict(f"{name} is another by now")
        self.gone.append(self.objects.pop(key))
        await self.after("delete", name)

    async def pages(self) -> AsyncIterator[Sequence[msgspec.Raw]]:
        await self._ask("list", "")
        found = [msgspec.Raw(msgspec.json.encode(one)) for one in self.objects.values()]
        await self.after("list", "")
        yield found[: len(found) // 2]
        yield found[len(found) // 2 :]

    async def _ask(self, request: str, name: str) -> None:
        self.requests.append((request, name))
        await self.before(request, name)

    async def _answer(self, request: str, name: str, written: dict[str, Any]) -> bytes:
        answer = msgspec.json.encode(written)
        await self.after(request, name)
        return answer

    def _found(self, key: str) -> dict[str, Any]:
        if key not in self.objects:
            raise Missing(f"{key} not found")
        return self.objects[key]

    def _check(self, key: str, version: str | None) -> None:
        if version and self._found(key)["metadata"]["resourceVersion"] != version:
            raise Conflict(f"{key} has been modified")
        self._found(key)


def _key(name: str, namespace: str) -> str:
    return f"{namespace}/{name}" if namespace else name


def _copy(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result
