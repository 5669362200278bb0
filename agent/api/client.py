"""The blocking client, for commands. Needs no event loop, so that a command starts fast."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.api.address import socket_address
from agent.api.protocol import (
    RESPONSE_BYTES,
    ApiError,
    decode_response,
    encode_request,
    nobody_answers,
    not_permitted,
)

CONNECT_S = 5.0
CALL_S = 30.0


def call(path: Path, op: str, /, *, timeout_s: float = CALL_S, **arguments: Any) -> Any:
    """The value `op` answers with. Raises ApiError (UnreachableError where nobody answers)."""
    answer = None
    for value in _values(path, op, timeout_s, arguments):
        answer = value
    return answer


def stream(path: Path, op: str, /, *, timeout_s: float | None = None, **arguments: Any) -> Iterator[Any]:
    """The values of `op` as they come; `timeout_s` bounds the wait for each. Raises ApiError while it is iterated.

    Closing the iterator tells the server to stop.
    """
    yield from _values(path, op, timeout_s, arguments)


def _values(path: Path, op: str, timeout_s: float | None, arguments: dict[str, Any]) -> Iterator[Any]:
    request = encode_request(op, arguments)
    with _connect(path) as connection, connection.makefile("rb", buffering=1 << 16) as lines:
        connection.settimeout(timeout_s)
        try:
            connection.sendall(request)
            last = False
            while not last:
                response = decode_response(lines.readline(RESPONSE_BYTES), path)
                last = response.last
                if response.value is not None or not last:
                    yield response.value
        except TimeoutError:
            raise ApiError(f"{path} did not answer {op!r} within {timeout_s:g} s: try again, or see its log") from None
        except (ConnectionResetError, BrokenPipeError):
            raise ApiError(f"the process behind {path} went away while it was asked {op!r}: try again") from None


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_S)
    try:
        with socket_address(path) as address:
            connection.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise nobody_answers(path) from None
    except PermissionError:
        connection.close()
        raise not_permitted(path) from None
    except (TimeoutError, BlockingIOError):
        connection.close()
        raise ApiError(f"the process behind {path} takes no connection: it is overloaded, try again") from None
    return connection
