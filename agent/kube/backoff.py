"""How long to wait before trying again: ever longer, never in step with the other nodes."""

from __future__ import annotations

import random


class Backoff:
    """Delays of `first_s`, twice that, … up to `most_s`, of which a random part, at least half, is waited."""

    def __init__(self, first_s: float = 0.5, most_s: float = 30.0, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0
        self._rng = rng or random.Random()  # noqa: S311  # nobody is kept from guessing it

    def reset(self) -> None:
        """It went well."""
        self._failures = 0

    def delay_s(self, retry_after_s: float = 0.0) -> float:
        """After one more failure; not before the time the server asks for."""
        delay_s: float = min(self._most_s, self._first_s * 2 ** min(self._failures, 16))
        self._failures += 1
        return max(delay_s * self._rng.uniform(0.5, 1.0), retry_after_s * self._rng.uniform(1.0, 1.25))
