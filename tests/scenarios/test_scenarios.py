"""Manifests → what the plan says, one corner of a policy or of Service each.

cases/NAME.yaml holds the manifests, cases/NAME.plan.yaml the plan and its problems. After a change that is meant:

    GATEHOUSE_REGENERATE=1 pytest tests/scenarios

and read the difference. A line such as `# node: {zone: here, external_ips: true}` gives the node's settings
(NodeConfig.zone and ServiceConfig).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from map_model import MapModel

from agent.cli.offline import facts
from agent.plan.describe import describe
from agent.plan.plan import Plan
from agent.plan.preview import preview
from agent.plan.state import ENDPOINT, INTERFACES, NO_ADDRESS
from agent.sources.manifest import parse
from agent.sources.slices import derive
from agent.sources.tree import Tree
from agent.world.config import NodeConfig, ServiceConfig
from agent.world.namespaces import METADATA_NAME
from agent.world.world import World
from policies.address import Prefix, is_v4, parse_address
from policies.evaluate import evaluate
from policies.facts import HOST, Flow, Party
from policies.model import Verdict

CASES = sorted(path for path in Path(__file__).parent.glob("cases/*.yaml") if not path.name.endswith(".plan.yaml"))
OUTSIDE = ("192.0.2.4", "192.0.2.100", "203.0.113.1", "10.244.0.99", "2001:db8::1", "fd00::77")
SETTINGS = "# node: "
NODE = ("192.0.2.1", "2001:db8:1::1")
PORTS = (0, 4, 6, 53, 80, 443, 3868, 5432, 7999, 8000, 8080, 8200, 8201, 9090, 65535)
PROTOCOLS = (6, 17, 132)


def config_for(case: Path) -> NodeConfig:
    dual = case.name.startswith("dual-")
    lines = [line for line in case.read_text().splitlines() if line.startswith(SETTINGS)]
    settings = yaml.safe_load(lines[0].removeprefix(SETTINGS)) if lines else {}
    return NodeConfig(
        name="node-1",
        pod_cidrs=tuple(map(Prefix.parse, ("10.244.0.0/24", "fd00:10:244::/64")[: 2 if dual else 1])),
        service_cidrs=tuple(map(Prefix.parse, ("10.96.0.0/16", "fd00:10:96::/112")[: 2 if dual else 1])),
        addresses=tuple(map(parse_address, NODE)),
        zone=settings.pop("zone", ""),
        services=ServiceConfig(**settings),
    )


def planned(case: Path) -> tuple[World, Plan]:
    tree = Tree()
    tree.put(parse(case.read_bytes(), case.name))
    world = World(config_for(case), derive)
    for change in tree.settle():
        world.apply(change)
    return world, preview(world)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_plan_is_as_expected(case: Path) -> None:
    world, plan = planned(case)
    found: dict[str, Any] = {**describe(plan, world), "problems": [str(problem) for problem in world.problems()]}
    golden = case.with_suffix(".plan.yaml")
    if os.environ.get("GATEHOUSE_REGENERATE"):
        golden.write_text(yaml.safe_dump(found, sort_keys=False, width=160))
    assert found == yaml.safe_load(golden.read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_plan_agrees_with_the_oracle(case: Path) -> None:
    world, plan = planned(case)
    maps = MapModel(plan.state.maps())
    interfaces = {a: fields.ifindex for fields in endpoints_of(plan) for a in (fields.ipv4, fields.ipv6)}
    policies = list(world.index.policies())
    names = {name: {METADATA_NAME: name, **namespace.labels} for name, namespace in world.namespaces.items()}
    for flow in flows_of(world):
        decision = evaluate(policies, names, flow)
        ends = ((flow.source, decision.egress), (flow.destination, decision.ingress))
        verdicts = {side.verdict for end, side in ends if end.address in interfaces}
        asked = None if Verdict.DENY in verdicts else Verdict.REDIRECT in verdicts  # None: it does not pass
        found = maps.asks(flow.source.address, flow.destination.address, flow.protocol, flow.port, interfaces)
        assert (None if found is None else bool(found)) is asked, f"{flow.source} → {flow.destination} {flow}"


def endpoints_of(plan: Plan) -> list[Any]:
    return [ENDPOINT.unpack(value) for value in plan.state.tables[INTERFACES].values()]


def flows_of(world: World) -> Iterator[Flow]:
    """From and to every local pod, at every port that could matter."""
    everyone = parties(world)
    local = [party for party in everyone if (owner := world.addresses.owner(party.address)) and world.is_local(owner)]
    for one, other in product(local, everyone):
        if is_v4(one.address) != is_v4(other.address):
            continue
        for protocol, port in (*product(PROTOCOLS, PORTS), (1 if is_v4(one.address) else 58, 0)):
            yield Flow(one, other, protocol, port)
            if other.entity != HOST:  # what the node itself sends is let through before any map is asked
                yield Flow(other, one, protocol, port)


def parties(world: World) -> list[Party]:
    out = [Party(parse_address(address), entity=HOST) for address in NODE]
    for address in map(parse_address, OUTSIDE):
        inside = any(block.contains(address) for block in world.config.pod_cidrs)
        out.append(Party(address, entity="unmanaged" if inside else "world"))
    for state in world.pods:
        pod = state.pod
        addresses = [a for a in pod.addresses if world.addresses.owner(a) == pod.ref]
        if pod.host_network:
            out += [Party(address, entity="remote-node") for address in addresses]
        else:
            out += [Party(address, facts(pod)) for address in addresses if address != NO_ADDRESS]
    return out
