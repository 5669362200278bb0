"""What a server takes and refuses of the custom resources: the in-test one, and a real one where there is one."""

import itertools
import uuid
from typing import Any

import pytest
from apiserver.client import Client

from agent.kube.bodies import GROUP, VERSION

NUMBERS = itertools.count(60000)  # of this module alone, in a server that other tests use, too
SPEC = {"namespace": "shop", "serviceAccount": "default", "labels": {"app": "web"}}
POD = {"pod": "shop/web", "ips": ["10.0.0.2", "fd00::2"], "identity": 300, "digest": "0123456789abcdef"}
MANY = {f"k{i}": "v" * 63 for i in range(300)}
KEY = "A" * 43 + "="
REFUSED = {"policy": "CiliumNetworkPolicy/shop/web", "generation": 2, "message": "odd"}


def body(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, **rest}


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def endpoints(**spec: Any) -> dict[str, Any]:
    return {"spec": spec}


PLURALS = {
    "SecurityIdentity": "securityidentities",
    "NodeEndpoints": "nodeendpoints",
    "NodeStatus": "nodestatuses",
    "NodeBlock": "nodeblocks",
}
CREATED = {  # → the status of the answer, and words of it
    "an identity": ("SecurityIdentity", "", {"spec": SPEC}, 201, ""),
    "an identity without labels": ("SecurityIdentity", "", {"spec": {**SPEC, "labels": {}}}, 201, ""),
    "many labels": ("SecurityIdentity", "", {"spec": {**SPEC, "labels": MANY}}, 201, ""),
    "a name that is no number": ("SecurityIdentity", "web", {"spec": SPEC}, 422, "must be a number from 256 to 65535"),
    "a reserved number": ("SecurityIdentity", "255", {"spec": SPEC}, 422, "must be a number from 256 to 65535"),
    "a number too large": ("SecurityIdentity", "65536", {"spec": SPEC}, 422, "must be a number from 256 to 65535"),
    "a number with a zero in front": ("SecurityIdentity", "0300", {"spec": SPEC}, 422, "must be a number"),
    "a long number": ("SecurityIdentity", "9" * 100, {"spec": SPEC}, 422, "must be a number"),
    "an identity of nothing": ("SecurityIdentity", "", {}, 422, "spec"),
    "an identity in no namespace": ("SecurityIdentity", "", {"spec": {**SPEC, "namespace": ""}}, 422, "spec.namespace"),
    "a node": ("NodeEndpoints", "n", endpoints(addresses=["192.0.2.1"], podCIDRs=["10.0.0.0/24", "fd00::/64"],
                                               publicKey=KEY, nextPublicKey=KEY, endpoints=[POD]), 201, ""),
    "a node of which nothing is known": ("NodeEndpoints", "n", endpoints(), 201, ""),
    "two blocks of a family": ("NodeEndpoints", "n", endpoints(podCIDRs=["10.0.0.0/24", "10.0.1.0/24"]), 422,
                               "at most one block each of IPv4 and IPv6"),
    "three blocks": ("NodeEndpoints", "n", endpoints(podCIDRs=["10.0.0.0/24", "fd00::/64", "fd01::/64"]), 422,
                     "podCIDRs"),
    "a key too short": ("NodeEndpoints", "n", endpoints(publicKey="QUJD"), 422, "publicKey"),
    "a next key too short": ("NodeEndpoints", "n", endpoints(nextPublicKey="QUJD"), 422, "nextPublicKey"),
    "a pod twice": ("NodeEndpoints", "n", endpoints(endpoints=[POD, {**POD, "ips": ["10.0.0.3"]}]), 422, "endpoints"),
    "a pod without addresses": ("NodeEndpoints", "n", endpoints(endpoints=[{**POD, "ips": []}]), 422, "ips"),
    "a pod with a reserved identity": ("NodeEndpoints", "n", endpoints(endpoints=[{**POD, "identity": 2}]), 422,
                                       "identity"),
    "a pod without a digest": ("NodeEndpoints", "n", endpoints(endpoints=[{**POD, "digest": ""}]), 422, "digest"),
    "an unknown protocol": ("NodeEndpoints", "n", endpoints(endpoints=[
        {**POD, "ports": [{"name": "http", "protocol": "ICMP", "port": 80}]}]), 422, "protocol"),
    "a block": ("NodeBlock", "10-244-{u4}-0-24", {"spec": {"cidr": "10.244.{u4}.0/24", "node": "n1"}}, 201, ""),
    "a block of IPv6": ("NodeBlock", "fd00-{u6}---64", {"spec": {"cidr": "fd00:{u6}::/64", "node": "n1"}}, 201, ""),
    "a block under another name": ("NodeBlock", "10-244-3-0-24", {"spec": {"cidr": "10.244.4.0/24", "node": "n1"}}, 422,
                                   "its name must be spec.cidr"),
    "nobody's block": ("NodeBlock", "10-244-3-0-24", {"spec": {"cidr": "10.244.3.0/24", "node": ""}}, 422, "node"),
    "a status": ("NodeStatus", "n", {}, 201, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CREATED)
def test_what_may_be_created(either: Client, case: str) -> None:
    kind, name, rest, expected, words = CREATED[case]
    numbers = {"{u4}": str(uuid.uuid4().int % 256), "{u6}": f"{uuid.uuid4().int % 0xFFFE + 1:x}"}
    if kind == "SecurityIdentity":
        name = name or str(next(NUMBERS))
    elif kind != "NodeBlock":
        name = unique(name)
    given = body(kind, _filled(name, numbers), **_filled(rest, numbers))
    answer = either.ask("POST", f"/{GROUP}/{PLURALS[kind]}", given)
    assert answer.code == expected, answer.body
    assert words in answer.body.decode()


def _filled(value: Any, numbers: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, numbers) for key, inner in value.items()}
    if isinstance(value, str):
        for name, number in numbers.items():
            value = value.replace(name, number)
    return value


@pytest.mark.parametrize("spec", [
    {**SPEC, "labels": {"app": "db"}}, {**SPEC, "namespace": "other"},
    {"namespace": "shop", "serviceAccount": "default"},
])  # fmt: skip
def test_what_a_number_stands_for_cannot_be_changed(either: Client, spec: dict[str, Any]) -> None:
    path = f"/{GROUP}/securityidentities"
    made = either.ask("POST", path, body("SecurityIdentity", str(next(NUMBERS)), spec=SPEC), expect=201).json()
    refused = either.ask("PUT", f"{path}/{made['metadata']['name']}", {**made, "spec": spec}, expect=422)
    assert "what a number stands for cannot be changed" in refused.body.decode()
    marked = {
        **made,
        "metadata": {**made["metadata"], "annotations": {"gatehouse.io/unused-since": "2026-01-01T00:00:00Z"}},
    }
    either.ask("PUT", f"{path}/{made['metadata']['name']}", marked, expect=200)


def test_a_claim_cannot_be_passed_on(either: Client) -> None:
    path, third = f"/{GROUP}/nodeblocks", uuid.uuid4().int % 256
    claim = body("NodeBlock", f"10-7-{third}-0-24", spec={"cidr": f"10.7.{third}.0/24", "node": "n1"})
    made = either.ask("POST", path, claim, expect=201).json()
    passed = {**made, "spec": {**made["spec"], "node": "n2"}}
    refused = either.ask("PUT", f"{path}/{made['metadata']['name']}", passed, expect=422)
    assert "a claim cannot be changed" in refused.body.decode()


def test_a_status_is_written_apart(either: Client) -> None:
    path, name = f"/{GROUP}/nodestatuses", unique("n")
    status = {"version": "0.1.0", "enforced": {"CiliumNetworkPolicy/shop/web": 3}, "refused": [REFUSED]}
    made = either.ask("POST", path, body("NodeStatus", name, status=status), expect=201).json()
    assert "status" not in made
    put = either.ask("PUT", f"{path}/{name}/status", {**made, "status": status}, expect=200).json()
    assert put["status"] == status
    twice = {**put, "status": {**status, "refused": [REFUSED, REFUSED]}}
    either.ask("PUT", f"{path}/{name}/status", twice, expect=422)
