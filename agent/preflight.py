"""What must hold before an agent may start, checked first and said in one sentence each."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
from pathlib import Path

KERNEL_MIN = (6, 1)
DEBIAN_PYTHON = "/usr/bin/python3"


class CannotStart(Exception):
    """One sentence that says what is wrong and what to do."""


def check_root() -> None:
    if os.geteuid() != 0:
        raise CannotStart(
            "the agent loads BPF programs and makes network namespaces: run it as root (sudo gatehouse …)"
        )


def check_kernel(release: str = "") -> None:
    """Kernel 6.1 or newer; `release` is that of uname -r."""
    release = release or os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < KERNEL_MIN:
        wanted = ".".join(map(str, KERNEL_MIN))
        raise CannotStart(
            f"kernel {release} is too old: boot {wanted} or newer (on Debian 12: apt-get install linux-image-amd64)"
        )


def check_packages() -> None:
    """bcc is Debian's package, seen by a virtual environment made with --system-site-packages."""
    if importlib.util.find_spec("bcc") is None:
        raise CannotStart(
            "the Python module bcc is missing: apt-get install python3-bpfcc, and make the virtual environment with "
            f"{DEBIAN_PYTHON} -m venv --system-site-packages (make setup does both)"
        )
    if importlib.util.find_spec("pyroute2") is None:
        raise CannotStart("the Python module pyroute2 is missing: run make setup")


def check() -> None:
    """Raises CannotStart where this machine cannot run an agent."""
    check_root()
    check_kernel()
    check_packages()


def lock(state_dir: Path) -> int:
    """Take the state directory for this process, or raise CannotStart where another agent has it.

    The lock is the kernel's and goes with the process, however it ends. The file holds the owner's pid for people.
    The descriptor is to be kept open, and is not inherited by children.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
        os.close(descriptor)
        raise CannotStart(
            f"an agent (pid {owner}) already runs on {state_dir}: stop it, or choose another --state-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
