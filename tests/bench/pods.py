"""A pod's manifest appears → its policy is in the kernel and it can send: on a node of 200 pods, in the whole cluster.

Seen from outside: the bench waits for the pod's network namespace, enters it, and sends datagrams to the node until one
of each family has arrived. The pod is isolated, and what the kernel has no policy for is dropped, so a datagram that
arrives proves that policy is in force. Its containers have no command: no process is started.

Half the pods are replicas (an identity that is there already), half bring an identity of their own. Each is removed
before the next comes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import rig

from agent.endpoints import namespaces
from bench import cluster
from bench.cluster import NAMESPACE, PROBE_PORT
from bench.report import Figure, quantile
from bench.setting import POLL_S, WAIT_S, Bench, Site, wait_for
from policies.model import ObjectRef

PODS = 200
BURST = 50
GOAL_MS = 15.0


def measure(bench: Bench) -> Iterator[Figure]:
    place = bench.large()
    with place.node.call(Ears) as ears:
        took = [start(place, ears, number) for number in range(bench.samples(PODS))]
    yield Figure("pods", "a pod appears and can send, p50", quantile(took, 0.5), "ms", GOAL_MS)
    yield Figure("pods", "a pod appears and can send, p99", quantile(took, 0.99), "ms", GOAL_MS, f"of {len(took)}")
    yield Figure("pods", f"{BURST} pods appear at once, all ready", burst(place), "ms")


class Ears:
    """Sockets that hear datagrams sent to the node. Made in the node's namespace."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self.sockets = {family: self._undo.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for family in NODE}
        for family, heard in self.sockets.items():
            heard.bind(NODE[family])
            heard.setblocking(False)

    def __enter__(self) -> Ears:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


NODE = {socket.AF_INET: (rig.NODE_V4, PROBE_PORT), socket.AF_INET6: (rig.NODE_V6, PROBE_PORT)}


def start(place: Site, ears: Ears, number: int) -> float:
    """Milliseconds."""
    app = f"local-{number % cluster.LOCAL_PODS}" if number % 2 else f"new-{number}"
    name = f"new-{number}"
    labels = {"app": app, "tier": "front"}
    path = namespaces.netns_name(place.agent.instance.short_name, ObjectRef("Pod", NAMESPACE, name))
    started_ns = place.put("new.json", cluster.pod(NAMESPACE, name, labels))
    netns = _await_netns(path)
    try:
        with namespaces.entered(netns):
            sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in NODE}
        _send_until_heard(sockets, ears, name.encode())
        ended_ns = time.monotonic_ns()
    finally:
        os.close(netns)
    place.agent.delete("new.json")
    wait_for(lambda: not namespaces.path_of(path).exists(), f"{name} is gone")
    place.agent.settle()
    return (ended_ns - started_ns) / 1e6


def burst(place: Site) -> float:
    """Milliseconds until the agent calls all of them ready."""
    pods = [cluster.pod(NAMESPACE, f"burst-{n}", {"app": f"burst-{n}", "tier": "back"}) for n in range(BURST)]
    ((file, document),) = cluster.files("burst", "Pod", pods)
    started_ns = place.put(file, document)
    place.agent.settle()
    ended_ns = time.monotonic_ns()
    ready = place.agent.status()["endpoints"]["ready"]
    assert ready == cluster.LOCAL_PODS + BURST, place.agent.status()["endpoints"]
    place.agent.delete(file)
    place.agent.settle()
    return (ended_ns - started_ns) / 1e6


def _await_netns(name: str) -> int:
    """A descriptor of a namespace as soon as it has its name, which is when it is complete inside."""
    deadline = time.monotonic() + WAIT_S
    while (netns := namespaces.open_name(name)) is None:
        assert time.monotonic() < deadline, f"there is no {name}"
        time.sleep(POLL_S)
    return netns


def _send_until_heard(sockets: dict[socket.AddressFamily, socket.socket], ears: Ears, word: bytes) -> None:
    waiting = dict(sockets)
    deadline = time.monotonic() + WAIT_S
    while waiting:
        assert time.monotonic() < deadline, f"{word!r} was not heard by {waiting}"
        for family, sender in list(waiting.items()):
            try:
                sender.sendto(word, NODE[family])
            except OSError:
                continue  # the link is not up yet
            if _heard(ears.sockets[family], word):
                waiting.pop(family).close()
        time.sleep(POLL_S)


def _heard(listener: socket.socket, word: bytes) -> bool:
    """Local delivery is done when sending returns."""
    try:
        while listener.recv(64) != word:
            pass
    except BlockingIOError:
        return False
    return True
