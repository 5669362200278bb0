"""Manifests behind symbolic links."""

from __future__ import annotations

import os
import shutil
import subprocess

from manifest_folder import Place, asynchronous, ns

from agent.sources import directory
from agent.sources.tree import ALL_KEPT


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
