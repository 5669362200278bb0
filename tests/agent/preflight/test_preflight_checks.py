"""What preflight makes of facts: a table of nodes that differ from a good one in one thing."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from agent.config import Given, Resolved, merge
from agent.datapath.devices import Device
from agent.endpoints.links import Limits
from agent.preflight import machine
from agent.preflight.checks import CHECKS, judged
from agent.preflight.facts import Facts, Folder, Host, Kernel, Node, Probe, Server
from agent.preflight.probes import PROGRAMS
from policies.address import parse_address

V4, V6 = parse_address("10.0.0.1"), parse_address("fd00::1")
ETH0 = Device(2, "eth0", addresses=(V4, V6), default_route=True)
ALL = (1 << 41) - 1
DISK = Folder(exists=True, writable=True, kind="ext4", free_bytes=1 << 30)
GONE = Folder(exists=False, writable=False)
GOOD = Facts(
    Kernel(
        release="6.1.0-30-amd64",
        btf=True,
        jit="1",
        bpf=0,
        programs=dict.fromkeys(PROGRAMS, Probe(0)),
        filesystems=frozenset({"bpf", "cgroup2", "ext4"}),
        modules=frozenset({"vxlan", "wireguard"}),
        capabilities=ALL,
    ),
    Node(
        is_initial=True,
        sysctls={},
        sysctls_writable=True,
        local_ports=(32768, 60999),
        devices=(Device(1, "lo", loopback=True), ETH0),
    ),
    Host(
        bpffs=True,
        cgroup2="/sys/fs/cgroup",
        memory_bytes=64 << 30,
        envoy="Envoy 1.37.0",
        state_dir=DISK,
        cni_conf_dir=DISK,
        cni_bin_dir=DISK,
        cni_configurations=("05-gatehouse.conflist", "10-kindnet.conflist"),
        clock_synchronized=True,
    ),
    Server(version="v1.36.0"),
)
CLUSTER = {
    "source": "kubernetes",
    "ipam": "node",
    "routing": "vxlan",
    "mtu": "1400",
    "xdp": "auto",
    "devices": "auto",
    "healthz": "0.0.0.0:10256",
    "metrics": "0.0.0.0:9965",
    "cni_conf_dir": "/etc/cni/net.d",
    "cni_bin_dir": "/opt/cni/bin",
}
NO_ENVOY = {"envoy": None, "envoy_problem": "there is no Envoy"}
EMBEDDED = {"manifests": "/m"}
ENCRYPTED = EMBEDDED | {"encryption": "wireguard", "devices": "eth0"}
ELSEWHERE = ENCRYPTED | {"helpers": "containers"}
BIG = EMBEDDED | {"big_tcp": "true"}
LIMITS = Limits(65536, 65536, 65536, 65536, 524280)


def limited(limits: Limits | None) -> Facts:
    return changed("node", {"limits": None if limits is None else {"lo": Limits(), "eth0": limits}})


def without_module(*, program: bool, tells: bool = True, tun: int = 0, asked: int | None = None) -> Facts:
    modules = frozenset[str]() if tells else None
    kernel = msgspec.structs.replace(GOOD.kernel, modules=modules, wireguard=asked)
    return Facts(kernel, GOOD.node, msgspec.structs.replace(GOOD.host, wireguard_program=program, tun=tun))


def resolved(settings: dict[str, str]) -> Resolved:
    return merge({field: Given(text, "--x") for field, text in settings.items()})


def changed(part: str, values: dict[str, Any]) -> Facts:
    if part == "":
        return msgspec.structs.replace(GOOD, **values)
    return msgspec.structs.replace(GOOD, **{part: msgspec.structs.replace(getattr(GOOD, part), **values)})


def rows(facts: Facts, settings: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    return {row.name: (row.result, row.found, row.advice) for row in judged(facts, resolved(settings))}


def test_a_good_node_is_ok() -> None:
    found = rows(GOOD, CLUSTER)
    assert {name: row[:2] for name, row in found.items() if row[0] != "ok" or row[2]} == {}
    assert {check.name for check in CHECKS} - found.keys() == {"BIG TCP", "encryption port"}
    assert {check.name for check in CHECKS} - rows(GOOD, BIG).keys() >= {"encryption port"}


def test_what_the_settings_do_not_ask_for_is_not_judged() -> None:
    off = EMBEDDED | {"l7_proxy": "off", "dns_proxy": "off", "socket_lb": "off"}
    absent = {"XDP", "VXLAN", "API server", "CNI configuration", "CNI plugin", "healthz port", "tunnel port"}
    absent |= {"BIG TCP", "encryption port"}
    absent |= {"Envoy", "bpf_sk_assign", "proxy ports", "socket programs", "cgroup2", "metrics port"}
    assert {check.name for check in CHECKS} - rows(GOOD, off).keys() == absent


@pytest.mark.parametrize(
    ("check", "part", "values", "result", "says"),
    [
        ("kernel", "kernel", {"release": "5.15.0-100-generic"}, "fail", "needs 6.1"),
        ("kernel", "kernel", {"release": "6.0.19"}, "fail", "needs 6.1"),
        ("kernel", "kernel", {"release": ""}, "unknown", "does not say"),
        ("privileges", "kernel", {"capabilities": 0}, "fail", "CAP_BPF"),
        ("privileges", "kernel", {"capabilities": ALL & ~(1 << 39)}, "fail", "no CAP_BPF"),
        ("privileges", "kernel", {"capabilities": ALL & ~(1 << 12)}, "fail", "no CAP_NET_ADMIN"),
        ("privileges", "kernel", {"capabilities": ALL & ~(1 << 7)}, "warn", "no CAP_SETUID"),
        ("bpf", "kernel", {"bpf": errno.EPERM}, "fail", "seccomp"),
        ("bpf", "kernel", {"bpf": errno.ENOSYS}, "fail", "no bpf(2)"),
        ("bpf", "kernel", {"bpf": None}, "unknown", "not tried"),
        ("BTF", "kernel", {"btf": False}, "warn", "none"),
        ("BTF", "kernel", {"btf": None}, "unknown", "/sys"),
        ("JIT", "kernel", {"jit": "0"}, "warn", "bpf_jit_enable=1"),
        ("JIT", "kernel", {"jit": None}, "unknown", "not to be read"),
        ("bpffs", "host", {"bpffs": False}, "warn", "not mounted"),
        ("cgroup2", "host", {"cgroup2": None}, "warn", "not mounted"),
        ("programs", "kernel", {"programs": {}}, "unknown", "not tried"),
        ("programs", "kernel", {"programs": {"tc": Probe(errno.EPERM)}}, "unknown", "could not be tried"),
        ("programs", "kernel", {"programs": {"tc": Probe(errno.EINVAL, "bad type")}}, "fail", "bad type"),
        ("socket programs", "kernel", {"programs": {"cgroup_sock": Probe(0)}}, "unknown", "not tried"),
        (
            "socket programs",
            "kernel",
            {"programs": {"cgroup_sock": Probe(0), "cgroup_sock_addr": Probe(errno.EINVAL)}},
            "fail",
            "--socket-lb off",
        ),
        ("XDP", "kernel", {"programs": {"xdp": Probe(errno.EINVAL)}}, "fail", "--xdp off"),
        (
            "bpf_sk_assign",
            "kernel",
            {"programs": {"sk_assign": Probe(errno.EINVAL, "0: call\nunknown func bpf_sk_assign#124\n")}},
            "fail",
            "unknown func bpf_sk_assign#124",
        ),
        ("bpf_redirect_peer", "kernel", {"programs": {}}, "unknown", "not tried"),
        ("memory of maps", "host", {"memory_bytes": 1 << 20}, "fail", "--map-sizes"),
        ("memory of maps", "host", {"memory_bytes": None}, "unknown", "MB"),
        ("bcc", "host", {"bcc": "install it"}, "fail", "install it"),
        ("bcc", "host", {"headers": "install them"}, "fail", "install them"),
        ("Envoy", "host", NO_ENVOY, "warn", "there is no Envoy"),
        ("clock", "host", {"clock_synchronized": False}, "warn", "chrony"),
        ("clock", "host", {"clock_synchronized": None}, "unknown", "does not say"),
        ("state directory", "host", {"state_dir": GONE}, "fail", "not writable"),
        ("state directory", "host", {"state_dir": None}, "unknown", "/var/lib/gatehouse"),
        ("state directory", "host", {"state_dir": Folder(True, True, "overlay", 1 << 30)}, "warn", "hostPath"),
        ("state directory", "host", {"state_dir": Folder(True, True, "ext4", 1 << 20)}, "fail", "make 64 MB free"),
        ("WireGuard", "kernel", {"modules": frozenset()}, "unknown", "not in the kernel"),
        ("WireGuard", "kernel", {"modules": None}, "unknown", "does not say"),
        ("sysctls", "node", {"sysctls": {"net/ipv4/ip_forward": "1"}}, "fail", "sysctl -w net.ipv4.ip_forward=1"),
        ("sysctls", "node", {"sysctls": None}, "unknown", "/proc/sys"),
        ("devices", "node", {"devices": None}, "unknown", "does not list"),
        ("devices", "node", {"devices": ()}, "fail", "no Ethernet device"),
        ("MTU", "node", {"devices": ()}, "unknown", "no device"),
        ("MTU", "node", {"devices": (Device(2, "e", mtu=1300, addresses=(V4,)),)}, "fail", "IPv6 needs 1280"),
        ("MTU", "node", {"devices": (Device(2, "e", mtu=1440, addresses=(V4,)),)}, "warn", "or 1390"),
        ("MTU", "node", {"devices": (Device(2, "e", mtu=1460, addresses=(V6,)),)}, "warn", "or 1390"),
        ("VXLAN", "kernel", {"modules": frozenset({"x"})}, "unknown", "--routing native"),
        ("VXLAN", "kernel", {"modules": None}, "unknown", "does not say"),
        ("proxy ports", "node", {"tcp_ports": frozenset({16384, 20479})}, "warn", "16384, 20479 in use"),
        ("proxy ports", "node", {"udp_ports": frozenset(range(16384, 16393))}, "warn", "16388 and 4 more in use"),
        ("proxy ports", "node", {"tcp_ports": frozenset({16384}), "agent_runs": True}, "ok", "where an agent runs"),
        ("node ports", "node", {"tcp_ports": frozenset({30080})}, "warn", "30080 in use"),
        ("node ports", "node", {"local_ports": (32000, 60999)}, "ok", "reserves them"),
        ("healthz port", "node", {"tcp_ports": frozenset({10256})}, "fail", "--healthz"),
        ("healthz port", "node", {"tcp_ports": frozenset({10256}), "agent_runs": True}, "ok", "where an agent runs"),
        ("metrics port", "node", {"tcp_ports": frozenset({9965})}, "fail", "--metrics"),
        ("tunnel port", "node", {"udp_ports": frozenset({8472})}, "fail", "--tunnel-port"),
        ("tunnel port", "node", {"udp_ports": frozenset({8472}), "agent_runs": True}, "ok", "where an agent runs"),
        ("kube-proxy", "node", {"kube_proxy": ("device kube-ipvs0",)}, "warn", "delete its DaemonSet"),
        ("other agents", "node", {"others": {"Cilium": "device cilium_host"}}, "warn", "Cilium: device cilium_host"),
        ("CNI configuration", "host", {"cni_conf_dir": GONE}, "fail", "is not there"),
        ("CNI configuration", "host", {"cni_conf_dir": Folder(True, False)}, "fail", "is not writable"),
        (
            "CNI configuration",
            "host",
            {"cni_configurations": ("00-other.conf",)},
            "fail",
            "read 00-other.conf before 05-gatehouse",
        ),
        ("CNI configuration", "host", {"cni_conf_dir": None}, "unknown", "/etc/cni/net.d"),
        ("CNI plugin", "host", {"cni_bin_dir": GONE}, "fail", "/opt/cni/bin is not there"),
        ("API server", "", {"api_server": Server(problem="connection refused")}, "fail", "connection refused"),
        ("API server", "", {"api_server": None}, "unknown", "not asked"),
    ],
)
def test_a_node_that_differs(check: str, part: str, values: dict[str, Any], result: str, says: str) -> None:
    found = rows(changed(part, values), CLUSTER)[check]
    assert found[0] == result
    assert says in f"{found[1]} {found[2]}"
    assert result in ("ok", "unknown") or found[2], "what is wrong comes with what to do"


@pytest.mark.parametrize(
    ("check", "settings", "facts", "result", "says"),
    [
        ("settings", {}, GOOD, "fail", "--manifests is missing"),
        ("settings", EMBEDDED | {"mtu": "1000"}, GOOD, "fail", "below 1280"),
        ("MTU", EMBEDDED | {"mtu": "1500"}, GOOD, "ok", "devices allow 1500; pods have 1500"),
        ("MTU", EMBEDDED | {"mtu": "0"}, GOOD, "ok", "pods will have 1500"),
        ("MTU", EMBEDDED | {"mtu": "0", "routing": "vxlan"}, GOOD, "ok", "50 go to VXLAN: pods will have 1450"),
        ("devices", EMBEDDED, GOOD, "ok", "not used for node ports"),
        ("devices", EMBEDDED | {"devices": "eth1"}, GOOD, "fail", "eth1 is not there"),
        ("devices", EMBEDDED | {"devices": "eth0,eth1"}, GOOD, "warn", "eth1 is not there"),
        ("Envoy", EMBEDDED | {"l7_proxy": "on"}, changed("host", NO_ENVOY), "fail", "there is no Envoy"),
        ("Envoy", EMBEDDED | {"l7_proxy": "on"}, changed("host", {"envoy": None}), "unknown", "in time"),
        ("sysctls", EMBEDDED, changed("node", {"sysctls": {"a/b": "1"}, "is_initial": False}), "ok", "changes a.b"),
        ("sysctls", EMBEDDED, changed("node", {"sysctls": {"a/b": "1"}, "is_initial": None}), "fail", "--node-sysctls"),
        (
            "sysctls",
            EMBEDDED | {"node_sysctls": "true"},
            changed("node", {"sysctls": {"a/b": "1"}, "sysctls_writable": False}),
            "fail",
            "read-only",
        ),
        ("memory of maps", EMBEDDED | {"map_sizes": "conntrack=4000000000"}, GOOD, "fail", "--map-sizes"),
        ("CNI configuration", CLUSTER | {"cni_conf_dir": ""}, GOOD, "warn", "--cni-conf-dir"),
        ("CNI configuration", CLUSTER | {"cni_chain": "10-kindnet.conflist"}, GOOD, "ok", "is read first"),
        ("CNI configuration", CLUSTER | {"cni_chain": "20-x.conf"}, GOOD, "fail", "has no 20-x.conf"),
        (
            "other agents",
            CLUSTER | {"cni_chain": "10-kindnet.conflist"},
            changed("node", {"others": {"Flannel": "device flannel.1"}}),
            "ok",
            "stands behind",
        ),
        (
            "privileges",
            CLUSTER | {"helpers": "containers"},
            changed("kernel", {"capabilities": ALL & ~(1 << 7)}),
            "ok",
            "all",
        ),
        (
            "WireGuard",
            EMBEDDED,
            without_module(program=True, tells=False),
            "ok",
            "wireguard-go",
        ),
        ("WireGuard", ENCRYPTED, GOOD, "ok", "in the kernel"),
        ("WireGuard", ENCRYPTED, without_module(program=True), "ok", "wireguard-go and /dev/net/tun"),
        ("WireGuard", ENCRYPTED, without_module(program=False), "fail", "not in the kernel, and no wireguard-go"),
        ("WireGuard", ENCRYPTED, without_module(program=False, tells=False), "unknown", "does not say"),
        ("WireGuard", ENCRYPTED, without_module(program=False, asked=0), "ok", "in the kernel"),
        ("WireGuard", ENCRYPTED, changed("kernel", {"wireguard": errno.EOPNOTSUPP}), "fail", "not in the kernel"),
        ("WireGuard", ENCRYPTED, changed("kernel", {"wireguard": errno.EPERM}), "ok", "in the kernel"),
        (
            "WireGuard",
            ENCRYPTED,
            without_module(program=True, tun=errno.EPERM),
            "fail",
            "and /dev/net/tun: Operation not permitted",
        ),
        (
            "WireGuard",
            ELSEWHERE,
            without_module(program=True, tun=errno.ENOENT),
            "unknown",
            "is run by `gatehouse helper wireguard`, and whether that has /dev/net/tun cannot be seen from here",
        ),
        ("WireGuard", ELSEWHERE, without_module(program=True, tun=errno.ENODEV), "fail", "No such device"),
        ("WireGuard", ELSEWHERE, without_module(program=False, tun=errno.ENOENT), "fail", "no wireguard-go"),
        ("WireGuard", ELSEWHERE, GOOD, "ok", "in the kernel"),
        (
            "WireGuard",
            ELSEWHERE | {"wireguard": "kernel"},
            without_module(program=True, tun=2),
            "fail",
            "not in the kernel",
        ),
        ("WireGuard", ENCRYPTED | {"wireguard": "kernel"}, without_module(program=True), "fail", "not in the kernel"),
        (
            "WireGuard",
            ENCRYPTED | {"wireguard": "kernel"},
            without_module(program=True, tells=False),
            "unknown",
            "does not say",
        ),
        ("WireGuard", ENCRYPTED | {"wireguard": "userspace"}, GOOD, "fail", "no wireguard-go"),
        (
            "WireGuard",
            ENCRYPTED | {"wireguard": "userspace", "wireguard_program": "/opt/wg"},
            without_module(program=True, asked=0),
            "ok",
            "/opt/wg and /dev/net/tun",
        ),
        ("MTU", ENCRYPTED | {"mtu": "0"}, GOOD, "ok", "60 go to WireGuard: pods will have 1440"),
        ("MTU", ENCRYPTED | {"routing": "vxlan", "mtu": "1500"}, GOOD, "warn", "--mtu 0, or 1440"),
        ("encryption port", ENCRYPTED, GOOD, "ok", "51871 is free"),
        (
            "encryption port",
            ENCRYPTED,
            changed("node", {"udp_ports": frozenset({51871})}),
            "fail",
            "choose --encryption-port on all nodes",
        ),
        (
            "encryption port",
            ENCRYPTED,
            changed("node", {"udp_ports": frozenset({51871}), "agent_runs": True}),
            "ok",
            "where an agent runs",
        ),
        ("BIG TCP", BIG, limited(LIMITS), "ok", "up to 196608 bytes"),
        ("BIG TCP", BIG, limited(LIMITS._replace(most=65536)), "warn", "device eth0 takes packets of at most 65536"),
        ("BIG TCP", BIG, limited(LIMITS._replace(gso_ipv4=None, gro_ipv4=None)), "warn", "for IPv6 only"),
        ("BIG TCP", BIG, limited(None), "unknown", "does not list"),
        ("bpffs", EMBEDDED, Facts(Kernel(), GOOD.node, Host()), "fail", "knows no file system bpf"),
        ("cgroup2", EMBEDDED, Facts(Kernel(), GOOD.node, Host()), "fail", "--socket-lb off"),
    ],
)
def test_what_settings_make_of_it(check: str, settings: dict[str, str], facts: Facts, result: str, says: str) -> None:
    found = rows(facts, settings)[check]
    assert found[0] == result
    assert says in f"{found[1]} {found[2]}"


def test_nothing_is_taken_for_good_that_is_not_known() -> None:
    """Facts of which none could be had."""
    found = rows(Facts(), CLUSTER)
    known = {"settings", "proxy ports", "node ports", "healthz port", "metrics port", "tunnel port"}
    good = {name for name, row in found.items() if row[0] == "ok"}
    assert good - known == {"bcc", "kube-proxy", "other agents"}  # of these, nothing found is the answer


def test_map_sizes_count() -> None:
    small = machine.map_bytes(resolved(EMBEDDED).config)
    large = machine.map_bytes(resolved(EMBEDDED | {"map_sizes": "conntrack=10000000"}).config)
    assert large > small > 0
