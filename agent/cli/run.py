"""`gatehouse exec`: a command in a pod."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli.output import STATE_DIR, Failure, StateDir


def register(app: typer.Typer) -> None:
    app.command("exec", context_settings={"ignore_unknown_options": True})(execute)


def execute(
    pod: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod of this node.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND …", help="What to run, found by PATH.")],
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Run a command in a pod's network namespace, as root, with this terminal.

    It sees the machine's files and processes: a pod of the directory source has a network of its own, and nothing else.

    \b
    Examples:
      gatehouse exec shop/web -- curl -s http://10.96.0.10/
      gatehouse exec shop/web -- ip route

    \b
    Exit status: that of the command; 126 or 127 where it cannot be run, 2 where there is no such pod.
    """
    from agent.api import client
    from agent.endpoints.enter import CannotEnter
    from agent.endpoints.enter import execute as become

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
        become(endpoint["netns"], command)
    except CannotEnter as problem:
        raise Failure(str(problem), problem.status) from None
