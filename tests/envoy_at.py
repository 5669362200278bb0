"""A real Envoy on the way between two namespaces: a client's connections are given to its listeners as the datapath
does it, here by TPROXY; it connects on with the client's address.

    with EnvoyPath() as path:
        path.serve({80: demands})              # connections to port 80 are judged by these
        path.client.call(...)                  # connect to SERVER_V4 or SERVER_V6
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import rig
from http_server import Server

from l7proxy import envoy
from l7proxy.accesslog import AccessLog
from l7proxy.ads import AdsServer, Standing
from l7proxy.compile import Compiler
from l7proxy.listeners import Materials
from l7proxy.listening import Listening, Override, ProxySettings
from l7proxy.records import L7Record
from policies.l7 import Demands
from policies.model import Direction

T = TypeVar("T")

CLIENT_V4, CLIENT_V6 = "10.71.1.2", "fd71:1::2"
SERVER_V4, SERVER_V6 = "10.71.2.2", "fd71:2::2"
MARK = 1
SETTINGS = ProxySettings(mark_from_egress=0x6A7E0002, mark_from_ingress=0x6A7E0003, mark_answers=0x6A7E0004)
FIRST_LISTENER_PORT = 21000
TIMEOUT_S = 30.0
_NFT = """
table inet proxy {
 map ports { type inet_service : inet_service; }
 chain to_envoy {
  type filter hook prerouting priority -150; policy accept;
  meta l4proto tcp socket transparent 1 meta mark set 1 accept
  iifname "c0" meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:tcp dport map @ports meta mark set 1 accept
  iifname "c0" meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:tcp dport map @ports meta mark set 1 accept
 }
}
"""


@cache
def loop() -> asyncio.AbstractEventLoop:
    """grpc.aio wants one event loop in a process: this, in a thread of its own."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


def await_(coroutine: Coroutine[Any, Any, T], timeout_s: float = 2 * TIMEOUT_S) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(timeout_s)


class Records:
    """What the access log said."""

    def __init__(self) -> None:
        self.records: list[L7Record] = []
        self._changed = threading.Condition()

    def admit(self, count: int) -> int:
        return count

    def take(self, records: list[L7Record]) -> None:
        with self._changed:
            self.records.extend(records)
            self._changed.notify_all()

    def lose(self, count: int) -> None:
        raise AssertionError(f"{count} entries lost")

    def of_port(self, port: int, count: int) -> list[L7Record]:
        """Of flows to a destination's port, once there are so many."""

        def found() -> list[L7Record]:
            return [record for record in self.records if record.destination_port == port]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, TIMEOUT_S), self.records
            return found()


class EnvoyPath:
    """Client, node with Envoy, server."""

    def __init__(self, settings: ProxySettings = SETTINGS, *, log: bool = False) -> None:
        self.compiler = Compiler(settings)
        self.log = Records()
        self._numbers = itertools.count(1)
        self._listenings: dict[int, Listening] = {}
        self._materials: Materials = {}
        with ExitStack() as stack:
            self.dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gh-envoy-")))
            self.client, self.node, self.server = (
                stack.enter_context(rig.Netns(role)) for role in ("client", "node", "server")
            )
            self._wire()
            self.ads = await_(_server(self.dir / "xds.sock"))
            stack.callback(lambda: await_(self.ads.stop()))
            if log:
                access_log = AccessLog(self.log, redacted=False)
                await_(access_log.start(str(self.dir / "log.sock")))
                stack.callback(lambda: await_(access_log.stop()))
            self.process = self.start()
            stack.callback(self.kill)
            self._stack = stack.pop_all()

    def __enter__(self) -> EnvoyPath:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- Envoy -----------------------------------------------------------------------------------------------

    @property
    def admin(self) -> Path:
        return self.dir / "admin.sock"

    def start(self) -> subprocess.Popen[bytes]:
        settings = envoy.EnvoySettings(
            node="test", xds=self.dir / "xds.sock", access_log=self.dir / "log.sock", admin=self.admin
        )
        with (self.dir / "envoy.log").open("ab") as output:
            command = envoy.command(settings, envoy.binary())
            self.process = self.node.popen(*command, stdout=output, stderr=output)
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart_server(self) -> None:
        """As an agent that ends and comes again: with the same snapshot, made anew."""
        snapshot = self.ads.snapshot
        await_(self.ads.stop())
        self.ads = await_(_server(self.dir / "xds.sock"))
        if snapshot is not None:
            self.set_snapshot(snapshot)

    def set_snapshot(self, snapshot: Any) -> None:
        async def set_it() -> None:
            self.ads.set(snapshot)

        await_(set_it())

    def standing(self, names: Iterable[str] | None = None, timeout_s: float = TIMEOUT_S) -> Standing:
        return await_(self.ads.acked(names, timeout_s))

    # ---- what it serves --------------------------------------------------------------------------------------

    def serve(
        self,
        demands: Mapping[int, Demands],
        overrides: Mapping[int, Sequence[Override]] | None = None,
        materials: Materials | None = None,
        direction: Direction = Direction.EGRESS,
    ) -> dict[int, Listening]:
        """By the destination's port; `overrides` too; `materials` stay until there are others. Returns once Envoy has
        taken it and connections get there."""
        for port, asked in demands.items():
            known = self._listenings.get(port)
            if known is None or known.demands != asked:
                number = next(self._numbers)
                self._listenings[port] = Listening(number, FIRST_LISTENER_PORT + number, direction, asked)
        self.apply(overrides, materials)
        standing = self.standing()
        assert not standing.waiting, (standing, self.log_text())
        assert not standing.rejected, standing
        for listening in self._listenings.values():
            self._await_listening(listening.port)
        self._redirect()
        return dict(self._listenings)

    def apply(
        self, overrides: Mapping[int, Sequence[Override]] | None = None, materials: Materials | None = None
    ) -> None:
        self._materials = self._materials if materials is None else materials
        by_number = {self._listenings[port].number: mine for port, mine in (overrides or {}).items()}
        self.set_snapshot(self.compiler.snapshot(self._listenings.values(), by_number, self._materials))

    def log_text(self) -> str:
        return (self.dir / "envoy.log").read_text()

    def connect(self, port: int, server: str = SERVER_V4) -> socket.socket:
        """A client's socket; as it is told nothing, it does not know of Envoy."""
        return self.client.call(socket.create_connection, (server, port), TIMEOUT_S)

    def settle(self, server: Server) -> None:
        """Returns once the server has read all that clients sent which are gone: Envoy sends on what one sent before it
        closed, and that may arrive later than the client's next step. Ends the server's connections."""

        def over() -> bool:
            if _connected(self.node, "sport", server.port):  # from a client: more may be sent on
                return False
            server.finish()
            return not _connected(self.node, "dport", server.port) and not _connected(self.server, "sport", server.port)

        rig.wait_until(over, what="connections end")

    def _await_listening(self, port: int) -> None:
        def listens() -> bool:
            try:
                self.node.call(socket.create_connection, ("127.0.0.1", port), TIMEOUT_S).close()
            except ConnectionRefusedError:
                return False
            return True

        rig.wait_until(listens, what=f"Envoy listens on {port}")

    def _redirect(self) -> None:
        pairs = ", ".join(f"{port} : {listening.port}" for port, listening in self._listenings.items())
        self.node.run(
            "nft", "-f", "-", input=f"flush map inet proxy ports\nadd element inet proxy ports {{ {pairs} }}\n"
        )

    def _wire(self) -> None:
        node = self.node
        for namespace, link, mine, others in (
            (self.client, "c0", (CLIENT_V4, CLIENT_V6), ("10.71.1.1", "fd71:1::1")),
            (self.server, "s0", (SERVER_V4, SERVER_V6), ("10.71.2.1", "fd71:2::1")),
        ):
            node.ip(f"link add {link} type veth peer name eth0 netns {namespace.name}", f"link set {link} up")
            namespace.ip("link set eth0 up")
            for here, device, addresses in ((namespace, "eth0", mine), (node, link, others)):
                here.ip(
                    f"address add {addresses[0]}/24 dev {device}", f"address add {addresses[1]}/64 dev {device} nodad"
                )
            namespace.ip(f"route add default via {others[0]}", f"route add default via {others[1]}")
        node.sysctl(
            ipv4__ip_forward="1",
            ipv6__conf__all__forwarding="1",
            ipv4__conf__all__rp_filter="0",
            ipv4__conf__default__rp_filter="0",
        )
        for family in ("-4", "-6"):
            node.run("ip", family, "rule", "add", "fwmark", str(MARK), "lookup", "100")
            node.run("ip", family, "route", "add", "local", "default", "dev", "lo", "table", "100")
        node.run("nft", "-f", "-", input=_NFT)


def _connected(netns: rig.Netns, end: str, port: int) -> bool:
    """Whether there are TCP connections with this port at the local end (sport) or the other (dport)."""
    return bool(netns.run("ss", "-tnH", "state", "connected", "exclude", "time-wait", f"{end} = :{port}").stdout)


async def _server(path: Path) -> AdsServer:
    server = AdsServer(path)
    await server.start()
    return server
