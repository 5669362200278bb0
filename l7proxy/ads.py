"""The xDS server: one snapshot for every client, over a UNIX socket; who has taken what.

Aggregated discovery (ADS), delta and state-of-the-world. Until there is a first snapshot nobody is answered, so that a
client keeps what it has while an agent starts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import msgspec
from envoy.service.discovery.v3 import discovery_pb2

from l7proxy.resource import LISTENER, Key
from l7proxy.snapshot import Snapshot
from l7proxy.streams import DeltaStream, Rejected, StateOfTheWorldStream, Stream

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How listeners stand with Envoy. `acked`: it has them and all they need, as the snapshot has it. `waiting`: it has
    not said."""

    acked: frozenset[str] = frozenset()
    rejected: Mapping[str, tuple[Rejected, ...]] = {}
    waiting: frozenset[str] = frozenset()


class AdsServer:
    """Used in one event loop. `on_change` is called after each answer of a client, and when one comes or goes."""

    def __init__(self, path: Path, on_change: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._on_change = on_change
        self._snapshot: Snapshot | None = None
        self._clients: dict[Stream, asyncio.Event] = {}
        self._heard = asyncio.Event()
        self._server: Any = None

    async def start(self) -> None:
        """Raises OSError if nothing can listen at the path. A socket left there is replaced: see that you are alone."""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handlers = {
            "DeltaAggregatedResources": (self._delta, discovery_pb2.DeltaDiscoveryRequest),
            "StreamAggregatedResources": (self._state_of_the_world, discovery_pb2.DiscoveryRequest),
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        name: grpc.stream_stream_rpc_method_handler(
                            serve, request.FromString, lambda response: response.SerializeToString()
                        )
                        for name, (serve, request) in handlers.items()
                    },
                ),
            )
        )
        with suppress(FileNotFoundError):
            self._path.unlink()
        before = os.umask(0o177)
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)  # the path by way of it is never too long
        try:
            self._server.add_insecure_port(f"unix:/proc/self/fd/{folder}/{self._path.name}")
        except RuntimeError as error:
            raise OSError(f"no xDS server can listen at {self._path}: {error}") from error
        finally:
            os.umask(before)
            os.close(folder)
        await self._server.start()

    async def stop(self) -> None:
        """Clients keep what they have."""
        await self._server.stop(None)

    def set(self, snapshot: Snapshot) -> None:
        """From now on clients are brought to this."""
        self._snapshot = snapshot
        self._changed()
        for wake in self._clients.values():
            wake.set()

    @property
    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    @property
    def clients(self) -> int:
        return len(self._clients)

    def rejected(self) -> list[Rejected]:
        """What clients refused, with their words. They go on with what they had."""
        found = {key: one for stream in self._clients for key, one in stream.rejected.items()}
        return [found[key] for key in sorted(found)]

    def standing(self, names: Iterable[str] | None = None) -> Standing:
        """Of listeners; None: all of the snapshot. One that is not in the snapshot is waiting for ever."""
        snapshot = self._snapshot
        if names is None:
            names = snapshot.of_type(LISTENER) if snapshot else ()
        acked, rejected, waiting = set(), dict[str, tuple[Rejected, ...]](), set()
        for name in names:
            if snapshot is None or not self._clients or name not in snapshot.of_type(LISTENER):
                waiting.add(name)
                continue
            needed = snapshot.closure([(LISTENER, name)])
            if refused := self._refused(needed):
                rejected[name] = refused
            elif all(self._has(key, version) for key, version in needed.items()):
                acked.add(name)
            else:
                waiting.add(name)
        return Standing(frozenset(acked), rejected, frozenset(waiting))

    async def acked(self, names: Iterable[str] | None = None, timeout_s: float = 5.0) -> Standing:
        """Waits until none of these listeners is waiting, or the time is over; says how they stand then."""
        names = None if names is None else frozenset(names)
        waiting = self.standing(names).waiting
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while waiting:
                    await self._heard.wait()
                    waiting = self.standing(waiting).waiting
        return self.standing(names)

    # ---- clients ---------------------------------------------------------------------------------------------

    def _has(self, key: Key, version: str) -> bool:
        return all(stream.acked.get(key) == version for stream in self._clients)

    def _refused(self, needed: Mapping[Key, str]) -> tuple[Rejected, ...]:
        found = (stream.rejected.get(key) for stream in self._clients for key in needed)
        return tuple(one for one in found if one and needed[one.type_url, one.name] == one.version)

    def _changed(self) -> None:
        """Whoever waits looks again; the event is for those who wait now."""
        self._heard.set()
        self._heard = asyncio.Event()
        self._on_change()

    async def _delta(self, requests: AsyncIterator[Any], context: Any) -> None:
        await self._serve(DeltaStream(self._changed), requests, context)

    async def _state_of_the_world(self, requests: AsyncIterator[Any], context: Any) -> None:
        await self._serve(StateOfTheWorldStream(self._changed), requests, context)

    async def _serve(self, stream: Stream, requests: AsyncIterator[Any], context: Any) -> None:
        wake = asyncio.Event()

        async def read() -> None:
            async for request in requests:
                self._clients.setdefault(stream, wake)  # a stream that says nothing is nobody's
                stream.receive(request)
                wake.set()

        reader = asyncio.create_task(read())
        reader.add_done_callback(lambda _: wake.set())
        try:
            while not reader.done():
                wake.clear()
                if self._snapshot is not None:
                    for response in stream.responses(self._snapshot):
                        await context.write(response)
                await wake.wait()
            reader.result()
        finally:
            reader.cancel()
            if self._clients.pop(stream, None):
                self._changed()
