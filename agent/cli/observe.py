"""`gatehouse observe`: flows as they happen, and those that were."""

from __future__ import annotations

import inspect
import os
import sys
from typing import Annotated, Any

import typer

from agent.cli.output import STATE_DIR, Format, Output, StateDir

HELP = """Show flows: new ones, their ends, what was dropped or refused, and what proxies judged (requests, DNS names,
TLS connections), with the rule that decided.

Without --follow, the newest flows that are held. Values of one filter are alternatives, different filters must all
hold.

JSON, one object a line: time, verdict, drop_reason, type, direction, source {identity, namespace, pod, ip, port,
labels}, destination {…}, protocol, tcp_flags, icmp, l7, policy {kind, namespace, name, rule}, service {namespace, name,
ip, port, port_name}, hook, packets, bytes; or, where events were lost, {type: "lost", time, where, count, summary}.

l7 is {type: "http", protocol, method, host, path, status, grpc_status, latency_ns, request_bytes, response_bytes, sni,
flags, details}, {type: "dns", query, qtype, rcode, answers, ttl_s, latency_ns} or {type: "tls", sni, latency_ns,
request_bytes, response_bytes, flags, details}. Queries of paths are left out: /x?….

\b
Examples:
  gatehouse observe --last 20
  gatehouse observe --follow --verdict DROPPED --namespace shop
  gatehouse observe --from-pod shop/web --to-port 5432 --since 5m
  gatehouse observe --follow --http-status 4xx --http-path '^/api/' --to-pod shop/web
  gatehouse observe --dns-query '**.example.com' --verdict DROPPED
  gatehouse observe --follow -o json | jq -r 'select(.drop_reason) | .policy.name'

\b
Exit status: 0, or 2 where no flows process answers.
"""


def register(app: typer.Typer) -> None:
    """The filters come from the flows package, which is imported for this command alone: it costs others 40 ms."""
    if "observe" in sys.argv or "_GATEHOUSE_COMPLETE" in os.environ:
        *fixed, rest = inspect.signature(observe, eval_str=True).parameters.values()
        if rest.kind is inspect.Parameter.VAR_KEYWORD:  # the filters take its place, once
            observe.__signature__ = inspect.Signature([*fixed, *_filters()])  # type: ignore[attr-defined]
    app.command(help=HELP, short_help="Show flows as they happen, and those that were.")(observe)


def _filters() -> list[inspect.Parameter]:
    from agent.flows.filters import OPTIONS

    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                list[str] | None,
                typer.Option(f"--{option.name.replace('_', '-')}", metavar=option.metavar, help=option.help),
            ],
        )
        for option in OPTIONS
    ]


def observe(
    *,
    state_dir: StateDir = STATE_DIR,
    output: Output = Format.TABLE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    last: Annotated[
        int | None,
        typer.Option(
            "--last", "-n", min=0, help="Of the flows held, the newest so many; default 20, with --since all."
        ),
    ] = None,
    **filters: Any,
) -> None:
    import msgspec

    from agent.api import client
    from agent.flows.render import line

    wanted = {name: list(values) for name, values in filters.items() if values}
    if last is None and not {"since", "until"} & wanted.keys():
        last = 0 if follow else 20
    color = output is Format.TABLE and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    encode = msgspec.json.Encoder().encode
    for value in client.stream(state_dir / "flows.sock", "observe", filters=wanted, last=last, follow=follow):
        print(encode(value).decode() if output is Format.JSON else line(value, color=color), flush=follow)
