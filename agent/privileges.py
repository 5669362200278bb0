"""With how little the proxies run.

What they do that others may not is to speak with addresses of others (IP_TRANSPARENT), to mark what they send (SO_MARK;
with CAP_NET_RAW since Linux 5.17), and, of the DNS proxy, to send whole packets: CAP_NET_RAW allows all three. Nothing
here needs CAP_NET_ADMIN, by which a proxy that was taken over could take the programs off the pods' interfaces, nor
CAP_BPF: since Linux 6.0 who can open a pinned map may use it. No port below 1024 is asked for: upstream sockets have
ports of the kernel's choice, and answers from port 53 are whole packets, or go by a connection that was accepted.

Envoy parses in C++ what pods send. It has a user of its own, who owns nothing but the folder of its admin socket, and
may connect to two sockets beside that. It is started in their folder and knows them by their names there, so it does
not matter who may look into the folders above. Where its binary is out of that user's reach it stays root's, too.

The DNS proxy stays root's, without root's capabilities: names.json, its socket and the pinned maps are in folders that
are root's, and whoever may write into the ipcache decides on policy in any case.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from agent import log as logs

ROOT = 0
USER = 0x6A7E
"""Number of Envoy's user and group, which need no name. Outside of what distributions give to people and services."""

NEEDED = "net_raw"
NET_RAW = 13  # linux/capability.h
_TO_REDUCE = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_RAW": NET_RAW}

log = logs.get("proxy")


def reduced(user: int = USER) -> list[str]:
    """The words before a command that runs it as this user and group, with CAP_NET_RAW and no other, in all of the
    capability sets, and no way to have more. [] where it cannot be done: see `hindrance`."""
    if why := hindrance():
        log.warning("proxies have all privileges of the agent", reason=why)
        return []
    only = f"-all,+{NEEDED}"
    return [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        f"--inh-caps={only}",
        f"--ambient-caps={only}",
        f"--bounding-set={only}",
        "--no-new-privs",
        "--",
    ]


def hindrance() -> str:
    """Why a process cannot be started with fewer privileges; "": it can."""
    if shutil.which("setpriv") is None:
        return "setpriv is not installed (util-linux)"
    held = _effective()
    lacking = [name for name, number in _TO_REDUCE.items() if not held >> number & 1]
    if lacking:
        return f"the agent has no {', '.join(lacking)}"
    return ""


def user_for(program: Path) -> int:
    """USER, where that user can run the program; else ROOT."""
    way = [program, *program.resolve().parents]
    return USER if all(one.stat().st_mode & stat.S_IXOTH for one in way) else ROOT


def make_folder(path: Path) -> None:
    """One in which USER can find sockets, but make nothing."""
    path.mkdir(exist_ok=True)
    os.chown(path, ROOT, USER)
    path.chmod(0o750)


def own_folder(path: Path, user: int = USER) -> None:
    """One that the user alone, and root, can use."""
    path.mkdir(exist_ok=True)
    os.chown(path, user, user)
    path.chmod(0o700)


def share(socket: Path) -> None:
    """Let USER connect to a socket that is root's in such a folder, and nobody else."""
    os.chown(socket, ROOT, USER)
    socket.chmod(0o660)


def capabilities(pid: int | str = "self") -> dict[str, int]:
    """Set (CapInh, CapPrm, CapEff, CapBnd, CapAmb) → bits, as proc(5) has them."""
    words: Sequence[Sequence[str]] = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {word[0].rstrip(":"): int(word[1], 16) for word in words if word[0].startswith("Cap")}


def _effective() -> int:
    return capabilities()["CapEff"]
