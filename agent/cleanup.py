"""Everything an agent leaves outside its process, removed: what `gatehouse cleanup` does, and --remove-on-exit.

Works from any network namespace: a pod's interfaces and programs go with its network namespace.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.endpoints import launch, namespaces, node
from agent.instance import Instance
from agent.lock import lock
from agent.supervisor import end_listener

FILES = (
    "agent.sock",
    "flows.sock",
    "state.json*",
    ".state.json.new",
    "last-good",
    "pods",
    "node.json",
    "*.log",
    "agent.lock",
)


def clean(instance: Instance) -> dict[str, int]:
    """What was removed, and how many of each. Raises lock.Taken while the agent runs, mounts.Unmet without bpffs."""
    if not instance.state_dir.is_dir():
        return remove(instance)
    held = lock(instance.state_dir)
    try:
        return remove(instance)
    finally:
        os.close(held)


def remove(instance: Instance) -> dict[str, int]:
    """The same, for who holds the lock."""
    namespaces.join_machine_mounts()
    removed = {
        "flows process": int(end_listener(instance.flows_socket)),
        "containers": _end_containers(instance.pods),
        "network namespaces": _remove_namespaces(instance.short_name),
        "pins": _remove_pins(instance),
    }
    node.restore(instance.node)
    for pattern in FILES:
        for path in instance.state_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    if instance.state_dir.is_dir() and not any(instance.state_dir.iterdir()):
        instance.state_dir.rmdir()
    instance.forget()
    return {what: count for what, count in removed.items() if count}


def _end_containers(pods: Path) -> int:
    leaders = list(_running(pods))
    launch.kill_sessions(leaders)
    return len(leaders)


def _running(pods: Path) -> Iterator[int]:
    for pid_file in pods.glob("*/*/*.pid"):
        process = launch.read_pid_file(pid_file)
        if process is not None and (descriptor := launch.open_running(process)) is not None:
            os.close(descriptor)
            yield process.pid


def _remove_namespaces(short_name: str) -> int:
    names = namespaces.list_names(short_name)
    launch.kill_in_netns({inode for inode in map(namespaces.inode_of, names) if inode})
    for name in names:
        namespaces.take_name(name)
    return len(names)


def _remove_pins(instance: Instance) -> int:
    pins = instance.pins
    count = sum(1 for path in pins.root.rglob("*") if path.is_file())
    pins.remove()
    return count
