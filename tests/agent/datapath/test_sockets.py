"""Connected sockets of a network namespace ended from outside."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import rig
from probes import Server
from socket_site import cookie_of

from agent.datapath import sockets
from policies.address import parse_address

UDP, TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP
KINDS = {UDP: socket.SOCK_DGRAM, TCP: socket.SOCK_STREAM}
PEERS = {"v4": "192.0.2.1", "v6": "2001:db8::1", "mapped": "::ffff:192.0.2.1"}


def anyone(cookie: int, peer: sockets.Backend) -> bool:
    return True


class Site:
    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self.netns = undo.enter_context(rig.Netns("sockets"))
        self.netns.ip("address add 192.0.2.1 dev lo", "address add 2001:db8::1 dev lo nodad")
        self.servers = {p: undo.enter_context(Server(self.netns, "udp" if p == UDP else "tcp")) for p in KINDS}
        self.others = {p: undo.enter_context(Server(self.netns, "udp" if p == UDP else "tcp")) for p in KINDS}

    def client(self, protocol: int, shape: str, other: bool = False, connect: bool = True) -> socket.socket:
        family = socket.AF_INET if shape == "v4" else socket.AF_INET6
        made: socket.socket = self._undo.enter_context(self.netns.call(socket.socket, family, KINDS[protocol]))
        made.settimeout(5)
        if connect:
            made.connect((PEERS[shape], (self.others if other else self.servers)[protocol].port))
        return made

    def backend(self, protocol: int, shape: str) -> sockets.Backend:
        return parse_address(PEERS[shape].removeprefix("::ffff:")), self.servers[protocol].port


@pytest.fixture
def site(root: None) -> Iterator[Site]:
    with ExitStack() as undo:
        yield Site(undo)


def is_alive(client: socket.socket) -> bool:
    try:
        client.send(b"?")
        return client.recv(100).startswith(b"server")
    except OSError as error:
        assert error.errno in (errno.ECONNABORTED, errno.EPIPE, errno.EDESTADDRREQ), error
        return False


@pytest.mark.parametrize("shape", PEERS)
@pytest.mark.parametrize("protocol", KINDS)
def test_only_what_is_connected_to_the_backend_ends(site: Site, protocol: int, shape: str) -> None:
    mine, elsewhere = site.client(protocol, shape), site.client(protocol, shape, other=True)
    idle = site.client(protocol, shape, connect=False)
    another = site.client(TCP if protocol == UDP else UDP, shape)
    backend = site.backend(protocol, shape)
    assert sockets.destroy(site.netns.fd, protocol, lambda *both: both == (cookie_of(elsewhere), backend)) == 0
    assert all(map(is_alive, (mine, elsewhere, another)))
    assert sockets.destroy(site.netns.fd, protocol, lambda *both: both == (cookie_of(mine), backend)) == 1
    with pytest.raises(ConnectionAbortedError):
        mine.recv(100)
    assert not is_alive(mine)
    assert all(map(is_alive, (elsewhere, another)))
    idle.connect(elsewhere.getpeername())
    assert is_alive(idle)
    assert sockets.destroy(site.netns.fd, protocol, lambda _, peer: peer == backend) == 0


def test_a_udp_client_that_was_told_connects_anew(site: Site) -> None:
    client = site.client(UDP, "v4")
    assert sockets.destroy(site.netns.fd, UDP, anyone) == 1
    with pytest.raises(ConnectionAbortedError):
        client.recv(100)
    client.connect(("192.0.2.1", site.others[UDP].port))
    assert is_alive(client)


def test_in_several_namespaces(site: Site) -> None:
    made = [(site.client(protocol, shape), site.backend(protocol, shape)) for protocol in KINDS for shape in PEERS]
    stays, moved = site.client(UDP, "v4"), site.client(UDP, "v4", other=True)
    wanted = {(cookie_of(client), backend) for client, backend in made}
    wanted |= {(cookie_of(moved), site.backend(UDP, "v4"))}  # it was connected there before
    with rig.Netns("empty") as empty:
        paths = [empty.path, "/run/netns/gone", site.netns.path]
        assert sockets.destroy_in(paths, wanted) == len(made)
    assert not any(is_alive(client) for client, _ in made)
    assert is_alive(stays) and is_alive(moved)


def test_the_calling_threads_own_namespace(site: Site) -> None:
    client = site.client(UDP, "v6")
    wanted = {(cookie_of(client), site.backend(UDP, "v6"))}
    assert sockets.destroy_in([], wanted) == 0
    assert site.netns.call(sockets.destroy_in, [], wanted) == 1
    assert not is_alive(client)


def test_more_sockets_than_one_answer_holds(site: Site) -> None:
    clients, backend = [site.client(UDP, "v4") for _ in range(600)], site.backend(UDP, "v4")
    assert sockets.destroy(site.netns.fd, UDP, lambda _, peer: peer == backend) == len(clients)
    assert not any(map(is_alive, clients))


def test_a_kernel_that_cannot(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the request for another's, or for none."""
    client = site.client(UDP, "v4")
    monkeypatch.setattr(sockets, "_SOCK_DESTROY", 22)
    with pytest.raises(sockets.CannotDestroy, match="CONFIG_INET_DIAG_DESTROY"):
        sockets.destroy(site.netns.fd, UDP, anyone)
    monkeypatch.undo()
    assert is_alive(client)
    with pytest.raises(sockets.CannotDestroy, match="udp_diag"):
        sockets.destroy(site.netns.fd, 254, anyone)
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(sockets.CannotDestroy):
        sockets.destroy(site.netns.fd, 254, anyone)
    assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208
