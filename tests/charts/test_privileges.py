"""Agent and helpers with the settings and no more rights than the chart gives them, on real traffic."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
from agents import START_S, environment
from chart_objects import capabilities, container
from container import confined
from helm_process import NAMESPACE, Helm
from kube_cluster import KubeAgent, KubeCluster
from l7_policies import PORT, cnp, ingress
from web import Client, WebServer

from agent import privileges
from agent.datapath.mounts import ensure_cgroup2
from agent.supervisor import listener_pid

VALUES = {"l7Proxy": {"startup": "always"}, "dnsProxy": {"startup": "always"}, "devices": ["eth0"]}
HELPERS = ("flows", "envoy", "dns")
RUN = Path("/run/gatehouse")
_numbers = itertools.count(1)


class Pod:
    """The DaemonSet's pod on one node. Processes are killed with the node's network namespace."""

    def __init__(self, objects: list[dict[str, Any]], agent: KubeAgent, folder: Path) -> None:
        self._objects = objects
        self._agent = agent
        self._folder = folder
        self._plain = agent.node.popen
        agent.node.popen = self._popen  # type: ignore[method-assign]

    def _popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Of the agent: as its container."""
        return self._plain(*confined(capabilities(self._objects, "agent"), (self._folder, RUN)), *argv, **options)

    def help(self) -> None:
        """Start the helpers as their containers."""
        state = self._agent.instance.state_dir
        for name in HELPERS:
            program, *words = container(self._objects, name)["command"][:-1]
            assert program == "gatehouse"
            command = [sys.executable, "-m", "agent.cli.main", *words, str(state)]
            with (self._folder / f"{name}.container").open("ab") as log:
                confinement = confined(capabilities(self._objects, name), (self._folder,))
                self._plain(*confinement, *command, stdout=log, stderr=log, env=environment())

    def said(self) -> str:
        return self._agent.log() + "".join((self._folder / f"{name}.container").read_text() for name in HELPERS)


@pytest.fixture
def cgroup(datapath_host: None) -> Iterator[Path]:
    """In the place of the node's."""
    folder = ensure_cgroup2() / f"gatehouse-chart-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture
def cluster(helm: Helm, cgroup: Path, tmp_path: Path) -> Iterator[KubeCluster]:
    """Its one agent is the chart's, but for where things are on this machine."""
    (config,) = (one for one in helm.objects(VALUES) if one["kind"] == "ConfigMap")
    path = tmp_path / "agent.yaml"
    path.write_text(config["data"]["agent.yaml"])
    with KubeCluster(tmp_path, "n1", flags=("--config", str(path), "--cgroup", str(cgroup))) as cluster:
        yield cluster


def test_the_charts_rights_are_enough(helm: Helm, cluster: KubeCluster, tmp_path: Path) -> None:
    objects = helm.objects(VALUES)
    agent = cluster.agents["n1"]
    pod = Pod(objects, agent, tmp_path)
    pod.help()
    agent.start()
    rig.wait_until(
        lambda: not agent.status()["reasons"], START_S, f"all is well: {agent.status()['reasons']}{pod.said()}"
    )

    cluster.apply(cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/public/.*"})))
    web, client = (cluster.add(f"n1/shop/{name}", app=name) for name in ("web", "client"))
    agent.await_listeners()
    with WebServer(web.netns, PORT), Client(client.netns, web.ip(), PORT) as connection:
        assert [connection.get(path).status for path in ("/public/a", "/private")] == [200, 403], pod.said()

    url = "http://127.0.0.1:{containerPort}".format(**container(objects, "agent")["ports"][0])
    assert agent.node.call(lambda: urllib.request.urlopen(f"{url}/livez", timeout=10).status) == 200
    shown = agent.json("config")
    assert (shown["helpers"]["value"], shown["namespace"]["value"]) == ("containers", NAMESPACE)

    bits = privileges_of(listener_pid(agent.instance.agent_socket))
    assert bits.bit_count() == len(capabilities(objects, "agent"))
    for socket in (agent.instance.envoy_socket, agent.instance.dns_socket):
        assert privileges_of(listener_pid(socket)) == 1 << privileges.NET_RAW
    assert privileges_of(listener_pid(agent.instance.flows_socket)).bit_count() == len(capabilities(objects, "flows"))


def privileges_of(pid: int) -> int:
    sets = privileges.capabilities(pid)
    assert sets["CapEff"] == sets["CapBnd"] == sets["CapPrm"]
    return sets["CapEff"]
