"""The ports at which load balancers ask for a service (spec.healthCheckNodePort): opened and closed as services go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from agent import log as logs
from agent.health.server import HttpServer, Listening
from agent.services.health import Answer, Check, is_checked, local_endpoints, service_answer
from agent.world.world import World
from policies.model import ObjectRef

RETRY_S = 5.0

log = logs.get("health")


class HealthPorts:
    """`addresses`: to listen at, as HttpServer.listen has them. `in_force`: as services.health.Health has it.

    `problems`: why the port of a service is not open; it is tried again.
    """

    def __init__(
        self, world: World, http: HttpServer, addresses: Sequence[bytes], in_force: Callable[[], bool]
    ) -> None:
        self.problems: dict[ObjectRef, str] = {}
        self._world = world
        self._http = http
        self._addresses = tuple(addresses)
        self._in_force = in_force
        self._wanted: dict[ObjectRef, Check] = {}
        self._open: dict[ObjectRef, tuple[int, Listening]] = {}
        self._changed = asyncio.Event()

    def update(self, refs: Iterable[ObjectRef]) -> None:
        """These services, their endpoints or ports may be others now. Ports follow, answers are as of now."""
        for ref in refs:
            check = _check(self._world, ref)
            old = self._wanted.pop(ref, None)
            if check is not None:
                self._wanted[ref] = check
            if (old and old.port) != (check and check.port):
                self._changed.set()

    async def run(self) -> None:
        try:
            while True:
                self._changed.clear()
                await self._open_and_close()
                try:
                    async with asyncio.timeout(RETRY_S if self.problems else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            for _, listening in self._open.values():
                await listening.close()

    async def _open_and_close(self) -> None:
        for ref in [ref for ref, (port, _) in self._open.items() if self._port(ref) != port]:
            await self._open.pop(ref)[1].close()
        self.problems = {ref: said for ref, said in self.problems.items() if self._port(ref)}
        for ref, check in sorted(self._wanted.items()):
            if ref not in self._open:
                await self._listen(ref, check.port)

    async def _listen(self, ref: ObjectRef, port: int) -> None:
        try:
            listening = await self._http.listen(self._addresses, port, lambda _path: self._answer(ref))
        except OSError as error:
            said = f"health check port {port} cannot be opened ({error.strerror}): free it, or choose another"
            if self.problems.get(ref) != said:
                log.error("health check port", service=str(ref), port=port, reason=error.strerror)
            self.problems[ref] = said
            return
        self.problems.pop(ref, None)
        self._open[ref] = port, listening

    def _port(self, ref: ObjectRef) -> int:
        check = self._wanted.get(ref)
        return check.port if check else 0

    def _answer(self, ref: ObjectRef) -> Answer:
        return service_answer(self._wanted.get(ref, Check(ref, 0, 0)), self._in_force())


def _check(world: World, ref: ObjectRef) -> Check | None:
    service = world.services.get(ref)
    if service is None or not is_checked(service) or not (port := world.services.health_port(ref)):
        return None
    return Check(ref, port, local_endpoints(world.slices(service), world.config.name))
