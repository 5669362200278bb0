"""SecurityIdentity and NodeEndpoints: what is read, and what is refused by which field."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from agent.objects import DeclaredPort, NodeEndpoint, NodeEndpoints, Pod, SecurityIdentity
from agent.sources.items import Item
from agent.sources.manifest import parse
from policies.address import Prefix, format_address, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef

VERSION = "gatehouse.io/v1alpha1"
SPEC = {"namespace": "shop", "serviceAccount": "default", "labels": {"app": "web"}}
DIGEST = "0123456789abcdef"
ENDPOINT = {"pod": "shop/web-0", "ips": ["10.1.1.5", "fd00:1::5"], "identity": 4711, "digest": DIGEST}
KEY = bytes(range(32))


def read(raw: dict[str, Any], file: str = "m.json") -> Item:
    (item,) = parse(msgspec.json.encode(raw), file).items
    return item


def identity(name: str = "4711", spec: Any = SPEC, **meta: Any) -> Item:
    return read({"apiVersion": VERSION, "kind": "SecurityIdentity", "metadata": {"name": name, **meta}, "spec": spec})


def endpoints(*given: Any, file: str = "m.json", **spec: Any) -> Item:
    raw = {"apiVersion": VERSION, "kind": "NodeEndpoints", "metadata": {"name": "there"}}
    return read({**raw, "spec": {"endpoints": list(given), **spec}}, file)


def pods(item: Item) -> list[str]:
    assert isinstance(item.object, NodeEndpoints)
    return [one.pod.name for one in item.object.endpoints]


def problems(item: Item) -> list[tuple[str, bool]]:
    return [(problem.path, problem.warning) for problem in item.problems]


# ---- SecurityIdentity


def test_an_identity_is_read() -> None:
    found = identity(annotations={"gatehouse.io/unused-since": "2026-01-01T00:00:00Z"})
    ref = ObjectRef("SecurityIdentity", "", "4711")
    assert found.object == SecurityIdentity(
        ref, found.origin, 4711, "shop", "default", {"app": "web"}, "2026-01-01T00:00:00Z"
    )
    assert isinstance(identity().object, SecurityIdentity)
    assert not identity().problems


@pytest.mark.parametrize("name", ("256", "65535"))
def test_numbers_of_the_cluster(name: str) -> None:
    assert isinstance(identity(name).object, SecurityIdentity)


@pytest.mark.parametrize(
    ("name", "spec", "path"),
    [
        *((name, SPEC, "metadata.name") for name in ("255", "65536", "0", "1", "0256", "00256", "x", "256.0", "1e3")),
        ("4711", None, "spec.namespace"),
        ("4711", {**SPEC, "namespace": ""}, "spec.namespace"),
        ("4711", {**SPEC, "namespace": "a.b"}, "spec.namespace"),
        ("4711", {**SPEC, "serviceAccount": "A"}, "spec.serviceAccount"),
        ("4711", {**SPEC, "serviceAccount": None}, "spec.serviceAccount"),
        ("4711", {**SPEC, "labels": {"a b": "c"}}, "spec.labels[a b]"),
        ("4711", {**SPEC, "labels": {SERVICE_ACCOUNT: "admin"}}, f"spec.labels[{SERVICE_ACCOUNT}]"),
        ("4711", {**SPEC, "labels": {"app": 1}}, "spec.labels[app]"),
        ("4711", {**SPEC, "labels": ["app"]}, "spec.labels"),
        ("4711", [], "spec"),
    ],
)
def test_an_identity_that_could_mean_anything_else_is_refused(name: str, spec: Any, path: str) -> None:
    found = identity(name, spec)
    assert found.object is None
    assert problems(found)[0] == (path, False)


def test_an_identity_is_in_no_namespace() -> None:
    assert problems(identity(namespace="shop")) == [("metadata.namespace", False)]


# ---- NodeEndpoints


@pytest.mark.parametrize("file", ("m.json", "m.yaml"))
def test_node_endpoints_are_read(file: str) -> None:
    port = {"name": "http", "protocol": "TCP", "port": 8080}
    found = endpoints(
        {**ENDPOINT, "ports": [port]},
        {**ENDPOINT, "pod": "shop/web-1", "ips": ["10.1.1.6"]},
        file=file,
        addresses=["192.0.2.2", "2001:db8::2", "192.0.2.2"],
        podCIDRs=["10.1.1.0/24", "fd00:1::/64", "10.1.2.0/24"],
        publicKey=base64.b64encode(KEY).decode(),
        nextPublicKey=base64.b64encode(KEY[::-1]).decode(),
    )
    assert not found.problems
    node = found.object
    assert isinstance(node, NodeEndpoints)
    assert node.ref == ObjectRef("NodeEndpoints", "", "there")
    assert list(map(format_address, node.addresses)) == ["192.0.2.2", "2001:db8::2"]
    assert node.pod_cidrs == tuple(map(Prefix.parse, ("10.1.1.0/24", "fd00:1::/64", "10.1.2.0/24")))
    assert (node.public_key, node.next_public_key) == (KEY, KEY[::-1])
    assert node.endpoints[0] == NodeEndpoint(
        ObjectRef("Pod", "shop", "web-0"),
        (parse_address("10.1.1.5"), parse_address("fd00:1::5")),
        4711,
        DIGEST,
        (DeclaredPort("http", 6, 8080),),
    )
    assert pods(found) == ["web-0", "web-1"]


def test_a_node_without_pods_is_one() -> None:
    raw = {"apiVersion": VERSION, "kind": "NodeEndpoints", "metadata": {"name": "there"}}
    assert isinstance(read(raw).object, NodeEndpoints)
    assert isinstance(read({**raw, "spec": {"endpoints": None}}).object, NodeEndpoints)


BAD = [
    ({"pod": "web-0"}, "pod"),
    ({"pod": "shop/"}, "pod"),
    ({"pod": "a.b/web"}, "pod"),
    ({"pod": "shop/web/x"}, "pod"),
    ({"pod": None}, "pod"),
    ({"pod": 1}, "pod"),
    ({"ips": []}, "ips"),
    ({"ips": None}, "ips"),
    ({"ips": ["10.1.1.5", "10.1.1.6"]}, "ips[1]"),
    ({"ips": ["10.1.1.5/32"]}, "ips[0]"),
    ({"ips": ["::ffff:10.1.1.5"]}, "ips[0]"),
    ({"ips": ["127.0.0.1"]}, "ips[0]"),
    ({"ips": ["224.0.0.1"]}, "ips[0]"),
    ({"ips": ["fe80::1"]}, "ips[0]"),
    ({"ips": "10.1.1.5"}, "ips"),
    ({"identity": 0}, "identity"),
    ({"identity": 9}, "identity"),
    ({"identity": 65536}, "identity"),
    ({"identity": -1}, "identity"),
    ({"identity": "4711"}, "identity"),
    ({"identity": 1 << 70}, "identity"),
    ({"identity": None}, "identity"),
    ({"digest": None}, "digest"),
    ({"digest": DIGEST.upper()}, "digest"),
    ({"digest": DIGEST + "0"}, "digest"),
    ({"digest": DIGEST + "\n"}, "digest"),
    ({"ports": [{"protocol": "TCP", "port": 80}]}, "ports[0].name"),
    ({"ports": [{"name": "http", "protocol": "ICMP", "port": 80}]}, "ports[0].protocol"),
    ({"ports": [{"name": "http", "port": 0}]}, "ports[0].port"),
    ({"ports": [{"name": "http", "port": "x"}]}, "ports[0].port"),
]


@pytest.mark.parametrize(("wrong", "path"), BAD)
def test_one_bad_endpoint_does_not_cut_off_its_node(wrong: dict[str, Any], path: str) -> None:
    good = {**ENDPOINT, "pod": "shop/good", "ips": ["10.1.1.9"]}
    found = endpoints(good, {**ENDPOINT, **wrong})
    assert pods(found) == ["good"]
    assert problems(found) == [(f"spec.endpoints[1].{path}", True)]


def test_what_is_no_endpoint_at_all_is_left_out() -> None:
    found = endpoints("web", ENDPOINT, None)
    assert pods(found) == ["web-0"]
    assert problems(found) == [("spec.endpoints[0]", True), ("spec.endpoints[2]", True)]


def test_nobody_has_what_two_are_given() -> None:
    other = {**ENDPOINT, "pod": "shop/web-1", "ips": ["fd00:1::5"]}
    third = {**ENDPOINT, "pod": "shop/web-2", "ips": ["10.1.1.7"]}
    found = endpoints(ENDPOINT, other, third)
    assert pods(found) == ["web-2"]
    assert problems(found) == [("spec.endpoints[0].ips", True), ("spec.endpoints[1].ips", True)]
    found = endpoints(ENDPOINT, {**ENDPOINT, "ips": ["10.1.1.7"]}, third | {"ips": ["10.1.1.8"]})
    assert pods(found) == ["web-2"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"addresses": ["node.example"]}, "spec.addresses[0]"),
        ({"addresses": ["192.0.2.1", "::1"]}, "spec.addresses[1]"),
        ({"podCIDRs": ["10.1.1.0"]}, "spec.podCIDRs[0]"),
        ({"podCIDRs": ["10.1.0.0/16", "10.1.1.0/24"]}, "spec.podCIDRs[1]"),
        ({"podCIDRs": "10.1.0.0/16"}, "spec.podCIDRs"),
        ({"publicKey": "AAAA"}, "spec.publicKey"),
        ({"publicKey": "?"}, "spec.publicKey"),
        ({"nextPublicKey": "AAAA"}, "spec.nextPublicKey"),
        ({"endpoints": {}}, "spec.endpoints"),
    ],
)
def test_what_is_wrong_with_the_node_itself_refuses_the_object(spec: dict[str, Any], path: str) -> None:
    """Then the last good version stays in force (agent.sources.tree)."""
    found = read({
        "apiVersion": VERSION,
        "kind": "NodeEndpoints",
        "metadata": {"name": "there"},
        "spec": {"endpoints": [ENDPOINT], **spec},
    })  # fmt: skip
    assert found.object is None
    assert problems(found) == [(path, False)]


# ---- Pod


@pytest.mark.parametrize(
    ("meta", "uid"),
    [({}, ""), ({"uid": "u1"}, "u1"), ({"uid": "u1", "annotations": {"kubernetes.io/config.mirror": "m1"}}, "m1")],
)
def test_a_static_pod_is_known_by_the_uid_the_kubelet_gives_it(meta: dict[str, Any], uid: str) -> None:
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", **meta},
        "spec": {"containers": [{"name": "c"}]},
    }
    found = read(raw).object
    assert isinstance(found, Pod)
    assert found.uid == uid
