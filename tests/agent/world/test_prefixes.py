from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.world.claims import Claims
from agent.world.prefixes import PrefixSet, SortedPrefixes
from policies.address import Prefix
from policies.model import ObjectRef

NETWORKS = ("0.0.0.0", "10.0.0.0", "10.128.0.0", "10.0.0.5", "::", "fd00::", "::ffff:0:0", "ff::1")
PREFIXES = st.builds(
    lambda network, bits: Prefix.parse(f"{network}/{bits if ':' in network else bits // 4}"),
    st.sampled_from(NETWORKS),
    st.sampled_from((0, 8, 32, 36, 64, 96, 104, 124, 128)),
).filter(lambda prefix: prefix.bits <= 128)


@given(members=st.sets(PREFIXES), asked=PREFIXES, removed=st.sets(PREFIXES))
def test_covering_and_inside_are_what_covers_says(members: set[Prefix], asked: Prefix, removed: set[Prefix]) -> None:
    around, within = PrefixSet(), SortedPrefixes()
    for prefix in sorted(members):
        around.add(prefix)
        within.add(prefix)
    for prefix in sorted(members & removed):
        around.remove(prefix)
        within.remove(prefix)
    left = members - removed
    assert around.covering(asked) == {p for p in left if p.covers(asked)}
    assert set(within.inside(asked)) == {p for p in left if asked.covers(p)}
    assert all((prefix in around) is (prefix in left) for prefix in members)


CLAIMS = st.tuples(
    st.sampled_from((b"x", b"y")), st.integers(0, 2), st.sampled_from([ObjectRef("Pod", "n", c) for c in "abc"])
)


@given(claims=st.lists(CLAIMS, unique=True), data=st.data())
def test_the_smallest_claim_wins_whoever_came_first(
    claims: list[tuple[bytes, int, ObjectRef]], data: st.DataObject
) -> None:
    book = Claims()
    for claim in claims:
        book.add(*claim)
    gone = data.draw(st.lists(st.sampled_from(claims), unique=True)) if claims else []
    for claim in gone:
        book.remove(*claim)
    left = [claim for claim in claims if claim not in gone]
    for key in (b"x", b"y"):
        wanting = sorted((rank, ref) for wanted, rank, ref in left if wanted == key)
        assert book.winner(key) == (wanting[0][1] if wanting else None)
        assert sorted(claim for lost, claim, _ in book.lost() if lost == key) == wanting[1:]
