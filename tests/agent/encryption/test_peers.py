"""Peers of the device: which there are to be, and what changes make them so."""

from __future__ import annotations

import random
import time

import pytest

from agent.encryption.device import Endpoint, PeerChange, PeerState
from agent.encryption.peers import Desired, Local, Wanted, after, desired, difference
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

PORT = 51871
A, B, C, D, OWN = (bytes([n]) * 32 for n in range(1, 6))
X, Y, Z = (Prefix.parse(f"10.244.{n}.0/24") for n in (7, 8, 9))
NEAR, FAR = Endpoint(parse_address("192.0.2.2"), PORT), Endpoint(parse_address("198.51.100.9"), 4711)


def addresses(*texts: str) -> tuple[bytes, ...]:
    return tuple(map(parse_address, texts))


def local(*at: str, keepalive_s: int = 0) -> Local:
    own = addresses(*(at or ("192.0.2.1", "2001:db8::1")))
    return Local("here", own, (Prefix.parse("10.244.0.0/24"),), frozenset((OWN,)), PORT, keepalive_s)


def peer(name: str, number: int, key: bytes = A, following: bytes = b"", *blocks: str, at: str = "") -> Peer:
    where = addresses(*(at or f"192.0.2.{number} 2001:db8::{number}").split())
    pods = tuple(map(Prefix.parse, blocks or (f"10.244.{number}.0/24",)))
    return Peer(name, where, pods, key, following)


def allowed(found: Desired, key: bytes) -> set[str]:
    return set(map(str, found.peers[key].allowed))


# ---- which there are to be


def test_a_peer() -> None:
    found = desired(local(keepalive_s=25), [peer("n2", 2)], {})
    assert found.peers[A].endpoint == NEAR
    assert allowed(found, A) == {"10.244.2.0/24", "192.0.2.2/32", "2001:db8::2/128"}
    assert (found.peers[A].node, found.peers[A].keepalive_s) == ("n2", 25)
    assert (found.keys, found.problems) == ({"n2": (A,)}, {})


def test_who_tells_no_key_is_none() -> None:
    found = desired(local(), [peer("n2", 2, b""), peer("here", 0, B)], {})
    assert (found.peers, found.keys, found.problems) == ({}, {}, {})


@pytest.mark.parametrize(
    ("own", "theirs", "endpoint"),
    [
        ("192.0.2.1 2001:db8::1", "2001:db8::2 192.0.2.2", "192.0.2.2"),
        ("2001:db8::1", "192.0.2.2 2001:db8::2", "2001:db8::2"),
        ("192.0.2.1 2001:db8::1", "2001:db8::2 2001:db8::3", "2001:db8::2"),
        ("192.0.2.1", "192.0.2.3 192.0.2.2", "192.0.2.3"),
        ("192.0.2.1", "2001:db8::2", None),
        ("2001:db8::1", "192.0.2.2", None),
    ],
)
def test_endpoints(own: str, theirs: str, endpoint: str | None) -> None:
    found = desired(local(*own.split()), [peer("n2", 2, at=theirs)], {})
    if endpoint is None:
        assert not found.peers and "no address of a family" in found.problems["n2"]
    else:
        assert found.peers[A].endpoint == Endpoint(parse_address(endpoint), PORT)


@pytest.mark.parametrize(
    ("peers", "reached", "problems"),
    [
        ([peer("n2", 2, OWN)], {}, {"n2": "this node's"}),
        ([peer("n2", 2), peer("n3", 3)], {"n2": (A,)}, {"n3": "same public key as node n2"}),
        ([peer("n3", 3), peer("n2", 2)], {"n2": (A,)}, {"n3": "same public key as node n2"}),
        ([peer("n2", 2, A, B), peer("n3", 3, B)], {"n2": (A,), "n3": (B,)}, {"n2": "is another node's"}),
        ([peer("n2", 2, A, C), peer("n3", 3, B, C)], {"n2": (A, C), "n3": (B,)}, {"n3": "is another node's"}),
        ([peer("n2", 2, A, OWN)], {"n2": (A,)}, {"n2": "is another node's"}),
        ([peer("n2", 2, A, A)], {"n2": (A,)}, {}),
    ],
    ids=[
        "own key",
        "one key twice",
        "in whatever order",
        "next is another's",
        "next of both",
        "next is own",
        "the same",
    ],
)
def test_keys_that_are_not_theirs(
    peers: list[Peer], reached: dict[str, tuple[bytes, ...]], problems: dict[str, str]
) -> None:
    found = desired(local(), peers, {})
    assert found.keys == reached
    assert found.problems.keys() == problems.keys()
    assert all(words in found.problems[node] for node, words in problems.items())


@pytest.mark.parametrize(
    ("claim", "lost"),
    [
        (peer("n3", 3, B, b"", "10.244.0.0/24"), "10.244.0.0/24"),
        (peer("n3", 3, B, b"", "10.244.0.128/25"), "10.244.0.128/25"),
        (peer("n3", 3, B, b"", "10.244.0.0/16"), "10.244.0.0/16"),
        (peer("n3", 3, B, b"", "192.0.2.0/24"), "192.0.2.0/24"),
        (peer("n3", 3, B, b"", "10.244.2.0/24"), "10.244.2.0/24"),
        (peer("n3", 3, B, b"", "10.244.2.128/25"), "10.244.2.128/25"),
        (peer("n3", 3, B, at="192.0.2.3 192.0.2.2"), "192.0.2.2/32"),
        (peer("n3", 3, B, at="192.0.2.3 192.0.2.1"), "192.0.2.1/32"),
        (peer("n3", 3, B, at="192.0.2.3 10.244.0.9"), "10.244.0.9/32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_prefixes_that_are_not_theirs(claim: Peer, lost: str) -> None:
    """The world has refused them before; if ever not, nobody gets another's packets."""
    found = desired(local(), [claim, peer("n2", 2)], {})
    assert allowed(found, A) == {"10.244.2.0/24", "192.0.2.2/32", "2001:db8::2/128"}
    assert lost not in allowed(found, B)
    assert f"claims {lost}" in found.problems["n3"] and "n3" in found.keys


def test_a_block_that_holds_a_node_s_address_is_nobody_s() -> None:
    """As with routes to it (agent.routing.desired)."""
    found = desired(local(), [peer("n3", 3, B, at="192.0.2.3 10.244.2.9"), peer("n2", 2)], {})
    assert allowed(found, A) == {"192.0.2.2/32", "2001:db8::2/128"}
    assert "10.244.2.9/32" in allowed(found, B)
    assert found.problems == {
        "n2": "it claims 10.244.2.0/24, which is with node n3: what is sent there does not go to it"
    }


def test_a_rotation_seen_from_elsewhere() -> None:
    """The key that made the last handshake has the addresses; who is not heard of by either, by the present one."""
    changing = [peer("n2", 2, A, B)]
    for handshakes, first in (({}, A), ({A: 5}, A), ({A: 5, B: 6}, B), ({B: 1}, B), ({A: 7, B: 6}, A)):
        found = desired(local(), changing, handshakes)
        second = {A: B, B: A}[first]
        assert found.keys["n2"] == (first, second), handshakes
        assert allowed(found, first) and not allowed(found, second)
        assert found.peers[A].endpoint == found.peers[B].endpoint


# ---- what is to change


def want(*prefixes: Prefix, endpoint: Endpoint = NEAR, keepalive_s: int = 0) -> Wanted:
    return Wanted("n", endpoint, frozenset(prefixes), keepalive_s)


def have(*prefixes: Prefix, endpoint: Endpoint | None = NEAR, keepalive_s: int = 0) -> PeerState:
    return PeerState(endpoint, frozenset(prefixes), keepalive_s)


@pytest.mark.parametrize(
    ("wanted", "found", "told", "changes"),
    [
        ({}, {}, {}, []),
        ({A: want(X)}, {}, {}, [PeerChange(A, False, NEAR, (X,), True, 0)]),
        ({A: want(X)}, {A: have(X)}, {}, []),
        ({}, {A: have(X)}, {}, [PeerChange(A, remove=True)]),
        ({A: want(X, Y)}, {A: have(X)}, {}, [PeerChange(A, allowed=(Y,), update_only=True)]),
        ({A: want(X)}, {A: have(X, Y)}, {}, [PeerChange(A, allowed=(X,), replace=True, update_only=True)]),
        ({A: want()}, {A: have(X)}, {}, [PeerChange(A, replace=True, update_only=True)]),
        ({A: want(X, keepalive_s=25)}, {A: have(X)}, {}, [PeerChange(A, keepalive_s=25, update_only=True)]),
        ({A: want(X)}, {A: have(X, endpoint=FAR)}, {A: NEAR}, []),
        ({A: want(X)}, {A: have(X, endpoint=FAR)}, {}, [PeerChange(A, endpoint=NEAR, update_only=True)]),
        ({A: want(X)}, {A: have(X, endpoint=FAR)}, {A: FAR}, [PeerChange(A, endpoint=NEAR, update_only=True)]),
        ({A: want(X)}, {A: have(X, endpoint=None)}, {A: NEAR}, [PeerChange(A, endpoint=NEAR, update_only=True)]),
    ],
    ids=["nothing", "new", "as it is", "gone", "one more", "one less", "none left", "keepalive", "roamed",
         "roamed, and nobody knows", "another address", "no endpoint"],
)  # fmt: skip
def test_difference(
    wanted: dict[bytes, Wanted], found: dict[bytes, PeerState], told: dict[bytes, Endpoint], changes: list[PeerChange]
) -> None:
    assert difference(wanted, found, told) == changes


def test_addresses_move_before_anything_is_taken() -> None:
    """From the old key to the new one: at no time are they nobody's."""
    first, second = difference({A: want(), B: want(X, Y)}, {A: have(X, Y), B: have()}, {})
    assert (first.public_key, first.allowed, first.replace) == (B, (X, Y), False)
    assert (second.public_key, second.allowed, second.replace) == (A, (), True)


def run(found: dict[bytes, PeerState], changes: list[PeerChange]) -> dict[bytes, set[Prefix]]:
    """A device's own doing, written once more: prefix by prefix, as WireGuard defines it."""
    routes = {prefix: key for key, state in found.items() for prefix in state.allowed}
    there = set(found)
    for change in changes:
        if change.remove or change.replace:
            routes = {prefix: key for prefix, key in routes.items() if key != change.public_key}
        if change.remove:
            there.discard(change.public_key)
        elif change.public_key in there or not change.update_only:
            there.add(change.public_key)
            routes |= dict.fromkeys(change.allowed, change.public_key)
    return {key: {prefix for prefix, holder in routes.items() if holder == key} for key in there}


def test_any_state_becomes_any_other() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    prefixes = [Prefix.parse(f"10.0.{n}.0/24") for n in range(8)]

    def dealt() -> dict[bytes, frozenset[Prefix]]:
        keys = draw.sample((A, B, C, D), draw.randint(0, 4))
        hands: dict[bytes, set[Prefix]] = {key: set() for key in keys}
        for prefix in prefixes if keys else ():
            if draw.random() < 0.8:
                hands[draw.choice(keys)].add(prefix)
        return {key: frozenset(hand) for key, hand in hands.items()}

    for _ in range(2000):
        wanted = {key: want(*hand) for key, hand in dealt().items()}
        found = {key: have(*hand) for key, hand in dealt().items()}
        changes = difference(wanted, found, {})
        assert run(found, changes) == {key: set(one.allowed) for key, one in wanted.items()}
        assert {key: one.allowed for key, one in after(found, changes).items()} == {
            key: one.allowed for key, one in wanted.items()
        }
        assert not difference(wanted, after(found, changes), {})
        for change in changes:
            if change.public_key in found and change.public_key in wanted:
                assert change.update_only and not change.remove, "a session that there is goes on"


def test_a_thousand_peers() -> None:
    """What the agent's own part of it takes; see test_thousand.py for the device's."""
    key = {n: n.to_bytes(32, "big") for n in range(1, 1001)}

    def node(n: int, at: int = 0) -> Peer:
        here = f"172.16.{n >> 8}.{n & 255}", f"2001:db8::{at:x}:{n:x}"
        blocks = Prefix.parse(f"10.{n >> 8}.{n & 255}.0/24"), Prefix.parse(f"fd00:{n:x}::/64")
        return Peer(f"n{n}", addresses(*here), blocks, key[n])

    mine = Local("here", addresses("172.20.0.1"), (Prefix.parse("10.200.0.0/24"),), frozenset((OWN,)), PORT)
    peers = [node(n) for n in key]
    found = after({}, difference(desired(mine, peers, {}).peers, {}, {}))
    assert len(found) == 1000
    peers[500] = node(501, at=9)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        changes = difference(desired(mine, peers, {}).peers, found, {})
        took.append(time.perf_counter() - began)
        assert [change.public_key for change in changes] == [key[501]]
    print(f"one of 1,000 changed: {min(took) * 1000:.1f} ms")
