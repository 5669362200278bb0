"""A cgroup for each pod's processes, below one of the agent's own: there the socket programs are attached.

A process is in it before it runs anything of the pod's, and so is all it starts: a socket belongs to the cgroup of the
process that makes it. Pods whose processes run on after a restart of the agent stay in theirs.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent.endpoints.namespaces import netns_name
from policies.model import ObjectRef

PROCESSES = "cgroup.procs"
_PODS = "pods"
_KILL = "cgroup.kill"
_EMPTY_S = 5.0


class PodCgroups:
    """`folder`: a folder of a cgroup2 file system, which is made where it is not there."""

    def __init__(self, folder: Path, instance: str) -> None:
        self._pods = folder / _PODS
        self._instance = instance

    def of(self, pod: ObjectRef) -> Path:
        """Named as its network namespace is, so that no two pods share one."""
        return self._pods / netns_name(self._instance, pod)

    def make(self, pod: ObjectRef) -> Path:
        folder = self.of(pod)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove(self, pods: Iterable[ObjectRef]) -> None:
        """With whatever still runs inside. What is gone is no error; TimeoutError where a process does not end."""
        for pod in pods:
            remove(self.of(pod))

    def remove_others(self, pods: Iterable[ObjectRef]) -> None:
        """Those of pods that are not among these."""
        kept = {self.of(pod).name for pod in pods}
        for folder in self._pods.glob("*/"):
            if folder.name not in kept:
                remove(folder)


def of_netns(folder: Path, netns: str) -> Path:
    """The cgroup of the pod whose network namespace is at a path; `folder` as PodCgroups has it."""
    return folder / _PODS / Path(netns).name


def join(folder: Path) -> None:
    """Move the calling process there. FileNotFoundError where there is no such cgroup."""
    (folder / PROCESSES).write_text("0")


def remove_tree(folder: Path) -> bool:
    """Remove an agent's cgroup and those below; whether it was there. What pods run there is ended, other processes go
    to the root cgroup. Raises OSError (EBUSY) where the calling process is in a pod's."""
    if not folder.is_dir():
        return False
    if any(str(os.getpid()) in path.read_text().split() for path in folder.glob(f"{_PODS}/**/{PROCESSES}")):
        raise OSError(errno.EBUSY, f"this process runs in a pod's cgroup below {folder}: run it from elsewhere")
    for walked, _, _ in os.walk(folder, topdown=False):
        below = Path(walked)
        if not below.is_relative_to(folder / _PODS):
            _move_away(below, _root(folder))
        remove(below)
    with suppress(OSError):  # other agents' are beside it
        folder.parent.rmdir()
    return True


def _root(folder: Path) -> Path:
    """The mount point; a machine may have another hierarchy's above it."""
    while (folder.parent / PROCESSES).exists():
        folder = folder.parent
    return folder


def _move_away(folder: Path, target: Path) -> None:
    while pids := (folder / PROCESSES).read_text().split():
        for pid in pids:
            with suppress(ProcessLookupError):
                (target / PROCESSES).write_text(pid)


def remove(folder: Path) -> None:
    """One cgroup that has none below. As PodCgroups.remove."""
    deadline = time.monotonic() + _EMPTY_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {folder} do not end: look at what they wait for") from None
            with suppress(FileNotFoundError):
                (folder / _KILL).write_text("1")
            time.sleep(0.002)  # a killed process leaves when it has ended
