"""Envoy's side: listeners and their rules over xDS, ports, Secrets, and rules of the day for connections that live."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent import log as logs
from agent import privileges
from agent.api import aio
from agent.api.protocol import ApiError
from agent.config import Config
from agent.helpers import keeping
from agent.identity.allocator import Allocator, ExhaustedError
from agent.instance import Instance
from agent.objects import Secret
from agent.plan.ids import Asked
from agent.plan.live import Otherwise
from agent.proxy.opening import Opening
from agent.proxy.proxies import Ports
from agent.proxy.running import Running
from agent.status import ProxyView
from l7proxy import envoy
from l7proxy.listening import Listening, Override, TlsMaterial, contexts, envoy_serves, listener_name
from l7proxy.snapshot import InconsistentSnapshot
from policies.l7 import TlsContext
from policies.model import ObjectRef

if TYPE_CHECKING:
    from agent.proxy.xds import Xds

CERTIFICATE, PRIVATE_KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
"""Keys of a Secret's data where the rule names none (kubernetes.io/tls)."""
TAKES_S = 2.0
LOGS_S = 1.0
"""Envoy waits for nobody who is to take its log longer than that."""
UNLOGGED = "requests are judged, and not recorded: the flows process takes no access log yet"

log = logs.get("envoy")


class EnvoySide:
    """`secret` finds a Secret, `ports` gives ports out, `begin`: see Running. `lingering`: listeners that
    no row names, while flows of theirs live."""

    def __init__(
        self,
        config: Config,
        instance: Instance,
        ports: Allocator,
        secret: Callable[[ObjectRef], Secret | None],
        begin: Callable[[], None],
    ) -> None:
        self.changed = asyncio.Event()
        self._ports = ports
        self._secret = secret
        self._instance = instance
        self._xds: Xds | None = None  # until a rule asks for Envoy
        self._wanted: Mapping[int, Asked] = {}
        self._lingering: dict[int, Asked] = {}
        self._overrides: Mapping[int, tuple[Otherwise, ...]] = {}
        self._listening: dict[int, Ports] = {}
        self._materials: dict[TlsContext, TlsMaterial | None] = {}
        self._opening = Opening(self._opened)
        self._failures: dict[int, str] = {}
        self._is_unlogged = False
        command, self._problem = _command(config, instance)
        self._user = privileges.user_for(Path(command[0])) if command else privileges.ROOT
        kept = keeping.envoy(config, instance, command, self._user)
        self.running = Running(kept, config.l7_proxy if command else "off", begin)

    # ---- what is ordered

    def takes(self, asked: Asked) -> bool:
        return envoy_serves(asked.demands)

    def order(self, wanted: Mapping[int, Asked]) -> None:
        if wanted == self._wanted and not self._are_secrets_stale():
            return
        for number, asked in self._wanted.items():
            if number not in wanted:
                self._lingering[number] = asked
        for number in wanted:
            self._lingering.pop(number, None)
        self._wanted = dict(wanted)
        if wanted:
            self.running.want()
        self._publish()

    @property
    def lingering(self) -> Mapping[int, Asked]:
        return self._lingering

    def judge_otherwise(self, overrides: Mapping[int, tuple[Otherwise, ...]], alive: frozenset[int]) -> None:
        """`alive`: listeners at which flows live; those that linger without any go."""
        gone = self._lingering.keys() - alive
        for number in gone:
            del self._lingering[number]
            self._ports.release(listener_name(number))
        if gone or overrides != self._overrides:
            self._overrides = dict(overrides)
            self._publish()

    async def told(self) -> None:
        """Until Envoy has taken what was ordered last, or cannot soon."""
        if self._xds is not None and self.is_soon():
            await self._xds.server.acked(timeout_s=TAKES_S)

    # ---- what is served

    def serving(self) -> Mapping[int, Ports]:
        return self._listening

    def is_soon(self) -> bool:
        return self._xds is not None and self._xds.server.clients > 0

    # ---- life

    async def start(self) -> None:
        """Once all rules are known: Envoy is told nothing before."""
        self.running.leave()
        privileges.make_folder(self._instance.envoy)
        privileges.own_folder(self._instance.envoy_socket.parent, self._user)
        if self.running.is_wanted:
            await self._made().listen()
            self._publish()

    async def run(self) -> None:
        if self._problem:
            log.error("no Envoy", problem=self._problem)
        await self.running.wanted()
        await self._made().listen()
        opening = asyncio.create_task(self._open_log())
        try:
            await asyncio.wait({opening}, timeout=LOGS_S)
            self._is_unlogged = not opening.done()
            await self.running.run()
        finally:
            opening.cancel()

    async def _open_log(self) -> None:
        """So that the first requests are in its log: the flows process takes that in once it is asked to."""
        while True:
            try:
                await aio.call(self._instance.flows_socket, "access_log")
                self._is_unlogged = False
                return
            except ApiError as error:
                log.warning("the flows process takes no access log yet", reason=str(error))
                await asyncio.sleep(LOGS_S)

    async def stop(self) -> None:
        self._opening.expect({})
        if self._xds is not None:
            await self._xds.stop()

    def view(self) -> ProxyView:
        served = self.serving()
        waiting = len(self._wanted.keys() - served.keys())
        problems = [self._problem] if self._problem and self._wanted else []
        problems += self._failures.values()
        problems += (UNLOGGED,) if self._is_unlogged else ()
        if self._xds is not None:
            problems += (f"{one.name}: {one.message}" for one in self._xds.server.rejected())
            lacking = self._xds.compiler.problems
            problems += (f"{listener_name(number)}: {text}" for number, some in lacking.items() for text in some)
        return self.running.view(len(served), waiting, tuple(problems))

    # ---- inside

    def _made(self) -> Xds:
        """At the first need."""
        if self._xds is None:
            from agent.proxy.xds import Xds  # noqa: PLC0415  # 16 MB

            self._xds = Xds(self._instance.xds_socket, self._heard)
        return self._xds

    def _publish(self) -> None:
        if not self.running.is_wanted:
            return
        xds = self._made()
        listenings: list[Listening] = []
        self._failures = {}
        for number, asked in {**self._lingering, **self._wanted}.items():
            try:
                port = self._port(number)
            except ExhaustedError as error:
                self._failures[number] = f"{error}: raise --proxy-ports"
                continue
            listenings.append(Listening(number, port, asked.direction, asked.demands))
        overrides = {number: [_override(one) for one in some] for number, some in self._overrides.items()}
        demands = [one.demands for one in listenings]
        demands += [one.demands for some in overrides.values() for one in some if one.demands is not None]
        self._materials = self._read_secrets(contexts(demands))
        materials = {context: material for context, material in self._materials.items() if material is not None}
        try:
            xds.server.set(xds.compiler.snapshot(listenings, overrides, materials))
        except InconsistentSnapshot as error:
            log.error("listeners are as before", problem=str(error))

    def _port(self, number: int) -> int:
        return self._ports.allocate(listener_name(number))

    def _read_secrets(self, named: Iterable[TlsContext]) -> dict[TlsContext, TlsMaterial | None]:
        found: dict[TlsContext, TlsMaterial | None] = {}
        for context in named:
            secret = self._secret(ObjectRef("Secret", context.namespace, context.name))
            found[context] = None if secret is None else _material(context, secret)
        return found

    def _are_secrets_stale(self) -> bool:
        return self._read_secrets(self._materials) != self._materials

    def _heard(self) -> None:
        """Envoy has said something."""
        acked = self._made().server.standing([listener_name(number) for number in self._wanted]).acked
        taken = {number for number in self._wanted if listener_name(number) in acked}
        for number in self._listening.keys() - taken:
            del self._listening[number]
        self._opening.expect({number: self._port(number) for number in taken - self._listening.keys()})
        self.changed.set()

    def _opened(self, number: int) -> None:
        self._listening[number] = (self._port(number), 0)
        self.changed.set()


def _command(config: Config, instance: Instance) -> tuple[list[str], str]:
    """The command line, or why there is none."""
    settings = envoy.EnvoySettings(
        node=config.node,
        xds=instance.xds_socket.relative_to(instance.envoy),
        access_log=instance.access_log_socket.relative_to(instance.envoy),
        admin=instance.envoy_socket.relative_to(instance.envoy),
        workers=config.envoy_threads or len(os.sched_getaffinity(0)),
    )
    try:
        return envoy.command(settings, envoy.binary(config.envoy)), ""
    except envoy.NoEnvoy as error:
        return [], str(error)


def _override(one: Otherwise) -> Override:
    return Override(one.demands, one.source, one.destination, one.port)


def _material(context: TlsContext, secret: Secret) -> TlsMaterial:
    return TlsMaterial(
        certificate=secret.data.get(context.certificate or CERTIFICATE, b""),
        private_key=secret.data.get(context.private_key or PRIVATE_KEY, b""),
        trusted_ca=secret.data.get(context.trusted_ca or AUTHORITY, b""),
    )
