"""This node's blocks of --pool: claimed by NodeBlock objects, whose names are the blocks, so no two nodes have one.

A claim is not owned by the Node object: pods outlive a Node that is deleted and registered anew. It is given up by the
collector, once the node has been gone for long.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import msgspec

from agent import log
from agent.config import Config
from agent.identity.allocator import first_choice
from agent.kube import bodies
from agent.kube.client import ApiClient
from agent.kube.pace import Pace
from agent.kube.writes import ApiFailure, Collection, Conflict, Missing, Objects, decode
from agent.objects import Problem
from policies.address import V4_MAPPED_BITS, Prefix

FILE = "blocks.json"
AGAIN_S = 10.0
"""After the server refused, or had nothing left."""
KEEP_S = 600.0
MAX_SPAN = 1 << 32
"""Of a pool with more blocks only the first so many are given."""

logger = log.get("blocks")


class PoolExhausted(Exception):
    """Every block of a pool is another node's. The message says what to do."""


class PoolBlock(msgspec.Struct, frozen=True):
    """A pool, and the length of its blocks in the 128-bit form (a /24 of IPv4 has 120)."""

    pool: Prefix
    bits: int

    @property
    def span(self) -> int:
        return min(1 << (self.bits - self.pool.bits), MAX_SPAN)

    def block(self, index: int) -> Prefix:
        network = int.from_bytes(self.pool.network, "big") + (index << (128 - self.bits))
        return Prefix(network.to_bytes(16, "big"), self.bits)

    def has(self, block: Prefix) -> bool:
        return block.bits == self.bits and self.pool.covers(block)


def pool_blocks(pools: Sequence[str], bits: Sequence[int]) -> tuple[PoolBlock, ...]:
    """From --pool and --pool-block-bits, which agent.config has checked. Raises ValueError for a pool whose blocks
    cannot be named."""
    found: list[PoolBlock] = []
    for text, length in zip(pools, bits, strict=True):
        pool = Prefix.parse(text)
        block = PoolBlock(pool, length + V4_MAPPED_BITS if pool.is_v4 else length)
        bodies.block_name(block.block(0))
        found.append(block)
    return tuple(found)


def candidates(pool: PoolBlock, node: str, taken: Set[Prefix]) -> Iterator[Prefix]:
    """Blocks to try, from the one the node's name hashes to on. Pure."""
    start = first_choice(node, pool.span)
    for step in range(pool.span):
        block = pool.block((start + step) % pool.span)
        if block not in taken:
            yield block


class _Saved(msgspec.Struct):
    node: str
    blocks: list[str]


class _BlockSpec(msgspec.Struct):
    cidr: str
    node: str


class _BlockHead(msgspec.Struct):
    spec: _BlockSpec


class NodeBlocks:
    """`state_dir` remembers them, for a start without an API server."""

    def __init__(
        self, objects: Objects, node: str, pools: Sequence[PoolBlock], state_dir: Path, pace: Pace | None = None
    ) -> None:
        self._objects, self._node, self._pools = objects, node, pools
        self._path = state_dir / FILE
        self._pace = pace or Pace()
        self._lost: dict[Prefix, str] = {}  # to whom

    def held(self) -> tuple[Prefix, ...]:
        """What this node had when it last ran; () unless that is a block of every pool."""
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
            blocks = [Prefix.parse(text) for text in saved.blocks]
        except FileNotFoundError:
            return ()
        except (msgspec.MsgspecError, ValueError, OSError) as error:
            logger.warning("the blocks of this node must be asked for", file=str(self._path), error=str(error))
            return ()
        found = [next((block for block in blocks if pool.has(block)), None) for pool in self._pools]
        whole = tuple(block for block in found if block is not None)
        return whole if saved.node == self._node and len(whole) == len(self._pools) else ()

    async def claim(self) -> tuple[Prefix, ...]:
        """One block of each pool, in their order, which is this node's from now on. Waits for the API server.

        Raises Refused, and PoolExhausted.
        """
        earlier = self.held()
        owners = await self._pace.persist(self._owners)
        blocks = tuple([await self._claim_of(pool, earlier, owners) for pool in self._pools])
        self._save(blocks)
        return blocks

    async def obtain(self, wait_s: float) -> tuple[Prefix, ...]:
        """As claim; where the API server does not answer within `wait_s`, what this node had. One that had nothing
        waits for as long as it takes, also for a pool that has room."""
        had, said = self.held(), ""
        while True:
            try:
                async with asyncio.timeout(wait_s if had else None):
                    return await self.claim()
            except TimeoutError:
                logger.warning("the API server does not answer: this node keeps its blocks", blocks=list(map(str, had)))
                return had
            except (ApiFailure, PoolExhausted) as failure:
                if str(failure) != said:
                    logger.error("no block of the pool for this node", error=str(failure))
                said = str(failure)
                await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))  # noqa: S311

    async def keep(self, blocks: Sequence[Prefix]) -> None:
        """Look now and again whether they are still this node's, and claim anew what nobody has."""
        while True:
            for block in blocks:
                try:
                    owner = await self._pace.persist(lambda block=block: self._owner(block))  # type: ignore[misc]
                except ApiFailure as failure:
                    logger.warning("whose block it is could not be asked", block=str(block), error=str(failure))
                    continue
                self._lose(block, owner)
            await asyncio.sleep(KEEP_S * random.uniform(0.8, 1.2))  # noqa: S311

    def problems(self) -> list[Problem]:
        return [
            Problem(
                f"api:{bodies.VERSION}/nodeblocks/{bodies.block_name(block)}",
                0,
                f"node {owner} has this block now, from which pods of this node have their addresses: drain this node, "
                "and restart its agent for another block",
                subject=f"NodeBlock {bodies.block_name(block)}",
                effect="two pods may have one address",
            )
            for block, owner in sorted(self._lost.items())
        ]

    # ---- inside

    def _lose(self, block: Prefix, owner: str) -> None:
        if owner == self._node:
            self._lost.pop(block, None)
        elif self._lost.get(block) != owner:
            logger.error("another node has a block of this one now: drain this node", block=str(block), owner=owner)
            self._lost[block] = owner

    async def _owner(self, block: Prefix) -> str:
        """Whose it is; this node's, if it was nobody's."""
        while True:
            try:
                raw = await self._objects.get(bodies.block_name(block))
                return decode(raw, _BlockHead).spec.node
            except Missing:
                if await self._take(block):
                    return self._node

    async def _claim_of(self, pool: PoolBlock, earlier: Sequence[Prefix], owners: Mapping[Prefix, str]) -> Prefix:
        own = sorted(block for block, owner in owners.items() if owner == self._node and pool.has(block))
        before = [block for block in earlier if pool.has(block)]
        if kept := [block for block in before if block in own] or own:
            return kept[0]
        for block in before:
            if await self._pace.persist(lambda block=block: self._take(block)):  # type: ignore[misc]
                return block  # its claim had been deleted
            logger.error(
                "another node has a block of this one now: drain this node, so that its pods get other addresses",
                block=str(block),
                owner=owners.get(block, ""),
            )
        for block in candidates(pool, self._node, owners.keys()):
            if await self._pace.persist(lambda block=block: self._take(block)):  # type: ignore[misc]
                logger.info("this node has taken a block of the pool", block=str(block), pool=str(pool.pool))
                return block
        raise PoolExhausted(
            f"every block of {pool.pool} is another node's: give a larger --pool, or delete the NodeBlocks of nodes "
            "that are gone"
        )

    async def _take(self, block: Prefix) -> bool:
        """Whether it is this node's by now."""
        while True:
            try:
                await self._objects.create(bodies.json_of(bodies.node_block(block, self._node)))
                return True
            except Conflict:
                try:
                    raw = await self._objects.get(bodies.block_name(block))
                except Missing:
                    continue  # it was given up in this moment
                return decode(raw, _BlockHead).spec.node == self._node

    async def _owners(self) -> dict[Prefix, str]:
        owners: dict[Prefix, str] = {}
        async for page in self._objects.pages():
            for raw in page:
                spec = decode(raw, _BlockHead).spec
                owners[Prefix.parse(spec.cidr)] = spec.node
        return owners

    def _save(self, blocks: Sequence[Prefix]) -> None:
        """On the disk before anybody has an address of them."""
        fresh = self._path.with_name(f".{FILE}.new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(_Saved(self._node, [str(block) for block in blocks])))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._path)


def claims(client: ApiClient, config: Config, state_dir: Path) -> NodeBlocks:
    """Those of --ipam pool."""
    pools = pool_blocks(config.pool, config.pool_block_bits)
    wanted = [pool for pool in pools if ("ipv4" if pool.pool.is_v4 else "ipv6") in config.families]
    return NodeBlocks(Collection(client, bodies.GROUP, "nodeblocks"), config.node, wanted, state_dir)
