"""Last good versions over a restart of the agent."""

from __future__ import annotations

import asyncio

import pytest
from manifest_folder import POLICY, Place, Running, asynchronous, ns

from agent.sources.tree import ALL_KEPT, KEPT
from policies.model import ObjectRef, Policy


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
