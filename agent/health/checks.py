"""All health checks of an agent: the ports of services, and /healthz and /livez."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent import log as logs
from agent.config import listen_address
from agent.health.liveness import Liveness
from agent.health.ports import RETRY_S, HealthPorts
from agent.health.server import EVERYWHERE, HttpServer
from agent.world.config import NodeConfig
from agent.world.world import World

log = logs.get("health")


class HealthChecks:
    """`healthz`: as in Config. `problem`: why that cannot be opened; it is tried again. `behind_since`: see Turns."""

    def __init__(self, healthz: str, world: World, behind_since: Callable[[], float | None]) -> None:
        self.problem = ""
        self.liveness = Liveness(behind_since)
        self._http = HttpServer()
        self._healthz = healthz
        self.ports = HealthPorts(world, self._http, port_addresses(world.config), self.liveness.in_force)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ports.run())
            if self._healthz:
                tasks.create_task(self._serve_healthz(*listen_address(self._healthz)))

    async def _serve_healthz(self, address: bytes, port: int) -> None:
        while True:
            try:
                listening = await self._http.listen([address], port, self.liveness.answer)
                break
            except OSError as error:
                self.problem = f"--healthz {self._healthz} cannot be opened ({error.strerror}): free it, or change it"
                log.error("healthz", reason=self.problem)
                await asyncio.sleep(RETRY_S)
        self.problem = ""
        try:
            await asyncio.Event().wait()
        finally:
            await listening.close()


def port_addresses(node: NodeConfig) -> list[bytes]:
    """Where health checks of services are answered: at the addresses of node ports."""
    blocks = node.services.node_port_addresses
    if not blocks:
        return [EVERYWHERE]
    return [address for address in node.addresses if any(block.contains(address) for block in blocks)]
