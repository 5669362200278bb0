"""The agent process: what it is made of, in the order in which it starts and stops.

Start-up is fail-closed. Pods of an earlier agent go on under its programs and maps until the maps hold what this
agent's plan says; then programs are replaced, each atomically. Nothing is ever detached from a pod that stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from agent import kubeproxy
from agent import log as logs
from agent.api.server import serve
from agent.attachments import Attachments
from agent.bigtcp import BigTcp
from agent.cni.networks import Networks
from agent.cni.service import CniService
from agent.cni.surroundings import Surroundings
from agent.config.checks import makes_pods
from agent.datapath.maps import Maps
from agent.datapath.programs import PODS, Loaded
from agent.datapath.tc import Hooks
from agent.endpoints.endpoints import Adopted, Endpoints
from agent.groundwork import Groundwork
from agent.handlers import Handlers
from agent.health.checks import HealthChecks
from agent.helpers import keeping
from agent.instance import Instance
from agent.localpods import LocalPods
from agent.naming import NameFeed
from agent.neighbours import Neighbours
from agent.numbers import Numbers
from agent.objects import Interface, Problem
from agent.plan.plan import Plan
from agent.plan.serving import Serving
from agent.pods import Pods
from agent.proxy.dns import DnsSide
from agent.proxy.envoy import EnvoySide
from agent.proxy.feature import Feature
from agent.proxy.proxies import Proxies
from agent.proxy.rules import LiveRules
from agent.realize import Realizer
from agent.retirement import Retirement
from agent.services.health import Answer
from agent.sources.slices import derive
from agent.sources.source import Batch
from agent.status import ProxyView
from agent.turns import Names, Turns
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.model import ObjectRef

log = logs.get("agent")


class Agent:
    """Over open maps and loaded programs, in the node's network namespace. `phase`: as StatusView.state."""

    def __init__(self, ground: Groundwork, instance: Instance, maps: Maps, loaded: Loaded) -> None:
        config, node = ground.config, ground.node
        self.config = config
        self.instance = instance
        self.maps = maps
        self.loaded = loaded
        self.programs = loaded[PODS.name]
        self.phase = "starting"
        self.world = World(node, None if ground.api else derive)
        self.names = NameFeed(self.world, config.node)
        self.realizer = Realizer(maps, Plan())
        self.health = HealthChecks(
            config.healthz, self.world, lambda: self.turns.revisions.behind_since, config.metrics, self._exposition
        )
        self.proxy_feature = Feature(maps["config"])
        self.envoy = EnvoySide(
            config, instance, self.world.allocations.proxy_ports, self.world.secrets.get, self.proxy_feature.turn_on
        )
        self.dns = DnsSide(
            config, instance, self.world.allocations.proxy_ports, lambda: self.world.marks.names.patterns,
            self.world.name_classes, self._learn, self.proxy_feature.turn_on,
        )  # fmt: skip
        self.live_rules = LiveRules(self.realizer.plan, maps["conntrack"], self.envoy, self.dns)
        self.proxies = Proxies(self.realizer.plan, maps["listeners"], (self.envoy, self.dns), self.live_rules.changed)
        self.attachments = Attachments(config, instance, maps, loaded, node.addresses)
        self.big_tcp = BigTcp(config, node.addresses, instance.big_tcp)
        self.neighbours = Neighbours(
            config, instance, ground.api, self.world, self.attachments, lambda: self.turns.problems
        )
        self.numbers = Numbers(self.world.allocations, instance.state)
        self.retirement = Retirement(self.world, Serving(), instance.flows_socket)
        self.turns = Turns(
            self.world, self.realizer, self.names, self.numbers.save, self.retirement, self.health.ports.update,
            self.proxies, self.neighbours.turned,
        )  # fmt: skip
        self.source = ground.source
        self.kube_proxy = kubeproxy.Watch(config)
        self.hooks = Hooks(self.programs)
        self.cni = None if makes_pods(config) else _cni(self, node)
        self.pods: Pods = self.cni.pods if self.cni else self._local_pods()
        self.flows = keeping.flows(config, instance)
        self._handlers = Handlers(self)

    def _local_pods(self) -> LocalPods:
        endpoints = Endpoints(
            self.instance.short_name,
            self.instance.state_dir,
            self.neighbours.routing.mtu,
            cgroup=self.attachments.pods_cgroup,
        )
        return LocalPods(endpoints, self.hooks, self.turns.enforce, self.stands)

    async def stands(self, interface: Interface) -> None:
        """A pod's link is up: until it is as the pod's processes are to find it."""
        await asyncio.gather(self.big_tcp.raised(interface), self.neighbours.met())

    def problems(self) -> list[Problem]:
        """What is not in force as it is written, but for what sources found."""
        return [*self.world.problems(), *self.neighbours.problems()]

    def proxy_views(self) -> dict[str, ProxyView]:
        return {"envoy": self.envoy.view(), "dns": self.dns.view()}

    # ---- life

    async def run(self, batch: Batch, stopping: asyncio.Event) -> None:
        """Start, work until told to stop, stop. `batch`: all there was in the source at first."""
        gone = await self._begin(batch)
        async with await serve(self.instance.agent_socket, self._handlers.by_operation()):
            for change in batch.changes:
                if change.ref.kind == "Pod":
                    self.turns.want(change.ref, self.pods)
            for ref in gone:
                self.pods.drop(ref)
            batch.changes.clear()  # there may be 100,000, and this is on the stack as long as the agent lives
            await self._work(stopping)
            self.phase = "stopping"
            self.health.liveness.stopping = True
            self.turns.stop()
            await self.pods.stop()
        await self.pods.close(keep=not self.config.remove_on_exit)
        self.source.close()
        self.numbers.close()
        await self.envoy.stop()
        await self.dns.close()
        if self.config.remove_on_exit:
            await self.envoy.running.stop()
            await self.dns.running.stop()
            await self.flows.stop()
        self.hooks.close()
        self.attachments.close()
        self.big_tcp.close()
        await self.neighbours.close()

    async def _begin(self, batch: Batch) -> set[ObjectRef]:
        """Take over what an earlier agent left, bring the kernel to what is written. Returns pods that are to go."""
        self.kube_proxy.look()
        earlier = self.numbers.restore()
        written = {change.ref for change in batch.changes if change.ref.kind == "Pod"}
        adopted = await self.pods.adopt(written | earlier)
        if self.cni:
            for ref in adopted:
                if (attachment := self.cni.pods.attachment(ref)) is not None:
                    self.world.attach(ref, attachment.addresses, attachment.interface, attachment.uid)
        else:
            for ref, found in adopted.items():
                self.numbers.restore_addresses(ref, found.addresses)
        started = time.monotonic()
        for name, addresses in (await self.dns.restore()).items():
            self.world.set_names(name, addresses)
        self.turns.load(batch)
        stays = {ref: found for ref, found in adopted.items() if self._fits(ref, found)}
        writes = self.turns.start({ref: found.interface for ref, found in stays.items()})
        await self.neighbours.start(pods=bool(stays))
        await self.big_tcp.start(found.interface for found in stays.values())
        self.proxies.start()
        await self.live_rules.start()
        await self.envoy.start()
        self.dns.running.leave()
        if self.proxy_feature.is_on and not (self.envoy.running.is_wanted or self.dns.running.is_wanted):
            self.proxy_feature.turn_off()
        self._replace_programs(found.interface.index for found in stays.values())
        self.attachments.attach()
        self.instance.remove_other_pins(programs.source_hash for programs in self.loaded.values())
        self.world.release_unused()
        self.numbers.save_all()
        took_ms = round(1000 * (time.monotonic() - started))
        log.info(
            "kernel holds the plan", objects=len(batch.changes), adopted=len(stays), writes=writes, took_ms=took_ms
        )
        return set(adopted) - {ref for ref in adopted if self.turns.local(ref) is not None}

    async def _work(self, stopping: asyncio.Event) -> None:
        """All that goes on at once, until told to stop. What fails ends the agent."""
        works = [
            self.turns.run(self.pods), self._watch(), self.flows.run(), self.retirement.run(), self.numbers.run(),
            self._become_ready(), self.health.run(), self.attachments.follow(), self.kube_proxy.run(),
            self.proxies.run(), self.envoy.run(), self.live_rules.run(), self.dns.run(), self.big_tcp.run(),
            *self.neighbours.works(), *([self.cni.run()] if self.cni else ()),
        ]  # fmt: skip
        stop = asyncio.create_task(stopping.wait())
        pending: set[asyncio.Task[Any]] = {stop, *(asyncio.create_task(work) for work in works)}
        try:
            while not stop.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _watch(self) -> None:
        async for batch in self.source.watch():
            self.turns.put(batch)
            for problem in batch.problems:
                log.warning("not in force as written", problem=str(problem))

    async def _become_ready(self) -> None:
        await self.pods.settled()
        self.phase = "ready"
        log.info("ready", pods=len(list(self.pods)), policies=len(list(self.world.index.policies())))

    async def settled(self) -> None:
        """Until all that is written by now has been read, is in force, and every pod is ready or has failed."""
        while self.source.unread() or self.phase == "starting":
            await asyncio.sleep(0.01)
        await self.turns.settled()
        await self.live_rules.settled()
        await self.pods.settled()

    async def _exposition(self) -> Answer:
        from agent.metrics import exposition  # noqa: PLC0415  # a library that only those need who ask

        return exposition(await self._handlers.status({}))

    async def _learn(self, names: Names) -> None:
        await self.turns.learn(names)

    # ---- details of the start

    def _fits(self, ref: ObjectRef, found: Adopted) -> bool:
        """Whether a network from before is the one a pod is to have now."""
        pod = self.turns.local(ref)
        return pod is not None and not pod.host_network and set(pod.addresses) == found.addresses

    def _replace_programs(self, ifindexes: Iterable[int]) -> None:
        wanted = list(ifindexes)
        current: dict[int, int] = {}
        for found in self.hooks.attached(wanted):
            current[found.ifindex] = current.get(found.ifindex, 0) + found.is_current
        for ifindex in wanted:
            if current.get(ifindex) != len(self.programs):
                self.hooks.attach(ifindex)


def _cni(agent: Agent, node: NodeConfig) -> CniService:
    """What a runtime's pods need of the rest."""
    around = Surroundings(
        links=Networks(),
        attach_programs=agent.hooks.attach,
        has_programs=lambda index: sum(one.is_current for one in agent.hooks.attached([index])) == len(agent.programs),
        attach=agent.turns.attaching.attach,
        stands=agent.stands,
        detach=agent.turns.attaching.detach,
        published=agent.neighbours.published,
        unreachable=agent.neighbours.unreachable,
        mtu=lambda: agent.neighbours.routing.mtu,
    )
    return CniService(agent.config, agent.instance.state_dir, around, node.pod_cidrs, node.addresses)
