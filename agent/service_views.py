"""Services as people and programs are shown them (agent.status): who gets which backend, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from agent.datapath import abi
from agent.history import History
from agent.objects import SliceEndpoint
from agent.services.endpoints import left_out
from agent.services.model import Backend, Frontend, Target
from agent.status import BackendView, FrontendView, LastChangeView, ServiceView
from agent.world.hostports import KIND as HOST_PORT
from agent.world.world import World
from policies.address import format_address, is_v4
from policies.model import ObjectRef, Protocol

SERVICE_KEY = abi.load().records["service_key"]

Endpoints = dict[Backend, SliceEndpoint]
"""Of one service port, by address and port."""


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Which services are to be shown. `name` is a shell pattern; "" is any."""

    namespace: str = ""
    name: str = ""
    problems: bool = False  # only those with a problem, or with a frontend without a backend

    def admits(self, ref: ObjectRef) -> bool:
        return self.namespace in ("", ref.namespace) and (not self.name or fnmatchcase(ref.name, self.name))


@dataclass(frozen=True)
class ServiceViews:
    """`problems`: of services, by ref, besides those the world knows of."""

    world: World
    history: History
    problems: Callable[[], Mapping[ObjectRef, str]]

    def views(self, wanted: Wanted) -> Iterator[ServiceView | None]:
        """By namespace and name; None for each that was looked at and is not wanted, and other steps that take time.
        Services may come and go between two of them."""
        problems = {problem.subject: problem.message for problem in self.world.problems()}
        problems |= {str(ref): text for ref, text in self.problems().items()}
        yield None
        refs = sorted(filter(wanted.admits, self.world.served()))
        yield None
        for ref in refs:
            view = self.view(ref, problems.get(str(ref), ""))
            yield view if view is not None and (not wanted.problems or _is_wrong(view)) else None

    def view(self, ref: ObjectRef, problem: str = "") -> ServiceView | None:
        """None where it is gone."""
        found = _Frontends(self.world, self.history, ref).views()
        newest = max((f.last_change for f in found if f.last_change), key=lambda change: change.time, default=None)
        if ref.kind == HOST_PORT:
            state = self.world.pods.get(ObjectRef("Pod", ref.namespace, ref.name))
            if state is None or not found:  # gone, or another node's
                return None
            ips, origin = tuple(map(format_address, state.pod.addresses)), str(state.pod.origin)
            return _service(ref, HOST_PORT, ips, found, origin, problem, newest)
        service = self.world.services.get(ref)
        if service is None:
            return None
        addresses = self.world.services.addresses(ref)
        ips = ("None",) if service.headless else tuple(map(format_address, addresses))
        view = _service(ref, service.type, ips, found, str(service.origin), problem, newest)
        return msgspec.structs.replace(
            view,
            internal_traffic_policy=_policy(service.exposure.internal_local),
            external_traffic_policy=_policy(service.exposure.external_local),
            health_check_node_port=self.world.services.health_port(ref),
        )


class _Frontends:
    """The frontends of one service. Frontends of one port share their backends, and so do their views."""

    def __init__(self, world: World, history: History, ref: ObjectRef) -> None:
        self._world = world
        self._history = history
        self._ref = ref
        self._service = world.services.get(ref) if ref.kind != HOST_PORT else None
        self._slices = world.slices(self._service) if self._service else ()
        self._node_ports = world.services.node_ports(ref) if self._service else {}
        self._ports = {(p.name, p.protocol): p.port for p in self._service.ports} if self._service else {}
        self._backends: dict[tuple[object, ...], tuple[tuple[BackendView, ...], tuple[BackendView, ...]]] = {}

    def views(self) -> tuple[FrontendView, ...]:
        return tuple(self._view(frontend) for frontend in self._world.frontends(self._ref))

    def _view(self, f: Frontend) -> FrontendView:
        used, unused = self._members(f)
        port = self._ports.get((f.port_name, f.protocol), 0)
        changed = self._history.last(SERVICE_KEY.pack_values(f.address, abi.be16(f.port), f.protocol))
        return FrontendView(
            address=format_address(f.address),
            protocol=Protocol.BY_NUMBER[f.protocol],
            port=f.port,
            name=f.port_name,
            backends=used,
            kind=str(f.kind),
            unused=unused,
            why_inside=f.inside.why,
            why_outside=f.outside.why,
            without_inside=_without(f.inside),
            without_outside=_without(f.outside),
            node_port=self._node_ports.get((f.protocol, port), 0),
            affinity_timeout_s=f.affinity_timeout_s,
            source_ranges=tuple(map(str, f.ranges)),
            algorithm="maglev" if f.maglev else "random",
            forwarding="dsr" if f.dsr else "snat",
            last_change=LastChangeView(time=changed.at, text=changed.text) if changed else None,
        )

    def _members(self, f: Frontend) -> tuple[tuple[BackendView, ...], tuple[BackendView, ...]]:
        """(those that some clients get, the others)."""
        key = (f.port_name, f.protocol, is_v4(f.address), f.inside, f.outside)
        if key not in self._backends:
            endpoints = self._endpoints(f)
            inside = self._left_out(f, f.inside, endpoints)
            outside = inside if f.outside == f.inside else self._left_out(f, f.outside, endpoints)
            everyone = sorted({*f.inside.backends, *f.outside.backends, *endpoints})
            if not inside and not outside:  # of nearly all services
                self._backends[key] = tuple([self._backend(b, endpoints.get(b), "", "") for b in everyone]), ()
                return self._backends[key]
            shown = [self._backend(b, endpoints.get(b), inside.get(b, ""), outside.get(b, "")) for b in everyone]
            used = tuple(view for view in shown if view.inside or view.outside)
            self._backends[key] = used, tuple(view for view in shown if not (view.inside or view.outside))
        return self._backends[key]

    def _left_out(self, f: Frontend, target: Target, endpoints: Endpoints) -> dict[Backend, str]:
        if self._service is None or endpoints.keys() <= set(target.backends):
            return {}
        port = next(p for p in self._service.ports if (p.name, p.protocol) == (f.port_name, f.protocol))
        return left_out(self._slices, port, is_v4(f.address), target, self._world.config)

    def _endpoints(self, f: Frontend) -> Endpoints:
        """All there are of its port and family, whether they serve or not; of two of one address the ready one."""
        found: Endpoints = {}
        v4 = is_v4(f.address)
        for one in self._slices:
            for target in one.ports:
                if (target.name, target.protocol) != (f.port_name, f.protocol):
                    continue
                for address, member in one.addressed():
                    if is_v4(address) is v4 and (member.ready or (address, target.port) not in found):
                        found[address, target.port] = member
        return found

    def _backend(self, backend: Backend, endpoint: SliceEndpoint | None, inside: str, outside: str) -> BackendView:
        """`inside`, `outside`: why these clients do not get it; "": they do."""
        owner = self._world.addresses.owner(backend[0])
        pod, remote = self._world.pods.get(owner) if owner else None, self._world.addresses.remote(backend[0])
        node = endpoint.node if endpoint else ""
        if remote is not None:
            node = remote.node
        elif not node and pod is not None:
            node = pod.pod.node or self._world.config.name
        return BackendView(
            address=format_address(backend[0]),
            port=backend[1],
            state=_state(endpoint),
            inside=not inside,
            outside=not outside,
            node=node,
            pod=f"{owner.namespace}/{owner.name}" if owner and (pod is not None or remote is not None) else "",
            why=_why(inside, outside),
        )


def _state(endpoint: SliceEndpoint | None) -> str:
    """One of BACKEND_STATES."""
    if endpoint is None or endpoint.ready:
        return "ready"
    if endpoint.terminating:
        return "serving" if endpoint.serving else "terminating"
    return "not ready"


def _why(inside: str, outside: str) -> str:
    if inside == outside:
        return inside
    said = (("clients inside", inside), ("clients outside", outside))
    return "; ".join(f"{who}: {why}" for who, why in said if why)


def _without(target: Target) -> str:
    return "dropped" if target.drops else "refused"


def _policy(local: bool) -> str:
    return "Local" if local else "Cluster"


def _is_wrong(view: ServiceView) -> bool:
    empty = any(not any(getattr(b, side) for b in f.backends) for f in view.frontends for side in ("inside", "outside"))
    return bool(view.problem) or empty


def _service(
    ref: ObjectRef,
    kind: str,
    ips: tuple[str, ...],
    frontends: tuple[FrontendView, ...],
    origin: str,
    problem: str,
    newest: LastChangeView | None,
) -> ServiceView:
    return ServiceView(
        namespace=ref.namespace,
        name=ref.name,
        type=kind,
        ips=ips,
        frontends=frontends,
        origin=origin,
        problem=problem,
        last_change=newest,
    )
