"""The directory source on real files: what is read when, and what survives races and restarts."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.objects import Change, Object, Problem
from agent.sources import directory, inotify
from agent.sources.directory import DirectorySource
from agent.sources.source import Batch
from agent.sources.tree import ALL_KEPT, KEPT
from policies.model import ObjectRef, Policy

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
        return self.take(await asyncio.wait_for(anext(self._batches), 10))

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


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Test = Callable[[Place], Coroutine[Any, Any, None]]


def asynchronous(test: Test) -> Callable[[Place], None]:
    def run(place: Place) -> None:
        asyncio.run(test(place))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@asynchronous
async def test_files_added_changed_and_removed(place: Place) -> None:
    place.write("a.yaml", ns("a"))
    place.write("deep/er/b.yml", ns("b"))
    place.write(
        "c.json", '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c", "labels": {"team": "x"}}}'
    )
    for ignored in (".h.yaml", "a.yaml~", "#a.yaml#", ".a.yaml.swp", "notes.txt", ".git/x.yaml", "a.yaml.bak"):
        place.write(ignored, ns("ignored"))
    async with place.running() as running:
        assert running.names == {"a", "b", "c"}
        assert {str(value.origin) for value in running.objects.values()} == {"a.yaml:1", "deep/er/b.yml:1", "c.json:1"}
        place.write("a.yaml", ns("a", "y"))
        await running.next()
        assert running.teams["a"] == "y"
        place.replace("a.yaml", ns("a", "z"))
        await running.next()
        assert running.teams["a"] == "z"
        (place.root / "a.yaml").unlink()
        await running.next()
        assert running.names == {"b", "c"}
        place.write("#a.yaml#", ns("ignored"))
        (place.root / "b.yaml").hardlink_to(place.root / "deep/er/b.yml")
        await running.until(lambda: len(running.problems) == 1 and "deep/er/b.yml" in str(running.problems))
        (place.root / "deep/er/b.yml").unlink()
        await running.until(lambda: not running.problems)
        assert str(running.objects[ObjectRef("Namespace", "", "b")].origin) == "b.yaml:1"


@asynchronous
async def test_a_file_is_read_when_it_is_closed_not_while_it_is_written(place: Place) -> None:
    async with place.running() as running:
        with (place.root / "a.yaml").open("w") as file:
            file.write(ns("a") + "---\n")
            file.flush()
            place.write("other.yaml", ns("other"))
            await running.next()
            assert running.names == {"other"}
            file.write(ns("b"))
        await running.next()
        assert running.names == {"other", "a", "b"}


@asynchronous
async def test_what_is_readable_at_once_is_one_batch(place: Place) -> None:
    async with place.running() as running:
        for name in "abc":
            place.write(f"{name}.yaml", ns(name))
        assert len(await running.next()) == 3


@asynchronous
async def test_directories_come_and_go(place: Place) -> None:
    async with place.running() as running:
        place.write("one/two/a.yaml", ns("a"))
        await running.until(lambda: running.names == {"a"})
        place.write("one/two/b.yaml", ns("b"))
        await running.until(lambda: running.names == {"a", "b"})
        (place.root / "one").rename(place.root / "moved")
        await running.until(
            lambda: {v.origin.file for v in running.objects.values()} == {"moved/two/a.yaml", "moved/two/b.yaml"}
        )
        place.write("moved/two/a.yaml", ns("a", "y"))
        await running.until(lambda: running.teams["a"] == "y")
        (place.root / "moved").rename(place.root / ".hidden")
        await running.until(lambda: running.names == set())
        (place.root / ".hidden/two").rename(place.root / "two")
        await running.until(lambda: running.names == {"a", "b"})
        shutil.rmtree(place.root / "two")
        await running.until(lambda: running.names == set())
        place.write("two/c.yaml", ns("c"))
        await running.until(lambda: running.names == {"c"})


@asynchronous
async def test_the_directory_itself_goes_and_comes_back(place: Place) -> None:
    place.write("a.yaml", ns("a"))
    async with place.running() as running:
        shutil.rmtree(place.root)
        await running.until(lambda: running.names == set() and bool(running.problems))
        assert "not there" in running.problems[0].message
        place.write("b.yaml", ns("b"))
        await running.until(lambda: running.names == {"b"} and not running.problems)
        other = place.root.with_name("other")
        place.root.rename(other)
        await running.until(lambda: running.names == set())
        other.rename(place.root)
        await running.until(lambda: running.names == {"b"})
        place.write("sub/c.yaml", ns("c"))
        await running.until(lambda: running.names == {"b", "c"})


def test_no_directory_is_refused(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "none", tmp_path / "last-good")
    with pytest.raises(NotADirectoryError, match="directory that holds the manifests"):
        asyncio.run(source.initial())
    source.close()


# ---- symbolic links


def publish(place: Place, version: str, files: dict[str, str]) -> None:
    """As the kubelet updates a ConfigMap volume."""
    data = place.root / f"..{version}"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
    current = place.root / "..data"
    old = current.resolve() if current.is_symlink() else None
    (place.root / "..data_tmp").symlink_to(data.name)
    (place.root / "..data_tmp").rename(place.root / "..data")
    for name in files:
        if not (place.root / name).is_symlink():
            (place.root / name).symlink_to(f"..data/{name}")
    if old is not None:
        for path in old.iterdir():
            if path.name not in files:
                (place.root / path.name).unlink()
        shutil.rmtree(old)


@asynchronous
async def test_a_config_map_volume(place: Place) -> None:
    publish(place, "1", {"a.yaml": ns("a", "v1"), "b.yaml": ns("b", "v1")})
    async with place.running() as running:
        assert running.teams == {"a": "v1", "b": "v1"}
        publish(place, "2", {"a.yaml": ns("a", "v2"), "c.yaml": ns("c", "v2")})
        await running.until(lambda: running.teams == {"a": "v2", "c": "v2"})
        publish(place, "3", {"a.yaml": ns("a", "v3"), "c.yaml": ns("c", "v3")})
        await running.until(lambda: running.teams == {"a": "v3", "c": "v3"})
        assert running.problems == []
        assert {v.origin.file for v in running.objects.values()} == {"a.yaml", "c.yaml"}


@asynchronous
async def test_a_link_to_a_file_elsewhere(place: Place) -> None:
    elsewhere = place.root.with_name("elsewhere")
    elsewhere.mkdir()
    target = elsewhere / "target.txt"
    target.write_text(ns("a"))
    (place.root / "a.yaml").symlink_to(target)
    async with place.running() as running:
        assert running.names == {"a"}
        target.write_text(ns("a", "y"))
        await running.until(lambda: running.teams["a"] == "y")
        target.unlink()
        await running.until(lambda: bool(running.problems))
        assert (running.problems[0].message, running.problems[0].effect) == (
            "a symbolic link to a file that is not there", ALL_KEPT,
        )  # fmt: skip
        assert running.names == {"a"}
        target.write_text(ns("a", "z"))
        await running.until(lambda: running.teams["a"] == "z" and not running.problems)
        (place.root / "a.yaml").unlink()
        await running.until(lambda: running.names == set())


@asynchronous
async def test_a_link_to_beside_the_directory_that_goes_and_comes_back(place: Place) -> None:
    (place.root.parent / "target.txt").write_text(ns("a"))
    (place.root / "a.yaml").symlink_to("../target.txt")
    async with place.running() as running:
        for team in ("y", "z"):
            shutil.rmtree(place.root)
            await running.until(lambda: running.names == set())
            place.root.mkdir()
            (place.root / "a.yaml").symlink_to("../target.txt")
            await running.until(lambda: running.names == {"a"})
            (place.root.parent / "target.txt").write_text(ns("a", team))
            await running.until(lambda team=team: running.teams == {"a": team})  # type: ignore[misc]


@asynchronous
async def test_a_deep_tree(place: Place) -> None:
    deep = "d/" * 1500
    place.write("a.yaml", ns("a"))
    descriptor = os.open(place.root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    (place.root / deep / "b.yaml").write_text(ns("b"))
    async with place.running() as running:
        assert running.names == {"a", "b"}
    subprocess.run(["rm", "-rf", place.root], check=True)  # too deep for shutil


@asynchronous
async def test_a_link_to_a_directory_is_reported(place: Place) -> None:
    (place.root / "loop").symlink_to(place.root)
    async with place.running() as running:
        assert [p.file for p in running.problems] == ["loop"]
        (place.root / "loop").unlink()
        await running.until(lambda: not running.problems)


@asynchronous
async def test_what_is_no_manifest_is_reported_and_blocks_nothing(place: Place) -> None:
    os.mkfifo(place.root / "pipe.yaml")
    (place.root / os.fsdecode(b"\xff.yaml")).write_text(ns("a"))
    place.write("b.yaml/c.yaml", ns("b"))
    async with place.running() as running:
        assert running.names == {"b"}
        assert [(p.file, p.message[:10]) for p in running.problems] == [
            ("\\xff.yaml", "the file's"), ("pipe.yaml", "not a regu"),
        ]  # fmt: skip


@asynchronous
async def test_a_file_too_large_is_reported(place: Place) -> None:
    place.write("a.yaml", ns("a"))
    async with place.running() as running:
        with (place.root / "a.yaml").open("r+b") as file:
            file.truncate(directory.MAX_FILE_BYTES + 1)
        await running.until(lambda: bool(running.problems))
        assert "split it" in running.problems[0].message
        assert running.names == {"a"}


# ---- races


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


# ---- last good versions over a restart


def only_policy(running: Running) -> Policy:
    (value,) = running.objects.values()
    assert isinstance(value, Policy)
    return value


BROKEN_POLICIES = {
    "invalid": POLICY % ("p", 99999),
    "text": "kind: [",
    "misspelt": (POLICY % ("p", 80)).replace("NetworkPolicy", "NetworkPolcy"),
    "not text": "\0",
}


@pytest.mark.parametrize("broken", BROKEN_POLICIES.values(), ids=BROKEN_POLICIES)
def test_lesson_15_a_policy_that_broke_while_the_agent_was_down_stays_in_force(place: Place, broken: str) -> None:
    async def test() -> None:
        place.write("p.yaml", POLICY % ("p", 80))
        async with place.running() as running:
            good = only_policy(running)
        place.write("p.yaml", broken)
        for _ in range(3):
            async with place.running() as running:
                assert only_policy(running) == good
                assert [p.effect for p in running.problems] in ([KEPT], [ALL_KEPT])
        (place.root / "p.yaml").unlink()
        async with place.running() as running:
            assert running.objects == {}
        place.write("p.yaml", "kind: [")
        async with place.running() as running:
            assert running.objects == {}

    asyncio.run(test())


@asynchronous
async def test_a_policy_that_moved_and_broke_while_the_agent_was_down_stays_in_force(place: Place) -> None:
    place.write("p.yaml", POLICY % ("p", 80))
    async with place.running() as running:
        good = only_policy(running)
    (place.root / "p.yaml").unlink()
    place.write("q.yaml", POLICY % ("p", 99999))
    for _ in range(2):
        async with place.running() as running:
            assert only_policy(running).rules == good.rules
            assert only_policy(running).problem == ""


@asynchronous
async def test_each_object_of_a_file_keeps_its_own_last_good_version(place: Place) -> None:
    def text(*teams: str) -> str:
        return "---\n".join(ns(name, team) for name, team in zip("abc", teams, strict=False))

    async with place.running() as running:
        place.write("m.yaml", text("v1", "v1", "v1"))
        await running.next()
        for teams in (("yes", "v2", "v2"), ("no", "yes", "v3"), ("no", "no", "v4")):
            place.write("m.yaml", text(*teams))
            await running.until(lambda teams=teams: running.teams["c"] == teams[2])  # type: ignore[misc]
        place.write("m.yaml", "kind: [")
        await running.next()
        assert running.teams == {"a": "v1", "b": "v2", "c": "v4"}
        held = dict(running.objects)
    for _ in range(2):
        async with place.running() as running:
            assert running.teams == {"a": "v1", "b": "v2", "c": "v4"}
            assert running.objects == held
    place.write("m.yaml", text("v5", "yes"))
    async with place.running() as running:
        assert running.teams == {"a": "v5", "b": "v2"}


@asynchronous
async def test_the_text_of_a_list_is_kept_too(place: Place) -> None:
    items = '{{"apiVersion": "v1", "kind": "List", "items": [\n{}]}}'
    one = '{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{}", "labels": {{"team": {}}}}}}}'
    for file in ("l.json", "l.yaml"):
        place.write(file, items.format(",\n".join([one.format(file[2], '"v1"'), one.format(file[2] + "2", '"v1"')])))
    async with place.running() as running:
        assert running.teams == {"j": "v1", "j2": "v1", "y": "v1", "y2": "v1"}
    for file in ("l.json", "l.yaml"):
        place.write(file, items.format(",\n".join([one.format(file[2], "1"), one.format(file[2] + "2", '"v2"')])))
    for _ in range(2):
        async with place.running() as running:
            assert running.teams == {"j": "v1", "j2": "v2", "y": "v1", "y2": "v2"}
    for file in ("l.json", "l.yaml"):
        place.write(file, items.format(one.format(file[2] + "2", '"v2"')) + "}")
    async with place.running() as running:
        assert running.names == {"j", "j2", "y", "y2"}  # the first may be what is broken now


@asynchronous
async def test_a_full_disk_is_reported_and_made_up_for(place: Place) -> None:
    place.last_good.write_text("in the way")
    place.write("p.yaml", POLICY % ("p", 80))
    async with place.running() as running:
        await running.source.saved()
        place.write("x.yaml", ns("x"))
        await running.next()
        assert "cannot be kept" in str(running.problems)
        place.last_good.unlink()
        place.write("x.yaml", ns("x", "y"))
        await running.next()
        await running.source.saved()
    place.write("p.yaml", "[")
    async with place.running() as running:
        assert ObjectRef("NetworkPolicy", "default", "p") in running.objects


# ---- any history ends like a fresh start

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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# ---- speed


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
