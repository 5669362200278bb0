"""Which endpoints of a service port serve. Pure.

KEP-1669 and EndpointSlice conditions (discovery/v1): endpoints that are ready serve; where there is none, those that
terminate but still serve; where there is none of these either, none. That is settled among all endpoints for clients
under traffic policy Cluster, and once more among those of this node for clients under Local, to whom hints of topology
do not apply. Local without an endpoint here drops as long as there is one elsewhere: the sender may be answered by
another node; without any endpoint at all it is refused, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.objects import EndpointSlice, ServicePort, SliceEndpoint
from agent.services.model import Backend, Target
from agent.services.node import Node
from agent.services.topology import ALL, FOR_NODE, Members, nearby
from policies.address import is_v4

READY = "The service's ready endpoints."
READY_FOR_NODE = "The ready endpoints that hints give to this node."
READY_FOR_ZONE = "The ready endpoints that hints give to this node's zone."
LEAVING = "No endpoint is ready: those that terminate and still serve."
LOCAL_READY = "Traffic policy Local: the ready endpoints on this node."
LOCAL_LEAVING = "Traffic policy Local: no endpoint on this node is ready; those here that terminate and still serve."
NO_LOCAL = "Traffic policy Local: the service has endpoints, but none on this node."
HOST_PORT = "The pod whose hostPort it is."
NONE = "The service has no endpoint that is ready, or that terminates and still serves."

REFUSED = Target((), False, NONE)
DROPPED = Target((), True, NO_LOCAL)


class Candidates(msgspec.Struct, gc=False):
    """Endpoints of one service port and family that may serve: ready ones, and others that terminate and still serve.

    An endpoint that several slices list is ready where one of them says so.
    """

    ready: Members
    leaving: Members

    def cluster(self, node: Node) -> Target:
        """Who serves under traffic policy Cluster."""
        if self.ready:
            near, which = nearby(self.ready, node)
            return _target(near, READY if which is ALL else READY_FOR_NODE if which is FOR_NODE else READY_FOR_ZONE)
        return _target(self.leaving, LEAVING) if self.leaving else REFUSED

    def local(self, node: Node) -> Target:
        """Who serves under traffic policy Local."""
        if here := _on(self.ready, node):
            return _target(here, LOCAL_READY)
        if here := _on(self.leaving, node):
            return _target(here, LOCAL_LEAVING)
        return DROPPED if self.ready or self.leaving else REFUSED


def candidates(slices: Iterable[EndpointSlice], port: ServicePort) -> dict[bool, Candidates]:
    """By whether IPv4: those of the slices' ports that have the port's name and protocol. A family may be missing."""
    found: dict[bool, Candidates] = {}
    name, protocol = port.name, port.protocol
    for one in slices:
        for target in one.ports:
            if target.name == name and target.protocol == protocol:
                _collect(one.addressed(), target.port, found)
    return found


def _collect(endpoints: Iterable[tuple[bytes, SliceEndpoint]], port: int, found: dict[bool, Candidates]) -> None:
    for address, endpoint in endpoints:
        ready = endpoint.ready
        if not ready and not (endpoint.serving and endpoint.terminating):
            continue
        if (here := found.get(family := is_v4(address))) is None:
            here = found[family] = Candidates({}, {})
        (here.ready if ready else here.leaving).setdefault((address, port), endpoint)


def _on(members: Members, node: Node) -> Members:
    return {backend: one for backend, one in members.items() if one.node == node.name}


def _target(members: Iterable[Backend], why: str) -> Target:
    return Target(tuple(sorted(members)), False, why)


NOT_READY = "not ready"
NOT_SERVING = "terminates and no longer serves"
TERMINATING = "terminates, and there are ready endpoints"
ELSEWHERE = "on another node, and the traffic policy is Local"
OTHER_HINTS = "hints give it to other nodes or zones"


def left_out(
    slices: Iterable[EndpointSlice], port: ServicePort, v4: bool, target: Target, node: Node
) -> dict[Backend, str]:
    """Endpoints of a service port that a target does not have, and why each is not chosen."""
    chosen = set(target.backends)
    found: dict[Backend, str] = {}
    for one in slices:
        for offered in one.ports:
            if (offered.name, offered.protocol) != (port.name, port.protocol):
                continue
            for address, endpoint in one.addressed():
                if is_v4(address) is v4 and (address, offered.port) not in chosen:
                    found[address, offered.port] = _why_not(endpoint, target, node)
    return dict(sorted(found.items()))


def _why_not(endpoint: SliceEndpoint, target: Target, node: Node) -> str:
    if not endpoint.ready and not (endpoint.serving and endpoint.terminating):
        return NOT_SERVING if endpoint.terminating else NOT_READY
    if target.why in (LOCAL_READY, LOCAL_LEAVING, NO_LOCAL) and endpoint.node != node.name:
        return ELSEWHERE
    return OTHER_HINTS if endpoint.ready else TERMINATING
