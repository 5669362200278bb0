"""What tells Envoy: its resources compiled, and the server it has them from.

This imports gRPC and Envoy's messages, some 16 MB: an agent whose rules ask for no Envoy does without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent import privileges
from agent.datapath import abi
from agent.datapath.mounts import is_kernel
from l7proxy.ads import AdsServer
from l7proxy.compile import Compiler
from l7proxy.listening import ProxySettings

NUMBERS = abi.load().constants
REUSE_PORT_KERNEL = (6, 6)
"""From here on sk_assign takes sockets that share a port."""


class Xds:
    """`changed` is called whenever Envoy has said something."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        settings = ProxySettings(
            NUMBERS.MARK_FROM_EGRESS,
            NUMBERS.MARK_FROM_INGRESS,
            NUMBERS.MARK_PROXY_ANSWERS,
            ipv6=_has_ipv6(),
            reuse_port=is_kernel(REUSE_PORT_KERNEL),
        )
        self.compiler = Compiler(settings)
        self.server = AdsServer(path, on_change=changed)
        self._path = path
        self._is_listening = False

    async def listen(self) -> None:
        """Does nothing where it listens."""
        if not self._is_listening:
            self._is_listening = True
            await self.server.start()
            privileges.share(self._path)

    async def stop(self) -> None:
        if self._is_listening:
            await self.server.stop()


def _has_ipv6() -> bool:
    with suppress(OSError):
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text().strip() == "0"
    return False
