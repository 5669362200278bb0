"""Which backend a pod's flow gets, and who gets none: affinity, source ranges, Maglev, traffic policies, kinds."""

from __future__ import annotations

import pytest
from frames import SCTP, TCP, UDP, Packet, flow, fragments, tcp
from kernel import Frontend, Kernel
from refusals import refused
from table import STACK, Case, Change, do, dropped, entry, new, run, sent

from agent.services import maglev

TIMEOUT_S = 100
SEED = 77
CT_SERVICE, CT_LOCAL = 2, 128


def syn(port: int = 1000, frontend: str = "web", pod: str = "a") -> Packet:
    return tcp(pod, frontend, port, 80, "S")


def gets(backend: str, port: int, pod: str = "a", frontend: str = "web", to: str | None = None) -> Change:
    """A new flow from this source port is `backend`'s."""
    out = tcp("hairpin" if backend == pod else pod, backend, port, 8080, "S")
    return new(pod, syn(port, frontend, pod), backend if to is None else to, out, destination=backend, service=frontend)


def sticky(*backends: str, timeout_s: int = TIMEOUT_S) -> Change:
    """The service web: clients keep their backend."""
    return do("frontend", "web", 80, Frontend([(b, 8080) for b in backends], affinity_s=timeout_s))


MANY_C = ("c",) * 15
"""Beside one b: whoever gets b four times in a row was not lucky (1 in 65,536)."""

AFFINITY: list[Case] = [
    (
        "a client keeps its backend",
        [
            sticky("b"),
            gets("b", 1000),
            sticky(*MANY_C, "b"),
            *(gets("b", port) for port in (1001, 1002, 1003, 1004)),
        ],
    ),
    (
        "each client has its own",
        [sticky("b"), gets("b", 1), sticky("a"), do("empty", "affinity"), gets("a", 1, "c"), sticky("a", "b"),
         gets("a", 2, "c"), gets("a", 3, "c"), gets("a", 4, "c")],
    ),
    (
        "only of this service port",
        [
            sticky("b"),
            gets("b", 1000),
            do("frontend", "dns", 80, Frontend([("c", 8080)], affinity_s=TIMEOUT_S)),
            gets("c", 1001, frontend="dns"),
            gets("b", 1002),
        ],
    ),
    (
        "as long as it uses it within the time-out",
        [
            sticky("b"),
            gets("b", 1000),
            sticky(*MANY_C, "b"),
            *(step for port in (1001, 1002, 1003, 1004) for step in (do("age_affinity", 60), gets("b", port))),
        ],
    ),
    (
        "after the time-out it chooses anew, and keeps that",
        [
            sticky("b"),
            gets("b", 1000),
            do("age_affinity", TIMEOUT_S),
            sticky("c"),
            gets("c", 1001),
            sticky(*("b",) * 15, "c"),
            *(gets("c", port) for port in (1002, 1003, 1004, 1005)),
        ],
    ),
    (
        "a time-out that was made shorter counts at once",
        [sticky("b"), gets("b", 1000), do("age_affinity", 50), sticky("c", timeout_s=40), gets("c", 1001)],
    ),
    (
        "a backend that is no member any more is not kept",
        [sticky("b"), gets("b", 1000), do("empty", "members"), sticky("c"), gets("c", 1001)],
    ),
    (
        "a live flow stays where it is, whatever its client keeps now",
        [
            sticky("b"),
            gets("b", 1000),
            do("empty", "members"),
            sticky("c"),
            gets("c", 1001),
            sent("a", syn(), "b", tcp("a", "b", 1000, 8080, "S")),
        ],
    ),
    (
        "other ports of the same backend are other backends",
        [
            do("frontend", "web", 80, Frontend([("b", 8081)], affinity_s=TIMEOUT_S)),
            new("a", syn(), "b", tcp("a", "b", 1000, 8081, "S")),
            do("empty", "members"),
            sticky("b"),
            gets("b", 1001),
        ],
    ),
    (
        "of UDP",
        [
            do("frontend", "web", 80, Frontend([("b", 8080)], affinity_s=TIMEOUT_S), UDP),
            new("a", flow(UDP, "a", "web", 1, 80), "b", flow(UDP, "a", "b", 1, 8080)),
            do("frontend", "web", 80, Frontend([("c", 8080)] * 15 + [("b", 8080)], affinity_s=TIMEOUT_S), UDP),
            *(new("a", flow(UDP, "a", "web", port, 80), "b", flow(UDP, "a", "b", port, 8080)) for port in (2, 3, 4, 5)),
        ],
    ),
    (
        "a pod that keeps itself",
        [sticky("a"), gets("a", 1), sticky(*MANY_C, "a"), *(gets("a", port) for port in (2, 3, 4, 5))],
    ),
    (
        "in the pool for pods, not the one for others",
        [
            do("frontend", "web", 80, Frontend([("b", 8080)], outside=[("c", 8080)], affinity_s=TIMEOUT_S)),
            gets("b", 1000),
            do("frontend", "web", 80, Frontend([("b", 8080), *[("c", 8080)] * 15], [], affinity_s=TIMEOUT_S)),
            *(gets("b", port) for port in (1001, 1002, 1003, 1004)),
        ],
    ),
    (
        "nobody is remembered where clients keep nothing",
        [do("service", "web", 80, [("b", 8080)]), gets("b", 1), lambda kernel: _expect(kernel.affinity(), [])],
    ),
    (
        "a service without backends forgets nobody",
        [sticky("b"), gets("b", 1000), sticky(), refused("a", syn(1001), service="web"), sticky(*MANY_C, "b"),
         *(gets("b", port) for port in (1001, 1002, 1003, 1004))],
    ),
    (
        "no room to remember: new clients are dropped and counted; known ones are not, though their time is up",
        [
            sticky("b"),
            gets("b", 1000),
            do("fill", "affinity"),
            dropped("c", syn(pod="c"), "AFFINITY_FULL", tally="AFFINITY_FULL", source="c", service="web",
                    service_port_be=80),
            entry(syn(pod="c")),
            gets("b", 1001),
            do("age_affinity", TIMEOUT_S),
            gets("b", 1002),
            do("service", "dns", 80, [("b", 8080)]),
            gets("b", 1, "c", "dns"),
        ],
    ),
]  # fmt: skip


def _expect(found: object, wanted: object) -> None:
    assert found == wanted


def ranges(*blocks: tuple[str, int, int], kinds: tuple[str, ...] = ("LOAD_BALANCER",)) -> Change:
    return do("frontend", "web", 80, Frontend([("b", 8080)], kinds=kinds, ranges=blocks))


OUT_OF_RANGE = dropped(
    "a", syn(), "SOURCE_RANGE", source="a", destination="web", service="web", service_port_be=80, source_identity=1001
)
RANGES: list[Case] = [
    ("in: its own address", [ranges(("a", 32, 128)), gets("b", 1000)]),
    ("in: a block around it", [ranges(("b", 24, 64)), gets("b", 1000)]),
    ("in: one of several", [ranges(("world", 24, 64), ("c", 32, 128), ("a", 31, 126)), gets("b", 1000)]),
    ("in: everybody", [ranges(("none", 0, 0)), gets("b", 1000)]),
    ("out: another address", [ranges(("b", 32, 128)), OUT_OF_RANGE, entry(syn())]),
    ("out: several blocks", [ranges(("world", 24, 64), ("c", 32, 128)), OUT_OF_RANGE]),
    ("out: no blocks", [ranges(), OUT_OF_RANGE]),
    (
        "out: another service's blocks",
        [
            do("frontend", "dns", 80, Frontend([("b", 8080)], ranges=[("a", 32, 128)])),
            ranges(("c", 32, 128)),
            OUT_OF_RANGE,
            gets("b", 1000, frontend="dns"),
        ],
    ),
    (
        "asked of new flows only",
        [ranges(("a", 32, 128)), gets("b", 1000), do("empty", "source_ranges"),
         sent("a", tcp("a", "web", 1000, 80), "b", tcp("a", "b", 1000, 8080)),
         dropped("a", syn(1001), "SOURCE_RANGE")],
    ),
    (
        "before it is said that nobody is there",
        [do("frontend", "web", 80, Frontend(ranges=[("c", 32, 128)])), OUT_OF_RANGE],
    ),
]  # fmt: skip


def pools(inside: tuple[str, ...], outside: tuple[str, ...], *kinds: str) -> Change:
    given = Frontend([(b, 8080) for b in inside], [(b, 8080) for b in outside], kinds)
    return do("frontend", "web", 80, given)


NOT_LOCAL = dropped("a", syn(), "NO_LOCAL_BACKEND", source="a", destination="web", service="web", service_port_be=80)
POOLS: list[Case] = [
    ("pods use the pool for inside", [pools(("b",), ("c",), "LOAD_BALANCER"), *(gets("b", p) for p in range(1, 9))]),
    ("even if there is none outside", [pools(("b",), (), "LOAD_BALANCER", "DROP_OUTSIDE"), gets("b", 1)]),
    ("none for inside: refused", [pools((), ("c",), "CLUSTER_IP"), refused("a", syn(), service="web")]),
    (
        "none for inside on this node: dropped, without an answer",
        [pools((), ("c",), "CLUSTER_IP", "DROP_INSIDE"), NOT_LOCAL, entry(syn())],
    ),
    (
        "whatever is to happen outside",
        [pools((), (), "CLUSTER_IP", "DROP_OUTSIDE"), refused("a", syn(), service="web")],
    ),
    (
        "dropped: also UDP, SCTP and later fragments",
        [
            *(step for protocol in (UDP, SCTP) for step in (
                do("frontend", "web", 80, Frontend(kinds=("CLUSTER_IP", "DROP_INSIDE")), protocol),
                dropped("a", flow(protocol, "a", "web", 1, 80), "NO_LOCAL_BACKEND", service="web"),
            )),
            dropped("a", fragments(flow(UDP, "a", "web", 1, 80), [16, 8])[0], "NO_LOCAL_BACKEND", service="web"),
            dropped("a", fragments(flow(UDP, "a", "web", 1, 80), [16, 8])[1], "NO_LOCAL_BACKEND", service="web"),
        ],
    ),
]  # fmt: skip


def of_kind(kind: str, address: str) -> Case:
    return (
        f"from a pod: {kind}",
        [
            do("frontend", address, 80, Frontend([("b", 8080)], kinds=(kind,))),
            gets("b", 1000, frontend=address),
            entry(syn(frontend=address), flags=CT_SERVICE | CT_LOCAL),
            sent("b", tcp("b", "a", 8080, 1000, "SA"), "a", tcp(address, "a", 80, 1000, "SA")),
        ],
    )


KINDS: list[Case] = [
    of_kind("CLUSTER_IP", "web"),
    of_kind("NODE_PORT", "node"),
    of_kind("EXTERNAL_IP", "world"),
    of_kind("LOAD_BALANCER", "nobody"),
    of_kind("HOST_PORT", "node"),
    (
        "a node port with a backend elsewhere",
        [
            do("frontend", "node", 80, Frontend([("world", 8080)], kinds=("NODE_PORT",))),
            gets("world", 1000, frontend="node", to=STACK),
        ],
    ),
    (
        "a frontend for sockets of the node alone is none for pods",
        [
            do("frontend", "web", 80, Frontend([("b", 8080)], kinds=("NODE_PORT", "LOOPBACK"))),
            dropped("a", syn(), "UNKNOWN_IDENTITY", destination="web", service="", service_port_be=0),
            do("frontend", "node", 80, Frontend([("b", 8080)], kinds=("NODE_PORT", "LOOPBACK"))),
            new("a", syn(frontend="node"), STACK, service=""),
        ],
    ),
    (
        "other ports of the node are the node's",
        [
            do("frontend", "node", 80, Frontend([("b", 8080)], kinds=("NODE_PORT",))),
            new("a", tcp("a", "node", 1000, 81, "S"), STACK, service=""),
            new("a", flow(UDP, "a", "node", 1000, 80), STACK, service=""),
        ],
    ),
    (
        "lesson 19: one port, three protocols",
        [
            do("frontend", "web", 80, Frontend([("b", 80)]), TCP),
            do("frontend", "web", 80, Frontend([("c", 81)]), UDP),
            do("frontend", "web", 80, Frontend([("world", 80)]), SCTP),
            new("a", syn(), "b", tcp("a", "b", 1000, 80, "S")),
            new("a", flow(UDP, "a", "web", 1000, 80), "c", flow(UDP, "a", "c", 1000, 81)),
            new("a", flow(SCTP, "a", "web", 1000, 80), STACK, flow(SCTP, "a", "world", 1000, 80)),
            do("frontend", "web", 80, Frontend(), SCTP),
            refused("a", flow(SCTP, "a", "web", 1001, 80), service="web"),
            new("a", syn(1001), "b", tcp("a", "b", 1001, 80, "S")),
        ],
    ),
    (
        "SCTP: a backend whose port is another is dropped, and the frontend named",
        [
            do("frontend", "web", 80, Frontend([("b", 81)]), SCTP),
            dropped("a", flow(SCTP, "a", "web", 1, 80), "SCTP_PORT", service="web", service_port_be=80),
        ],
    ),
]  # fmt: skip

CASES = {"affinity": AFFINITY, "ranges": RANGES, "pools": POOLS, "kinds": KINDS}


@pytest.mark.parametrize(
    "steps",
    [steps for cases in CASES.values() for _, steps in cases],
    ids=[f"{group}: {name}" for group, cases in CASES.items() for name, _ in cases],
)
def test_backend(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


# ---- Maglev

BACKENDS = ["b", "c", "world", "free", "router"]
SLOTS = [(7 * n + n // 5) % len(BACKENDS) for n in range(53)]


def spread(kernel: Kernel, affinity_s: int = 0, slots: list[int] = SLOTS) -> None:
    given = Frontend([(b, 8080) for b in BACKENDS], affinity_s=affinity_s, table=slots)
    kernel.config(hash_seed=SEED)
    kernel.frontend("web", 80, given)


def chosen(kernel: Kernel, packet: Packet, pod: str = "a") -> str:
    (event,) = kernel.send(pod, packet).events
    kernel.empty("conntrack")
    (name,) = (b for b in BACKENDS if kernel.address(b) == event.destination)
    return name


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_maglev_by_flow(kernel: Kernel, protocol: int) -> None:
    """The slot of the table that agent.services.maglev says, each time the same."""
    kernel.config(hash_seed=SEED)
    table = maglev_bytes(SLOTS)
    given = Frontend([(b, 8080) for b in BACKENDS], table=SLOTS)
    kernel.frontend("web", 80, given, protocol)
    seen = set()
    for port in (1, 80, 255, 256, 1000, 32768, 65535, *range(2000, 2020)):
        found = {chosen(kernel, flow(protocol, "a", "web", port, 80)) for _ in range(2)}
        hash_ = maglev.flow_hash(kernel.address("a"), port, kernel.address("web"), 80, protocol, SEED)
        assert found == {BACKENDS[maglev.lookup(table, hash_)]}, port
        seen |= found
    assert len(seen) == len(BACKENDS)


def maglev_bytes(slots: list[int]) -> bytes:
    """As agent.services.maglev.table makes of backends."""
    words = [len(slots).to_bytes(8, "little"), *(slot.to_bytes(2, "little") for slot in slots)]
    return b"".join(words) + bytes(-len(slots) % 4 * 2)


@pytest.mark.parametrize("seed", [0, 1, SEED, (1 << 64) - 1])
def test_maglev_by_client(kernel: Kernel, seed: int) -> None:
    """Where clients keep their backend it depends on them alone: every node would choose the same."""
    spread(kernel, affinity_s=TIMEOUT_S)
    kernel.config(hash_seed=seed)
    for pod in ("a", "b", "c"):
        wanted = BACKENDS[maglev.lookup(maglev_bytes(SLOTS), maglev.client_hash(kernel.address(pod), seed))]
        for port in (1, 2, 3, 4):
            kernel.empty("affinity")
            packet = syn(port, pod=pod)
            found = kernel.send(pod, packet).events[0]
            assert found.destination == kernel.address(wanted)
            kernel.empty("conntrack")


def test_maglev_gives_way_to_affinity(kernel: Kernel) -> None:
    """A new table takes nobody away from the backend that it keeps."""
    spread(kernel, TIMEOUT_S, [2] * 53)
    assert chosen(kernel, syn(1)) == "world"
    spread(kernel, TIMEOUT_S, [3] * 53)
    assert [chosen(kernel, syn(port)) for port in (2, 3, 4)] == ["world"] * 3
    kernel.empty("affinity")
    assert chosen(kernel, syn(5)) == "free"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 251])
def test_every_slot_of_a_table(kernel: Kernel, size: int) -> None:
    """Four to a word, the last word not full: all of one table's slots name one backend, and so does each answer."""
    for slot in range(len(BACKENDS)):
        spread(kernel, slots=[slot] * size)
        assert {chosen(kernel, syn(port)) for port in range(1, 12)} == {BACKENDS[slot]}


@pytest.mark.parametrize("table", ["none", "empty"])
def test_without_its_table_a_flow_still_gets_a_backend(kernel: Kernel, table: str) -> None:
    spread(kernel)
    for key, _ in list(kernel.maps["maglev"].items()):
        if table == "none":
            kernel.maps["maglev"].delete(key)
        else:
            kernel.maps["maglev"].update(key, bytes(16))
    assert {chosen(kernel, syn(port)) for port in range(1, 60)} == set(BACKENDS)


def test_a_slot_beyond_the_backends(kernel: Kernel) -> None:
    """A table that is older than its pool: some backend, never a drop."""
    spread(kernel, slots=[65535, 5, 6, 7, 8])
    for port in range(1, 20):
        assert chosen(kernel, syn(port)) in BACKENDS
