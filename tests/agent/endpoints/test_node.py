"""The node's namespace: what is changed, what is put back, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import rig

from agent.endpoints import namespaces, node
from policies.address import parse_address

WANTED = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
}
NODE_ADDRESSES = {parse_address(rig.NODE_V4), parse_address(rig.NODE_V6)}


def sysctls(netns: rig.Netns) -> dict[str, str]:
    """Everything below net.ipv4.conf and net.ipv6.conf that can be set, and ip_forward."""

    def read() -> dict[str, str]:
        base = Path("/proc/sys/net")
        found = {"ipv4/ip_forward": (base / "ipv4/ip_forward").read_text().strip()}
        for path in sorted([*base.glob("ipv4/conf/*/*"), *base.glob("ipv6/conf/*/*")]):
            if path.name not in ("stable_secret", "mtu") and path.stat().st_mode & 0o200:
                found[str(path.relative_to(base))] = path.read_text().strip()
        return found

    return netns.call(read)


def prepare(netns: rig.Netns, saved: Path, *fallback: str) -> set[bytes]:
    return set(netns.call(node.prepare, saved, False, tuple(map(parse_address, fallback))))


def test_prepared_and_restored(outside: rig.Outside, tmp_path: Path) -> None:
    """With an interface that others configured: it forwards while the agent runs, and is as before after it."""
    scratch = outside.node
    scratch.sysctl(ipv4__conf__all__rp_filter="1", ipv4__ip_forward="0")
    before = sysctls(scratch)
    assert prepare(scratch, tmp_path / "saved") == NODE_ADDRESSES
    during = sysctls(scratch)
    assert {key: during[key] for key in WANTED} == WANTED
    assert during[f"ipv4/conf/{outside.link}/forwarding"] == during[f"ipv6/conf/{outside.link}/forwarding"] == "1"
    assert during[f"ipv6/conf/{outside.link}/accept_ra"] == "2"  # router advertisements still count
    scratch.call(node.restore, tmp_path / "saved")
    assert sysctls(scratch) == before
    assert not (tmp_path / "saved").exists()


def test_after_a_crash_the_first_values_are_put_back(node_and_saved: tuple[rig.Node, Path]) -> None:
    scratch, saved = node_and_saved
    scratch.sysctl(ipv4__conf__all__rp_filter="1")
    before = sysctls(scratch)
    prepare(scratch, saved)
    scratch.sysctl(ipv4__conf__all__rp_filter="2")
    prepare(scratch, saved)  # the next agent finds most of it done
    assert sysctls(scratch)["ipv4/conf/all/rp_filter"] == "0"
    scratch.call(node.restore, saved)
    assert sysctls(scratch) == before


@pytest.fixture
def node_and_saved(node: rig.Node, tmp_path: Path) -> tuple[rig.Node, Path]:
    return node, tmp_path / "state" / "node-sysctls.json"


def test_restoring_what_was_never_changed_or_belongs_elsewhere_does_nothing(
    node_and_saved: tuple[rig.Node, Path],
) -> None:
    scratch, saved = node_and_saved
    scratch.call(node.restore, saved)
    prepare(scratch, saved)
    with rig.Node() as other:
        other.sysctl(ipv4__ip_forward="1")
        before = sysctls(other)
        other.call(node.restore, saved)
        assert sysctls(other) == before


def test_loopback_comes_up(root: None, tmp_path: Path) -> None:
    with rig.Node() as scratch:
        scratch.ip("link set lo down")
        prepare(scratch, tmp_path / "saved")
        assert "UP" in scratch.run("ip", "link", "show", "lo").stdout


FALLBACKS = [
    ((), {"10.244.0.250", "fd00::fa"}),
    (("192.0.2.9",), {"192.0.2.9", "fd00::fa"}),
    (("2001:db8::9",), {"2001:db8::9", "10.244.0.250"}),
    (("192.0.2.9", "2001:db8::9"), {"192.0.2.9", "2001:db8::9"}),
]


@pytest.mark.parametrize(("own", "expected"), FALLBACKS)
def test_an_address_where_the_node_has_none(
    root: None, tmp_path: Path, own: tuple[str, ...], expected: set[str]
) -> None:
    with rig.Node(addresses=own) as scratch:
        found = prepare(scratch, tmp_path / "saved", "10.244.0.250", "fd00::fa")
        assert found == set(map(parse_address, expected))
        assert found == set(scratch.call(node.addresses))


def test_link_local_and_loopback_addresses_are_not_the_nodes(outside: rig.Outside) -> None:
    assert set(outside.node.call(node.addresses)) == NODE_ADDRESSES
    assert "fe80::" in outside.node.run("ip", "-6", "address").stdout


def test_the_machines_own_settings_are_not_touched_without_leave(
    node_and_saved: tuple[rig.Node, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scratch node passes for the machine's first namespace."""
    scratch, saved = node_and_saved
    monkeypatch.setattr(namespaces, "is_initial", lambda: True)
    before = sysctls(scratch)
    with pytest.raises(node.NodeRefused, match=r"net\.ipv4\.ip_forward=1"):
        scratch.call(node.prepare, saved, False)
    assert sysctls(scratch) == before
    assert not saved.exists()
    scratch.call(node.prepare, saved, True)
    assert sysctls(scratch)["ipv4/ip_forward"] == "1"
    # Nothing is left to change, so nothing is refused.
    scratch.call(node.prepare, saved, False)


def test_the_first_namespace_is_recognised(node: rig.Node) -> None:
    machine = namespaces.machine_namespace("net")
    assert machine is not None
    assert namespaces.is_initial() is (machine.stat().st_ino == Path(namespaces.CURRENT).stat().st_ino)
    assert node.call(namespaces.is_initial) is False


MERGED = [
    ("", [(30000, 32767)], "30000-32767"),
    ("8080", [(30000, 32767)], "8080,30000-32767"),
    ("40000-40001,8080", [(30000, 32767)], "8080,30000-32767,40000-40001"),
    ("30500-33000", [(30000, 32767)], "30000-33000"),
    ("29999,32768", [(30000, 32767)], "29999-32768"),
    ("1-65535", [(30000, 32767)], "1-65535"),
    ("", [(61000, 65535), (30000, 30000)], "30000,61000-65535"),
    ("5", [], "5"),
]


@pytest.mark.parametrize(("current", "wanted", "merged"), MERGED)
def test_ports_are_added_to_those_reserved(current: str, wanted: list[tuple[int, int]], merged: str) -> None:
    assert node.merged_ports(current, wanted) == merged


RESERVED = "ipv4/ip_local_reserved_ports"
GIVEN_OUT = [("32768 60999", ""), ("32768 61000", ",61000-65535"), ("65535 65535", ",61000-65535")]


@pytest.mark.parametrize(("local", "besides"), GIVEN_OUT)
@pytest.mark.parametrize("before", ["", "8080"])
def test_ports_are_reserved_and_given_back(
    node_and_saved: tuple[rig.Node, Path], before: str, local: str, besides: str
) -> None:
    """Those the datapath gives out only where the kernel might give them to a socket."""
    scratch, saved = node_and_saved
    scratch.sysctl(ipv4__ip_local_port_range=local, ipv4__ip_local_reserved_ports=before or "\n")

    def reserved() -> str:
        return scratch.run("cat", f"/proc/sys/net/{RESERVED}").stdout.strip()

    for _ in range(2):
        scratch.call(node.prepare, saved, False, (), [(30000, 32767)], (61000, 65535))
        assert reserved() == ",".join(filter(None, [before, "30000-32767"])) + besides
    scratch.call(node.restore, saved)
    assert reserved() == before


def test_addresses_given_are_taken_back(root: None, tmp_path: Path) -> None:
    with rig.Node(addresses=("192.0.2.9",)) as scratch:
        before = scratch.call(node.addresses)
        assert len(prepare(scratch, tmp_path / "saved", "10.244.0.250", "fd00::fa")) == 2
        prepare(scratch, tmp_path / "saved", "10.244.0.250", "fd00::fa")
        scratch.call(node.restore, tmp_path / "saved")
        assert scratch.call(node.addresses) == before
