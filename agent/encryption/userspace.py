"""A WireGuard device made by a program, such as wireguard-go, which outlives the agent and is found by its socket."""

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
from agent.supervisor import Supervisor, end_listener

SOCKETS = Path("/var/run/wireguard")
PROGRAM = "wireguard-go"
ANSWER_S = 10.0
_RECEIVE_BYTES = 1 << 18


class UserspaceDevice:
    """`program`: a path. It is run as `PROGRAM -f DEVICE`, in the namespace of the thread that awaits `run`."""

    backend = "userspace"

    def __init__(self, name: str, program: str, log_path: Path) -> None:
        self.name = name
        self._path = socket_of(name)
        self._log_path = log_path
        self._supervisor = Supervisor("wireguard", (program, "-f", name), self._path, log_path)
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
        await self._supervisor.run()

    async def remove(self) -> None:
        await self._supervisor.stop()
        self._path.unlink(missing_ok=True)
        self._link.delete()

    def process(self) -> ProcessView | None:
        return self._supervisor.view()

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
                raise NotThere(error.errno, f"{self._path}: {error.strerror}; see {self._log_path}") from None
        try:
            code = uapi.errno_of(bytes(answer))
        except ValueError:
            raise NotThere(errno.EPROTO, f"{self._path}: the answer is cut off; see {self._log_path}") from None
        if code:
            raise OSError(code, f"the WireGuard program refused it ({os.strerror(code)}); see {self._log_path}")
        return bytes(answer)


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
