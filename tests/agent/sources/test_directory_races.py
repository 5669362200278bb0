"""Files that change while they are looked at."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from manifest_folder import Place, asynchronous, ns

from agent.sources import inotify
from agent.sources.directory import DirectorySource


@asynchronous
async def test_files_that_vanish_before_they_are_read(place: Place) -> None:
    async with place.running() as running:
        for name in "abcdef":
            place.write(f"{name}/{name}.yaml", ns(name))
            shutil.rmtree(place.root / name)
        place.write("x/y.yaml", ns("gone"))
        (place.root / "x/y.yaml").unlink()
        place.write("last.yaml", ns("last"))
        await running.until(lambda: "last" in running.names)
        assert running.names == {"last"}
        assert running.problems == []


def test_a_file_that_vanishes_between_listing_and_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.yaml", ns("a"))
    place.write("b.yaml", ns("b"))
    real = os.open

    def opened(path: Any, *arguments: Any) -> int:
        (place.root / "a.yaml").unlink(missing_ok=True)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", opened)
    source = DirectorySource(place.root, place.last_good)
    batch = asyncio.run(source.initial())
    assert [change.ref.name for change in batch.changes] == ["b"]
    assert batch.problems == []
    source.close()


@asynchronous
async def test_after_too_many_events_everything_is_looked_at(place: Place) -> None:
    overflows = inotify.Inotify()
    overflows.add(place.root, inotify.CLOSE_WRITE)
    for name in "abc":
        place.write(f"{name}/{name}.yaml", ns(name))
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    async with place.running() as running:
        noise = (place.root / "n1.yaml", place.root / "n2.yaml")
        for index in range(limit + 10):
            os.close(os.open(noise[index % 2], os.O_WRONLY | os.O_CREAT, 0o600))
        place.write("a/a.yaml", ns("a", "y"))
        shutil.rmtree(place.root / "b")
        place.write("d/e/d.yaml", ns("d"))
        (place.root / "c").rename(place.root / "f")
        assert list(overflows.read())[-1].mask == inotify.OVERFLOW
        overflows.close()
        await running.next()
        assert running.teams == {"a": "y", "c": "x", "d": "x"}
        place.write("f/c.yaml", ns("c", "z"))
        place.write("d/e/d.yaml", ns("d", "z"))
        await running.until(lambda: running.teams == {"a": "y", "c": "z", "d": "z"})
