"""Requests as runtimes make them, and the answer in each version of the spec."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from cni_plugin import config, environment

from agent.cni import protocol
from agent.cni.protocol import CniError, Key, Made, Request, frame_request, parse_request, request_lengths
from policies.address import parse_address
from policies.model import ObjectRef

MADE = Made(
    "gh0123456789ab",
    bytes.fromhex("020000000001"),
    bytes.fromhex("020000000002"),
    1450,
    (parse_address("10.244.0.7"), parse_address("fd00::7")),
)


def parse(env: dict[str, str], stdin: bytes) -> Request:
    frame = frame_request(env, stdin)
    header = frame[: protocol.HEADER.size]
    length, rest = request_lengths(header)
    body = frame[protocol.HEADER.size :]
    assert len(body) == length + rest
    return parse_request(body[:length], body[length:])


def test_an_add_is_read_whole() -> None:
    stdin = config(
        "/s",
        runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::1"}]},
        dns={"nameservers": ["10.96.0.10"]},
        unknown={"to": "us"},
    )
    found = parse(environment("ADD", "abc.1_2-3"), stdin)
    assert found == Request(
        command="ADD",
        version="1.1.0",
        network="gatehouse",
        key=Key("abc.1_2-3", "eth0"),
        netns="/run/netns/none",
        pod=ObjectRef("Pod", "shop", "web"),
        uid="u1",
        port_mappings=(protocol.PortMapping(8080, 80),),
        dns={"nameservers": ["10.96.0.10"]},
    )


@pytest.mark.parametrize(
    ("env", "stdin", "code", "said"),
    [
        (environment("DANCE"), config("/s"), 4, "DANCE"),
        (environment("ADD", containerid=""), config("/s"), 4, "CNI_CONTAINERID"),
        (environment("ADD", netns="", ifname=""), config("/s"), 4, "CNI_NETNS, CNI_IFNAME"),
        (environment("DEL", containerid="../etc"), config("/s"), 4, "CNI_CONTAINERID"),
        (environment("DEL", containerid="-x"), config("/s"), 4, "CNI_CONTAINERID"),
        (environment("DEL", containerid="a" * 201), config("/s"), 4, "CNI_CONTAINERID"),
        (environment("ADD", ifname="a/b"), config("/s"), 4, "CNI_IFNAME"),
        (environment("ADD", ifname="sixteen-letters-"), config("/s"), 4, "CNI_IFNAME"),
        (environment("ADD", ifname=".."), config("/s"), 4, "CNI_IFNAME"),
        (environment("ADD", args="IgnoreUnknown=1"), config("/s"), 4, "K8S_POD_NAME"),
        (environment("ADD"), b"{", 6, "JSON"),
        (environment("ADD"), b"", 6, "JSON"),
        (environment("ADD"), b"\xff\xfe", 6, "JSON"),
        (environment("ADD"), b"[]", 7, "object"),
        (environment("ADD"), b'{"cniVersion": 1}', 7, "cniVersion"),
        (environment("ADD"), config("/s", name=""), 7, "name"),
        (environment("ADD"), config("/s", name="a b"), 7, "name"),
        (environment("ADD"), config("/s", runtimeConfig={"portMappings": [{"hostPort": "x"}]}), 7, "hostPort"),
        (environment("ADD"), b'{"name": "n"}', 1, "0.1.0"),
        (environment("ADD"), config("/s", "0.2.0"), 1, "0.2.0"),
        (environment("ADD"), config("/s", "2.0.0"), 1, "2.0.0"),
        (environment("CHECK"), config("/s", "0.3.1"), 1, "0.4.0"),
        (environment("GC"), config("/s", "1.0.0"), 1, "1.1.0"),
        (environment("STATUS"), config("/s", "1.0.0"), 1, "1.1.0"),
        (environment("GC"), config("/s"), 7, "valid-attachments"),
    ],
)
def test_what_is_refused(env: dict[str, str], stdin: bytes, code: int, said: str) -> None:
    with pytest.raises(CniError) as caught:
        parse(env, stdin)
    assert caught.value.code == code
    assert said in str(caught.value)


@pytest.mark.parametrize("env", [environment("DEL", netns="", args=""), environment("DEL")])
def test_a_del_needs_neither_namespace_nor_pod(env: dict[str, str]) -> None:
    assert parse(env, config("/s", "0.3.1")).key == Key("c1", "eth0")


def test_gc_lists_what_is_valid() -> None:
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    env = environment("GC", containerid="", ifname="", netns="", args="")
    told: dict[str, Any] = {"cni.dev/valid-attachments": valid}
    found = parse(env, config("/s", **told))
    assert found.valid == {Key("a", "eth0"), Key("b", "net1")}
    for name, given, expected in (
        ("cni.dev/valid-attachments", [], frozenset()),
        ("cni.dev/valid-attachments", None, frozenset()),  # Go's empty list
        ("cni.dev/attachments", valid, found.valid),  # libcni 1.2
        ("cni.dev/attachments", None, frozenset()),
    ):
        more: dict[str, Any] = {name: given}
        assert parse(env, config("/s", **more)).valid == expected


INTERFACES: list[dict[str, Any]] = [
    {"name": "gh0123456789ab", "mac": "02:00:00:00:00:01"},
    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/none"},
]
IPS: list[dict[str, Any]] = [
    {"address": "10.244.0.7/32", "gateway": "169.254.1.1", "interface": 1},
    {"address": "fd00::7/128", "gateway": "fe80::1", "interface": 1},
]
ROUTES = [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]


@pytest.mark.parametrize("version", protocol.SUPPORTED_VERSIONS)
def test_the_result_in_each_version(version: str) -> None:
    old = version in ("0.3.0", "0.3.1", "0.4.0")
    mtu = {"mtu": 1450} if version == "1.1.0" else {}
    expected = {
        "cniVersion": version,
        "interfaces": [one | mtu for one in INTERFACES],
        "ips": [({"version": family} if old else {}) | ip for ip, family in zip(IPS, "46", strict=True)],
        "routes": ROUTES,
        "dns": {"nameservers": ["10.96.0.10"]},
    }
    request = parse(environment("ADD"), config("/s", version, dns={"nameservers": ["10.96.0.10"]}))
    assert json.loads(protocol.result_body(request, MADE)) == expected


def test_one_family_has_one_route() -> None:
    made = msgspec.structs.replace(MADE, addresses=MADE.addresses[1:])
    body = json.loads(protocol.result_body(parse(environment("ADD"), config("/s")), made))
    assert body["routes"] == ROUTES[1:]
    assert body["ips"] == IPS[1:]


def test_behind_another_plugin_its_result_is_the_result() -> None:
    previous = {"cniVersion": "1.0.0", "interfaces": INTERFACES, "ips": IPS, "dns": {}, "more": [1]}
    request = parse(environment("ADD"), config("/s", "1.0.0", prevResult=previous))
    assert json.loads(protocol.result_body(request, MADE)) == previous


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        ([{"address": "10.1.0.5/16", "interface": 1}], ["10.1.0.5"]),
        (
            [{"version": "6", "address": "fd00::5/64", "interface": 1}, {"address": "10.1.0.5/24"}],
            ["fd00::5", "10.1.0.5"],
        ),
        ([{"address": "10.1.0.5/16", "interface": 0}], []),  # the node's
        ([], []),
        (None, []),
    ],
)
def test_addresses_of_the_plugin_before(ips: Any, expected: list[str]) -> None:
    found = protocol.previous_addresses({"interfaces": INTERFACES, "ips": ips}, "eth0")
    assert found == tuple(map(parse_address, expected))


def test_addresses_of_another_interface_are_not_the_pods() -> None:
    assert protocol.previous_addresses({"interfaces": INTERFACES, "ips": IPS}, "net1") == ()


@pytest.mark.parametrize(
    "previous",
    [
        {"ips": [{"address": "10.1.0.5/16", "interface": 7}]},
        {"ips": [{"address": "here"}]},
        {"ips": "10.1.0.5"},
        {"interfaces": [1]},
    ],
)
def test_a_previous_result_that_cannot_be_read(previous: dict[str, Any]) -> None:
    with pytest.raises(CniError) as caught:
        protocol.previous_addresses(previous, "eth0")
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("stdin", "version"),
    [(config("/s", "0.4.0"), "0.4.0"), (config("/s", "9.9.9"), "1.1.0"), (b"junk", "1.1.0"), (b"", "1.1.0")],
)
def test_errors_are_told_in_the_version_that_was_asked(stdin: bytes, version: str) -> None:
    assert protocol.version_of(stdin) == version


def test_errors_have_what_the_spec_says() -> None:
    body = json.loads(protocol.error_body("1.0.0", CniError(11, "try again", "later")))
    assert body == {"cniVersion": "1.0.0", "code": 11, "msg": "try again", "details": "later"}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"XXXX" + bytes(8), 5),
        (protocol.HEADER.pack(b"GHC1", protocol.ENVIRONMENT_BYTES + 1, 0), 6),
        (protocol.HEADER.pack(b"GHC1", 0, protocol.CONFIG_BYTES + 1), 6),
    ],
)
def test_headers_that_are_refused(header: bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        request_lengths(header)
    assert caught.value.code == code
