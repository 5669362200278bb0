"""The directory source on real files: what is read when."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from manifest_folder import Place, asynchronous, ns

from agent.sources.directory import DirectorySource
from policies.model import ObjectRef


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
