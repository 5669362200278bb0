"""What world and datapath are told of the settings."""

from __future__ import annotations

from agent.config import build
from agent.datapath import abi
from agent.proxy.feature import carried_over
from agent.settings import config_value, node_config, seed, unmasqueraded
from policies.address import Prefix, parse_address

V4, V4_SECOND, V6 = map(parse_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1"))
NUMBERS = abi.load().constants


def test_struct_config() -> None:
    record = abi.load().records["config"]
    plain = record.unpack(config_value(build({"manifests": "m"}), (V6, V4, V4_SECOND), 77))
    assert (plain.ipv4, plain.ipv6, plain.host_netns) == (V4, V6, 77)
    assert (plain.timeout_tcp_ns, plain.timeout_other_ns) == (21600 * 10**9, 30 * 10**9)
    assert (plain.port_min, plain.port_max) == (61000, 65535)
    assert plain.features == NUMBERS.FEATURE_SOCKET_PODS
    assert plain.tunnel_port == 0, "there is no tunnel"
    texts = {
        "manifests": "m",
        "devices": "eth0",
        "masquerade": "true",
        "socket_lb": "host",
        "cgroup": "/cg",
        "snat_ports": "50000-50999",
        "timeouts": "udp=1.5",
        "maglev_seed": "other",
    }
    other = record.unpack(config_value(build(texts), (V4,), 0))
    assert (other.ipv4, other.ipv6) == (V4, bytes(16))
    assert (other.port_min, other.port_max, other.timeout_udp_ns) == (50000, 50999, 1_500_000_000)
    assert other.features == NUMBERS.FEATURE_MASQUERADE
    assert other.hash_seed != plain.hash_seed


def test_every_member_of_struct_config_is_set() -> None:
    """A member that is added to the ABI must be given its value here."""
    texts = {"manifests": "m", "devices": "eth0", "masquerade": "true", "routing": "vxlan"}
    record = abi.load().records["config"]
    value = record.unpack(config_value(build(texts), (V4, V6), 1))
    of_devices = {"wireguard_ifindex", "decrypted_ifindex"}
    assert {name for name, number in value._asdict().items() if not number} == of_devices


def test_what_is_encrypted() -> None:
    texts = {"manifests": "m", "devices": "eth0", "socket_lb": "off", "encryption": "wireguard"}
    record = abi.load().records["config"]
    encrypt, strict, nodes = NUMBERS.FEATURE_ENCRYPT, NUMBERS.FEATURE_STRICT, NUMBERS.FEATURE_NODE_ENCRYPTION
    for more, features in (
        ({}, encrypt),
        ({"strict_encryption": "true", "cluster_cidrs": "10.0.0.0/8"}, encrypt | strict),
        ({"node_encryption": "true"}, encrypt | nodes),
    ):
        assert record.unpack(config_value(build(texts | more), (V4,), 0)).features == features


def test_a_new_agent_keeps_what_is_known_of_devices() -> None:
    """Or packets would go out in plaintext, or be dropped, until it has looked."""
    record = abi.load().records["config"]
    value = config_value(build({"manifests": "m"}), (V4,), 1)
    before = record.pack(wireguard_ifindex=7, decrypted_ifindex=8, features=NUMBERS.FEATURE_PROXY, port_min=1)
    found = record.unpack(carried_over(before, value))
    expected = record.unpack(value)
    assert found == expected._replace(
        wireguard_ifindex=7, decrypted_ifindex=8, features=expected.features | NUMBERS.FEATURE_PROXY
    )
    assert carried_over(None, value) == value


def test_a_seed_is_the_same_everywhere() -> None:
    assert seed("gatehouse") == 0xEBAEC7E8B2A44CC0, "another version would send flows elsewhere during an upgrade"
    assert seed("gatehouse") != seed("gatehouse ")
    assert seed("") < 1 << 64


def test_the_node_as_the_world_sees_it() -> None:
    texts = {
        "manifests": "m",
        "node": "n1",
        "zone": "z",
        "node_ports": "20500-20510",
        "node_port_addresses": "192.0.2.0/24",
        "external_ips": "true",
        "algorithm": "maglev",
        "maglev_size": "251",
    }
    node = node_config(build(texts), (V4, V6))
    assert (node.name, node.zone, node.addresses) == ("n1", "z", (V4, V6))
    services = node.services
    assert (services.node_ports, services.external_ips) == ((20500, 20510), True)
    assert services.node_port_addresses == (Prefix.parse("192.0.2.0/24"),)
    assert (services.algorithm, services.maglev_size, services.seed) == ("maglev", 251, seed("gatehouse"))
    given = node_config(build({"manifests": "m", "node_addresses": "192.0.2.2"}), (V4, V6))
    assert given.addresses == (V4_SECOND,), "what is given goes before what is found"


def test_where_pods_keep_their_addresses() -> None:
    key = abi.load().records["ipcache_key"]

    def blocks(addresses: tuple[bytes, ...], **texts: str) -> set[str]:
        found = map(key.unpack, unmasqueraded(build({"manifests": "m", **texts}), addresses))
        return {str(Prefix(address, bits)) for bits, address in found}

    assert blocks(()) == {"10.244.0.0/24", "fd00:10:244::/64"}
    assert blocks((V4,), cluster_cidrs="10.0.0.0/8", masquerade_exclude="172.16.0.0/12,10.244.0.0/24") == {
        "10.244.0.0/24",
        "fd00:10:244::/64",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.0.2.1/32",
    }
