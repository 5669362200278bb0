"""What an agent attaches besides pods' programs: to the node's devices, and to cgroups for sockets.

All of it stays when the agent ends, is taken over by the next, and goes when a setting or `gatehouse cleanup` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agent import log as logs
from agent import traces
from agent.config import Config
from agent.datapath import cgroup
from agent.datapath.cgroup import CgroupError
from agent.datapath.maps import Maps
from agent.datapath.mounts import Unmet
from agent.datapath.network import Network
from agent.datapath.programs import NETWORK, PODS, SOCKET, Loaded, ProgramType, Unit
from agent.encryption.steering import Steering
from agent.instance import Instance
from policies.address import Prefix

log = logs.get("attachments")


def units(config: Config) -> list[Unit]:
    """What has to be loaded for these settings."""
    wanted = [PODS]
    if config.devices:
        wanted.append(NETWORK if config.xdp != "off" else NETWORK.without(ProgramType.XDP))
    if config.socket_lb != "off":
        wanted.append(SOCKET)
    return wanted


class Attachments:
    """In the network namespace this is made in. `node_addresses`: 16 bytes each."""

    def __init__(
        self, config: Config, instance: Instance, maps: Maps, loaded: Loaded, node_addresses: Sequence[bytes]
    ) -> None:
        self._problems: list[str] = []
        self.pods_cgroup = self._own_cgroup(instance) if config.socket_lb == "all" else None
        """Below it pods' processes are to run."""
        self._instance = instance
        self._loaded = loaded
        self._folders = socket_cgroups(config, self.pods_cgroup) if loaded.of(SOCKET) else ()
        self._network = Network(config, maps, instance.pins, loaded.of(NETWORK), node_addresses)
        self._sockets: Counter[str] = Counter()
        self.steering = Steering(maps["encryption"], strict=config.strict_encryption)
        """Between whom packets are encrypted."""

    @property
    def problems(self) -> list[str]:
        """What is not as the settings say, one sentence each."""
        failed = [
            f"the programs of bpf/{name}.c are not in use: {str(failure).splitlines()[0]}"
            for name, failure in self._loaded.failures.items()
        ]
        full = [self.steering.problem] if self.steering.problem else []
        return [*failed, *self._network.problems, *full, *self._problems]

    @property
    def counts(self) -> Counter[str]:
        """At how many places each program is attached."""
        return self._network.attached + self._sockets

    def attach(self) -> None:
        """Once the maps hold the plan. Pins of an earlier version must still be there."""
        earlier = traces.read(self._instance.traces)
        stale = sorted({Path(folder) for folder in earlier.cgroups} - {*self._folders}) if earlier else []
        self._note([*stale, *self._folders])
        self._network.sync()
        self._attach_sockets()
        self._note([*(folder for folder in stale if not self._detach_sockets(folder)), *self._folders])

    def set_pod_blocks(self, blocks: frozenset[Prefix]) -> None:
        self._network.set_pod_blocks(blocks)

    def set_wireguard(self, ifindex: int) -> None:
        """See Network.set_wireguard."""
        self._network.set_wireguard(ifindex)

    async def follow(self) -> None:
        await self._network.follow()

    def close(self) -> None:
        """Everything stays attached."""
        self._network.close()

    def _own_cgroup(self, instance: Instance) -> Path | None:
        try:
            return cgroup.own_folder(instance.name)
        except (CgroupError, Unmet) as error:
            self._say(f"services are not translated at pods' sockets, but on the way: {_reason(error)}")
            return None

    def _attach_sockets(self) -> None:
        programs = self._loaded.of(SOCKET)
        for folder in self._folders:
            try:
                cgroup.attach(folder, programs, self._instance.pins)
                self._sockets.update(programs.keys())
            except CgroupError as error:
                self._say(f"services are not translated at the sockets of {folder}, but on the way: {_reason(error)}")

    def _detach_sockets(self, folder: Path) -> bool:
        try:
            cgroup.detach(folder, self._instance.pins)
        except CgroupError as error:
            self._say(f"services are still translated at the sockets of {folder}: {_reason(error)}")
            return False
        return True

    def _note(self, cgroups: Sequence[Path]) -> None:
        traces.write(self._instance.traces, traces.here(tuple(map(str, cgroups))))

    def _say(self, sentence: str) -> None:
        self._problems.append(sentence)
        log.warning("not as the settings say", problem=sentence)


def _reason(error: CgroupError | Unmet) -> str:
    return error.strerror or "" if isinstance(error, CgroupError) else str(error)


def socket_cgroups(config: Config, own: Path | None) -> tuple[Path, ...]:
    """cgroups whose sockets are translated; none lies in another, so that none is translated twice."""
    given = Path(config.cgroup) if config.cgroup else None
    if given is None:
        return (own,) if own else ()
    return (given,) if own is None or own.is_relative_to(given) else (given, own)
