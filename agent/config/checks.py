"""What settings must be together."""

from __future__ import annotations

from agent.config.fields import TIMEOUTS, Config, ConfigError, flag
from agent.config.spellings import listen_address, one_a_family, overlap, port_range, prefix
from agent.services.maglev import is_prime
from policies.address import V4_MAPPED_BITS, parse_address
from policies.syntax import dns_label_problem, dns_subdomain_problem

MIN_MTU = 1280
SMALLEST_BLOCK = {True: 30, False: 124}
"""Longest prefix of a node's block of --pool, by whether it is IPv4: some addresses are never given to pods."""


def check(config: Config) -> None:
    """Raises ConfigError for the first thing that cannot work."""
    for one in (_source, _pods, _ipam, _blocks, _ports, _routing, _encryption, _services, _devices, _numbers):
        one(config)


def makes_pods(config: Config) -> bool:
    """Whether pods are processes that the agent runs itself."""
    return config.pods == "processes" or (config.pods == "auto" and config.source == "directory")


def _source(config: Config) -> None:
    if config.source == "directory":
        if not config.manifests:
            raise ConfigError(
                "--manifests is missing: name a folder, or read from the API server (--source kubernetes)"
            )
        return
    if config.manifests:
        raise ConfigError("nothing reads it with --source kubernetes: leave one of them out", "manifests")
    if config.pods == "processes":
        raise ConfigError("with --source kubernetes a runtime runs the pods: leave it out, or say cni", "pods")
    for namespace in config.secret_namespaces:
        if problem := dns_label_problem(namespace):
            raise ConfigError(f"namespace {problem}", "secret_namespaces")


def _pods(config: Config) -> None:
    if config.cni_chain and not config.cni_conf_dir:
        raise ConfigError(
            "there must be a folder in which that configuration is: name it with --cni-conf-dir", "cni_chain"
        )
    if config.cni_chain and "/" in config.cni_chain:
        raise ConfigError(f"{config.cni_chain!r} is a path: give the file's name in --cni-conf-dir", "cni_chain")
    for field in ("cni_conf_dir", "cni_bin_dir"):
        if getattr(config, field) and makes_pods(config):
            raise ConfigError("this agent runs its pods itself: for a runtime's, say --pods cni", field)


def _ipam(config: Config) -> None:
    if config.ipam != "cidrs":
        if config.source != "kubernetes":
            raise ConfigError(
                f"{config.ipam} asks the API server: use --source kubernetes, or give --pod-cidrs and say cidrs", "ipam"
            )
        if config.pod_cidrs:
            raise ConfigError(f"they are not for --ipam {config.ipam}: leave them out", "pod_cidrs")
    elif not config.pod_cidrs and not config.cni_chain:
        raise ConfigError("give at least one block", "pod_cidrs")
    if config.ipam == "pool":
        _pool(config)
    for field in ("pool", "pool_block_bits"):
        if config.ipam != "pool" and getattr(config, field):
            raise ConfigError(f"it is for --ipam pool, and --ipam is {config.ipam}", field)


def _pool(config: Config) -> None:
    blocks = one_a_family("pool", config.pool)
    if not blocks:
        raise ConfigError("give at least one block, from which nodes take theirs", "pool")
    if len(config.pool_block_bits) != len(blocks):
        raise ConfigError(
            f"give one length for each block of --pool, in its order: {len(blocks)}, such as "
            + ",".join("24" if block.is_v4 else "64" for block in blocks),
            "pool_block_bits",
        )
    for block, length in zip(blocks, config.pool_block_bits, strict=True):
        own = block.bits - V4_MAPPED_BITS * block.is_v4
        if not own < length <= SMALLEST_BLOCK[block.is_v4]:
            raise ConfigError(
                f"/{length} is not a part of {block} for a node: choose {own + 1} to {SMALLEST_BLOCK[block.is_v4]}",
                "pool_block_bits",
            )


def _blocks(config: Config) -> None:
    pods = {
        "pod_cidrs": one_a_family("pod_cidrs", config.pod_cidrs),
        "pool": [prefix("pool", text) for text in config.pool],
    }
    for service in one_a_family("service_cidrs", config.service_cidrs):
        for field, blocks in pods.items():
            if any(pod.covers(service) or service.covers(pod) for pod in blocks):
                raise ConfigError(f"{service} overlaps a block of {flag(field)}", "service_cidrs")
    for field in ("cluster_cidrs", "node_port_addresses", "masquerade_exclude"):
        for text in getattr(config, field):
            prefix(field, text)
    for text in config.node_addresses:
        try:
            parse_address(text)
        except ValueError as error:
            raise ConfigError(str(error), "node_addresses") from None


def _ports(config: Config) -> None:
    node_ports, snat_ports = port_range("node_ports", config.node_ports), port_range("snat_ports", config.snat_ports)
    if overlap(node_ports, snat_ports):
        raise ConfigError("they overlap --node-ports, and an answer could be for either; keep them apart", "snat_ports")
    proxy_ports = port_range("proxy_ports", config.proxy_ports)
    ranges = {"node_ports": node_ports, "snat_ports": snat_ports}
    for field, others in ranges.items():
        if overlap(proxy_ports, others):
            raise ConfigError(f"they overlap {flag(field)}; keep them apart", "proxy_ports")
    for field in ("healthz", "metrics"):
        if where := getattr(config, field):
            listen_address(field, where)
    between = {"tunnel_port": config.routing == "vxlan", "encryption_port": config.encryption != "off"}
    for own in (field for field, used in between.items() if used):
        port: int = getattr(config, own)
        for field, others in (ranges | {"proxy_ports": proxy_ports}).items():
            if overlap((port, port), others):
                raise ConfigError(f"{port} is one of {flag(field)}; keep them apart", own)
    if all(between.values()) and config.encryption_port == config.tunnel_port:
        raise ConfigError(f"{config.tunnel_port} is --tunnel-port, too; keep them apart", "encryption_port")


def _routing(config: Config) -> None:
    if 0 < config.mtu < MIN_MTU:
        raise ConfigError(f"{config.mtu} is below {MIN_MTU}, which IPv6 needs", "mtu")


def _encryption(config: Config) -> None:
    if config.encryption == "off":
        for field in ("node_encryption", "strict_encryption", "key_rotation_days", "keepalive_s"):
            if getattr(config, field):
                raise ConfigError("nothing is encrypted: say --encryption wireguard, or leave it out", field)
    elif not config.devices:
        raise ConfigError("it is done at the node's devices: name them (--devices)", "encryption")
    elif config.strict_encryption and not config.cluster_cidrs:
        raise ConfigError(
            "which addresses are pods' of nodes that were not heard of is not known: say --cluster-cidrs",
            "strict_encryption",
        )
    elif config.cni_chain:
        raise ConfigError(
            "which packets are pods' is not known where another plugin gives them their addresses and ways, maybe "
            "tunnels, to other nodes: leave out --cni-chain, or have that plugin encrypt",
            "encryption",
        )
    if config.node_files and config.source != "directory":
        raise ConfigError("nodes tell each other by the API server: leave it out", "node_files")
    if config.node_files and (problem := dns_subdomain_problem(config.node)):
        raise ConfigError(
            f"others know this node by its name, and {problem}: give it another with --node", "node_files"
        )
    if config.big_tcp and (config.encryption != "off" or config.routing == "vxlan"):
        raise ConfigError("neither WireGuard nor VXLAN takes such packets: choose one or the other", "big_tcp")


def _services(config: Config) -> None:
    if not is_prime(config.maglev_size):
        raise ConfigError(f"{config.maglev_size} is not a prime number; 16381 and 65521 are", "maglev_size")
    if config.cgroup and not config.cgroup.startswith("/"):
        raise ConfigError(f"{config.cgroup!r} is not an absolute path", "cgroup")
    if config.socket_lb == "host" and not config.cgroup:
        raise ConfigError("host needs the cgroup of the node's processes: give it with --cgroup", "socket_lb")


def _devices(config: Config) -> None:
    if "auto" in config.devices and len(config.devices) > 1:
        raise ConfigError("give either `auto` or names", "devices")
    wanted = {
        "forwarding": config.forwarding if config.forwarding != "snat" else "",
        "xdp": config.xdp if config.xdp != "off" else "",
        "masquerade": "it" if config.masquerade else "",
    }
    for field, what in wanted.items():
        if what and not config.devices:
            raise ConfigError(f"{what} is done at the node's devices: name them (--devices)", field)


def _numbers(config: Config) -> None:
    if unknown := set(config.timeouts) - set(TIMEOUTS):
        raise ConfigError(f"{sorted(unknown)[0]!r} is none of {', '.join(TIMEOUTS)}", "timeouts")
    for field in ("timeouts", "map_sizes"):
        if bad := [name for name, number in getattr(config, field).items() if number <= 0]:
            raise ConfigError(f"{bad[0]} must be above 0", field)
