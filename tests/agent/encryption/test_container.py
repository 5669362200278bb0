"""The program in a container of its own, and the kernel's device in its place."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from agents import environment
from wireguard_backends import need
from wireguard_nodes import EncryptedNode, Wire

from agent.encryption.userspace import socket_of
from agent.helpers.names import Name
from agent.supervisor import listener_pid


def container(node: EncryptedNode) -> subprocess.Popen[bytes]:
    words = (sys.executable, "-m", "agent.cli.main", "helper", "wireguard", "--state-dir", str(node.instance.state_dir))
    return node.popen(*words, env=environment())


@pytest.mark.parametrize("backend", ["kernel", "userspace"])
def test_the_device_of_a_container(wire: Wire, backend: str) -> None:
    """It goes on without the agent. Where the next uses the kernel's, it goes, and the container idles; and back."""
    need("userspace")
    need(backend)
    with wire.node(1, "userspace", helpers="containers") as one, wire.node(2, "userspace") as two:
        idle = container(one)
        wire.start(one, two)
        assert one.ping(two)
        index, program = one.devices[-1], listener_pid(socket_of(one.device))
        assert program
        for now in (backend, "userspace"):
            one.stop()
            assert one.ping(two), "it goes on without the agent"
            one.config = msgspec.structs.replace(one.config, wireguard=now)
            one.start()
            one.reaches(two)
            assert one.ping(two) and two.ping(one)
            assert one.encryption and one.encryption.view().kernel is (now == "kernel")
            assert one.instance.order(Name.WIREGUARD).exists() is (now == "userspace")
            assert bool(listener_pid(socket_of(one.device))) is (now == "userspace")
            assert (one.devices[-1] == index) is (backend == "userspace"), "another device, where it is of another sort"
        assert idle.poll() is None
        one.stop(remove=True)
        assert not socket_of(one.device).exists()
        assert idle.poll() is None
