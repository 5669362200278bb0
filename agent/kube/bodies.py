"""JSON of the objects that agents write to the API server, and what they read back of them. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from agent.identity.labels import identity_key
from agent.objects import NodeEndpoint
from agent.sources.clusterstate import UNUSED_SINCE
from policies.address import Prefix, format_address
from policies.model import SERVICE_ACCOUNT, Protocol, Workload

VERSION = "gatehouse.io/v1alpha1"
GROUP = f"apis/{VERSION}"
MOST_ENFORCED, MOST_REFUSED, MESSAGE = 10_000, 1000, 1024
"""Bounds of NodeStatus: policies, policies, and characters."""
Key = tuple[str, ...]


class Metadata(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None

    @property
    def unused_since(self) -> str:
        """Of a SecurityIdentity; "" where it is not marked."""
        return (self.annotations or {}).get(UNUSED_SINCE, "")


class Head(msgspec.Struct, gc=False):
    """What is read of an object of whatever kind."""

    metadata: Metadata


class IdentitySpec(msgspec.Struct, rename="camel", gc=False):
    namespace: str
    service_account: str
    labels: dict[str, str] | None = None


class IdentityHead(msgspec.Struct, gc=False):
    metadata: Metadata
    spec: IdentitySpec

    @property
    def key(self) -> Key:
        return identity_key(self.spec.namespace, self.spec.labels or {}, self.spec.service_account)


class NodeFacts(msgspec.Struct, frozen=True):
    """What a node tells of itself besides its pods. `addresses`: 16 bytes each, the preferred first; `public_key`,
    `next_public_key`: of WireGuard, 32 bytes or none."""

    addresses: tuple[bytes, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    public_key: bytes = b""
    next_public_key: bytes = b""


class RefusedPolicy(msgspec.Struct, frozen=True):
    """A policy that is not in force as it is written. `message`: why, for people."""

    policy: str
    generation: int
    message: str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "message", self.message[:MESSAGE])


def policy_name(kind: str, namespace: str, name: str) -> str:
    """As in NodeStatus: "CiliumNetworkPolicy/shop/web"; without a namespace where it is in none."""
    return "/".join(part for part in (kind, namespace, name) if part)


def rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time(at: datetime) -> str:
    """Kubernetes' MicroTime."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def json_of(body: Mapping[str, Any]) -> bytes:
    """The same bytes for equal bodies."""
    return msgspec.json.encode(body, order="deterministic")


def security_identity(number: int, workload: Workload) -> dict[str, Any]:
    """`workload`: as IdentityBook has it, its service account among the labels."""
    labels = {key: value for key, value in workload.labels.items() if key != SERVICE_ACCOUNT}
    spec = {"namespace": workload.namespace, "serviceAccount": workload.labels[SERVICE_ACCOUNT], "labels": labels}
    return _object("SecurityIdentity", str(number), spec=spec)


def node_endpoints(node: str, facts: NodeFacts, endpoints: Iterable[NodeEndpoint]) -> dict[str, Any]:
    """Without what belongs to the one at the server: its resourceVersion and owner."""
    spec: dict[str, Any] = {
        "addresses": [format_address(address) for address in facts.addresses],
        "podCIDRs": [str(block) for block in facts.pod_cidrs],
        "endpoints": [endpoint_body(one) for one in sorted(endpoints, key=lambda one: one.pod)],
    }
    for field, key in (("publicKey", facts.public_key), ("nextPublicKey", facts.next_public_key)):
        if key:
            spec[field] = base64.b64encode(key).decode()
    return _object("NodeEndpoints", node, spec=spec)


@lru_cache(maxsize=1024)
def endpoint_body(endpoint: NodeEndpoint) -> Mapping[str, Any]:
    """All of a node's are written whenever one of them changes."""
    body: dict[str, Any] = {
        "pod": f"{endpoint.pod.namespace}/{endpoint.pod.name}",
        "ips": [format_address(address) for address in endpoint.addresses],
        "identity": endpoint.identity,
        "digest": endpoint.digest,
    }
    if endpoint.ports:
        body["ports"] = [
            {"name": port.name, "protocol": Protocol.BY_NUMBER[port.protocol], "port": port.number}
            for port in endpoint.ports
        ]
    return body


def node_status(
    node: str, version: str, enforced: Mapping[str, int], refused: Iterable[RefusedPolicy]
) -> dict[str, Any]:
    """`enforced`: name of a policy ("CiliumNetworkPolicy/shop/web") to its generation in force. What is more than the
    server takes is left out."""
    named = dict(sorted(enforced.items())[:MOST_ENFORCED])
    told = [msgspec.to_builtins(one) for one in sorted(refused, key=lambda one: one.policy)[:MOST_REFUSED]]
    return _object("NodeStatus", node, status={"version": version[:64], "enforced": named, "refused": told})


def node_block(block: Prefix, node: str) -> dict[str, Any]:
    return _object("NodeBlock", block_name(block), spec={"cidr": str(block), "node": node})


def block_name(block: Prefix) -> str:
    """10-244-3-0-24, fd00-10-244-3---64. Raises ValueError for a block whose spelling makes no name (::/64)."""
    name = str(block).translate(str.maketrans(".:/", "---"))
    if not name[0].isalnum():
        raise ValueError(f"{block} cannot be claimed, for no object can be named {name!r}: choose another --pool")
    return name


def owned(body: dict[str, Any], node: str, uid: str) -> dict[str, Any]:
    """The same, to go with its Node; unowned without a uid."""
    if not uid:
        return body
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return {**body, "metadata": {**body["metadata"], "ownerReferences": [owner]}}


def marking(resource_version: str, since: str | None) -> dict[str, Any]:
    """A merge patch that marks a SecurityIdentity as unused, or (None) takes the mark away, of that version alone."""
    return {"metadata": {"resourceVersion": resource_version, "annotations": {UNUSED_SINCE: since}}}


def _object(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, **rest}
