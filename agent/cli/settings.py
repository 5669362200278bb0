"""`gatehouse config`: the settings in force, and where each came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from agent.api.protocol import UnreachableError
from agent.cli import given
from agent.cli.output import Column, Format, Output, emit, emit_json
from agent.config import check
from agent.config.handover import Shown, shown

HELP = """Print the settings in force, and where each value came from.

Without flags: those of the agent that runs with --state-dir. Where none runs, or with --config or any other flag of
`gatehouse agent`: those an agent would have that is started here with these, this environment and this file. stderr
says which of the two it is.

Where from: default, FILE:LINE, the variable (GATEHOUSE_…) or the flag. Secrets are not shown.

JSON, one object: NAME: {value, origin}.

\b
Examples:
  gatehouse config
  gatehouse config --state-dir /run/gatehouse-a -o json | jq .mtu.value
  gatehouse config --config /etc/gatehouse/agent.yaml --source kubernetes --ipam node
  gatehouse config --changed

\b
Exit status: 0, or 2 where an agent could not start with these settings (they are printed all the same, where they can
be read; one sentence on stderr says why).
"""
COLUMNS = (
    Column("SETTING", lambda one: one.name),
    Column("VALUE", lambda one: written(one.value)),
    Column("FROM", lambda one: one.origin),
)
Changed = Annotated[bool, typer.Option("--changed", help="Leave out what is as it is by default.")]


def register(app: typer.Typer) -> None:
    config.__signature__ = given.signature(  # type: ignore[attr-defined]
        *(given.option(name, kind, default) for name, kind, default in OWN)
    )
    app.command(help=HELP)(config)


OWN: tuple[tuple[str, Any, Any], ...] = (("output", Output, Format.TABLE), ("changed", Changed, False))


def config(ctx: typer.Context, output: Format, changed: bool, **flags: Any) -> None:
    words = given.flagged(ctx, flags)
    found = None
    if words.keys() <= {"state_dir"} and not given.is_flag(ctx, "config"):
        found = _running(given.gathered(flags["config"], words).config.state_dir)
    if found is not None:
        _print(found, output, changed)
        return
    resolved = given.gathered(flags["config"], words)
    print("an agent started here with these settings would have:", file=sys.stderr)
    _print(shown(resolved), output, changed)
    check(resolved)


def _running(state_dir: str) -> list[Shown] | None:
    """Of the agent with this state directory; None where none answers."""
    from agent.api import client

    try:
        found = client.call(Path(state_dir) / "agent.sock", "config")
    except UnreachableError:
        return None
    print(f"the agent that runs with {state_dir} has:", file=sys.stderr)
    return msgspec.convert(found, list[Shown])


def _print(found: list[Shown], output: Format, changed: bool) -> None:
    found = [one for one in found if not changed or one.origin != "default"]
    if output is Format.JSON:
        emit_json({one.name: {"value": one.value, "origin": one.origin} for one in found})
    else:
        emit(found, output, COLUMNS, "every setting is as it is by default")


def written(value: Any) -> str:
    """A value as a flag has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={number}" for name, number in value.items())
    return str(value)
