"""`gatehouse preflight`: whether an agent will work on this node, and why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from agent.cli import given
from agent.cli.output import Format, Output, emit_json, table

if TYPE_CHECKING:
    from agent.preflight.checks import Row

HELP = """Tell whether an agent started here with these settings will work, and what to do where it will not.

Takes the settings as `gatehouse agent` does: flags, GATEHOUSE_ variables, the file of --config. Run it where the agent
is to run (on the node, or in the agent's container), as root. It changes nothing and takes a few seconds.

Results: ok; warn: it works, but not as it might; fail: it does not work; unknown: it could not be told.

JSON, a list of objects: name, result, found, advice.

\b
Examples:
  gatehouse preflight --source kubernetes --ipam node --cni-conf-dir /etc/cni/net.d
  gatehouse preflight --config /etc/gatehouse/agent.yaml -o json | jq '.[] | select(.result == "fail")'
  kubectl -n kube-system exec ds/gatehouse -c agent -- gatehouse preflight

\b
Exit status: 0, 1 where something fails, 2 where the settings cannot be read.
"""


def register(app: typer.Typer) -> None:
    preflight.__signature__ = given.signature(given.option("output", Output, Format.TABLE))  # type: ignore[attr-defined]
    app.command(help=HELP)(preflight)


def preflight(ctx: typer.Context, output: Format, **flags: Any) -> None:
    from agent.preflight.checks import judged
    from agent.preflight.facts import Result
    from agent.preflight.gather import gather

    resolved = given.gathered(flags["config"], given.flagged(ctx, flags))
    rows = list(judged(gather(resolved.config), resolved))
    if output is Format.JSON:
        emit_json(rows)
    else:
        print("\n".join(_lines(rows)))
    sys.exit(any(row.result is Result.FAIL for row in rows))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield table(["CHECK", "RESULT", "FOUND"], [[row.name, row.result, row.found] for row in rows])
    advice = [row for row in rows if row.advice and row.result != "ok"]
    if advice:
        yield "\nWhat to do:"
        yield from (f"  {row.name} ({row.result}): {row.advice}" for row in advice)
