from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.plan import ids
from agent.plan.blocks import RowMeets, cells, row
from agent.plan.ids import CLASS_ANY, HASHED, Asked, CollisionError, Names, class_id, content_id, rule_id, subject_id
from agent.plan.pools import backends, pool
from policies.address import Prefix, parse_address
from policies.flatten import Claim, flatten, lookup
from policies.l7 import L7, Demands, HttpRule, NamePattern
from policies.model import (
    DEFAULT_DENY,
    NODE,
    NOT_ISOLATED,
    SELF,
    Action,
    ContainerPort,
    Direction,
    LabelSelector,
    NodePeer,
    ObjectRef,
    Operator,
    PortRange,
    RemoteClass,
    Requirement,
    Row,
    RuleRef,
    Subject,
    Verdict,
)

RULES = [RuleRef(ObjectRef("NetworkPolicy", "shop", name), Direction.INGRESS, 0) for name in "abc"]
HTTP = [L7(http=frozenset({HttpRule(path=path), HttpRule(method="GET")})) for path in ("/a", "/b")]
DNS = L7(dns=frozenset({NamePattern("a.example")}))
RANGES = st.builds(
    lambda protocol, first, size: PortRange(protocol, first, min(65535, first + size)),
    st.sampled_from((6, 17)),
    st.sampled_from((0, 1, 79, 80, 1023, 1024, 32768, 65535)),
    st.sampled_from((0, 1, 2, 100, 1000, 65535)),
)
CLAIMS = st.builds(
    Claim,
    st.sampled_from(RULES),
    st.none() | st.lists(RANGES, max_size=3),
    st.sampled_from((Action.ALLOW, Action.ALLOW, Action.ALLOW, Action.DENY)),
    l7=st.none() | st.sampled_from((*HTTP, DNS)),
)
ROWS = st.lists(CLAIMS, max_size=4, unique_by=lambda claim: claim.rule).map(flatten)
ASKED = [(p, n) for p in (1, 6, 17, 132) for n in (0, 1, 2, 79, 80, 81, 180, 1023, 1024, 2024, 32768, 65534, 65535)]


def passing(one: Row, protocol: int, port: int) -> Demands | None:
    """What a proxy asks of what passes; nothing (the empty set) where none does; None: it does not pass."""
    cell = lookup(one, protocol, port)
    if cell is None or cell.verdict is Verdict.DENY:
        return None
    return cell.demands or frozenset()


def met(one: Demands | None, other: Demands | None) -> Demands | None:
    """The empty set passes everything."""
    if one is None or other is None:
        return None
    if not one or not other:
        return one or other
    return one & other if one & other in (one, other) else None


@given(one=ROWS)
def test_a_row_survives_its_entries(one: Row) -> None:
    names = Names()
    assert cells(row(one, names), names) == one


@given(one=ROWS, other=ROWS)
def test_the_meet_allows_what_both_allow(one: Row, other: Row) -> None:
    names = Names()
    blocks = {block.id: block for block in (row(one, names), row(other, names))}
    meets = RowMeets(blocks, names)
    number = meets.meet(row(one, names).id, row(other, names).id)
    both = cells({**blocks, **meets.made, meets.empty.id: meets.empty}[number], names)
    for protocol, port in ASKED:
        wanted = met(passing(one, protocol, port), passing(other, protocol, port))
        assert passing(both, protocol, port) == wanted


def test_a_meet_that_is_one_of_the_rows_is_that_row() -> None:
    names = Names()
    wide, narrow = (row(flatten([Claim(RULES[0], [PortRange(6, 0, last)])]), names) for last in (100, 50))
    meets = RowMeets({wide.id: wide, narrow.id: narrow}, names)
    assert meets.meet(wide.id, narrow.id) == meets.meet(narrow.id, wide.id) == narrow.id
    assert not meets.made


@given(members=st.lists(st.tuples(st.sampled_from(("10.1.0.1", "fd00::1")), st.integers(1, 65535)), max_size=300))
@settings(max_examples=30)
def test_a_pool_keeps_the_order_of_its_backends(members: list[tuple[str, int]]) -> None:
    given_members = [(parse_address(address), port) for address, port in members]
    assert backends(pool(given_members)) == given_members


def test_content_decides_the_number() -> None:
    names = Names()
    one, two = flatten([Claim(RULES[0], [PortRange(6, 80, 80)])]), flatten([Claim(RULES[1], [PortRange(6, 80, 80)])])
    assert row(one, names) == row(one, Names()) != row(two, names)
    assert row(one, names).id != row(two, names).id


def test_plain_classes_and_subjects_are_called_by_their_identity() -> None:
    assert class_id(RemoteClass(300)) == subject_id(Subject(300)) == 300
    port = frozenset({ContainerPort("http", 6, 80)})
    hashed = [
        class_id(RemoteClass(300, frozenset({Prefix.parse("10.0.0.0/8")}))),
        class_id(RemoteClass(300, frozenset(), port)),
        class_id(RemoteClass(301, frozenset(), port)),
        ids.move_id(300, 301),
        ids.move_id(301, 300),
    ]
    assert len(set(hashed)) == len(hashed)
    assert all(number & HASHED and number != CLASS_ANY for number in [*hashed, subject_id(Subject(300, port))])


def test_built_in_rules_have_the_numbers_of_the_abi() -> None:
    assert [rule_id(rule) for rule in (DEFAULT_DENY, NOT_ISOLATED, NODE, SELF)] == [0, 1, 2, 3]
    assert rule_id(ids.unknown_rule(0x1234)) == 0x1234
    assert rule_id(RULES[0]) >= ids.RESERVED


@pytest.mark.parametrize("unlucky", (0, 3, 255, CLASS_ANY))
def test_reserved_numbers_are_hashed_again(monkeypatch: pytest.MonkeyPatch, unlucky: int) -> None:
    digests = [unlucky.to_bytes(8, "big"), (4711).to_bytes(8, "big")]

    class Digest:
        def __init__(self, *_: object, **__: object) -> None:
            self.value = digests.pop(0)

        def digest(self) -> bytes:
            return self.value

    monkeypatch.setattr(ids, "blake2b", Digest)
    assert content_id("row", b"x") == 4711


def test_the_order_of_sets_does_not_matter() -> None:
    """Of equal sets that were filled in another order, which is how they are gone through."""
    paths = [HttpRule(path=f"/{n}") for n in range(64)]
    asked = [Asked(Direction.EGRESS, frozenset({L7(http=frozenset(some)), DNS})) for some in (paths, paths[::-1])]
    assert len({ids.listener_id(one) for one in asked}) == 1
    required = [Requirement(f"k{n}", Operator.EXISTS) for n in range(64)]
    marks = [NodePeer(LabelSelector(frozenset(some))) for some in (required, required[::-1])]
    assert len({class_id(RemoteClass(300, marks=frozenset({mark}))) for mark in marks}) == 1


def test_a_listener_is_of_one_direction_and_one_set_of_demands() -> None:
    asked = [Asked(d, frozenset(some)) for d in Direction for some in (HTTP[:1], HTTP[1:], HTTP, [DNS])]
    assert len({ids.listener_id(one) for one in asked}) == len(asked)


def test_a_redirect_to_what_nobody_knows_is_a_deny() -> None:
    """After a restart: the row in the kernel names a listener of rules that are gone. The new row allows all there,
    and the meet is neither of them."""
    before, names = Names(), Names()
    old = row(flatten([Claim(RULES[0], [PortRange(6, 80, 80)], l7=HTTP[0])]), before)
    names.rule(RULES[0])
    assert [cell.verdict for cell in cells(old, names)] == [Verdict.DENY]
    for claim in (Claim(RULES[1], None), Claim(RULES[1], [PortRange(6, 80, 80)], Action.DENY)):
        new = row(flatten([claim]), names)
        meets = RowMeets({block.id: block for block in (old, new)}, names)
        number = meets.meet(old.id, new.id)
        assert number != old.id
        both = cells({new.id: new, meets.empty.id: meets.empty, **meets.made}[number], before)
        assert passing(both, 6, 80) is None


def test_a_collision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "content_id", lambda kind, content: 4711)
    names = Names()
    names.rule(RULES[0])
    with pytest.raises(CollisionError, match="rename one of them"):
        names.rule(RULES[1])


def test_a_rule_may_come_that_was_not_known() -> None:
    names = Names()
    unknown = names.rule_ref(rule_id(RULES[0]))
    assert names.rule(unknown) == rule_id(RULES[0]) == names.rule(RULES[0])
    assert names.rule_ref(rule_id(RULES[0])) == RULES[0]


def test_names_that_are_not_kept_are_forgotten() -> None:
    names = Names()
    numbers = [names.rule(rule) for rule in RULES]
    names.keep_only({numbers[0]}, set(), set(), set())
    assert names.rule_ref(numbers[0]) == RULES[0]
    assert rule_id(names.rule_ref(numbers[1])) == numbers[1]
    assert names.rule_ref(1) == NOT_ISOLATED
    assert names.rule(RULES[1]) == numbers[1]
