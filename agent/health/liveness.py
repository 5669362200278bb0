"""Whether the agent keeps up, as /healthz and /livez tell it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from agent.services.health import BEHIND_S, Answer, Health, agent_answer


class Liveness:
    """`behind_since`: since when (CLOCK_MONOTONIC, seconds) something desired is not in the kernel; None: all is.

    A start counts as being behind. `leaving`: whether the node is about to be removed.
    """

    def __init__(self, behind_since: Callable[[], float | None], leaving: Callable[[], bool]) -> None:
        self.stopping = False
        self._behind_since = behind_since
        self._leaving = leaving

    def in_force(self) -> bool:
        return not self.stopping and self._behind_s() < BEHIND_S

    def answer(self, path: str) -> Answer:
        now = time.time()
        health = Health(self.in_force(), _rfc3339(now - self._behind_s()), _rfc3339(now), not self._leaving())
        return agent_answer(path, health)

    def _behind_s(self) -> float:
        since = self._behind_since()
        return 0.0 if since is None else time.monotonic() - since


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
