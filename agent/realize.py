"""The plan brought into the kernel, and what is done where a map has no room.

As long as all goes in, the maps hold what the plan says and each transition is the next one. Where a map is full, what
is in force stays in force, and everything that still finds room goes in piece by piece (agent.plan.pieces). What does
not is tried again whenever something changed, and after a while.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from agent import log as logs
from agent import memory
from agent.datapath.apply import Failure, apply, read_state
from agent.datapath.maps import Map
from agent.history import History
from agent.plan.pieces import pieces
from agent.plan.plan import Plan
from agent.plan.state import Changes, State
from agent.plan.step import Transition
from agent.plan.transition import reconcile, transition
from agent.world.dirty import Dirty
from agent.world.world import World

RETRY_S = (0.5, 30.0)

MANY_WRITES = 20_000
"""What so many writes are made of is much, and stays."""

log = logs.get("realize")


class Realizer:
    """`full`: writes refused for want of room, by map. `missing`: pieces of the plan that are not in the kernel."""

    def __init__(self, maps: Mapping[str, Map], plan: Plan) -> None:
        self.full: Counter[str] = Counter()
        self.missing = 0
        self.failure: Failure | None = None
        self._maps = maps
        self.plan = plan
        self.history = History()
        self._retry_at_s = 0.0
        self._delay_s = RETRY_S[0]

    @property
    def retry_in_s(self) -> float | None:
        """When what is missing should be tried again; None where nothing is."""
        return max(0.0, self._retry_at_s - time.monotonic()) if self.missing else None

    def start(self, world: World, save: Callable[[], None]) -> int:
        """Take the maps, whatever they hold, to the plan of the whole world. Returns the number of writes."""
        self.plan.take_over(self.plan.update(world, world.take_dirty()))
        save()
        writes = self.catch_up()
        memory.keep()
        return writes

    def compile(self, world: World, dirty: Dirty) -> Changes:
        """What is to be otherwise in the kernel: for `realize`, before anything else is compiled. Raises
        plan.ids.CollisionError."""
        return self.plan.update(world, dirty)

    def realize(self, changes: Changes, save: Callable[[], None]) -> int:
        """Bring changes into the kernel. Returns the number of writes.

        `save` is called when all numbers are given and none is in the kernel yet.
        """
        if not changes:
            return 0
        self.history.note(self.plan.state, changes)
        save()
        steps = self.plan.advance(changes)
        done = not self.missing and self._carry_out(steps) is None
        writes = steps.writes if done else self.catch_up()
        if writes > MANY_WRITES:
            memory.keep()
        return writes

    def catch_up(self) -> int:
        """From what the maps hold, as far as there is room. Returns the number of writes."""
        kernel = State.read(read_state(self._maps))
        steps = reconcile(kernel, self.plan.state, self.plan.names)
        if self._carry_out(steps) is None:
            if self.missing:
                log.info("there is room again: all of the plan is in force")
            self.missing, self.failure, self._delay_s = 0, None, RETRY_S[0]
            return steps.writes
        written = self._in_pieces()
        self._retry_at_s = time.monotonic() + self._delay_s
        self._delay_s = min(self._delay_s * 2, RETRY_S[1])
        log.error("not all of the plan is in force", missing=self.missing, reason=str(self.failure))
        return written

    def _in_pieces(self) -> int:
        held = read_state(self._maps)
        kernel = State.read(held)
        closed: set[str] = set()
        missing = written = 0
        for piece in pieces(kernel, self.plan.state):
            steps = transition(kernel, piece, self.plan.names)
            if any(_adds(steps, name, held) for name in closed):
                missing += 1
            elif (failure := self._carry_out(steps)) is None:
                kernel.advance(piece)
                written += steps.writes
            else:
                missing += 1
                closed.add(failure.map)
                held = read_state(self._maps)
                kernel = State.read(held)
        self.missing = missing
        return written

    def _carry_out(self, steps: Transition) -> Failure | None:
        outcome = apply(self._maps, steps.steps, raise_epoch=steps.raises_epoch)
        if outcome.failure is None:
            apply(self._maps, steps.cleanup, raise_epoch=False)
            return None
        self.failure = outcome.failure
        self.full[outcome.failure.map] += outcome.failure.wanted - outcome.failure.written
        return outcome.failure


def _adds(steps: Transition, name: str, held: Mapping[str, Mapping[bytes, bytes]]) -> bool:
    """Whether entries are added to a map. What is written meanwhile is not in `held`: then the kernel says so."""
    return any(step.map == name and any(key not in held[name] for key in step.updates) for step in steps.steps)
