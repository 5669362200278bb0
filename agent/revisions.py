"""How far the agent has come with what is written."""

from __future__ import annotations

import time

from agent.status import Revision


class Revisions:
    """`desired` counts the batches read, `taken` those taken by the World; `realized` is the newest of which everything
    is in the kernel. `behind_since`: since when (CLOCK_MONOTONIC, seconds) not all that is desired is realized; None:
    all is."""

    def __init__(self) -> None:
        self.desired = 0
        self.taken = 0
        self.realized = 0
        self.behind_since: float | None = time.monotonic()
        self._promised = 0

    def read(self) -> None:
        """One more batch is desired."""
        self.desired += 1
        self.behind_since = self.behind_since or time.monotonic()

    def took(self, taken: int, *, whole: bool) -> None:
        """So many batches are taken; `whole`: all that there is of them is in the kernel."""
        self.taken = taken
        if whole:
            self.realized = taken
            if self.realized == self.desired:
                self.behind_since = None

    def promise(self) -> None:
        """There is more to read: should it be a change, it is desired already."""
        self._promised = self.desired + 1

    @property
    def broken_promise(self) -> bool:
        """Whether what was promised was no change: what was desired once stays so, so it has to be read as nothing."""
        return self._promised > self.desired

    def shown(self) -> Revision:
        return Revision(max(self.desired, self._promised), self.realized)
