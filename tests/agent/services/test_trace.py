"""The reasons a trace gives, and what it takes from Maglev tables."""

from __future__ import annotations

from collections import Counter

from frames import address
from planned import trace_in
from services_rows import NODE_PORT, Row, Svc, exposed, world_of

from agent.services.endpoints import ELSEWHERE, NOT_READY, NOT_SERVING, OTHER_HINTS, TERMINATING
from agent.services.maglev import assign, client_hash, flow_hash
from agent.services.trace import Outcome, Packet, Trace
from agent.world.world import World

MAGLEV = {"algorithm": "maglev", "maglev_size": 251, "seed": 77}


def asked(world: World, source: str, where: str, port: int, source_port: int = 0) -> Trace:
    return trace_in(world, Packet(address(source, 4), address(where, 4), port, 6, source_port))


def world_with(*services: Svc, **settings: object) -> World:
    return world_of(Row("", services, (), settings))


def left_out(trace: Trace) -> dict[str, str]:
    names = {address(name, 4): name for name in ("a", "b", "c", "far", "far-too")}
    return {names[backend[0]]: why for backend, why in trace.left_out.items()}


def test_every_endpoint_that_is_left_out_has_its_reason() -> None:
    world = world_with(
        exposed(NODE_PORT, "a", "b terminating", "c unready", "far", "far-too ended", external_local=True)
    )
    assert left_out(asked(world, "world", "node", 30080)) == {
        "b": TERMINATING,
        "c": NOT_READY,
        "far": ELSEWHERE,
        "far-too": NOT_SERVING,
    }
    assert left_out(asked(world, "a", "web", 80)) == {"b": TERMINATING, "c": NOT_READY, "far-too": NOT_SERVING}


def test_hints_are_a_reason() -> None:
    world = world_with(Svc(endpoints=("a zones=here", "far zones=there")))
    trace = asked(world, "b", "web", 80)
    assert left_out(trace) == {"far": OTHER_HINTS}
    assert any("hints give to this node's zone" in step for step in trace.steps)


def test_where_nobody_serves_all_are_left_out() -> None:
    world = world_with(exposed(Svc(), "a unready", "far ended", internal_local=True))
    trace = asked(world, "b", "web", 80)
    assert trace.outcome is Outcome.REFUSED and left_out(trace) == {"a": NOT_READY, "far": NOT_SERVING}
    world = world_with(exposed(Svc(), "far", internal_local=True))
    assert left_out(asked(world, "b", "web", 80)) == {"far": ELSEWHERE}


def test_steps_tell_the_whole_way() -> None:
    world = world_with(
        exposed(
            Svc(("http:80/TCP@30080",), type="LoadBalancer"),
            "far",
            balancer_ips=("vip",),
            source_ranges=("world",),
            affinity_timeout_s=60,
        )
    )
    steps = asked(world, "world", "vip", 80).steps
    assert steps == (
        "192.0.2.100:80/TCP is a frontend of Service rows/s, port http: LoadBalancer.",
        "The client 198.51.100.7 is outside the cluster: it counts as outside.",
        "loadBalancerSourceRanges 198.51.100.7/32: in.",
        "The service's ready endpoints.",
        "sessionAffinity ClientIP: a client keeps its backend until it was idle for 60 s.",
        "There is no other.",
        "On another node: it sees this node's address.",
    )


def test_maglev_says_which_backend_exactly() -> None:
    world = world_with(exposed(NODE_PORT, "a", "b", "far"), **MAGLEV)
    members = sorted((address(name, 4), 8080) for name in ("a", "b", "far"))
    slots = assign(members, 251, 77)
    chosen: Counter[bytes] = Counter()
    for source_port in range(2000, 2100):
        (delivery,) = asked(world, "world", "node", 30080, source_port).deliveries
        number = flow_hash(address("world", 4), source_port, address("node", 4), 30080, 6, 77)
        assert delivery.backend == members[slots[number % 251]]
        chosen[delivery.backend[0]] += 1
    assert len(chosen) == 3
    assert len(asked(world, "world", "node", 30080).deliveries) == 3, "without a source port it may be any"
    assert len(asked(world, "c", "node", 30080, 2000).deliveries) == 3, "sockets here choose before they have a port"


def test_maglev_with_affinity_goes_by_the_client() -> None:
    world = world_with(exposed(NODE_PORT, "a", "b", "far", affinity_timeout_s=60), **MAGLEV)
    members = sorted((address(name, 4), 8080) for name in ("a", "b", "far"))
    (delivery,) = asked(world, "world", "node", 30080).deliveries
    assert delivery.backend == members[assign(members, 251, 77)[client_hash(address("world", 4), 77) % 251]]
    assert len(asked(world, "node", "node", 30080).deliveries) == 3, "which address the node will take is not known"


def test_what_is_no_service_has_a_reason_too() -> None:
    world = world_with(Svc())
    assert asked(world, "b", "dns", 80).steps == ("No service has 10.96.0.53:80/TCP on this node.",)
    trace = asked(world, "world", "web", 80)
    assert trace.frontend is not None and trace.steps[-1].startswith("ClusterIP frontends serve no such clients")
