"""WireGuard between the nodes of a cluster in strict mode: nothing of pods in plain text on the links between them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
import rig
import wire
from agents import GONE_S, START_S, kill
from encrypted_cluster import PATIENT_S, STRICT, has_met, listen, meet, plaintext, status, use, uses_kernel
from kube_cluster import FAMILIES, KubeCluster, KubePod, node_ips
from patience import SLOWER
from probes import Server, ping, tcp, udp
from steady import AT_MOST, Steady
from web import fetch

from agent.encryption.userspace import socket_of
from agent.supervisor import listener_pid

PORT, METRICS = 8080, 9965
SHORT_S = 0.4 * SLOWER


@pytest.fixture(scope="module", params=["native", "vxlan"])
def cluster(
    backends: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[KubeCluster]:
    flags = (*STRICT, "--routing", request.param, "--metrics", f"127.0.0.1:{METRICS}")
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=flags) as cluster:
        use(cluster, backends)
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: KubeCluster) -> KubePod:
    return cluster.add("n1/shop/client", app="client")


@pytest.fixture(scope="module")
def web(cluster: KubeCluster) -> Iterator[KubePod]:
    pod = cluster.add("n2/shop/web", app="web")
    with Server(pod.netns, "tcp", PORT, "web"), Server(pod.netns, "udp", PORT, "web"):
        yield pod


@pytest.mark.parametrize("family", FAMILIES)
def test_first_packets_and_last_ones(cluster: KubeCluster, family: str) -> None:
    """From the creation of pods to their end, and what is sent to one that is no more."""
    with listen(cluster) as seen:
        web = cluster.add(f"n2/shop/web-{family}", app="web")
        client = cluster.add(f"n1/shop/client-{family}", app="client")
        with Server(web.netns, "tcp", PORT, "web"), Server(web.netns, "udp", PORT, "web"):
            assert tcp(client.netns, web.ip(family), PORT, PATIENT_S).seen_from == client.ip(family)
            assert udp(client.netns, web.ip(family), PORT, PATIENT_S).seen_from == client.ip(family)
            with Steady(client.netns, web.ip(family), PORT) as steady:
                steady.go_on()
                cluster.remove(f"n1/shop/client-{family}")
        cluster.remove(f"n2/shop/web-{family}")
        other = cluster.add(f"n1/shop/other-{family}", app="other")
        assert not tcp(other.netns, web.ip(family), PORT, SHORT_S)
    assert seen.encrypted
    assert seen.seen() == []
    assert plaintext(cluster) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 1200, 1372, 1380, 1440, 1472, 4000, 20000])
def test_large_packets_and_fragments(
    cluster: KubeCluster, client: KubePod, web: KubePod, family: str, size: int
) -> None:
    """Pods' MTU leaves room for all that is added: WireGuard's own packets are never fragments."""
    with listen(cluster) as seen:
        assert ping(client.netns, web.ip(family), PATIENT_S, size)
    assert seen.encrypted >= 2
    assert (seen.seen(), seen.fragments) == ([], 0)


def test_what_the_agents_show(cluster: KubeCluster, client: KubePod, web: KubePod) -> None:
    assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
    meet(cluster)
    for number, agent in enumerate(cluster.agents.values(), 1):
        found = agent.json("encryption", "status")
        assert (found["mode"], found["strict"], found["port"], found["plaintext_packets"]) == (
            "wireguard", True, wire.PORT, 0,
        )  # fmt: skip
        (peer,) = found["peers"]
        assert (peer["node"], peer["problem"]) == (f"n{3 - number}", "")
        assert peer["endpoint"] == f"{node_ips(3 - number)['v4']}:{wire.PORT}"
        assert min(peer["sent_bytes"], peer["received_bytes"]) > 0
        agent.await_flows(lambda flow: flow["source"]["ip"] == client.ip() and flow["encrypted"], 1)
        metrics = fetch(cluster.nodes[agent.name], "127.0.0.1", METRICS, "/metrics").body
        assert "gatehouse_encryption_plaintext_packets_total 0.0" in metrics.splitlines()
        assert f'gatehouse_encryption_sent_bytes_total{{node="{peer["node"]}"}}' in metrics
    private = [
        path.read_text().strip()
        for agent in cluster.agents.values()
        for path in (agent.instance.state_dir / "wireguard").glob("*.key")
    ]
    told = "".join(agent.log() + json.dumps(agent.status()) for agent in cluster.agents.values())
    assert len(private) == 2 and not any(key in told for key in private)


def test_the_stock_tool_shows_the_device(cluster: KubeCluster) -> None:
    one, two = (status(agent) for agent in cluster.agents.values())
    shown = cluster.nodes["n1"].run("wg", "show", one["device"]).stdout
    assert f"public key: {one['public_key']}" in shown
    assert f"peer: {two['public_key']}" in shown
    assert "10.244.2.0/24" in shown and "fd00:10:244:2::/64" in shown


def test_the_agents_are_killed_and_come_back(cluster: KubeCluster, client: KubePod, web: KubePod) -> None:
    """What is encrypted goes on so, and what nobody knows of is sent by nobody."""
    with listen(cluster) as seen, Steady(client.netns, web.ip(), PORT) as steady:
        for agent in cluster.agents.values():
            agent.kill()
            steady.go_on()
        assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
        for stranger in ("10.244.2.250", "fd00:10:244:2::250", "10.244.9.9", "fd00:10:244:9::9"):
            assert not ping(client.netns, stranger, SHORT_S)
        for agent in cluster.agents.values():
            agent.start()
            steady.go_on()
            assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
        assert steady.retransmits <= AT_MOST, steady
    assert seen.seen() == []
    assert plaintext(cluster) == 0


def index_of(cluster: KubeCluster, node: str, device: str) -> int:
    shown = json.loads(cluster.nodes[node].run("ip", "-j", "link", "show", device, check=False).stdout or "[{}]")
    return int(shown[0].get("ifindex", 0))


def test_the_device_is_lost(cluster: KubeCluster, client: KubePod, web: KubePod) -> None:
    """Its program is killed, or somebody deletes it. There is another, with all it has to know; until then nothing
    passes in another way."""
    agent = cluster.agents["n2"]
    device = status(agent)["device"]
    with listen(cluster) as seen, Steady(client.netns, web.ip(), PORT) as steady:
        steady.go_on()
        index = index_of(cluster, "n2", device)
        if uses_kernel(agent):
            cluster.nodes["n2"].ip(f"link delete {device}")
        else:
            pid = listener_pid(socket_of(device))
            assert pid
            kill(pid)
        rig.wait_until(lambda: index_of(cluster, "n2", device) not in (0, index), START_S, "there is another")
        rig.wait_until(lambda: has_met(agent, 1), START_S, "it has met the other")
        steady.go_on()
    assert seen.seen() == []


def test_a_node_goes_and_comes_back(cluster: KubeCluster, client: KubePod, web: KubePod) -> None:
    """Its link is down for a while."""
    with listen(cluster, "n1") as seen, Steady(client.netns, web.ip(), PORT) as steady:
        steady.go_on()
        cluster.network.ip("link set p-n2 down")
        assert not udp(client.netns, web.ip(), PORT, SHORT_S)
        cluster.network.ip("link set p-n2 up")
        steady.go_on()
    assert seen.seen() == []


def test_a_forged_packet_of_a_pod(cluster: KubeCluster, client: KubePod, web: KubePod) -> None:
    """Sent in plain text by somebody on the link, under the address of a pod of the other node: nobody hears it."""
    with (
        web.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as heard,
        cluster.outside.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as forger,
    ):
        heard.bind((web.ip(), PORT + 1))
        heard.settimeout(SHORT_S)
        cluster.outside.ip(f"route replace {web.ip()}/32 via {node_ips(2)['v4']}")
        before = drops(cluster, "n2")
        payload = (
            (5000).to_bytes(2, "big") + (PORT + 1).to_bytes(2, "big") + (8 + 2).to_bytes(2, "big") + bytes(2) + b"hi"
        )
        header = bytes([0x45, 0, 0, 20 + len(payload), 0, 1, 0, 0, 64, socket.IPPROTO_UDP, 0, 0])
        forger.sendto(header + socket.inet_aton(client.ip()) + socket.inet_aton(web.ip()) + payload, (web.ip(), 0))
        with pytest.raises(TimeoutError):
            heard.recv(100)
        rig.wait_until(lambda: drops(cluster, "n2") > before, GONE_S, "it is dropped for that reason")
        cluster.outside.ip(f"route del {web.ip()}/32")


def drops(cluster: KubeCluster, node: str) -> int:
    return int(cluster.agents[node].status()["drops"].get("UNENCRYPTED", 0))
