"""What was last seen, on disk: kept, damaged, refused by the disk."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from apiserver import ApiServer
from kube_source import following, made, policy, stored

from agent.kube import source as source_module
from agent.kube.cache import Cache, Row
from agent.kube.source import DATABASE


def row(name: str, good: bytes | None = b"{}", broken: bytes | None = None) -> Row:
    return Row(f"api:pods/shop/{name}", "pods", "7", 1, "u", good, broken)


def rows(path: Path, identity: str = "n1") -> list[Row]:
    cache = Cache(path, identity)
    found = list(cache.rows())
    cache.close()
    return found


def test_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / "objects.db"
    cache = Cache(path, "n1")
    assert cache.complete() == frozenset()
    for name in "abc":
        cache.put(row(name))
    cache.commit()
    cache.remove(row("b").file)
    cache.put(row("a", b"2"))
    cache.whole({"pods", "services"})
    cache.close()
    assert rows(path) == [row("a", b"2"), row("c")]
    assert path.stat().st_mode & 0o777 == 0o600
    again = Cache(path, "n1")
    assert again.complete() == {"pods", "services"}
    again.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "objects.db"
    path.touch(mode=0o644)
    cache = Cache(path, "n1")
    cache.put(row("a"))
    cache.commit()
    asyncio.run(cache.written())
    assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3, "with those that SQLite keeps beside it"
    cache.close()


def test_the_good_version_stays_beside_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "objects.db"
    cache = Cache(path, "n1")
    for one in (
        row("a", b"good"),
        row("a", None, b"bad"),
        row("a", None, b"worse"),
        row("b", None, b"bad"),
        row("c", b"good"),
        row("c", None, b"bad"),
        row("c", b"better"),
    ):
        cache.put(one)
    cache.close()
    assert rows(path) == [row("a", b"good", b"worse"), row("b", None, b"bad"), row("c", b"better")]


def test_of_another_node_nothing_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "objects.db"
    cache = Cache(path, "n1")
    cache.put(row("a"))
    cache.whole({"pods"})
    cache.close()
    assert rows(path, "n2") == []
    assert rows(path, "n1") == [], "and it is forgotten"


@pytest.mark.parametrize("damage", ["not a database at all" * 100, "half"])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "objects.db"
    cache = Cache(path, "n1")
    for i in range(2000):
        cache.put(row(str(i), b"x" * 100))
    cache.whole({"pods"})
    cache.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" * 5000 if damage == "half" else damage.encode())
    again = Cache(path, "n1")
    assert again.put_aside == tmp_path / "objects.db.damaged"
    assert again.put_aside.exists()
    assert again.problem == "", "it begins anew"
    assert again.complete() == frozenset()
    assert list(again.rows()) == []
    again.put(row("a"))
    again.close()
    assert rows(path) == [row("a")]


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "objects.db"
    cache = Cache(path, "n1")
    cache.put(row("a"))
    cache.whole({"pods"})
    cache.commit()
    asyncio.run(cache.written())
    assert cache._database is not None
    cache._database.execute("PRAGMA max_page_count = 1")  # as a full disk
    cache.put(row("b", b"x" * 100_000))
    cache.commit()
    asyncio.run(cache.written())
    assert "full" in cache.problem
    assert not path.exists(), "nobody is to start from what lacks something"
    cache.put(row("c"))
    cache.commit()
    assert asyncio.run(cache.renew())
    assert cache.problem == ""
    cache.put(row("d"))
    cache.close()
    assert rows(path) == [row("d")]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "objects.db", "n1")
    assert cache.problem
    assert cache.complete() == frozenset()
    assert list(cache.rows()) == []
    cache.put(row("a"))
    cache.close()


# ---- with a source


def test_after_a_disk_that_was_full_everything_is_written_again(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "RENEW_S", 0.5)
    api.load(policy(f"p{i}") for i in range(50))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            cache = follower.source._cache
            await cache.written()
            assert cache._database is not None
            cache._database.execute("PRAGMA max_page_count = 1")
            api.load([made("v1", "Namespace", "n", metadata={"annotations": {"a": "x" * 200_000}})])
            await follower.until(lambda: bool(follower.batches and follower.batches[-1].problems))
            [problem] = follower.batches[-1].problems
            assert "cannot be kept" in problem.message
            while cache.problem or not follower.source._whole.issuperset(follower.source._reflectors):
                await asyncio.sleep(0.02)
                api.drop_watches()  # then they list again
            await cache.written()
        api.stop()
        async with following(api.url, tmp_path) as follower:
            assert follower.source.from_disk
            assert follower.world == stored(api)
            assert follower.first is not None
            assert follower.first.problems == []

    asyncio.run(run())


def test_a_damaged_file_and_no_server(api: ApiServer, tmp_path: Path) -> None:
    api.put(policy("a"))

    async def run() -> None:
        async with following(api.url, tmp_path):
            pass
        (tmp_path / DATABASE).write_bytes(b"junk" * 1000)
        api.stop()
        async with following(api.url, tmp_path, api_wait_s=0.0, started=False) as follower:
            start = asyncio.create_task(follower.start())
            done, _ = await asyncio.wait([start], timeout=0.3)
            assert not done
            api.start()
            await start
            assert follower.world == stored(api)

    asyncio.run(run())


def test_what_is_on_disk_is_what_was_told(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.put(policy("a"))
            await follower.until(lambda: bool(follower.names("NetworkPolicy")))
            await follower.source._cache.written()
            with sqlite3.connect(tmp_path / DATABASE) as database:
                texts = [text for (text,) in database.execute("SELECT good FROM object WHERE file LIKE '%policies%'")]
            database.close()
            assert len(texts) == 1
            assert b"managedFields" not in texts[0]
            assert b'"kind":"NetworkPolicy"' in texts[0]

    asyncio.run(run())
