"""This node as a member of its cluster: what it asks of the API server, and tells the other nodes by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from agent.config import Config
from agent.groundwork import Api
from agent.kube import bodies
from agent.kube.blocks import claims
from agent.kube.bodies import NodeFacts, RefusedPolicy, policy_name
from agent.kube.collector import Collector, Kinds
from agent.kube.identities import IdentityAllocator
from agent.kube.lease import Lease
from agent.kube.membership import Membership
from agent.kube.nodestatus import Report, StatusReporter
from agent.kube.policystatus import PolicyStatus
from agent.kube.writes import Collection
from agent.objects import Problem
from agent.settings import prefixes
from agent.status import ClusterView, ResourceView
from agent.world.world import World
from policies.model import ObjectRef

REPORTED = ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
"""Kinds of policies whose authors are told what became of them."""


class Member:
    """`facts`: this node as it is now. `problems_of_sources`: what is written and not in force."""

    def __init__(
        self,
        config: Config,
        api: Api,
        world: World,
        facts: Callable[[], NodeFacts],
        problems_of_sources: Callable[[], list[Problem]],
    ) -> None:
        self._own_ref = ObjectRef("NodeEndpoints", "", config.node)
        self._api = api
        self._world = world
        self._problems_of_sources = problems_of_sources
        group = f"apis/{bodies.VERSION}"
        kinds = Kinds(
            identities=Collection(api.client, group, "securityidentities"),
            endpoints=Collection(api.client, group, "nodeendpoints"),
            statuses=Collection(api.client, group, "nodestatuses"),
            blocks=Collection(api.client, group, "nodeblocks"),
            nodes=Collection(api.client, "api/v1", "nodes"),
        )
        self._kinds = kinds
        self._allocator = IdentityAllocator(kinds.identities, world.identities, api.source.observe)
        self._membership = Membership(
            kinds.endpoints,
            kinds.nodes,
            config.node,
            facts,
            world.local_endpoints,
            self._allocator.confirm,
            seen=self._seen,
        )
        api.source.own_told = self._membership.notice
        self._reporter = StatusReporter(kinds.statuses, kinds.nodes, config.node, self._report)
        leases = Collection(api.client, "apis/coordination.k8s.io/v1", "leases")
        self._claims = claims(api.client, config, Path(config.state_dir)) if config.ipam == "pool" else None
        self._blocks = prefixes(config.pod_cidrs)
        self._lease = Lease(leases, config.namespace, f"{config.node}_{uuid4()}")

    def wake(self) -> None:
        """The World has changed."""
        self._allocator.wake()
        self._membership.wake()
        self._reporter.wake()

    async def published(self, ref: ObjectRef) -> None:
        """Until the other nodes can know the pod, or the API server cannot be reached."""
        await self._membership.published(ref)

    @property
    def told(self) -> NodeFacts | None:
        """What the API server has of this node itself."""
        return self._membership.facts_told

    def unreachable(self) -> str:
        """Why the API server cannot be asked, and since when; empty where it can."""
        since_s = self._api.source.status().unreachable_s
        return "" if since_s is None else f"the API server has not answered for {since_s:.0f} s"

    def view(self) -> ClusterView:
        status = self._api.source.status()
        resources = tuple(
            ResourceView(
                name=one.resource, objects=one.objects, version=one.version, synced_ago_s=one.synced_ago_s,
                problem=one.error,
            )
            for one in status.resources
        )  # fmt: skip
        return ClusterView(
            unreachable_s=status.unreachable_s, from_disk=status.from_disk, leader=self._lease.held, resources=resources
        )

    def problems(self) -> list[Problem]:
        claimed = self._claims.problems() if self._claims else []
        return [*self._allocator.problems(), *self._membership.problems(), *claimed]

    async def run(self) -> None:
        self.wake()
        async with asyncio.TaskGroup() as tasks:
            works = (
                self._allocator.run(), self._membership.run(), self._reporter.run(), self._lease.run(self._tend),
            )  # fmt: skip
            for work in works:
                tasks.create_task(work)
            if self._claims:
                tasks.create_task(self._claims.keep(self._blocks))

    async def _tend(self) -> None:
        """What one agent does for all, as long as it has the Lease."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Collector(self._kinds).run())
            tasks.create_task(PolicyStatus(self._api.client).run())

    async def close(self) -> None:
        await self._api.client.close()

    # ---- what is told

    def _seen(self) -> str | None:
        """The version of this node's NodeEndpoints that the watch has told of."""
        found = self._api.source.seen(self._own_ref)
        return None if found is None else found.version

    def _report(self) -> Report:
        return Report(version("gatehouse"), dict(self._enforced()), tuple(self._refused()))

    def _enforced(self) -> Iterator[tuple[str, int]]:
        for policy in self._world.index.policies():
            ref = policy.ref
            if ref.kind in REPORTED and not policy.problem and (seen := self._api.source.seen(ref)) is not None:
                yield policy_name(ref.kind, ref.namespace, ref.name), seen.generation

    def _refused(self) -> Iterator[RefusedPolicy]:
        for problem in self._problems_of_sources():
            kind, _, name = problem.subject.partition(" ")
            if kind in REPORTED and not problem.warning:
                namespace, _, short = name.rpartition("/")
                ref = ObjectRef(kind, namespace, short)
                seen = self._api.source.seen(ref)
                message = f"{problem.path}: {problem.message}" if problem.path else problem.message
                yield RefusedPolicy(
                    policy_name(ref.kind, ref.namespace, ref.name), seen.generation if seen else 0, message
                )
