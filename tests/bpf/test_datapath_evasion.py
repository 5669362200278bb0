"""Packets bent at random: whatever passes an isolated pod must be, to an independent reader, what its rules allow."""

from __future__ import annotations

import random

import pytest
from frames import (
    AH,
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    L4,
    ROUTING,
    SCTP,
    TCP,
    UDP,
    Icmp,
    Packet,
    echo,
    host_mac,
    pod_mac,
    raw_address,
)
from kernel import ANY, Kernel

ALLOWED = 80
FRAME_SHARE = 5
"""A frame for as many judgements as were asked for."""


def random_extension(rng: random.Random) -> tuple[int, bytes]:
    kind = rng.choice([HOP_BY_HOP, DESTINATION_OPTIONS, DESTINATION_OPTIONS, ROUTING, FRAGMENT, AH, 135, 59])
    if kind == FRAGMENT:
        return kind, bytes([0, 0, rng.choice([0, 0, 1, 8, 9]), 0, 0, 0, 7])
    units = rng.choice([0, 0, 1, 2])
    body = rng.randbytes(2) if rng.random() < 0.3 else bytes([rng.choice([0, 2, 4]), rng.choice([0, 0, 1])])
    return kind, bytes([units]) + body + bytes(((units + 2) * 4 if kind == AH else (units + 1) * 8) - 4)


def random_packet(rng: random.Random) -> Packet:
    port = rng.choice([ALLOWED, ALLOWED, 81])
    protocol = rng.choices([TCP, UDP, SCTP, 0, 4, 41, 47, 50], [12, 1, 1, 1, 1, 1, 1, 1])[0]
    whole = L4(
        protocol, rng.randint(1, 3), port, rng.choice(["S", "A", "SA", "FA", "R"]), rng.randbytes(rng.randint(0, 40))
    )
    return Packet(
        source=rng.choices(["a", "c", "world"], [8, 1, 1])[0],
        destination=rng.choices(["b", "multicast"], [9, 1])[0],
        l4=rng.choices([whole, Icmp(), Icmp(kind=(3, 1), quoted=echo("b", "a"))], [8, 1, 1])[0],
        options=rng.choice([b"", b"", bytes([1, 1, 1, 0]), bytes([7, 4, 4, 0]), rng.randbytes(8)]),
        extensions=tuple(random_extension(rng) for _ in range(rng.choice([0, 0, 1, 2, 3, 7]))),
        fragment=rng.choices([None, (rng.choice([0, 8, 16, 24]), rng.random() < 0.5, rng.choice([8, 24, 48]))], [3, 1])[
            0
        ],
        length=rng.choices([None, rng.randint(0, 120)], [6, 1])[0],
        padding=rng.randbytes(rng.choice([0, 0, 8])),
    )


def bend(frame: bytes, rng: random.Random) -> bytes:
    bent = bytearray(frame)
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        bent[rng.randrange(12, min(len(bent), 120))] = rng.randrange(256)
    return bytes(bent)


def read(frame: bytes) -> tuple[bytes, bytes, int, int | None] | None:
    """Source, destination, protocol and destination port of a whole packet or a first fragment, straight from the
    RFCs; the port is None in a later fragment. None for what no host should take."""
    ip = frame[14:]
    if ip[0] >> 4 == 4 and frame[12:14] == b"\x08\x00":
        size, length = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
        if size < 20 or not size <= length <= len(ip) or not options_are_harmless(ip[20:size]):
            return None
        offset = int.from_bytes(ip[6:8], "big") & 0x1FFF
        return ip[12:16], ip[16:20], ip[9], port_of(ip[9], ip[size:length], offset)
    if ip[0] >> 4 != 6 or frame[12:14] != b"\x86\xdd":
        return None
    length = 40 + int.from_bytes(ip[4:6], "big")
    if length > len(ip):
        return None
    return read_extensions(ip[:length])


def read_extensions(ip: bytes) -> tuple[bytes, bytes, int, int | None] | None:
    kind, rest, offset = ip[6], ip[40:], 0
    while kind in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS) and not offset:
        if len(rest) < 8 or (kind == ROUTING and (rest[3] or not rest[2])):
            return None
        size = 8 if kind == FRAGMENT else (rest[1] + 2) * 4 if kind == AH else (rest[1] + 1) * 8
        if kind == FRAGMENT:
            offset = int.from_bytes(rest[2:4], "big") >> 3
        if size > len(rest):
            return None
        kind, rest = rest[0], rest[size:]
    return ip[8:24], ip[24:40], kind, port_of(kind, rest, offset)


def port_of(protocol: int, payload: bytes, offset: int) -> int | None:
    if offset or protocol not in (TCP, UDP, SCTP):
        return None
    minimum = {TCP: 20, UDP: 8, SCTP: 12}[protocol]
    return int.from_bytes(payload[2:4], "big") if len(payload) >= minimum else -1


def options_are_harmless(options: bytes) -> bool:
    at = 0
    while at < len(options) and options[at]:
        if options[at] in (131, 137):
            return False
        if options[at] == 1:
            at += 1
        elif at + 1 < len(options) and options[at + 1] >= 2:
            at += options[at + 1]
        else:
            return False
    return at <= len(options)


def test_nothing_but_the_allowed_port_reaches_an_isolated_pod(kernel: Kernel, request: pytest.FixtureRequest) -> None:
    kernel.policy("b", "ingress", ANY, ((TCP, ALLOWED, True),))
    ends = raw_address("a", kernel.family), raw_address("b", kernel.family)
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    frames, passed = request.config.getoption("judgements") // FRAME_SHARE, 0
    for number in range(frames):
        frame = bend(random_packet(rng).encode(kernel.family, host_mac("a"), pod_mac("a")), rng)
        if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and len(frame) < 14 + 40:
            continue  # the kernel runs no test on less than an IP header
        outcome = kernel.send("a", frame)
        assert sum(outcome.drops.values()) == 1
        if outcome.action != 7 or outcome.frame[:6] != pod_mac("b"):
            continue  # dropped, or bent to go elsewhere
        found = read(frame)
        summary = f"seed {seed}, packet {number}: {frame.hex(' ')} read as {found}: {outcome}"
        assert found is not None, summary
        assert found[:2] == ends, summary
        assert found[2] == TCP, summary
        assert found[3] in (ALLOWED, None), summary  # None: a later fragment of what was allowed
        passed += 1
    assert passed > frames / 50, f"seed {seed}: too few are what is allowed for this to mean anything"
