"""The rig and the probes tell the truth: each result is provoked once, in each family."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import probes
import pytest
import rig

EXTRA = ("198.51.100.7", "2001:db8:5::7")
FAMILIES = [(rig.NODE_V4, rig.OUTSIDE_V4), (rig.NODE_V6, rig.OUTSIDE_V6)]


@pytest.mark.parametrize(("target", "source"), FAMILIES)
def test_answered(node: rig.Node, outside: rig.Outside, target: str, source: str) -> None:
    with probes.Server(node, "tcp", 80, "t"), probes.Server(node, "udp", 80, "u"), probes.Server(node, "sctp", 80, "s"):
        assert probes.tcp(outside, target, 80) == probes.Answer("ok", "t", source)
        assert probes.udp(outside, target, 80) == probes.Answer("ok", "u", source)
        assert probes.sctp(outside, target, 80) == probes.Answer("ok", "s", source)
        assert probes.ping(outside, target, size=1400)
        assert probes.tcp(outside, target, 80, source=(source, 4321)).seen_from == source


@pytest.mark.parametrize(("target", "source"), FAMILIES)
def test_refused(node: rig.Node, outside: rig.Outside, target: str, source: str) -> None:
    for kind in (probes.tcp, probes.udp, probes.sctp):
        assert kind(outside, target, 81).result == "refused", kind
    # UDP only: an ICMP error that comes while connect() still holds the socket is but a hint to TCP.
    forbidden = "2001:db8:9::9" if ":" in target else "203.0.113.9"
    node.ip(f"route add prohibit {forbidden}")
    node.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    assert probes.udp(outside, forbidden, 80).result == "refused"


@pytest.mark.parametrize(("target", "source"), FAMILIES)
def test_silence(node: rig.Node, outside: rig.Outside, target: str, source: str) -> None:
    node.ip(f"route add blackhole {source} metric 1" if ":" in source else f"route replace blackhole {source}")
    with probes.Server(node, "tcp", 80), probes.Server(node, "udp", 80), probes.Server(node, "sctp", 80):
        for kind in (probes.tcp, probes.udp, probes.sctp):
            assert kind(outside, target, 80, timeout_s=0.2).result == "timeout", kind
        assert probes.ping(outside, target, timeout_s=0.2).result == "timeout"


def test_a_connection_is_cut_and_heals(node: rig.Node, outside: rig.Outside) -> None:
    with (
        probes.Server(node, "tcp", 80) as server,
        probes.Connection(outside, probes.STREAM, rig.NODE_V4, server.port) as connection,
    ):
        assert connection.exchange()
        node.ip(f"link set {outside.link} down")
        assert connection.exchange(timeout_s=0.2).result == "timeout"


def test_extra_addresses_outside(node: rig.Node) -> None:
    with rig.Outside(node, extra=EXTRA) as outside, probes.Server(node, "tcp", 80), probes.Server(outside, "tcp", 80):
        for target, extra in zip((rig.NODE_V4, rig.NODE_V6), EXTRA, strict=True):
            assert probes.tcp(outside, target, 80, source=(extra, 0)).seen_from == extra
            assert probes.tcp(node, extra, 80)


def test_closing_ends_processes_and_removes_the_namespace(root: None) -> None:
    with rig.Node() as node:
        node.popen("sleep", "60")
        node.run("sh", "-c", "setsid sleep 61 >/dev/null 2>&1 &")
        pids = rig.wait_until(lambda: found if len(found := node.pids()) == 2 else [])
        path = Path(node.path)
        assert path.exists()
    assert not path.exists()
    rig.wait_until(lambda: not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids))


def test_what_a_killed_run_left_is_swept(root: None) -> None:
    code = "import os, sys; sys.path.insert(0, 'tests'); import rig; print(rig.Node().path, flush=True); os._exit(1)"
    left = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    )
    assert left.parent == Path("/run/netns") and left.exists()
    rig.sweep()
    assert not left.exists()


def test_a_failing_command_fails_the_test(node: rig.Node) -> None:
    with pytest.raises(AssertionError, match="no-such-link"):
        node.ip("link set no-such-link up")


def test_known_crc32c_value() -> None:
    assert probes.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
