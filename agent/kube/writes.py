"""Objects of one kind at the API server, as those who write them see them: raw JSON, and four ways to fail.

Writers depend on `Objects` alone; `Collection` is the one over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from agent.kube.client import ApiClient
from agent.kube.errors import ApiServerError, ApiUnreachable

T = TypeVar("T")
REQUEST_S = 10.0
"""Whoever writes is waited for, so the time of one request is short. One that is given up may still take effect."""


class ApiFailure(Exception):
    """A request that did not succeed. The message is for people."""


class Missing(ApiFailure):
    """404: there is no such object."""


class Conflict(ApiFailure):
    """409: there is one of that name already, or it is another version by now."""


class Refused(ApiFailure):
    """The server understands the request and will not do it (400, 401, 403, 413, 422): to repeat it is of no use before
    somebody has changed something."""


class Away(ApiFailure):
    """No answer, or one that asks to come back (429, 5xx). `retry_after_s`: as the server asks; 0: it does not say."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Objects(Protocol):
    """All raise ApiFailure. `namespace` is "" for kinds that are in none."""

    async def get(self, name: str, namespace: str = "") -> bytes: ...

    async def create(self, body: bytes, namespace: str = "") -> bytes: ...

    async def replace(self, name: str, body: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        """Write over the version that `body` names."""
        ...

    async def merge(self, name: str, patch: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        """RFC 7396; where the patch has a resourceVersion, over that one alone."""
        ...

    async def delete(self, name: str, uid: str, resource_version: str, namespace: str = "") -> None:
        """Only that very version of that very object (DeleteOptions.preconditions)."""
        ...

    def pages(self) -> AsyncIterator[Sequence[msgspec.Raw]]:
        """All there are, as of one moment that is not before the call."""
        ...


class Collection:
    """Objects over HTTP. `group`: "apis/gatehouse.io/v1alpha1" or "api/v1"."""

    def __init__(self, client: ApiClient, group: str, plural: str, *, request_s: float = REQUEST_S) -> None:
        self._client, self._group, self._plural, self._request_s = client, group, plural, request_s

    async def get(self, name: str, namespace: str = "") -> bytes:
        return await self._ask(self._client.get(self._path(namespace, name)))

    async def create(self, body: bytes, namespace: str = "") -> bytes:
        path = self._path(namespace)
        try:
            return await self._ask(self._client.create(path, body))
        except Missing as missing:
            raise Refused(
                f"{missing} (is the CustomResourceDefinition of {self._plural} installed, and is there the namespace?)"
            ) from missing

    async def replace(self, name: str, body: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        return await self._ask(self._client.update(self._path(namespace, name, status), body))

    async def merge(self, name: str, patch: bytes, namespace: str = "", *, status: bool = False) -> bytes:
        return await self._ask(self._client.patch(self._path(namespace, name, status), patch))

    async def delete(self, name: str, uid: str, resource_version: str, namespace: str = "") -> None:
        path = self._path(namespace, name)
        await self._ask(self._client.delete(path, uid=uid, resource_version=resource_version))

    async def pages(self) -> AsyncIterator[Sequence[msgspec.Raw]]:
        # Without a resourceVersion the answer is not older than the question (API concepts: "most recent").
        pages = self._client.pages(f"/{self._group}/{self._plural}").__aiter__()
        while True:
            try:
                page = await anext(pages)
            except StopAsyncIteration:
                return
            except (ApiServerError, ApiUnreachable) as error:
                raise failure(error) from error
            yield page.items

    def _path(self, namespace: str, name: str = "", status: bool = False) -> str:
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"/{self._group}{within}/{self._plural}" + (f"/{name}" if name else "") + ("/status" if status else "")

    async def _ask(self, request: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._request_s):
                return await request
        except TimeoutError:
            raise Away(f"the API server did not answer within {self._request_s:g} s ({self._plural})") from None
        except (ApiServerError, ApiUnreachable) as error:
            raise failure(error) from error


def decode(raw: bytes | msgspec.Raw, form: type[T]) -> T:
    """An object in the form its writers need. Raises Refused where somebody has given it another."""
    try:
        return msgspec.json.decode(raw, type=form)
    except msgspec.MsgspecError as error:
        raise Refused(f"see to this object, which cannot be read ({error}): {bytes(raw)[:200]!r}") from error


def failure(error: ApiServerError | ApiUnreachable) -> ApiFailure:
    """In the words of this module."""
    if isinstance(error, ApiUnreachable):
        return Away(str(error))
    if error.status == 429 or error.status >= 500 or error.expired:
        return Away(str(error), error.retry_after_s)
    return {404: Missing, 409: Conflict}.get(error.status, Refused)(str(error))
