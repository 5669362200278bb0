"""What health checks are answered. Pure.

Load balancers ask a node for a service (spec.healthCheckNodePort) whether it has endpoints of its own, and for itself
(/healthz, /livez). Status, headers and field names are those kube-proxy answers with, for what asks was made for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import msgspec

from agent.objects import EndpointSlice, Service
from policies.address import is_v4
from policies.model import ObjectRef

BEHIND_S = 60.0
"""So long may changes take to get into the kernel before the node is no longer called healthy."""

JSON_HEADERS = (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"))
WEIGHT_HEADER = "X-Load-Balancing-Endpoint-Weight"


class Answer(msgspec.Struct, frozen=True):
    """An HTTP response but for what every response has (length, date)."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = JSON_HEADERS


class Check(msgspec.Struct, frozen=True, gc=False):
    """`endpoints`: how many of this node are ready."""

    ref: ObjectRef
    port: int
    endpoints: int


class Health(msgspec.Struct, frozen=True):
    """Of the agent. Times are RFC 3339. `eligible`: the node is not about to be removed."""

    in_force: bool  # what is desired is in the kernel, or has not been late for long
    updated: str  # when the kernel was last known to hold all that was desired
    now: str
    eligible: bool = True


def is_checked(service: Service) -> bool:
    """Whether load balancers ask for this service: they need not where every node serves it."""
    return service.type == "LoadBalancer" and service.exposure.external_local and service.proxied


def local_endpoints(slices: Iterable[EndpointSlice], node: str) -> int:
    """Ready endpoints on this node. One that terminates still serves whom it is sent, but is to be sent nobody new
    (KEP-1669). A pod with an address of each family stands in two slices and counts once."""
    found: dict[bool, set[bytes]] = {True: set(), False: set()}
    for one in slices:
        for address, member in one.addressed():
            if member.ready and member.node == node:
                found[is_v4(address)].add(address)
    return max(map(len, found.values()))


def service_answer(check: Check, in_force: bool) -> Answer:
    status = HTTPStatus.OK if check.endpoints and in_force else HTTPStatus.SERVICE_UNAVAILABLE
    body = {
        "service": {"namespace": check.ref.namespace, "name": check.ref.name},
        "localEndpoints": check.endpoints,
        "serviceProxyHealthy": in_force,
    }
    return Answer(status, msgspec.json.encode(body), (*JSON_HEADERS, (WEIGHT_HEADER, str(check.endpoints))))


def agent_answer(path: str, health: Health) -> Answer:
    """Of /healthz (may traffic be sent to this node?) and /livez (is the agent to be started again?)."""
    if path not in ("/healthz", "/livez"):
        return Answer(HTTPStatus.NOT_FOUND, b'{"error":"there is /healthz and /livez"}')
    asked_of_node = path == "/healthz"
    good = health.in_force and (health.eligible or not asked_of_node)
    # kube-proxy says "now" while all is well: what alerts on an old time means one that is late.
    body: dict[str, object] = {"lastUpdated": health.now if good else health.updated, "currentTime": health.now}
    if asked_of_node:
        body["nodeEligible"] = health.eligible
    return Answer(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, msgspec.json.encode(body))
