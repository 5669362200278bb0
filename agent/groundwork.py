"""What there must be before an agent is made: its objects, its blocks of pod addresses, the node made ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent import log as logs
from agent.config import Config, port_range
from agent.config.checks import makes_pods
from agent.datapath import devices
from agent.endpoints import node
from agent.endpoints.netlink import RouteSocket
from agent.instance import Instance
from agent.objects import Node
from agent.routing import mtu
from agent.settings import node_config, prefixes
from agent.sources.directory import DirectorySource
from agent.sources.source import Batch, Source
from agent.world.config import NodeConfig
from policies.address import Prefix, is_v4

if TYPE_CHECKING:
    from agent.kube.client import ApiClient
    from agent.kube.source import KubernetesSource

log = logs.get("agent")


class Api(msgspec.Struct, frozen=True):
    """The API server, as a source of objects and as who is told of this node."""

    client: ApiClient
    source: KubernetesSource


class Groundwork(msgspec.Struct, frozen=True):
    """`config`: the settings, with what was to be found out. `batch`: all there is in the source at first."""

    config: Config
    node: NodeConfig
    source: Source
    batch: Batch
    api: Api | None = None


async def lay(config: Config, instance: Instance) -> Groundwork:
    """May take as long as the API server stays away, or the node has no addresses for pods.

    Raises NotADirectoryError, endpoints.node.NodeRefused.
    """
    api = _api(config, instance) if config.source == "kubernetes" else None
    source: Source = api.source if api else DirectorySource(Path(config.manifests), instance.last_good)
    batch = await source.initial()
    pooled = _of_pool(config, instance, api) if api and config.ipam == "pool" else None
    blocks = await (pooled or _blocks(config, source, batch))
    config = msgspec.structs.replace(config, pod_cidrs=tuple(map(str, blocks)), mtu=_mtu(config))
    return Groundwork(config, _prepared(config, instance), source, batch, api)


def _api(config: Config, instance: Instance) -> Api:
    from agent.kube.client import ApiClient  # noqa: PLC0415  # a library that only those need who have an API server
    from agent.kube.source import KubernetesSource  # noqa: PLC0415

    client = ApiClient(kubeconfig=config.kubeconfig)
    source = KubernetesSource(
        client,
        config.node,
        instance.state_dir,
        secret_namespaces=config.secret_namespaces,
        api_wait_s=config.api_wait_s,
    )
    return Api(client, source)


def _mtu(config: Config) -> int:
    """0 where routing works it out: pods are wired one by one, by what other nodes there are then."""
    if config.mtu or not makes_pods(config):
        return config.mtu
    with RouteSocket() as route:
        used = [device for device in devices.read(route) if device.default_route]
    over_v4 = any(is_v4(address) for device in used for address in device.addresses)
    added = mtu.overhead(config.routing, over_v4 or not used, config.encryption != "off")
    return mtu.of_pods(0, [device.mtu for device in used], added)


async def _of_pool(config: Config, instance: Instance, api: Api) -> Sequence[Prefix]:
    from agent.kube.blocks import claims  # noqa: PLC0415

    return await claims(api.client, config, instance.state_dir).obtain(config.api_wait_s)


async def _blocks(config: Config, source: Source, batch: Batch) -> Sequence[Prefix]:
    """From which pods of this node get their addresses."""
    if config.ipam == "cidrs":
        return prefixes(config.pod_cidrs)
    said = False
    while not (found := _of_node(config, batch)):
        if not said:
            log.warning("waiting for spec.podCIDRs of this Node: does the cluster give nodes blocks?", node=config.node)
            said = True
        await _read_on(source, batch)
    return found


def _of_node(config: Config, batch: Batch) -> Sequence[Prefix]:
    """podCIDRs of this node's Node, in the families that pods are to have."""
    given: tuple[Prefix, ...] = ()
    for change in batch.changes:
        if change.ref.kind == "Node" and change.ref.name == config.node:
            given = change.object.pod_cidrs if isinstance(change.object, Node) else ()
    return [block for block in given if ("ipv4" if block.is_v4 else "ipv6") in config.families]


async def _read_on(source: Source, batch: Batch) -> None:
    """Take the next batch into the one that is at hand."""
    async for more in source.watch():
        batch.changes.extend(more.changes)
        batch.problems[:] = more.problems
        return


def _prepared(config: Config, instance: Instance) -> NodeConfig:
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
