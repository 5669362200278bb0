"""What every source of objects gives the agent, whatever it reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from agent.objects import Change, Problem


class Batch(msgspec.Struct, frozen=True):
    """`changes` in the order they should take effect; `problems` are all there are now.

    received_ns: CLOCK_MONOTONIC, when the events that led to it were seen.
    """

    changes: list[Change]
    problems: list[Problem]
    received_ns: int


class Source(Protocol):
    """Call `initial`, then iterate over `watch`, on one event loop; `close` at the end."""

    async def initial(self) -> Batch:
        """Everything there is now."""

    def watch(self) -> AsyncIterator[Batch]:
        """A batch for each burst of events that changes something."""

    def unread(self) -> bool:
        """Whether something may have changed that was not read yet."""

    def close(self) -> None: ...
