"""Nodes in namespaces on one wire, each with a WireGuard device that agent.encryption keeps; no datapath.

    with Wire() as wire, wire.node(1, "userspace") as one, wire.node(2, "userspace") as two:
        wire.start(one, two)
        one.ping(two)

A node's pod has its address on `lo`; a route by the device leads to those of the others. What nodes tell each other
goes by `Wire.tell`, at once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import rig
from patience import SLOWER

from agent.config import Config
from agent.encryption.encryption import Encryption, Surroundings
from agent.encryption.rotation import Bounds
from agent.encryption.userspace import socket_of
from agent.instance import Instance
from agent.routing.desired import Own
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

T = TypeVar("T")
MARK = 0x6A7E0005
PORT = 51871
QUICK = Bounds(overlap_s=0.3, swapped_s=5.0)
WAIT_S = 30.0 * SLOWER
_counter = itertools.count(1)


class Wire(rig.Netns):
    """A bridge."""

    def __init__(self, folder: Path) -> None:
        super().__init__("wire")
        self.folder = folder
        self.ip("link add wire0 type bridge", "link set wire0 up")
        self.nodes: list[EncryptedNode] = []

    def __enter__(self) -> Wire:
        return self

    def node(self, number: int, backend: str, **config: object) -> EncryptedNode:
        return EncryptedNode(self, number, backend, **config)

    def start(self, *nodes: EncryptedNode) -> None:
        for node in nodes:
            node.start()
        self.tell()
        for node in nodes:
            node.reaches(*(other for other in nodes if other is not node))

    def tell(self) -> None:
        """Everybody is told what everybody tells now."""
        for node in self.nodes:
            if node.encryption:
                node.hear([other.told() for other in self.nodes if other is not node])


class EncryptedNode(rig.Netns):
    """`stop` leaves the device, as the end of an agent does; `start` begins another agent on it."""

    def __init__(self, wire: Wire, number: int, backend: str, **config: object) -> None:
        super().__init__(f"n{number}")
        self.wire, self.number, self.node_name = wire, number, f"n{number}"
        self.link = f"w{os.getpid()}x{next(_counter)}"[:15]
        self.addresses = [f"192.0.2.{number}", f"2001:db8::{number}"]
        self.pods = [f"10.244.{number}.2", f"fd00:{number}::2"]
        self.blocks = tuple(map(Prefix.parse, (f"10.244.{number}.0/24", f"fd00:{number}::/64")))
        wire.ip(
            f"link add {self.link} type veth peer name eth0 netns {self.name}", f"link set {self.link} master wire0 up"
        )
        self.ip("link set eth0 up")
        self.ip(*(f"address add {a}/24 dev eth0" for a in self.addresses[:1]))
        self.ip(*(f"address add {a}/64 dev eth0 nodad" for a in self.addresses[1:]))
        self.ip(*(f"address add {a} dev lo" for a in self.pods))
        state = wire.folder / self.node_name
        state.mkdir(exist_ok=True)
        self.instance = Instance(state)
        settings = {"wireguard": backend, "encryption": "wireguard", "node": self.node_name, **config}
        self.config = Config(**settings)  # type: ignore[arg-type]
        self.encryption: Encryption | None = None
        self.ready: list[frozenset[str]] = []
        self.devices: list[int] = []
        self.peers: list[Peer] = []
        self.facts: tuple[bytes, bytes] = (b"", b"")
        self.bounds = QUICK
        self.published = True
        self.asked_whether_published = threading.Event()
        self._earlier: list[Encryption] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: list[BaseException] = []
        wire.nodes.append(self)

    def __enter__(self) -> EncryptedNode:
        return self

    # ---- its agent

    def start(self) -> None:
        begun = threading.Event()
        self._thread = threading.Thread(target=self.call, args=(self._live, begun))
        self._thread.start()
        begun.wait(WAIT_S)
        self._check()

    def stop(self, remove: bool = False) -> None:
        if self._thread and self._loop and self._stopping:
            if remove and self.encryption:
                self.removes = True
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None
        self._check()

    removes = False

    def _live(self, begun: threading.Event) -> None:
        try:
            asyncio.run(self._main(begun))
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            self._failure.append(error)
        finally:
            begun.set()

    async def _main(self, begun: threading.Event) -> None:
        self._loop, self._stopping, self.removes = asyncio.get_running_loop(), asyncio.Event(), False
        around = Surroundings(
            MARK,
            mtu=lambda: 1420,
            published=self._published,
            on_ready=self.ready.append,
            on_device=self._made,
            on_facts=self._changed,
        )
        encryption = self.encryption = Encryption(self.config, self.instance, around, self.bounds)
        self._earlier.append(encryption)
        self.facts = encryption.facts()
        encryption.update(self.own(), self.peers)
        await encryption.start()
        begun.set()
        work = asyncio.create_task(encryption.run())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stop):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await work
        if self.removes:
            await encryption.remove()
        self.encryption = None
        encryption.close()

    def _check(self) -> None:
        if self._failure:
            raise self._failure.pop()

    def _published(self, _: tuple[bytes, bytes]) -> bool:
        self.asked_whether_published.set()
        return self.published

    def _made(self, ifindex: int) -> None:
        self.devices.append(ifindex)

    def _changed(self) -> None:
        assert self.encryption
        self.facts = self.encryption.facts()
        self.wire.tell()

    def do(self, work: Callable[[Encryption], Awaitable[T]]) -> T:
        """In its loop."""
        assert self._loop and self.encryption
        encryption = self.encryption

        async def wrapped() -> T:
            return await work(encryption)

        return asyncio.run_coroutine_threadsafe(wrapped(), self._loop).result(WAIT_S)

    # ---- what it tells and hears

    def own(self) -> Own:
        return Own(self.node_name, tuple(map(parse_address, self.addresses)), self.blocks)

    def told(self) -> Peer:
        own = self.own()
        return Peer(own.name, own.addresses, own.pod_cidrs, *self.facts)

    def hear(self, peers: list[Peer]) -> None:
        self.peers = peers
        if self.encryption and self._loop:
            self._loop.call_soon_threadsafe(self.encryption.update, self.own(), peers)

    def reaches(self, *others: EncryptedNode) -> None:
        """Wait until its device does, and set the routes to their pods."""
        names = {other.node_name for other in others}
        rig.wait_until(lambda: self.encryption and names <= self.encryption.ready, WAIT_S, f"{self.name}: ready")
        self.route(*others)

    def route(self, *others: EncryptedNode) -> None:
        for other in others:
            v4, v6 = other.blocks
            self.ip(
                f"route replace {v4} dev {self.device} src {self.pods[0]}",
                f"route replace {v6} dev {self.device} src {self.pods[1]}",
            )

    @property
    def device(self) -> str:
        assert self._earlier
        return self._earlier[-1].name

    def ping(self, other: EncryptedNode, count: int = 1, check: bool = True) -> bool:
        results = [
            self.run(
                *("ping", "-n", "-c", str(count), "-i", "0.05", "-W", str(int(WAIT_S)), "-I", mine, theirs),
                check=check,
                timeout_s=2 * WAIT_S,
            )
            for mine, theirs in zip(self.pods, other.pods, strict=True)
        ]
        return all(one.returncode == 0 for one in results)

    def close(self) -> None:
        self.stop(remove=True)
        self.wire.nodes.remove(self)
        for encryption in self._earlier:
            device = encryption._tunnel.device
            child = getattr(getattr(device, "_kept", None), "_child", None)
            if child:
                child.wait(10)
        left = socket_of(self.device).exists() if self._earlier else False
        super().close()
        assert not left, "the device's socket is left"
