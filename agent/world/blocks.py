"""Which node has which block of pod addresses, where several claim one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent.world.prefixes import PrefixSet, SortedPrefixes
from policies.address import Prefix

# Who is believed, the smallest first: what this node was told of itself, Node objects, what nodes say themselves.
OWN, GIVEN, SAID = range(3)

Claim = tuple[int, str]
"""Rank and node."""


class BlockBook:
    """Blocks of several nodes that overlap are one node's: of the better rank; of one rank, whose claim came first.
    So no node takes over addresses by claiming a block around or inside that of another."""

    def __init__(self) -> None:
        self._claims: dict[Claim, tuple[Prefix, ...]] = {}  # in the order in which they came
        self._ranks: dict[Prefix, Claim] = {}  # of blocks that are somebody's, their best claim
        self._set = PrefixSet()
        self._sorted = SortedPrefixes()
        self._refused: dict[tuple[Claim, Prefix], str] = {}

    def owner(self, address: bytes) -> str | None:
        """The node whose pods have such addresses. Blocks around one another are one node's, whichever it is."""
        for covering in self._set.covering(Prefix.host(address)):
            return self._ranks[covering][1]
        return None

    def has_claims(self, node: str) -> bool:
        return any((rank, node) in self._claims for rank in (OWN, GIVEN, SAID))

    def of(self, node: str, ranks: Iterable[int] = (OWN, GIVEN, SAID)) -> tuple[Prefix, ...]:
        """Blocks that are this node's; by claims of some ranks."""
        claimed = dict.fromkeys(block for rank in ranks for block in self._claims.get((rank, node), ()))
        return tuple(block for block in claimed if block in self._ranks and self._ranks[block][1] == node)

    def refused(self) -> Mapping[tuple[Claim, Prefix], str]:
        """Claims that are not believed, and the node that has the addresses."""
        return self._refused

    def claim(self, rank: int, node: str, blocks: tuple[Prefix, ...]) -> dict[Prefix, tuple[str | None, str | None]]:
        """All that a node claims by one rank. Returns blocks that are another's now: (whose they were, are)."""
        claim = (rank, node)
        old = self._claims.get(claim, ())
        if old == blocks:
            return {}
        came = [block for block in blocks if block not in old]
        if old and blocks:
            self._claims[claim] = (*(block for block in old if block in blocks), *came)
        elif blocks:
            self._claims[claim] = blocks
        else:
            del self._claims[claim]
        went = [block for block in old if block not in blocks]
        if not self._refused and not went and not any(self._meets(node, block) for block in came):
            return {block: change for block in came if (change := self._take(block, claim)) is not None}
        return self._settle()

    # ---- inside

    def _meets(self, node: str, block: Prefix) -> bool:
        """Whether a block has addresses of another node's."""
        return any(self._ranks[other][1] != node for other in self._overlapping(block))

    def _overlapping(self, block: Prefix) -> Iterator[Prefix]:
        yield from self._set.covering(block)
        yield from self._sorted.inside(block)

    def _take(self, block: Prefix, claim: Claim) -> tuple[str | None, str | None] | None:
        if (known := self._ranks.get(block)) is not None:
            self._ranks[block] = min(known, claim)
            return None
        self._ranks[block] = claim
        self._set.add(block)
        self._sorted.add(block)
        return None, claim[1]

    def _settle(self) -> dict[Prefix, tuple[str | None, str | None]]:
        """From scratch: nodes come and go rarely, and claims that meet are rarer."""
        before = {block: claim[1] for block, claim in self._ranks.items()}
        self._ranks, self._set, self._sorted, self._refused = {}, PrefixSet(), SortedPrefixes(), {}
        for claim, blocks in sorted(self._claims.items(), key=lambda item: item[0][0]):  # stable: else as they came
            for block in blocks:
                rival = next((o for o in self._overlapping(block) if self._ranks[o][1] != claim[1]), None)
                if rival is None:
                    self._take(block, claim)
                else:
                    self._refused[claim, block] = self._ranks[rival][1]
        after = {block: claim[1] for block, claim in self._ranks.items()}
        return {
            block: (before.get(block), after.get(block))
            for block in before.keys() | after.keys()
            if before.get(block) != after.get(block)
        }
