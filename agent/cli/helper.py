"""`gatehouse helper`: one of an agent's helper processes, in a container of its own."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from agent.cli.output import STATE_DIR, StateDir
from agent.helpers.names import Name


def register(app: typer.Typer) -> None:
    app.command()(helper)


def helper(
    name: Annotated[Name, typer.Argument(help="Which of them.", show_default=False)],
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Run one helper of an agent that was started with --helpers containers. For the DaemonSet of the Helm chart.

    flows takes events out of the kernel and serves `observe`; dns is the DNS proxy; envoy is Envoy; wireguard makes the
    WireGuard device where the kernel's is not used. It waits until the agent says what to run (in the state directory,
    which they share), keeps to that, and runs nothing while nothing asks for it. It needs the agent's network
    namespace, flows and dns the machine's bpffs, wireguard /dev/net/tun and the agent's /var/run/wireguard; no PID
    namespace has to be shared.

    What is encrypted goes on while there is no agent. Without wireguard's container it is dropped.

    Privileges: flows CAP_NET_ADMIN and CAP_SYS_ADMIN, to end connections in pods' namespaces, and CAP_CHOWN, to share a
    socket with Envoy's user; dns CAP_NET_RAW; envoy CAP_NET_RAW, which Envoy keeps, CAP_SETUID, CAP_SETGID and
    CAP_SETPCAP to become a user of its own with nothing else, and CAP_KILL to end what that user runs; wireguard
    CAP_NET_ADMIN.

    \b
    Examples:
      gatehouse agent --config /etc/gatehouse/agent.yaml --helpers containers
      gatehouse helper flows
      gatehouse helper envoy --state-dir /run/gatehouse-a

    \b
    Exit status: 0 once it was told to end (SIGTERM), else that of the helper, which is never 0.
    """
    command = [sys.executable, "-m", "agent.helpers.process", name.value, os.path.abspath(state_dir)]  # noqa: PTH100
    os.execv(sys.executable, command)  # noqa: S606
