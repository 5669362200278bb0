"""Random clusters of services in the real maps, random packets through the real programs: what becomes of each must be
among what the oracle says (agent.services.trace).

Each example loads a cluster, sends packets to frontends and next to them, from pods here, pods elsewhere and outside,
and what the backends answer. Then services and slices change, write by write, with packets in between: they get what
the old or the new services say. In the end what was begun stays with its backend, and what is new goes by the new
services. A judgement is one packet whose fate is compared. `--judgements N --timeout 0` asks for more; a failing
example is printed whole.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
import worlds
from drawn_node import DrawnNode, load_drawn_node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_clusters import histories
from service_judge import SEED, Judge

from agent.world.config import NodeConfig

PACKETS = 60
"""New flows before, and after, services change; each is answered if it can be."""

EVERYTHING = {
    *("client, here", "client", "client, direct", "node", "hairpin, here", "by XDP", "kept"),
    *("live", "answered", "between", "no service"),
    *("DROP_NO_BACKEND", "DROP_NO_LOCAL_BACKEND", "DROP_SOURCE_RANGE", "DROP_SCTP_PORT"),
}
"""What the packets of one shard, which are the same in every run, must meet."""

SHARDS = 2


def config(given: NodeConfig, **services: object) -> NodeConfig:
    return msgspec.structs.replace(given, services=msgspec.structs.replace(given.services, seed=SEED, **services))


CONFIGS = (config(worlds.CONFIG), config(worlds.CONFIGS[1]), config(worlds.CONFIG, forwarding="dsr"))


@pytest.fixture(scope="session")
def drawn_node(datapath_host: None) -> Iterator[DrawnNode]:
    with load_drawn_node(f"test-services-{os.getpid()}") as node:
        yield node


def compare(node: DrawnNode, given: NodeConfig, scenes: list[worlds.Scene], seed: int) -> Judge:
    judge = Judge(node, given, seed)
    for number, scene in enumerate(scenes):
        if number:
            judge.change(scene)
        else:
            judge.load(scene)
        live = list(judge.known.values())
        for ends in (*judge.packets(PACKETS), *(one.asked for one in live)):
            judge.judge(ends)
        for known in judge.known.values():
            if known.answered:
                judge.answer(known)
    return judge


@pytest.mark.parametrize("shard", range(SHARDS))
def test_packets_go_where_the_oracle_says(drawn_node: DrawnNode, shard: int, request: pytest.FixtureRequest) -> None:
    wanted = math.ceil(request.config.getoption("judgements") / SHARDS)
    compared, seen = 0, Counter[str]()

    @settings(
        max_examples=1 + wanted // (3 * PACKETS),
        derandomize=shard == 0,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(CONFIGS), histories(steps=1), st.integers(0, 1 << 30))
    def examples(given: NodeConfig, scenes: list[worlds.Scene], seed: int) -> None:
        nonlocal compared
        judge = drawn_node.run(compare, drawn_node, given, scenes, seed)
        compared += judge.compared
        seen.update(judge.seen)

    examples()
    assert compared >= wanted, f"only {compared} of {wanted} judgements: draw more packets an example"
    if shard == 0:
        assert (+seen).keys() >= EVERYTHING, f"not drawn: {EVERYTHING - (+seen).keys()} of {seen}"
