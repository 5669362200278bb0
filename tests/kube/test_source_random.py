"""Random histories of writes under random faults: in the end the source has what the store has, and so has its disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from apiserver import ApiServer
from kube_source import NODE, SHORT, Follower, Json, following, identity, made, pod, policy, stored

SEEDS = range(6)
STEPS = 120
PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "SecurityIdentity": "securityidentities",
    "Namespace": "namespaces",
    "Pod": "pods",
    "Node": "nodes",
    "Service": "services",
}


def drawn(rng: random.Random) -> Json:
    """An object out of a few names, so that it is changed, deleted and made again."""
    name, value = f"x{rng.randrange(12)}", str(rng.randrange(1000))
    cilium = {"endpointSelector": {"matchLabels": {"app": value}}, "ingress": [{}]}
    service = {"clusterIP": f"10.96.0.{rng.randrange(1, 250)}", "ports": [{"port": 80}]}
    return rng.choice(
        [
            policy(name, rng.choice(["shop", "bank"]), app=value),
            made("cilium.io/v2", "CiliumNetworkPolicy", name, "shop", spec=cilium),
            identity(300 + rng.randrange(12), app=value),
            made("v1", "Namespace", name, metadata={"labels": {"team": value}}),
            pod(name, rng.choice([NODE, "n2"]), app=value),
            made("v1", "Node", name, metadata={"labels": {"rack": value}}),
            made("v1", "Service", name, "shop", spec=service),
        ]
    )


def write(api: ApiServer, rng: random.Random) -> None:
    given = drawn(rng)
    plural, metadata = PLURALS[given["kind"]], given["metadata"]
    name, namespace = metadata["name"], metadata.get("namespace", "")
    if rng.random() < 0.35:
        if api.get(plural, name, namespace) is not None:
            api.delete(plural, name, namespace)
    elif given["kind"] == "Pod" and (was := api.get(plural, name, namespace)) is not None:
        given["spec"] = was["spec"]  # a pod stays on its node
        api.put(given)
    else:
        api.put(given)


def faults(api: ApiServer, rng: random.Random) -> list[Callable[[], object]]:
    some = rng.sample(list(PLURALS.values()), 3)
    verbs = rng.choice([["list"], ["watch"], ["list", "watch"]])
    times = rng.randrange(1, 6)
    return [
        lambda: api.drop_watches(*some),
        api.bookmark,
        lambda: api.compact(tell=rng.random() < 0.5),
        lambda: api.faults.stall(*some),
        lambda: api.faults.flow(*some),
        api.faults.flow,
        lambda: api.faults.refuse(
            rng.choice([410, 429, 500, 503]), retry_after_s=rng.randrange(2), verbs=verbs, resources=some, times=times
        ),
        lambda: api.faults.reset(rng.randrange(3000), verbs=verbs, resources=some, times=times),
        lambda: api.faults.hang(verbs=["list"], resources=some[:1], times=1),
        lambda: api.faults.slow(delay_s=0.02, bytes_per_s=20_000, verbs=verbs, resources=some, times=times),
        lambda: setattr(api.faults, "gone_as_status", rng.random() < 0.5),
        api.stop,
        lambda: start(api),
    ]


def start(api: ApiServer) -> None:
    api.stop()  # if it runs
    api.start()


async def history(api: ApiServer, follower: Follower, rng: random.Random) -> None:
    """Pauses are drawn, too: a millisecond or so, for the source to be in the middle of something."""
    for _ in range(STEPS):
        for _ in range(rng.randrange(4)):
            write(api, rng)
        if rng.random() < 0.4:
            rng.choice(faults(api, rng))()
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.02]))
    api.faults.clear()
    start(api)


@pytest.mark.parametrize("seed", SEEDS)
def test_in_the_end_it_is_as_the_store_is(api: ApiServer, tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(30):
        write(api, rng)

    async def run() -> None:
        async with following(api.url, tmp_path, timeouts=SHORT) as follower:
            await history(api, follower, rng)
            api.put(made("v1", "Namespace", "last"))
            await follower.until(lambda: follower.world == stored(api))
            for _ in range(30):  # and now that nothing is wrong
                write(api, rng)
            await follower.until(lambda: follower.world == stored(api))
        api.stop()
        for _ in range(10):
            write(api, rng)
        async with following(api.url, tmp_path, timeouts=SHORT) as follower:
            assert follower.source.from_disk
            before = dict(follower.world)
            start(api)
            await history(api, follower, rng)
            api.put(made("v1", "Namespace", "very-last"))
            await follower.until(lambda: follower.world == stored(api))
            assert before != follower.world
        api.stop()
        async with following(api.url, tmp_path, timeouts=SHORT) as follower:
            assert follower.world == stored(api), "the disk has all of it"

    asyncio.run(run())
