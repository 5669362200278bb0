"""`gatehouse demo`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.output import Failure, table

if TYPE_CHECKING:
    from agent.demo.box import Box
    from agent.demo.probes import Outcome

READY_S = 60.0


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running, to play with.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what --keep left, and build nothing.")] = False,
) -> None:
    """Build a small cluster in network namespaces, enforce policy on it, and show it.

    Eleven pods in four namespaces, services, policies of ports, of requests and of DNS names; real servers and
    clients. Each probe is sent, its flow is printed as the datapath or a proxy judged it, and a table says what was
    expected, what came, and which rule decided.

    Nothing touches the machine's own network; everything is removed at the end, also after Ctrl-C.

    \b
    Examples:
      gatehouse demo
      gatehouse demo --keep
      gatehouse demo --remove

    \b
    Exit status: 0 if every probe went as expected, 1 if one did not, 2 if the cluster could not be built.
    """
    from agent.datapath import mounts
    from agent.demo.box import Box, BoxError, remove_kept

    if remove:
        for folder in remove_kept():
            say(f"removed {folder}")
        return
    for number in (signal.SIGTERM, signal.SIGINT):  # a script starts it in the background with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        mounts.require_host()
        with Box(keep=keep) as box:
            good = show(box)
            if keep:
                print(invitation(box))
    except (mounts.Unmet, BoxError) as error:
        raise Failure(str(error)) from None
    raise typer.Exit(0 if good else 1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Either ends the demo through the clean-up."""
    raise KeyboardInterrupt


def show(box: Box) -> bool:
    """Wait for the cluster, probe, print. Whether all went as expected."""
    from itertools import chain

    from agent.demo import asks, probes
    from agent.flows.render import line

    say(f"building a cluster in network namespaces (node {box.node})")
    await_ready(box)
    print(listing(box))
    verdicts = probes.Verdicts(box.state_dir / "flows.sock")
    say("probing; each line is a flow as the datapath judged it, or a request as a proxy did (l7)")
    outcomes, shown = [], 0
    for outcome in chain(asks.run(box, verdicts), probes.run(box, verdicts)):
        outcomes.append(outcome)
        for flow in verdicts.lines[shown:]:
            print("  " + line(flow, color=sys.stdout.isatty()), flush=True)
        shown = len(verdicts.lines)
    print("\n" + results(outcomes) + "\n")
    wrong = [o for o in outcomes if not o.as_expected]
    say(f"{len(outcomes) - len(wrong)} of {len(outcomes)} probes went as expected")
    return not wrong


def await_ready(box: Box) -> None:
    """Until all that the agent has read is in force, and flows can be observed."""
    from agent.api import client

    until_reachable(box, "agent.sock")
    client.call(box.state_dir / "agent.sock", "settled", timeout_s=2 * READY_S, timeout=READY_S)
    until_reachable(box, "flows.sock")
    until_proxies_judge(box)


def until_reachable(box: Box, name: str) -> None:
    """A socket that does not exist yet is nothing to wait on: ask again, as long as the agent runs."""
    from time import monotonic, sleep

    from agent.api import client
    from agent.api.protocol import UnreachableError
    from agent.demo.box import BoxError

    deadline = monotonic() + READY_S
    while monotonic() < deadline and box.agent is not None and box.agent.poll() is None:
        try:
            client.call(box.state_dir / name, {"agent.sock": "status", "flows.sock": "ping"}[name])
            return
        except UnreachableError:
            sleep(0.02)
    raise BoxError("the agent did not start:\n" + box.agent_log())


def until_proxies_judge(box: Box) -> None:
    """Until each rule set in force has its listener; requests are denied before."""
    from time import monotonic, sleep

    from agent.api import client
    from agent.demo.box import BoxError

    deadline = monotonic() + READY_S
    while monotonic() < deadline:
        proxies = client.call(box.state_dir / "agent.sock", "status")["proxies"].values()
        if all(proxy["listeners"] and not proxy["waiting"] for proxy in proxies):
            return
        sleep(0.05)
    raise BoxError("the proxies did not start:\n" + box.agent_log())


def listing(box: Box) -> str:
    from agent.api import client

    endpoints = client.call(box.state_dir / "agent.sock", "endpoints")
    rows = [
        [f"{e['namespace']}/{e['name']}", str(e["identity"]), " ".join(e["ips"]), ", ".join(e["isolated"]), e["state"]]
        for e in endpoints
    ]
    return table(["POD", "IDENTITY", "ADDRESSES", "ISOLATED", "STATE"], rows) + "\n"


def results(outcomes: list[Outcome]) -> str:
    rows = [
        [
            "ok" if o.as_expected else "WRONG",
            o.probe.source,
            o.probe.destination,
            f"{o.probe.port}/{o.probe.protocol}",
            o.probe.expect,
            o.got,
            o.rule,
            o.probe.note,
        ]
        for o in outcomes
    ]
    return table(["", "FROM", "TO", "PORT", "EXPECTED", "GOT", "DECIDED BY", "NOTE"], rows)


def invitation(box: Box) -> str:
    state = f"--state-dir {box.state_dir}"
    return f"""
The cluster is still running. Manifests in {box.manifests} can be edited; changes take effect at once.

  gatehouse status {state}
  gatehouse observe --follow {state}
  gatehouse exec shop/web {state} -- ip address
  gatehouse policy explain --manifests {box.manifests} --help

  gatehouse demo --remove"""


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)
