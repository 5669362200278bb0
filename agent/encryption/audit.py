"""What was done to a node's keys, for those who have to account for it: one JSON object a line."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec


class AuditFile:
    """`path`: made 0600; lines are only ever added. Each is on the disk when `record` returns."""

    def __init__(self, path: Path, node: str) -> None:
        self._path = path
        self._node = node

    def record(self, event: str, **facts: str) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = msgspec.json.encode({"time": time, "node": self._node, "event": event, **facts}) + b"\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
