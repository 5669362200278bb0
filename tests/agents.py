"""A real agent in a scratch node, for tests end to end.

with RunningAgent(node, tmp_path) as agent:
    agent.write("pods.yaml", pod("shop/web", app="web"))
    agent.start()
    agent.ip("shop/web"); agent.netns("shop/web"); agent.cli("status")
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rig
from patience import SLOWER

from agent.api import client
from agent.api.protocol import ApiError, UnreachableError
from agent.datapath import cgroup
from agent.datapath.mounts import BPFFS
from agent.endpoints import namespaces
from agent.instance import NOTES, Instance
from agent.supervisor import listener_pid

START_S = 120.0 * SLOWER
"""Includes compiling the datapath on a busy machine."""
SETTLE_S = 60.0 * SLOWER
GONE_S = 30.0 * SLOWER

Document = dict[str, Any]


class RunningAgent:
    """Its manifests are written before or while it runs. `close` removes all of it and says what was left."""

    def __init__(self, node: rig.Netns, folder: Path, *flags: str) -> None:
        self.node = node
        self.manifests = folder / "manifests"
        self.manifests.mkdir(exist_ok=True)
        self.instance = Instance(folder / "state")
        self.log_path = folder / "agent.log"
        self.flags = flags
        self.process: subprocess.Popen[bytes] | None = None
        self._pods: list[rig.Netns] = []

    def __enter__(self) -> RunningAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- manifests

    def write(self, file: str, *documents: Document | str) -> None:
        """Replace a manifest the way careful tools do: whole, by renaming."""
        texts = [d if isinstance(d, str) else json.dumps(d) for d in documents]
        fresh = self.manifests / f".{file}.new"
        fresh.write_text("\n---\n".join(texts))
        fresh.rename(self.manifests / file)

    def delete(self, file: str) -> None:
        (self.manifests / file).unlink()

    # ---- life

    def start(self, *flags: str, settle: bool = True) -> None:
        command = [sys.executable, "-m", "agent.cli.main", "agent", "--manifests", str(self.manifests)]
        command += ["--state-dir", str(self.instance.state_dir), "--node", "n1", *self.flags, *flags]
        with self.log_path.open("ab") as log:
            self.process = self.node.popen(*command, stdout=log, stderr=log, env=environment())
        if settle:
            self.settle(START_S)

    def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Until all that is written by now is in force and every pod has started (or failed)."""
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process is not None and self.process.poll() is None, self.log()
            try:
                left = max(0.1, deadline - time.monotonic())
                client.call(self.instance.agent_socket, "settled", timeout=left, timeout_s=left + 5)
                return
            except UnreachableError:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.01)  # the socket is not there yet: nothing to wait on
            except ApiError as error:
                time.sleep(1)
                raise AssertionError(f"{error}\n{self.log()}") from None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SETTLE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for netns in self._pods:
            netns.close()
        self.gone(self.cli("cleanup", check=True).stdout)

    def gone(self, cleaned: str = "") -> None:
        """All of it, which the kernel takes its time with: the veths of namespaces that nobody holds any more."""
        deadline = time.monotonic() + GONE_S
        while (left := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == [], f"{left} are left; cleanup said: {cleaned}; log:\n{self.log()}"

    def leftovers(self) -> list[str]:
        """What there is of this agent outside its process."""
        found = [
            str(path) for path in (self.instance.state_dir, BPFFS / "gatehouse" / self.instance.name) if path.exists()
        ]
        found += namespaces.list_names(self.instance.short_name)
        found += [str(path) for path in (NOTES / self.instance.name,) if path.exists()]
        shown = self.node.run("ip", "-o", "link").stdout
        found += re.findall(r"\bgh[0-9a-f]{12}\b|prog/xdp id \d+", shown)
        for device in re.findall(r"^\d+: ([^:@]+)", shown, re.MULTILINE):
            for hook in ("ingress", "egress"):
                filters = self.node.run("tc", "filter", "show", "dev", device, hook, check=False).stdout
                found += [f"{name} on {device}" for name in re.findall(r"gatehouse/\w+", filters)]
        if (folder := cgroup.folder_of(self.instance.name)).exists():
            found.append(str(folder))
        for path in (self.instance.flows_socket, self.instance.envoy_socket, self.instance.dns_socket):
            if pid := listener_pid(path):
                found.append(f"process {pid} at {path.name}")
        found += self.node.run("ip", "rule", "show", "priority", "9").stdout.splitlines()
        return found

    def as_node(self, *argv: str) -> list[str]:
        """A command as one whose sockets the agent translates as the node's: it runs in a cgroup of the agent's."""
        folder = cgroup.folder_of(self.instance.name) / "node"
        folder.mkdir(exist_ok=True)
        return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh", *argv]

    def run_as_node(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return self.node.run(*self.as_node(*argv), timeout_s=timeout_s)

    # ---- proxies

    def await_listeners(self, timeout_s: float = SETTLE_S) -> None:
        """Until every rule set that is in force is judged by a proxy that runs."""

        def ready() -> bool:
            proxies = self.status()["proxies"].values()
            return all(not p["waiting"] and (not p["wanted"] or p["process"]["state"] == "running") for p in proxies)

        rig.wait_until(ready, timeout_s, f"the proxies listen: {self.status()['proxies']}\n{self.log()}")

    def proxy_pid(self, name: str) -> int:
        return int(self.status()["proxies"][name]["process"]["pid"])

    def kill_proxy(self, name: str) -> None:
        """envoy or dns; it is started again by the agent. Returns once it has ended, and the agent knows."""
        pid = self.proxy_pid(name)
        kill(pid)
        rig.wait_until(lambda: self.proxy_pid(name) != pid, SETTLE_S, f"the agent knows that {name} has ended")

    def await_flows(self, wanted: Callable[[Document], bool], count: int, *flags: str) -> list[Document]:
        """As many flows of `gatehouse observe` as are wanted."""
        found: list[Document] = []

        def enough() -> bool:
            lines = self.cli("observe", "-o", "json", *flags).stdout.splitlines()
            found[:] = [flow for flow in map(json.loads, lines) if wanted(flow)]
            return len(found) >= count

        rig.wait_until(enough, SETTLE_S, f"{count} flows are seen; {self.cli('observe', *flags).stdout[-3000:]}")
        return found

    # ---- questions

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def env(self) -> dict[str, str]:
        """In which `gatehouse` finds this agent."""
        return environment() | {"GATEHOUSE_STATE_DIR": str(self.instance.state_dir)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "agent.cli.main", *arguments]

    def cli(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60 * SLOWER, check=False, env=self.env
        )
        assert not check or result.returncode == 0, (arguments, result)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def endpoint(self, pod: str) -> dict[str, Any]:
        found = client.call(self.instance.agent_socket, "endpoints")
        (endpoint,) = (e for e in found if f"{e['namespace']}/{e['name']}" == pod)
        return dict(endpoint)

    def status(self) -> dict[str, Any]:
        return dict(client.call(self.instance.agent_socket, "status"))

    def ip(self, pod: str) -> str:
        """Its IPv4 address."""
        return str(next(ip for ip in self.endpoint(pod)["ips"] if ":" not in ip))

    def netns(self, pod: str) -> rig.Netns:
        found = rig.Netns.at(self.endpoint(pod)["netns"])
        self._pods.append(found)
        return found


def kill(pid: int) -> None:
    """Returns once it has ended."""
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([ended], [], [], SETTLE_S)
    os.close(ended)


def environment() -> dict[str, str]:
    """Without the settings of the test run itself: to an agent they would be unknown ones."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEHOUSE_")}


def pod(name: str, command: str = "", ports: dict[str, int] | None = None, **labels: str) -> Document:
    """`name`: NAMESPACE/NAME. `command`: for /bin/sh."""
    namespace, _, short = name.partition("/")
    container: Document = {"name": "main", "ports": [{"name": n, "containerPort": p} for n, p in (ports or {}).items()]}
    if command:
        container["command"] = ["/bin/sh", "-c", command]
    metadata = {"name": short, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def policy(name: str, selector: dict[str, str], **spec: Any) -> Document:
    """`spec`: ingress, egress, policyTypes as in the API (`from` stands in the rules)."""
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": short, "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": selector}, **spec},
    }


def service(name: str, selector: dict[str, str], port: int, target: int) -> Document:
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": short, "namespace": namespace},
        "spec": {"selector": selector, "ports": [{"port": port, "targetPort": target}]},
    }


def allow_from(**labels: str) -> list[Document]:
    """Ingress rules that allow pods of the same namespace with these labels."""
    return [{"from": [{"podSelector": {"matchLabels": labels}}]}]
