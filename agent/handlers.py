"""What can be asked at agent.sock.

status                                         status.StatusView
endpoints identities policies nodes            lists of status.…View
config                                         list of config.handover.Shown: the settings, and where from
encryption rotate                              status.EncryptionView; rotate begins to change this node's key
services {namespace, name, problems}           stream of status.ServiceView; see service_views.Wanted
trace {source, destination, port, …}           status.TraceView; see tracing.Asked
names                                          stream for the flows process (agent.naming)
settled {timeout}                              {} once all that is written by now is in force; seconds
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from agent.api.protocol import ApiError, Batch
from agent.api.server import Handler
from agent.config.handover import Shown
from agent.overview import Overview
from agent.service_views import ServiceViews, Wanted
from agent.status import (
    EncryptionView,
    EndpointView,
    IdentityView,
    NodeView,
    PolicyView,
    Revision,
    StatusView,
    TraceView,
)
from agent.tracing import Asked, Tracer
from agent.views import Views

if TYPE_CHECKING:
    from agent.loop import Agent

SERVICES_A_TURN = 10
ENDPOINTS_AT_ONCE = 64


class SettledArguments(msgspec.Struct, forbid_unknown_fields=True):
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class Handlers:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._views = Views(agent.world, agent.pods, self._revision)
        self._overview = Overview(agent, self._views)
        self._tracer = Tracer(agent.world, agent.maps)
        self._service_views = ServiceViews(agent.world, agent.realizer.history, lambda: agent.health.ports.problems)

    def by_operation(self) -> Mapping[str, Handler]:
        return {
            "status": self.status,
            "endpoints": self.endpoints,
            "identities": self.identities,
            "services": self.services,
            "trace": self.trace,
            "policies": self.policies,
            "nodes": self.nodes,
            "names": self._agent.names.stream,
            "settled": self.settled,
            "config": self.config,
            "encryption": self.encryption,
            "rotate": self.rotate,
        }

    async def config(self, _arguments: dict[str, Any]) -> Sequence[Shown]:
        return self._agent.instance.settings

    async def encryption(self, _arguments: dict[str, Any]) -> EncryptionView:
        return self._overview.encryption() or EncryptionView(mode="off")

    async def rotate(self, _arguments: dict[str, Any]) -> EncryptionView:
        if (encryption := self._agent.neighbours.encryption) is None:
            raise ApiError("nothing is encrypted here, so there is no key: start the agent with --encryption wireguard")
        await encryption.rotate()
        return await self.encryption({})

    async def endpoints(self, _arguments: dict[str, Any]) -> list[EndpointView]:
        """There may be 30,000, of other nodes: not all at once."""
        found: list[EndpointView] = []
        for view in self._views.endpoints():
            found.append(view)
            if len(found) % ENDPOINTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    async def identities(self, _arguments: dict[str, Any]) -> list[IdentityView]:
        return self._views.identities()

    async def services(self, arguments: dict[str, Any]) -> AsyncGenerator[Batch, None]:
        """A few at a time: there may be so many that the agent must do its work between them."""
        views = self._service_views.views(msgspec.convert(arguments, Wanted))
        while some := list(islice(views, SERVICES_A_TURN)):
            yield Batch(view for view in some if view is not None)

    async def trace(self, arguments: dict[str, Any]) -> TraceView:
        return self._tracer.answer(msgspec.convert(arguments, Asked))

    async def policies(self, _arguments: dict[str, Any]) -> list[PolicyView]:
        return self._views.policies(self._agent.turns.problems)

    async def nodes(self, _arguments: dict[str, Any]) -> list[NodeView]:
        return self._views.nodes()

    async def settled(self, arguments: dict[str, Any]) -> dict[str, Any]:
        request = msgspec.convert(arguments, SettledArguments)
        try:
            async with asyncio.timeout(request.timeout):
                await self._agent.settled()
        except TimeoutError:
            reasons = self._overview.reasons(self._agent.problems(), self._agent.proxy_views())
            why = "; ".join(reasons) or "it is still at work"
            raise ApiError(f"not everything is in force after {request.timeout:g} s: {why}") from None
        return {}

    async def status(self, _arguments: dict[str, Any]) -> StatusView:
        return await self._overview.status()

    def _revision(self, ref: Any) -> Revision:
        return self._agent.turns.revision_of(ref, self._agent.source.unread())
