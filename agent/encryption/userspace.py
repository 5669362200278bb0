"""A WireGuard device made by a program, such as wireguard-go, which outlives the agent and is found by its socket.

It is the agent's child, or runs in a container of its own: `kept` is who keeps it. A device ends with its program, and
the program with its device, or once its socket's file is gone.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from agent.encryption import uapi
from agent.encryption.device import DeviceState, NotThere, PeerChange, Settings
from agent.encryption.link import NodeLink
from agent.status import ProcessView
from agent.supervisor import Kept, end_listener

SOCKETS = Path("/var/run/wireguard")
PROGRAM = "wireguard-go"
ANSWER_S = 10.0
_RECEIVE_BYTES = 1 << 18


class UserspaceDevice:
    """`kept`: what is run as `command` says, in this thread's network namespace, or that of its container. `log`: where
    it says what is wrong."""

    backend = "userspace"

    def __init__(self, name: str, kept: Kept, log: str) -> None:
        self.name = name
        self._path = socket_of(name)
        self._log = log
        self._kept = kept
        self._link = NodeLink(name)

    def ensure(self) -> None:
        """`run` has it made."""

    def read(self) -> DeviceState:
        answer = self._ask(uapi.GET)
        try:
            return uapi.decode(answer)
        except ValueError as error:
            raise OSError(errno.EPROTO, f"{self._path} answered what is not understood ({error})") from None

    def configure(self, settings: Settings, changes: Sequence[PeerChange] = ()) -> None:
        if settings != Settings() or changes:
            self._ask(uapi.encode(settings, changes))

    async def run(self) -> None:
        await self._kept.run()

    async def remove(self) -> None:
        await self._kept.stop()
        end(self.name)
        self._link.delete()

    def process(self) -> ProcessView | None:
        return self._kept.view()

    def close(self) -> None:
        self._link.close()

    def _ask(self, request: bytes) -> bytes:
        """Raises NotThere, or what the program answered as an OSError. The request is in none of them."""
        answer = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(ANSWER_S)
            try:
                asked.connect(str(self._path))
                asked.sendall(request)
                while not answer.endswith(b"\n\n"):
                    piece = asked.recv(_RECEIVE_BYTES)
                    if not piece:
                        break
                    answer += piece
            except TimeoutError:
                raise NotThere(errno.ETIMEDOUT, f"{self._path}: no answer within {ANSWER_S:.0f} s") from None
            except OSError as error:
                raise NotThere(error.errno, f"{self._path}: {error.strerror}; see {self._log}") from None
        try:
            code = uapi.errno_of(bytes(answer))
        except ValueError:
            raise NotThere(errno.EPROTO, f"{self._path}: the answer is cut off; see {self._log}") from None
        if code:
            raise OSError(code, f"the WireGuard program refused it ({os.strerror(code)}); see {self._log}")
        return bytes(answer)


def command(program: str, name: str) -> tuple[str, ...]:
    """`program`: a path."""
    return (program, "-f", name)


def socket_of(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def end(name: str) -> bool:
    """End the program behind a device, and remove its socket; whether there was one of them."""
    path = socket_of(name)
    found = end_listener(path)
    if path.exists():  # else the folder may be read-only: agents' containers have it where they may need it
        path.unlink(missing_ok=True)
        found = True
    return found
