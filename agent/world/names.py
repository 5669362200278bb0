"""Names of addresses outside the cluster, as DNS has answered, and which patterns that rules ask for they match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

import msgspec

from policies.address import Prefix
from policies.l7 import NamePattern
from policies.model import RemoteClass
from policies.multimap import MultiMap
from policies.names import Names, canonical, matches

Patterns = frozenset[NamePattern]
NONE: Patterns = frozenset()
NOWHERE: frozenset[bytes] = frozenset()


class NameClasses(msgspec.Struct, frozen=True):
    """What the DNS proxy must know to classify an address by its names while the agent is away.

    An address outside all of `inside` whose names match some of `patterns` has the class of identity world (of its
    family) with these marks and those of `prefixes` that cover it: if that is one of `classes` its rows are in the
    kernel, under its number (agent.plan.ids.class_id). Else nobody knows what it may. `inside`: where names mean
    nothing: blocks of pods and services, nodes, and addresses that rules know by more than their names.
    """

    patterns: frozenset[NamePattern]
    prefixes: frozenset[Prefix]
    inside: frozenset[Prefix]
    classes: frozenset[RemoteClass]


class NameBook:
    """Names have addresses, patterns are in use; both come and go in any order."""

    def __init__(self) -> None:
        self._patterns = Names(())
        self._addresses: dict[str, frozenset[bytes]] = {}
        self._at: MultiMap[bytes, str] = MultiMap()
        self._matched: dict[str, Patterns] = {}  # of names with addresses
        self._of_names: Counter[Patterns] = Counter()
        self._of_patterns: frozenset[Patterns] = frozenset()
        self._combinations: frozenset[Patterns] | None = frozenset()

    @property
    def patterns(self) -> Patterns:
        return self._patterns.patterns

    def combinations(self) -> frozenset[Patterns]:
        """Sets of patterns that a name may match: those of the names there are, and for each pattern that of a name
        which it is sure to match. The same object until another name or pattern changes it."""
        if self._combinations is None:
            self._combinations = self._of_patterns.union(self._of_names) - {NONE}
        return self._combinations

    def matching(self, address: bytes) -> Patterns:
        """Patterns that some name of the address matches."""
        names = self._at.get(address)
        return NONE.union(*map(self._matched.__getitem__, names)) if names else NONE

    def addresses(self) -> Iterator[bytes]:
        return iter(self._at)

    # ---- changes. Each returns the addresses that may match other patterns now.

    def set(self, name: str, addresses: frozenset[bytes]) -> Set[bytes]:
        """The addresses a name has now."""
        name = canonical(name)
        old = self._addresses.get(name, NOWHERE)
        for address in addresses - old:
            self._at.put(address, name)
        for address in old - addresses:
            self._at.take(address, name)
        if addresses:
            self._addresses[name] = addresses
        else:
            self._addresses.pop(name, None)
        if bool(old) is not bool(addresses):
            self._match(name, self._patterns.matching(name) if addresses else None)
        return old ^ addresses

    def use(self, changed: Set[NamePattern], in_use: Set[NamePattern]) -> Set[bytes]:
        """These patterns came into use or went out of it."""
        if not changed:
            return NOWHERE
        new, gone = Names(changed & in_use), changed - in_use
        self._patterns = Names((self._patterns.patterns - gone) | new.patterns)
        touched: set[bytes] = set()
        for name, addresses in self._addresses.items():
            before = self._matched[name]
            after = (before - gone) | new.matching(name)
            if after != before:
                self._match(name, after)
                touched |= addresses
        self._of_patterns = frozenset(self._sure())
        self._combinations = None
        return touched

    # ---- inside

    def _sure(self) -> Iterator[Patterns]:
        """Of each pattern: what a name that it is sure to match, matches at least."""
        every = frozenset(pattern for pattern in self.patterns if matches(pattern, ""))
        for pattern in self.patterns:
            yield self._patterns.matching(pattern.exact) if pattern.exact else every | {pattern}

    def _match(self, name: str, patterns: Patterns | None) -> None:
        """None: the name is gone."""
        if (old := self._matched.pop(name, None)) is not None:
            self._of_names[old] -= 1
            if not self._of_names[old]:
                del self._of_names[old]
                self._combinations = None
        if patterns is not None:
            self._matched[name] = patterns
            self._of_names[patterns] += 1
            if self._of_names[patterns] == 1:
                self._combinations = None
