"""Network namespaces: made, entered, named so that `ip netns` sees them, unnamed.

A namespace belongs to a thread, so all of this is about the calling thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import socket
import sys
from pathlib import Path

from agent.datapath.netns import CURRENT, enter, entered, open_current
from policies.model import ObjectRef

__all__ = ["CURRENT", "enter", "entered", "open_current"]  # what of this module's is defined elsewhere

RUN_DIR = Path("/run/netns")  # iproute2's

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWNET = 0x200, 0x20000, 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_NAME_BYTES = 255
_SO_NETNS_COOKIE = 71
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def cookie(netns: int) -> int:
    """The kernel's number of a network namespace, which no other ever has: what bpf_get_netns_cookie() says."""
    with entered(netns), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inside:
        return cookie_of(inside)


def cookie_of(inside: socket.socket) -> int:
    """The same, of the namespace that a socket is in."""
    return int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def create() -> int:
    """A new, nameless network namespace; it lives as long as the descriptor returned (or a name, or a process).

    Leaves the calling thread inside it: use under `entered`.
    """
    _check(_libc.unshare(_CLONE_NEWNET), "create network namespace")
    return open_current()


def machine_namespace(kind: str) -> Path | None:
    """Path of the machine's own namespace ("net", "mnt"): that of process 1, or of kthreadd where process 1 may not be
    looked at; in a container that of its first process. None where neither may be looked at."""
    for pid, name in (("1", ""), ("2", "kthreadd")):
        try:
            if not name or Path(f"/proc/{pid}/comm").read_text().strip() == name:
                path = Path(f"/proc/{pid}/ns/{kind}")
                path.stat()
                return path
        except OSError:
            continue
    return None


def is_initial() -> bool:
    """Whether the calling thread is in the machine's first network namespace; also where that cannot be told."""
    machine = machine_namespace("net")
    return machine is None or Path(CURRENT).stat().st_ino == machine.stat().st_ino


def netns_name(instance: str, pod: ObjectRef) -> str:
    """`gh-INSTANCE-NAMESPACE.POD`. A Kubernetes namespace has no dot, so no two pods share a name.

    Names that are too long or not valid in Kubernetes are cut and get a hash, set off by an underscore.
    """
    name = f"{_prefix(instance)}{pod.namespace}.{pod.name}"
    if re.fullmatch(r"[a-z0-9-]+\.[a-z0-9.-]+", name[len(_prefix(instance)) :]) and len(name) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(f"{pod.namespace}/{pod.name}".encode()).hexdigest()[:16]
    return re.sub(r"[^a-z0-9.-]", "-", name)[: _NAME_BYTES - 40] + "_" + digest


def list_names(instance: str) -> list[str]:
    """Names of this instance's namespaces, half-made ones included."""
    try:
        return sorted(name for name in os.listdir(RUN_DIR) if name.startswith(_prefix(instance)))  # noqa: PTH208
    except FileNotFoundError:
        return []


def _prefix(instance: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]{1,32}", instance):
        raise ValueError(f"instance {instance!r} must be 1 to 32 letters and digits")
    return f"gh-{instance}-"


def path_of(name: str) -> Path:
    return RUN_DIR / name


def give_name(netns: int, name: str) -> Path:
    """Bind the namespace to a name; from then on it lives without a descriptor. An old one of that name is let go."""
    path = path_of(name)
    _prepare_run_dir()
    take_name(name)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        _bind(f"/proc/thread-self/fd/{netns}", path)
    except OSError:
        path.unlink()
        raise
    return path


def _bind(source: str, target: Path) -> None:
    _check(_libc.mount(source.encode(), bytes(target), b"none", _MS_BIND, None), f"bind {source} to {target}")


def take_name(name: str) -> None:
    """Undo `give_name`; nothing happens where there is no such name."""
    path = path_of(name)
    while _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        pass  # a name may have been bound more than once
    path.unlink(missing_ok=True)


def open_name(name: str) -> int | None:
    """A descriptor of a named namespace; None where the name is a leftover with no namespace behind it, or is gone."""
    try:
        netns = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        with entered(netns):
            return netns
    except OSError as error:
        os.close(netns)
        if error.errno == errno.EINVAL:
            return None
        raise


def inode_of(name: str) -> int | None:
    """Number of a named namespace, as in /proc/PID/ns/net; None as for `open_name`."""
    netns = open_name(name)
    if netns is None:
        return None
    try:
        return os.fstat(netns).st_ino
    finally:
        os.close(netns)


def _prepare_run_dir() -> None:
    """Make /run/netns a shared mount, as iproute2 does: other mount namespaces then see names come and go."""
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    if _share_run_dir():
        return
    directory = os.open(RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if not _share_run_dir():
            run_dir = bytes(RUN_DIR)
            _check(_libc.mount(run_dir, run_dir, b"none", _MS_BIND | _MS_REC, None), f"mount {RUN_DIR}")
            _check(-1 + _share_run_dir(), f"share {RUN_DIR}")
    finally:
        os.close(directory)


def _share_run_dir() -> bool:
    """False where it is no mount point yet."""
    return bool(_libc.mount(b"", bytes(RUN_DIR), b"none", _MS_SHARED | _MS_REC, None) == 0)


def join_machine_mounts() -> bool:
    """Move the calling thread into the machine's mount namespace; False where it is there already or may not.

    `ip netns exec` runs its command with mounts of its own, in which a namespace named would be seen by nobody else
    (and what is mounted under /sys is lost with the command). The thread's working directory becomes /.
    """
    machine = machine_namespace("mnt")
    if machine is None or machine.stat().st_ino == Path("/proc/thread-self/ns/mnt").stat().st_ino:
        return False
    mounts = os.open(machine, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A thread that shares its working directory with others may not change its mounts.
        return bool(_libc.unshare(_CLONE_FS) == 0 and _libc.setns(mounts, _CLONE_NEWNS) == 0)
    finally:
        os.close(mounts)
