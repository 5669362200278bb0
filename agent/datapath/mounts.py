"""What the host must offer: privileges, kernel, packages, and the file systems that are mounted where they are not."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BPFFS = Path("/sys/fs/bpf")
OWN_CGROUP2 = Path("/run/gatehouse/cgroup2")
MOUNTING = Path("/run/gatehouse/mounting.lock")
INCLUDE = Path("/usr/include")
OLDEST_KERNEL = (6, 1)
SYSCTLS = Path("/proc/sys")

# linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 2, 4, 8, 32, 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Unmet(Exception):
    """The host lacks something; each line of the message is a sentence that says what to do."""


# ---- requirements --------------------------------------------------------------------------------------------


def require_host() -> None:
    """Raises Unmet with a sentence for everything that is missing to load the datapath."""
    checks: tuple[Callable[[], str], ...] = (check_root, check_kernel, check_bcc, check_headers)
    missing = [sentence for check in checks if (sentence := check())]
    if missing:
        raise Unmet("\n".join(missing))


def check_root(uid: int | None = None) -> str:
    """A sentence where there is something to do, else empty; so are the other checks."""
    if (os.geteuid() if uid is None else uid) == 0:
        return ""
    return "Gatehouse loads programs into the kernel and needs root: run it with sudo."


def is_kernel(wanted: tuple[int, int], release: str = "") -> bool:
    """Whether the kernel is of this version or newer."""
    version = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return version is not None and (int(version[1]), int(version[2])) >= wanted


def check_kernel(release: str = "") -> str:
    release = release or platform.release()
    if is_kernel(OLDEST_KERNEL, release):
        return ""
    wanted = ".".join(map(str, OLDEST_KERNEL))
    return f"This kernel is {release} and Gatehouse needs {wanted} or newer: upgrade it (Debian 12 has 6.1) and reboot."


def check_bcc(find: Callable[[str], object] = importlib.util.find_spec) -> str:
    if find("bcc"):
        return ""
    return (
        f"{sys.executable} cannot import bcc: run `apt-get install python3-bpfcc` and use /usr/bin/python3 or a venv "
        "made with `/usr/bin/python3 -m venv --system-site-packages`; the package called bcc on PyPI is another thing."
    )


def check_headers(include: Path = INCLUDE) -> str:
    if (include / "linux" / "pkt_cls.h").is_file() and (arch_include(include) / "types.h").is_file():
        return ""
    return f"There are no Linux headers in {include}: run `apt-get install linux-libc-dev`."


def arch_include(include: Path = INCLUDE) -> Path:
    """Where this architecture's asm/*.h are: Debian keeps them under the multiarch name."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    folder = include / str(multiarch) / "asm"
    return folder if folder.is_dir() else include / "asm"


# ---- file systems --------------------------------------------------------------------------------------------


def ensure_bpffs() -> Path:
    """The folder to pin under; bpffs is mounted there if it is not. Raises Unmet.

    It is mounted for the mount namespace of the caller, and pins end with that: whoever may have been started by
    `ip netns exec` joins the machine's mounts first (agent.endpoints.namespaces.join_machine_mounts).
    """
    if not _has_bpffs():
        with _alone():
            if not _has_bpffs():
                _mount("bpf", BPFFS, "bpf")
    return BPFFS


def ensure_cgroup2() -> Path:
    """Where the unified cgroup hierarchy is mounted; it is mounted where it is not. Raises Unmet."""
    if (folder := _cgroup2()) is not None:
        return folder
    with _alone():
        if (folder := _cgroup2()) is not None:
            return folder
        OWN_CGROUP2.mkdir(parents=True, exist_ok=True)
        _mount("cgroup2", OWN_CGROUP2, "cgroup2")
        return OWN_CGROUP2


def ensure_writable_sysctls() -> bool:
    """Make /proc/sys writable for the mount namespace of the caller; False where it is already. Raises Unmet.

    Container runtimes mount it read-only over itself, unless the container is privileged. What is written there is of
    the network namespace the writer is in.
    """
    if not os.statvfs(SYSCTLS).f_flag & os.ST_RDONLY:
        return False
    flags = _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(None, bytes(SYSCTLS), None, flags, None):
        reason = os.strerror(ctypes.get_errno())
        raise Unmet(
            f"{SYSCTLS} is read-only and cannot be mounted otherwise ({reason}): "
            "give the container CAP_SYS_ADMIN and no AppArmor profile that denies mounting."
        )
    return True


def _has_bpffs() -> bool:
    return is_mounted(BPFFS, "bpf", Path("/proc/self/mountinfo").read_text())


def _cgroup2() -> Path | None:
    found = mounted(Path("/proc/self/mountinfo").read_text())
    return next((folder for folder, kind in found if kind == "cgroup2"), None)


@contextmanager
def _alone() -> Iterator[None]:
    """No other process that mounts: a second file system over the first would hide what is pinned there."""
    MOUNTING.parent.mkdir(parents=True, exist_ok=True)
    with MOUNTING.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def require_cgroup2(folder: Path) -> None:
    """Raises Unmet where that is not a folder of a cgroup2 file system."""
    if not (folder / "cgroup.controllers").is_file():  # version 1 has no such file
        raise Unmet(
            f"--cgroup: {folder} is not a folder of a cgroup2 file system: "
            f"`findmnt -t cgroup2` shows where there is one, `mkdir` in it makes a cgroup."
        )


def mounted(mountinfo: str) -> Iterator[tuple[Path, str]]:
    """Mount points and file system types of a /proc/PID/mountinfo (proc(5)), in the order they were mounted."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        yield Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])), after.split()[0]


def is_mounted(folder: Path, kind: str, mountinfo: str) -> bool:
    """Whether a file system of that type is what one sees in `folder`: the last one mounted there."""
    kinds = [k for point, k in mounted(mountinfo) if point == folder]
    return bool(kinds) and kinds[-1] == kind


def _mount(source: str, target: Path, kind: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, None):
        reason = os.strerror(ctypes.get_errno())
        raise Unmet(f"Mounting {kind} failed ({reason}): run `mount -t {kind} {source} {target}` as root.")
