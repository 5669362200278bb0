"""`python -m agent WORD`: the agent process. `gatehouse agent` becomes it; the word says where its settings are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent import groundwork, memory
from agent import log as logs
from agent.api.protocol import ApiError
from agent.attachments import units
from agent.config import Config, handover
from agent.datapath.bpf import BpfError
from agent.datapath.bytecode import CompileFailed
from agent.datapath.maps import MapMismatch, Maps
from agent.datapath.mounts import BPFFS, Unmet, ensure_writable_sysctls, is_mounted, require_cgroup2
from agent.datapath.programs import PODS, load_units
from agent.endpoints import namespaces
from agent.endpoints.node import NodeRefused
from agent.instance import Instance
from agent.lock import Taken, lock
from agent.loop import Agent
from agent.proxy.feature import carried_over
from agent.settings import config_value

T = TypeVar("T")

SWITCH_INTERVAL_S = 0.001
"""Threads that build pods let the one that decides have its turn sooner than Python's 5 ms."""


def main() -> None:
    resolved = handover.take(sys.argv[1])
    config = resolved.config
    logs.configure(config.log_format, config.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    memory.give_back()
    instance = Instance(Path(config.state_dir), handover.shown(resolved))
    _leave_passing_mounts()
    try:
        ensure_writable_sysctls()
        held = lock(instance.state_dir)
        asyncio.run(_run(config, instance))
        if config.remove_on_exit:
            from agent.cleanup import remove  # noqa: PLC0415  # only then

            remove(instance)
        os.close(held)
    except (Taken, Unmet, MapMismatch, CompileFailed, NodeRefused, ApiError, NotADirectoryError) as error:
        sys.exit(f"gatehouse: {error}")
    except BpfError as error:
        sys.exit(f"gatehouse: {error.strerror or error}")


def _leave_passing_mounts() -> None:
    """`ip netns exec` gives a command mounts of its own, with a bare /sys: pins made there would end with the agent."""
    if not is_mounted(BPFFS, "bpf", Path("/proc/self/mountinfo").read_text()):
        namespaces.join_machine_mounts()


async def _run(config: Config, instance: Instance) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    instance.note()
    if config.cgroup:
        require_cgroup2(Path(config.cgroup))
    pins = instance.pins
    with Maps.open_or_create(pins.maps, config.map_sizes) as maps:
        with ThreadPoolExecutor(1) as thread:  # compilers work while objects are read
            loading = thread.submit(load_units, maps, pins, units(config))
            ground = await _unless_stopped(groundwork.lay(config, instance), stopping)
        with loading.result() as loaded:
            if ground is None:
                return
            if (failure := loaded.failures.get(PODS.name)) is not None:
                raise failure
            value = config_value(ground.config, ground.node.addresses, _netns_cookie())
            maps["config"].update(bytes(4), carried_over(maps["config"].lookup(bytes(4)), value))
            agent = Agent(ground, instance, maps, loaded)
            await agent.run(ground.batch, stopping)


async def _unless_stopped(work: Coroutine[Any, Any, T], stopping: asyncio.Event) -> T | None:
    """What comes of it; None where the agent is told to stop before that."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def _netns_cookie() -> int:
    netns = namespaces.open_current()
    try:
        return namespaces.cookie(netns)
    finally:
        os.close(netns)


if __name__ == "__main__":
    main()
