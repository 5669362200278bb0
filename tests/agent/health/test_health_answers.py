"""What health checks are answered, for whom, and when."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import msgspec
import pytest

from agent.health.checks import HealthChecks
from agent.health.liveness import Liveness
from agent.objects import Change, EndpointSlice, Exposure, Node, Service, SliceEndpoint
from agent.services.health import (
    BEHIND_S,
    Check,
    Health,
    agent_answer,
    is_checked,
    local_endpoints,
    service_answer,
)
from agent.sources.documents import JsonSource
from agent.sources.items import Written, item
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef, Origin

REF = ObjectRef("Service", "shop", "web")
WELL = Health(in_force=True, updated="2026-01-01T00:00:00Z", now="2026-01-01T00:02:00Z")
SERVICE = Service(REF, Origin("s.yaml", 1), "LoadBalancer", None, (), False, (), exposure=Exposure(external_local=True))


def endpoint(
    address: str, node: str = "here", ready: bool = True, serving: bool = True, terminating: bool = False
) -> SliceEndpoint:
    return SliceEndpoint((parse_address(address),), ready, serving, terminating, node)


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        ([], 0),
        ([endpoint("10.0.0.1"), endpoint("10.0.0.2")], 2),
        ([endpoint("10.0.0.1"), endpoint("10.0.0.1")], 1),
        ([endpoint("10.0.0.1"), endpoint("fd00::1")], 1),  # one pod, both families
        ([endpoint("10.0.0.1", node="there")], 0),
        ([endpoint("10.0.0.1", node="")], 0),
        ([endpoint("10.0.0.1", ready=False)], 0),
        ([endpoint("10.0.0.1", ready=False, terminating=True)], 0),
    ],
)
def test_local_endpoints(endpoints: list[SliceEndpoint], count: int) -> None:
    slices = [EndpointSlice(ObjectRef("EndpointSlice", "shop", "a"), Origin("s", 1), "web", (), tuple(endpoints))]
    assert local_endpoints(slices, "here") == count


@pytest.mark.parametrize(
    ("change", "checked"),
    [
        ({}, True),
        ({"type": "NodePort"}, False),
        ({"exposure": Exposure()}, False),
        ({"proxied": False}, False),
    ],
)
def test_who_is_checked(change: dict[str, object], checked: bool) -> None:
    assert is_checked(msgspec.structs.replace(SERVICE, **change)) is checked


@pytest.mark.parametrize(
    ("endpoints", "in_force", "status"),
    [(2, True, HTTPStatus.OK), (0, True, HTTPStatus.SERVICE_UNAVAILABLE), (2, False, HTTPStatus.SERVICE_UNAVAILABLE)],
)
def test_answer_of_a_service(endpoints: int, in_force: bool, status: HTTPStatus) -> None:
    answer = service_answer(Check(REF, 30000, endpoints), in_force)
    assert answer.status == status
    assert json.loads(answer.body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": in_force,
    }
    assert dict(answer.headers) == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(endpoints),
    }


@pytest.mark.parametrize(
    ("path", "in_force", "eligible", "status", "updated"),
    [
        ("/healthz", True, True, 200, WELL.now),
        ("/healthz", True, False, 503, WELL.updated),
        ("/healthz", False, True, 503, WELL.updated),
        ("/livez", True, True, 200, WELL.now),
        ("/livez", True, False, 200, WELL.now),
        ("/livez", False, True, 503, WELL.updated),
    ],
)
def test_answer_of_the_agent(path: str, in_force: bool, eligible: bool, status: int, updated: str) -> None:
    answer = agent_answer(path, msgspec.structs.replace(WELL, in_force=in_force, eligible=eligible))
    body = json.loads(answer.body)
    assert (answer.status, body.pop("lastUpdated"), body.pop("currentTime")) == (status, updated, WELL.now)
    assert body == ({"nodeEligible": eligible} if path == "/healthz" else {})


def test_answer_of_no_such_path() -> None:
    assert agent_answer("/metrics", WELL).status == HTTPStatus.NOT_FOUND


def test_an_agent_is_well_until_it_is_behind_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, since = 1000.0, None
    monkeypatch.setattr("time.monotonic", lambda: now)
    liveness = Liveness(lambda: since, lambda: False)
    assert liveness.in_force()
    since = now
    now += BEHIND_S - 1
    assert liveness.answer("/livez").status == HTTPStatus.OK
    now += 1
    late = json.loads(liveness.answer("/healthz").body)
    assert not liveness.in_force()
    assert late["lastUpdated"] < late["currentTime"]
    since = None
    assert liveness.in_force()
    liveness.stopping = True
    assert liveness.answer("/healthz").status == HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize(
    ("changed", "eligible"),
    [
        ({}, True),
        ({"spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}}, True),
        (
            {"spec": {"taints": [{}, {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}},
            False,
        ),
        ({"metadata": {"name": "here", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, False),
        ({"metadata": {"name": "other", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
    ],
)
def test_a_node_that_is_about_to_be_removed_wants_no_new_traffic(changed: dict[str, Any], eligible: bool) -> None:
    """As kube-proxy (KEP-3836). Its agent is not to be started again for that."""
    document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here"}} | changed
    node = item(Written(JsonSource(json.dumps(document).encode()), Origin("node", 0), 0)).object
    assert isinstance(node, Node)
    world = World(NodeConfig(name="here", pod_cidrs=()))
    health = HealthChecks("", world, lambda: None)
    for there, expected in ((node, eligible), (None, True)):
        world.apply_all([Change(node.ref, there)])
        assert json.loads(health.liveness.answer("/healthz").body)["nodeEligible"] is expected
        assert health.liveness.answer("/livez").status == HTTPStatus.OK
