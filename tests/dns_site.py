"""A pod, its node and a resolver in namespaces; the node gives the pod's DNS to a port of loopback by TPROXY, as the
datapath does by bpf_sk_assign.

    with DnsSite() as site:
        site.redirect(5300)
        with Resolver(site.outside) as resolver, Running(site, [NamePattern(pattern="*.ok")]) as proxy: …
        ask(site.pod, OUTSIDE_V4, "a.ok")
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rig import WAIT_S, Netns, Node, Outside

from agent.datapath import abi
from agent.proxy import routing
from l7proxy.dns.learning import Learning
from l7proxy.dns.proxy import Proxy, Wanted
from l7proxy.dns.rules import Judge, Rules
from l7proxy.dns.sockets import Marks
from l7proxy.dns.store import Store
from l7proxy.dns.table import Table
from l7proxy.records import L7Record
from policies.l7 import NamePattern

T = TypeVar("T")

C = abi.load().constants
MARKS = Marks(C.MARK_FROM_EGRESS, C.MARK_FROM_INGRESS, C.MARK_PROXY_ANSWERS)
POD_V4, POD_V6 = "10.9.0.2", "fd09::2"
GATE_V4, GATE_V6 = "10.9.0.1", "fd09::1"
TOOLS = {"iptables": "127.0.0.1", "ip6tables": "::1"}
NUMBER = 0x1234


class DnsSite:
    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.node = stack.enter_context(Node(forwarding=True))
            self.node.sysctl(
                ipv4__conf__all__rp_filter="0",
                ipv4__conf__default__rp_filter="0",
                ipv6__conf__default__accept_dad="0",
            )
            self.outside = stack.enter_context(Outside(self.node))
            self.pod = stack.enter_context(Netns("pod"))
            self.pod.sysctl(ipv6__conf__default__accept_dad="0")
            self.node.ip(
                f"link add pod0 type veth peer name eth0 netns {self.pod.name}",
                "link set pod0 up",
                f"address add {GATE_V4}/32 dev pod0",
                f"address add {GATE_V6}/128 dev pod0 nodad",
                f"route add {POD_V4}/32 dev pod0",
                f"route add {POD_V6}/128 dev pod0",
            )
            self.pod.ip(
                "link set eth0 up",
                f"address add {POD_V4}/32 dev eth0",
                f"address add {POD_V6}/128 dev eth0 nodad",
                f"route add {GATE_V4} dev eth0",
                f"route add {GATE_V6} dev eth0",
                f"route add default via {GATE_V4} dev eth0",
                f"route add default via {GATE_V6} dev eth0",
            )
            self.node.call(routing.install)
            for tool in TOOLS:
                for protocol in ("udp", "tcp"):  # what comes for the sockets that speak with the pod's address
                    self._mangle(tool, "-p", protocol, "-m", "socket", "--transparent", "-j", "MARK", "--set-mark",
                                 hex(C.MARK_TO_PROXY))  # fmt: skip
            self._stack = stack.pop_all()
        return self

    def redirect(self, port: int) -> None:
        """What the pod sends to port 53 goes to this port of loopback."""
        for tool, address in TOOLS.items():
            for protocol in ("udp", "tcp"):
                self._mangle(tool, "-i", "pod0", "-p", protocol, "--dport", "53", "-j", "TPROXY", "--on-port",
                             str(port), "--on-ip", address, "--tproxy-mark", hex(C.MARK_TO_PROXY))  # fmt: skip

    def _mangle(self, tool: str, *rule: str) -> None:
        self.node.run(tool, "-w", "-t", "mangle", "-A", "PREROUTING", *rule)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class Running:
    """A proxy in a thread inside the node, without an agent: `settles` says what is in the kernel at once."""

    def __init__(
        self, site: DnsSite, patterns: Iterable[NamePattern], folder: Path, needed: Iterable[NamePattern] = ()
    ) -> None:
        self.records: list[L7Record] = []
        self.settles = True
        self._site = site
        self._patterns = tuple(patterns)
        self._needed = tuple(needed)
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: site.node.call(asyncio.run, self._run()), daemon=True)

    def settle(self, _address: bytes, _names: frozenset[str]) -> bool:
        return self.settles

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        store, table = Store(self._folder / "names.json"), Table()
        store.load(table, time.time())
        self.learning = Learning(table, store, self, clock=time.time, monotonic=time.monotonic)
        self.learning.need(self._needed)
        self.judge = Judge(self.learning, self.records.append)
        self.proxy = Proxy(self.judge, self.learning, MARKS)
        self.problems = self.proxy.serve({NUMBER: Wanted(Rules.of(NUMBER, self._patterns))})
        work = asyncio.ensure_future(self.proxy.run())
        self._ready.set()
        await self._stop.wait()
        work.cancel()
        await asyncio.wait({work})
        await self.proxy.close()
        store.close()
        self.left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def call(self, function: Callable[[], T]) -> T:
        """In its loop."""

        async def inside() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(WAIT_S)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        self._site.redirect(self.proxy.ports[NUMBER])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
