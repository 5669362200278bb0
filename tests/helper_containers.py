"""Helpers in containers of their own, as the chart's DaemonSet has them: PID namespaces and few privileges.

with HelperContainers(agent, tmp_path) as containers:
    containers.start("flows", "wireguard")
    agent.start("--helpers", "containers")
    containers.stop("wireguard")                    # as when its container is killed
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import rig
from agents import SETTLE_S, RunningAgent

from agent.encryption.device import name_of
from agent.encryption.userspace import socket_of
from agent.supervisor import listener_pid

MAY = {
    "flows": "chown net_admin sys_admin",
    "dns": "net_raw",
    "envoy": "kill net_raw setgid setpcap setuid",
    "wireguard": "net_admin",
}
"""Capabilities of each container, as the chart gives them (tests/charts see to it). Envoy makes do with one of its."""


class HelperContainers:
    """`gatehouse helper NAME`, each in a PID namespace of its own."""

    def __init__(self, agent: RunningAgent, folder: Path) -> None:
        self.agent = agent
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> HelperContainers:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.stop(name)

    def start(self, *names: str) -> None:
        for name in names:
            few = ",".join(["-all", *(f"+{capability}" for capability in MAY[name].split())])
            command = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
            command += ["setpriv", f"--bounding-set={few}", f"--inh-caps={few}", "--no-new-privs"]
            with (self.folder / f"{name}.container").open("ab") as log:
                self.running[name] = self.agent.node.popen(
                    *command, *self.agent.command("helper", name), stdout=log, stderr=log, env=self.agent.env
                )

    def stop(self, name: str) -> None:
        """Its PID namespace ends with the first process in it, and that with `unshare`."""
        container, inside = self.running.pop(name), self.pid(name)
        container.kill()
        container.wait()
        if inside:
            rig.wait_until(lambda: not Path(f"/proc/{inside}").exists(), SETTLE_S, f"{name} has ended")

    def ended(self, name: str) -> int:
        """The exit status of one that ends by itself."""
        return self.running.pop(name).wait(SETTLE_S)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.container").read_text()

    def socket(self, name: str) -> Path:
        instance = self.agent.instance
        return {
            "flows": instance.flows_socket,
            "dns": instance.dns_socket,
            "envoy": instance.envoy_socket,
            "wireguard": socket_of(name_of(instance.short_name)),
        }[name]

    def pid(self, name: str) -> int:
        """As this machine numbers it."""
        return listener_pid(self.socket(name))

    def await_all(self) -> None:
        rig.wait_until(lambda: not self.agent.status()["reasons"], 2 * SETTLE_S, f"all help: {self.why()}")

    def why(self) -> str:
        return "\n".join([str(self.agent.status()["reasons"]), self.agent.log(), *map(self.said, self.running)])
