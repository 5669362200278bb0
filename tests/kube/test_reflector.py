"""Faults of the server and of the way to it: what is asked again, when, and that nothing is missed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from apiserver import ApiServer
from kube_source import QUICK, SHORT, Follower, following, policy, stored

RESOURCE = "networkpolicies"
WATCH = ("watch", RESOURCE)


def asked(api: ApiServer, resource: str = RESOURCE) -> Counter[str]:
    return Counter(seen.verb for seen in api.requests if seen.resource == resource)


async def comes(holds: Callable[[], bool]) -> None:
    """Of the server, which tells nobody."""
    async with asyncio.timeout(90):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_watch_that_ends_goes_on_where_it_was(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            for name in "abcd":
                await comes(lambda: api.watching(RESOURCE) == 1)
                api.drop_watches()
                api.put(policy(name))
                await follower.until(lambda name=name: name in follower.names("NetworkPolicy"))  # type: ignore[misc]
            assert asked(api)["list"] == 1
            assert follower.told("NetworkPolicy") == list("abcd")

    asyncio.run(run())


def test_bookmarks_move_the_place(api: ApiServer, tmp_path: Path) -> None:
    """What others write makes the version of a quiet resource too old; bookmarks keep it young."""
    api.load([policy("a")])

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            for i in range(5):
                api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"n{i}"}})
            await follower.until(lambda: "n4" in follower.names("Namespace"))
            reflector = follower.source._reflectors["networkpolicies.networking.k8s.io"]
            before = reflector.place
            assert api.bookmark(RESOURCE) == 1
            await comes(lambda: reflector.place != before)
            api.drop_watches(RESOURCE)
            await comes(lambda: asked(api)["watch"] == 2)
            first, second = (s.query["resourceVersion"] for s in api.requests if (s.verb, s.resource) == WATCH)
            assert int(second) >= int(first) + 5

    asyncio.run(run())


@pytest.mark.parametrize("as_status", [False, True])
def test_410_lists_again_and_tells_the_difference(api: ApiServer, tmp_path: Path, as_status: bool) -> None:
    api.load(policy(name) for name in ("goes", "stays", "changes"))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            api.faults.gone_as_status = as_status
            api.faults.stall(RESOURCE)
            api.delete(RESOURCE, "goes", "shop")
            api.load([policy("changes", app="2"), policy("comes")])
            api.compact(tell=False)
            api.faults.flow()
            api.drop_watches()
            await follower.until(lambda: follower.world == stored(api))
            assert sorted(follower.told("NetworkPolicy")) == ["-goes", "changes", "comes"]

    asyncio.run(run())


def test_a_storm_of_410_is_none_of_lists(api: ApiServer, tmp_path: Path) -> None:
    api.load(policy(str(i)) for i in range(10))

    async def run() -> None:
        timings = msgspec.structs.replace(QUICK, first_delay_s=0.1, most_delay_s=60.0)
        async with following(api.url, tmp_path, timings=timings) as follower:
            before = asked(api)["list"]
            rule = api.faults.refuse(410, verbs=["watch"])
            api.drop_watches()
            await asyncio.sleep(3)
            lists = asked(api)["list"] - before
            # 0.05–0.1, 0.1–0.2, … s apart: six of them take 3.15 s at the very least.
            assert 1 <= lists <= 6
            assert len(follower.names("NetworkPolicy")) == 10, "nothing was forgotten"
            assert follower.batches == [], "and nothing told twice"
            api.faults.remove(rule)

    asyncio.run(run())


def test_retry_after_is_honoured(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            api.forget_requests()
            api.faults.refuse(429, retry_after_s=1, verbs=["watch"], resources=[RESOURCE], times=2)
            api.drop_watches(RESOURCE)
            api.put(policy("a"))
            began_s = asyncio.get_running_loop().time()
            await follower.until(lambda: "a" in follower.names("NetworkPolicy"))
            assert asyncio.get_running_loop().time() - began_s >= 2
            assert asked(api) == {"watch": 3}

    asyncio.run(run())


@pytest.mark.parametrize("status", [429, 500, 503, 504])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_refusals_pass(api: ApiServer, tmp_path: Path, status: int, verb: str) -> None:
    api.put(policy("a"))
    api.faults.refuse(status, verbs=[verb], times=30)

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            api.put(policy("b"))
            await follower.until(lambda: follower.names("NetworkPolicy") == {"a", "b"})

    asyncio.run(run())


def test_a_list_that_breaks_in_the_middle_keeps_what_was(api: ApiServer, tmp_path: Path) -> None:
    api.load(policy(f"p{i}") for i in range(1200))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            rule = api.faults.reset(2000, verbs=["list"], resources=[RESOURCE])
            api.delete(RESOURCE, "p7", "shop")
            await follower.until(lambda: follower.told("NetworkPolicy") == ["-p7"])
            api.compact()
            await comes(lambda: asked(api)["list"] > 5)
            assert follower.told("NetworkPolicy") == ["-p7"]
            api.faults.remove(rule)
            api.delete(RESOURCE, "p1", "shop")
            await follower.until(lambda: follower.world == stored(api))
            assert follower.told("NetworkPolicy") == ["-p7", "-p1"]

    asyncio.run(run())


def test_a_list_that_takes_too_long_is_begun_again(api: ApiServer, tmp_path: Path) -> None:
    """410 for the token of the next page."""
    api.load(policy(f"p{i}") for i in range(1200))
    rule = api.faults.slow(delay_s=0.15, verbs=["list"], resources=[RESOURCE])

    async def run() -> None:
        async with following(api.url, tmp_path, started=False) as follower:
            start = asyncio.create_task(follower.start())
            await comes(lambda: asked(api)["list"] == 2)
            api.delete(RESOURCE, "p1199", "shop")
            api.compact()
            api.faults.remove(rule)
            await start
            assert follower.world == stored(api)

    asyncio.run(run())


def test_a_half_open_connection(api: ApiServer, tmp_path: Path) -> None:
    api.put(policy("a"))

    async def run() -> None:
        async with following(api.url, tmp_path, timeouts=SHORT) as follower:
            api.faults.hang(verbs=["list", "watch"], resources=[RESOURCE], times=3)
            timeouts = follower.source._client._timeouts
            follower.source._client._timeouts = msgspec.structs.replace(timeouts, stall_s=0.2)
            api.compact()
            api.put(policy("b"))
            await follower.until(lambda: follower.names("NetworkPolicy") == {"a", "b"})

    asyncio.run(run())


def test_a_watch_that_stalls_is_noticed(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        timeouts = msgspec.structs.replace(SHORT, stall_s=0.3)
        async with following(api.url, tmp_path, timeouts=timeouts) as follower:
            api.faults.stall(RESOURCE)
            api.put(policy("a"))
            await comes(lambda: asked(api)["watch"] >= 3)
            api.faults.flow()
            await follower.until(lambda: follower.names("NetworkPolicy") == {"a"})
            assert asked(api)["list"] == 1, "it went on from where it was"

    asyncio.run(run())


def test_a_slow_server(api: ApiServer, tmp_path: Path) -> None:
    api.load(policy(f"p{i}") for i in range(30))
    api.faults.slow(delay_s=0.05, bytes_per_s=20_000, verbs=["list", "watch"])

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.put(policy("b"))
            await follower.until(lambda: follower.world == stored(api))

    asyncio.run(run())


def test_resources_that_are_told_of_in_another_order(api: ApiServer, tmp_path: Path) -> None:
    """Deleted, and made again, while the watches of two resources lag behind each other."""

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE, "namespaces") == 2)
            api.faults.stall(RESOURCE, "namespaces")
            for turn in range(3):
                api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
                api.put(policy("a", turn=str(turn)))
                api.delete(RESOURCE, "a", "shop")
                api.delete("namespaces", "shop")
            api.put(policy("b"))
            api.faults.flow(RESOURCE)
            await follower.until(lambda: follower.names("NetworkPolicy") == {"b"})
            api.faults.flow()
            api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "last"}})
            await follower.until(lambda: follower.world == stored(api))

    asyncio.run(run())


def test_a_clock_that_jumps_changes_nothing(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching() == len(follower.source.status().resources))
            before = len(api.requests)
            for away_s in (10 * 365 * 86400, -10 * 365 * 86400):
                monkeypatch.setattr(time, "time", lambda away_s=away_s: 1.7e9 + away_s)
                api.put(policy(f"p{away_s}"))
                await follower.until(lambda away_s=away_s: f"p{away_s}" in follower.names("NetworkPolicy"))  # type: ignore[misc]
            assert len(api.requests) == before

    asyncio.run(run())


def test_a_server_that_ends_each_watch_at_once_is_left_alone(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        timings = msgspec.structs.replace(QUICK, first_delay_s=0.1, most_delay_s=60.0)
        async with following(api.url, tmp_path, timings=timings):
            await comes(lambda: api.watching(RESOURCE) == 1)
            before = asked(api)["watch"]
            ends = asyncio.get_running_loop().time() + 2
            while asyncio.get_running_loop().time() < ends:
                api.drop_watches(RESOURCE)
                await asyncio.sleep(0.005)
            assert asked(api)["watch"] - before <= 6

    asyncio.run(run())


def _error(follower: Follower) -> str:
    return next(s.error for s in follower.source.status().resources if s.resource.startswith(RESOURCE))


def test_status_says_what_is_wrong_and_when_it_is_not(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            await comes(lambda: api.watching(RESOURCE) == 1)
            rule = api.faults.refuse(403, resources=[RESOURCE])
            api.drop_watches(RESOURCE)
            await comes(lambda: "403" in _error(follower))
            assert "give the agent's service account this right" in _error(follower)
            api.faults.remove(rule)
            api.put(policy("a"))
            await follower.until(lambda: follower.names("NetworkPolicy") == {"a"})
            assert _error(follower) == ""

    asyncio.run(run())
