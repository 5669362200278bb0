"""Marks and demands in a plan: in words, and rows of names that no address has yet."""

from __future__ import annotations

from typing import Any

import pytest
from planned import compile_dirty
from worlds import CONFIG, ORIGIN

from agent.objects import Change, Interface, Pod
from agent.plan import plan as plans
from agent.plan.describe import describe
from agent.plan.ids import class_id
from agent.plan.plan import Plan
from agent.plan.state import IPCACHE
from agent.sources.slices import derive
from agent.world.world import World
from policies.address import parse_address
from policies.l7 import L7, HttpRule, NamePattern
from policies.model import (
    CidrBlock,
    Direction,
    LabelSelector,
    NodePeer,
    ObjectRef,
    Peer,
    PodSelector,
    Policy,
    PortRange,
    Rule,
    RuleRef,
)

POD = ObjectRef("Pod", "shop", "web")
WILD = NamePattern(pattern="*.example")
HTTPS = (PortRange(6, 443, 443),)


def policy(name: str, *peers: Peer, l7: L7 | None = None) -> Policy:
    ref = ObjectRef("CiliumNetworkPolicy", "shop", name)
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), peers, HTTPS, l7=l7)
    subject = PodSelector(LabelSelector(), namespace="shop")
    return Policy(ref, ORIGIN, subject, frozenset({Direction.EGRESS}), (rule,))


def planned(*policies: Policy) -> tuple[World, Plan]:
    world, plan = World(CONFIG, derive), Plan()
    world.apply(Change(POD, Pod(POD, ORIGIN, {}, addresses=(parse_address("10.1.0.5"),))))
    world.set_interface(POD, Interface(7, "v", bytes(6), bytes(6), ""))
    for one in policies:
        world.apply(Change(one.ref, one))
    compile_dirty(world, plan)
    return world, plan


def egress(world: World, plan: Plan) -> Any:
    (subject,) = describe(plan, world)["policy"].values()
    return subject["egress"]


def test_marks_and_demands_in_words() -> None:
    http = L7(http=frozenset({HttpRule(path="/a")}))
    world, plan = planned(policy("names", WILD), policy("nodes", NodePeer(LabelSelector()), l7=http))
    rows = egress(world, plan)
    assert rows["host among all nodes"] == [
        "redirect TCP 443 by CiliumNetworkPolicy shop/nodes egress[0], which asks for HTTP",
    ]
    assert rows["world-ipv4 among addresses of *.example"] == [
        "allow TCP 443 by CiliumNetworkPolicy shop/names egress[0]",
    ]


def test_rows_of_names_are_there_before_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the DNS proxy's number for them is the plan's; also when names of numbers are forgotten."""
    monkeypatch.setattr(plans, "NAMES_KEPT", 0)
    world, plan = planned(policy("names", WILD))
    plan._names_allowed = 0
    told = {class_id(remote) for remote in world.name_classes().classes}
    assert len(told) == 2
    rows = [remote for rows in plan.state.policy.values() for remote in rows]
    assert told <= set(rows)
    assert told.isdisjoint(plan.state.uses.classes)
    world.set_names("a.example", frozenset({parse_address("198.51.100.1"), parse_address("198.51.100.2")}))
    transition = compile_dirty(world, plan)
    assert {step.map for step in transition.steps} == {IPCACHE}
    assert sum(len(step.updates) for step in transition.steps) == 2
    world.apply(Change(policy("p").ref, policy("p", CidrBlock(CONFIG.pod_cidrs[0]))))
    compile_dirty(world, plan)
    assert "world-ipv6 among addresses of *.example" in egress(world, plan)
