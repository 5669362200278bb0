"""`gatehouse exec`, a command in a pod; `gatehouse plan`, what an agent would install."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.output import STATE_DIR, Failure, Format, Output, StateDir, emit_json


def register(app: typer.Typer) -> None:
    app.command()(plan)
    app.command("exec", context_settings={"ignore_unknown_options": True})(execute)


def execute(
    pod: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod of this node.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND …", help="What to run, found by PATH.")],
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Run a command in a pod's network namespace and cgroup, as root, with this terminal.

    It sees the machine's files and processes: a pod of the directory source has a network of its own, and nothing else.

    \b
    Examples:
      gatehouse exec shop/web -- curl -s http://10.96.0.10/
      gatehouse exec shop/web -- ip route

    \b
    Exit status: that of the command; 126 or 127 where it cannot be run, 2 where there is no such pod.
    """
    from agent.api import client
    from agent.datapath.cgroup import folder_of
    from agent.datapath.mounts import Unmet
    from agent.endpoints.cgroups import of_netns
    from agent.endpoints.enter import CannotEnter
    from agent.endpoints.enter import execute as become
    from agent.instance import Instance

    namespace, slash, name = pod.partition("/")
    if not slash or not name:
        raise Failure(f"{pod!r} is not NAMESPACE/POD: write default/{pod} for a pod of the namespace default")
    for endpoint in client.call(state_dir / "agent.sock", "endpoints"):
        if (endpoint["namespace"], endpoint["name"]) == (namespace, name):
            break
    else:
        raise Failure(f"there is no pod {pod}: see `gatehouse endpoints`")
    if not endpoint["netns"]:
        where = "it uses the node's network" if endpoint["host_network"] else f"it is {endpoint['state']}"
        raise Failure(f"pod {pod} has no network namespace: {where}")
    try:
        folder = folder_of(Instance(state_dir).name)
        become(endpoint["netns"], command, cgroup=of_netns(folder, endpoint["netns"]))
    except Unmet as unmet:
        raise Failure(str(unmet)) from None
    except CannotEnter as problem:
        raise Failure(str(problem), problem.status) from None


def plan(
    manifests: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of manifests, or one of them.")],
    output: Output = Format.TABLE,
) -> None:
    """Print what an agent would install for these manifests, without installing it.

    Needs no agent. Settings that matter (pod CIDRs, service CIDRs, node) are taken from GATEHOUSE_ variables.

    JSON, one object: endpoints {POD: {identity, subject, addresses}}, addresses {BLOCK: who it is}, policy {WHO:
    {ingress, egress: {REMOTE: ["allow TCP 80 by RULE", …]}}}, services {FRONTEND: {service, kind, backends ("refused"
    or "dropped", where there is none), outside_backends (where clients outside the cluster get others), traffic_policy,
    affinity, source_ranges, node_in_source_ranges, algorithm, forwarding}}. A remote without rows of its own has those
    of "any"; no rows are a deny.

    \b
    Examples:
      gatehouse plan manifests/
      GATEHOUSE_NODE=a gatehouse plan manifests/ -o json | jq .services

    \b
    Exit status: 0, 1 where something in the manifests is not in force as written (said on stderr), 2 no such folder.
    """
    from agent.cli import offline
    from agent.plan.describe import describe
    from agent.plan.preview import preview

    tree = offline.read([manifests])
    world = offline.world_of(tree, offline.config_of(manifests))
    described = describe(preview(world), world)
    if output is Format.JSON:
        emit_json(described)
    else:
        print("\n".join(_lines(described)))
    problems = [*tree.problems, *world.problems()]
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if any(not problem.warning for problem in problems) else 0)


def _lines(described: Any, depth: int = 0) -> Iterator[str]:
    """Nested names and what stands under them, indented."""
    indent = "  " * depth
    for name, value in described.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:" + ("" if value else " nothing")
            yield from _lines(value, depth + 1)
        elif isinstance(value, list):
            yield f"{indent}{name}: " + (", ".join(value) or "nothing")
        else:
            yield f"{indent}{name}: {value}"
