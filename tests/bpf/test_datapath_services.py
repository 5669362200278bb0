"""Services: translation both ways, choice of backends, hairpin, refusals, and the checksums of all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import (
    L4,
    SCTP,
    TCP,
    UDP,
    Icmp,
    Packet,
    echo,
    flow,
    fragments,
    host_mac,
    pod_mac,
    tcp,
    udp,
)
from kernel import ANY, CLOSED, Kernel, Rule
from refusals import refused
from table import (
    STACK,
    Case,
    Change,
    arrives,
    do,
    dropped,
    entry,
    epoch,
    event,
    new,
    policy,
    run,
    sent,
    stopped,
)

CT_REPLY, CT_SERVICE, CT_SOURCE, CT_ESTABLISHED, CT_LOCAL = 1, 2, 4, 8, 128

WEB, WEB_B = tcp("a", "web", 1000, 80, "S"), tcp("a", "b", 1000, 8080, "S")
BACK, BACK_WEB = tcp("b", "a", 8080, 1000, "SA"), tcp("web", "a", 80, 1000, "SA")
SELF, SELF_IN = tcp("a", "web", 1000, 80, "S"), tcp("hairpin", "a", 1000, 8080, "S")
SELF_BACK, SELF_BACK_IN = tcp("a", "hairpin", 8080, 1000, "SA"), tcp("web", "a", 80, 1000, "SA")
DNS = udp("a", "dns", 1000, 53)
EXTENSIONS = ((60, bytes([0, 1, 4, 0, 0, 0, 0])),)
OPTIONS = bytes([1, 1, 1, 0])

CASES: list[Case] = [
    (
        "TCP to a backend here, and its answers",
        [
            do("service", "web", 80, [("b", 8080)]),
            new(
                "a", WEB, "b", WEB_B,
                source="a", destination="b", service="web", source_port_be=1000, destination_port_be=8080,
                service_port_be=80, source_identity=1001, destination_identity=1002, egress_judged=1, ingress_judged=1,
            ),
            entry(WEB, flags=CT_SERVICE | CT_LOCAL, sender_ifindex=101, receiver_ifindex=102),
            entry(BACK, flags=CT_SERVICE | CT_LOCAL | CT_REPLY, sender_ifindex=102, receiver_ifindex=101),
            sent("b", BACK, "a", BACK_WEB),
            sent("a", tcp("a", "web", 1000, 80), "b", tcp("a", "b", 1000, 8080)),
            sent("a", tcp("a", "web", 1000, 80, "FA"), "b", tcp("a", "b", 1000, 8080, "FA")),
            sent(
                "b", tcp("b", "a", 8080, 1000, "FA"), "a", tcp("web", "a", 80, 1000, "FA"),
                events=event("END", source="a", destination="b", service="web", source_port_be=1000,
                             destination_port_be=8080, service_port_be=80, packets=5),
            ),
        ],
    ),
    (
        "UDP to a backend outside, and its answers by the stack",
        [
            do("service", "dns", 53, [("world", 5353)], UDP),
            new("a", DNS, STACK, udp("a", "world", 1000, 5353), destination="world", service="dns", ingress_judged=0),
            entry(DNS, flags=CT_SERVICE),
            arrives("a", udp("world", "a", 5353, 1000), udp("dns", "a", 53, 1000)),
            sent("a", DNS, STACK, udp("a", "world", 1000, 5353)),
        ],
    ),
    (
        "a port that is the same behind the service",
        [
            do("service", "web", 80, [("b", 80)]),
            new("a", WEB, "b", tcp("a", "b", 1000, 80, "S")),
            sent("b", tcp("b", "a", 80, 1000, "SA"), "a", BACK_WEB),
        ],
    ),
    (
        "UDP without a checksum stays without",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            new("a", udp("a", "dns", 1000, 53, zero_checksum=True), "b",
                udp("a", "b", 1000, 5353, zero_checksum=True)),
            sent("b", udp("b", "a", 5353, 1000, zero_checksum=True), "a",
                 udp("dns", "a", 53, 1000, zero_checksum=True)),
        ],
    ),
    (
        "behind options and extension headers",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", replace(WEB, options=OPTIONS, extensions=EXTENSIONS), "b",
                replace(WEB_B, options=OPTIONS, extensions=EXTENSIONS)),
            sent("b", replace(BACK, options=OPTIONS, extensions=EXTENSIONS), "a",
                 replace(BACK_WEB, options=OPTIONS, extensions=EXTENSIONS)),
        ],
    ),
    (
        "a padded frame",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", replace(WEB, padding=b"padding"), "b", replace(WEB_B, padding=b"padding")),
        ],
    ),
    (
        # LESSONS 19.
        "lesson 19: one port, two protocols",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            do("service", "dns", 53, [("c", 53)], TCP),
            new("a", DNS, "b", udp("a", "b", 1000, 5353)),
            new("a", tcp("a", "dns", 1000, 53, "S"), "c", tcp("a", "c", 1000, 53, "S")),
            sent("b", udp("b", "a", 5353, 1000), "a", udp("dns", "a", 53, 1000)),
            sent("c", tcp("c", "a", 53, 1000, "SA"), "a", tcp("dns", "a", 53, 1000, "SA")),
        ],
    ),
    (
        "several ports of one service",
        [
            do("service", "web", 80, [("b", 8080)]),
            do("service", "web", 443, [("c", 8443)]),
            new("a", WEB, "b", WEB_B),
            new("a", tcp("a", "web", 1000, 443, "S"), "c", tcp("a", "c", 1000, 8443, "S")),
        ],
    ),
    (
        "policy sees the backend, not the frontend",
        [
            do("service", "web", 80, [("b", 8080)]),
            policy("a", "egress", ANY, CLOSED),
            policy("a", "egress", "b", ((TCP, 8080, True),)),
            policy("b", "ingress", "a", ((TCP, 8080, True),), Rule.LATER),
            new("a", WEB, "b", WEB_B, rule_egress=Rule.ALLOW, rule_ingress=Rule.LATER),
            policy("b", "ingress", "a", ((TCP, 80, True),)),
            dropped("a", tcp("a", "web", 1000, 80), "POLICY_INGRESS", tally="REJUDGED", source="a", destination="b",
                    destination_port_be=8080, service="web", service_port_be=80, rule_ingress=0),
            dropped("b", BACK, "POLICY_INGRESS", tally="REJUDGED", source="b", destination="a", service="web",
                    service_port_be=80, source_port_be=8080, destination_port_be=1000),
            policy("b", "ingress", "a", ((TCP, 8080, True),)),
            sent("b", BACK, "a", BACK_WEB, tally="REJUDGED"),
            sent("a", tcp("a", "web", 1000, 80), "b", tcp("a", "b", 1000, 8080), tally="REJUDGED"),
        ],
    ),
    (
        "a denied service flow leaves no entry",
        [
            do("service", "web", 80, [("b", 8080)]),
            policy("b", "ingress", ANY, CLOSED),
            dropped("a", WEB, "POLICY_INGRESS", destination="b", service="web"),
            entry(WEB),
            entry(BACK),
        ],
    ),
    (
        "in mid-stream to a frontend: as any new flow",
        [do("service", "web", 80, [("b", 8080)]), new("a", tcp("a", "web", 1, 80), "b", tcp("a", "b", 1, 8080))],
    ),
    (
        "a live flow keeps its backend when the service changes, a new one does not get it",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", WEB, "b", WEB_B),
            do("service", "web", 80, [("c", 9090)], TCP, 77),
            epoch,
            sent("a", tcp("a", "web", 1000, 80), "b", tcp("a", "b", 1000, 8080), tally="REJUDGED"),
            new("a", tcp("a", "web", 1001, 80, "S"), "c", tcp("a", "c", 1001, 9090, "S")),
            sent("b", BACK, "a", BACK_WEB, tally="REJUDGED"),
        ],
    ),
    (
        "a flow that begins again finds the service's present backend",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", WEB, "b", WEB_B),
            do("service", "web", 80, [("c", 9090)], TCP, 77),
            do("expire", WEB, BACK),
            new("a", WEB, "c", tcp("a", "c", 1000, 9090, "S")),
            sent("c", tcp("c", "a", 9090, 1000, "SA"), "a", BACK_WEB),
            # The old backend's answer is no longer of any flow.
            policy("b", "egress", ANY, CLOSED),
            dropped("b", BACK, "POLICY_EGRESS"),
        ],
    ),
    (
        "a pod that is its own backend",
        [
            do("service", "web", 80, [("a", 8080)]),
            policy("a", "ingress", ANY, CLOSED),
            policy("a", "egress", ANY, CLOSED),
            new("a", SELF, "a", SELF_IN, source="a", destination="a", service="web", rule_egress="RULE_SELF",
                rule_ingress="RULE_SELF"),
            entry(SELF, flags=CT_SERVICE | CT_SOURCE | CT_LOCAL),
            entry(SELF_BACK, flags=CT_SERVICE | CT_SOURCE | CT_LOCAL | CT_REPLY),
            sent("a", SELF_BACK, "a", SELF_BACK_IN),
            sent("a", tcp("a", "web", 1000, 80), "a", tcp("hairpin", "a", 1000, 8080)),
            epoch,
            sent("a", tcp("a", "web", 1000, 80), "a", tcp("hairpin", "a", 1000, 8080), tally="REJUDGED"),
            sent("a", SELF_BACK, "a", SELF_BACK_IN, tally="REJUDGED"),
            sent("a", tcp("a", "hairpin", 8080, 1000, "R"), "a", tcp("web", "a", 80, 1000, "R"),
                 events=event("END", source="a", destination="a", service="web", packets=6)),
        ],
    ),
    (
        "a hairpin whose entries time out and come again",
        [
            do("service", "web", 80, [("a", 8080)]),
            new("a", SELF, "a", SELF_IN),
            do("expire", SELF),
            sent("a", SELF, "a", SELF_IN),
            do("expire", SELF, SELF_BACK),
            new("a", SELF, "a", SELF_IN),
        ],
    ),
    (
        "nothing arrives from the hairpin address",
        [
            do("service", "web", 80, [("a", 8080)]),
            new("a", SELF, "a", SELF_IN),
            stopped("a", tcp("hairpin", "a", 1000, 8080), "UNKNOWN_IDENTITY"),
            dropped("a", tcp("hairpin", "a", 1000, 8080), "SPOOFED_SOURCE"),
        ],
    ),
    (
        "SCTP: addresses are translated, a port that changes is refused",
        [
            do("service", "web", 80, [("b", 80)], SCTP),
            do("service", "web", 81, [("b", 80)], SCTP),
            new("a", flow(SCTP, "a", "web", 1000, 80), "b", flow(SCTP, "a", "b", 1000, 80)),
            sent("b", flow(SCTP, "b", "a", 80, 1000), "a", flow(SCTP, "web", "a", 80, 1000)),
            dropped("a", flow(SCTP, "a", "web", 1000, 81), "SCTP_PORT", service="web"),
        ],
    ),
    (
        "fragments to a service",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            *(
                (new if index == 0 else sent)("a", part, "b", replace(part, destination="b", l4=L4(UDP, 1000, 5353)))
                for index, part in enumerate(fragments(DNS, [8, 8, 8]))
            ),
        ],
    ),
    (
        "fragments of a service's answer",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            new("a", DNS, "b", udp("a", "b", 1000, 5353)),
            *(
                sent("b", part, "a", replace(part, source="dns", l4=L4(UDP, 53, 1000)))
                for part in fragments(udp("b", "a", 5353, 1000), [8, 8, 8])
            ),
        ],
    ),
    (
        "a frontend is nobody to ICMP, to other protocols and other ports",
        [
            do("service", "web", 80, [("b", 8080)]),
            dropped("a", echo("a", "web"), "UNKNOWN_IDENTITY"),
            dropped("a", tcp("a", "web", 1, 81, "S"), "UNKNOWN_IDENTITY"),
            dropped("a", udp("a", "web", 1, 80), "UNKNOWN_IDENTITY"),
        ],
    ),
    (
        "a pool without the slots it counts: refused, not passed",
        [
            do("service", "web", 80, [("b", 8080)]),
            do("empty", "backends"),
            refused("a", WEB, destination="web", service="web", service_port_be=80),
        ],
    ),
    (
        "a later fragment to a service without backends: dropped, not answered",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            new("a", fragments(DNS, [16, 8])[0], "b",
                replace(fragments(DNS, [16, 8])[0], destination="b", l4=L4(UDP, 1000, 5353))),
            do("service", "dns", 53, [], UDP),
            do("empty", "conntrack"),
            dropped("a", fragments(DNS, [16, 8])[1], "NO_BACKEND"),
        ],
    ),
    (
        "the same of TCP, where a later fragment's data may look like a header",
        [
            do("service", "web", 80, [("b", 80)]),
            new("a", fragments(WEB, [24, 8])[0], "b", replace(fragments(WEB, [24, 8])[0], destination="b")),
            do("service", "web", 80, []),
            do("empty", "conntrack"),
            dropped("a", fragments(replace(WEB, l4=replace(WEB.l4, data=bytes(40))), [24, 40])[1], "NO_BACKEND"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_service(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


@pytest.mark.parametrize(
    "packet",
    [
        WEB,
        tcp("a", "web", 1000, 80),
        tcp("a", "web", 1000, 80, ""),
        udp("a", "web", 1000, 80),
        flow(SCTP, "a", "web", 1000, 80),
        replace(WEB, options=OPTIONS * 10, extensions=EXTENSIONS * 2),
        replace(WEB, l4=L4(TCP, 1000, 80, "S", data=bytes(1000))),
        replace(WEB, l4=L4(UDP, 1000, 80, data=b"")),
        fragments(udp("a", "web", 1000, 80), [16, 8])[0],
    ],
    ids=["SYN", "mid-stream", "no flags", "UDP", "SCTP", "options", "large", "empty", "first fragment"],
)
def test_refusal(kernel: Kernel, packet: Packet) -> None:
    run(
        kernel,
        [
            do("service", "web", 80, [], packet.l4.protocol),
            refused("a", packet, destination="web", service="web"),
            entry(packet),
        ],
    )


def test_no_refusal_of_a_reset(kernel: Kernel) -> None:
    """Two that refuse each other's resets would never end (RFC 9293, 3.10.7.1)."""
    kernel.service("web", 80, [])
    outcome = kernel.send("a", tcp("a", "web", 1000, 80, "R"))
    assert (outcome.action, outcome.drops) == (2, {"DROP_NO_BACKEND": 1})


def test_no_refusal_for_headers_too_long_to_quote(loaded: Kernel) -> None:
    loaded.reset(6)
    loaded.service("web", 80, [])
    outcome = loaded.send("a", replace(WEB, extensions=((60, bytes([15]) + bytes(126)),)))
    assert (outcome.action, outcome.drops) == (2, {"DROP_NO_BACKEND": 1})


def test_backends_share_flows_evenly(kernel: Kernel) -> None:
    """Random choice: of 400 flows each of two backends gets its half, within 6 standard deviations."""
    kernel.service("web", 80, [("b", 8080), ("world", 8080)])
    seen = {"b": 0, "world": 0}
    for port in range(400):
        outcome = kernel.send("a", tcp("a", "web", 1000 + port, 80, "S"))
        chosen = next(n for n in seen if outcome.events[0].destination == kernel.address(n))
        seen[chosen] += 1
        kernel.empty("conntrack")
    assert abs(seen["b"] - 200) < 60, seen


@pytest.mark.parametrize(
    "data", [bytes(n % 7 for n in range(size)) for size in (0, 1, 2, 31)] + [b"\xff" * 20, b"\x00" * 20]
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_checksums_of_many_ports(kernel: Kernel, protocol: int, data: bytes) -> None:
    """Every carry: 60 pairs of ports, translated there and back."""
    for number in range(60):
        source_port, backend_port = 1 + number * 1091, 65535 - number * 1087
        kernel.service("web", 80, [("b", backend_port)], protocol)
        request = Packet("a", "web", L4(protocol, source_port, 80, "S" if protocol == TCP else "", data))
        there = kernel.send("a", request)
        wanted = Packet("a", "b", L4(protocol, source_port, backend_port, request.l4.flags, data))
        assert there.frame == wanted.encode(kernel.family, pod_mac("b"), host_mac("b"))
        answer = Packet("b", "a", L4(protocol, backend_port, source_port, "", data))
        back = kernel.send("b", answer)
        wanted = Packet("web", "a", L4(protocol, 80, source_port, "", data))
        assert back.frame == wanted.encode(kernel.family, pod_mac("a"), host_mac("a"))
        kernel.empty("conntrack")


def test_icmp_is_no_service(kernel: Kernel) -> None:
    """ICMP carries an id where the others have ports: a service of that number is not meant."""
    kernel.service("web", 5, [("b", 5)], 1 if kernel.family == 4 else 58)
    assert kernel.send("a", Packet("a", "web", Icmp(kind=(0, 129), identifier=5))).drops == {"DROP_UNKNOWN_IDENTITY": 1}
