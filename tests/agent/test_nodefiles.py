"""The file by which a node tells others of itself: what a source reads of it, when it is written, who removes it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
import rig

from agent import nodefiles
from agent.kube.bodies import NodeFacts
from agent.nodefiles import NOTE, NodeFile
from agent.objects import NodeEndpoints
from agent.sources.manifest import parse
from policies.address import Prefix, parse_address

FACTS = NodeFacts(
    (parse_address("192.0.2.1"), parse_address("2001:db8::1")),
    (Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00:1::/64")),
    bytes(range(32)),
    bytes(32),
)
OTHER = NodeFacts((parse_address("192.0.2.9"),), FACTS.pod_cidrs)


def made(tmp_path: Path, folder: str = "nodes") -> NodeFile:
    return NodeFile(str(tmp_path / folder) if folder else "", "n1.example", tmp_path / NOTE)


def written(tmp_path: Path, folder: str = "nodes") -> Path:
    return tmp_path / folder / "n1.example.json"


def test_sources_read_what_was_told(tmp_path: Path) -> None:
    file = made(tmp_path)
    file.write(FACTS)
    file.sync()
    assert file.problem == ""
    path = written(tmp_path)
    (item,) = parse(path.read_bytes(), "n1.json").items
    told = item.object
    assert isinstance(told, NodeEndpoints)
    assert item.problems == ()
    assert (told.ref.name, told.endpoints) == ("n1.example", ())
    read = NodeFacts(told.addresses, told.pod_cidrs, told.public_key, told.next_public_key)
    assert read == FACTS
    assert json.loads(path.read_text())["spec"]["publicKey"] == base64.b64encode(bytes(range(32))).decode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_it_is_written_where_it_differs_and_replaced_whole(tmp_path: Path) -> None:
    file, path = made(tmp_path), written(tmp_path)
    file.sync()
    assert not path.exists()  # nothing is known yet
    file.write(FACTS)
    file.sync()
    first = path.stat()
    again = made(tmp_path)  # the next agent
    again.write(FACTS)
    again.sync()
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    with path.open() as reader:
        again.write(OTHER)
        again.sync()
        assert reader.read() == nodefiles.text_of("n1.example", FACTS).decode()  # who had it open reads it whole
    assert path.read_bytes() == nodefiles.text_of("n1.example", OTHER)


def test_it_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """News, and a file that somebody removed or wrote over."""
    monkeypatch.setattr(nodefiles, "LOOK_S", 0.01)
    path = written(tmp_path)

    async def live() -> None:
        file = made(tmp_path)
        running = asyncio.create_task(file.run())
        for facts in (FACTS, OTHER):
            file.write(facts)
            await is_there(facts)
        path.unlink()
        await is_there(OTHER)
        path.write_text("{}")
        await is_there(OTHER)
        running.cancel()

    async def is_there(facts: NodeFacts) -> None:
        def there() -> bool:
            return path.exists() and path.read_bytes() == nodefiles.text_of("n1.example", facts)

        await asyncio.to_thread(rig.wait_until, there, 5, "the file says what is so")

    asyncio.run(live())


def test_a_folder_that_cannot_be_written_is_a_problem_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("in the way")
    file = made(tmp_path)
    file.write(FACTS)
    file.sync()
    assert file.problem.startswith("other nodes are not told of this one: ")
    assert str(tmp_path / "nodes") in file.problem
    (tmp_path / "nodes").unlink()
    file.sync()
    assert file.problem == ""
    assert written(tmp_path).exists()


@pytest.mark.parametrize("folder", ["other", ""])
def test_a_file_of_earlier_settings_goes(tmp_path: Path, folder: str) -> None:
    before = made(tmp_path)
    before.write(FACTS)
    before.sync()
    after = made(tmp_path, folder)
    if folder:
        after.write(FACTS)
    after.sync()
    assert not written(tmp_path).exists()
    assert after.wanted is bool(folder)
    assert not folder or written(tmp_path, folder).exists()
    assert (tmp_path / NOTE).exists() is bool(folder)


def test_removal(tmp_path: Path) -> None:
    assert not nodefiles.remove(tmp_path / NOTE)
    file = made(tmp_path)
    file.write(FACTS)
    file.sync()
    assert nodefiles.remove(tmp_path / NOTE)
    assert not written(tmp_path).exists()
    assert not nodefiles.remove(tmp_path / NOTE)
