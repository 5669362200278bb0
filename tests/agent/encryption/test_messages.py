"""What devices are told and tell, as text of a program and as the kernel's messages."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from agent.encryption import generic, uapi
from agent.encryption.device import DeviceState, Endpoint, PeerChange, PeerState, Settings, needed, provoking
from agent.encryption.keys import PrivateKey
from agent.endpoints.netlink import Reply, attribute, attributes, number
from policies.address import Prefix, parse_address

KEY = PrivateKey.generate()
A, B = bytes(range(32)), bytes(range(32, 64))
V4, V6 = Endpoint(parse_address("192.0.2.2"), 51871), Endpoint(parse_address("2001:db8::2"), 7)
X, Y = Prefix.parse("10.244.1.0/24"), Prefix.parse("fd00::/64")


def test_text_of_a_change() -> None:
    told = uapi.encode(
        Settings(KEY, 51871, 7),
        [PeerChange(A, False, V6, (X, Y), True, 25), PeerChange(B, remove=True), PeerChange(B, update_only=True)],
    )
    assert told.decode() == (
        f"set=1\nprivate_key={KEY.reveal().hex()}\nlisten_port=51871\nfwmark=7\n"
        f"public_key={A.hex()}\nendpoint=[2001:db8::2]:7\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n"
        "allowed_ip=10.244.1.0/24\nallowed_ip=fd00::/64\n"
        f"public_key={B.hex()}\nremove=true\npublic_key={B.hex()}\nupdate_only=true\n\n"
    )
    assert uapi.encode(Settings(), []) == b"set=1\n\n"


def test_text_of_a_device() -> None:
    answer = (
        f"private_key={KEY.reveal().hex()}\nlisten_port=51871\nfwmark=1786642437\npublic_key={A.hex()}\n"
        f"preshared_key={'0' * 64}\nprotocol_version=1\nendpoint=192.0.2.2:51871\nlast_handshake_time_sec=1700000000\n"
        "last_handshake_time_nsec=5\ntx_bytes=92\nrx_bytes=180\npersistent_keepalive_interval=0\n"
        f"allowed_ip=10.244.1.0/24\nallowed_ip=fd00::/64\npublic_key={B.hex()}\nsomething_new=1\n"
        "endpoint=[fe80::1%eth0]:9\nerrno=0\n\n"
    )
    state = uapi.decode(answer.encode())
    assert (state.public_key, state.port, state.mark) == (KEY.public, 51871, 1786642437)
    assert state.peers[A] == PeerState(V4, frozenset((X, Y)), 0, 1_700_000_000_000_000_005, 180, 92)
    assert state.peers[B] == PeerState(Endpoint(parse_address("fe80::1"), 9))
    assert uapi.decode(b"listen_port=0\nerrno=0\n\n") == DeviceState()


@pytest.mark.parametrize(
    ("answer", "code"), [(b"errno=0\n\n", 0), (b"listen_port=1\nerrno=-98\n\n", 98), (b"errno=22\n\n", 22)]
)
def test_what_a_program_says_of_it(answer: bytes, code: int) -> None:
    assert uapi.errno_of(answer) == code


@pytest.mark.parametrize("answer", (b"", b"\n\n", b"listen_port=1\n", b"errno=x\n\n"))
def test_an_answer_that_is_cut_off(answer: bytes) -> None:
    with pytest.raises(ValueError):
        uapi.errno_of(answer)


@pytest.mark.parametrize("answer", (b"public_key=zz\n", b"listen_port=\n", b"\xff", b"public_key=00\nallowed_ip=x/8\n"))
def test_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(ValueError):
        uapi.decode(answer)


def test_messages_to_the_kernel() -> None:
    head, peers = generic.configure(
        27, "ghwg1", Settings(KEY, 51871, 7), [PeerChange(A, False, V4, (X, Y), True, 25), PeerChange(B, remove=True)]
    )
    assert (head.kind, peers.kind, head.body[:2], b"ghwg1\0" in head.body) == (27, 27, b"\1\1", True)
    assert dict(attributes(head.body[4:]))[3] == KEY.reveal()
    first, second = (dict(attributes(one)) for _, one in attributes(dict(attributes(peers.body[4:]))[8]))
    assert (first[1], struct.unpack("=I", first[3])[0], struct.unpack("=H", first[5])[0]) == (A, 2, 25)
    assert first[4] == struct.pack("=H", 2) + struct.pack("!H", 51871) + bytes([192, 0, 2, 2]) + bytes(8)
    assert [dict(attributes(one))[3] for _, one in attributes(first[9])] == [bytes([24]), bytes([64])]
    assert (second[1], struct.unpack("=I", second[3])[0]) == (B, 1)
    assert KEY.reveal().hex() not in f"{head.what} {peers.what}"


def test_what_the_kernel_tells_reads_back() -> None:
    """Peers are told in the shape in which they are set."""
    (message,) = generic.configure(27, "ghwg1", Settings(), [PeerChange(A, False, V6, (X, Y), False, 25)])
    counts = b"".join(
        attribute(kind, value)
        for kind, value in ((6, struct.pack("=qq", 3, 4)), (7, struct.pack("=Q", 180)), (8, struct.pack("=Q", 92)))
    )
    head = attribute(4, KEY.public) + attribute(6, struct.pack("=H", 51871)) + number(7, 9)
    more = attribute(8, attribute(0, attribute(1, A) + counts + attribute(9, b"")))
    state = generic.read([Reply(27, bytes(4) + head), Reply(27, message.body), Reply(27, bytes(4) + more)])
    assert state == DeviceState(KEY.public, 51871, 9, {A: PeerState(V6, frozenset((X, Y)), 25, 3_000_000_004, 180, 92)})


def test_many_peers_and_many_prefixes_go_in_several_messages() -> None:
    prefixes = tuple(Prefix.parse(f"10.{n >> 8}.{n & 255}.0/24") for n in range(2000))
    changes = [PeerChange(bytes([n]) * 32, False, V4, prefixes, True, 0) for n in range(3)]
    messages = list(generic.configure(27, "ghwg1", Settings(), changes))
    assert len(messages) > 3 and max(len(message.body) for message in messages) < 1 << 15
    states = generic.read(Reply(27, message.body) for message in messages)
    assert {key: state.allowed for key, state in states.peers.items()} == {
        change.public_key: frozenset(prefixes) for change in changes
    }


def test_only_what_differs_is_set() -> None:
    assert needed(DeviceState(KEY.public, 5, 7), KEY, 5, 7) == Settings()
    assert needed(DeviceState(), KEY, 5, 7) == Settings(KEY, 5, 7)
    assert needed(DeviceState(KEY.public, 4, 7), KEY, 5, 7) == Settings(port=5)


@pytest.mark.parametrize(("usual", "left"), [(0, 0), (25, 25), (1, 1)])
def test_provoking_leaves_keepalives_as_they_were(usual: int, left: int) -> None:
    changes = provoking([A], {A: usual})
    assert changes[-1].keepalive_s == left and all(change.update_only for change in changes)
    values = [change.keepalive_s for change in changes]
    assert (0, 1) in pairwise(values), "it is the step from none to some that sends a packet"
