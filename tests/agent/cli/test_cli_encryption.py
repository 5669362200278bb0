"""`gatehouse encryption` against an agent's socket: what people see, exit statuses, and waiting for a new key."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_line import gatehouse

from agent.api.protocol import ApiError
from agent.api.server import serve
from agent.cli.encryption import lines
from agent.cli.output import size
from agent.status import EncryptionPeerView, EncryptionView, ProcessView

KEY, NEW_KEY = "a" * 43 + "=", "b" * 43 + "="
PEER = EncryptionPeerView(
    node="n2",
    endpoint="192.0.2.12:51871",
    public_key="c" * 43 + "=",
    last_handshake_s=42.7,
    received_bytes=1 << 20,
    sent_bytes=100,
    ready=True,
    problem="",
)
SILENT = EncryptionPeerView(
    node="n1", endpoint="", public_key="", last_handshake_s=None, received_bytes=0, sent_bytes=0, ready=False,
    problem="it has told no key",
)  # fmt: skip
VIEW = EncryptionView(
    mode="wireguard", device="ghwg1a2b3c4d", kernel=True, port=51871, public_key=KEY, key_age_s=90_000.0, strict=True,
    peers=(PEER,),
)  # fmt: skip
OFF = EncryptionView(mode="off")
PROCESS = ProcessView(state="running", pid=0, restarts=1, problem="")
"""In a container of its own."""


class Agent:
    """Answers as an agent does. `views`: one for each time it is asked, the last for ever."""

    def __init__(self, *views: EncryptionView, refuses: str = "") -> None:
        self.views = list(views)
        self.refuses = refuses
        self.rotations = 0

    async def encryption(self, _arguments: dict[str, Any]) -> EncryptionView:
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    async def rotate(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        if self.refuses:
            raise ApiError(self.refuses)
        self.rotations += 1
        return {}

    @contextmanager
    def at(self, state_dir: Path) -> Iterator[None]:
        ready = threading.Event()
        stop: Callable[[], object] = ready.set

        async def live() -> None:
            nonlocal stop
            ending, loop = asyncio.Event(), asyncio.get_running_loop()
            stop = lambda: loop.call_soon_threadsafe(ending.set)  # noqa: E731
            async with await serve(state_dir / "agent.sock", {"encryption": self.encryption, "rotate": self.rotate}):
                ready.set()
                await ending.wait()

        thread = threading.Thread(target=lambda: asyncio.run(live()))
        thread.start()
        assert ready.wait(60)
        try:
            yield
        finally:
            stop()
            thread.join()

    def asked(self, state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.at(state_dir):
            return gatehouse("encryption", *arguments, "--state-dir", str(state_dir))


# ---- status


def test_status_as_json_is_the_view(tmp_path: Path) -> None:
    view = msgspec.structs.replace(VIEW, peers=(PEER, SILENT))
    result = Agent(view).asked(tmp_path, "status", "-o", "json")
    assert msgspec.convert(json.loads(result.stdout), EncryptionView) == view
    assert set(json.loads(result.stdout)) == set(EncryptionView.__struct_fields__)


@pytest.mark.parametrize(
    ("view", "code"),
    [
        (VIEW, 0),
        (msgspec.structs.replace(VIEW, peers=()), 0),
        (msgspec.structs.replace(VIEW, peers=(PEER, SILENT)), 1),
        (OFF, 1),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_status_tells_by_its_exit_status(view: EncryptionView, code: int, output: str, tmp_path: Path) -> None:
    assert Agent(view).asked(tmp_path, "status", "-o", output).returncode == code


def test_people_see_all_of_it() -> None:
    view = msgspec.structs.replace(
        VIEW, peers=(PEER, SILENT), plaintext_packets=7, rotation="waiting for n1 to know the next key"
    )
    shown = list(lines(view))
    assert shown[:7] == [
        "Encryption  wireguard, between pods of different nodes",
        "Strict      yes: what cannot be encrypted is dropped",
        "Device      ghwg1a2b3c4d (the kernel's), UDP port 51871",
        f"Key         {KEY}, 1d1h old",
        "Rotation    waiting for n1 to know the next key",
        "Plaintext   7 packets",
        "Nodes       1 of 2 ready",
    ]
    titles, first, second = (row.split() for row in shown[8].splitlines())
    assert titles == ["NODE", "READY", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "PUBLIC", "KEY", "PROBLEM"]
    assert first == ["n1", "no", "-", "never", "0", "B", "0", "B", "-", "it", "has", "told", "no", "key"]
    assert second == ["n2", "yes", "192.0.2.12:51871", "42s", "ago", "1.0", "MiB", "100", "B", PEER.public_key, "-"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"kernel": False}, "Device      ghwg1a2b3c4d (a program's), UDP port 51871"),
        ({"process": PROCESS}, "Program     running, restarted 1 times"),
        (
            {"process": msgspec.structs.replace(PROCESS, state="restarting", problem="nobody answers")},
            "Program     restarting, restarted 1 times: nobody answers",
        ),
        ({"device": ""}, "Device      none"),
        ({"public_key": ""}, "Key         none"),
        ({"strict": False}, "Strict      no"),
        (
            {"node_encryption": True},
            "Encryption  wireguard, between pods of different nodes, and nodes with pods and each other",
        ),
        ({"peers": ()}, "Nodes       0 of 0 ready"),
        ({"mode": "off"}, "Encryption  off: pods of different nodes send each other plaintext"),
    ],
)
def test_a_line_for_what_differs(change: dict[str, Any], line: str) -> None:
    assert line in list(lines(msgspec.structs.replace(VIEW, **change)))


@pytest.mark.parametrize("command", ["status", "rotate"])
def test_without_an_agent_it_says_what_to_do(command: str, tmp_path: Path) -> None:
    result = gatehouse("encryption", command, "--state-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"gatehouse agent --state-dir {tmp_path}" in result.stderr


# ---- rotate


def test_rotate_waits_for_the_new_key(tmp_path: Path) -> None:
    steps = [
        VIEW,
        msgspec.structs.replace(VIEW, rotation="others are told the next key"),
        msgspec.structs.replace(VIEW, rotation="the next key is in use", public_key=NEW_KEY),
        msgspec.structs.replace(VIEW, public_key=NEW_KEY),
    ]
    agent = Agent(*steps)
    result = agent.asked(tmp_path, "rotate")
    assert (result.returncode, agent.rotations) == (0, 1)
    assert result.stdout == f"the key is {NEW_KEY} now, and {KEY} is destroyed\n"
    assert result.stderr.splitlines() == ["others are told the next key", "the next key is in use"]


def test_rotate_does_not_wait_for_ever(tmp_path: Path) -> None:
    agent = Agent(VIEW, msgspec.structs.replace(VIEW, rotation="others are told the next key"))
    result = agent.asked(tmp_path, "rotate", "--timeout", "1")
    assert (result.returncode, result.stdout) == (1, "")
    assert "not in use after 1 s: it goes on" in result.stderr


def test_rotate_without_waiting(tmp_path: Path) -> None:
    agent = Agent(VIEW)
    result = agent.asked(tmp_path, "rotate", "--no-wait")
    assert (result.returncode, agent.rotations) == (0, 1)
    assert result.stdout == f"begun: the key {KEY} is being replaced\n"


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        (Agent(OFF), "--encryption wireguard"),
        (Agent(VIEW, refuses="the device is not up: wait"), "the device is not up"),
    ],
)
def test_rotate_refused(agent: Agent, says: str, tmp_path: Path) -> None:
    result = agent.asked(tmp_path, "rotate")
    assert (result.returncode, result.stdout, agent.rotations) == (2, "", 0)
    assert says in result.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
