"""`gatehouse agent` and `gatehouse cleanup`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from agent.cli import given
from agent.cli.output import STATE_DIR, Failure, StateDir

AGENT_HELP = """Run the node agent for the network namespace it is started in.

Reads objects, compiles them and keeps the kernel's maps to that. Pods of the directory source become network
namespaces on veths and the commands of their containers run inside. The datapath goes on without the agent: stop or
kill it, and what was allowed stays allowed, what was denied stays denied; the next agent takes over. Remove
everything with --remove-on-exit, or later with `gatehouse cleanup`.

Lists are separated by commas, sizes and time-outs are NAME=NUMBER pairs. Every flag has a GATEHOUSE_ variable
(GATEHOUSE_POD_CIDRS), and is a setting of the YAML file of --config (pod_cidrs: [10.1.0.0/24]). A flag wins over its
variable, a variable over the file. `gatehouse config` shows what is in force and where each value came from.

\b
Examples:
  gatehouse agent --manifests ./manifests --node-sysctls
  gatehouse agent --manifests ./m --node a --state-dir /run/gatehouse-a --pod-cidrs 10.1.0.0/24,fd00:1::/64
  gatehouse agent --manifests ./m --node-sysctls --devices eth0 --forwarding hybrid --healthz 0.0.0.0:10256
  gatehouse agent --manifests ./m --timeouts udp=30,tcp=86400 --map-sizes conntrack=1000000
  ip netns exec node-b gatehouse agent --manifests ./m --node b --state-dir /run/gatehouse-b
  gatehouse agent --config /etc/gatehouse/agent.yaml --log-level debug

\b
Exit status: 0 after an orderly stop, 2 where it cannot start (one sentence on stderr says why).
"""


def register(app: typer.Typer) -> None:
    agent.__signature__ = given.signature()  # type: ignore[attr-defined]
    app.command(help=AGENT_HELP)(agent)
    app.command()(cleanup)


def agent(ctx: typer.Context, **flags: Any) -> None:
    """Hand over to a lean process of the same pid: typer and what it imports are not needed by an agent."""
    from agent.config import handover
    from agent.datapath import mounts

    resolved = given.resolve(ctx, flags)
    try:
        mounts.require_host()
    except mounts.Unmet as unmet:
        raise Failure(str(unmet)) from None
    os.execv(sys.executable, [sys.executable, "-m", "agent", handover.give(resolved)])  # noqa: S606


def cleanup(
    state_dir: StateDir = STATE_DIR,
    all_: Annotated[bool, typer.Option("--all", help="Of every agent that ever ran on this machine.")] = False,
) -> None:
    """Remove all that agents left: pods, interfaces, programs on devices and cgroups, maps, processes, state.

    An agent that is running keeps what it has: stop it first.

    \b
    Examples:
      gatehouse cleanup --state-dir /run/gatehouse-a
      gatehouse cleanup --all

    \b
    Exit status: 0, or 2 where an agent is running or something could not be removed; with --all, what others left is
    removed all the same.
    """
    from agent import cleanup as cleaning
    from agent.datapath import bytecode, mounts
    from agent.instance import Instance, noted
    from agent.lock import Taken

    if missing := mounts.check_root():
        raise Failure(missing)
    try:
        mounts.ensure_writable_sysctls()
    except mounts.Unmet as unmet:
        raise Failure(str(unmet)) from None
    refused = []
    for instance in list(noted()) if all_ else [Instance(state_dir)]:
        try:
            removed = cleaning.clean(instance)
        except Taken as taken:
            refused.append(str(taken))
        except mounts.Unmet as unmet:
            raise Failure(str(unmet)) from None
        except OSError as error:
            refused.append(f"{instance.state_dir}: not all of it is gone: {error.strerror or error}")
        else:
            listed = ", ".join(f"{count} {what}" for what, count in removed.items()) or "nothing to remove"
            print(f"{instance.state_dir}: {listed}")
    if all_ and not any(noted()):
        bytecode.forget()
    if refused:
        raise Failure("; ".join(refused))
