"""Settings: texts in, a checked value or one sentence out."""

from __future__ import annotations

import pytest

from agent.config import Config, ConfigError, build, environment, listen_address, port_range, settings
from agent.world.config import NodeConfig
from policies.address import parse_address


def test_defaults_are_dual_stack() -> None:
    config = build({"manifests": "m"})
    assert config.pod_cidrs == ("10.244.0.0/24", "fd00:10:244::/64")
    assert config.node


def test_proxies_keep_clear_of_ports_that_kubernetes_listens_at() -> None:
    config = build({"manifests": "m"})
    first, last = port_range("proxy_ports", config.proxy_ports)
    kubernetes = {2379, 2380, 6443, *range(10248, 10260)}  # etcd, API server; kubelet, kube-proxy, controllers
    assert not kubernetes & set(range(first, last + 1))
    assert NodeConfig("n", ()).proxy_ports == (first, last)


def test_texts_become_types() -> None:
    config = build(
        {
            "manifests": "m",
            "mtu": "1400",
            "map_sizes": "conntrack=1000, services=10",
            "timeouts": "tcp=1.5",
            "node_addresses": "10.0.0.1,fd00::1",
            "remove_on_exit": "true",
            "node_sysctls": "true",
        }
    )
    assert (config.mtu, config.map_sizes, config.timeouts) == (1400, {"conntrack": 1000, "services": 10}, {"tcp": 1.5})
    assert config.node_addresses == ("10.0.0.1", "fd00::1")
    assert (config.remove_on_exit, config.node_sysctls) == (True, True)


ENCRYPTED = {"encryption": "wireguard", "devices": "eth0"}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "--manifests is missing"),
        ({"mtu": "12"}, "--mtu"),
        ({"mtu": "wide"}, "--mtu"),
        (
            {"node_files": "m/nodes", "node": "N_1"},
            "--node-files: others know this node by its name, and 'N_1' must be",
        ),
        ({"pod_cidrs": "10.1.2"}, "--pod-cidrs: '10.1.2' is not a block"),
        ({"pod_cidrs": ""}, "--pod-cidrs: give at least one"),
        ({"pod_cidrs": "10.1.0.0/24,10.2.0.0/24"}, "--pod-cidrs: give at most one block for each"),
        ({"pod_cidrs": "10.1.0.0/24", "service_cidrs": "10.0.0.0/8"}, "--service-cidrs: 10.0.0.0/8 overlaps"),
        ({"node_addresses": "host"}, "--node-addresses: 'host' is not an IP address"),
        ({"timeouts": "icmp=3"}, "--timeouts: 'icmp' is none of tcp"),
        ({"timeouts": "tcp=0"}, "--timeouts: tcp must be above 0"),
        ({"timeouts": "tcp"}, "--timeouts: 'tcp' is not NAME=NUMBER"),
        ({"map_sizes": "conntrack=-1"}, "--map-sizes: conntrack must be above 0"),
        ({"source": "etcd"}, "--source"),
        ({"cluster_cidrs": "10.0.0.0/40"}, "--cluster-cidrs: '10.0.0.0/40' is not a block"),
        ({"node_port_addresses": "eth0"}, "--node-port-addresses: 'eth0' is not a block"),
        ({"masquerade_exclude": "all"}, "--masquerade-exclude: 'all' is not a block"),
        ({"node_ports": "30000:32767"}, "--node-ports: '30000:32767' is not a range of ports such as"),
        ({"node_ports": "30000-"}, "--node-ports: '30000-' is not a range"),
        ({"node_ports": "-1-5"}, "--node-ports: '-1-5' is not a range"),
        ({"node_ports": "32767-30000"}, "--node-ports: '32767-30000' does not go upwards within 1-65535"),
        ({"node_ports": "0-10"}, "--node-ports: '0-10' does not go upwards"),
        ({"proxy_ports": "29000-31000"}, "--proxy-ports: they overlap --node-ports"),
        ({"proxy_ports": "60000-62000"}, "--proxy-ports: they overlap --snat-ports"),
        ({"l7_proxy": "maybe"}, "--l7-proxy"),
        ({"snat_ports": "61000-65536"}, "--snat-ports: '61000-65536' does not go upwards"),
        ({"snat_ports": "32767-40000"}, "--snat-ports: they overlap --node-ports"),
        ({"snat_ports": "20000-40000"}, "--snat-ports: they overlap --node-ports"),
        ({"maglev_size": "250"}, "--maglev-size: expected `int` >= 251"),
        ({"maglev_size": "16383"}, "--maglev-size: 16383 is not a prime number"),
        ({"maglev_size": "63001"}, "--maglev-size: 63001 is not a prime number"),  # 251 squared
        ({"algorithm": "round-robin"}, "--algorithm"),
        ({"healthz": "10256"}, "--healthz: '10256' is not an address and a port"),
        ({"healthz": "0.0.0.0:0"}, "--healthz: '0.0.0.0:0' is not an address"),
        ({"healthz": "::1:10256"}, "--healthz: '::1:10256' is not an address"),
        ({"healthz": "[10.0.0.1]:10256"}, "--healthz: '[10.0.0.1]:10256' is not an address"),
        ({"healthz": "node:10256"}, "--healthz: 'node:10256' is not an address"),
        ({"cgroup": "pods"}, "--cgroup: 'pods' is not an absolute path"),
        ({"socket_lb": "host"}, "--socket-lb: host needs the cgroup of the node's processes"),
        ({"devices": "auto,eth0"}, "--devices: give either `auto` or names"),
        ({"forwarding": "dsr"}, "--forwarding: dsr is done at the node's devices"),
        ({"forwarding": "hybrid"}, "--forwarding: hybrid is done at the node's devices"),
        ({"xdp": "auto"}, "--xdp: auto is done at the node's devices"),
        ({"masquerade": "true"}, "--masquerade: it is done at the node's devices"),
        ({"colour": "red"}, "colour is not a setting"),
        ({"external_ips": "maybe"}, "--external-ips: 'maybe' is neither true nor false"),
        ({"timeouts": "tcp=soon"}, "--timeouts: 'soon' is not a number"),
        ({"map_sizes": "nat=1.5"}, "--map-sizes: '1.5' is not a whole number"),
        ({"mtu": "1279"}, "--mtu: 1279 is below 1280"),
        ({"ipam": "node"}, "--ipam: node asks the API server"),
        ({"ipam": "pool", "pool": "10.0.0.0/8", "pool_block_bits": "24"}, "--ipam: pool asks the API server"),
        ({"pool": "10.0.0.0/8"}, "--pool: it is for --ipam pool, and --ipam is cidrs"),
        ({"pool_block_bits": "24"}, "--pool-block-bits: it is for --ipam pool"),
        ({"cni_conf_dir": "/etc/cni/net.d"}, "--cni-conf-dir: this agent runs its pods itself"),
        ({"cni_bin_dir": "/opt/cni/bin", "pods": "processes"}, "--cni-bin-dir: this agent runs its pods itself"),
        ({"cni_chain": "10-a.conflist", "pods": "cni"}, "--cni-chain: there must be a folder"),
        ({"cni_chain": "a/b", "cni_conf_dir": "/e", "pods": "cni"}, "--cni-chain: 'a/b' is a path"),
        ({"routing": "vxlan", "tunnel_port": "16384"}, "--tunnel-port: 16384 is one of --proxy-ports"),
        ({"routing": "vxlan", "tunnel_port": "30001"}, "--tunnel-port: 30001 is one of --node-ports"),
        ({"routing": "vxlan", "tunnel_port": "65535"}, "--tunnel-port: 65535 is one of --snat-ports"),
        ({"strict_encryption": "true"}, "--strict-encryption: nothing is encrypted: say --encryption wireguard"),
        ({"node_encryption": "true"}, "--node-encryption: nothing is encrypted"),
        ({"key_rotation_days": "1"}, "--key-rotation-days: nothing is encrypted"),
        ({"keepalive_s": "25"}, "--keepalive-s: nothing is encrypted"),
        ({"encryption": "wireguard"}, "--encryption: it is done at the node's devices"),
        (
            ENCRYPTED | {"strict_encryption": "true"},
            "--strict-encryption: which addresses are pods' of nodes that were",
        ),
        (ENCRYPTED | {"encryption_port": "16384"}, "--encryption-port: 16384 is one of --proxy-ports"),
        (ENCRYPTED | {"encryption_port": "30001"}, "--encryption-port: 30001 is one of --node-ports"),
        (ENCRYPTED | {"encryption_port": "65535"}, "--encryption-port: 65535 is one of --snat-ports"),
        (ENCRYPTED | {"encryption_port": "8472", "routing": "vxlan"}, "--encryption-port: 8472 is --tunnel-port, too"),
        (ENCRYPTED | {"big_tcp": "true"}, "--big-tcp: neither WireGuard nor VXLAN takes such packets"),
        ({"routing": "vxlan", "big_tcp": "true"}, "--big-tcp: neither WireGuard nor VXLAN takes such packets"),
    ],
)
def test_what_cannot_be_used_is_said(texts: dict[str, str], says: str) -> None:
    given = texts if not texts else {"manifests": "m", **texts}
    with pytest.raises(ConfigError) as error:
        build(given)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


CLUSTER = {"source": "kubernetes", "ipam": "node"}
CHAINED = {"source": "kubernetes", "cni_chain": "10-a.conflist", "cni_conf_dir": "/etc/cni/net.d"}
POOL = {"source": "kubernetes", "ipam": "pool", "pool": "10.0.0.0/16,fd00::/48", "pool_block_bits": "24,64"}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"source": "kubernetes"}, "--ipam: say where pods of this node get their addresses"),
        (CLUSTER | {"manifests": "m"}, "--manifests: nothing reads it"),
        (CLUSTER | {"pods": "processes"}, "--pods: with --source kubernetes a runtime runs the pods"),
        (CLUSTER | {"pod_cidrs": "10.1.0.0/24"}, "--pod-cidrs: they are not for --ipam node"),
        (CLUSTER | {"secret_namespaces": "a,Shop"}, "--secret-namespaces: namespace 'Shop' must be"),
        (POOL | {"pool": ""}, "--pool: give at least one block"),
        (POOL | {"pool": "10.0.0.0/16,10.1.0.0/16"}, "--pool: give at most one block for each"),
        (POOL | {"pool_block_bits": "24"}, "--pool-block-bits: give one length for each block of --pool"),
        (POOL | {"pool_block_bits": "16,64"}, "--pool-block-bits: /16 is not a part of 10.0.0.0/16"),
        (POOL | {"pool_block_bits": "31,64"}, "--pool-block-bits: /31 is not a part of 10.0.0.0/16 for a node: choose"),
        (POOL | {"pool_block_bits": "24,125"}, "--pool-block-bits: /125 is not a part of fd00::/48"),
        (POOL | {"service_cidrs": "10.0.3.0/24"}, "--service-cidrs: 10.0.3.0/24 overlaps a block of --pool"),
        (CHAINED | ENCRYPTED, "--encryption: which packets are pods' is not known where another plugin gives them"),
    ],
)
def test_what_cannot_be_used_in_a_cluster_is_said(texts: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(texts)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    "texts",
    [
        CLUSTER,
        POOL,
        {"source": "kubernetes", "pod_cidrs": "10.1.0.0/24"},
        CHAINED,
        CLUSTER | {"routing": "native", "tunnel_port": "10000"},
        CLUSTER | ENCRYPTED | {"encryption_port": "8472"},
        CLUSTER | {"encryption_port": "10000"},
        {"manifests": "m", "pods": "cni", "cni_conf_dir": "/etc/cni/net.d", "mtu": "0"},
    ],
)
def test_what_can_be_used_in_a_cluster_is_taken(texts: dict[str, str]) -> None:
    assert build(texts).source == texts.get("source", "directory")


def test_the_default_block_of_pods_is_for_blocks_that_are_given() -> None:
    assert build(CLUSTER).pod_cidrs == ()
    assert build(POOL).pod_cidrs == ()
    assert build({"manifests": "m"}).pod_cidrs


def test_what_can_be_used_is_taken() -> None:
    config = build(
        {
            "manifests": "m",
            "devices": "eth0, eth1",
            "node_ports": "20500-20600",
            "forwarding": "hybrid",
            "xdp": "native",
            "masquerade": "true",
            "maglev_size": "131071",
            "healthz": "[::]:10256",
        }
    )
    assert config.devices == ("eth0", "eth1")


@pytest.mark.parametrize(
    ("text", "ports"), [("30000-32767", (30000, 32767)), ("1-65535", (1, 65535)), ("8080", (8080, 8080))]
)
def test_ranges_of_ports(text: str, ports: tuple[int, int]) -> None:
    assert port_range("node_ports", text) == ports


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:10256", "0.0.0.0", 10256), ("[::]:80", "::", 80), ("[fd00::1]:65535", "fd00::1", 65535)],
)
def test_addresses_to_listen_at(text: str, host: str, port: int) -> None:
    assert listen_address("healthz", text) == (parse_address(host), port)


def test_environment_takes_only_settings() -> None:
    found = environment({"GATEHOUSE_STATE_DIR": "/s", "PATH": "/bin", "GATEHOUSE_CONFIG": "/c"})
    assert found == {"state_dir": "/s"}
    with pytest.raises(ConfigError, match=r"GATEHOUSE_STATEDIR .* did you mean GATEHOUSE_STATE_DIR\?"):
        environment({"GATEHOUSE_STATEDIR": "/s"})
    with pytest.raises(ConfigError, match="see `gatehouse agent --help`"):
        environment({"GATEHOUSE_XYZZY": "/s"})


@pytest.mark.parametrize(
    "name", ["GATEHOUSE_SERVICE_HOST", "GATEHOUSE_PORT", "GATEHOUSE_UI_PORT_80_TCP_ADDR", "GATEHOUSE_SERVICE_PORT_HTTP"]
)
def test_service_links_of_kubernetes_are_no_settings(name: str) -> None:
    assert environment({name: "tcp://10.96.0.9:80"}) == {}


def test_every_setting_is_described() -> None:
    assert [s.field for s in settings()] == list(Config.__struct_fields__)
    assert all(s.description.endswith(".") for s in settings())


def test_what_there_is_to_choose_from_is_told() -> None:
    choices = {s.field: s.choices for s in settings() if s.shape == "choice"}
    assert choices["xdp"] == ("auto", "generic", "native", "off")
    proxies = {"l7_proxy", "dns_proxy", "dns_refuse"}
    cluster = {"source", "pods", "ipam", "routing", "policy_enforcement", "helpers"}
    encryption = {"encryption", "wireguard"}
    services = {"xdp", "socket_lb", "algorithm", "forwarding"}
    assert set(choices) == {"log_format", "log_level", *services, *proxies, *cluster, *encryption}
