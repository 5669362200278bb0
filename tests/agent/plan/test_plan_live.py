"""What the plan says of flows that began at a listener by rules of an earlier day."""

from __future__ import annotations

from agent.datapath import abi
from agent.plan.blocks import ROWS, row
from agent.plan.ids import Asked, Names
from agent.plan.live import LiveFlow, Otherwise, cannot_go_on, judged_otherwise, out_of_date
from agent.plan.state import ENDPOINT, ENDPOINTS, IPCACHE, IPCACHE_KEY, IPCACHE_VALUE, Changes, State
from policies.address import parse_address
from policies.l7 import L7, Demands, HttpRule, NamePattern
from policies.model import Cell, Direction, ObjectRef, RuleRef, Verdict

RULE = RuleRef(ObjectRef("CiliumNetworkPolicy", "blue", "p"), Direction.EGRESS, 0)
GET, POST = (frozenset({L7(http=frozenset({HttpRule(method=method)}))}) for method in ("GET", "POST"))
POD, REMOTE = parse_address("10.244.0.5"), parse_address("198.51.100.9")
SUBJECT, CLASS = 300, 400
EGRESS = abi.load().constants.DIRECTION_EGRESS


class World:
    """One pod, one remote, one row for them."""

    def __init__(self) -> None:
        self.names, self.state = Names(), State()
        self.listener = self.names.listener(Asked(Direction.EGRESS, GET))
        self.flow = LiveFlow(b"", self.listener, POD, REMOTE, 6, 80)
        changes = Changes()
        empty = ENDPOINT.unpack(bytes(ENDPOINT.size))._asdict()
        changes.tables[ENDPOINTS][POD] = ENDPOINT.pack(**empty | {"subject": SUBJECT, "class_v4": 301})
        changes.tables[IPCACHE][IPCACHE_KEY.pack_values(128, REMOTE)] = IPCACHE_VALUE.pack_values(CLASS, 2)
        self.state.advance(changes)

    def judge(self, verdict: Verdict | None, demands: Demands | None = None) -> list[Demands | None]:
        """Its flow when it has this cell, or (None) no row at all."""
        changes = Changes()
        if verdict is None:
            changes.policy[SUBJECT, EGRESS] = {CLASS: None}
        else:
            block = row((Cell(6, 80, 80, verdict, RULE, demands),), self.names)
            changes.blocks[ROWS][block.id] = block
            changes.policy[SUBJECT, EGRESS] = {CLASS: block.id}
        self.state.advance(changes)
        found = judged_otherwise([self.flow], self.state, self.names, {})
        return [one.demands for one in found.get(self.listener, ())]


def test_a_flow_is_judged_otherwise_where_its_listener_says_something_else() -> None:
    world = World()
    assert world.judge(Verdict.REDIRECT, GET) == []
    assert world.judge(Verdict.REDIRECT, POST) == [POST]
    assert world.judge(Verdict.ALLOW) == [None], "nothing is asked of it"


def test_a_flow_that_is_denied_may_ask_for_nothing() -> None:
    """The datapath stops its packets; should they pass again by other rules, these must be known to have changed."""
    world = World()
    assert world.judge(Verdict.DENY) == [frozenset()]
    assert world.judge(None) == [frozenset()]


def test_a_listener_that_lingers_is_known_though_its_name_was_forgotten() -> None:
    world = World()
    world.judge(Verdict.REDIRECT, POST)
    world.names.keep_only(set(), set(), set(), {world.names.listener(Asked(Direction.EGRESS, POST))})
    assert judged_otherwise([world.flow], world.state, world.names, {}) == {}
    lingering = {world.listener: Asked(Direction.EGRESS, GET)}
    assert world.listener in judged_otherwise([world.flow], world.state, world.names, lingering)


def test_connections_that_are_looked_at_once_cannot_go_on_by_other_rules() -> None:
    world = World()
    between = Otherwise(POD, REMOTE, 80, None)
    assert cannot_go_on([world.flow], {world.listener: (between,)}, world.names) == []
    named = frozenset({L7(server_names=frozenset({NamePattern(exact="a.example")}))})
    listener = world.names.listener(Asked(Direction.EGRESS, named))
    flow = LiveFlow(b"", listener, POD, REMOTE, 6, 80)
    assert cannot_go_on([flow], {listener: (between,)}, world.names) == [flow]
    assert cannot_go_on([flow], {listener: (Otherwise(POD, REMOTE, 81, None),)}, world.names) == []


def test_flows_of_listeners_nobody_knows_are_out_of_date() -> None:
    world = World()
    unknown = LiveFlow(b"", 77, POD, REMOTE, 6, 80)
    assert unknown in out_of_date([unknown], world.state, world.names)
