"""The union of all parts: what the node's maps are to hold, kept up to date part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.plan import parts
from agent.plan.blocks import ROWS, Block, rules_of
from agent.plan.ids import CLASS_ANY, CollisionError, Names
from agent.plan.listeners import listeners_of
from agent.plan.parts import SERVICE_KEY, Part, PolicyPart
from agent.plan.state import IPCACHE, SERVICES, Changes, Side, State
from agent.plan.step import Transition
from agent.plan.transition import transition
from agent.world.dirty import Dirty
from agent.world.world import World
from policies.model import ObjectRef, RuleRef

NAMES_KEPT = 16384
"""So many names that are no longer in use are kept: flows that began earlier still refer to them."""


class Plan:
    """`state`: the contents. `names`: what its numbers stand for."""

    def __init__(self) -> None:
        self.state = State()
        self.names = Names()
        self._names_allowed = NAMES_KEPT
        self._keys: dict[ObjectRef, tuple[tuple[str, bytes], ...]] = {}  # entries of endpoints
        self._frontends: dict[ObjectRef, bytes] = {}  # of services, their keys joined: there may be 50,000

    def rule(self, number: int) -> RuleRef:
        """The rule a flow names as deciding."""
        return self.names.rule_ref(number)

    def update(self, world: World, dirty: Dirty) -> Changes:
        """Compile what is dirty; what differs from the plan. Nothing is taken over yet: see `advance`."""
        changes = Changes()
        compiled: dict[ObjectRef, Part] = {}
        for ref in dirty.endpoints:
            compiled[ref] = parts.endpoint(world, ref, self.names)
        for ref in dirty.services:
            compiled[ref] = parts.service(world, ref)
        self._stage(compiled, changes)
        known = self.state.tables[IPCACHE]
        for prefix in dirty.prefixes:
            key, value = parts.prefix_key(prefix), parts.prefix(world, prefix, self.names)
            if known.get(key) != value:
                changes.tables[IPCACHE][key] = value
        compiler = parts.PolicyCompiler(world, self.names)
        for subject, classes in dirty.policies.items():
            self._stage_policy(compiler.compile(subject, classes), changes)
        return changes

    def advance(self, changes: Changes) -> Transition:
        """Take changes over, and how to bring the maps there."""
        uses = self.state.use_changes(changes)
        result = transition(self.state, changes, self.names, uses)
        self.state.advance(changes, uses)
        self._forget_names()
        return result

    def take_over(self, changes: Changes) -> None:
        """As `advance`, where the maps are brought there otherwise."""
        self.state.advance(changes)
        self._forget_names()

    def _stage(self, compiled: dict[ObjectRef, Part], changes: Changes) -> None:
        # What one part gives up another may take over in the same step: first all removals, then all entries.
        for ref, part in compiled.items():
            for name, key in self._taken(ref):
                changes.tables[name][key] = None
            if part.entries and part.entries[0][0] == SERVICES:
                self._frontends[ref] = b"".join([key for _, key, _ in part.entries])
            elif part.entries:
                self._keys[ref] = tuple((name, key) for name, key, _ in part.entries)
        for part in compiled.values():
            for name, key, value in part.entries:
                if self.state.tables[name].get(key) == value:
                    changes.tables[name].pop(key, None)
                else:
                    changes.tables[name][key] = value
            self._note(part.blocks, changes)

    def _taken(self, ref: ObjectRef) -> Iterator[tuple[str, bytes]]:
        """The entries a part had, forgotten."""
        yield from self._keys.pop(ref, ())
        joined = self._frontends.pop(ref, b"")
        for at in range(0, len(joined), SERVICE_KEY.size):
            yield SERVICES, joined[at : at + SERVICE_KEY.size]

    def _stage_policy(self, part: PolicyPart, changes: Changes) -> None:
        self._note(part.blocks, changes)
        for direction in parts.DIRECTIONS.values():
            side: Side = (part.subject, direction)
            known, rows = self.state.policy.get(side, {}), part.rows.get(side, {})
            known_row = known.get
            differing: dict[int, int | None] = {remote: row for remote, row in rows.items() if known_row(remote) != row}
            stale = known.keys() - rows.keys() if part.classes is None else (part.classes - rows.keys()) & known.keys()
            differing.update(dict.fromkeys(stale))
            if differing:
                changes.policy[side] = differing

    def _note(self, blocks: Iterable[Block], changes: Changes) -> None:
        for block in blocks:
            known = self.state.blocks[block.map].get(block.id) or changes.blocks[block.map].get(block.id)
            if known is None:
                changes.blocks[block.map][block.id] = block
            elif known.data != block.data:
                raise CollisionError(f"two contents of {block.map} have the same number {block.id:#x}: rename a rule")

    def _forget_names(self) -> None:
        if len(self.names) < self._names_allowed:
            return
        rows = self.state.blocks[ROWS].values()
        rules = {number for block in rows for number in rules_of(block)}
        listeners = {number for block in rows for number in listeners_of(block)}
        # Classes of names may have rows before any address has them.
        classes = {remote for judged in self.state.policy.values() for remote in judged} - {CLASS_ANY}
        self.names.keep_only(rules, classes | self.state.uses.classes.keys(), set(self.state.uses.subjects), listeners)
        self._names_allowed = NAMES_KEPT + 2 * len(self.names)
