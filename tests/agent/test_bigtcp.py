"""BIG TCP's limits: which (pure), and on real links of a scratch node, there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

from agent import bigtcp
from agent.bigtcp import SIZE, USUAL, BigTcp, common, of_device, of_pod, put_back
from agent.config import build
from agent.endpoints import links
from agent.endpoints.links import Limits
from agent.endpoints.netlink import Request, RouteSocket
from agent.objects import Interface

KNOWN = Limits(USUAL, USUAL, USUAL, USUAL, 524280)
RAISED = Limits(SIZE, SIZE, SIZE, SIZE, 524280)
NO_IPV4 = Limits(USUAL, USUAL, None, None, 524280)
OLD = Limits(USUAL)

DEVICES = [
    ({}, SIZE, ""),
    ({"eth0": KNOWN}, SIZE, ""),
    ({"eth0": RAISED}, SIZE, ""),
    ({"eth0": KNOWN, "eth1": KNOWN._replace(most=131072)}, 131072, ""),
    ({"eth0": KNOWN, "eth1": KNOWN._replace(most=65536)}, USUAL, "device eth1 takes packets of at most 65536 bytes"),
    ({"eth0": KNOWN._replace(most=1 << 14)}, USUAL, "device eth0 takes packets of at most 16384 bytes"),
    ({"eth0": KNOWN._replace(gso=32768)}, USUAL, "device eth0 takes packets of at most 32768 bytes"),
    ({"eth0": NO_IPV4}, SIZE, "for IPv6 only"),
    ({"eth0": OLD}, USUAL, "does not say what eth0 takes"),
]


@pytest.mark.parametrize(("found", "size", "says"), DEVICES)
def test_the_size_is_what_all_devices_take(found: dict[str, Limits], size: int, says: str) -> None:
    got, problems = common(found)
    assert got == size
    assert [says in problem for problem in problems] == [True] * bool(says)


POD_LIMITS = [  # found, size, IPv6 too → what is set
    (KNOWN, SIZE, True, Limits(SIZE, SIZE, SIZE, SIZE)),
    (KNOWN, SIZE, False, Limits(None, None, SIZE, SIZE)),
    (RAISED, SIZE, True, Limits()),
    (RAISED, 131072, True, Limits(131072, 131072, 131072, 131072)),
    (RAISED, USUAL, False, Limits(USUAL, USUAL, USUAL, USUAL)),
    (RAISED, SIZE, False, Limits(USUAL, USUAL, SIZE, SIZE)),
    (KNOWN, USUAL, False, Limits()),
    (NO_IPV4, SIZE, True, Limits(SIZE, SIZE)),
    (NO_IPV4._replace(gso=SIZE, gro=SIZE), USUAL, False, Limits(USUAL, USUAL)),
    (KNOWN._replace(gso=1000), SIZE, True, Limits(None, SIZE, SIZE, SIZE)),
]


@pytest.mark.parametrize(("found", "size", "ipv6", "wanted"), POD_LIMITS)
def test_limits_of_pods(found: Limits, size: int, ipv6: bool, wanted: Limits) -> None:
    assert of_pod(found, size, ipv6) == wanted


def test_what_comes_in_of_ipv6_stays_small_on_devices() -> None:
    assert of_device(KNOWN, SIZE) == Limits(gso=SIZE, gso_ipv4=SIZE, gro_ipv4=SIZE)
    assert of_device(NO_IPV4, SIZE) == Limits(gso=SIZE)
    assert of_device(RAISED._replace(gro=USUAL), SIZE) == Limits()


def test_what_somebody_has_changed_since_is_not_put_back() -> None:
    before = Limits(60000, USUAL, 60000, USUAL)
    found = Limits(SIZE, USUAL, SIZE, 100_000)
    assert put_back(found, before, SIZE) == Limits(60000, None, 60000, None)


# ---- on links


def here(limits: Limits) -> Limits:
    """As far as this kernel knows them."""
    with RouteSocket() as route:
        known = links.read_limits(route.request(links.get_link("lo"))[0])
    return Limits(*(wanted if limit is not None else None for limit, wanted in zip(known, limits, strict=True)))


class Site:
    """A node with a device eth0, and a pod."""

    def __init__(self, node: rig.Netns, outside: rig.Netns, pod: rig.Netns, state: Path) -> None:
        self.node, self.outside, self.pod, self.saved = node, outside, pod, state / "bigtcp.json"
        node.ip(f"link add eth0 type veth peer name eth0 netns {outside.name}", "link set eth0 up")
        outside.ip("link set eth0 up")
        node.ip("address add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.2")
        node.ip(f"link add gh0123456789ab mtu 1400 type veth peer name eth0 mtu 1400 netns {pod.name}")
        pod.ip("link set lo up", "link set eth0 up")
        index = node.call(lambda: self.link("gh0123456789ab")[0])
        self.interface = Interface(index, "gh0123456789ab", bytes(6), bytes(6), pod.path)

    def link(self, name: str) -> tuple[int, Limits]:
        with RouteSocket() as route:
            reply = route.request(links.get_link(name))[0]
            return links.read_link(reply).ifindex, links.read_limits(reply)._replace(most=None)

    @property
    def device(self) -> Limits:
        return self.node.call(lambda: self.link("eth0")[1])

    @property
    def pods(self) -> tuple[Limits, Limits, str]:
        """Both sides, and the pod's IPv6 MTU."""
        host = self.node.call(lambda: self.link("gh0123456789ab")[1])
        mtu = self.pod.call(lambda: Path("/proc/sys/net/ipv6/conf/eth0/mtu").read_text())
        return host, self.pod.call(lambda: self.link("eth0")[1]), mtu.strip()

    def agent(self, on: bool = True, **texts: str) -> BigTcp:
        settings = {"manifests": "/nowhere", "big_tcp": "true" if on else "false", **texts}
        return self.node.call(BigTcp, build(settings), (), self.saved)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with rig.Netns("big") as node, rig.Netns("bigout") as outside, rig.Netns("bigpod") as pod:
        yield Site(node, outside, pod, tmp_path)


PLAIN = here(Limits(USUAL, USUAL, USUAL, USUAL))
FULL = here(Limits(SIZE, SIZE, SIZE, SIZE))
ON_DEVICE = here(Limits(SIZE, USUAL, SIZE, SIZE))
PROBLEMS = [] if FULL.gso_ipv4 else ["there is BIG TCP for IPv6 only: this kernel has none for IPv4 (Linux 6.3 has)"]


def test_on_and_off(site: Site) -> None:
    assert (site.device, site.pods) == (PLAIN, (PLAIN, PLAIN, "1400"))
    first = site.agent()
    first.apply_devices()
    first.apply(site.interface)
    assert (first.problems, first.size) == (PROBLEMS, SIZE)
    assert (site.device, site.pods) == (ON_DEVICE, (FULL, FULL, "1392"))
    first.close()
    again = site.agent()
    again._start([site.interface])
    again.close()
    assert (site.device, site.pods) == (ON_DEVICE, (FULL, FULL, "1392"))
    off = site.agent(on=False)
    off._start([site.interface])
    off.close()
    assert (site.device, site.pods) == (PLAIN, (PLAIN, PLAIN, "1400"))
    assert not site.saved.exists()


def test_cleanup_puts_back_what_was_before(site: Site) -> None:
    index, _ = site.node.call(lambda: site.link("eth0"))
    set_by_hand = here(Limits(70_000, 70_000, 70_000, 80_000))
    site.node.call(request, links.set_limits(index, set_by_hand))
    agent = site.agent()
    agent.apply_devices()
    agent.apply_devices()
    agent.close()
    assert site.device == here(Limits(SIZE, 70_000, SIZE, SIZE))
    site.node.call(bigtcp.restore, site.saved)
    assert site.device == set_by_hand
    assert not site.saved.exists()


def test_nothing_is_put_back_in_another_namespace(site: Site) -> None:
    agent = site.agent()
    agent.apply_devices()
    agent.close()
    site.outside.call(request, links.set_limits(site.outside.call(lambda: site.link("eth0")[0]), ON_DEVICE))
    site.outside.call(bigtcp.restore, site.saved)
    assert site.outside.call(lambda: site.link("eth0")[1]) == ON_DEVICE


def test_a_device_that_takes_no_such_packets_keeps_all_small(site: Site) -> None:
    agent = site.agent(devices="eth0,small")
    agent.apply_devices()
    agent.apply(site.interface)
    assert site.pods == (FULL, FULL, "1392")
    site.node.ip("link add small type bridge", "link set small up")
    agent.apply_devices()
    assert agent.problems == ["there is no BIG TCP: device small takes packets of at most 65536 bytes", *PROBLEMS]
    assert site.pods == (PLAIN, PLAIN, "1400")
    site.node.ip("link del small")
    agent.apply_devices()
    assert (agent.problems, agent.size) == (PROBLEMS, SIZE)
    assert site.pods == (FULL, FULL, "1392")
    agent.close()


def test_pods_that_are_gone_are_no_problem(site: Site) -> None:
    agent = site.agent()
    agent.apply_devices()
    agent.apply(site.interface)
    other = Interface(site.interface.index, "gh000000000000", bytes(6), bytes(6), site.pod.path)
    agent.apply(other)  # its number is another link's now
    site.node.ip("link del gh0123456789ab")
    agent.apply(site.interface)
    agent.apply(Interface(99, "gh0123456789ab", bytes(6), bytes(6), "/run/netns/none-such"))
    assert agent.problems == PROBLEMS
    agent.close()


def test_small_mtus_leave_ipv6_as_it_is(site: Site) -> None:
    site.node.ip("link set gh0123456789ab mtu 1280")
    site.pod.ip("link set eth0 mtu 1280")
    agent = site.agent()
    agent.apply(site.interface)
    agent.apply_devices()
    only_v4 = here(Limits(USUAL, USUAL, SIZE, SIZE))
    assert site.pods == (only_v4, only_v4, "1280")
    agent.close()


def test_what_is_kept_is_what_was(site: Site) -> None:
    agent = site.agent()
    agent.apply_devices()
    agent.close()
    record = json.loads(site.saved.read_bytes())
    assert (record["size"], record["before"]) == (SIZE, {"eth0": list(PLAIN[:4])})


def request(one: Request) -> None:
    with RouteSocket() as route:
        route.request(one)
