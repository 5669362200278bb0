"""BIG TCP on real traffic: packets of more than 64 KiB between pods, nodes and a client outside, and the data whole."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import north_south
import probes
import pytest
import rig
from agents import Document, allow_from, policy
from north_south import CLIENT_IPS, FAMILIES, NorthSouth, pod, pod_ip, routed_ip
from traffic import DROPPED_S

from agent.bigtcp import JUMBO_BYTES, SIZE, USUAL
from agent.endpoints import links
from agent.endpoints.links import Limits
from agent.endpoints.netlink import RouteSocket

FROM, NEAR, FAR, OTHER = "shop/from", "shop/near", "shop/far", "shop/other"
"""On n1: from, other, near. On n2: far. Near and far take `from` alone, and what is outside."""
AMOUNT = 16 << 20
PORT = 9000
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # linux/if_packet.h
HEADERS = 14 + 40 + 8 + 60
with RouteSocket() as _route:
    KNOWN = links.read_limits(_route.request(links.get_link("lo"))[0])
IPV4 = KNOWN.gso_ipv4 is not None
"""Whether this kernel has BIG TCP for IPv4, too."""
ALL = Limits(SIZE, SIZE, *([SIZE, SIZE] if IPV4 else ()))
ON_DEVICE = Limits(SIZE, USUAL, *([SIZE, SIZE] if IPV4 else ()))
AS_EVER = Limits(USUAL, USUAL, *([USUAL, USUAL] if IPV4 else ()))
NO_IPV4 = "there is BIG TCP for IPv6 only: this kernel has none for IPv4 (Linux 6.3 has)"
INGRESS = [
    *allow_from(app="from"),
    {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/32"}}]},
]


def balancer(name: str, ip: int, target: str) -> Document:
    namespace, _, short = name.partition("/")
    ips = [routed_ip("n1", ip, family) for family in FAMILIES]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": short, "namespace": namespace},
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": target},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": one} for one in ips]}},
    }


class Big(NorthSouth):
    """Links between the nodes, and the client's, pass such packets whole, as a wire passes segments."""

    def __init__(self, folder: Path, *flags: str) -> None:
        super().__init__(folder, "--mtu", "1500", *flags)
        for port in ("p1", "p2", "client"):
            self.network.call(limit, port, ALL)
        self.outside.call(north_south._set, "eth0", north_south._ETHTOOL_STXCSUM, True)  # or it sends no such packets
        self.write(
            "pods.yaml",
            pod(FROM, "n1", 20, app="from"),
            pod(OTHER, "n1", 21, app="other"),
            pod(NEAR, "n1", 22, app="near"),
            pod(FAR, "n2", 10, app="far"),
        )
        self.write("policy.yaml", *(policy(f"shop/{one}", {"app": one}, ingress=INGRESS) for one in ("near", "far")))
        self.write("services.yaml", balancer("shop/near", 1, "near"), balancer("shop/far", 2, "far"))


def limit(name: str, limits: Limits) -> None:
    with RouteSocket() as route:
        index = links.read_link(route.request(links.get_link(name))[0]).ifindex
        route.request(links.set_limits(index, limits))


def limits_of(name: str) -> Limits:
    with RouteSocket() as route:
        return links.read_limits(route.request(links.get_link(name))[0])._replace(most=None)


@pytest.fixture(scope="module")
def cluster(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Big]:
    cluster = Big(tmp_path_factory.mktemp("big"))
    with cluster:
        cluster.run("--big-tcp")
        yield cluster


def test_ipv6_has_room_for_the_option(cluster: Big) -> None:
    """Also after links have come up, when the kernel gives them what the link has."""
    for node, name in (("n1", FROM), ("n1", OTHER), ("n1", NEAR), ("n2", FAR)):
        shown = cluster.netns(node, name).run("sysctl", "-n", "net.ipv6.conf.eth0.mtu").stdout
        assert int(shown) == 1500 - JUMBO_BYTES, name


# ---- transfers


class Largest:
    """Of frames that come to a namespace by eth0."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: packets wait until they are read
        self.socket.bind(("eth0", 0))

    def read(self) -> int:
        largest, head = 0, bytearray(32)
        self.socket.setblocking(False)
        while True:
            try:
                size, _, _, sender = self.socket.recvmsg_into([head], 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return largest
            if sender[2] != socket.PACKET_OUTGOING:
                largest = max(largest, size)


def dropped(cluster: Big) -> int:
    """Packets at n1 that policy denies, or in which headers are not what they should be."""
    drops = cluster.agents["n1"].status()["drops"]
    return sum(drops.get(reason, 0) for reason in ("POLICY_INGRESS", "MALFORMED"))


class Heard:
    """Whether anything comes to a namespace from an address."""

    def __init__(self, address: str) -> None:
        self._address = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind(("eth0", 0))

    def anything(self) -> bool:
        self.socket.setblocking(False)
        while True:
            try:
                frame, sender = self.socket.recvfrom(64)
            except BlockingIOError:
                return False
            if sender[2] != socket.PACKET_OUTGOING and self._address in frame[:64]:
                return True


def forge(source: rig.Netns, own: str, address: str, length: int, option: bytes, segment: int) -> bytes:
    """A frame for a socket with PACKET_VNET_HDR (struct virtio_net_hdr before it)."""
    (link,) = json.loads(source.run("ip", "-j", "link", "show", "dev", "eth0").stdout)
    gateway = json.loads(source.run("ip", "-j", "neigh", "show", "dev", "eth0").stdout)[0]["lladdr"]
    macs = bytes.fromhex((gateway + link["address"]).replace(":", ""))
    family = "v6" if ":" in address else "v4"
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    ends = socket.inet_pton(kind, own) + socket.inet_pton(kind, address)
    tcp = struct.pack("!HHIIBBHHH", 40000, PORT, 1, 1, 5 << 4, 2, 1000, 0, 0)
    if family == "v6":
        after = HOP_BY_HOP if option else TCP_NUMBER
        head = struct.pack("!HIHBB", 0x86DD, 6 << 28, length, after, 64) + ends + option
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0x4000, 64, TCP_NUMBER, 0) + ends
        head = struct.pack("!H", 0x0800) + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    head = macs + head
    about = struct.pack("=BBHHHH", 1, GSO_TCP[family], len(head) + len(tcp), segment, len(head), 16)
    return about + head + tcp + bytes(BODY)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Sink:
    """Takes one connection after the other and sums up what comes."""

    def __init__(self, netns: rig.Netns, family: str) -> None:
        self.listener = netns.call(listening, family)
        self.sums: list[str] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                summed = hashlib.sha256()
                while data := connection.recv(1 << 20):
                    summed.update(data)
                self.sums.append(summed.hexdigest())
                connection.sendall(b"done")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def listening(family: str) -> socket.socket:
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    return socket.create_server(("::" if family == "v6" else "0.0.0.0", PORT), family=kind)


@contextmanager
def sink(netns: rig.Netns, family: str) -> Iterator[Sink]:
    found = Sink(netns, family)
    try:
        yield found
    finally:
        found.close()


DATA = b"".join(struct.pack("!I", n) for n in range(1 << 18))
SUM = hashlib.sha256(DATA * (AMOUNT // len(DATA))).hexdigest()


def connect(netns: rig.Netns, address: str, port: int) -> socket.socket:
    return netns.call(socket.create_connection, (address, port), 60)


def send(connection: socket.socket, amount: int = AMOUNT) -> None:
    """All of it, and until the other end says that it has come."""
    with connection:
        for _ in range(amount // len(DATA)):
            connection.sendall(DATA)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b"done"


SENDER = {"ipv4__tcp_min_tso_segs": "128", "ipv4__tcp_congestion_control": "reno"}
"""TCP makes packets as large as what it would send in a millisecond (tcp_tso_autosize), little on a slow machine: not
smaller than so many segments. BBR, which may be the machine's choice, heeds a bound of its own, of two."""
TRIES = 30


def goes_big(source: rig.Netns, target: rig.Netns, address: str, port: int, family: str) -> bool:
    """Whether packets are as large as this kernel can make them. What is lost on a busy machine makes them smaller."""
    wanted = IPV4 or family == "v6"
    return any((transfer(source, target, address, port, family) > USUAL + HEADERS) is wanted for _ in range(TRIES))


def transfer(source: rig.Netns, target: rig.Netns, address: str, port: int, family: str) -> int:
    """The largest packet with which it came."""
    source.sysctl(**SENDER)
    with sink(target, family) as taken:
        largest = target.call(Largest)
        with largest.socket:
            send(connect(source, address, port))
            assert taken.sums == [SUM]
            return largest.read()


def whereto(cluster: Big, name: str, family: str) -> tuple[rig.Netns, str]:
    node, number = ("n1", 22) if name == NEAR else ("n2", 10)
    return cluster.netns(node, name), pod_ip(node, number, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [NEAR, FAR])
def test_between_pods(cluster: Big, name: str, family: str) -> None:
    target, address = whereto(cluster, name, family)
    assert goes_big(cluster.netns("n1", FROM), target, address, PORT, family)
    for agent in cluster.agents.values():
        assert agent.status()["reasons"] == ([] if IPV4 else [NO_IPV4])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [NEAR, FAR])
def test_policy_holds(cluster: Big, name: str, family: str) -> None:
    target, address = whereto(cluster, name, family)
    with sink(target, family) as taken:
        answer = probes.tcp(cluster.netns("n1", OTHER), address, PORT, DROPPED_S)
        assert answer.result == "timeout"
        assert taken.sums == []


# What a pod with CAP_NET_RAW claims in packets of its own making: the length in the IP header, the hop-by-hop header
# before TCP's (IPv6 alone) and how many bytes of data each segment is to have.
TCP_NUMBER, HOP_BY_HOP, GSO_TCP = 6, 0, {"v4": 1, "v6": 4}
BODY = 100_000
FORGED: dict[str, tuple[int, bytes, int]] = {
    "as the kernel does": (0, struct.pack("!BBBBI", TCP_NUMBER, 0, 0xC2, 4, 8 + 20 + BODY), 1300),
    "without the option": (0, b"", 1300),
    "too long": (0, struct.pack("!BBBBI", TCP_NUMBER, 0, 0xC2, 4, 1 << 20), 1300),
    "too short": (0, struct.pack("!BBBBI", TCP_NUMBER, 0, 0xC2, 4, 70_000), 1300),
    "in more options": (0, struct.pack("!BBBBI", TCP_NUMBER, 1, 0xC2, 4, 16 + 20 + BODY) + bytes(8), 1300),
    "before something else": (
        0,
        struct.pack("!BBBBI", 60, 0, 0xC2, 4, 16 + 20 + BODY) + b"\x06\x00\x01\x04" + bytes(4),
        1300,
    ),
    "in segments of everything": (0, struct.pack("!BBBBI", TCP_NUMBER, 0, 0xC2, 4, 8 + 20 + BODY), 60_000),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("claim", FORGED)
def test_forged_packets_do_not_walk_around_policy(cluster: Big, claim: str, family: str) -> None:
    """Neither whole, nor what the kernel cuts them into; the way of an allowed pod's packets stays as it was."""
    length, option, segment = FORGED[claim]
    source, (target, address) = cluster.netns("n1", OTHER), whereto(cluster, NEAR, family)
    heard = target.call(Heard, pod_ip("n1", 21, family))
    raw = source.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    with raw, heard.socket:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.bind(("eth0", 0x0800 if family == "v4" else 0x86DD))
        frame = forge(source, pod_ip("n1", 21, family), address, length, option if family == "v6" else b"", segment)
        before = dropped(cluster)
        raw.send(frame)
        with sink(target, family):
            send(connect(cluster.netns("n1", FROM), address, PORT), len(DATA))
        assert not heard.anything()
    assert dropped(cluster) > before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "service"), [(NEAR, 1), (FAR, 2)])
@pytest.mark.parametrize("by", ["pod", "node", "outside"])
def test_by_services(cluster: Big, by: str, name: str, service: int, family: str) -> None:
    """Translated on the way: at the socket, at the pod, or at the node's device and on to another node."""
    source = {"pod": cluster.netns("n1", FROM), "node": cluster.nodes["n1"], "outside": cluster.outside}[by]
    target, direct = whereto(cluster, name, family)
    # A process of the node whose cgroup no agent has been given is not served by services' addresses.
    address, port = (direct, PORT) if by == "node" else (routed_ip("n1", service, family), 80)
    cluster.outside.call(limit, "eth0", ALL)
    assert goes_big(source, target, address, port, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_to_somebody_outside(cluster: Big, family: str) -> None:
    """With the node's address."""
    cluster.outside.call(limit, "eth0", ALL)
    assert goes_big(cluster.netns("n1", FROM), cluster.outside, CLIENT_IPS[family], PORT, family)


def test_a_client_without(cluster: Big) -> None:
    """One that has no BIG TCP itself."""
    cluster.outside.call(limit, "eth0", AS_EVER)
    for family in FAMILIES:
        target, _ = whereto(cluster, FAR, family)
        transfer(cluster.outside, target, routed_ip("n1", 2, family), 80, family)
    cluster.outside.call(limit, "eth0", ALL)


def test_off_and_on_under_traffic(cluster: Big) -> None:
    """Connections live through both; the limits are what they were."""
    netns = cluster.netns("n2", FAR)
    assert netns.call(limits_of, "eth0") == ALL
    assert cluster.nodes["n2"].call(limits_of, "eth0") == ON_DEVICE
    with sink(netns, "v4") as v4, sink_v6(netns) as v6:
        stop = threading.Event()
        with sending(cluster, stop, v4, v6):
            cluster.run("--no-big-tcp")
            assert netns.call(limits_of, "eth0") == AS_EVER
            assert cluster.nodes["n2"].call(limits_of, "eth0") == AS_EVER
            cluster.run("--big-tcp")
            assert netns.call(limits_of, "eth0") == ALL
    for family in FAMILIES:
        target, address = whereto(cluster, FAR, family)
        assert goes_big(cluster.netns("n1", FROM), target, address, PORT, family)


@contextmanager
def sink_v6(netns: rig.Netns) -> Iterator[Sink]:
    with sink(netns, "v6") as found:
        yield found


@contextmanager
def sending(cluster: Big, stop: threading.Event, *sinks: Sink) -> Iterator[None]:
    """A connection of each family that goes on sending for as long as this is open; each comes whole."""
    sent: dict[str, int] = {}
    sockets = {f: connect(cluster.netns("n1", FROM), pod_ip("n2", 10, f), PORT) for f in FAMILIES}

    def go(family: str) -> None:
        count = 0
        with sockets[family] as connection:
            while not stop.is_set():
                connection.sendall(DATA)
                count += 1
            connection.shutdown(socket.SHUT_WR)
            connection.recv(10)
        sent[family] = count

    threads = [threading.Thread(target=go, args=(family,)) for family in FAMILIES]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    for family, one in zip(FAMILIES, sinks, strict=True):
        summed = hashlib.sha256()
        for _ in range(sent[family]):
            summed.update(DATA)
        assert one.sums == [summed.hexdigest()]
        assert sent[family] > 0
