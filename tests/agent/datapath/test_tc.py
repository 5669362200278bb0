"""Programs attached to a device in a network namespace of the test's own."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from small_datapath import PROGRAM

from agent.datapath import bpf, bpf_programs, testrun
from agent.datapath.abi import load
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Hook, Programs, ensure_loaded
from agent.datapath.tc import Hooks, TcError

DEVICES = range(101, 151)


@pytest.fixture
def network(pins: Pins) -> Iterator[None]:
    with testrun.network(DEVICES):
        yield


def test_attach_list_detach(programs: Programs, network: None) -> None:
    with Hooks(programs) as hooks:
        assert hooks.attached([101, 102]) == []
        hooks.attach(101)
        found = hooks.attached([101, 102, 99999])
        assert [(f.ifindex, f.hook, f.program) for f in found] == [
            (101, Hook.INGRESS, "from_pod"),
            (101, Hook.EGRESS, "to_pod"),
        ]
        assert {f.source_hash for f in found} == {programs.source_hash}
        assert all(f.is_current for f in found)
        assert {f.program_id for f in found} == {bpf_programs.program_info(fd).id for fd in programs.values()}
        hooks.detach(101)
        assert hooks.attached([101]) == []
        for ifindex in (101, 102, 99999):  # nothing there: no filter, no clsact, no interface
            hooks.detach(ifindex)


def test_replaced_by_a_new_version(programs: Programs, maps: Maps, pins: Pins, tmp_path: Path, network: None) -> None:
    source = tmp_path / "small.c"
    source.write_text(PROGRAM.replace("skb->mark + 1", "skb->mark + 2"))
    with ensure_loaded(maps, pins, source) as newer, Hooks(programs) as old, Hooks(newer) as new:
        for ifindex in DEVICES:
            old.attach(ifindex)
        assert not any(f.is_current for f in new.attached(DEVICES))
        for ifindex in DEVICES:
            new.attach(ifindex)
            new.attach(ifindex)  # again changes nothing
        found = new.attached(DEVICES)
        assert len(found) == 2 * len(DEVICES)
        assert all(f.is_current and f.source_hash == newer.source_hash for f in found)


def test_a_failure_names_the_interface_and_leaves_the_socket_usable(programs: Programs, network: None) -> None:
    with Hooks(programs) as hooks:
        with pytest.raises(TcError, match="attaching to interface 99999 failed: No such device"):
            hooks.attach(99999)
        with IPRoute() as ip:
            ip.tc("add", "ingress", 102)  # where this is, clsact cannot be: there is no egress hook
        with pytest.raises(
            TcError, match="attaching to interface 102 failed: it has an ingress qdisc where clsact belongs"
        ):
            hooks.attach(102)
        hooks.attach(101)
        assert len(hooks.attached([101])) == 2


def test_filters_of_others_are_not_ours(programs: Programs, network: None) -> None:
    with Hooks(programs) as hooks, IPRoute() as ip:
        ip.tc("add", "clsact", 103)
        ip.tc("add-filter", "bpf", 103, ":1", fd=programs["to_pod"], name="theirs", parent="ffff:fff2", prio=1)
        assert hooks.attached([103]) == []


def test_attached_programs_see_packets(programs: Programs, maps: Maps, network: None) -> None:
    with Hooks(programs) as hooks, IPRoute() as ip:
        ip.link("add", ifname="host", kind="veth", peer="pod")
        hooks.attach(socket.if_nametoindex("host"))
        for name in ("host", "pod"):
            path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
            path.write_text("1")  # it would speak up on its own
            ip.link("set", ifname=name, state="up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender, select.epoll() as poll:
            sender.bind(("pod", 0))
            poll.register(maps["events"].fd, select.EPOLLIN)
            sender.send(b"." + bytes(59))
            assert poll.poll(timeout=30)
        assert maps["drops"].sums()[load().constants.DROP_MALFORMED] == 1


def test_a_test_run_has_the_context_it_is_given(programs: Programs, network: None) -> None:
    frame = bytes(12) + b"\x08\x00" + bytes(46)
    result = testrun.run(programs["to_pod"], frame, ifindex=105, mark=41)
    assert (result.action, result.mark, result.packet) == (testrun.Action.REDIRECT, 42, frame)
    assert testrun.run(programs["to_pod"], frame, mark=0, repeat=5).mark == 5
    with pytest.raises(bpf.BpfError) as error:
        testrun.run(programs["to_pod"], frame, ifindex=99999)
    assert error.value.errno == 19  # ENODEV


def test_the_namespace_is_left(pins: Pins) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with testrun.network([200]):
        assert Path("/proc/thread-self/ns/net").readlink() != before
        assert socket.if_nametoindex("test200") == 200
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert "test200" not in [name for _, name in socket.if_nameindex()]
