"""What the parts are told of the settings: the world its node, the datapath its numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from agent.config import TIMEOUTS, Config, port_range
from agent.config.checks import makes_pods
from agent.datapath import abi
from agent.world.config import NodeConfig, ServiceConfig
from policies.address import Prefix, is_v4, parse_address

_VALUE = (1).to_bytes(4, "little")  # of a set: any


def node_config(config: Config, found: Sequence[bytes] = ()) -> NodeConfig:
    """`found`: addresses of the node, 16 bytes each, where the settings name none."""
    return NodeConfig(
        name=config.node,
        pod_cidrs=prefixes(config.pod_cidrs),
        service_cidrs=prefixes(config.service_cidrs),
        addresses=tuple(map(parse_address, config.node_addresses)) or tuple(found),
        labels_include=config.labels_include,
        labels_exclude=config.labels_exclude,
        zone=config.zone,
        proxy_ports=port_range("proxy_ports", config.proxy_ports),
        implicit_namespaces=config.source == "directory",
        cluster=config.source == "kubernetes",
        attached=not makes_pods(config),
        enforce_always=config.policy_enforcement == "always",
        services=ServiceConfig(
            node_ports=port_range("node_ports", config.node_ports),
            node_port_addresses=prefixes(config.node_port_addresses),
            external_ips=config.external_ips,
            algorithm=config.algorithm,
            maglev_size=config.maglev_size,
            seed=seed(config.maglev_seed),
            forwarding=config.forwarding,
        ),
    )


def prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    return tuple(map(Prefix.parse, texts))


def seed(text: str) -> int:
    """64 bits of a secret; the same on every node that is given it."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def config_value(config: Config, addresses: Sequence[bytes], host_netns: int) -> bytes:
    """struct config, but for what is known of devices. `addresses`: of the node, the most important first;
    `host_netns`: cookie of its namespace."""
    numbers = abi.load().constants
    seconds = TIMEOUTS | config.timeouts
    port_min, port_max = port_range("snat_ports", config.snat_ports)
    features = numbers.FEATURE_MASQUERADE * config.masquerade
    features |= numbers.FEATURE_SOCKET_PODS * (config.socket_lb == "all")
    features |= numbers.FEATURE_ENCRYPT * (config.encryption != "off")
    features |= numbers.FEATURE_STRICT * config.strict_encryption
    features |= numbers.FEATURE_NODE_ENCRYPTION * config.node_encryption
    return (
        abi.load()
        .records["config"]
        .pack(
            **{f"timeout_{name}_ns": int(s * 1e9) for name, s in seconds.items()},
            hash_seed=seed(config.maglev_seed),
            host_netns=host_netns,
            ipv4=first_of_family(addresses, v4=True),
            ipv6=first_of_family(addresses, v4=False),
            features=features,
            port_min=port_min,
            port_max=port_max,
            tunnel_port=config.tunnel_port if config.routing == "vxlan" else 0,
        )
    )


def first_of_family(addresses: Iterable[bytes], *, v4: bool) -> bytes:
    """16 bytes; zero where there is none."""
    return next((address for address in addresses if is_v4(address) is v4), bytes(16))


def unmasqueraded(config: Config, addresses: Iterable[bytes], pod_blocks: Iterable[Prefix] = ()) -> dict[bytes, bytes]:
    """Entries of the map of that name: where pods' traffic goes with its own address. `addresses`: of the node;
    `pod_blocks`: where other nodes' pods are."""
    key = abi.load().records["ipcache_key"]
    blocks = (*prefixes((*config.pod_cidrs, *config.cluster_cidrs, *config.masquerade_exclude)), *pod_blocks)
    own = map(Prefix.host, addresses)
    return {key.pack(prefixlen=block.bits, address=block.network): _VALUE for block in (*blocks, *own)}
