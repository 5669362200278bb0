"""Processes of pods as the kernel knows them: started in a namespace, recognised again, signalled.

A process is started by way of /bin/sh, which writes down who it is and becomes the command. So a process that runs is
on record, whenever the agent is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from agent.endpoints import namespaces
from agent.endpoints.cgroups import PROCESSES
from agent.endpoints.command import Command
from agent.endpoints.spawn import spawn

# $0 pid file, $1 digest, $2 working directory, $3 where to join a cgroup, then the environment and the command for env.
# `read` and `printf` are built in: no process besides. env, as sh would drop variables whose names it could not use.
_RECORD_AND_RUN = (
    'read -r stat </proc/$$/stat && printf "%s %s\\n" "$1" "$stat" >"$0" && printf 0 >"$3" && cd "$2" || exit 126; '
    'shift 3; exec /usr/bin/env -i "$@"'
)
_SWEEP_S = 5.0


class Running(msgspec.Struct, frozen=True):
    """A process: its number and when it started (clock ticks since boot) say together which one.

    `digest`: of the command. It leads a session and a process group of that number.
    """

    pid: int
    start_ticks: int
    digest: str


def launch(command: Command, netns: int, pid_file: Path, log: Path, cgroup: Path | None = None) -> int:
    """Start a command inside a network namespace (a descriptor), in a session of its own; returns its pid.

    With `cgroup` it runs in that cgroup. To join one takes some 10 ms, the first of several at a time: the kernel waits
    for all processors. posix_spawn(3) could have it made there, with glibc 2.39.

    Input is empty, output is appended to `log`. What goes wrong from here on (no such program, no such directory) is in
    the log, and the process ends with 126 or 127.
    """
    environment = [f"{name}={value}" for name, value in command.env.items()]
    join = str(cgroup / PROCESSES) if cgroup else os.devnull
    argv = ["/bin/sh", "-c", _RECORD_AND_RUN, str(pid_file), command.digest, command.working_dir, join]
    with namespaces.entered(netns):
        return spawn("/bin/sh", [*argv, *environment, *command.argv], {}, log, list(_inheritable()))


def _inheritable() -> Iterator[int]:
    """Descriptors that this process was given by whoever started it, and does not know."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # it was the listing's own
            if int(name) > 2 and os.get_inheritable(int(name)):
                yield int(name)


def read_pid_file(path: Path) -> Running | None:
    """Who was started last; None where nobody was, or the file is not complete."""
    try:
        digest, _, stat = path.read_text().partition(" ")
        return Running(int(stat.split(" ", 1)[0]), _start_ticks(stat), digest)
    except (FileNotFoundError, ValueError, IndexError):
        return None


def open_running(process: Running) -> int | None:
    """A pidfd, if the process is still that one."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    try:
        same = _start_ticks(Path(f"/proc/{process.pid}/stat").read_text()) == process.start_ticks
    except (FileNotFoundError, ProcessLookupError):
        same = False
    if not same:
        os.close(pidfd)
        return None
    return pidfd


def reap(pidfd: int) -> int | None:
    """Exit status of a process that has ended, 128 + N if by signal N. None: it was not our child."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


def signal_group(pid: int, number: signal.Signals) -> None:
    """To the group that the process leads; to nobody where it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_in_netns(inodes: Collection[int]) -> None:
    """SIGKILL everything inside these network namespaces, until nothing is. Never the caller's own."""
    own = (Path("/proc/self/ns/net"), Path(namespaces.CURRENT), namespaces.machine_namespace("net"))
    if {path.stat().st_ino for path in own if path}.intersection(inodes):
        raise ValueError("these are not a pod's processes: the namespace is the agent's or the machine's own")
    _kill_until_none(lambda pid: netns_of(pid) in inodes)


def kill_sessions(leaders: Collection[int]) -> None:
    """SIGKILL what belongs to the sessions that these processes lead (or led): also what left their groups."""
    _kill_until_none(lambda pid: _session_of(pid) in leaders)


def _kill_until_none(belongs: Callable[[int], bool]) -> None:
    deadline = time.monotonic() + _SWEEP_S
    while found := [pid for pid in _pids() if belongs(pid)]:
        for pid in found:
            _kill_if(pid, belongs)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {found} do not end: look at what they wait for (/proc/PID/stack)")
        time.sleep(0.002)


def _kill_if(pid: int, belongs: Callable[[int], bool]) -> None:
    """By descriptor, asked again after it is open: the number may have gone to another process meanwhile."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if belongs(pid):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _pids() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - a thousand Path objects cost more than all the rest
        if name.isdigit() and int(name) != own:
            yield int(name)


def netns_of(pid: int) -> int:
    """Inode of a process's network namespace; 0 where it has ended (a zombie has left its namespaces)."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 - as above
    except OSError:
        return 0


def _session_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[3])


def _start_ticks(stat: str) -> int:
    """Field 22 of proc_pid_stat(5). The second, the program's name, may hold anything."""
    return int(stat.rpartition(")")[2].split()[19])
