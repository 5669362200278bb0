"""CNI on a node as the agent has it: who may be asked, and when runtimes find out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cni_node import BLOCKS, CniNode, Kernel, pod, ref_of
from cni_plugin import ask, environment, plugin
from coroutines import on_a_loop

from agent.cni import conflist, service
from agent.cni.service import CniService
from agent.config import Config

ARGS = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1"


class Host:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "RETRY_S", 0.01)
        self.state, self.conf, self.bin = tmp_path / "state", tmp_path / "net.d", tmp_path / "bin"
        self.state.mkdir()
        self.conf.mkdir()
        self.kernel = Kernel()

    def service(self, chain: str = "") -> CniService:
        config = Config(
            source="kubernetes",
            state_dir=str(self.state),
            cni_conf_dir=str(self.conf),
            cni_bin_dir=str(self.bin),
            cni_chain=chain,
        )
        around = CniNode(self.state, self.kernel).around
        made = CniService(config, self.state, around, BLOCKS, ())
        made._installer._binary = plugin()
        return made

    @property
    def conflist(self) -> Path:
        return self.conf / conflist.NAME

    async def written(self) -> bytes:
        """What a runtime hands to the plugin, once it finds a configuration."""
        while not self.conflist.exists():
            await asyncio.sleep(0.001)
        whole = json.loads(self.conflist.read_bytes())
        return msgspec.json.encode({**whole["plugins"][-1], "name": whole["name"], "cniVersion": "1.1.0"})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@contextlib.asynccontextmanager
async def running(made: CniService) -> AsyncIterator[None]:
    await made.pods.adopt([])
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await made.pods.stop()
        await made.pods.close(keep=True)


@on_a_loop
async def test_a_runtime_that_finds_the_configuration_finds_the_agent(host: Host) -> None:
    made = host.service()
    async with running(made):
        stdin = await host.written()
        done = await ask(environment("STATUS"), stdin)
        assert (done.status, done.output) == (0, b"")
        assert made.problems == []
    assert host.conflist.exists(), "pods go on to be deleted, and the next agent is about to come"
    assert (await ask(environment("STATUS"), stdin)).json["code"] == 50


@on_a_loop
async def test_what_others_remove_is_put_back(host: Host) -> None:
    async with running(host.service()):
        await host.written()
        host.conflist.unlink()
        (host.bin / conflist.PLUGIN).unlink()
        await host.written()
        assert (host.bin / conflist.PLUGIN).exists()


@on_a_loop
async def test_what_is_wrong_is_told_until_it_is_not(host: Host) -> None:
    made = host.service("10-other.conflist")
    async with running(made):
        while not made.problems:
            await asyncio.sleep(0.001)
        assert "10-other.conflist" in made.problems[0]
        (host.conf / "00-first.conf").write_text("{}")
        chain = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "ptp"}]}
        (host.conf / "10-other.conflist").write_text(json.dumps(chain))
        await host.written()
        while not any("00-first.conf" in problem for problem in made.problems):
            await asyncio.sleep(0.001)
        (host.conf / "00-first.conf").unlink()
        while made.problems:
            await asyncio.sleep(0.001)


@on_a_loop
async def test_a_pod_of_this_node(host: Host) -> None:
    made = host.service()
    async with running(made):
        stdin = await host.written()
        (host.state / "netns").touch()
        env = environment("ADD", netns=str(host.state / "netns"), args=ARGS)
        add = asyncio.create_task(ask(env, stdin))
        made.pods.want(pod("web"))
        done = await add
        assert (done.status, done.json["code"]) == (1, 11), "the World has not heard of it"
        assert made.pods.get(ref_of("web")) is not None
        assert not list(made.pods.record)
