"""A node for tests of CNI without a kernel: links and world as a model that fails or is killed at any step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from agent.cni.attachments import Attachments
from agent.cni.ipam import Ipam
from agent.cni.place import Connected, Guard, NotConnected, host_link
from agent.cni.pods import CniPods
from agent.cni.protocol import Key, Request
from agent.cni.recovery import Recovered
from agent.cni.surroundings import Surroundings
from agent.cni.verbs import Verbs
from agent.objects import Interface, Pod
from agent.pods import PodGone
from policies.address import Prefix
from policies.model import ObjectRef, Origin

BLOCKS = (Prefix.parse("10.244.0.0/24"), Prefix.parse("fd00:10:244::/64"))


class Killed(BaseException):
    """The agent's process ends here."""


def ref_of(name: str) -> ObjectRef:
    return ObjectRef("Pod", "shop", name)


def pod(name: str, uid: str = "u1", host_network: bool = False) -> Pod:
    return Pod(ref_of(name), Origin("api", 0), {"app": name}, uid=uid, host_network=host_network)


class Kernel:
    """What outlives an agent: links by name, and every step that was taken. `at` is called with a step's name before
    it is done, in whichever thread does it."""

    def __init__(self) -> None:
        self.links: dict[str, Connected] = {}
        self.steps: list[str] = []
        self.at: Callable[[str], None] = lambda step: None
        self.wrong: list[str] = []
        self.lost: dict[str, Recovered] = {}
        self._lock = threading.Lock()
        self._indexes = 0

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.at(name)

    # ---- agent.cni.surroundings.Links

    def connect(
        self,
        netns: str,
        ifname: str,
        addresses: Sequence[bytes],
        pod: ObjectRef,
        mtu: int,
        guard: Guard,
    ) -> Interface:
        self.step("connect")
        if not Path(netns).exists():
            raise NotConnected(2, f"network namespace {netns}: it has to be there")
        name = host_link(addresses)
        with self._lock:
            self._indexes += 1
            assert name not in self.links, "one address twice"
            self.links[name] = Connected(name, self._indexes, pod, ifname, False)
            try:
                self.step("connected")
                guard(self._indexes)
                self.step("up")
            except OSError:
                del self.links[name]
                raise
            return Interface(self._indexes, name, b"\2" * 6, b"\4" * 6, netns)

    def await_ready(self, interface: Interface) -> None:
        self.step("ready")

    def adopt(self, netns: str, ifname: str, addresses: Sequence[bytes]) -> Interface:
        self.step("adopt")
        return Interface(77, "veth-of-another", b"\2" * 6, b"\4" * 6, netns, resolves=True)

    def disconnect_all(self, names: Collection[str]) -> None:
        self.step("disconnect")
        with self._lock:
            for name in names:
                self.links.pop(name, None)

    def existing(self) -> list[Connected]:
        with self._lock:
            return list(self.links.values())

    def recover(self, orphans: Collection[Connected]) -> list[Recovered]:
        return [self.lost[one.name] for one in orphans if one.name in self.lost]

    def check(self, netns: str, ifname: str, addresses: Sequence[bytes], interface: Interface) -> list[str]:
        return list(self.wrong)


class World:
    """Turns and World: who is known, by which addresses. It goes with the agent."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.pods: set[ObjectRef] = set()
        self.attached: dict[ObjectRef, tuple[bytes, ...]] = {}

    async def attach(self, ref: ObjectRef, addresses: tuple[bytes, ...], interface: Interface, uid: str) -> None:
        self.kernel.step("attach")
        await asyncio.sleep(0)
        if ref not in self.pods:
            raise PodGone(f"{ref} was deleted")
        self.attached[ref] = addresses

    async def detach(self, ref: ObjectRef) -> None:
        self.kernel.step("detach")
        await asyncio.sleep(0)
        self.attached.pop(ref, None)

    async def published(self, ref: ObjectRef) -> None:
        self.kernel.step("published")
        await asyncio.sleep(0)


class CniNode:
    """An agent on a node; a second one of the same folder and kernel is the next agent there."""

    def __init__(
        self, folder: Path, kernel: Kernel, blocks: Sequence[Prefix] = BLOCKS, chained: bool = False, **verbs: Any
    ) -> None:
        self.folder = folder
        self.kernel = kernel
        self.world = World(kernel)
        self.unreachable = ""
        self.unready = ""
        self.detach: Callable[[ObjectRef], Awaitable[None]] = self.world.detach
        self.publish: Callable[[ObjectRef], Awaitable[None]] = self.world.published
        self.programs: set[int] = set()
        self.record = Attachments(folder / "attachments")
        self.ipam = Ipam(lambda: 0.0)
        self.ipam.set_blocks(blocks)
        self.around = Surroundings(
            links=kernel,
            attach_programs=self._attach_programs,
            has_programs=self.programs.__contains__,
            attach=self.world.attach,
            stands=self._stands,
            detach=self._detached,
            published=self._published,
            unreachable=lambda: self.unreachable,
            mtu=lambda: 1500,
        )
        self.pods = CniPods(self.record, self.ipam, self.around, chained)
        self.verbs = Verbs(self.pods, folder / "cni-queue", lambda: self.unready, lambda: 1500, **verbs)
        self._running: asyncio.Task[None] | None = None

    def _attach_programs(self, ifindex: int) -> None:
        self.kernel.step("programs")
        self.programs.add(ifindex)

    async def _stands(self, interface: Interface) -> None:
        self.kernel.step("stands")
        await asyncio.sleep(0)

    async def _published(self, ref: ObjectRef) -> None:
        await self.publish(ref)

    async def _detached(self, ref: ObjectRef) -> None:
        await self.detach(ref)

    async def begin(self, *pods: Pod) -> CniNode:
        """As an agent starts: adopt, then the pods of the API server, then the socket."""
        found = await self.pods.adopt([one.ref for one in pods])
        for ref, adopted in found.items():
            self.world.attached[ref] = tuple(adopted.addresses)
            self.programs.add(adopted.interface.index)
        self.tell(*pods)
        await self.pods.settled()
        self._running = asyncio.create_task(self.verbs.run())
        await self.verbs._opened.wait()
        return self

    def tell(self, *pods: Pod) -> None:
        for one in pods:
            self.world.pods.add(one.ref)
            self.pods.want(one)

    def drop(self, name: str) -> None:
        self.world.pods.discard(ref_of(name))
        self.pods.drop(ref_of(name))

    async def end(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        await self.pods.stop()
        await self.pods.close(keep=True)

    def netns(self, name: str) -> str:
        path = self.folder / f"netns-{name}"
        path.touch()
        return str(path)

    def add(self, name: str, container: str = "", uid: str = "u1", **more: Any) -> asyncio.Task[bytes]:
        container = container or f"c-{name}"
        given: dict[str, Any] = {
            "command": "ADD",
            "version": "1.1.0",
            "network": "gatehouse",
            "key": Key(container, "eth0"),
            "netns": self.netns(container),
            "pod": ref_of(name),
            "uid": uid,
        }
        return asyncio.create_task(self.verbs.handle(Request(**(given | more))))

    def ask(self, command: Any, container: str, **more: Any) -> asyncio.Task[bytes]:
        given: dict[str, Any] = {
            "version": "1.1.0",
            "network": "gatehouse",
            "key": Key(container, "eth0"),
            "netns": str(self.folder / f"netns-{container}"),
        }
        return asyncio.create_task(self.verbs.handle(Request(command=command, **(given | more))))

    def assert_clean(self) -> None:
        """Links, addresses and the record agree: what is not a complete attachment is not there at all."""
        complete = {one.key: one for one in self.record}
        assert all(one.interface for one in complete.values())
        names = {one.interface.name for one in complete.values() if one.interface}
        assert set(self.kernel.links) == names
        on_file = {path.name.removesuffix(".json") for path in (self.folder / "attachments").iterdir()}
        assert on_file == {str(key).replace("/", "@") for key in complete}
        held = [address for one in complete.values() for address in one.addresses]
        assert len(held) == len(set(held))
        assert {key: one.addresses for key, one in complete.items()} == self.ipam.held()
