"""One agent a state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Taken(Exception):
    """Another process has the state directory; the message says what to do."""


def lock(state_dir: Path) -> int:
    """Take the state directory for this process. Raises Taken.

    The lock is the kernel's and goes with the process, however it ends; the file holds the owner's pid for people.
    Keep the descriptor open. Children do not inherit it.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
        os.close(descriptor)
        raise Taken(f"an agent (pid {owner}) runs on {state_dir}: stop it, or choose another --state-dir") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
