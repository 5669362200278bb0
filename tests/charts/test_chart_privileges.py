"""Agent and helpers with the settings and no more rights than the chart gives them, on real traffic."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
from agents import START_S, Document, environment
from chart_objects import capabilities, container, containers, mounted
from container import confined
from helm_process import NAMESPACE, Helm
from kube_cluster import CLUSTER_CIDRS, KubeAgent, KubeCluster, KubePod
from l7_policies import PORT, cnp, ingress
from web import Client, WebServer

from agent import privileges
from agent.datapath.abi import bpf_dir
from agent.datapath.mounts import ensure_cgroup2
from agent.datapath.programs import SOCKET
from agent.encryption import userspace
from agent.encryption.device import name_of
from agent.helpers.names import Name
from agent.supervisor import listener_pid

VALUES = {"dnsProxy": {"startup": "always"}, "devices": ["eth0"]}
HELPERS = frozenset(Name)
RUN = Path("/run/gatehouse")
NET_ADMIN = 12  # linux/capability.h
SERVICE, SERVED = "10.96.0.50", 9000
CONNECTED = """\
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
with socket.create_connection((sys.argv[2], 80)) as connection:
    print("connected", flush=True)
    try:
        connection.recv(1)
    except OSError as error:
        print(error.strerror, flush=True)
"""
_numbers = itertools.count(1)


class Pod:
    """The DaemonSet's pod on one node. Processes are killed with the node's network namespace."""

    def __init__(self, objects: list[dict[str, Any]], agent: KubeAgent, folder: Path, *folders: Path) -> None:
        """`folders`: those of the node that its agent has, besides those it has in any case."""
        self._objects = objects
        self._folders = folders
        self._agent = agent
        self._folder = folder
        self._plain = agent.node.popen
        agent.node.popen = self._popen  # type: ignore[method-assign]

    def _popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Of the agent: as its container, which has a folder for what passes."""
        options["env"] |= {"TMPDIR": str(self._folder)}
        confinement = confined(capabilities(self._objects, "agent"), (self._folder, RUN, *self._folders))
        return self._plain(*confinement, *argv, **options)

    def help(self) -> None:
        """Start the helpers as their containers."""
        state = self._agent.instance.state_dir
        for one in containers(self._objects):
            if (name := one["name"]) not in HELPERS:
                continue
            program, *words = one["command"][:-1]
            assert program == "gatehouse"
            command = [sys.executable, "-m", "agent.cli.main", *words, str(state)]
            with (self._folder / f"{name}.container").open("ab") as log:
                confinement = confined(capabilities(self._objects, name), self._writable(one))
                self._plain(*confinement, *command, stdout=log, stderr=log, env=environment())

    def _writable(self, one: dict[str, Any]) -> list[Path]:
        """Of a helper's container."""
        volumes = {mount["name"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
        found = {"state": self._folder, "wireguard": userspace.SOCKETS}
        return [folder for name, folder in found.items() if name in volumes]

    def said(self) -> str:
        logs = sorted(self._folder.glob("*.container"))
        return self._agent.log() + "".join(path.read_text() for path in logs)


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
    flags = ("--config", str(config_file(helm.objects(VALUES), tmp_path)), "--cgroup", str(cgroup))
    with KubeCluster(tmp_path, "n1", flags=flags) as cluster:
        yield cluster


def test_the_charts_rights_are_enough(helm: Helm, cluster: KubeCluster, cgroup: Path, tmp_path: Path) -> None:
    objects = helm.objects(VALUES)
    agent = cluster.agents["n1"]
    pod = Pod(objects, agent, tmp_path)
    pod.help()
    agent.start()
    rig.wait_until(lambda: not agent.status()["reasons"], START_S, f"{agent.status()['reasons']} is over\n{pod.said()}")

    web, client = (cluster.add(f"n1/shop/{name}", app=name) for name in ("web", "client"))
    cluster.apply(cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/public/.*"})))
    agent.await_listeners()
    with WebServer(web.netns, PORT), Client(client.netns, web.ip(), PORT) as connection:
        assert [connection.get(path).status for path in ("/public/a", "/private")] == [200, 403], pod.said()
    envoy = agent.instance.envoy_socket
    assert rights(listener_pid(envoy)) == 1 << privileges.NET_RAW

    cluster.api.delete("ciliumnetworkpolicies", "web", "shop")
    agent.kill()
    rig.wait_until(lambda: not listener_pid(agent.instance.agent_socket), what="what ran in the container ends with it")
    agent.start()  # nothing asks for Envoy any more
    rig.wait_until(lambda: not listener_pid(envoy), START_S, f"Envoy ends\n{pod.said()}")
    assert "cannot be ended" not in pod.said()
    end_a_connection(cluster, cgroup, tmp_path / "client.out")

    url = "http://127.0.0.1:{containerPort}".format(**container(objects, "agent")["ports"][0])
    assert agent.node.call(lambda: urllib.request.urlopen(f"{url}/livez", timeout=60).status) == 200
    shown = agent.json("config")
    assert (shown["helpers"]["value"], shown["namespace"]["value"]) == ("containers", NAMESPACE)

    for name, socket_path in (("agent", agent.instance.agent_socket), ("flows", agent.instance.flows_socket)):
        assert rights(listener_pid(socket_path)).bit_count() == len(capabilities(objects, name))
    assert rights(listener_pid(agent.instance.dns_socket)) == 1 << privileges.NET_RAW


@pytest.mark.skipif(not (shutil.which(userspace.PROGRAM) and shutil.which("wg")), reason="no WireGuard is installed")
def test_the_charts_rights_are_enough_to_encrypt(helm: Helm, cgroup: Path, tmp_path: Path) -> None:
    """By a program in a container of its own, which goes on when the agent's ends."""
    strict = {"enabled": True, "implementation": "userspace", "strictMode": True}
    values = {"encryption": strict, "clusterCIDRs": CLUSTER_CIDRS.split(",")}
    objects = helm.objects(values | {"devices": ["eth0"]})
    assert str(userspace.SOCKETS) in mounted(container(objects, "agent"))
    flags = ("--config", str(config_file(objects, tmp_path)), "--cgroup", str(cgroup))
    with KubeCluster(tmp_path, "n1", "n2", flags=flags) as cluster:
        for agent in cluster.agents.values():
            Pod(objects, agent, tmp_path / agent.name, userspace.SOCKETS).help()
        cluster.start()
        web, client = (cluster.add(f"{node}/shop/{name}") for node, name in (("n1", "web"), ("n2", "client")))
        with WebServer(web.netns, PORT):
            assert is_reached(web, client)
            agent = cluster.agents["n1"]
            program = userspace.socket_of(name_of(agent.instance.short_name))
            pid = listener_pid(program)
            assert rights(pid) == 1 << NET_ADMIN
            agent.kill()
            rig.wait_until(lambda: not listener_pid(agent.instance.agent_socket), what="the agent's container ends")
            with Client(client.netns, web.ip(), PORT) as connection:
                assert connection.get("/").status == 200
            agent.start()
            assert is_reached(web, client)
            assert listener_pid(program) == pid
        for agent in cluster.agents.values():
            found = encryption(agent)
            assert (found["kernel"], found["strict"], found["plaintext_packets"]) == (False, True, 0)
            rig.wait_until(lambda a=agent: encryption(a)["peers"][0]["received_bytes"], START_S, f"{agent.name} counts")  # type: ignore[misc]
        assert f"peer: {encryption(cluster.agents['n2'])['public_key']}" in cluster.nodes["n1"].run("wg").stdout


def test_nodes_are_cleaned(helm: Helm, cluster: KubeCluster, tmp_path: Path) -> None:
    """As uninstalling does (`cleanup.enabled`): by one that is told which agent's, for this machine has others'."""
    agent = cluster.agents["n1"]
    Pod(helm.objects(VALUES), agent, tmp_path)
    agent.start("--helpers", "children")
    cluster.add("n1/shop/web", app="web")
    agent.kill()
    rig.wait_until(lambda: not listener_pid(agent.instance.agent_socket), what="what ran in the container ends with it")

    objects = helm.objects({"cleanup": {"enabled": True}})
    confinement = confined(capabilities(objects, "cleanup"), (tmp_path, RUN))
    program, *words = container(objects, "cleanup")["command"]
    assert (program, words) == ("gatehouse", ["cleanup", "--all"])
    command = [sys.executable, "-m", "agent.cli.main", "cleanup", "--state-dir", str(agent.instance.state_dir)]
    done = agent.node.run(*confinement, *command)
    assert "pins" in done.stdout
    assert not agent.instance.pins.root.exists()
    assert not agent.instance.state_dir.exists(), sorted(agent.instance.state_dir.iterdir())
    assert not any(agent.conf.iterdir())


def end_a_connection(cluster: KubeCluster, cgroup: Path, output: Path) -> None:
    """The flows process does, in the pod's namespace, once the backend is gone."""
    plain, client = cluster.pods["n1/shop/web"], cluster.pods["n1/shop/client"]
    cluster.apply(service(), endpoints(plain.ip()))
    with plain.netns.call(lambda: socket.create_server((plain.ip(), SERVED))), output.open("wb") as written:
        command = [sys.executable, "-c", CONNECTED, str(cgroup), SERVICE]
        process = client.netns.popen(*command, stdout=written)
        rig.wait_until(lambda: output.read_text() == "connected\n", START_S, "it is connected by the service")
        cluster.apply(endpoints())
        process.wait(START_S)
    assert output.read_text() == "connected\nSoftware caused connection abort\n"


def service() -> Document:
    spec = {"clusterIP": SERVICE, "clusterIPs": [SERVICE], "ports": [{"port": 80, "targetPort": SERVED}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


def endpoints(*ips: str) -> Document:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": SERVED, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
    }


def test_the_datapath_can_be_compiled(helm: Helm, root: None, tmp_path: Path) -> None:
    """Where nothing but a folder for what passes is writable."""
    confinement = confined(capabilities(helm.objects({}), "agent"), (tmp_path,))
    source, made = bpf_dir() / "socket.c", tmp_path / "bytecode"
    compile_it = [sys.executable, "-m", "agent.datapath.compile", str(source), str(made), SOCKET.programs[0].name]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*confinement, *compile_it], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert made.stat().st_size


def config_file(objects: list[dict[str, Any]], folder: Path) -> Path:
    (config,) = (one for one in objects if one["kind"] == "ConfigMap")
    path = folder / "agent.yaml"
    path.write_text(config["data"]["agent.yaml"])
    return path


def encryption(agent: KubeAgent) -> dict[str, Any]:
    return dict(json.loads(agent.cli("encryption", "status", "-o", "json", check=False).stdout))


def is_reached(web: KubePod, client: KubePod) -> bool:
    """Before long: the nodes may have to meet first."""

    def answers() -> bool:
        try:
            with Client(client.netns, web.ip(), PORT) as connection:
                return connection.get("/").status == 200
        except OSError:
            return False

    rig.wait_until(answers, START_S, "pods of different nodes reach each other")
    return True


def rights(pid: int) -> int:
    sets = privileges.capabilities(pid)
    assert sets["CapEff"] == sets["CapBnd"] == sets["CapPrm"]
    return sets["CapEff"]
