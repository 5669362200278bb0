"""A folder of manifests that tests write, and a directory source at work on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.objects import Change, Object, Problem
from agent.sources.directory import DirectorySource
from agent.sources.source import Batch
from policies.model import ObjectRef

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {team: %s}}\n"

POLICY = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\n"
    "spec: {podSelector: {}, ingress: [{ports: [{port: %s}]}]}\n"
)


def ns(name: str, team: str = "x") -> str:
    return NAMESPACE % (name, team)


class Running:
    """A source at work: the sum of its changes, and its latest problems."""

    def __init__(self, source: DirectorySource) -> None:
        self.source = source
        self.objects: dict[ObjectRef, Object] = {}
        self.problems: list[Problem] = []
        self._batches = source.watch()

    async def begin(self) -> Running:
        self.take(await self.source.initial())
        return self

    def take(self, batch: Batch) -> list[Change]:
        for change in batch.changes:
            if change.object is None:
                del self.objects[change.ref]
            else:
                self.objects[change.ref] = change.object
        self.problems = batch.problems
        return batch.changes

    async def next(self) -> list[Change]:
        return self.take(await asyncio.wait_for(anext(self._batches), 60))

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self.next()

    @property
    def names(self) -> set[str]:
        return {ref.name for ref in self.objects}

    @property
    def teams(self) -> dict[str, str]:
        return {ref.name: value.labels["team"] for ref, value in self.objects.items() if hasattr(value, "labels")}

    async def close(self) -> None:
        await self._batches.aclose()  # type: ignore[attr-defined]
        self.source.close()


class Place:
    """A directory of manifests, and one for last good versions."""

    def __init__(self, base: Path) -> None:
        self.root = base / "manifests"
        self.last_good = base / "last-good"
        self.root.mkdir()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        running = await Running(DirectorySource(self.root, self.last_good)).begin()
        try:
            yield running
        finally:
            await running.close()

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, file: str, text: str) -> None:
        """As most editors save."""
        new = self.root / (file + ".tmp")
        new.write_text(text)
        new.rename(self.root / file)


Test = Callable[[Place], Coroutine[Any, Any, None]]


def asynchronous(test: Test) -> Callable[[Place], None]:
    def run(place: Place) -> None:
        asyncio.run(test(place))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
