"""Flows whose answers would be mistaken for another's: each gets a source port of its own towards the backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import L4, SCTP, TCP, TOO_BIG, UDP, Packet, echo, error, flow, fragments, host_mac, pod_mac, tcp, udp
from kernel import ANY, CLOSED, PORTS, Kernel
from table import END, STACK, Case, Change, arrives, do, dropped, entry, epoch, event, new, policy, run, sent

CT_REPLY, CT_SERVICE, CT_SOURCE, CT_ESTABLISHED, CT_LOCAL = 1, 2, 4, 8, 128
GIVEN = 61007
ONLY_ONE = do("config", port_min=GIVEN, port_max=GIVEN)
"""So that rows can say which port is given out."""

EXTENSIONS = ((60, bytes([0, 1, 4, 0, 0, 0, 0])),)
OPTIONS = bytes([1, 1, 1, 0])


def to_backend(protocol: int, backend: str = "b", source_port: int = 1000, source: str = "a") -> Packet:
    return flow(protocol, source, backend, source_port, 8080)


def from_backend(protocol: int, backend: str = "b", port: int = 1000, destination: str = "a") -> Packet:
    return Packet(backend, destination, L4(protocol, 8080, port, "SA" if protocol == TCP else ""))


def answer(protocol: int, frontend: str) -> Packet:
    return Packet(frontend, "a", L4(protocol, 80, 1000, "SA" if protocol == TCP else ""))


def two_services(protocol: int, backend: str = "b") -> list[Change]:
    """web and dns have one backend; so has the last port that is free."""
    return [ONLY_ONE, *(do("service", name, 80, [(backend, 8080)], protocol) for name in ("web", "dns"))]


def to_web(protocol: int, source: str = "a") -> Packet:
    return flow(protocol, source, "web", 1000, 80)


def to_dns(protocol: int, source: str = "a") -> Packet:
    return flow(protocol, source, "dns", 1000, 80)


DNS, DNS_B = replace(to_dns(UDP), identification=9), replace(to_backend(UDP, source_port=GIVEN), identification=9)
DNS_BACK = from_backend(UDP, port=GIVEN)
BEGUN: list[Change] = [
    *two_services(UDP),
    new("a", to_web(UDP), "b", to_backend(UDP)),
    new("a", DNS, "b", DNS_B),
]  # fmt: skip
BEGUN_OUTSIDE: list[Change] = [
    *two_services(UDP, "world"),
    new("a", to_web(UDP), STACK, to_backend(UDP, "world")),
    new("a", to_dns(UDP), STACK, to_backend(UDP, "world", GIVEN)),
]  # fmt: skip
BEGUN_HAIRPIN: list[Change] = [
    *two_services(UDP, "a"),
    new("a", to_web(UDP), "a", to_backend(UDP, "a", source="hairpin")),
    new("a", to_dns(UDP), "a", to_backend(UDP, "a", GIVEN, "hairpin")),
]  # fmt: skip


def of_each_protocol(protocol: int) -> list[Case]:
    name = "TCP" if protocol == TCP else "UDP"
    return [
        (
            f"{name}: two services with one backend, from one source port",
            [
                *two_services(protocol),
                new("a", to_web(protocol), "b", to_backend(protocol)),
                new("a", to_dns(protocol), "b", to_backend(protocol, source_port=GIVEN), source="a", destination="b",
                    service="dns", source_port_be=1000, destination_port_be=8080),
                entry(to_dns(protocol), flags=CT_SERVICE | CT_SOURCE | CT_LOCAL),
                entry(from_backend(protocol, port=GIVEN), flags=CT_SERVICE | CT_SOURCE | CT_LOCAL | CT_REPLY),
                sent("b", from_backend(protocol), "a", answer(protocol, "web")),
                sent("b", from_backend(protocol, port=GIVEN), "a", answer(protocol, "dns")),
                sent("a", to_web(protocol), "b", to_backend(protocol)),
                sent("a", to_dns(protocol), "b", to_backend(protocol, source_port=GIVEN)),
            ],
        ),
        (
            f"{name}: with a backend outside",
            [
                *two_services(protocol, "world"),
                new("a", to_web(protocol), STACK, to_backend(protocol, "world")),
                new("a", to_dns(protocol), STACK, to_backend(protocol, "world", GIVEN)),
                arrives("a", from_backend(protocol, "world"), answer(protocol, "web")),
                arrives("a", from_backend(protocol, "world", GIVEN), answer(protocol, "dns")),
            ],
        ),
        (
            f"{name}: of a pod that is both its own backends",
            [
                *two_services(protocol, "a"),
                new("a", to_web(protocol), "a", to_backend(protocol, "a", source="hairpin")),
                new("a", to_dns(protocol), "a", to_backend(protocol, "a", GIVEN, "hairpin")),
                sent("a", from_backend(protocol, "a", destination="hairpin"), "a", answer(protocol, "web")),
                sent("a", from_backend(protocol, "a", GIVEN, "hairpin"), "a", answer(protocol, "dns")),
            ],
        ),
        (
            f"{name}: to a service, where a direct flow has the port",
            [
                *two_services(protocol),
                new("a", to_backend(protocol), "b"),
                new("a", to_web(protocol), "b", to_backend(protocol, source_port=GIVEN)),
                sent("b", from_backend(protocol), "a"),
                sent("b", from_backend(protocol, port=GIVEN), "a", answer(protocol, "web")),
            ],
        ),
        (
            f"{name}: direct, where a service's flow has the port",
            [
                *two_services(protocol),
                new("a", to_web(protocol), "b", to_backend(protocol)),
                new("a", to_backend(protocol), "b", to_backend(protocol, source_port=GIVEN), source="a", service="",
                    source_port_be=1000, destination="b", destination_port_be=8080),
                entry(to_backend(protocol), flags=CT_SOURCE | CT_LOCAL),
                sent("b", from_backend(protocol, port=GIVEN), "a", from_backend(protocol)),
                sent("b", from_backend(protocol), "a", answer(protocol, "web")),
                sent("a", to_backend(protocol), "b", to_backend(protocol, source_port=GIVEN)),
            ],
        ),
        (
            f"{name}: no port is left",
            [
                *two_services(protocol),
                new("a", to_backend(protocol), "b"),
                new("a", to_web(protocol), "b", to_backend(protocol, source_port=GIVEN)),
                dropped("a", to_dns(protocol), "TUPLE_TAKEN", source="a", source_port_be=1000, destination="b",
                        service="dns", service_port_be=80),
                entry(to_dns(protocol)),
                # Towards another backend it is free, and so is another source port towards this one.
                do("service", "dns", 80, [("c", 8080)], protocol, 77),
                new("a", to_dns(protocol), "c", to_backend(protocol, "c")),
                new("a", flow(protocol, "a", "web", 1001, 80), "b", flow(protocol, "a", "b", 1001, 8080)),
            ],
        ),
        *ranges_without_ports(name, protocol),
        (
            f"{name}: behind options and extension headers",
            [
                *two_services(protocol),
                new("a", to_web(protocol), "b", to_backend(protocol)),
                new("a", replace(to_dns(protocol), options=OPTIONS, extensions=EXTENSIONS), "b",
                    replace(to_backend(protocol, source_port=GIVEN), options=OPTIONS, extensions=EXTENSIONS)),
                sent("b", replace(from_backend(protocol, port=GIVEN), options=OPTIONS, extensions=EXTENSIONS), "a",
                     replace(answer(protocol, "dns"), options=OPTIONS, extensions=EXTENSIONS)),
            ],
        ),
    ]  # fmt: skip


def ranges_without_ports(name: str, protocol: int) -> list[Case]:
    """Nothing was configured, or nonsense: a flow that needs another port is dropped, others are not."""
    return [
        (
            f"{name}: a range of ports that has none, {low} to {high}",
            [
                *two_services(protocol),
                do("config", port_min=low, port_max=high),
                new("a", to_web(protocol), "b", to_backend(protocol)),
                dropped("a", to_dns(protocol), "TUPLE_TAKEN"),
            ],
        )
        for low, high in ((0, 0), (0, 65535), (61000, 0), (61000, 60999), (65535, 1))
    ]


CASES: list[Case] = [
    *of_each_protocol(TCP),
    *of_each_protocol(UDP),
    (
        "SCTP keeps its port, so the second flow cannot be",
        [
            ONLY_ONE,
            do("service", "web", 80, [("b", 80)], SCTP),
            new("a", flow(SCTP, "a", "b", 1000, 80), "b"),
            dropped("a", to_web(SCTP), "TUPLE_TAKEN", service="web"),
        ],
    ),
    (
        "a flow that is over gives its port back",
        [
            *two_services(TCP),
            new("a", to_backend(TCP), "b"),
            sent("b", tcp("b", "a", 8080, 1000, "R"), "a", events=END),
            new("a", to_dns(TCP), "b", to_backend(TCP)),
        ],
    ),
    (
        "so does one that timed out, but not while its other entry lives",
        [
            *two_services(TCP),
            new("a", to_web(TCP), "b", to_backend(TCP)),
            do("expire", from_backend(TCP)),
            new("a", to_backend(TCP), "b", to_backend(TCP, source_port=GIVEN)),
            do("expire", to_web(TCP)),
            new("a", to_dns(TCP), "b", to_backend(TCP)),
        ],
    ),
    (
        "judged again, a flow keeps its port",
        [
            *BEGUN,
            epoch,
            sent("a", to_dns(UDP), "b", to_backend(UDP, source_port=GIVEN), tally="REJUDGED"),
            sent("b", DNS_BACK, "a", answer(UDP, "dns"), tally="REJUDGED"),
            policy("b", "ingress", ANY, CLOSED),
            dropped("a", to_dns(UDP), "POLICY_INGRESS", tally="REJUDGED", source="a", source_port_be=1000,
                    service="dns"),
            dropped("b", DNS_BACK, "POLICY_INGRESS", tally="REJUDGED", source="b", destination="a",
                    destination_port_be=1000, service="dns"),
        ],
    ),
    (
        "a connection ends under both its tuples",
        [
            *two_services(TCP),
            new("a", to_web(TCP), "b", to_backend(TCP)),
            new("a", to_dns(TCP), "b", to_backend(TCP, source_port=GIVEN)),
            sent("b", from_backend(TCP, port=GIVEN), "a", answer(TCP, "dns")),
            sent("a", tcp("a", "dns", 1000, 80, "R"), "b", tcp("a", "b", GIVEN, 8080, "R"),
                 events=event("END", source="a", source_port_be=1000, destination="b", service="dns", packets=3)),
            entry(from_backend(TCP, port=GIVEN), flags=CT_SERVICE | CT_SOURCE | CT_LOCAL | CT_REPLY | CT_ESTABLISHED |
                  32 | 64),
            entry(from_backend(TCP), flags=CT_SERVICE | CT_LOCAL | CT_REPLY),
        ],
    ),
    (
        "the answer to a given port is nobody else's",
        [
            *BEGUN,
            policy("c", "egress", ANY, CLOSED),
            policy("b", "egress", ANY, CLOSED),
            dropped("c", from_backend(UDP, "c", GIVEN), "POLICY_EGRESS"),
            dropped("b", udp("b", "a", 8081, GIVEN), "POLICY_EGRESS"),
        ],
    ),
    (
        "fragments of a flow with a given port",
        [
            *BEGUN,
            *(sent("a", there, "b", replace(there, destination="b", l4=DNS_B.l4))
              for there in fragments(DNS, [8, 8, 8])),
            *(sent("b", back, "a", replace(back, source="dns", l4=answer(UDP, "dns").l4))
              for back in fragments(DNS_BACK, [8, 8, 8])),
        ],
    ),
    (
        "fragments that begin a flow with a given port",
        [
            *two_services(UDP),
            new("a", to_web(UDP), "b", to_backend(UDP)),
            *((new if index == 0 else sent)("a", there, "b", replace(there, destination="b", l4=DNS_B.l4))
              for index, there in enumerate(fragments(DNS, [16, 8]))),
            sent("b", DNS_BACK, "a", answer(UDP, "dns")),
        ],
    ),
    (
        "fragments of a hairpin flow with a given port, and of its answers by the stack",
        [
            *BEGUN_HAIRPIN,
            *(sent("a", there, "a", replace(there, source="hairpin", destination="a", l4=DNS_B.l4))
              for there in fragments(DNS, [8, 16])),
            *(sent("a", back, "a", replace(back, source="dns", destination="a", l4=answer(UDP, "dns").l4))
              for back in fragments(from_backend(UDP, "a", GIVEN, "hairpin"), [8, 16])),
        ],
    ),
    (
        "fragments of an answer that arrives by the stack",
        [
            *BEGUN_OUTSIDE,
            *(arrives("a", back, replace(back, source="dns", l4=answer(UDP, "dns").l4))
              for back in fragments(from_backend(UDP, "world", GIVEN), [8, 16])),
        ],
    ),
    (
        "errors about it, from the backend and from its client",
        [
            *BEGUN,
            sent("b", error("b", "a", DNS_B), "a", error("dns", "a", DNS)),
            sent("b", DNS_BACK, "a", answer(UDP, "dns")),
            sent("a", error("a", "dns", answer(UDP, "dns")), "b", error("a", "b", DNS_BACK)),
        ],
    ),
    (
        "errors about a direct flow with a given port",
        [
            *two_services(TCP),
            new("a", to_web(TCP), "b", to_backend(TCP)),
            new("a", to_backend(TCP), "b", to_backend(TCP, source_port=GIVEN)),
            sent("b", error("b", "a", to_backend(TCP, source_port=GIVEN)), "a", error("b", "a", to_backend(TCP))),
            sent("b", from_backend(TCP, port=GIVEN), "a", from_backend(TCP)),
            sent("a", error("a", "b", from_backend(TCP)), "b", error("a", "b", from_backend(TCP, port=GIVEN))),
        ],
    ),
    (
        "a router says that the path is too narrow, or the backend that nobody listens",
        [
            *BEGUN_OUTSIDE,
            arrives("a", error("router", "a", to_backend(UDP, "world", GIVEN), TOO_BIG, (4, 0)),
                    error("router", "a", to_dns(UDP), TOO_BIG, (4, 0))),
            arrives("a", error("world", "a", to_backend(UDP, "world", GIVEN)), error("dns", "a", to_dns(UDP))),
            sent("a", error("a", "dns", answer(UDP, "dns")), STACK,
                 error("a", "world", from_backend(UDP, "world", GIVEN))),
        ],
    ),
    (
        "errors about a hairpin flow with a given port",
        [
            *BEGUN_HAIRPIN,
            sent("a", error("a", "hairpin", to_backend(UDP, "a", GIVEN, "hairpin")), "a",
                 error("dns", "a", to_dns(UDP))),
            sent("a", from_backend(UDP, "a", GIVEN, "hairpin"), "a", answer(UDP, "dns")),
            sent("a", error("a", "dns", answer(UDP, "dns")), "a",
                 error("hairpin", "a", from_backend(UDP, "a", GIVEN, "hairpin"))),
        ],
    ),
    (
        "an error about a port that was not given",
        [
            *BEGUN,
            dropped("b", error("b", "a", to_backend(UDP, source_port=GIVEN + 1)), "ICMP_UNRELATED"),
        ],
    ),
    ("pings have no ports: one id, one flow", [new("a", echo("a", "b"), "b"), sent("a", echo("a", "b"), "b")]),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_source_port(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ports", [PORTS, range(40000, 40064), range(1, 65)])
def test_ports_given_out(kernel: Kernel, protocol: int, ports: range) -> None:
    """Twenty flows from one port to one backend: each has another, of the range, and its own answers."""
    kernel.config(port_min=ports[0], port_max=ports[-1])
    frontends = range(100, 120)
    for frontend in frontends:
        kernel.service("web", frontend, [("b", 8080)], protocol)
    seen = set()
    for frontend in frontends:
        frame = kernel.send("a", flow(protocol, "a", "web", 40100, frontend)).frame
        l4 = 14 + (20 if kernel.family == 4 else 40)
        port = int.from_bytes(frame[l4 : l4 + 2], "big")
        assert frame == flow(protocol, "a", "b", port, 8080).encode(kernel.family, pod_mac("b"), host_mac("b"))
        seen.add(port)
        back = kernel.send("b", flow(protocol, "b", "a", 8080, port)).frame
        wanted = flow(protocol, "web", "a", frontend, 40100)
        assert back == wanted.encode(kernel.family, pod_mac("a"), host_mac("a"))
    assert len(seen) == len(frontends)
    assert 40100 in seen
    assert seen <= {*ports, 40100}
