"""The plugin, the socket, the pods behind it and real network namespaces: a runtime's whole way, without policy."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probes
import pytest
import rig
from cni_node import CniNode, Kernel, Killed, pod
from cni_plugin import Run, ask, config, environment
from coroutines import on_a_loop

from agent.cni.networks import Networks
from agent.cni.place import Connected, Guard, host_link
from agent.cni.recovery import Recovered
from agent.cni.server import Server
from agent.endpoints import namespaces
from agent.objects import Interface
from policies.address import parse_address
from policies.model import ObjectRef

PTP = Path("/usr/lib/cni/ptp")
"""Of Debian's containernetworking-plugins."""
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_UID=u1"


class RealLinks(Kernel):
    """The kernel's own, with the model's record of steps."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def connect(
        self,
        netns: str,
        ifname: str,
        addresses: Sequence[bytes],
        pod: ObjectRef,
        mtu: int,
        guard: Guard,
    ) -> Interface:
        self.step("connect")
        made = self.networks.connect(netns, ifname, addresses, pod, mtu, guard)
        self.step("up")
        return made

    def await_ready(self, interface: Interface) -> None:
        self.step("ready")
        self.networks.await_ready(interface)

    def adopt(self, netns: str, ifname: str, addresses: Sequence[bytes]) -> Interface:
        self.step("adopt")
        return self.networks.adopt(netns, ifname, addresses)

    def disconnect_all(self, names: Collection[str]) -> None:
        self.step("disconnect")
        self.networks.disconnect_all(names)

    def existing(self) -> list[Connected]:
        return self.networks.existing()

    def recover(self, orphans: Collection[Connected]) -> list[Recovered]:
        return self.networks.recover(orphans)

    def check(self, netns: str, ifname: str, addresses: Sequence[bytes], interface: Interface) -> list[str]:
        return self.networks.check(netns, ifname, addresses, interface)


@pytest.fixture
def kernel(node: rig.Node) -> Iterator[RealLinks]:
    node.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    networks = node.call(Networks)
    yield RealLinks(networks)
    networks.close()


@pytest.fixture
def sandboxes(root: None) -> Iterator[list[rig.Netns]]:
    with ExitStack() as stack:
        yield [stack.enter_context(rig.Netns(f"sandbox{number}")) for number in range(6)]


def env(command: str, number: int, sandbox: rig.Netns) -> dict[str, str]:
    return environment(command, f"c{number}", netns=sandbox.path, args=ARGS.format(f"p{number}"))


def names(kernel: RealLinks) -> list[str]:
    return sorted(one.name for one in kernel.existing())


def _killed(index: int) -> None:
    raise Killed


async def every(command: str, sandboxes: list[rig.Netns], stdin: bytes) -> list[Run]:
    return await asyncio.gather(*(ask(env(command, n, sandbox), stdin) for n, sandbox in enumerate(sandboxes)))


PODS = [pod(f"p{number}") for number in range(6)]


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


@on_a_loop
async def test_pods_added_checked_and_deleted(kernel: RealLinks, sandboxes: list[rig.Netns], tmp_path: Path) -> None:
    agent = await CniNode(tmp_path, kernel).begin(*PODS)
    stdin = config(tmp_path / "cni.sock")
    async with Server(tmp_path / "cni.sock", agent.verbs.handle):
        added = await every("ADD", sandboxes, stdin)
        assert [one.status for one in added] == [0] * 6, added
        (inside,) = json.loads(sandboxes[0].run("ip", "-j", "link", "show", "dev", "eth0").stdout)
        told = added[0].json["interfaces"]
        assert (inside["address"], inside["mtu"]) == (told[1]["mac"], told[1]["mtu"])
        assert told[0]["name"] in names(kernel)
        for address in addresses(added[1].json):
            assert probes.ping(sandboxes[0], address)
        for n, sandbox in enumerate(sandboxes):
            previous = config(tmp_path / "cni.sock", prevResult=added[n].json)
            assert (await ask(env("CHECK", n, sandbox), previous)).output == b""
        sandboxes[2].ip("address flush dev eth0")
        broken = await ask(env("CHECK", 2, sandboxes[2]), stdin)
        assert (broken.status, "has not the address" in broken.json["details"]) == (1, True)
        again = await ask(env("ADD", 0, sandboxes[0]), stdin)
        assert (again.status, again.json["code"]) == (1, 4)
        assert [one.status for one in await every("DEL", sandboxes, stdin)] == [0] * 6
        assert [one.status for one in await every("DEL", sandboxes, stdin)] == [0] * 6
    assert names(kernel) == []
    assert not list(agent.record)
    await agent.end()


@on_a_loop
async def test_an_interface_of_somebody_elses(kernel: RealLinks, sandboxes: list[rig.Netns], tmp_path: Path) -> None:
    agent = await CniNode(tmp_path, kernel).begin(*PODS)
    sandboxes[0].ip("link add eth0 type veth peer name other")
    async with Server(tmp_path / "cni.sock", agent.verbs.handle):
        refused = await ask(env("ADD", 0, sandboxes[0]), config(tmp_path / "cni.sock"))
        assert (refused.status, refused.json["code"]) == (1, 4), refused
        missing = await ask(
            environment("ADD", netns="/run/netns/never", args=ARGS.format("p1")), config(agent.folder / "cni.sock")
        )
        assert (missing.status, missing.json["code"]) == (1, 8), missing
    assert names(kernel) == []
    assert not list(agent.record)
    await agent.end()


@on_a_loop
async def test_an_agent_killed_while_it_adds(kernel: RealLinks, sandboxes: list[rig.Netns], tmp_path: Path) -> None:
    """Some ADDs are complete, some have a link and no more when it ends; deletions come while it is away."""
    agent = await CniNode(tmp_path, kernel).begin(*PODS)
    stdin = config(tmp_path / "cni.sock")
    never, waiting = asyncio.Event(), asyncio.Semaphore(0)
    published = agent.world.published
    work: list[asyncio.Task[bytes]] = []

    async def some(ref: ObjectRef) -> None:
        if ref.name in ("p3", "p4", "p5"):
            waiting.release()
            await never.wait()
        await published(ref)

    agent.publish = some
    for number, sandbox in enumerate(sandboxes):
        work.append(agent.add(f"p{number}", f"c{number}", netns=sandbox.path))
    await asyncio.wait(work[:3])
    for _ in range(3):
        await waiting.acquire()
    assert len(names(kernel)) == 6
    # As of a kill: nothing more of it has an effect, and what is on file and in the kernel is what it is.
    following = await CniNode(tmp_path, kernel).begin(*PODS)
    assert sorted(one.key.container_id for one in following.record) == ["c0", "c1", "c2"]
    assert len(names(kernel)) == 3
    following_env = [env("DEL", n, sandbox) for n, sandbox in enumerate(sandboxes)]
    assert (await ask(following_env[0], stdin)).status == 0  # nobody listens: it is left in the queue
    async with Server(tmp_path / "cni.sock", following.verbs.handle):
        await following.verbs._take_queue()
        assert len(names(kernel)) == 2
        assert [run.status for run in await asyncio.gather(*(ask(e, stdin) for e in following_env))] == [0] * 6
        assert [one.status for one in await every("ADD", sandboxes, stdin)] == [0] * 6
        assert len(names(kernel)) == 6
        assert [one.status for one in await every("DEL", sandboxes, stdin)] == [0] * 6
    assert names(kernel) == []
    await following.end()
    agent.record.remove = lambda key: None  # type: ignore[method-assign]
    for task in work[3:]:
        task.cancel()
    await asyncio.wait(work)
    await agent.end()


@on_a_loop
async def test_a_sandbox_that_went_while_the_agent_was_away(
    kernel: RealLinks, sandboxes: list[rig.Netns], tmp_path: Path
) -> None:
    agent = await CniNode(tmp_path, kernel).begin(*PODS)
    async with Server(tmp_path / "cni.sock", agent.verbs.handle):
        added = await every("ADD", sandboxes[:2], config(tmp_path / "cni.sock"))
    await agent.end()
    namespaces.take_name(sandboxes[0].name)
    following = await CniNode(tmp_path, kernel).begin(*PODS)
    assert [one.key.container_id for one in following.record] == ["c1"]
    assert names(kernel) == [added[1].json["interfaces"][0]["name"]]
    await following.ask("DEL", "c1")
    await following.end()
    assert names(kernel) == []


@on_a_loop
async def test_a_record_that_was_lost(kernel: RealLinks, sandboxes: list[rig.Netns], tmp_path: Path) -> None:
    """Pods that run keep their networks, under their policy; their addresses are given to nobody; runtimes' DEL and GC
    find them."""
    agent = await CniNode(tmp_path, kernel).begin(*PODS)
    stdin = config(tmp_path / "cni.sock")
    async with Server(tmp_path / "cni.sock", agent.verbs.handle):
        added = await every("ADD", sandboxes[:4], stdin)
        before = {one.pod: one for one in agent.record}
    await agent.end()
    for file in (tmp_path / "attachments").iterdir():
        if file.name.startswith("c3"):
            file.write_text("damaged")
        else:
            file.unlink()
    half = (bytes(15) + b"\7",)
    with pytest.raises(Killed):  # before it is up
        kernel.networks.connect(sandboxes[5].path, "eth0", half, PODS[5].ref, 1500, _killed)
    assert host_link(half) in names(kernel)
    following = await CniNode(tmp_path, kernel).begin(*PODS)
    assert "c3@eth0.json" in following.pods.notices[0]
    assert "4 were put on it, 1 removed" in following.pods.notices[1]
    assert host_link(half) not in names(kernel)
    for one in following.record:
        earlier = before[one.pod]
        assert (set(one.addresses), one.interface) == (set(earlier.addresses), earlier.interface)
        assert one.addresses[0] == earlier.addresses[0]
    assert following.world.attached.keys() == before.keys()
    async with Server(tmp_path / "cni.sock", following.verbs.handle):
        assert [one.status for one in await every("ADD", sandboxes[4:], stdin)] == [0] * 2
        gc: dict[str, Any] = {
            "cni.dev/valid-attachments": [{"containerID": f"c{n}", "ifname": "eth0"} for n in range(6)]
        }
        assert (await ask(environment("GC"), config(tmp_path / "cni.sock", **gc))).status == 0
        assert len(following.record) == 6
        assert (await ask(env("DEL", 0, sandboxes[0]), stdin)).status == 0  # known by its namespace
        gone = env("DEL", 1, sandboxes[1]) | {"CNI_NETNS": ""}  # or by its addresses
        assert (await ask(gone, config(tmp_path / "cni.sock", prevResult=added[1].json))).status == 0
        assert len(following.record) == 4
        assert [one.status for one in await every("DEL", sandboxes, stdin)] == [0] * 6
    assert names(kernel) == []
    assert not list(following.record)
    await following.end()


@pytest.mark.skipif(not PTP.exists(), reason="Debian's containernetworking-plugins are not installed")
@on_a_loop
async def test_a_runtimes_way_behind_ptp(
    kernel: RealLinks, node: rig.Node, sandboxes: list[rig.Netns], tmp_path: Path
) -> None:
    agent = await CniNode(tmp_path, kernel, chained=True).begin(*PODS)
    results: list[dict[str, Any]] = []

    def first(command: str, number: int) -> dict[str, Any]:
        addresses = [{"address": f"10.88.0.{number + 2}/24", "gateway": "10.88.0.1"}]
        ipam = {"type": "static", "addresses": addresses, "routes": [{"dst": "0.0.0.0/0"}]}
        given = {"cniVersion": "1.0.0", "name": "chain", "type": "ptp", "ipam": ipam}
        variables = {**os.environ, **env(command, number, sandboxes[number]), "CNI_PATH": str(PTP.parent)}
        done = node.run(str(PTP), input=json.dumps(given), env=variables)
        found: dict[str, Any] = json.loads(done.stdout or "{}")
        return found

    async with Server(tmp_path / "cni.sock", agent.verbs.handle):
        for number in (0, 1):
            results.append(first("ADD", number))
            chained = config(tmp_path / "cni.sock", "1.0.0", name="chain", prevResult=results[number])
            done = await ask(env("ADD", number, sandboxes[number]), chained)
            assert (done.status, done.json) == (0, results[number])
            assert (await ask(env("CHECK", number, sandboxes[number]), chained)).status == 0
        assert probes.ping(sandboxes[0], "10.88.0.3")
        assert set(agent.world.attached.values()) == {(parse_address(f"10.88.0.{n}"),) for n in (2, 3)}
        for number in (0, 1):
            chained = config(tmp_path / "cni.sock", "1.0.0", name="chain", prevResult=results[number])
            assert (await ask(env("DEL", number, sandboxes[number]), chained)).status == 0
            first("DEL", number)
    assert not list(agent.record)
    assert not agent.world.attached
    await agent.end()
