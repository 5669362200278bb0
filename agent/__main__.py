"""`python -m agent WORD`: the agent process. `gatehouse agent` becomes it; the word says where its settings are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent import log as logs
from agent import memory
from agent.api.protocol import ApiError
from agent.attachments import units
from agent.config import Config, handover, port_range
from agent.datapath.bpf import BpfError
from agent.datapath.bytecode import CompileFailed
from agent.datapath.maps import MapMismatch, Maps
from agent.datapath.mounts import BPFFS, Unmet, is_mounted, require_cgroup2
from agent.datapath.programs import PODS, load_units
from agent.endpoints import namespaces, node
from agent.endpoints.node import NodeRefused
from agent.instance import Instance
from agent.lock import Taken, lock
from agent.loop import Agent
from agent.proxy.feature import carried_over
from agent.settings import config_value, node_config, prefixes
from agent.sources.directory import DirectorySource
from agent.world.config import NodeConfig
from policies.address import Prefix

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
    facts = _node(config, instance)
    pins = instance.pins
    with Maps.open_or_create(pins.maps, config.map_sizes) as maps:
        value = config_value(config, facts.addresses, _netns_cookie())
        maps["config"].update(bytes(4), carried_over(maps["config"].lookup(bytes(4)), value))
        source = DirectorySource(Path(config.manifests), instance.last_good)
        with ThreadPoolExecutor(1) as thread:  # compilers work while manifests are read
            loading = thread.submit(load_units, maps, pins, units(config))
            batch = await source.initial()
        with loading.result() as loaded:
            if (failure := loaded.failures.get(PODS.name)) is not None:
                raise failure
            await Agent(config, instance, facts, maps, loaded, source).run(batch, stopping)


def _node(config: Config, instance: Instance) -> NodeConfig:
    """The node made ready to route for pods, and what the world must know of it."""
    found = node.prepare(
        instance.node,
        config.node_sysctls,
        fallback=[_first_host(cidr) for cidr in prefixes(config.pod_cidrs)],
        reserved=[port_range("node_ports", config.node_ports)],
        given_out=port_range("snat_ports", config.snat_ports),
    )
    return node_config(config, found)


def _first_host(cidr: Prefix) -> bytes:
    """The address of a pod block that no pod gets: the node's own, where it has none of that family."""
    return (int.from_bytes(cidr.network, "big") + 1).to_bytes(16, "big")


def _netns_cookie() -> int:
    netns = namespaces.open_current()
    try:
        return namespaces.cookie(netns)
    finally:
        os.close(netns)


if __name__ == "__main__":
    main()
