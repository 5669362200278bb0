"""Programs on the node's devices, in a node of the test's own: attached, followed, replaced, taken off."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
from small_datapath import NETWORK_PROGRAM, write_source

from agent.config import Config, build
from agent.datapath import abi, devices, network, xdp
from agent.datapath.changes import Changes
from agent.datapath.maps import Maps
from agent.datapath.network import Network
from agent.datapath.pins import Pins
from agent.datapath.programs import NETWORK, NETWORK_PROGRAMS, Programs, ensure_loaded
from policies.address import parse_address

OWN = (parse_address(rig.NODE_V4), parse_address(rig.NODE_V6))
DEVICE = abi.load().records["device"]
CONFIG = abi.load().records["config"]


def config(**texts: str) -> Config:
    return build({"manifests": "m", **texts})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path, NETWORK_PROGRAM)


@pytest.fixture
def network_programs(maps: Maps, pins: Pins, source: Path) -> Iterator[Programs]:
    with ensure_loaded(maps, pins, source, NETWORK_PROGRAMS) as programs:
        yield programs


class Bench:
    """A node with one link outside, and the parts a Network is made of."""

    def __init__(self, outside: rig.Outside, maps: Maps, pins: Pins, programs: Programs) -> None:
        self.outside, self.node, self.maps, self.pins, self.programs = outside, outside.node, maps, pins, programs

    def network(self, programs: Programs | None = None, **texts: str) -> Network:
        made: Network = self.node.call(
            Network, config(**texts), self.maps, self.pins, self.programs if programs is None else programs, OWN
        )
        return made

    def sync(self, programs: Programs | None = None, **texts: str) -> Network:
        """What a start does. The problems it found are those of the network that is returned."""
        made = self.network(programs, **texts)
        try:
            self.node.call(made.sync)
        finally:
            made.close()
        return made

    def filters(self, device: str = "") -> list[str]:
        """Names of what is on its ingress and egress."""
        shown = [
            self.node.run("tc", "filter", "show", "dev", device or self.outside.link, hook).stdout
            for hook in ("ingress", "egress")
        ]
        return re.findall(r"handle 0x1 ([^\s:]+)", "".join(shown))

    def qdiscs(self) -> str:
        return self.node.run("tc", "qdisc", "show", "dev", self.outside.link).stdout

    def xdp_mode(self) -> str:
        """ "xdp" in the driver, "xdpgeneric", or "" where there is no program."""
        shown = self.node.run("ip", "link", "show", "dev", self.outside.link).stdout
        found = re.search(r"\b(xdp|xdpgeneric)\b", shown)
        return found[1] if found else ""

    def known(self) -> dict[int, Any]:
        return {int.from_bytes(key, "little"): DEVICE.unpack(value) for key, value in self.maps["devices"].items()}

    def ifindex(self) -> int:
        return self.node.call(socket.if_nametoindex, self.outside.link)


@pytest.fixture
def bench(outside: rig.Outside, maps: Maps, pins: Pins, network_programs: Programs) -> Bench:
    return Bench(outside, maps, pins, network_programs)


def names(programs: Programs) -> list[str]:
    return [f"gatehouse/{name}/{programs.source_hash}" for name in ("from_network", "to_network")]


def test_attached_and_known(bench: Bench) -> None:
    made = bench.sync(devices=bench.outside.link)
    assert made.problems == []
    assert made.attached == {"from_network": 1, "to_network": 1}
    assert bench.filters() == names(bench.programs)
    ((ifindex, known),) = bench.known().items()
    assert ifindex == bench.ifindex()
    assert (known.ipv4, known.ipv6, known.mtu) == (*OWN, 1500)
    assert known.mac.hex(":") in bench.node.run("ip", "link", "show", bench.outside.link).stdout
    before = bench.node.run("tc", "-d", "filter", "show", "dev", bench.outside.link, "ingress").stdout
    bench.sync(devices="auto")
    assert bench.node.run("tc", "-d", "filter", "show", "dev", bench.outside.link, "ingress").stdout == before
    bench.outside.run("ping", "-c", "1", "-W", "2", rig.NODE_V4)
    counts = bench.maps["drops"].sums()
    assert counts[1] >= 1
    assert counts[2] >= 1


def test_a_new_version_takes_the_place_of_the_old(bench: Bench, source: Path) -> None:
    bench.sync(devices=bench.outside.link, xdp="auto")
    source.write_text(NETWORK_PROGRAM.replace("seen(3)", "seen(4)"))
    with bench.node.popen("tc", "monitor", stdout=-1) as monitor:
        with ensure_loaded(bench.maps, bench.pins, source, NETWORK_PROGRAMS) as newer:
            made = bench.sync(newer, devices=bench.outside.link, xdp="auto")
            assert bench.filters() == names(newer)
            assert made.attached == {"from_network": 1, "to_network": 1, "xdp_network": 1}
        monitor.terminate()
        assert "deleted" not in (monitor.communicate()[0] or b"").decode()
    bench.outside.run("ping", "-c", "1", "-W", "2", rig.NODE_V4)
    assert bench.maps["drops"].sums()[4] >= 1


def test_a_setting_taken_back_takes_everything_off(bench: Bench) -> None:
    bench.sync(devices=bench.outside.link, xdp="generic")
    assert bench.xdp_mode() == "xdpgeneric"
    made = bench.sync(Programs("", {}))
    assert (made.problems, made.attached) == ([], {})
    assert (bench.filters(), bench.xdp_mode(), bench.known()) == ([], "", {})
    assert "clsact" not in bench.qdiscs()


def test_where_programs_did_not_load_those_of_before_go(bench: Bench) -> None:
    """They may use maps that nobody writes any more."""
    bench.sync(devices=bench.outside.link)
    bench.sync(Programs("", {}), devices=bench.outside.link)
    assert (bench.filters(), bench.known()) == ([], {})


def test_what_others_attached_is_left_alone(bench: Bench) -> None:
    link = bench.outside.link
    pinned = bench.pins.programs(bench.programs.source_hash) / "to_network"
    bench.node.run("tc", "qdisc", "add", "dev", link, "clsact")
    theirs = f"tc filter add dev {link} ingress prio 1 handle 1 bpf da object-pinned {pinned}"
    bench.node.run(*theirs.split())
    made = bench.sync(devices=link)
    assert len(made.problems) == 1
    assert f"device {link}: somebody else's filter" in made.problems[0]
    assert made.attached == {}
    assert bench.filters() == ["to_network"]
    bench.node.run("tc", "filter", "del", "dev", link, "ingress", "prio", "1")
    bench.node.run(*theirs.replace("prio 1", "prio 7").split())
    assert bench.sync(devices=link).problems == []
    bench.sync(Programs("", {}))
    assert bench.filters() == ["to_network"]
    assert "clsact" in bench.qdiscs(), "something is on it"


# The bench's device is one end of a veth pair: there `auto` is generic.
XDP_MODES = [("native", "xdp"), ("auto", "xdpgeneric"), ("generic", "xdpgeneric")]


@pytest.mark.parametrize(("setting", "mode"), XDP_MODES)
def test_xdp(bench: Bench, setting: str, mode: str) -> None:
    """A veth takes it in its driver. The mode follows the setting; it stays when the agent's descriptors are closed."""
    made = bench.sync(devices=bench.outside.link, xdp=setting)
    assert (made.problems, bench.xdp_mode()) == ([], mode)
    assert made.attached["xdp_network"] == 1
    bench.outside.run("ping", "-c", "1", "-W", "2", rig.NODE_V4)
    assert bench.maps["drops"].sums()[3] >= 1
    other = "generic" if mode == "xdp" else "native"
    bench.sync(devices=bench.outside.link, xdp=other)
    assert bench.xdp_mode() != mode
    bench.sync(devices=bench.outside.link)
    assert bench.xdp_mode() == ""
    assert xdp.attached(bench.pins.links) == []


def test_a_driver_without_xdp(bench: Bench) -> None:
    bench.node.ip("link add plain0 type bridge", "link set plain0 up")
    made = bench.sync(devices="plain0", xdp="native")
    assert made.problems == [
        "device plain0 does not take XDP (native: Operation not supported); --xdp auto takes the generic hook instead"
    ]
    assert made.attached == {"from_network": 1, "to_network": 1}, "tc does it all the same"
    made = bench.sync(devices="plain0", xdp="auto")
    assert made.problems == []
    assert made.attached["xdp_network"] == 1


def test_the_xdp_program_of_others_stays(bench: Bench, source: Path) -> None:
    link = bench.outside.link
    pinned = bench.pins.programs(bench.programs.source_hash) / "xdp_network"
    for mode in ("xdpgeneric", "xdpdrv"):
        bench.node.run("ip", "link", "set", link, mode, "pinned", str(pinned))
        source.write_text(NETWORK_PROGRAM + f"/* for {mode} */")
        with ensure_loaded(bench.maps, bench.pins, source, NETWORK_PROGRAMS) as newer:
            made = bench.sync(newer, devices=link, xdp="auto")
        assert "has an XDP program of somebody else" in made.problems[0]
        assert made.attached["xdp_network"] == 0
        bench.node.run("ip", "link", "set", link, mode, "off")


def test_a_device_of_the_same_number_elsewhere(bench: Bench) -> None:
    """A link that holds a program in another namespace does not pass for one here."""
    bench.sync(devices=bench.outside.link, xdp="generic")
    with rig.Node() as other:
        other.ip(f"link add same0 index {bench.ifindex()} type bridge")
        moved = other.call(Network, config(devices="same0", xdp="generic"), bench.maps, bench.pins, bench.programs, OWN)
        other.call(moved.sync)
        moved.close()
        assert moved.problems == []
        assert "xdpgeneric" in other.run("ip", "link", "show", "same0").stdout
        assert bench.xdp_mode() == "", "it went along"


def test_missing_devices_are_named_and_full_maps_too(bench: Bench) -> None:
    made = bench.sync(devices=f"{bench.outside.link},late0")
    assert made.problems == ["device late0 is not there: it is used as soon as it appears"]
    assert made.attached["from_network"] == 1


def test_where_pods_keep_their_addresses(bench: Bench) -> None:
    """unmasqueraded: the cluster, what is excluded, the node; what is stale goes."""

    def blocks() -> set[str]:
        key = abi.load().records["ipcache_key"]
        return {
            f"{address.hex()}/{bits}"
            for bits, address in (key.unpack(found) for found, _ in bench.maps["unmasqueraded"].items())
        }

    def expected(*texts: str) -> set[str]:
        return {f"{parse_address(text.split('/')[0]).hex()}/{text.split('/')[1]}" for text in texts}

    common = (f"{rig.NODE_V4}/128", f"{rig.NODE_V6}/128", "10.244.0.0/120", "fd00:10:244::/64")
    bench.sync(
        devices=bench.outside.link, masquerade="true", cluster_cidrs="10.0.0.0/8", masquerade_exclude="172.16.0.0/12"
    )
    assert blocks() == expected(*common, "10.0.0.0/104", "172.16.0.0/108")
    bench.node.ip(f"address add 198.51.100.7/24 dev {bench.outside.link}")
    bench.sync(devices=bench.outside.link, masquerade="true")
    assert blocks() == expected(*common, "198.51.100.7/128")


def test_devices_and_addresses_are_followed(bench: Bench) -> None:
    """A device that appears is attached, what is known of one follows its addresses, one that goes is forgotten."""

    async def watch() -> None:
        made = Network(config(devices=f"{bench.outside.link},late0"), bench.maps, bench.pins, bench.programs, OWN)
        made.sync()
        following = asyncio.create_task(made.follow())

        async def until(condition: Any) -> None:
            async with asyncio.timeout(60):
                while not condition():
                    assert not following.done(), following
                    await asyncio.sleep(0.01)

        async def ip(*words: str) -> None:
            await asyncio.to_thread(bench.node.run, "ip", *words)

        try:
            await ip("link", "add", "late0", "type", "veth", "peer", "name", "late1")
            await until(lambda: len(bench.known()) == 2)
            await until(lambda: made.attached["from_network"] == 2 and made.problems == [])
            assert bench.filters("late0") == names(bench.programs)
            await ip("address", "add", "203.0.113.5/24", "dev", "late0")
            await until(lambda: parse_address("203.0.113.5") in [known.ipv4 for known in bench.known().values()])
            await asyncio.to_thread(bench.node.run, "tc", "qdisc", "del", "dev", "late0", "clsact")
            await until(
                lambda: bench.filters("late0") == names(bench.programs)
            )  # others' tools may clear all of a device
            await ip("link", "set", "late0", "mtu", "1400")
            await until(lambda: 1400 in [known.mtu for known in bench.known().values()])
            await ip("link", "del", "late0")
            await until(lambda: len(bench.known()) == 1)
            assert made.problems == ["device late0 is not there: it is used as soon as it appears"]
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            made.close()

    bench.node.call(lambda: asyncio.run(watch()))


class Encrypting:
    """A device that stands for WireGuard's, and a Network that is told of it."""

    def __init__(self, bench: Bench, programs: Programs) -> None:
        self.bench = bench
        self.made = bench.network(programs, devices=bench.outside.link)
        self.bench.node.ip("tuntap add wg0 mode tun", "link set wg0 up")
        self.ifindex = bench.node.call(socket.if_nametoindex, "wg0")

    def set(self, ifindex: int) -> None:
        self.bench.node.call(self.made.set_wireguard, ifindex)

    def known(self) -> tuple[int, int]:
        """The indexes the datapath has: of the device, and of that by which decrypted packets go on."""
        value = self.bench.maps["config"].lookup(bytes(4))
        assert value is not None
        config = CONFIG.unpack(value)
        return config.wireguard_ifindex, config.decrypted_ifindex

    def program(self) -> list[str]:
        return [name.split("/")[1] for name in self.bench.filters("wg0")]


@pytest.fixture
def encrypting(bench: Bench, source: Path) -> Iterator[Encrypting]:
    with ensure_loaded(bench.maps, bench.pins, source, NETWORK.programs) as programs:
        encrypting = Encrypting(bench, programs)
        yield encrypting
        encrypting.made.close()


def test_the_wireguard_device(encrypting: Encrypting) -> None:
    bench = encrypting.bench
    encrypting.set(encrypting.ifindex)
    assert encrypting.made.problems == []
    assert encrypting.made.attached == {"from_network": 1, "to_network": 1, "from_wireguard": 1}
    assert encrypting.program() == ["from_wireguard"]
    assert encrypting.known() == (encrypting.ifindex, bench.ifindex())
    encrypting.set(0)
    assert (encrypting.program(), encrypting.made.attached["from_wireguard"]) == ([], 0)
    assert encrypting.known() == (0, bench.ifindex()), "what is still on its way is let in"


def test_until_it_is_known_all_stays_as_it_was(encrypting: Encrypting) -> None:
    """An earlier agent's device goes on meanwhile."""
    encrypting.set(encrypting.ifindex)
    bench = encrypting.bench
    later = bench.network(encrypting.made._programs, devices=bench.outside.link)
    bench.node.call(later.sync)
    later.close()
    assert encrypting.program() == ["from_wireguard"]
    assert encrypting.known() == (encrypting.ifindex, bench.ifindex())


def test_decrypted_packets_go_on_by_the_tunnel(encrypting: Encrypting) -> None:
    """By which they would come otherwise: no filter of the node's devices looks there for the way back."""
    node = encrypting.bench.node
    node.ip(f"link add {devices.TUNNEL} type vxlan id 1 dstport 0 local {rig.NODE_V4}")
    encrypting.set(encrypting.ifindex)
    assert encrypting.known()[1] == node.call(socket.if_nametoindex, devices.TUNNEL)
    node.ip(f"link delete {devices.TUNNEL}")
    node.call(encrypting.made.sync)
    assert encrypting.known()[1] == encrypting.bench.ifindex()


def test_a_device_that_is_lost_is_not_gone_round(encrypting: Encrypting) -> None:
    """What would be given to it is dropped, not sent in plaintext."""
    encrypting.set(encrypting.ifindex)
    encrypting.bench.node.ip("tuntap delete wg0 mode tun")
    encrypting.bench.node.call(encrypting.made.sync)
    assert encrypting.known()[0] == encrypting.ifindex
    (problem,) = encrypting.made.problems
    assert "nothing can be decrypted" in problem
    encrypting.bench.node.ip("tuntap add wg0 mode tun", "link set wg0 up")
    again = encrypting.bench.node.call(socket.if_nametoindex, "wg0")
    encrypting.set(again)
    assert (encrypting.made.problems, encrypting.program(), encrypting.known()[0]) == ([], ["from_wireguard"], again)


def test_a_program_taken_off_is_put_back(encrypting: Encrypting) -> None:
    async def watch() -> None:
        following = asyncio.create_task(encrypting.made.follow())
        encrypting.made.set_wireguard(encrypting.ifindex)
        await asyncio.to_thread(encrypting.bench.node.run, "tc", "qdisc", "del", "dev", "wg0", "clsact")
        async with asyncio.timeout(60):
            while encrypting.program() != ["from_wireguard"]:
                await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    encrypting.bench.node.call(lambda: asyncio.run(watch()))


def test_pods_links_do_not_matter(outside: rig.Outside) -> None:
    """Nor do their routes: a burst of pod starts is no reason to look at every device."""

    async def changes() -> bool:
        made = Changes(network._GROUPS, lambda kind, body: devices.may_matter(kind, body, ()))
        try:
            async with made:
                for command in (
                    "link add gh0123456789ab type veth peer name gh0123456789ac",
                    "link set gh0123456789ab up",
                    "route add 10.244.0.9/32 dev gh0123456789ab",
                    "link del gh0123456789ab",
                ):
                    await asyncio.to_thread(outside.node.run, "ip", *command.split())
                # The socket's messages are in order: once this one has been seen, those before it have been.
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await made.wait()
                await asyncio.to_thread(outside.node.run, "ip", "route", "add", "default", "dev", outside.link)
                async with asyncio.timeout(60):
                    await made.wait()
            return True
        finally:
            made.close()

    assert outside.node.call(lambda: asyncio.run(changes()))


def test_detached_from_wherever(bench: Bench) -> None:
    """What `gatehouse cleanup` does, in the node's namespace for tc and from any for XDP."""
    bench.sync(devices=bench.outside.link, xdp="auto")
    assert bench.node.call(network.detach_all, frozenset({0})) == 0, "those of another instance"
    assert bench.filters() == names(bench.programs)
    assert bench.node.call(network.detach_all, bench.maps.ids()) == 1
    assert bench.node.call(network.detach_all, bench.maps.ids()) == 0
    (ifindex,) = xdp.attached(bench.pins.links)
    assert xdp.detach(bench.pins.links, ifindex)
    assert not xdp.detach(bench.pins.links, ifindex)
    assert (bench.filters(), bench.xdp_mode()) == ([], "")
