"""Kubernetes objects as the agent needs them: defaults filled in, validated, with where they were written.

Sources produce these, whatever they read; policies arrive as policies.model.Policy, or a PolicySet of them.
None can be part of a reference cycle, so the collector need not track them (gc=False): there are many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import msgspec

from policies.address import Prefix
from policies.model import ObjectRef, Origin, Policy

ADDRESS = 16
"""Bytes."""


class Namespace(msgspec.Struct, frozen=True, gc=False):
    ref: ObjectRef
    origin: Origin
    labels: dict[str, str]  # with kubernetes.io/metadata.name


class Node(msgspec.Struct, frozen=True, gc=False):
    """In no namespace. Its own manifest tells a node only its zone."""

    ref: ObjectRef
    origin: Origin
    addresses: tuple[bytes, ...] = ()  # status.addresses of type InternalIP and ExternalIP
    pod_cidrs: tuple[Prefix, ...] = ()  # spec.podCIDRs
    zone: str = ""  # label topology.kubernetes.io/zone
    labels: dict[str, str] = {}
    leaving: bool = False  # about to be removed: load balancers are to send it nothing new


class Container(msgspec.Struct, frozen=True, gc=False):
    name: str
    command: tuple[str, ...] = ()  # command + args; empty: nothing is run
    env: dict[str, str] = {}
    working_dir: str = ""


class DeclaredPort(msgspec.Struct, frozen=True, gc=False):
    name: str  # "" where it has none
    protocol: int
    number: int
    host_port: int = 0  # 0: none
    host_address: bytes = b""  # hostIP, 16 bytes; empty: every address of the node


class Pod(msgspec.Struct, frozen=True, gc=False):
    ref: ObjectRef
    origin: Origin
    labels: dict[str, str]
    node: str = ""  # spec.nodeName; "" means this node
    service_account: str = "default"
    host_network: bool = False
    addresses: tuple[bytes, ...] = ()  # status.podIPs, 16 bytes each; () lets IPAM choose
    ports: tuple[DeclaredPort, ...] = ()
    containers: tuple[Container, ...] = ()
    restart_always: bool = True
    ready: bool = True  # status.conditions Ready; true where there is no status
    terminating: bool = False  # metadata.deletionTimestamp is set
    finished: bool = False  # status.phase Succeeded or Failed: it will not run again
    uid: str = ""  # metadata.uid; of a static pod's mirror what the kubelet knows the pod by


class SecurityIdentity(msgspec.Struct, frozen=True, gc=False):
    """gatehouse.io/v1alpha1: a number for a namespace, labels and a service account, for the whole cluster. In no
    namespace; its name is the number, so that an API server lets nobody give it twice."""

    ref: ObjectRef
    origin: Origin
    number: int
    namespace: str
    service_account: str
    labels: dict[str, str]  # without any of SERVICE_ACCOUNT
    unused_since: str = ""  # RFC 3339; set: it is about to be collected, and is not to be used before that is undone


class NodeEndpoint(msgspec.Struct, frozen=True, gc=False):
    """A pod of another node, as its node tells of it. `digest`: agent.identity.labels.key_digest of the key that
    `identity` stood for when it was told; where the number means anything else by now, the pod is unmanaged."""

    pod: ObjectRef
    addresses: tuple[bytes, ...]  # 16 bytes each
    identity: int
    digest: str
    ports: tuple[DeclaredPort, ...] = ()  # named ones


class NodeEndpoints(msgspec.Struct, frozen=True, gc=False):
    """gatehouse.io/v1alpha1: what a node tells the others. In no namespace; its name is the node's."""

    ref: ObjectRef
    origin: Origin
    addresses: tuple[bytes, ...] = ()  # of the node, 16 bytes each, the preferred first
    pod_cidrs: tuple[Prefix, ...] = ()
    endpoints: tuple[NodeEndpoint, ...] = ()
    public_key: bytes = b""  # of WireGuard, 32 bytes; empty: it does not encrypt
    next_public_key: bytes = b""  # that will follow it, during a rotation


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    name: str
    protocol: int
    port: int
    target: int | str  # number, or the name of a container port
    node_port: int = 0  # given in the manifest; 0: none, or to be allocated


class Exposure(msgspec.Struct, frozen=True, gc=False):
    """How a service is reached and by which of its endpoints; what most services leave at its defaults."""

    external_ips: tuple[bytes, ...] = ()  # spec.externalIPs
    balancer_ips: tuple[bytes, ...] = ()  # status.loadBalancer.ingress[].ip of ipMode VIP
    source_ranges: tuple[Prefix, ...] = ()  # spec.loadBalancerSourceRanges; () for anybody
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local
    health_node_port: int = 0  # spec.healthCheckNodePort; 0: none, or to be allocated
    affinity_timeout_s: int = 0  # sessionAffinity: ClientIP; 0: None
    distribution: str = ""  # spec.trafficDistribution: PreferSameZone (or PreferClose), PreferSameNode
    allocates_node_ports: bool = True  # spec.allocateLoadBalancerNodePorts
    algorithm: str = ""  # annotation gatehouse.io/algorithm: random | maglev; "" for the node's setting
    forwarding: str = ""  # annotation gatehouse.io/forwarding: snat | dsr | hybrid; "" for the node's setting


class Service(msgspec.Struct, frozen=True, gc=False):
    ref: ObjectRef
    origin: Origin
    type: str  # ClusterIP | NodePort | LoadBalancer | ExternalName
    selector: dict[str, str] | None  # None: endpoints come from slices alone
    addresses: tuple[bytes, ...]  # clusterIPs given; () with headless False: to be allocated
    headless: bool
    ports: tuple[ServicePort, ...]
    families: tuple[str, ...] = ()  # spec.ipFamilies: "IPv4", "IPv6"; () for what the cluster has
    publish_not_ready: bool = False
    exposure: Exposure = Exposure()
    proxied: bool = True  # false: labelled service.kubernetes.io/service-proxy-name or headless, so not ours to serve
    labels: dict[str, str] = {}  # by which policies select services (toServices)


class SlicePort(msgspec.Struct, frozen=True, order=True, gc=False):
    name: str
    protocol: int
    port: int


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False):
    """Conditions as discovery/v1 defaults them: ready and serving true, terminating false."""

    addresses: tuple[bytes, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zones: tuple[str, ...] = ()  # hints.forZones
    nodes: tuple[str, ...] = ()  # hints.forNodes


class Endpoints(msgspec.Struct, frozen=True, gc=False):
    """Endpoints with one address each, packed: there may be 250,000. `kinds`: what they are besides, without addresses;
    one for all of them, or one for each."""

    addresses: bytes  # joined
    kinds: tuple[SliceEndpoint, ...]

    @classmethod
    def of(cls, addresses: Iterable[bytes], kinds: Sequence[SliceEndpoint]) -> Endpoints:
        """An address (16 bytes) and a kind for each; at least one. Equal endpoints make equal ones of these."""
        alike = kinds.count(kinds[0]) == len(kinds)
        return cls(b"".join(addresses), (kinds[0],) if alike else tuple(kinds))

    def __len__(self) -> int:
        return len(self.addresses) // ADDRESS

    def __iter__(self) -> Iterator[SliceEndpoint]:
        for address, kind in self.addressed():
            yield msgspec.structs.replace(kind, addresses=(address,))

    def addressed(self) -> Iterator[tuple[bytes, SliceEndpoint]]:
        joined = self.addresses
        each = [joined[at : at + ADDRESS] for at in range(0, len(joined), ADDRESS)]
        return zip(each, repeat(self.kinds[0]) if len(self.kinds) == 1 else self.kinds, strict=False)


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """`endpoints` are packed where they can be, whatever they are given as."""

    ref: ObjectRef
    origin: Origin
    service: str  # label kubernetes.io/service-name
    ports: tuple[SlicePort, ...]
    endpoints: Endpoints | tuple[SliceEndpoint, ...]
    proxied: bool = True  # as that of a Service

    def __post_init__(self) -> None:
        given = self.endpoints
        if isinstance(given, tuple) and given and all(len(one.addresses) == 1 for one in given):
            kinds = [msgspec.structs.replace(one, addresses=()) for one in given]
            msgspec.structs.force_setattr(self, "endpoints", Endpoints.of([one.addresses[0] for one in given], kinds))

    def addressed(self) -> Iterable[tuple[bytes, SliceEndpoint]]:
        """Every address, and what the endpoint is whose it is (its `addresses` may be left out)."""
        if isinstance(self.endpoints, Endpoints):
            return self.endpoints.addressed()
        return [(address, one) for one in self.endpoints for address in one.addresses]


class Interface(msgspec.Struct, frozen=True):
    """Where a local pod hangs off its node: a fact that agent.endpoints reports once the pod's namespace stands."""

    index: int  # of the host side of the veth, in the node's namespace
    name: str
    mac: bytes  # of the pod's side
    host_mac: bytes
    netns: str  # path
    netns_cookie: int = 0  # the kernel's number of that namespace; 0: not known
    resolves: bool = (
        False  # the pod asks by ARP and neighbour discovery for its gateway: a veth that somebody else made
    )


class Secret(msgspec.Struct, frozen=True, gc=False):
    """Certificates and keys that TLS rules name. What it holds is never shown: not in logs, errors or listings."""

    ref: ObjectRef
    origin: Origin
    data: dict[str, bytes]

    def __repr__(self) -> str:
        return f"Secret({str(self.ref)!r}, {str(self.origin)!r}, keys={sorted(self.data)})"


class PolicySet(msgspec.Struct, frozen=True, gc=False):
    """The policies of one object of a kind that may hold several (cilium.io/v2: spec and specs). The first has the
    object's ref, further ones NAME:specs[1] and so on; each has a ref of its own.

    `salvaged`: the object is not valid, and all that is certain of it is which pods it isolates.
    """

    ref: ObjectRef
    origin: Origin
    policies: tuple[Policy, ...]
    salvaged: bool = False


Object = (
    Namespace | Node | Pod | Service | EndpointSlice | Secret | SecurityIdentity | NodeEndpoints | Policy | PolicySet
)


class Problem(msgspec.Struct, frozen=True, order=True, gc=False):
    """Something the user wrote that is not in force as written. `path` is a field path: spec.ingress[0].ports[1].

    A `warning` concerns something that is left out on purpose (a kind that is not handled); the rest is in force.
    """

    file: str
    line: int
    message: str
    path: str = ""
    subject: str = ""  # "NetworkPolicy shop/web", where it is known
    effect: str = ""  # what is in force instead, where something is
    warning: bool = False

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        field = f"{self.path}: " if self.path else ""
        what = f"{self.subject}: " if self.subject else ""
        effect = f" ({self.effect})" if self.effect else ""
        return f"{where}: {what}{field}{self.message}{effect}"


class Change(msgspec.Struct, frozen=True, gc=False):
    """One step of the world: an object is now thus, or (None) is gone."""

    ref: ObjectRef
    object: Object | None
