"""The rule and routes by which packets get to the proxies' sockets."""

from __future__ import annotations

import rig

from agent.datapath import abi
from agent.proxy import routing

NUMBERS = abi.load().constants
ELSEWHERE = ("198.51.100.1", "2001:db8:5::1")


def delivered_here(node: rig.Node, address: str, mark: int) -> bool:
    found = node.run("ip", "route", "get", address, "mark", str(mark), check=False)  # elsewhere: perhaps no route
    return found.stdout.lstrip().startswith("local ")


def test_marked_packets_are_local_whatever_their_destination(node: rig.Node) -> None:
    assert not node.call(routing.is_installed)
    node.call(routing.install)
    assert node.call(routing.is_installed)
    for address in ELSEWHERE:
        assert delivered_here(node, address, NUMBERS.MARK_TO_PROXY)
        for other in (NUMBERS.MARK_FROM_EGRESS, NUMBERS.MARK_FROM_INGRESS, NUMBERS.MARK_PROXY_ANSWERS, 0):
            assert not delivered_here(node, address, other)


def test_what_has_a_socket_here_may_still_be_forwarded(node: rig.Node) -> None:
    def early_demux() -> list[str]:
        return node.run("sysctl", "-n", *(key.replace("/", ".") for key in routing.EARLY_DEMUX)).stdout.split()

    assert early_demux() == ["1", "1"]
    node.call(routing.install)
    assert early_demux() == ["0", "0"]
    node.call(routing.remove)
    assert early_demux() == ["1", "1"]


def test_installed_twice_is_removed_once(node: rig.Node) -> None:
    node.call(routing.install)
    node.call(routing.install)
    assert node.call(routing.remove) == 4
    assert not node.call(routing.is_installed)
    assert node.call(routing.remove) == 0
    assert str(NUMBERS.PROXY_TABLE) not in node.run("ip", "rule").stdout
