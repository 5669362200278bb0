"""A socket address for a path of any length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUN_PATH_BYTES = 107  # unix(7): sun_path holds 108 bytes, one of them the closing zero


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """The path, or where it is too long a short one by way of its open folder, valid inside the with block."""
    if len(os.fsencode(path)) <= SUN_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
