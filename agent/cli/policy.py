"""`gatehouse policy check` and `gatehouse policy explain`: both need no agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from agent.cli.output import Format, Output, emit_json

if TYPE_CHECKING:
    from policies.check import Finding

commands = typer.Typer(help="Look at policies without an agent.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="policy")


@commands.command()
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Manifests, or folders of manifests.")],
    output: Output = Format.TABLE,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
) -> None:
    """Say what is wrong in manifests, and what is likely not meant as it is written.

    All kinds the directory source reads are checked: NetworkPolicy, CiliumNetworkPolicy, ClusterNetworkPolicy and their
    kin among them. Where pods are among the manifests, selectors that match none of them are pointed out.

    JSON, an array of: severity (error, warning), file, line, policy (the object), path (the field), message.

    \b
    Examples:
      gatehouse policy check manifests/
      gatehouse policy check --strict -o json policy.yaml

    \b
    Exit status: 0 nothing wrong, 1 an error (with --strict: or a warning), 2 a file that is not there.
    """
    findings = sorted(set(_findings(paths)), key=lambda f: (f.file, f.line, f.path, f.message))
    if output is Format.JSON:
        emit_json(findings)
    else:
        for finding in findings:
            print(finding)
        if not findings:
            print("nothing wrong", file=sys.stderr)
    errors = [f for f in findings if strict or f.severity == "error"]
    sys.exit(1 if errors else 0)


def _findings(paths: list[Path]) -> Iterator[Finding]:
    from agent.cli import offline
    from agent.objects import Pod
    from policies import check as checking
    from policies.model import Origin
    from policies.slips import Surroundings

    tree = offline.read(paths)
    world = offline.world_of(tree, offline.config_of(Path()))
    for problem in (*tree.problems, *world.problems()):
        severity: Literal["error", "warning"] = "warning" if problem.warning else "error"
        where = (problem.file, problem.line, problem.subject, problem.path)
        yield checking.Finding(severity, *where, problem.message)
    pods = [offline.facts(pod) for pod in tree.in_force.values() if isinstance(pod, Pod)]
    around = Surroundings(pods, offline.namespaces(world)) if pods else None
    written = {one.origin: one for one in offline.documents(paths)}
    report = checking.check([(one.source.value(), origin) for origin, one in written.items()], around)
    for finding in report.findings:
        if finding.severity == "warning":
            (line,) = written[Origin(finding.file, finding.line)].lines([finding.path])
            yield msgspec.structs.replace(finding, line=line)


@commands.command()
def explain(
    manifests: Annotated[Path, typer.Option("--manifests", envvar="GATEHOUSE_MANIFESTS", help="Folder of manifests.")],
    source: Annotated[str, typer.Option("--from", metavar="WHO", help="NAMESPACE/POD, an address, or host.")],
    destination: Annotated[
        str, typer.Option("--to", metavar="WHO", help="NAMESPACE/POD, an address, host, or service/NAMESPACE/NAME.")
    ],
    port: Annotated[
        str, typer.Option("--port", metavar="PORT[/PROTOCOL]", help="A number or a name; TCP, UDP, SCTP; or icmp.")
    ] = "icmp",
    ipv6: Annotated[bool, typer.Option("--ipv6", help="Between the IPv6 addresses of pods.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Say whether a flow would be allowed, which rules were asked, and why each matched or did not.

    The answer comes from the manifests alone, by a slow and simple reading of the policies' APIs. Pods get the
    addresses a new agent would give them.

    JSON: source, destination, protocol, port, verdict, egress and ingress {direction, subject, verdict, judged,
    decided_by, asks, policies [{kind, namespace, name, file, line, tier, priority, isolates, reason, rules [{rule,
    action, matches, allows, asks, peers, ports}]}]}; for a service an array, with one for each backend. Verdict
    redirect: a proxy decides, request by request.

    \b
    Examples:
      gatehouse policy explain --manifests m --from shop/web --to shop/db --port 5432
      gatehouse policy explain --manifests m --from 192.0.2.7 --to shop/web --port http
      gatehouse policy explain --manifests m --from shop/web --to service/kube-system/dns --port 53/UDP

    \b
    Exit status: 0 allowed or left to a proxy, 1 denied (of a service: at any backend), 2 no such pod, service or port.
    """
    from agent.cli import offline
    from agent.cli.parties import flows
    from policies import explain as explaining

    tree = offline.read([manifests])
    world = offline.world_of(tree, offline.config_of(manifests))
    policies = list(world.index.policies())
    asked = flows(world, source, destination, port, ipv6=ipv6)
    always = world.config.enforce_always
    found = [explaining.explain(policies, offline.namespaces(world), flow, enforce_always=always) for flow in asked]
    if output is Format.JSON:
        emit_json(found if destination.startswith("service/") else found[0])
    else:
        print("\n\n".join("\n".join(explaining.lines(one)) for one in found))
    sys.exit(1 if any(one.verdict == "deny" for one in found) else 0)
