"""`gatehouse services`: who serves what. `gatehouse services trace`: which backend a packet would get, and why."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated

import msgspec
import typer

from agent.api import client
from agent.cli.output import STATE_DIR, Failure, Format, Output, StateDir, duration, emit_json, table
from agent.status import BackendView, FrontendView, ServiceView, TraceView

TITLES = ("NAMESPACE", "NAME", "KIND", "FRONTEND", "BACKENDS", "OPTIONS", "LAST CHANGE", "PROBLEM")
OPTIONAL = ("OPTIONS", "LAST CHANGE", "PROBLEM")
"""Columns that are left out where nothing is in them."""
SHOWN = 3

commands = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="services")


@commands.callback()
def services(
    context: typer.Context,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only services of this namespace.")] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="PATTERN", help="Only services of this name, such as web-*.")
    ] = "",
    problems: Annotated[
        bool, typer.Option("--problems", help="Only services with a problem, or that some clients find no backend of.")
    ] = False,
    state_dir: StateDir = STATE_DIR,
    output: Output = Format.TABLE,
) -> None:
    """Services, their frontends and the backends new flows get.

    The table has a row for each kind of frontend of each port: ClusterIP, LoadBalancer, ExternalIP, NodePort (those at
    127.0.0.1 and ::1, of kind Loopback, are counted with it), HostPort (of a pod). "+2" are further addresses. Where
    pods and this node (inside) get other backends than everybody else (outside), both are shown.

    JSON, an array of: namespace, name, type, ips, internal_traffic_policy, external_traffic_policy,
    health_check_node_port, frontends, last_change {time, text} (since the agent started, or null), origin, problem.
    Of frontends: kind, address, protocol, port, name (of the service port), node_port, backends (those new flows can
    get), unused (other endpoints), why_inside and why_outside (how they were chosen), without_inside and
    without_outside (refused or dropped, where there is no backend), affinity_timeout_s, source_ranges, algorithm
    (random, maglev), forwarding to other nodes' backends (snat, dsr), last_change. Of backends: address, port, state
    (ready; serving: it terminates and still serves; terminating; not ready), inside, outside (who gets it), node, pod,
    why (not everybody gets it).

    \b
    Examples:
      gatehouse services
      gatehouse services -n shop --name 'web-*'
      gatehouse services --problems
      gatehouse services -o json | jq '.[].frontends[] | select(.backends == [])'
      gatehouse services trace shop/web shop/db:5432

    \b
    Exit status: 0, or 2 where no agent answers.
    """
    if context.invoked_subcommand is not None:
        return
    gc.disable()  # there may be 50,000 services, and what is read of them goes when this process ends
    asked = client.stream(
        state_dir / "agent.sock", "services", timeout_s=30.0, namespace=namespace, name=name, problems=problems
    )
    if output is Format.JSON:
        emit_json(list(asked))
        return
    rows = [row for service in asked for row in service_rows(msgspec.convert(service, ServiceView))]
    if not rows:
        none = "no such services" if namespace or name or problems else "no services: no Service has been read"
        print(none, file=sys.stderr)
        return
    kept = [i for i, title in enumerate(TITLES) if title not in OPTIONAL or any(row[i] for row in rows)]
    print(table([TITLES[i] for i in kept], [[row[i] for i in kept] for row in rows]))


@commands.command("trace")
def trace(
    source: Annotated[str, typer.Argument(metavar="SRC", help="NAMESPACE/POD, node, outside, or an address.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST:PORT[/PROTO]", help="NAMESPACE/SERVICE or an address; TCP, UDP or SCTP.")
    ],
    source_port: Annotated[int, typer.Option("--source-port", min=0, max=65535, help="0: any.")] = 0,
    state_dir: StateDir = STATE_DIR,
    output: Output = Format.TABLE,
) -> None:
    """Say which backend a packet to a service gets at this node, and why, step by step.

    `outside` is somebody outside the cluster; `node` a process of this node. Of a service the port is that of a
    frontend, or its name; a packet from outside is taken to go to the load balancer's address, an external IP or a node
    port, whichever there is first. A client that is to keep its backend, and with --source-port a flow that exists, go
    on to the backend they have: that is looked up in the kernel. Whether policy allows the flow to the backend is for
    `gatehouse policy explain` to say.

    JSON, one object: source, destination, protocol, outcome (delivered, refused, dropped, no service), reason (of a
    drop), service, kind (of the frontend), deliveries [{address, port, pod, node, seen_from (which source address the
    backend sees: client, node, hairpin), local, direct}], steps, left_out [{address, port, why}].

    \b
    Examples:
      gatehouse services trace shop/web shop/db:5432
      gatehouse services trace shop/web kube-system/dns:dns/UDP
      gatehouse services trace outside 192.0.2.11:30080
      gatehouse services trace 198.51.100.7 shop/web:80 --source-port 40000 -o json

    \b
    Exit status: 0 delivered, 1 refused, dropped or no service, 2 no such thing or no agent.
    """
    place, colon, rest = destination.rpartition(":")
    port, _, protocol = rest.partition("/")
    bare = place[1:-1] if place.startswith("[") and place.endswith("]") else place
    if not colon or not bare or not port or (":" in bare and bare == place):
        raise Failure(f"{destination!r} is not DST:PORT such as shop/web:80, 10.96.0.1:53/UDP or [fd00::1]:80")
    asked = {"source": source, "destination": bare, "port": port, "protocol": protocol or "TCP"}
    answer = client.call(state_dir / "agent.sock", "trace", timeout_s=client.CALL_S, **asked, source_port=source_port)
    found = msgspec.convert(answer, TraceView)
    if output is Format.JSON:
        emit_json(found)
    else:
        print("\n".join(trace_lines(found)))
    sys.exit(0 if found.deliveries else 1)


def trace_lines(found: TraceView) -> Iterator[str]:
    reason = f" ({found.reason})" if found.reason else ""
    yield f"{found.source} → {found.destination}/{found.protocol}: {found.outcome}{reason}"
    sees = {"client": "the client's address", "node": "this node's address", "hairpin": "a link-local address"}
    for one in found.deliveries:
        who = ", ".join(text for text in (one.pod, f"node {one.node}" if one.node else "") if text)
        yield f"  to {_socket(one.address, one.port)}{f' ({who})' if who else ''}, which sees {sees[one.seen_from]}"
    for step in found.steps:
        yield f"  - {step}"
    for left in found.left_out:
        yield f"  not {_socket(left.address, left.port)}: {left.why}"


def service_rows(service: ServiceView) -> Iterator[list[str]]:
    """Cells under TITLES: a row for each port and kind of frontend."""
    head = [service.namespace, service.name]
    if not service.frontends:
        kind = "headless" if service.ips == ("None",) else service.type
        yield [*head, kind, "", "", "", "", service.problem]
    for _, alike in groupby(sorted(service.frontends, key=_likeness), _likeness):
        first, *others = alike
        more = f" +{len(others)}" if others else ""
        frontend = f"{_socket(first.address, first.port)}/{first.protocol}{more}"
        changes = [f.last_change for f in (first, *others) if f.last_change]
        newest = max(changes, key=lambda change: change.time, default=None)
        problem, service = service.problem, msgspec.structs.replace(service, problem="")  # once a service
        changed = f"{newest.time[:19]}Z {newest.text}" if newest else ""
        yield [*head, first.kind, frontend, _backends(first), _options(service, first), changed, problem]


KINDS = {"ClusterIP": 0, "LoadBalancer": 1, "ExternalIP": 2, "NodePort": 3, "Loopback": 3, "HostPort": 4}
"""Their order. Loopback is a node port at one more address."""


def _likeness(f: FrontendView) -> tuple[int, str, str, int, bool]:
    """Frontends for which this is equal differ in their address. Those without a backend are told apart."""
    return KINDS[f.kind], f.name, f.protocol, f.port, not f.backends


def _backends(f: FrontendView) -> str:
    inside, outside = (tuple(b for b in f.backends if getattr(b, side)) for side in ("inside", "outside"))
    unused = f" ({len(f.unused)} unused)" if f.unused else ""
    if inside == outside:
        return _named(inside, f.without_inside) + unused
    said = f"inside {_named(inside, f.without_inside)}; outside {_named(outside, f.without_outside)}"
    return said + unused


def _named(backends: tuple[BackendView, ...], without: str) -> str:
    shown = [_socket(b.address, b.port) + _mark(b) for b in backends[:SHOWN]]
    more = len(backends) - len(shown)
    return ",".join(shown) + (f" and {more} more" if more else "") if shown else f"none: {without}"


def _mark(backend: BackendView) -> str:
    return "" if backend.state == "ready" else f" ({backend.state})"


def _options(service: ServiceView, f: FrontendView) -> str:
    local = service.internal_traffic_policy if f.kind == "ClusterIP" else service.external_traffic_policy
    found = [
        "local" if local == "Local" and f.kind != "HostPort" else "",
        f"affinity {duration(f.affinity_timeout_s)}" if f.affinity_timeout_s else "",
        f.algorithm if f.algorithm != "random" else "",
        f.forwarding if f.forwarding != "snat" else "",
        f"from {','.join(f.source_ranges)}" if f.source_ranges else "",
        f"health check {service.health_check_node_port}"
        if service.health_check_node_port and f.kind == "LoadBalancer"
        else "",
    ]
    return ", ".join(text for text in found if text)


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
