"""Whatever was edited ends like a fresh start, and soon; what inotify refuses is said."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_folder import Place, asynchronous, ns

from agent.sources import inotify
from agent.sources.directory import DirectorySource

FILES = st.sampled_from(["a.yaml", "b.yaml", "d/a.yaml", "d/e/a.yaml"])

TEXTS = st.lists(st.builds(ns, st.sampled_from("abc"), st.sampled_from("xy")), max_size=3).map("---\n".join)

EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), FILES, TEXTS),
        st.tuples(st.just("replace"), FILES, TEXTS),
        st.tuples(st.just("delete"), FILES, st.just("")),
        st.tuples(st.just("move"), st.sampled_from(["d", "d/e", "a.yaml"]), st.sampled_from(["f", "d/e", "b.yaml"])),
        st.tuples(st.just("rmtree"), st.sampled_from(["d", "d/e", "f"]), st.just("")),
        st.tuples(st.just("wait"), st.just(""), st.just("")),
    ),
    max_size=12,
)


def edit(place: Place, what: str, file: str, argument: str) -> None:
    """What the file system refuses is not done: a directory onto a file, or into itself."""
    path = place.root / file
    with suppress(OSError):
        if what in ("write", "replace"):
            path.parent.mkdir(parents=True, exist_ok=True)
            (place.write if what == "write" else place.replace)(file, argument)
        elif what == "delete":
            path.unlink(missing_ok=True)
        elif what == "rmtree":
            shutil.rmtree(path, ignore_errors=True)
        elif what == "move":
            path.rename(place.root / argument)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(edits=EDITS)
def test_any_edits_end_like_a_fresh_start(tmp_path_factory: pytest.TempPathFactory, edits: list[Any]) -> None:
    place = Place(tmp_path_factory.mktemp("history"))

    async def test() -> None:
        async with place.running() as running:
            for index, (what, file, argument) in enumerate([*edits, ("wait", "", "")]):
                if what == "wait":
                    place.write("mark.yaml", ns(f"mark-{index}"))
                    await running.until(lambda index=index: f"mark-{index}" in running.names)  # type: ignore[misc]
                else:
                    edit(place, what, file, argument)
            fresh = DirectorySource(place.root, place.last_good.with_name("other"))
            batch = await fresh.initial()
            fresh.close()
            assert running.objects == {change.ref: change.object for change in batch.changes}
            assert running.problems == batch.problems

    asyncio.run(test())
    shutil.rmtree(place.root.parent)


@asynchronous
async def test_a_change_is_seen_at_once(place: Place) -> None:
    """From close(2) to the batch there is no waiting for more to come: a tenth of 50 saves are at once, whatever else
    the machine does."""
    took = []
    async with place.running() as running:
        for index in range(50):
            place.write("a.yaml", ns("a", f"t{index}"))
            written = time.perf_counter_ns()
            await running.next()
            took.append(time.perf_counter_ns() - written)
    assert sorted(took)[5] < 20_000_000


@pytest.fixture
def watcher() -> Iterator[inotify.Inotify]:
    found = inotify.Inotify()
    yield found
    found.close()


def test_inotify_errors_name_the_path(watcher: inotify.Inotify, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        watcher.add(tmp_path / "nowhere", inotify.CREATE)
    watch = watcher.add(tmp_path, inotify.CREATE)
    (tmp_path / "x").mkdir()
    assert list(watcher.read()) == [inotify.Event(watch, inotify.CREATE | inotify.IS_DIRECTORY, "x")]
    watcher.remove(watch)
    assert [event.mask for event in watcher.read()] == [inotify.IGNORED]
    watcher.remove(watch)
    assert list(watcher.read()) == []
