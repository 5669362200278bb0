"""Pod networks as the kernel holds them, in a scratch node namespace."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import probes
import pytest
import rig

from agent.endpoints import namespaces
from agent.endpoints.netlink import NetlinkError
from agent.endpoints.sandbox import Sandboxes
from agent.endpoints.wiring import derive_mac
from agent.objects import Interface
from policies.address import parse_address
from policies.model import ObjectRef


def pod(name: str, namespace: str = "shop") -> ObjectRef:
    return ObjectRef("Pod", namespace, name)


def addresses(number: int) -> tuple[bytes, bytes]:
    return parse_address(f"10.244.{number // 250}.{number % 250 + 1}"), parse_address(f"fd00:10:244::{number + 1:x}")


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


@pytest.fixture
def routing(node: rig.Node) -> rig.Node:
    node.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    return node


@pytest.fixture
def sandboxes(node: rig.Node, instance: str) -> Iterator[Sandboxes]:
    made = node.call(Sandboxes, instance)
    yield made
    made.destroy_named([existing.name for existing in made.list_existing()])
    made.close()


def show(netns: rig.Netns, *command: str) -> list[dict[str, Any]]:
    """Output of an `ip -j` command; iproute2 prints nothing where there is nothing."""
    found: list[dict[str, Any]] = json.loads(netns.run("ip", "-j", *command).stdout or "[]")
    return [entry for entry in found if entry]


def make(sandboxes: Sandboxes, number: int) -> Interface:
    interface = sandboxes.build(pod(f"p{number}"), addresses(number))
    sandboxes.activate(interface, addresses(number))
    return interface


def test_pod_side_is_exactly_as_specified(sandboxes: Sandboxes) -> None:
    interface = make(sandboxes, 0)
    with rig.Netns.at(interface.netns) as inside:
        links = {link["ifname"]: link for link in show(inside, "-d", "link")}
        assert set(links) == {"lo", "eth0"}
        assert "UP" in links["lo"]["flags"]
        assert links["eth0"]["operstate"] == "UP"
        assert links["eth0"]["address"] == mac_text(interface.mac)
        assert links["eth0"]["mtu"] == 1500
        assert links["eth0"]["inet6_addr_gen_mode"] == "none"

        bound = [a for a in show(inside, "address", "show", "dev", "eth0") for a in a["addr_info"]]
        assert {(a["local"], a["prefixlen"], a["scope"]) for a in bound} == {
            ("10.244.0.1", 32, "global"),
            ("fd00:10:244::1", 128, "global"),
        }
        assert not any(a.get("tentative") or a.get("dadfailed") for a in bound)

        routes = show(inside, "route") + show(inside, "-6", "route")
        assert {(r["dst"], r["gateway"], r["dev"], tuple(r["flags"])) for r in routes} == {
            ("default", "169.254.1.1", "eth0", ("onlink",)),
            ("default", "fe80::1", "eth0", ("onlink",)),
        }
        neighbours = show(inside, "-4", "neigh") + show(inside, "-6", "neigh")
        assert {(n["dst"], n["lladdr"], tuple(n["state"])) for n in neighbours} == {
            ("169.254.1.1", mac_text(interface.host_mac), ("PERMANENT",)),
            ("fe80::1", mac_text(interface.host_mac), ("PERMANENT",)),
        }


POD_SYSCTLS = [
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0\t2147483647"),
    ("net.ipv6.conf.eth0.disable_ipv6", "0"),
    ("net.ipv6.conf.eth0.accept_ra", "0"),
    ("net.ipv6.conf.eth0.accept_dad", "0"),
    ("net.ipv6.conf.all.forwarding", "0"),
    ("net.ipv4.conf.eth0.rp_filter", "0"),
]
HOST_SYSCTLS = [
    ("net.ipv4.conf.{}.rp_filter", "0"),
    ("net.ipv4.conf.{}.accept_local", "1"),
    ("net.ipv4.conf.{}.forwarding", "1"),
    ("net.ipv4.conf.{}.send_redirects", "0"),
    ("net.ipv4.conf.{}.accept_redirects", "0"),
    ("net.ipv4.conf.{}.accept_source_route", "0"),
    ("net.ipv6.conf.{}.accept_ra", "0"),
    ("net.ipv6.conf.{}.accept_dad", "0"),
    ("net.ipv6.conf.{}.forwarding", "1"),
]


def test_sysctls(routing: rig.Node, sandboxes: Sandboxes) -> None:
    interface = make(sandboxes, 0)
    with rig.Netns.at(interface.netns) as inside:
        for key, value in POD_SYSCTLS:
            assert inside.run("sysctl", "-n", key).stdout.strip() == value, key
    for template, value in HOST_SYSCTLS:
        key = template.format(interface.name)
        assert routing.run("sysctl", "-n", key).stdout.strip() == value, key


def test_host_side_is_exactly_as_specified(node: rig.Node, sandboxes: Sandboxes) -> None:
    interface = make(sandboxes, 0)
    (link,) = show(node, "-d", "link", "show", "dev", interface.name)
    assert link["ifindex"] == interface.index
    assert link["address"] == mac_text(interface.host_mac)
    assert link["ifalias"] == "shop/p0"
    assert link["inet6_addr_gen_mode"] == "none"
    assert show(node, "address", "show", "dev", interface.name)[0]["addr_info"] == []
    routes = show(node, "route", "show", "dev", interface.name) + show(
        node, "-6", "route", "show", "dev", interface.name
    )
    assert {(r["dst"], r.get("gateway")) for r in routes} == {("10.244.0.1", None), ("fd00:10:244::1", None)}
    neighbours = show(node, "-4", "neigh", "show", "dev", interface.name)
    neighbours += show(node, "-6", "neigh", "show", "dev", interface.name)
    assert {(n["dst"], n["lladdr"], tuple(n["state"])) for n in neighbours} == {
        ("10.244.0.1", mac_text(interface.mac), ("PERMANENT",)),
        ("fd00:10:244::1", mac_text(interface.mac), ("PERMANENT",)),
    }


@pytest.mark.parametrize(("kept", "family"), [(0, "-4"), (1, "-6")])
def test_one_family_alone(sandboxes: Sandboxes, kept: int, family: str) -> None:
    only = addresses(0)[kept : kept + 1]
    interface = sandboxes.build(pod("single"), only)
    sandboxes.activate(interface, only)
    with rig.Netns.at(interface.netns) as inside:
        assert [r["dst"] for r in show(inside, family, "route")] == ["default"]
        other = "-6" if family == "-4" else "-4"
        assert show(inside, other, "route") == []


def test_a_pod_without_addresses_is_refused(sandboxes: Sandboxes) -> None:
    with pytest.raises(ValueError, match="no address"):
        sandboxes.build(pod("p"), ())
    assert sandboxes.list_existing() == []


def test_mtu_on_both_sides(node: rig.Node, instance: str) -> None:
    sandboxes = node.call(Sandboxes, instance, mtu=1420, blanks=0)
    interface = make(sandboxes, 0)
    with rig.Netns.at(interface.netns) as inside:
        assert show(inside, "link", "show", "dev", "eth0")[0]["mtu"] == 1420
    assert show(node, "link", "show", "dev", interface.name)[0]["mtu"] == 1420
    sandboxes.destroy([pod("p0")])
    sandboxes.close()


def test_pods_and_node_reach_each_other_by_plain_routing(routing: rig.Node, sandboxes: Sandboxes) -> None:
    one, two = (rig.Netns.at(make(sandboxes, number).netns) for number in (0, 1))
    kinds = (("tcp", 80), ("udp", 53), ("sctp", 36412))
    with contextlib.ExitStack() as open_, one, two:
        for kind, port in kinds:
            open_.enter_context(probes.Server(two, kind, port, "two"))
        open_.enter_context(probes.Server(routing, "tcp", 9000, "node"))
        for target, source in (("10.244.0.2", "10.244.0.1"), ("fd00:10:244::2", "fd00:10:244::1")):
            assert probes.tcp(one, target, 80) == probes.Answer("ok", "two", source)
            assert probes.udp(one, target, 53) == probes.Answer("ok", "two", source)
            assert probes.sctp(one, target, 36412) == probes.Answer("ok", "two", source)
            assert probes.tcp(one, target, 81).result == "refused"
            assert probes.ping(one, target).result == "ok"
            assert probes.tcp(routing, target, 80).result == "ok"
        for target, source in ((rig.NODE_V4, "10.244.0.1"), (rig.NODE_V6, "fd00:10:244::1")):
            assert probes.tcp(one, target, 9000) == probes.Answer("ok", "node", source)


def test_pods_and_the_outside_reach_each_other(routing: rig.Node, sandboxes: Sandboxes, outside: rig.Outside) -> None:
    inside = rig.Netns.at(make(sandboxes, 0).netns)
    with inside, probes.Server(inside, "tcp", 80, "pod"), probes.Server(outside, "tcp", 80, "outside"):
        assert probes.tcp(outside, "10.244.0.1", 80) == probes.Answer("ok", "pod", rig.OUTSIDE_V4)
        assert probes.tcp(inside, rig.OUTSIDE_V4, 80) == probes.Answer("ok", "outside", "10.244.0.1")
        assert probes.tcp(outside, "fd00:10:244::1", 80) == probes.Answer("ok", "pod", rig.OUTSIDE_V6)
        assert probes.tcp(inside, rig.OUTSIDE_V6, 80) == probes.Answer("ok", "outside", "fd00:10:244::1")


def test_nothing_passes_before_activation(routing: rig.Node, sandboxes: Sandboxes) -> None:
    interface = sandboxes.build(pod("p0"), addresses(0))
    assert show(routing, "route", "show", "10.244.0.1") == []
    (host,) = show(routing, "link", "show", "dev", interface.name)
    assert "UP" not in host["flags"]
    with rig.Netns.at(interface.netns) as inside:
        inside.run("ping", "-c", "1", "-W", "1", rig.NODE_V4, check=False)
        (statistics,) = show(inside, "-s", "link", "show", "dev", "eth0")
        assert statistics["stats64"]["tx"]["packets"] == 0
        sandboxes.activate(interface, addresses(0))
        # The very first packet passes: no resolution, no tentative address, a connected queue.
        assert probes.ping(inside, rig.NODE_V4, timeout_s=0.5)
        assert probes.ping(inside, rig.NODE_V6, timeout_s=0.5)


def test_the_first_packet_after_activation_passes_every_time(routing: rig.Node, sandboxes: Sandboxes) -> None:
    for number in range(20):
        with rig.Netns.at(make(sandboxes, number).netns) as inside:
            target = (rig.NODE_V4, rig.NODE_V6)[number % 2]
            assert probes.ping(inside, target, timeout_s=0.5), number


def test_activate_twice_changes_nothing(node: rig.Node, sandboxes: Sandboxes) -> None:
    interface = make(sandboxes, 0)
    before = [show(node, *what) for what in (("link",), ("route",), ("-6", "route"), ("neigh",))]
    sandboxes.activate(interface, addresses(0))
    assert [show(node, *what) for what in (("link",), ("route",), ("-6", "route"), ("neigh",))] == before


def test_build_again_replaces(node: rig.Node, sandboxes: Sandboxes) -> None:
    first = make(sandboxes, 0)
    sandboxes.destroy([pod("p0")])
    second = make(sandboxes, 0)
    assert (first.mac, first.host_mac, first.netns) == (second.mac, second.host_mac, second.netns)
    assert [r["dev"] for r in show(node, "route", "show", "10.244.0.1")] == [second.name]


def test_hundred_times_leaves_nothing(node: rig.Node, sandboxes: Sandboxes) -> None:
    def state() -> tuple[object, ...]:
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, sandboxes.list_existing(), show(node, "link"), show(node, "route"), show(node, "neigh")

    make(sandboxes, 0)
    sandboxes.destroy([pod("p0")])
    before = state()
    for number in range(100):
        make(sandboxes, number)
        if number % 10 == 9:
            sandboxes.destroy([pod(f"p{n}") for n in range(number - 9, number + 1)])
    assert state() == before


def test_destroy_is_idempotent(sandboxes: Sandboxes) -> None:
    make(sandboxes, 0)
    sandboxes.destroy([pod("p0"), pod("never-was")])
    sandboxes.destroy([pod("p0")])
    assert sandboxes.list_existing() == []


def test_destroy_takes_the_link_though_a_process_holds_the_namespace(node: rig.Node, sandboxes: Sandboxes) -> None:
    interface = make(sandboxes, 0)
    with rig.Netns.at(interface.netns) as inside:
        inside.popen("sleep", "60")
        sandboxes.destroy([pod("p0")])
        assert [link["ifname"] for link in show(node, "link")] == ["lo"]
        assert [link["ifname"] for link in show(inside, "link")] == ["lo"]


def test_what_exists_is_found_by_another_agent(node: rig.Node, sandboxes: Sandboxes, instance: str) -> None:
    interface = make(sandboxes, 0)
    half = sandboxes.build(pod("half"), addresses(1)[:1])
    other = node.call(Sandboxes, instance, blanks=0)
    found = {existing.name: existing for existing in other.list_existing()}
    whole = found[namespaces.netns_name(instance, pod("p0"))]
    assert whole.interface == interface
    assert whole.addresses == set(addresses(0))
    assert found[namespaces.netns_name(instance, pod("half"))].interface == half
    other.activate(half, addresses(1)[:1])
    other.destroy_named(list(found))
    assert other.list_existing() == []
    other.close()
    assert [link["ifname"] for link in show(node, "link")] == ["lo"]


def test_leftovers_are_found_and_removed(node: rig.Node, sandboxes: Sandboxes, instance: str) -> None:
    """A name without a namespace behind it, and a namespace that lost its veth."""
    interface = make(sandboxes, 0)
    node.ip(f"link delete {interface.name}")
    bare = namespaces.path_of(namespaces.netns_name(instance, pod("bare")))
    bare.touch()
    assert [(e.interface, e.addresses) for e in sandboxes.list_existing()] == [(None, frozenset())] * 2
    sandboxes.destroy_named([e.name for e in sandboxes.list_existing()])
    assert sandboxes.list_existing() == []
    assert not bare.exists()


def test_instances_do_not_see_each_other(node: rig.Node, sandboxes: Sandboxes) -> None:
    make(sandboxes, 0)
    other = node.call(Sandboxes, rig.new_instance())
    assert other.list_existing() == []
    other.destroy([pod("p0")])
    other.close()
    assert len(sandboxes.list_existing()) == 1


def test_blanks_are_nameless_and_go_with_the_agent(node: rig.Node, instance: str) -> None:
    sandboxes = node.call(Sandboxes, instance, blanks=2)
    assert [sandboxes.refill(), sandboxes.refill(), sandboxes.refill()] == [True, False, False]
    assert len(show(node, "link")) == 3
    assert sandboxes.list_existing() == []
    sandboxes.close()
    assert len(show(node, "link")) == 1


# The agent is killed at each of these points; the child tells over its standard output that it got there.
BUILDER = """
import os, sys, time
from agent.endpoints import namespaces
from agent.endpoints.sandbox import Sandboxes
from policies.address import parse_address
from policies.model import ObjectRef

instance, step = sys.argv[1:]
def here(*_):
    print("here", flush=True)
    time.sleep(60)
addresses = (parse_address("10.244.0.1"), parse_address("fd00:10:244::1"))
sandboxes = Sandboxes(instance)
sandboxes.refill()
if step == "blank":
    here()
if step == "unnamed":
    namespaces.give_name = here
if step == "file":
    namespaces._bind = here
interface = sandboxes.build(ObjectRef("Pod", "shop", "p0"), addresses)
if step == "built":
    here()
sandboxes.activate(interface, addresses)
here()
"""


@pytest.mark.parametrize(
    ("step", "stands"), [("blank", []), ("unnamed", []), ("file", [False]), ("built", [True]), ("active", [True])]
)
def test_killed_while_building_leaves_nothing_after_cleanup(
    node: rig.Node, instance: str, step: str, stands: list[bool]
) -> None:
    sandboxes = node.call(Sandboxes, instance, blanks=0)
    child = node.popen(sys.executable, "-c", BUILDER, instance, step, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    found = sandboxes.list_existing()
    assert [existing.interface is not None for existing in found] == stands
    sandboxes.destroy_named([existing.name for existing in found])
    assert sandboxes.list_existing() == []
    rig.wait_until(lambda: len(show(node, "link")) == 1, what="no link but lo")
    assert show(node, "route") == []
    sandboxes.close()


NAMES = [
    ("shop", "web-0", "gh-i1-shop.web-0"),
    ("shop", "a.b", "gh-i1-shop.a.b"),
]


@pytest.mark.parametrize(("namespace", "name", "expected"), NAMES)
def test_usual_names_are_readable(namespace: str, name: str, expected: str) -> None:
    assert namespaces.netns_name("i1", pod(name, namespace)) == expected


ODD = ["", "..", "../../etc", "a/b", "a b", "A", "ä", "x" * 63, "x" * 253, "x" * 300, "a.b", "a_b", "a-b", "a\n", "-"]


def test_odd_names_are_valid_file_names_and_unique() -> None:
    names: dict[str, tuple[str, str]] = {}
    for namespace, name in itertools.product(ODD, ODD):
        made = namespaces.netns_name("i1", pod(name, namespace))
        assert len(made.encode()) <= 255
        assert "/" not in made
        assert made.startswith("gh-i1-")
        assert names.setdefault(made, (namespace, name)) == (namespace, name)


@pytest.mark.parametrize("instance", ["", "a-b", "a/b", "x" * 33])
def test_an_instance_that_makes_no_name_is_refused(instance: str) -> None:
    with pytest.raises(ValueError, match="instance"):
        namespaces.netns_name(instance, pod("p"))


def test_a_pod_with_an_odd_name_can_be_built(node: rig.Node, sandboxes: Sandboxes) -> None:
    odd = pod("Ä/../" + "x" * 300, "..")
    interface = sandboxes.build(odd, addresses(0))
    sandboxes.activate(interface, addresses(0))
    assert str(Path(interface.netns).parent) == "/run/netns"
    assert interface.netns.rsplit("/", 1)[1] in node.run("ip", "netns").stdout
    sandboxes.destroy([odd])
    assert sandboxes.list_existing() == []


def test_macs_are_local_unicast_stable_and_differ() -> None:
    macs = {derive_mac(side, a) for side in ("pod", "host") for n in range(500) for a in addresses(n)}
    assert len(macs) == 2000
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in macs)


def test_the_kernels_reason_is_in_the_error(sandboxes: Sandboxes) -> None:
    with pytest.raises(NetlinkError, match=r"set link 99999 up: No such device"):
        sandboxes.activate(Interface(99999, "none", bytes(6), bytes(6), "/nowhere"), ())


def test_the_callers_namespace_stays_the_same(sandboxes: Sandboxes) -> None:
    before = Path("/proc/thread-self/ns/net").stat().st_ino
    make(sandboxes, 0)
    sandboxes.refill()
    sandboxes.list_existing()
    sandboxes.destroy([pod("p0")])
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before


def test_time_does_not_grow_with_the_number_of_pods(sandboxes: Sandboxes, capsys: pytest.CaptureFixture[str]) -> None:
    """With a blank ready, as when pods come one at a time."""
    spent: list[float] = []
    for number in range(200):
        sandboxes.refill()
        begin = time.perf_counter()
        make(sandboxes, number)
        spent.append((time.perf_counter() - begin) * 1e3)
    few, many = spent[10:40], spent[-30:]
    with capsys.disabled():
        print(
            f"\n  build and activate: {median(few):.2f} ms at 10 pods, {median(many):.2f} ms at 200; "
            f"p99 {sorted(spent)[int(len(spent) * 0.99)]:.2f} ms"
        )
    assert min(many) < 3 * min(few), "the fastest of each: what others make the machine do meanwhile is not in it"
