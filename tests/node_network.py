"""Nodes on one link, with pods and routes between them, and no agent or datapath: what agent.routing does by itself.

with NodeNetwork("n1", "n2") as network:
    network.route("vxlan")
    probes.ping(network["n1"].pod, network["n2"].ip("v6"))

The link is a bridge in a namespace of its own. Each node has one pod, on a veth as agent.cni makes it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import rig

from agent.cni.networks import Networks
from agent.config import build
from agent.routing.desired import Own
from agent.routing.routing import Routing
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address
from policies.model import ObjectRef

FAMILIES = ("v4", "v6")
BITS = {"v4": 24, "v6": 64}
UNDERLAY_MTU = 1500


class RoutedNode:
    """`addresses`, `blocks`: by family; the first of `families` is the preferred one."""

    def __init__(self, name: str, number: int, netns: rig.Netns, families: Sequence[str]) -> None:
        self.name, self.netns, self.number = name, netns, number
        everything = {"v4": f"192.0.2.{10 + number}", "v6": f"2001:db8:0:1::{10 + number:x}"}
        self.addresses = {family: everything[family] for family in families}
        self.blocks = {"v4": f"10.244.{number}.0/24", "v6": f"fd00:10:244:{number}::/64"}
        self.stack = ExitStack()
        self.pod = self.stack.enter_context(rig.Netns(f"pod{number}"))
        self.networks: Networks = netns.call(Networks)
        self.stack.callback(self.networks.close)
        self.routing: Routing | None = None

    def ip(self, family: str) -> str:
        """Of the pod."""
        return f"10.244.{self.number}.7" if family == "v4" else f"fd00:10:244:{self.number}::7"

    @property
    def own(self) -> Own:
        return Own(self.name, *self._told())

    @property
    def peer(self) -> Peer:
        return Peer(self.name, *self._told())

    def _told(self) -> tuple[tuple[bytes, ...], tuple[Prefix, ...]]:
        return tuple(map(parse_address, self.addresses.values())), tuple(map(Prefix.parse, self.blocks.values()))

    def connect_pod(self, mtu: int) -> None:
        """Anew, for a veth has the MTU it was made with."""
        addresses = [parse_address(self.ip(family)) for family in FAMILIES]
        for link in self.networks.existing():
            self.networks.disconnect(link.name)
        ref = ObjectRef("Pod", "shop", f"of-{self.name}")
        self.networks.await_ready(self.networks.connect(self.pod.path, "eth0", addresses, ref, mtu, lambda index: None))

    def set_routing(self, mode: str, *settings: str) -> Routing:
        """As an agent does that is started again with other settings."""
        self.end_routing()
        named = dict(setting.split("=") for setting in settings)
        config = build({"manifests": "/nowhere", "routing": mode, "mtu": "0", "node": self.name} | named)
        self.routing = self.netns.call(Routing, config)
        return self.routing

    def end_routing(self) -> None:
        if self.routing is not None:
            self.routing.close()
            self.routing = None

    # ---- what there is

    def show(self, *command: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.netns.run("ip", "-d", "-j", *command).stdout or "[]")
        return [entry for entry in found if entry]

    def blocks_routed(self) -> set[str]:
        """To which there are routes of Gatehouse's, by way of other nodes."""
        found = [*self.show("route", "show", "proto", "71"), *self.show("-6", "route", "show", "proto", "71")]
        return {route["dst"] for route in found if "gateway" in route}

    def links(self) -> set[str]:
        """But for pods'."""
        return {link["ifname"] for link in self.show("link") if not link["ifname"].startswith("gh")} | {
            link["ifname"] for link in self.show("link") if link["ifname"].startswith("gatehouse")
        }


class NodeNetwork:
    def __init__(self, *names: str, families: Sequence[str] = FAMILIES, underlay_mtu: int = UNDERLAY_MTU) -> None:
        self.nodes: dict[str, RoutedNode] = {}
        self.underlay_mtu = underlay_mtu
        with ExitStack() as stack:
            self.bridge = stack.enter_context(rig.Netns("bridge"))
            self.bridge.ip(f"link add br0 mtu {underlay_mtu} type bridge mcast_snooping 0", "link set br0 up")
            for number, name in enumerate(names, 1):
                netns = stack.enter_context(rig.Netns(name))
                netns.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1", ipv4__conf__all__rp_filter="0")
                node = RoutedNode(name, number, netns, families)
                stack.callback(node.stack.close)
                stack.callback(node.end_routing)
                self.nodes[name] = node
                self._plug(node)
            self._stack = stack.pop_all()

    def __enter__(self) -> NodeNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> RoutedNode:
        return self.nodes[name]

    def _plug(self, node: RoutedNode) -> None:
        self.bridge.ip(
            f"link add p{node.number} mtu {self.underlay_mtu} type veth peer name eth0 mtu {self.underlay_mtu} "
            f"netns {node.netns.name}",
            f"link set p{node.number} master br0 up",
        )
        node.netns.sysctl(ipv6__conf__eth0__accept_dad="0")
        node.netns.ip(
            "link set eth0 up",
            *(
                f"address add {ip}/{BITS[f]} dev eth0 {'nodad' if f == 'v6' else ''}"
                for f, ip in node.addresses.items()
            ),
        )

    def peers(self, *, without: str = "") -> list[Peer]:
        return [node.peer for node in self.nodes.values() if node.name != without]

    def route(self, mode: str, *settings: str) -> None:
        """Every node is in this mode, and knows of all; its pod's MTU is what that says."""
        for node in self.nodes.values():
            routing = node.set_routing(mode, *settings)
            routing.update(node.own, self.peers())
            routing.sync()
        for node in self.nodes.values():
            assert node.routing is not None
            node.connect_pod(node.routing.mtu)

    def tell(self) -> None:
        """All nodes of how all are now."""
        for node in self.nodes.values():
            assert node.routing is not None
            node.routing.update(node.own, self.peers())
            node.routing.sync()


@contextmanager
def following(routing: Routing) -> Iterator[None]:
    """Routing.follow in a loop of its own."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        tasks.append(asyncio.ensure_future(routing.follow()))
        loop.call_soon(ready.set)
        await asyncio.gather(*tasks, return_exceptions=True)

    tasks: list[asyncio.Future[None]] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
