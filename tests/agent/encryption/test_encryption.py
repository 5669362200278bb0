"""Nodes that encrypt: packets on the wire, the stock tool, and what happens to devices, addresses and keys."""

from __future__ import annotations

import base64
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest
import rig
from tunnel_traffic import Connection, captured, others
from wireguard_backends import need, stock
from wireguard_nodes import MARK, PORT, WAIT_S, EncryptedNode, Wire

from agent.encryption import encryption as encryption_module
from agent.encryption.keys import PrivateKey, shown
from agent.encryption.userspace import socket_of

Pair = tuple[EncryptedNode, EncryptedNode]


def wg(node: EncryptedNode, *words: str) -> str:
    return node.run(*stock(*words)).stdout


def device_pid(node: EncryptedNode) -> int:
    """Of the program behind a node's device."""
    assert node.encryption
    return node.do(_process)


async def _process(encryption: object) -> int:
    device = encryption._tunnel.device  # type: ignore[attr-defined]
    view = device.process()
    return int(view.pid) if view else 0


def peer_view(node: EncryptedNode, of: EncryptedNode):  # type: ignore[no-untyped-def]
    assert node.encryption
    return next(peer for peer in node.encryption.view().peers if peer.node == of.node_name)


def handshaken(node: EncryptedNode, key: bytes) -> int:
    """When the device made its last handshake with a key."""
    table = dict(line.split("\t") for line in wg(node, "show", node.device, "latest-handshakes").splitlines())
    return int(table.get(shown(key), 0))


def test_what_is_on_the_wire(pair: Pair) -> None:
    one, two = pair
    with captured(one, "eth0") as frames:
        assert one.ping(two) and two.ping(one)
    assert "wireguard" in {frame.kind for frame in frames()}
    assert others(frames()) == []


def test_the_device(pair: Pair) -> None:
    """No addresses, a mark on its packets, and what the stock tool says of it."""
    one, two = pair
    one.ping(two)
    link = msgspec.json.decode(one.run("ip", "-j", "address", "show", one.device).stdout)[0]
    assert (link["addr_info"], link["mtu"], "UP" in link["flags"]) == ([], 1420, True)
    assert one.encryption and one.encryption.ifindex == link["ifindex"] == one.devices[-1]
    dump = [line.split("\t") for line in wg(one, "show", one.device, "dump").splitlines()]
    (_, public, port, mark), (peer, _, endpoint, allowed, handshake, received, sent, keepalive) = dump
    assert (public, port, int(mark, 16)) == (shown(one.facts[0]), str(PORT), MARK)
    assert (peer, endpoint, keepalive) == (shown(two.facts[0]), f"192.0.2.2:{PORT}", "off")
    assert set(allowed.split(",")) == {"10.244.2.0/24", "fd00:2::/64", "192.0.2.2/32", "2001:db8::2/128"}
    assert int(handshake) and int(received) and int(sent)


def test_nobody_is_told_the_private_key(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    """Not by status, logs, or records (CVE-2026-41520)."""
    one, two = pair
    folder = one.instance.state_dir
    secrets = {(folder / "wireguard/current.key").read_text().strip()}
    old = one.facts[0]
    one.do(lambda encryption: encryption.rotate())
    rig.wait_until(lambda: one.facts[0] != old and not one.facts[1], WAIT_S, "another key")
    secrets.add((folder / "wireguard/current.key").read_text().strip())
    one.ping(two)
    assert one.encryption
    told = msgspec.json.encode(one.encryption.view()).decode() + repr(one.encryption._tunnel.rotation.keys)
    told += "".join(path.read_text() for path in (folder / "audit.jsonl", folder / "wireguard.log") if path.exists())
    told += "".join(capfd.readouterr())
    assert shown(one.facts[0]) in told and len(secrets) == 2
    for secret in secrets:
        raw = base64.b64decode(secret)
        assert not any(spelling in told for spelling in (secret, raw.hex(), repr(raw)))


def test_what_is_told_of_it(pair: Pair, backend: str) -> None:
    one, two = pair
    one.ping(two)
    one.do(lambda e: e._turn())
    assert one.encryption
    one.encryption._tunnel._state = None  # read it now, not with the next poll
    one.do(lambda e: e._turn())
    view = one.encryption.view()
    assert (view.mode, view.kernel, view.port, view.device) == ("wireguard", backend == "kernel", PORT, one.device)
    assert (view.public_key, view.rotation) == (shown(one.facts[0]), "")
    assert 0 <= view.key_age_s < 600
    (peer,) = view.peers
    assert (peer.node, peer.endpoint, peer.ready, peer.problem) == ("n2", f"192.0.2.2:{PORT}", True, "")
    assert peer.last_handshake_s is not None and 0 <= peer.last_handshake_s < 60
    assert peer.received_bytes and peer.sent_bytes
    assert (one.encryption.reasons, one.encryption.problems()) == ([], [])


def test_ipv6_between_nodes(wire: Wire, backend: str) -> None:
    with wire.node(1, backend) as one, wire.node(2, backend) as two:
        for node in (one, two):
            node.ip("address flush dev eth0", f"address add {node.addresses[1]}/64 dev eth0 nodad")
            node.addresses = node.addresses[1:]
        wire.start(one, two)
        with captured(one, "eth0") as frames:
            assert one.ping(two)
        assert others(frames()) == []
        assert f"[2001:db8::2]:{PORT}" in wg(one, "show", one.device, "endpoints")


def test_three_nodes(wire: Wire, backend: str) -> None:
    with wire.node(1, backend) as one, wire.node(2, backend) as two, wire.node(3, backend) as three:
        wire.start(one, two, three)
        assert one.ping(two) and two.ping(three) and three.ping(one)
        three.stop(remove=True)
        wire.nodes.remove(three)
        wire.tell()
        rig.wait_until(lambda: one.ready[-1] == {"n2"}, WAIT_S)
        assert shown(three.facts[0]) not in wg(one, "show", one.device, "peers")
        wire.nodes.append(three)


def test_the_kernel_s_and_a_program_s(wire: Wire) -> None:
    for backend in ("kernel", "userspace"):
        need(backend)
    with wire.node(1, "kernel") as one, wire.node(2, "userspace") as two:
        wire.start(one, two)
        assert one.ping(two) and two.ping(one)


# ---- the agent ends and comes back


def test_the_device_outlives_the_agent(pair: Pair, backend: str) -> None:
    one, two = pair
    one.ping(two)
    at, pid = handshaken(one, two.facts[0]), device_pid(one)
    index = one.devices[-1]
    with Connection(one, two) as connection:
        one.stop()
        assert connection.exchange() and one.ping(two)
        one.start()
        one.reaches(two)
        assert connection.exchange() and one.ping(two)
        assert (one.devices[-1], device_pid(one)) == (index, pid)
    assert handshaken(one, two.facts[0]) == at, "the session is the one there was"


def test_removed_it_leaves_nothing(pair: Pair) -> None:
    one, _ = pair
    pid = device_pid(one)
    one.stop(remove=True)
    assert one.run("ip", "link", "show", one.device, check=False).returncode
    assert not socket_of(one.device).exists()
    assert not pid or not Path(f"/proc/{pid}/exe").exists()
    assert not one.call(encryption_module.remove, one.instance), "there is nothing left to remove"


def test_what_somebody_left_is_removed(pair: Pair) -> None:
    one, _ = pair
    one.stop()
    assert one.call(encryption_module.remove, one.instance)
    assert one.run("ip", "link", "show", one.device, check=False).returncode
    assert not socket_of(one.device).exists()


def test_the_program_is_killed(pair: Pair, backend: str) -> None:
    if backend == "kernel":
        pytest.skip("the kernel's device has no program")
    one, two = pair
    with Connection(one, two) as connection:
        connection.exchange()
        index = one.devices[-1]
        os.kill(device_pid(one), signal.SIGKILL)
        rig.wait_until(lambda: one.devices[-1] != index, WAIT_S, "a new device")
        one.route(two)
        assert connection.exchange(), "the connection goes on"
    assert one.encryption and one.encryption.ready == {"n2"}
    assert {frozenset({"n2"}), frozenset()} >= set(one.ready) and one.ready[-1], "nobody was told to send plain text"


def test_the_link_is_deleted(pair: Pair) -> None:
    one, two = pair
    index = one.devices[-1]
    one.ip(f"link delete {one.device}")
    rig.wait_until(lambda: one.devices[-1] != index, WAIT_S, "a new device")
    one.route(two)
    assert one.ping(two) and two.ping(one)


# ---- others


def test_a_node_s_address_changes(pair: Pair) -> None:
    one, two = pair
    with Connection(one, two) as connection:
        connection.exchange()
        two.ip("address delete 192.0.2.2/24 dev eth0", "address add 192.0.2.22/24 dev eth0")
        two.addresses[0] = "192.0.2.22"
        two.hear(two.peers)
        two.wire.tell()
        rig.wait_until(
            lambda: f"192.0.2.22:{PORT}" in wg(one, "show", one.device, "endpoints"), WAIT_S, "the new endpoint"
        )
        assert "192.0.2.22/32" in wg(one, "show", one.device, "allowed-ips")
        assert "192.0.2.2/32" not in wg(one, "show", one.device, "allowed-ips")
        assert connection.exchange()


def test_the_stock_tool_configures_the_device(pair: Pair) -> None:
    """What it adds is taken away again, what it takes away is put back; sessions go on."""
    one, two = pair
    one.ping(two)
    at = handshaken(one, two.facts[0])
    one.stop()  # so that what the tool does can be seen
    stranger = shown(PrivateKey.generate().public)
    wg(one, "set", one.device, "peer", stranger, "allowed-ips", "10.9.0.0/16")
    wg(one, "set", one.device, "peer", shown(two.facts[0]), "persistent-keepalive", "25", "allowed-ips", "10.8.0.0/16")
    wg(one, "set", one.device, "fwmark", "0x7")
    text = wg(one, "show", one.device)
    assert stranger in text and "10.8.0.0/16" in text and "every 25 seconds" in text
    one.start()
    (_, _, _, mark), *peers = (line.split("\t") for line in wg(one, "show", one.device, "dump").splitlines())
    assert int(mark, 16) == MARK
    ((key, _, _, allowed, _, _, _, keepalive),) = peers
    assert (key, keepalive) == (shown(two.facts[0]), "off")
    assert set(allowed.split(",")) == {"10.244.2.0/24", "fd00:2::/64", "192.0.2.2/32", "2001:db8::2/128"}
    assert one.ping(two) and handshaken(one, two.facts[0]) == at


def test_what_somebody_changes_is_put_back(pair: Pair) -> None:
    """With the next look at it, while the agent runs."""
    one, two = pair
    wg(one, "set", one.device, "peer", shown(two.facts[0]), "allowed-ips", "10.8.0.0/16")
    rig.wait_until(lambda: "10.244.2.0/24" in wg(one, "show", one.device, "allowed-ips"), WAIT_S)
    assert "10.8.0.0/16" not in wg(one, "show", one.device, "allowed-ips")
    assert one.ping(two)


def test_a_wrong_key(wire: Wire, backend: str) -> None:
    """Who has not the private half of the key it tells of gets nothing, and is heard by nobody."""
    with wire.node(1, backend) as one, wire.node(2, backend) as two:
        wire.start(one, two)
        liar = PrivateKey.generate().public
        two.facts = (liar, b"")
        wire.tell()
        rig.wait_until(lambda: wg(one, "show", one.device, "peers").split() == [shown(liar)], WAIT_S)
        for node, other in ((one, two), (two, one)):
            assert node.run("ping", "-c", "1", "-W", "1", "-I", node.pods[0], other.pods[0], check=False).returncode


def test_two_nodes_with_one_key(wire: Wire, backend: str) -> None:
    with wire.node(1, backend) as one, wire.node(2, backend) as two, wire.node(3, backend) as three:
        wire.start(one, two, three)
        three.facts = two.facts
        wire.tell()
        rig.wait_until(lambda: one.ready[-1] == {"n2"}, WAIT_S)
        assert one.encryption
        (problem,) = one.encryption.problems()
        assert (problem.subject, "same public key as node n2" in problem.message) == ("NodeEndpoints n3", True)
        assert one.ping(two)


def test_a_replayed_handshake_is_ignored(pair: Pair) -> None:
    one, two = pair
    with captured(two, "eth0") as frames:
        two.call(lambda: None)
        index = one.devices[-1]
        one.ip(f"link delete {one.device}")
        rig.wait_until(lambda: one.devices[-1] != index, WAIT_S, "a new device")
        one.route(two)
        assert one.ping(two)
    initiations = [frame.payload for frame in frames() if frame.payload[:1] == b"\1" and frame.source == "192.0.2.1"]
    assert initiations
    at = handshaken(two, one.facts[0])
    rig.wait_until(lambda: handshaken(two, one.facts[0]) >= at, 1)

    def replay() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for payload in initiations * 3:
                sender.sendto(payload, ("192.0.2.2", PORT))

    with wire_node(one.wire, "192.0.2.99") as elsewhere, captured(elsewhere, "eth0") as answers:
        elsewhere.call(replay)
        assert one.ping(two), "it has been through all of it by now"
    assert not [frame for frame in answers() if frame.source == "192.0.2.2" and frame.kind == "wireguard"]
    assert handshaken(two, one.facts[0]) == at
    assert "192.0.2.99" not in wg(two, "show", two.device, "endpoints")


class wire_node(rig.Netns):  # noqa: N801 - it is used as a function
    """Somebody else on the wire."""

    def __init__(self, wire: Wire, address: str) -> None:
        super().__init__("other")
        link = f"o{os.getpid()}"
        wire.ip(f"link add {link} type veth peer name eth0 netns {self.name}", f"link set {link} master wire0 up")
        self.ip("link set eth0 up", f"address add {address}/24 dev eth0")

    def __enter__(self) -> wire_node:
        return self


def test_the_port_is_taken(wire: Wire, backend: str) -> None:
    with wire.node(1, backend) as one:
        with one.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as taker:
            taker.bind(("0.0.0.0", PORT))
            one.start()
            assert one.encryption and not one.devices
            (reason,) = one.encryption.reasons
            assert f"UDP port {PORT} is another program's" in reason and "--encryption-port" in reason
        rig.wait_until(lambda: one.devices, WAIT_S, "it is tried again")
        assert one.encryption.reasons == []


@pytest.mark.parametrize(
    ("program", "words"),
    [("no-such-program", "no program no-such-program is found"), ("/bin/false", "there is no WireGuard device")],
)
def test_a_program_that_makes_no_device(wire: Wire, program: str, words: str) -> None:
    with wire.node(1, "userspace", wireguard_program=program) as one:
        one.start()
        assert one.encryption
        rig.wait_until(lambda: one.encryption and any(words in why for why in one.encryption.reasons), WAIT_S)
        assert (one.encryption.ready, one.devices, one.encryption.ifindex) == (frozenset(), [], 0)


def test_the_other_sort_of_device_takes_over(wire: Wire) -> None:
    for backend in ("kernel", "userspace"):
        need(backend)
    with wire.node(1, "kernel") as one, wire.node(2, "userspace") as two:
        wire.start(one, two)
        for backend in ("userspace", "kernel"):
            one.stop()
            one.config = msgspec.structs.replace(one.config, wireguard=backend)
            one.start()
            one.reaches(two)
            assert one.encryption and one.encryption.view().kernel is (backend == "kernel")
            assert one.ping(two)
        assert not socket_of(one.device).exists()
