"""What is kept of an object's text, and in which order updates are taken in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agent.kube.inbox import ROOM, Inbox
from agent.kube.replica import Update
from agent.kube.resources import Resource, watched
from agent.kube.text import head, kept, read
from agent.objects import Pod

BY_KIND = {resource.kind: resource for resource in watched("n1", ["shop"])}
BALLAST = {
    "managedFields": [{"manager": "m"}],
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "gatehouse.io/algorithm": "maglev"},
}


def of(kind: str, given: dict[str, Any]) -> Any:
    return json.loads(kept(json.dumps(given).encode(), BY_KIND[kind], BY_KIND[kind].versions[0]))


def test_ballast_is_dropped_and_the_kind_is_added() -> None:
    found = of("Service", {"metadata": {"name": "a", **BALLAST}, "spec": {"x": [1, {"y": None}]}})
    assert found == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "annotations": {"gatehouse.io/algorithm": "maglev"}},
        "spec": {"x": [1, {"y": None}]},
    }


def test_what_the_server_says_of_the_version_stays() -> None:
    given = {"apiVersion": "policy.networking.k8s.io/v9", "kind": "ClusterNetworkPolicy", "metadata": {"name": "a"}}
    assert of("ClusterNetworkPolicy", given)["apiVersion"] == "policy.networking.k8s.io/v9"


def test_of_pods_nothing_of_what_they_run() -> None:
    container = {
        "name": "c",
        "env": [{"name": "PASSWORD", "value": "secret"}],
        "command": ["x"],
        "ports": [{"name": "http", "containerPort": 80}],
    }
    sidecar = container | {"name": "s", "restartPolicy": "Always"}
    spec = {"containers": [container], "initContainers": [container, sidecar], "nodeName": "n1"}
    found = of("Pod", {"metadata": {"name": "a", "namespace": "shop", "uid": "u"}, "spec": spec})
    kept = {"name": "c", "ports": container["ports"]}
    assert found["spec"] == {
        "containers": [kept],
        "initContainers": [kept, kept | {"name": "s", "restartPolicy": "Always"}],
        "nodeName": "n1",
    }
    item = read(json.dumps(found).encode(), "f")
    assert isinstance(item.object, Pod)
    assert item.object.uid == "u"
    assert item.problems == (), "no word of what is not run"


@pytest.mark.parametrize("spec", ["text", {"containers": "text"}, {"containers": ["text"]}, None])
def test_what_has_another_shape_is_left_for_the_reader(spec: Any) -> None:
    found = of("Pod", {"metadata": {"name": "a"}, "spec": spec})
    assert found["spec"] == spec
    item = read(json.dumps(found).encode(), "f")
    assert item.object is None
    assert str(item.problems[0]).startswith("f: Pod default/a: spec"), "without a line"


def test_every_kind_that_can_be_read_is_watched() -> None:
    assert {kind for kind, one in BY_KIND.items() if one.discovered} == {
        "CiliumNetworkPolicy",
        "CiliumClusterwideNetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
    }
    assert {kind: (one.key, one.path(one.versions[0])) for kind, one in BY_KIND.items() if not one.discovered} == {
        "Namespace": ("namespaces", "/api/v1/namespaces"),
        "Node": ("nodes", "/api/v1/nodes"),
        "Service": ("services", "/api/v1/services"),
        "Pod": ("pods", "/api/v1/pods"),
        "Secret": ("secrets/shop", "/api/v1/namespaces/shop/secrets"),
        "EndpointSlice": ("endpointslices.discovery.k8s.io", "/apis/discovery.k8s.io/v1/endpointslices"),
        "NetworkPolicy": ("networkpolicies.networking.k8s.io", "/apis/networking.k8s.io/v1/networkpolicies"),
        "SecurityIdentity": ("securityidentities.gatehouse.io", "/apis/gatehouse.io/v1alpha1/securityidentities"),
        "NodeEndpoints": ("nodeendpoints.gatehouse.io", "/apis/gatehouse.io/v1alpha1/nodeendpoints"),
    }


# ---- the inbox


def update(file: str, *, urgent: bool, text: bytes | None = b"") -> Update:
    return Update(file, Resource("Pod", "pods"), text, None, "v1", urgent)


def drained(inbox: Inbox) -> list[Update]:
    found = []
    while (one := inbox.pop()) is not None:
        found.append(one)
    return found


def test_what_has_just_happened_goes_first_and_the_newest_counts() -> None:
    inbox = Inbox()
    found_a, found_b, found_c = (update(file, urgent=False) for file in "abc")
    urgent_b, urgent_d = update("b", urgent=True), update("d", urgent=True)
    gone_d = update("d", urgent=False, text=None)
    for one in (found_a, found_b, found_c, urgent_d, urgent_b, gone_d):
        inbox.push(one)
    assert drained(inbox) == [gone_d, urgent_b, found_a, found_c]
    assert len(inbox) == 0


def test_what_is_made_again_is_known_for_new() -> None:
    inbox = Inbox()
    for one in (update("a", urgent=True, text=None), update("a", urgent=True), update("a", urgent=True)):
        inbox.push(one)
    inbox.push(update("b", urgent=True))
    assert [one.anew for one in drained(inbox)] == [True, False]


def test_lists_wait_while_there_is_no_room() -> None:
    async def run() -> None:
        inbox = Inbox()
        for i in range(ROOM + 1):
            inbox.push(update(str(i), urgent=False))
        waiting = asyncio.create_task(inbox.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        while len(inbox) > ROOM // 2:
            inbox.pop()
        await waiting
        drained(inbox)
        inbox.wake()
        await inbox.some()  # woken, though there is nothing

    asyncio.run(run())


def test_a_head_needs_a_name() -> None:
    assert head(b'{"metadata": {"name": "a"}, "x": [1]}').metadata.namespace == ""
    with pytest.raises(ValueError, match="name"):
        head(b'{"metadata": {}}')
