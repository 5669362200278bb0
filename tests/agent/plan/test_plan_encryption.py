"""Whose blocks and addresses are, as the datapath's map has it."""

from __future__ import annotations

from agent.datapath import abi
from agent.plan.encryption import KEY, VALUE, difference, entries, missing, unready
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

ABI = abi.load()
OWN_BLOCKS = (Prefix.parse("10.244.1.0/24"), Prefix.parse("fd00:1::/64"))
OWN_ADDRESSES = (parse_address("192.0.2.1"), parse_address("2001:db8::1"))
PEERS = (
    Peer("n2", (parse_address("192.0.2.2"),), (Prefix.parse("10.244.2.0/24"), Prefix.parse("fd00:2::/64")), b"k" * 32),
    Peer("n3", (parse_address("192.0.2.3"),), (Prefix.parse("10.244.3.0/24"),)),
)
CLUSTER = (Prefix.parse("10.244.0.0/16"),)


def shown(found: dict[bytes, bytes]) -> dict[str, set[str]]:
    """Block → names of flags."""
    flags = ABI.enums["encryption_flags"]
    result = {}
    for key, value in found.items():
        prefix, number = KEY.unpack(key), VALUE.unpack(value).flags
        names = {(one.name or "").removeprefix("ENCRYPTION_") for one in flags if number & one}
        result[str(Prefix(prefix.address, prefix.prefixlen))] = names
    return result


def test_everybody_is_somebody() -> None:
    found = entries(OWN_BLOCKS, OWN_ADDRESSES, PEERS, {"n2"}, CLUSTER)
    assert shown(found) == {
        "10.244.0.0/16": {"PEER_PODS"},
        "10.244.1.0/24": {"OWN_PODS"},
        "fd00:1::/64": {"OWN_PODS"},
        "10.244.2.0/24": {"PEER_PODS", "READY"},
        "fd00:2::/64": {"PEER_PODS", "READY"},
        "10.244.3.0/24": {"PEER_PODS"},
        "192.0.2.1/32": {"OWN_NODE"},
        "2001:db8::1/128": {"OWN_NODE"},
        "192.0.2.2/32": {"PEER_NODE", "READY"},
        "192.0.2.3/32": {"PEER_NODE"},
    }
    lengths = [KEY.unpack(key).prefixlen for key in found]
    assert lengths == sorted(lengths), "wide ones first: where there is no room, they stand for the others"


def test_what_is_this_nodes_is_nobody_elses() -> None:
    thief = Peer("thief", OWN_ADDRESSES, OWN_BLOCKS)
    alone = entries(OWN_BLOCKS, OWN_ADDRESSES, (), ())
    assert entries(OWN_BLOCKS, OWN_ADDRESSES, [thief], {"thief"}, OWN_BLOCKS) == alone


def test_the_difference_between_two() -> None:
    before = entries(OWN_BLOCKS, OWN_ADDRESSES, PEERS, ())
    after = entries(OWN_BLOCKS, OWN_ADDRESSES, PEERS[:1], {"n2"})
    changed, gone = difference(before, after)
    assert set(shown(changed)) == {"10.244.2.0/24", "fd00:2::/64", "192.0.2.2/32"}
    assert set(shown(dict.fromkeys(gone, VALUE.pack()))) == {"10.244.3.0/24", "192.0.2.3/32"}
    assert difference(after, after) == ({}, [])


def test_at_first_nothing_new_is_ready_and_nothing_known_changes() -> None:
    wanted = entries(OWN_BLOCKS, OWN_ADDRESSES, PEERS, {"n2", "n3"})
    (known,) = [key for key in wanted if KEY.unpack(key).address == PEERS[0].addresses[0]]
    added = missing({known: wanted[known]}, wanted)
    assert added == {key: unready(value) for key, value in wanted.items() if key != known}
    assert not any("READY" in flags for flags in shown(added).values())
