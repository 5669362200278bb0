"""HTTP under which rules change and processes die: clients that ask all the time, and what they were answered when."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from l7_policies import PORT
from rig import Netns, wait_until
from web import TIMEOUT_S, Client, Reply

PATHS = ("/a", "/b", "/c", "/never")
"""What is asked for. No rules of such tests ever allow the last."""
CLIENTS = 4
PAUSE_S = 0.005
"""After each request: what is under test needs a processor, too."""


class Asked(msgspec.Struct, frozen=True):
    """One request. `fresh`: on a connection of its own; `opened`: when its connection was. Times are of
    CLOCK_MONOTONIC, in seconds."""

    path: str
    opened: float
    began: float
    ended: float
    status: int
    fresh: bool
    why: str


class Version(msgspec.Struct):
    """Rules that may be in force from when they are written until others are said to be."""

    allowed: frozenset[str]
    begins: float
    ends: float = float("inf")


class Load:
    """Clients that ask for random paths, each on a connection that lasts and on fresh ones."""

    def __init__(self, client: Netns, addresses: list[str], seed: int) -> None:
        self.asked: list[Asked] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client, addresses[n % len(addresses)], random.Random(seed + n)))
            for n in range(CLIENTS)
        ]

    def _run(self, client: Netns, address: str, drawn: random.Random) -> None:
        lasting: Client | None = None
        opened = 0.0
        while not self._stop.wait(PAUSE_S):
            path, fresh = drawn.choice(PATHS), drawn.random() < 0.3
            began = time.monotonic()
            if not fresh and lasting is None:
                opened = began
            try:
                with Client(client, address, PORT) if fresh else _kept(lasting, client, address) as used:
                    lasting = lasting if fresh else used
                    reply = used.get(path)
            except OSError as error:
                reply = Reply(0, type(error).__name__)
            since = began if fresh else opened
            self.asked.append(Asked(path, since, began, time.monotonic(), reply.status, fresh, reply.body[:60]))
            if not fresh and reply.status == 0 and lasting is not None:
                lasting.close()
                lasting = None
        if lasting is not None:
            lasting.close()

    def go_on(self) -> None:
        """Until there is a request that began after this call, and has ended."""
        asked, now = len(self.asked), time.monotonic()
        wait_until(lambda: any(one.began > now for one in self.asked[asked:]), 2 * TIMEOUT_S, "the load goes on")

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


@contextmanager
def _kept(lasting: Client | None, client: Netns, address: str) -> Iterator[Client]:
    yield lasting or Client(client, address, PORT)


def judge(asked: list[Asked], versions: list[Version]) -> list[str]:
    """Requests that were answered by rules that cannot have been in force, or not answered at all in a quiet time."""
    wrong = []
    for one in asked:
        then = [v for v in versions if v.begins <= one.ended and one.began <= v.ends]
        allowed = {one.path in version.allowed for version in then}
        if one.status == 200 and allowed == {False}:
            wrong.append(f"weaker: {one}")
        if one.status == 403 and allowed == {True}:
            wrong.append(f"stronger: {one}")
        if one.status == 0 and len(then) == 1 and one.fresh:
            wrong.append(f"no answer: {one}")
    return wrong
