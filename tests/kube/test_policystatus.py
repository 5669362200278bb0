"""Conditions of policies: what they say, when they are written, and that nobody else's are touched."""

import asyncio
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apiserver import ApiServer
from coroutines import on_a_loop

from agent.kube import bodies
from agent.kube.bodies import RefusedPolicy
from agent.kube.client import ApiClient
from agent.kube.conditions import (
    FIRST_S,
    NEXT_S,
    NodeStatusHead,
    PolicyBook,
    PolicyHead,
    Reports,
    patch,
    wanted,
)
from agent.kube.policystatus import PolicyStatus

WEB = "CiliumNetworkPolicy/shop/web"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LATER = datetime(2026, 3, 1, 13, 0, 0, tzinfo=UTC)


def report(node: str, enforced: dict[str, int], *refused: RefusedPolicy) -> NodeStatusHead:
    body = bodies.json_of(bodies.node_status(node, "0.1.0", enforced, refused))
    return msgspec.json.decode(body, type=NodeStatusHead)


def refusal(generation: int, message: str) -> RefusedPolicy:
    return RefusedPolicy(WEB, generation, message)


def head(generation: int = 2, conditions: list[dict[str, Any]] | None = None, version: str = "7") -> PolicyHead:
    given = {"metadata": {"name": "web", "namespace": "shop", "resourceVersion": version, "generation": generation}}
    return msgspec.convert({**given, "status": {"conditions": conditions or []}}, PolicyHead)


@pytest.mark.parametrize(("nodes", "valid", "enforced"), [
    ([report("a", {WEB: 2}), report("b", {WEB: 2})],
     ("True", "Accepted", "the policy is understood"), ("True", "EnforcedOnAllNodes", "in force on all nodes")),
    ([report("a", {WEB: 2}), report("b", {WEB: 1}), report("c", {})],
     ("True", "Accepted", "the policy is understood"),
     ("False", "NotOnAllNodes", "generation 2 is in force on 1 of 3 nodes")),
    ([report("a", {WEB: 1}), report("b", {})],
     ("Unknown", "Pending", "no node has reported on generation 2 yet"),
     ("False", "NotOnAllNodes", "generation 2 is in force on 0 of 2 nodes")),
    ([report("a", {WEB: 1}, refusal(2, "spec: odd")), report("b", {WEB: 1}, refusal(2, "spec: odd")),
      report("c", {WEB: 2})],
     ("False", "Refused", "refused by a and 1 more: spec: odd"),
     ("False", "RefusedByNodes", "generation 2 is in force on 1 of 3 nodes")),
    ([report("a", {WEB: 2}, refusal(1, "it was odd"))],
     ("True", "Accepted", "the policy is understood"), ("True", "EnforcedOnAllNodes", "in force on all nodes")),
])  # fmt: skip
def test_what_is_said(nodes: list[NodeStatusHead], valid: tuple[str, ...], enforced: tuple[str, ...]) -> None:
    reports = Reports()
    for one in nodes:
        reports.put(one.metadata.name, one)
    said = [(c.type, c.status, c.reason, c.message) for c in wanted(reports, WEB, 2)]
    assert said == [("Valid", *valid), ("Enforced", *enforced)]


def test_counts_are_those_of_the_last_reports() -> None:
    """Against counting anew, over random reports of nodes that come and go."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    reports, latest = Reports(), dict[str, NodeStatusHead]()
    enforced_by: dict[str, dict[str, int]] = {}
    names = [f"CiliumNetworkPolicy/shop/p{i}" for i in range(5)]
    for _ in range(2000):
        node = f"n{draw.randrange(6)}"
        before = {
            (name, g): (reports.enforcing(name, g), reports.refusals(name, g)) for name in names for g in (1, 2, 3)
        }
        if draw.random() < 0.2:
            latest.pop(node, None)
            enforced_by.pop(node, None)
            changed = reports.put(node, None)
        else:
            enforced_by[node] = {name: draw.randrange(1, 4) for name in draw.sample(names, draw.randrange(5))}
            refused = [RefusedPolicy(draw.choice(names), draw.randrange(1, 4), "odd")] if draw.random() < 0.3 else []
            latest[node] = report(node, enforced_by[node], *refused)
            changed = reports.put(node, latest[node])
        assert len(reports) == len(latest)
        for (name, g), then in before.items():
            assert reports.enforcing(name, g) == sum(one.get(name) == g for one in enforced_by.values())
            if (reports.enforcing(name, g), reports.refusals(name, g)) != then:
                assert changed is None or name in changed
    for node in list(latest):
        reports.put(node, None)
    assert not len(reports) and not reports._shared and not reports._uses and not reports._refused


THEIRS = {
    "type": "example.com/Audited",
    "status": "True",
    "reason": "x",
    "message": "",
    "lastTransitionTime": "then",
}


class TestPatch:
    def conditions(self, *nodes: NodeStatusHead) -> Any:
        reports = Reports()
        for one in nodes:
            reports.put(one.metadata.name, one)
        return wanted(reports, WEB, 2)

    def test_keeps_others_conditions_and_names_the_version_it_is_about(self) -> None:
        made = patch(head(conditions=[THEIRS]), self.conditions(report("a", {WEB: 2})), NOW)
        assert made is not None and made["metadata"] == {"resourceVersion": "7"}
        assert [one["type"] for one in made["status"]["conditions"]] == ["example.com/Audited", "Valid", "Enforced"]
        assert made["status"]["conditions"][0] == THEIRS

    def test_time_is_that_of_the_last_change_of_status(self) -> None:
        first = patch(head(), self.conditions(report("a", {}), report("b", {})), NOW)
        assert first is not None
        told = first["status"]["conditions"]
        second = patch(head(conditions=told), self.conditions(report("a", {WEB: 2}), report("b", {})), LATER)
        assert second is not None
        assert [(one["type"], one["lastTransitionTime"]) for one in second["status"]["conditions"]] == [
            ("Valid", "2026-03-01T13:00:00Z"),
            ("Enforced", "2026-03-01T12:00:00Z"),
        ]

    def test_is_none_where_nothing_is_new(self) -> None:
        first = patch(head(), self.conditions(report("a", {WEB: 2})), NOW)
        assert first is not None
        assert (
            patch(head(conditions=first["status"]["conditions"]), self.conditions(report("a", {WEB: 2})), LATER) is None
        )


class TestBook:
    def test_what_is_not_final_waits(self) -> None:
        book = PolicyBook()
        book.put_node("a", report("a", {WEB: 2}))
        book.put_node("b", report("b", {}))
        book.put_policy(WEB, head(), 100.0)
        assert not book.due(100.0 + FIRST_S - 1, NOW)
        assert book.due(100.0 + FIRST_S, NOW)
        book.told(WEB, 100.0 + FIRST_S)
        assert not book.due(100.0 + FIRST_S + NEXT_S - 1, NOW)
        book.put_node("b", report("b", {WEB: 2}))
        assert book.due(100.0 + FIRST_S + 1, NOW)  # final

    def test_a_node_that_joins_with_all_in_force_writes_nothing(self) -> None:
        book = PolicyBook()
        book.put_node("a", report("a", {WEB: 2}))
        book.put_policy(WEB, head(), 0.0)
        ((_, made),) = book.due(0.0, NOW)
        book.put_policy(WEB, head(conditions=made["status"]["conditions"], version="8"), 0.0)
        assert not book.due(1.0, NOW)
        book.put_node("b", report("b", {WEB: 2}))
        assert not book.due(1000.0, NOW)
        book.put_node("c", report("c", {}))
        assert book.due(1000.0, NOW)
        book.put_node("c", None)
        assert not book.due(2000.0, NOW)

    def test_without_reports_nothing_is_said(self) -> None:
        book = PolicyBook()
        book.put_policy(WEB, head(), 0.0)
        assert not book.due(1000.0, NOW)


def policy(name: str, port: str = "80") -> dict[str, Any]:
    rule = {"toPorts": [{"ports": [{"port": port, "protocol": "TCP"}]}]}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {}, "ingress": [rule]},
    }


def status(api: ApiServer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (api.get("ciliumnetworkpolicies", name, "default") or {}).get("status", {})
    return found


def said(api: ApiServer, name: str) -> dict[str, str]:
    return {one["type"]: one["status"] for one in status(api, name).get("conditions", [])}


async def until(api: ApiServer, name: str, expected: dict[str, str]) -> None:
    async with asyncio.timeout(90):
        while said(api, name) != expected:
            await asyncio.sleep(0.01)


@on_a_loop
async def test_conditions_come_to_be_at_a_server_that_fails_and_conflicts(api: ApiServer, tmp_path: Path) -> None:
    for name in ("web", "db"):
        api.put(policy(name))
    names = [f"CiliumNetworkPolicy/default/{name}" for name in ("web", "db")]
    api.put(bodies.node_status("a", "0.1.0", {names[0]: 1, names[1]: 1}, []))
    api.put(bodies.node_status("b", "0.1.0", {names[0]: 1}, [RefusedPolicy(names[1], 1, "spec: odd")]))
    api.faults.refuse(429, verbs=["patch"], times=2)
    api.faults.refuse(409, verbs=["patch"], times=2)
    client = ApiClient(kubeconfig=str(api.kubeconfig(tmp_path / "config")))
    task = asyncio.create_task(PolicyStatus(client, period_s=0.05).run())
    try:
        await until(api, "web", {"Valid": "True", "Enforced": "True"})
        await until(api, "db", {"Valid": "False", "Enforced": "False"})
        api.put(bodies.node_status("b", "0.1.0", {names[0]: 1, names[1]: 1}, []))
        await until(api, "db", {"Valid": "True", "Enforced": "True"})
        api.faults.clear()
        changed = {**policy("db", port="81"), "status": status(api, "db")}
        api.put(changed)
        api.put(bodies.node_status("a", "0.1.0", {names[0]: 1, names[1]: 1}, [RefusedPolicy(names[1], 2, "spec: odd")]))
        await until(api, "db", {"Valid": "False", "Enforced": "False"})
        api.delete("ciliumnetworkpolicies", "db", "default")
        api.put(bodies.node_status("a", "0.1.0", {names[0]: 1}, []))
        assert said(api, "web") == {"Valid": "True", "Enforced": "True"}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()
