"""Blocks of the pool: one owner each, the same after a restart, and what is said when there are none."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from coroutines import in_no_time, now_s
from object_store import ObjectStore, at_once

from agent.kube import bodies
from agent.kube.blocks import NodeBlocks, PoolExhausted, candidates, pool_blocks
from agent.kube.writes import Away
from policies.address import Prefix

POOLS = pool_blocks(["10.0.0.0/16", "fd00::/48"], [24, 64])


def blocks(store: ObjectStore, node: str, state: Path) -> NodeBlocks:
    state.mkdir(exist_ok=True)
    return NodeBlocks(store, node, POOLS, state)


def test_a_pool_whose_blocks_have_no_names() -> None:
    with pytest.raises(ValueError, match="choose another --pool"):
        pool_blocks(["::/16"], [64])


def test_names() -> None:
    assert bodies.block_name(Prefix.parse("10.244.3.0/24")) == "10-244-3-0-24"
    assert bodies.block_name(Prefix.parse("fd00:10:244:3::/64")) == "fd00-10-244-3---64"


def test_every_block_is_tried_once_and_the_first_depends_on_the_name() -> None:
    found = list(candidates(POOLS[0], "n1", set()))
    assert len(set(found)) == 256 and all(Prefix.parse("10.0.0.0/16").covers(block) for block in found)
    assert next(candidates(POOLS[0], "n1", {found[0]})) == found[1]
    assert len({next(candidates(POOLS[0], f"n{i}", set())) for i in range(20)}) > 10
    assert str(next(candidates(POOLS[1], "n1", set()))).startswith("fd00:0:0:")


@in_no_time
async def test_a_restart_keeps_the_blocks_and_so_does_one_without_state(tmp_path: Path) -> None:
    store = ObjectStore()
    first = await blocks(store, "n1", tmp_path / "a").claim()
    assert [block.bits for block in first] == [120, 64] and len(store.objects) == 2
    assert blocks(store, "n1", tmp_path / "a").held() == first
    assert await blocks(store, "n1", tmp_path / "a").claim() == first
    assert await blocks(store, "n1", tmp_path / "b").claim() == first
    assert len(store.objects) == 2 and sum(request == "create" for request, _ in store.requests) == 2


@in_no_time
async def test_a_claim_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    store = ObjectStore()
    first = await blocks(store, "n1", tmp_path / "a").claim()
    store.objects.clear()
    for number, pool in enumerate(POOLS):  # the hash alone would lead elsewhere
        store.put(bodies.node_block(next(b for b in candidates(pool, "n1", set(first))), f"n{number + 5}"))
    assert await blocks(store, "n1", tmp_path / "a").claim() == first


@in_no_time
async def test_a_block_that_is_anothers_now_is_given_up(tmp_path: Path) -> None:
    store = ObjectStore()
    first = await blocks(store, "n1", tmp_path / "a").claim()
    for block in first:
        store.objects.pop(bodies.block_name(block))
        store.put(bodies.node_block(block, "n2"))
    second = await blocks(store, "n1", tmp_path / "a").claim()
    assert not set(first) & set(second) and blocks(store, "n1", tmp_path / "a").held() == second


@in_no_time
async def test_state_of_another_node_or_pool_or_none_at_all_is_no_state(tmp_path: Path) -> None:
    store = ObjectStore()
    await blocks(store, "n1", tmp_path / "a").claim()
    assert blocks(store, "n2", tmp_path / "a").held() == ()
    other = pool_blocks(["10.9.0.0/16", "fd00::/48"], [24, 64])
    assert NodeBlocks(store, "n1", other, tmp_path / "a").held() == ()
    (tmp_path / "a" / "blocks.json").write_bytes(b'{"node": "n1", "blo')
    assert blocks(store, "n1", tmp_path / "a").held() == ()
    assert blocks(store, "n1", tmp_path / "c").held() == ()


@in_no_time
async def test_a_pool_that_is_used_up_says_what_to_do(tmp_path: Path) -> None:
    store = ObjectStore()
    small = pool_blocks(["10.0.0.0/23"], [24])
    for number in range(2):
        await NodeBlocks(store, f"n{number}", small, _made(tmp_path / str(number))).claim()
    with pytest.raises(PoolExhausted, match="larger --pool"):
        await NodeBlocks(store, "n2", small, _made(tmp_path / "2")).claim()


def _made(path: Path) -> Path:
    path.mkdir()
    return path


@in_no_time
async def test_many_nodes_at_once_get_different_blocks(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)

    async def trouble(request: str, name: str) -> None:
        await asyncio.sleep(draw.uniform(0, 0.1))
        if draw.random() < 0.1:
            raise Away("connection reset")

    store = ObjectStore(before=trouble, after=trouble)
    claims = [blocks(store, f"n{i}", tmp_path / f"n{i}").claim() for i in range(250)]
    given = [block for one in await asyncio.gather(*claims) for block in one]
    assert len(given) == 500 and max(Counter(given).values()) == 1
    assert len(store.objects) == 500


class TestObtain:
    @staticmethod
    async def away(request: str, name: str) -> None:
        raise Away("connection refused")

    @in_no_time
    async def test_without_a_server_a_node_keeps_what_it_had(self, tmp_path: Path) -> None:
        store = ObjectStore()
        first = await blocks(store, "n1", tmp_path / "a").obtain(10.0)
        store.before = self.away
        started_s = now_s()
        assert await blocks(store, "n1", tmp_path / "a").obtain(10.0) == first
        assert now_s() - started_s == pytest.approx(10.0)

    @in_no_time
    async def test_one_that_had_nothing_waits(self, tmp_path: Path) -> None:
        store = ObjectStore(before=self.away)
        waiting = asyncio.create_task(blocks(store, "n1", tmp_path / "a").obtain(10.0))
        await asyncio.sleep(3600)
        assert not waiting.done() and len(store.requests) < 3600 / 10
        store.before = at_once
        assert len(await waiting) == 2

    @in_no_time
    async def test_and_so_does_one_for_which_there_is_no_room(self, tmp_path: Path) -> None:
        store = ObjectStore()
        small = pool_blocks(["10.0.0.0/24"], [24])
        store.put(bodies.node_block(Prefix.parse("10.0.0.0/24"), "n2"))
        waiting = asyncio.create_task(NodeBlocks(store, "n1", small, tmp_path).obtain(10.0))
        await asyncio.sleep(3600)
        assert not waiting.done()
        store.objects.clear()
        assert [str(block) for block in await waiting] == ["10.0.0.0/24"]


@in_no_time
async def test_claims_are_kept_and_what_is_anothers_is_told(tmp_path: Path) -> None:
    store = ObjectStore()
    node = blocks(store, "n1", tmp_path / "a")
    first = await node.claim()
    keeping = asyncio.create_task(node.keep(first))
    store.objects.clear()
    await asyncio.sleep(1000)
    assert len(store.objects) == 2 and not node.problems()
    store.objects.clear()
    store.put(bodies.node_block(first[1], "n2"))
    await asyncio.sleep(1000)
    (problem,) = node.problems()
    assert "node n2 has this block" in problem.message and len(store.objects) == 2
    del store.objects[bodies.block_name(first[1])]
    await asyncio.sleep(1000)
    assert not node.problems()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
