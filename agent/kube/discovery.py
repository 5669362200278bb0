"""Which custom resources a cluster has, and in which versions (the API's own /apis)."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

import msgspec

from agent.kube.client import ApiClient
from agent.kube.errors import ApiServerError, ApiUnreachable
from agent.kube.resources import Resource

T = TypeVar("T")

FRESH_S = 1.0
"""Many ask at once: the answer does for all of them."""


class _Version(msgspec.Struct):
    version: str


class _Group(msgspec.Struct):
    name: str
    versions: list[_Version] = []


class _Groups(msgspec.Struct):
    groups: list[_Group] | None = None


class _Named(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_Named] | None = None


class Discovery:
    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._asking = asyncio.Lock()
        self._groups: dict[str, tuple[str, ...]] = {}
        self._asked_s = -FRESH_S

    async def version(self, resource: Resource) -> str | None:
        """In which to read it, None where the cluster has no such thing. One that we cannot read is named where there
        is no other: what can be told of such policies isolates the pods they select.

        Raises ApiServerError, ApiUnreachable.
        """
        served = await self._versions(resource.group)
        preferred = [version for version in resource.versions if version in served]
        for version in dict.fromkeys((*preferred, *served)):
            if await self._has(resource, version):
                return version
        return None

    async def _versions(self, group: str) -> tuple[str, ...]:
        async with self._asking:
            if time.monotonic() - self._asked_s >= FRESH_S:
                found = _decode(await self._client.get("/apis"), _Groups)
                self._groups = {one.name: tuple(v.version for v in one.versions) for one in found.groups or ()}
                self._asked_s = time.monotonic()
        return self._groups.get(group, ())

    async def _has(self, resource: Resource, version: str) -> bool:
        try:
            found = _decode(await self._client.get(f"/apis/{resource.group}/{version}"), _Resources)
        except ApiServerError as error:
            if error.status == 404:
                return False
            raise
        return any(one.name == resource.plural for one in found.resources or ())


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiUnreachable(f"discovery: the answer is not what it should be: {error}") from error
