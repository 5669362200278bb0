"""Many pods at once, and an agent that is killed in the middle: nothing leaks, and nobody sends before policy."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rig
from agents import START_S, allow_from, policy
from kube_cluster import EitherCluster, KubeAgent, KubePod

PODS = 200
AT_ONCE = 10
MAPS = ("endpoints", "endpoints_by_address", "namespaces")


@pytest.fixture
def cluster(datapath_host: None, over: type[EitherCluster], tmp_path: Path) -> Iterator[EitherCluster]:
    with over(tmp_path, "n1") as cluster:
        cluster.start()
        yield cluster


def test_many_pods_come_and_go_while_the_agent_is_killed(cluster: EitherCluster) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    agent = cluster.agents["n1"]
    before = entries(agent)
    pods = [cluster.add(f"n1/shop/p{number}", attach=False, app=f"a{number % 7}") for number in range(PODS)]
    kill_at, killing = {choose.randrange(PODS) for _ in range(2)}, threading.Lock()

    def come_and_go(number: int) -> None:
        """As a runtime does: an ADD that fails is followed by a DEL, and tried again later."""
        if number in kill_at:
            with killing:  # both may be begun at once
                agent.kill()
                agent.start(settle=False)
        pod = pods[number]
        while agent.cni("ADD", pod).status:
            assert agent.cni("DEL", pod).status == 0
            rig.wait_until(agent.socket.exists, START_S, "the agent serves again")
        assert agent.cni("DEL", pod).status == 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(come_and_go, range(PODS)))
    agent.settle(START_S)
    rig.wait_until(lambda: not agent.links(), START_S, "no link is left")
    rig.wait_until(lambda: not list((agent.instance.state_dir / "attachments").iterdir()), START_S, "no attachment")
    rig.wait_until(lambda: entries(agent) == before, START_S, f"no entry is left: {before} {entries(agent)}")
    rig.wait_until(lambda: not told(cluster), START_S, "nobody is told of any")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(KubePod.attach, pods))
    assert len({ip for pod in pods for ip in pod.ips}) == 2 * PODS
    assert len(told(cluster)) == PODS


def told(cluster: EitherCluster) -> list[object]:
    found = cluster.api.get("nodeendpoints", "n1")
    assert found is not None
    return list(found["spec"].get("endpoints") or ())


def entries(agent: KubeAgent) -> dict[str, int]:
    return {one["name"]: one["entries"] for one in agent.status()["datapath"]["maps"] if one["name"] in MAPS}


def test_a_pod_that_sends_from_its_first_microsecond_is_judged(cluster: EitherCluster) -> None:
    """Its processes run before its network is there, and try without a pause: not one of its packets arrives."""
    cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    web = cluster.add("n1/shop/web", app="web")
    sniffer = web.netns.popen("python3", "-c", SNIFF, stdout=subprocess.PIPE)
    assert sniffer.stdout is not None
    assert sniffer.stdout.readline() == b"listens\n"
    eager = cluster.add("n1/shop/eager", attach=False, app="eager")
    sender = eager.netns.popen("python3", "-c", SEND, web.ip("v4"), web.ip("v6"))
    eager.attach()
    friend = cluster.add("n1/shop/friend", attach=False, app="client")
    sending = friend.netns.popen("python3", "-c", SEND, web.ip("v4"), web.ip("v6"))
    friend.attach()
    heard = {sniffer.stdout.readline() for _ in range(2)}
    assert heard == {f"{friend.ip('v4')}\n".encode(), f"{friend.ip('v6')}\n".encode()}
    drops = cluster.agents["n1"].await_flows(lambda flow: flow["source"]["pod"] == "eager", 1, "--verdict", "DROPPED")
    assert drops
    for process in (sender, sending, sniffer):
        process.kill()


SEND = """
import socket, sys
made = [socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6)]
while True:
    for one, address in zip(made, sys.argv[1:]):
        try:
            one.sendto(b"x", (address, 9))
        except OSError:
            pass
"""
SNIFF = """
import socket, selectors
chosen = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    one = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((address, 9))
    chosen.register(one, selectors.EVENT_READ)
print("listens", flush=True)
seen = set()
while True:
    for key, _ in chosen.select():
        source = key.fileobj.recvfrom(10)[1][0]
        if source not in seen:
            seen.add(source)
            print(source, flush=True)
"""
