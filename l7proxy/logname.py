"""What the access log of a listener is called. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec


class LogName(msgspec.Struct, frozen=True):
    """What the stream of a listener's log is called: its number and whose rules it asks, `00c0ffee00c0ffee/egress`."""

    listener: int = 0
    direction: Literal["", "egress", "ingress"] = ""

    def __str__(self) -> str:
        return f"{self.listener:016x}/{self.direction}"

    @classmethod
    def parse(cls, text: str) -> LogName:
        """A name that is none is that of an unknown listener."""
        number, _, direction = text.partition("/")
        try:
            listener = int(number, 16) if len(number) == 16 else 0
        except ValueError:
            listener = 0
        return cls(listener, "egress" if direction == "egress" else "ingress" if direction == "ingress" else "")
