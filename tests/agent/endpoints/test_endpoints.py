"""Endpoints as the agent's loop uses them: many pods at once, changes, failures, restarts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import probes
import pytest
import rig
from pods_at import ADDRESSES, Site, bring_up, in_loop, make_pod, shell

from agent.endpoints import namespaces
from agent.endpoints.batch import Batch
from agent.objects import Pod
from policies.address import parse_address


def addresses(number: int) -> tuple[bytes, bytes]:
    return parse_address(f"10.244.{number // 250}.{number % 250 + 1}"), parse_address(f"fd00:10:244::{number + 1:x}")


def links(netns: rig.Netns) -> list[str]:
    return [link["ifname"] for link in json.loads(netns.run("ip", "-j", "link").stdout)]


def routes(netns: rig.Netns) -> set[str]:
    shown: list[dict[str, Any]] = []
    for family in ("-4", "-6"):
        shown += json.loads(netns.run("ip", "-j", family, "route").stdout or "[]")
    return {route["dst"] for route in shown if route["dev"] != "lo"}


def state_of(endpoints: Any, pod: Pod) -> str:
    state = endpoints.state(pod.ref)
    return state.state if state else "none"


@in_loop
async def test_a_pods_way_through_the_states(site: Site) -> None:
    pod = make_pod(shell("exec sleep 60"))
    async with site.endpoints() as endpoints:
        assert state_of(endpoints, pod) == "none"
        interface = await endpoints.ensure(pod, ADDRESSES)
        assert state_of(endpoints, pod) == "creating"
        await endpoints.activate(pod.ref)
        assert state_of(endpoints, pod) == "ready"
        await endpoints.start(pod)
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface == interface
        assert [(c.name, c.state) for c in state.containers] == [("main", "running")]
        await endpoints.stop(pod.ref)
        assert state_of(endpoints, pod) == "removing"
        assert interface.name in links(site.node)
        await endpoints.remove(pod.ref)
        assert state_of(endpoints, pod) == "none"
        assert interface.name not in links(site.node)
        await endpoints.remove(pod.ref)


@in_loop
async def test_ensure_again_returns_what_stands_and_new_addresses_rebuild(site: Site) -> None:
    pod = make_pod(shell("exec sleep 60"))
    async with site.running(pod) as endpoints:
        state = endpoints.state(pod.ref)
        assert state is not None
        assert await endpoints.ensure(pod, ADDRESSES[::-1]) == state.interface
        pid = state.containers[0].pid
        second = await endpoints.ensure(pod, addresses(7))
        assert second != state.interface
        assert not Path(f"/proc/{pid}").exists()
        await bring_up_at(endpoints, pod, 7)
        assert routes(site.node) == {"10.244.0.8", "fd00:10:244::8"}


async def bring_up_at(endpoints: Any, pod: Pod, number: int) -> None:
    await endpoints.ensure(pod, addresses(number))
    await endpoints.activate(pod.ref)
    await endpoints.start(pod)


@in_loop
async def test_a_host_network_pod_has_no_network_of_its_own(site: Site) -> None:
    async with site.endpoints() as endpoints:
        with pytest.raises(ValueError, match="node's network"):
            await endpoints.ensure(make_pod(host_network=True), ADDRESSES)


@in_loop
async def test_a_failure_has_a_reason_and_the_next_try_works(site: Site) -> None:
    pod = make_pod()
    async with site.endpoints(mtu=10) as endpoints:  # below what a veth may have
        with pytest.raises(OSError, match="add veth"):
            await endpoints.ensure(pod, ADDRESSES)
        state = endpoints.state(pod.ref)
        assert state is not None and state.state == "failed" and "add veth" in state.problem
        assert links(site.node) == ["lo"]
    async with site.endpoints() as endpoints:
        interface = await endpoints.ensure(pod, ADDRESSES)
        site.node.ip(f"link delete {interface.name}")
        with pytest.raises(OSError, match="No such device"):
            await endpoints.activate(pod.ref)
        assert state_of(endpoints, pod) == "failed"
        await endpoints.remove(pod.ref)
        await bring_up(endpoints, pod)
        assert state_of(endpoints, pod) == "ready"


@in_loop
async def test_removed_and_written_again_at_once(site: Site) -> None:
    """The second comes while the first is still going; they do not meet."""
    pod = make_pod(shell("trap '' TERM; echo up; while :; do sleep 0.02; done"))
    async with site.running(pod, grace_s=0.2) as endpoints:
        removal = asyncio.create_task(endpoints.remove(pod.ref))
        await asyncio.sleep(0)
        await bring_up(endpoints, pod)
        await removal
        state = endpoints.state(pod.ref)
        assert state is not None and state.state == "ready" and state.containers[0].state == "running"


@in_loop
async def test_closing_to_keep_leaves_pods_and_their_traffic_alone(site: Site) -> None:
    site.node.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    pods = [make_pod(name=name) for name in ("a", "b")]
    async with site.endpoints(keep=True) as endpoints:
        for number, pod in enumerate(pods):
            await bring_up_at(endpoints, pod, number)
        paths = [state.interface.netns for pod in pods if (state := endpoints.state(pod.ref)) and state.interface]
    with (
        rig.Netns.at(paths[0]) as a,
        rig.Netns.at(paths[1]) as b,
        probes.Server(b, "tcp", 80) as server,
        probes.Connection(a, probes.STREAM, "10.244.0.2", server.port) as connection,
    ):
        assert connection.exchange()
        async with site.endpoints() as endpoints:
            adopted = await endpoints.adopt([pod.ref for pod in pods])
            assert {pod.ref.name: adopted[pod.ref].addresses for pod in pods} == {
                "a": set(addresses(0)),
                "b": set(addresses(1)),
            }
            for number, pod in enumerate(pods):
                await bring_up_at(endpoints, pod, number)
                assert connection.exchange()
    assert links(site.node) == ["lo"]


@in_loop
async def test_half_of_a_pod_is_built_anew(site: Site) -> None:
    """Its veth was lost while no agent ran; its processes, cut off, are ended."""
    pod = make_pod(shell("exec sleep 60"))
    async with site.running(pod, keep=True) as endpoints:
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface is not None
    site.node.ip(f"link delete {state.interface.name}")
    async with site.endpoints() as endpoints:
        assert await endpoints.adopt([pod.ref]) == {}
        assert not Path(f"/proc/{state.containers[0].pid}").exists()
        await bring_up(endpoints, pod)
        assert state_of(endpoints, pod) == "ready"


NETNS_EXEC_AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, "tests")
from pods_at import bring_up, make_pod, shell
from agent.endpoints.endpoints import Endpoints

async def main():
    endpoints = Endpoints(sys.argv[1], Path(sys.argv[2]), blanks=1)
    await bring_up(endpoints, make_pod(shell("exec sleep 60")))
    print("up", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@in_loop
async def test_an_agent_under_ip_netns_exec_makes_names_that_all_see(site: Site) -> None:
    """`ip netns exec` gives its command a mount namespace of its own."""
    agent = subprocess.Popen(
        ["ip", "netns", "exec", site.node.name, sys.executable, "-c", NETNS_EXEC_AGENT, site.instance, site.state_dir],
        stdout=subprocess.PIPE,
    )
    try:
        assert agent.stdout is not None and agent.stdout.readline() == b"up\n"
        (name,) = namespaces.list_names(site.instance)
        found = subprocess.run(["ip", "netns", "exec", name, "ip", "addr"], check=True, capture_output=True, text=True)
        assert "10.244.0.1/32" in found.stdout
    finally:
        agent.kill()
        agent.wait()
        if agent.stdout:
            agent.stdout.close()
    async with site.endpoints() as endpoints:
        pod = make_pod(shell("exec sleep 60"))
        assert set(await endpoints.adopt([pod.ref])) == {pod.ref}
        await bring_up(endpoints, pod)


@in_loop
async def test_two_hundred_pods_at_once_and_their_removal(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pods = [make_pod(name=f"p{n}") for n in range(200)]

    async def up(number: int) -> None:
        await endpoints.ensure(pods[number], addresses(number))
        await endpoints.activate(pods[number].ref)

    async with site.endpoints(blanks=4) as endpoints:
        await endpoints.adopt([])
        begin = time.perf_counter()
        await asyncio.gather(*map(up, range(200)))
        at_once = time.perf_counter() - begin
        assert {state_of(endpoints, pod) for pod in pods} == {"ready"}
        assert len(routes(site.node)) == 400
        spent: list[float] = []
        for number in range(200, 240):
            pods.append(make_pod(name=f"p{number}"))
            await asyncio.sleep(0.02)
            begin = time.perf_counter()
            await up(number)
            spent.append((time.perf_counter() - begin) * 1e3)
        begin = time.perf_counter()
        await asyncio.gather(*(endpoints.remove(pod.ref) for pod in pods[:100]))
        removed = time.perf_counter() - begin
        assert len(routes(site.node)) == 280
        begin = time.perf_counter()
    closed = time.perf_counter() - begin
    assert links(site.node) == ["lo"]
    with capsys.disabled():
        print(
            f"\n  200 pods at once: {at_once * 1e3:.0f} ms; one more: median {median(spent):.2f} ms, worst "
            f"{max(spent):.2f} ms; 100 removed: {removed * 1e3:.0f} ms; close with 140: {closed * 1e3:.0f} ms"
        )


@in_loop
async def test_a_pod_is_not_held_up_by_removals(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    async with site.endpoints(blanks=4) as endpoints:
        await endpoints.adopt([])
        spent: list[float] = []
        removals = set()
        for number in range(40):
            pod = make_pod(name=f"p{number}")
            await asyncio.sleep(0.01)
            begin = time.perf_counter()
            await endpoints.ensure(pod, addresses(number))
            await endpoints.activate(pod.ref)
            spent.append((time.perf_counter() - begin) * 1e3)
            removals.add(asyncio.create_task(endpoints.remove(pod.ref)))
        await asyncio.gather(*removals)
    with capsys.disabled():
        print(f"\n  beside removals: median {median(spent):.2f} ms, worst {max(spent):.2f} ms")


@in_loop
async def test_a_batch_takes_what_came_meanwhile_together_and_shares_its_error() -> None:
    done: list[set[int]] = []

    async def work(items: set[int]) -> None:
        done.append(items)
        await asyncio.sleep(0.01)
        if 3 in items:
            raise OSError("three")

    batch: Batch[int] = Batch(work)
    first = asyncio.create_task(batch.add(1))
    await asyncio.sleep(0.001)
    results = await asyncio.gather(first, batch.add(2), batch.add(3), return_exceptions=True)
    assert done == [{1}, {2, 3}]
    assert results[0] is None and [str(r) for r in results[1:]] == ["three", "three"]
    await batch.add(4)
    assert done[-1] == {4}
