"""What an agent answers by HTTP: health checks of services, /healthz and /livez, and /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from agent import log as logs
from agent.config import listen_address
from agent.health.liveness import Liveness
from agent.health.ports import RETRY_S, HealthPorts
from agent.health.server import EVERYWHERE, Answers, HttpServer
from agent.services.health import Answer
from agent.world.config import NodeConfig
from agent.world.world import World

NOT_FOUND = Answer(HTTPStatus.NOT_FOUND, b'{"error":"there is only /metrics"}')

log = logs.get("health")


class HealthChecks:
    """`healthz`, `metrics`: as in Config; `exposition` answers GET /metrics. `behind_since`: see agent.revisions."""

    def __init__(
        self,
        healthz: str,
        world: World,
        behind_since: Callable[[], float | None],
        metrics: str = "",
        exposition: Callable[[], Awaitable[Answer]] | None = None,
    ) -> None:
        self._problems: dict[str, str] = {}
        self.liveness = Liveness(behind_since, lambda: is_leaving(world))
        self._http = HttpServer()
        self._open: dict[str, tuple[str, Answers]] = {}
        if healthz:
            self._open["healthz"] = healthz, self.liveness.answer
        if metrics and exposition:
            self._open["metrics"] = metrics, lambda path: exposition() if path == "/metrics" else NOT_FOUND
        self.ports = HealthPorts(world, self._http, port_addresses(world.config), self.liveness.in_force)

    @property
    def problems(self) -> list[str]:
        """Why something cannot be opened; it is tried again."""
        return list(self._problems.values())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ports.run())
            for name, (where, answers) in self._open.items():
                tasks.create_task(self._serve(name, where, answers))

    async def _serve(self, name: str, where: str, answers: Answers) -> None:
        address, port = listen_address(name, where)
        while True:
            try:
                listening = await self._http.listen([address], port, answers)
                break
            except OSError as error:
                why = f"--{name} {where} cannot be opened ({error.strerror}): free it, or change it"
                self._problems[name] = why
                log.error(name, reason=why)
                await asyncio.sleep(RETRY_S)
        self._problems.pop(name, None)
        try:
            await asyncio.Event().wait()
        finally:
            await listening.close()


def is_leaving(world: World) -> bool:
    """This node, as its Node object tells; one without an object stays."""
    node = world.nodes.get(world.config.name)
    return node is not None and node.leaving


def port_addresses(node: NodeConfig) -> list[bytes]:
    """Where health checks of services are answered: at the addresses of node ports."""
    blocks = node.services.node_port_addresses
    if not blocks:
        return [EVERYWHERE]
    return [address for address in node.addresses if any(block.contains(address) for block in blocks)]
