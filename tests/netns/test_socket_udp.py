"""UDP clients whose backend goes, at the socket: one that is connected and one that is not, neither of which ever stops
sending (lesson 20)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from frames import TCP, UDP
from map_content import Frontend
from socket_site import BACKEND_PORT, SHAPES, Site, load_site, sockaddr

from agent.datapath.abi import be16
from agent.datapath.sockets import destroy_in
from agent.flows.pairs import Pair
from agent.flows.sockets import Sockets

WAIT_S = 30.0
PAUSE_S = 0.002


@pytest.fixture(scope="module")
def site(datapath_host: None) -> Iterator[Site]:
    with load_site(f"test-socket-udp-{os.getpid()}") as site:
        yield site


class Client:
    """Sends all the time, from a thread; connects anew when it is told of an error, as applications do."""

    def __init__(self, site: Site, who: str, shape: str, connects: bool) -> None:
        self._site, self._who, self._shape, self._connects = site, who, shape, connects
        self._to = sockaddr("web", 80, shape)
        self.heard: list[str] = []
        self.errors: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._site.party(self._who).socket(self._shape, "udp", timeout_s=0.05) as client:
            if self._connects:
                client.connect(self._to)
            while not self._stop.is_set():
                try:
                    self._exchange(client)
                except TimeoutError:
                    pass
                except OSError as error:
                    self.errors.append(error.errno or 0)
                    client.connect(self._to)
                time.sleep(PAUSE_S)

    def _exchange(self, client: socket.socket) -> None:
        if self._connects:
            client.send(b"?")
        else:
            client.sendto(b"?", self._to)
        answer, source = client.recvfrom(100)
        if source[:2] != self._to:  # a late answer of the backend that is gone: nobody the client knows
            return
        self.heard.append(answer.split()[0].decode())

    def wait_for(self, backend: str) -> None:
        """Until it hears of this backend."""
        deadline = time.monotonic() + WAIT_S
        while not self.heard or self.heard[-1] != backend:
            assert time.monotonic() < deadline, f"heard {self.heard[-3:]}, errors {self.errors}"
            time.sleep(PAUSE_S)

    def stop(self) -> list[str]:
        """The backends in the order in which they answered, each run of answers once."""
        self._stop.set()
        self._thread.join()
        heard = self.heard
        return [name for name, before in zip(heard, [None, *heard], strict=False) if name != before]


def retire(site: Site, backend: str, namespaces: list[str]) -> int:
    """What the flows process does when the agent tells it that a backend is gone."""
    pairs: set[Pair] = {
        (site.address("web"), be16(80), protocol, site.address(backend), be16(BACKEND_PORT)) for protocol in (TCP, UDP)
    }
    sockets = Sockets(site.abi, site.maps["socket_frontends"], site.maps["socket_backends"], destroy_in)
    return site.party("node").netns.call(asyncio.run, sockets.retire(pairs, namespaces))


@pytest.mark.parametrize("who", ["node", "pod"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("connects", [True, False], ids=["connected", "unconnected"])
def test_a_client_that_never_stops_sending_moves_at_once(site: Site, who: str, shape: str, connects: bool) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, Frontend([("b", BACKEND_PORT)]), UDP)
    site.frontend("dns", 80, Frontend([("b", BACKEND_PORT)]), UDP)
    client = Client(site, who, shape, connects)
    try:
        client.wait_for("b")
        with site.party(who).socket(shape, "udp") as bystander:
            bystander.connect(sockaddr("dns", 80, shape))  # the same backend, by a service that keeps it
            site.frontend("web", 80, Frontend([("c", BACKEND_PORT)]), UDP, pool=99)
            assert retire(site, "b", [site.party("pod").netns.path]) == int(connects)
            client.wait_for("c")
            bystander.send(b"?")
            assert bystander.recv(100).startswith(b"b ")
    finally:
        order = client.stop()
    assert order == ["b", "c"]
    assert bool(client.errors) == connects and set(client.errors) <= {errno.ECONNABORTED, errno.EDESTADDRREQ}
    assert site.entries() == {"socket_frontends": 0, "socket_backends": 0}


@pytest.mark.parametrize("who", ["node", "pod"])
def test_a_tcp_connection_to_a_backend_that_is_gone_ends(site: Site, who: str) -> None:
    site.reset(4)
    site.frontend("web", 80, Frontend([("b", BACKEND_PORT)]))
    with site.party(who).socket("v4", "tcp") as client:
        client.connect(sockaddr("web", 80, "v4"))
        client.send(b"?")
        assert client.recv(100).startswith(b"b ")
        assert retire(site, "c", [site.party("pod").netns.path]) == 0
        assert retire(site, "b", [site.party("pod").netns.path]) == 1
        with pytest.raises(ConnectionAbortedError):
            client.recv(100)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
    assert site.entries() == {"socket_frontends": 0, "socket_backends": 0}
