"""What a helper's container is to run, as the agent tells it: a file that is there as long as the helper is wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.privileges import ROOT
from agent.supervisor import is_left, listener_pid

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STOP_S = 10.0
"""How long a container has for ending what it runs."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`boot`: the machine's, for pins do not outlive it. `needs`: paths that must be there. `socket`: where it will
    listen. `reduced`: with as few privileges as the proxies need, as `user`. `folder`: where it is started."""

    boot: str
    command: tuple[str, ...]
    socket: str
    needs: tuple[str, ...] = ()
    reduced: bool = False
    user: int = ROOT
    folder: str = "/"


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def write(path: Path, order: Order) -> None:
    """Whole, by renaming; for root and the group of the helper's user."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if order.user != ROOT:
            os.fchown(descriptor, ROOT, order.user)
            os.fchmod(descriptor, 0o640)
        file.write(msgspec.json.encode(order))
    fresh.rename(path)


def read(path: Path) -> Order | None:
    """None where there is none, or one of before the machine's start. Raises ValueError where it cannot be read."""
    try:
        order = msgspec.json.decode(path.read_bytes(), type=Order)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is of another version of Gatehouse ({error})") from None
    return order if order.boot == boot_id() else None


def withdraw(path: Path) -> bool:
    """Take an order back, and wait until its container has ended what it ran; whether that was there and has ended.
    Blocks."""
    order = None
    with suppress(ValueError):
        order = read(path)
    runs = order is not None and listener_pid(Path(order.socket)) != 0
    path.unlink(missing_ok=True)
    return order is not None and runs and is_left(Path(order.socket), STOP_S)


def missing(needs: Sequence[str]) -> str:
    """The first that is not there."""
    return next((path for path in needs if not os.path.lexists(path)), "")
