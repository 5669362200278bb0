"""Wall-clock time of events that carry CLOCK_MONOTONIC. Pure: the caller reads the clocks."""

from __future__ import annotations

import functools
import time
from bisect import bisect_right

STEP_NS = 5_000_000  # offsets that differ by less are jitter and slew
STEPS = 64


class WallClock:
    """Knows the offset between the two clocks, and those before the clock was stepped, for events of that time."""

    def __init__(self, monotonic_ns: int, wall_ns: int) -> None:
        self._since = [monotonic_ns]
        self._offset = [wall_ns - monotonic_ns]

    def observe(self, monotonic_ns: int, wall_ns: int) -> None:
        """Feed a reading of both clocks, taken together."""
        offset = wall_ns - monotonic_ns
        if abs(offset - self._offset[-1]) < STEP_NS:
            return
        self._since.append(monotonic_ns)
        self._offset.append(offset)
        if len(self._since) > STEPS:
            del self._since[0], self._offset[0]

    def wall_ns(self, monotonic_ns: int) -> int:
        index = bisect_right(self._since, monotonic_ns) - 1
        return monotonic_ns + self._offset[max(index, 0)]

    def monotonic_ns(self, wall_ns: int) -> int:
        """Of a moment not long ago."""
        return wall_ns - self._offset[-1]

    def text(self, monotonic_ns: int) -> str:
        """RFC 3339 in UTC with nanoseconds."""
        return rfc3339(self.wall_ns(monotonic_ns))


def rfc3339(wall_ns: int) -> str:
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds:09d}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
