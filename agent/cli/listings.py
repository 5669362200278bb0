"""What a running agent holds: status, endpoints, identities, policies, nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

import msgspec
import typer

from agent.api import client
from agent.cli.output import (
    STATE_DIR,
    Column,
    Format,
    Output,
    StateDir,
    duration,
    emit,
    emit_json,
    labels,
    process,
    process_and_problem,
)
from agent.status import (
    EncryptionView,
    EndpointView,
    IdentityView,
    NodeView,
    PolicyView,
    ProxyView,
    StatusView,
)

View = TypeVar("View", bound=msgspec.Struct)


def register(app: typer.Typer) -> None:
    for command in (status, endpoints, identities, policies, nodes):
        app.command()(command)


def status(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """How the agent and its datapath are.

    Exit status: 0 ready, 1 degraded, starting or stopping (a line says why), 2 no agent answers.

    JSON, one object: state, reasons, version, pid, node, state_dir, started, uptime_s, resident_bytes, kernel,
    revision {desired, realized}, datapath {pins, abi_hash, source_hash, programs [{name, id, instructions, attached}],
    maps [{name, entries, capacity, full}]}, endpoints {STATE: number}, namespaces, policies, services,
    services_by_type {TYPE: number}, identities, problems [{file, line, subject, path, message, warning}],
    drops {REASON: packets}, tallies {NAME: number}, rejudged, map_full,
    flows {process {state, pid, restarts, problem}, events_lost, records_lost}, proxies {envoy, dns: {wanted, process,
    listeners, waiting, resident_bytes, problems}}, cluster {unreachable_s, from_disk, leader, resources [{name,
    objects, version, synced_ago_s, problem}]} (null without an API server), encryption (as `gatehouse encryption
    status` has it; null where it is off).

    \b
    Examples:
      gatehouse status
      gatehouse status -o json | jq .drops
    """
    found = _ask(state_dir, "status", StatusView)
    if output is Format.JSON:
        emit_json(found)
    else:
        print(_describe(found))
    sys.exit(0 if found.state == "ready" else 1)


def endpoints(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """Pods of this node, and those of other nodes that are known.

    JSON, an array of: id, namespace, name, ips, identity, labels, netns, interface, state, policy_revision {desired,
    realized}, node, host_network, isolated, problem. `realized` is never ahead of what the kernel enforces.

    \b
    Examples:
      gatehouse endpoints
      gatehouse endpoints -o json | jq '.[] | select(.state != "ready")'
    """
    columns = [
        Column("ID", lambda e: e.id or ""),
        Column("NAMESPACE", lambda e: e.namespace),
        Column("NAME", lambda e: e.name),
        Column("IPS", lambda e: ",".join(e.ips)),
        Column("IDENTITY", lambda e: e.identity or ""),
        Column("STATE", lambda e: e.state),
        Column("ISOLATED", lambda e: ",".join(e.isolated)),
        Column("POLICY", _policy_revision),
        Column("LABELS", lambda e: labels(e.labels)),
        Column("PROBLEM", lambda e: e.problem),
    ]
    emit(_list(state_dir, "endpoints", EndpointView), output, columns, "no endpoints: no Pod manifest has been read")


def identities(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """Security identities: what each number stands for.

    JSON, an array of: id, kind (reserved, cluster, cidr), namespace, labels, endpoints (how many pods have it), name.

    \b
    Examples:
      gatehouse identities
      gatehouse identities -o json | jq '.[] | select(.kind == "cluster")'
    """
    columns = [
        Column("ID", lambda i: i.id),
        Column("KIND", lambda i: i.kind),
        Column("NAMESPACE", lambda i: i.namespace),
        Column("NAME", lambda i: i.name),
        Column("LABELS", lambda i: labels(i.labels)),
        Column("ENDPOINTS", lambda i: i.endpoints),
    ]
    emit(_list(state_dir, "identities", IdentityView), output, columns, "no identities")


def policies(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """Policies of every kind, the local pods they select, and whether they are enforced.

    An object with several specs is several policies: NAME, NAME:specs[1] and so on. One that is not understood, or has
    a field that is not supported, is not enforced; its pods are isolated as ISOLATES says.

    JSON, an array of: kind, namespace, name, isolates, rules (how many), endpoints (NAMESPACE/NAME), origin
    (file:line), problem (why it is not enforced, "" where it is), status ("accepted", or "not enforced: " and why).

    \b
    Examples:
      gatehouse policies
      gatehouse policies -o json | jq '.[] | select(.status != "accepted")'
    """
    columns = [
        Column("KIND", lambda p: p.kind),
        Column("NAMESPACE", lambda p: p.namespace),
        Column("NAME", lambda p: p.name),
        Column("ISOLATES", lambda p: ",".join(p.isolates)),
        Column("RULES", lambda p: p.rules),
        Column("ENDPOINTS", lambda p: len(p.endpoints)),
        Column("ORIGIN", lambda p: p.origin),
        Column("STATUS", lambda p: p.status),
    ]
    emit(_list(state_dir, "policies", PolicyView), output, columns, "no policies: every pod may talk to every other")


def nodes(state_dir: StateDir = STATE_DIR, output: Output = Format.TABLE) -> None:
    """This node, those of which there are Node manifests, and those that pods are known to run on.

    JSON, an array of: name, local, addresses, pod_cidrs, zone, pods.

    \b
    Example:
      gatehouse nodes -o json
    """
    columns = [
        Column("NAME", lambda n: n.name + (" (this)" if n.local else "")),
        Column("ADDRESSES", lambda n: ",".join(n.addresses)),
        Column("POD CIDRS", lambda n: ",".join(n.pod_cidrs)),
        Column("ZONE", lambda n: n.zone),
        Column("PODS", lambda n: n.pods),
    ]
    emit(_list(state_dir, "nodes", NodeView), output, columns, "no nodes")


def _policy_revision(endpoint: EndpointView) -> str:
    revision = endpoint.policy_revision
    if revision.realized == revision.desired:
        return str(revision.realized)
    return f"{revision.realized} (wanted {revision.desired})"


def _describe(s: StatusView) -> str:
    lines = [
        ("State", s.state),
        *[("", f"! {reason}") for reason in s.reasons],
        ("Agent", f"gatehouse {s.version}, pid {s.pid}, up {duration(s.uptime_s)}, {s.resident_bytes >> 20} MB"),
        ("Node", f"{s.node}, kernel {s.kernel}"),
        ("State dir", s.state_dir),
        ("Revision", f"{s.revision.realized} realized, {s.revision.desired} desired"),
        ("Endpoints", ", ".join(f"{n} {state}" for state, n in s.endpoints.items()) or "none"),
        (
            "Objects",
            f"{s.policies} policies, {s.services} services, {s.namespaces} namespaces, {s.identities} identities",
        ),
        ("Services", ", ".join(f"{n} {kind}" for kind, n in s.services_by_type.items()) or "none"),
        ("Flows", _flows(s)),
        *[(name.capitalize() if name != "dns" else "DNS proxy", _proxy(proxy)) for name, proxy in s.proxies.items()],
        *([("Encryption", _encryption(s.encryption))] if s.encryption else ()),
        ("Pins", s.datapath.pins),
        ("Programs", f"source {s.datapath.source_hash}, ABI {s.datapath.abi_hash}"),
        *[
            ("", f"{p.name}: id {p.id}, {p.instructions} instructions, attached {p.attached} times")
            for p in s.datapath.programs
        ],
        ("Maps", ""),
        *[
            ("", f"{m.name}: {m.entries} of {m.capacity}" + (f", refused {m.full} for want of room" if m.full else ""))
            for m in s.datapath.maps
        ],
        ("Drops", ", ".join(f"{n} {reason}" for reason, n in s.drops.items()) or "none"),
        ("Counted", ", ".join(f"{n} {name}" for name, n in s.tallies.items() if n) or "nothing else"),
        ("Re-judged", f"{s.rejudged} live flows after policy changes"),
        ("Problems", "" if s.problems else "none"),
        *[("", _problem(p.file, p.line, p.subject, p.path, p.message)) for p in s.problems],
    ]
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {text}".rstrip() for title, text in lines)


def _flows(s: StatusView) -> str:
    kept = s.flows.process
    text = f"{process(kept)}, lost {s.flows.events_lost} events and {s.flows.records_lost} records"
    return f"{text}: {kept.problem}" if kept.problem else text


def _proxy(proxy: ProxyView) -> str:
    if not proxy.wanted and not proxy.problems:
        return "not needed"
    kept = proxy.process
    text = process(kept) + (f", {proxy.resident_bytes >> 20} MB" if proxy.resident_bytes else "")
    text += f", {proxy.listeners} rule sets" + (f", {proxy.waiting} not taken yet" if proxy.waiting else "")
    return "; ".join((text, *proxy.problems, *([kept.problem] if kept.problem else [])))


def _encryption(found: EncryptionView) -> str:
    ready = sum(peer.ready for peer in found.peers)
    strict = ", strict" if found.strict else ""
    text = f"{found.mode}{strict}, {ready} of {len(found.peers)} nodes, {found.plaintext_packets} packets in plaintext"
    return f"{text}; program {process_and_problem(found.process)}" if found.process else text


def _problem(file: str, line: int, subject: str, path: str, message: str) -> str:
    from agent.objects import Problem

    return str(Problem(file, line, message, path, subject))


def _ask(state_dir: Path, op: str, kind: type[View]) -> View:
    return msgspec.convert(client.call(state_dir / "agent.sock", op), kind)


def _list(state_dir: Path, op: str, kind: type[View]) -> list[View]:
    found = client.call(state_dir / "agent.sock", op)
    return [msgspec.convert(item, kind) for item in found]
