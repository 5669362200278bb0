"""What an agent tells about itself and what it manages: the field names people's programs rely on.

These are the answers of the agent's socket and the `-o json` output of the commands. Fields are added, never renamed.
"""

from __future__ import annotations

import msgspec


class Revision(msgspec.Struct, frozen=True):
    """`desired`: the newest change read that may concern it; `realized`: the newest that is in force in the kernel."""

    desired: int
    realized: int


class EndpointView(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    namespace: str
    name: str
    ips: tuple[str, ...]
    identity: int
    labels: dict[str, str]
    netns: str  # path, "" where it has none of its own
    interface: str  # host side of the veth
    state: str  # waiting (no address yet, or not begun) | creating | ready | failed | remote (of another node)
    policy_revision: Revision
    node: str
    host_network: bool
    isolated: tuple[str, ...]  # directions in which some policy isolates it
    problem: str


class IdentityView(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    kind: str  # reserved | cluster | cidr
    namespace: str
    labels: dict[str, str]
    endpoints: int  # pods that have it
    name: str  # of a reserved one, or the block of a CIDR identity


class LastChangeView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    time: str  # RFC 3339, UTC
    text: str


class BackendView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    address: str
    port: int
    state: str = "ready"  # ready | serving (it terminates, and still serves) | terminating | not ready
    inside: bool = True  # new flows of clients inside the cluster (pods, this node) can get it
    outside: bool = True  # new flows of everybody else can
    node: str = ""  # "" where it is not known
    pod: str = ""  # NAMESPACE/NAME, "" where it is none that is known
    why: str = ""  # some clients do not get it


class FrontendView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`backends` are those new flows can get, `unused` the other endpoints of the service port."""

    address: str
    protocol: str
    port: int
    name: str  # of the service port
    backends: tuple[BackendView, ...]
    kind: str = "ClusterIP"  # services.model.Kind
    unused: tuple[BackendView, ...] = ()
    why_inside: str = ""  # how the backends of clients inside were chosen
    why_outside: str = ""
    without_inside: str = "refused"  # refused | dropped: what becomes of clients where there is no backend for them
    without_outside: str = "refused"
    node_port: int = 0  # of the service port; 0: none
    affinity_timeout_s: int = 0  # 0: none
    source_ranges: tuple[str, ...] = ()  # who may use it; (): anybody
    algorithm: str = "random"  # random | maglev
    forwarding: str = "snat"  # to other nodes' backends, of clients outside: snat | dsr
    last_change: LastChangeView | None = None  # since the agent started


class ServiceView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    namespace: str
    name: str
    type: str  # as in the API; HostPort: of the pod of that name
    ips: tuple[str, ...]
    frontends: tuple[FrontendView, ...]
    origin: str
    problem: str
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0  # 0: none
    last_change: LastChangeView | None = None  # the newest of its frontends'


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    port: int
    pod: str  # NAMESPACE/NAME, "" where it is none that is known
    node: str  # "" where it is not known
    seen_from: str  # services.trace.Source: client | node | hairpin
    local: bool  # on this node
    direct: bool  # it answers the client itself (DSR)


class LeftOutView(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    port: int
    why: str


class TraceView(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a packet: see `gatehouse services trace --help`."""

    source: str
    destination: str  # address:port
    protocol: str
    outcome: str  # services.trace.Outcome
    reason: str  # of a drop, as in `gatehouse observe`
    service: str  # NAMESPACE/NAME
    kind: str  # of the frontend
    deliveries: tuple[DeliveryView, ...]  # the backends the packet may get
    steps: tuple[str, ...]  # how that was found, a sentence each
    left_out: tuple[LeftOutView, ...]


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    namespace: str
    name: str
    isolates: tuple[str, ...]
    rules: int
    endpoints: tuple[str, ...]  # NAMESPACE/NAME of the local pods it selects
    origin: str
    problem: str
    status: str  # accepted, or not enforced: why


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    local: bool
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    zone: str  # "" where it is not known
    pods: int


class ProgramView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    id: int
    instructions: int
    attached: int  # pods' interfaces, devices or cgroups


class MapView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    entries: int
    capacity: int
    full: int  # writes refused for want of room since the agent started


class DatapathView(msgspec.Struct, frozen=True, kw_only=True):
    pins: str
    abi_hash: str
    source_hash: str
    programs: tuple[ProgramView, ...]
    maps: tuple[MapView, ...]


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    state: str  # running | restarting | stopped
    pid: int
    restarts: int
    problem: str


class FlowsView(msgspec.Struct, frozen=True, kw_only=True):
    process: ProcessView
    events_lost: int  # the kernel's ring was full
    records_lost: int  # a reader was too slow


class ProxyView(msgspec.Struct, frozen=True, kw_only=True):
    """Envoy or the DNS proxy. `wanted`: a rule asks for it, or the settings do."""

    wanted: bool
    process: ProcessView
    listeners: int  # rule sets it judges
    waiting: int  # rule sets it has not taken yet: their flows are denied
    resident_bytes: int  # 0 where it does not run
    problems: tuple[str, ...]  # what it refused, and why


class ProblemView(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    line: int
    subject: str
    path: str
    message: str
    warning: bool  # in force as written, but perhaps not as meant


class ResourceView(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of a kind at the API server, as kubectl names it. `version`: resourceVersion up to which it has told."""

    name: str
    objects: int
    version: str
    synced_ago_s: float | None  # null: not in this run
    problem: str


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """`unreachable_s`: for how long the API server has not answered; null: it does. `from_disk`: in force is what was
    known before this run, as not everything has been had of the server yet."""

    unreachable_s: float | None
    from_disk: bool
    leader: bool  # this node does what one node does for all
    resources: tuple[ResourceView, ...]


class EncryptionPeerView(msgspec.Struct, frozen=True, kw_only=True):
    """Another node, as this one's WireGuard device knows it. `ready`: what its pods are sent is encrypted."""

    node: str
    endpoint: str  # address:port its packets come from; "" where none is known
    public_key: str  # base64; "" where the node has told none
    last_handshake_s: float | None  # how long ago; null: never
    received_bytes: int
    sent_bytes: int
    ready: bool
    problem: str  # why it is not, or what is odd


class EncryptionView(msgspec.Struct, frozen=True, kw_only=True):
    """What pods of different nodes send each other. Keys are public halves."""

    mode: str  # off | wireguard
    device: str = ""
    kernel: bool = False  # the kernel's WireGuard; else a program's
    port: int = 0  # UDP
    public_key: str = ""  # base64
    key_age_s: float = 0.0
    rotation: str = ""  # how far a change of the key is; "" where there is none
    strict: bool = False  # what cannot be encrypted is dropped
    node_encryption: bool = False  # what nodes themselves send to pods, too
    plaintext_packets: int = 0  # that pods of different nodes sent each other unencrypted, as this node saw them
    process: ProcessView | None = None  # behind a program's device; null: the kernel's, or none yet
    peers: tuple[EncryptionPeerView, ...] = ()


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: starting | ready | degraded | stopping; `reasons` says why it is degraded, one sentence each."""

    state: str
    reasons: tuple[str, ...]
    version: str
    pid: int
    node: str
    state_dir: str
    started: str  # RFC 3339, UTC
    uptime_s: float
    resident_bytes: int
    kernel: str
    revision: Revision
    datapath: DatapathView
    endpoints: dict[str, int]  # state → how many
    namespaces: int
    policies: int
    services: int
    services_by_type: dict[str, int]  # type → how many; HostPort: pods of this node that have one
    identities: int
    problems: tuple[ProblemView, ...]
    drops: dict[str, int]  # reason → packets
    tallies: dict[str, int]  # what else the datapath counted, by the names of enum tally
    rejudged: int  # live flows judged anew after a policy change
    map_full: int  # sum of the maps' `full`
    flows: FlowsView
    proxies: dict[str, ProxyView] = {}  # envoy, dns
    cluster: ClusterView | None = None  # null without an API server
    encryption: EncryptionView | None = None  # null where it is off
