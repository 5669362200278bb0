"""The agent as a whole, as it is shown: what it has, how full its maps are, and why it is degraded where it is."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from agent import memory
from agent.api import aio
from agent.api.protocol import ApiError
from agent.datapath import abi
from agent.datapath.maps import Map
from agent.datapath.programs import statistics
from agent.flows.record import drop_reasons
from agent.objects import Problem
from agent.plan.state import POLICY, State
from agent.status import DatapathView, EncryptionView, FlowsView, MapView, ProgramView, ProxyView, StatusView
from agent.views import Views, problem_views

if TYPE_CHECKING:
    from agent.loop import Agent

FLOW_MAPS = ("conntrack", "conntrack_host", "nat", "affinity")
SOCKET_MAPS = ("socket_frontends", "socket_backends")
FULL = {
    "conntrack": "TALLY_CONNTRACK_FULL",
    "nat": "TALLY_NAT_FULL",
    "affinity": "TALLY_AFFINITY_FULL",
    "socket_frontends": "TALLY_SOCKETS_FULL",
}
"""Map → what the datapath counts when it finds no room in it."""
TALLIES = {
    name.removeprefix("TALLY_").lower(): number
    for name, number in abi.load().constants.items()
    if name.startswith("TALLY_")
}
FLOWS_ANSWER_S = 0.1
"""`status` does not wait longer than this for the flows process."""


class Overview:
    def __init__(self, agent: Agent, views: Views) -> None:
        self._agent = agent
        self._views = views
        self._started = time.time()

    async def status(self) -> StatusView:
        agent = self._agent
        flows = await self._flows_stats()
        problems = agent.problems()
        proxies = agent.proxy_views()
        reasons = self.reasons(problems, proxies)
        numbers = abi.load().constants
        tallies = agent.maps["tallies"].sums()
        sockets = await asyncio.to_thread(_entries, agent.maps, SOCKET_MAPS)
        drops = agent.maps["drops"].sums()
        return StatusView(
            state="degraded" if reasons and agent.phase == "ready" else agent.phase,
            reasons=tuple(reasons),
            version=version("gatehouse"),
            pid=os.getpid(),
            node=agent.config.node,
            state_dir=str(agent.instance.state_dir),
            started=_rfc3339(self._started),
            uptime_s=round(time.time() - self._started, 3),
            resident_bytes=memory.resident_bytes(os.getpid()),
            kernel=os.uname().release,
            revision=agent.turns.revision(agent.source.unread()),
            datapath=self._datapath(flows, sockets, tallies),
            endpoints=self._views.endpoint_states(),
            namespaces=len(agent.world.namespaces),
            policies=sum(1 for _ in agent.world.index.policies()),
            services=sum(1 for _ in agent.world.services),
            services_by_type=self._services_by_type(),
            identities=sum(1 for _ in agent.world.identities),
            problems=problem_views([*agent.turns.problems, *problems]),
            drops={name: drops[number] for number, name in drop_reasons(abi.load()).items() if drops[number]},
            tallies={name: tallies[number] for name, number in TALLIES.items()},
            rejudged=tallies[numbers.TALLY_REJUDGED],
            map_full=agent.realizer.full.total() + sum(tallies[numbers[name]] for name in FULL.values()),
            flows=FlowsView(
                process=agent.flows.view(),
                events_lost=tallies[numbers.TALLY_EVENTS_LOST],
                records_lost=flows.get("records_lost", 0),
            ),
            proxies=proxies,
            encryption=self._encryption(tallies),
            cluster=agent.neighbours.member.view() if agent.neighbours.member else None,
        )

    def reasons(self, problems: Sequence[Problem], proxies: Mapping[str, ProxyView]) -> list[str]:
        """Why the agent is degraded, one sentence each. `problems`: of the world."""
        agent = self._agent
        reasons = [
            *agent.numbers.notices,
            *agent.attachments.problems,
            *agent.big_tcp.problems,
            *agent.health.problems,
        ]
        if agent.kube_proxy.problem:
            reasons.append(agent.kube_proxy.problem)
        reasons += [f"{ref}: {problem}" for ref, problem in agent.health.ports.problems.items()]
        wrong = [p for p in (*agent.turns.problems, *problems) if not p.warning]
        if wrong:
            count = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
            reasons.append(f"{count} in what is written: it is not in force as it stands there")
        if agent.realizer.missing:
            reasons.append(
                f"{agent.realizer.missing} parts of the plan found no room ({agent.realizer.failure}): "
                "they are denied or as before; raise --map-sizes, or remove something"
            )
        if agent.turns.collision:
            reasons.append(agent.turns.collision)
        if agent.cni:
            reasons += agent.cni.problems
        reasons += agent.neighbours.reasons
        failed = [local for local in agent.pods if local.state == "failed"]
        reasons += [f"pod {p.pod.ref.namespace}/{p.pod.ref.name} failed: {p.problem}" for p in failed]
        for name, proxy in proxies.items():
            reasons += [f"{name}: {problem}" for problem in proxy.problems]
            if proxy.wanted and proxy.process.problem and proxy.process.state != "running":
                reasons.append(f"{name} does not run: {proxy.process.problem}")
        flows = agent.flows.view()
        if flows.state != "running":
            reasons.append(f"the flows process does not run: {flows.problem or 'it is being started'}")
        return reasons

    def encryption(self) -> EncryptionView | None:
        """None where nothing is to be encrypted."""
        return self._encryption(self._agent.maps["tallies"].sums())

    # ---- parts

    def _encryption(self, tallies: Sequence[int]) -> EncryptionView | None:
        agent = self._agent
        if (encryption := agent.neighbours.encryption) is None:
            return None
        return msgspec.structs.replace(
            encryption.view(),
            strict=agent.config.strict_encryption,
            node_encryption=agent.config.node_encryption,
            plaintext_packets=tallies[abi.load().constants.TALLY_PLAINTEXT],
        )

    def _datapath(self, flows: dict[str, Any], sockets: Mapping[str, int], tallies: Sequence[int]) -> DatapathView:
        agent = self._agent
        infos = [entry for programs in agent.loaded.values() for entry in statistics(programs)]
        pods = sum(1 for state in agent.world.pods if state.interface is not None)
        attached = dict.fromkeys(agent.programs, pods) | agent.attachments.counts
        return DatapathView(
            pins=str(agent.instance.pins.root),
            abi_hash=abi.load().abi_hash,
            source_hash=agent.programs.source_hash,
            programs=tuple(
                ProgramView(
                    name=name, id=info.id, instructions=info.verified_instructions, attached=attached.get(name, 0)
                )
                for name, info in infos
            ),
            maps=self._maps(flows, sockets, tallies),
        )

    def _maps(self, flows: dict[str, Any], sockets: Mapping[str, int], tallies: Sequence[int]) -> tuple[MapView, ...]:
        """How full the maps are: those of the plan by the plan, those of flows by the last sweep of their process."""
        agent = self._agent
        swept = flows.get("maps", {})
        entries = sizes(agent.realizer.plan.state) | dict(sockets)
        entries |= {name: swept[name]["entries"] if name in swept else 0 for name in FLOW_MAPS}
        full = agent.realizer.full.copy()
        numbers = abi.load().constants
        full.update({name: tallies[numbers[tally]] for name, tally in FULL.items()})
        return tuple(
            MapView(name=name, entries=count, capacity=agent.maps[name].spec.max_entries, full=full[name])
            for name, count in entries.items()
        )

    def _services_by_type(self) -> dict[str, int]:
        world = self._agent.world
        found = Counter(service.type for service in world.services)
        found["HostPort"] = sum(1 for _ in world.host_ports)
        return {kind: count for kind, count in sorted(found.items()) if count}

    async def _flows_stats(self) -> dict[str, Any]:
        with suppress(ApiError):
            found = await aio.call(self._agent.instance.flows_socket, "stats", timeout_s=FLOWS_ANSWER_S)
            return dict(found)
        return {}


def sizes(state: State) -> dict[str, int]:
    """Entries of each map of a plan."""
    found = {name: len(table) for name, table in state.tables.items()}
    found[POLICY] = sum(len(rows) for rows in state.policy.values())
    for name, blocks in state.blocks.items():
        found[name] = sum(block.size for block in blocks.values())
    return found


def _entries(maps: Mapping[str, Map], names: Iterable[str]) -> dict[str, int]:
    """Counted in the kernel: nobody sweeps these."""
    return {name: sum(len(keys) for keys, _ in maps[name].chunks()) // maps[name].spec.key_size for name in names}


def _rfc3339(at: float) -> str:
    """Seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
