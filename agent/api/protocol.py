"""What goes over the socket: one request line, then one or more response lines, all JSON.

    request   {"op": "status", ...arguments}
    response  {"value": ...}                      one of several values of a stream
              {"value": ..., "last": true}        the answer to a call
              {"last": true}                      the end of a stream
              {"error": "what to do", "last": true}

A connection carries one request. The client keeps its sending side open until it has read the last line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

REQUEST_BYTES = 1 << 20
RESPONSE_BYTES = 256 << 20


class ApiError(Exception):
    """A request failed. The text is a sentence that says what to do; it is shown to people as it is."""


class UnreachableError(ApiError):
    """Nobody answers at the socket."""


class Batch(list[Any]):
    """Several values of a stream that a handler yields at once; each still becomes a line of its own."""


class Response(msgspec.Struct, omit_defaults=True):
    value: Any = None
    error: str = ""
    last: bool = False


_encoder = msgspec.json.Encoder()
_request = msgspec.json.Decoder(dict[str, Any])
_response = msgspec.json.Decoder(Response)


def encode_request(op: str, arguments: Mapping[str, Any]) -> bytes:
    """Raises ApiError where the request is too long to be accepted."""
    line = _encoder.encode({"op": op, **arguments})
    if len(line) >= REQUEST_BYTES:
        raise ApiError(f"the request is longer than {REQUEST_BYTES} bytes: ask for less at a time")
    return line + b"\n"


def decode_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """(op, arguments). Raises ApiError."""
    try:
        arguments = _request.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(f"the request is not a JSON object on one line ({error})") from None
    op = arguments.pop("op", None)
    if not isinstance(op, str):
        raise ApiError('the request names no operation: send {"op": "...", ...}')
    return op, arguments


def encode_response(response: Response) -> bytes:
    return _encoder.encode(response) + b"\n"


def encode_values(values: Batch) -> bytes:
    return b"".join(_encoder.encode(Response(value)) + b"\n" for value in values)


def decode_response(line: bytes, path: Path) -> Response:
    """Raises ApiError for an error response, and for a line that is cut short or no response at all."""
    if not line.endswith(b"\n"):
        raise ApiError(f"the process behind {path} closed the connection before its answer was complete: see its log")
    try:
        response = _response.decode(line)
    except msgspec.DecodeError:
        raise ApiError(f"{path} does not speak this protocol: use the command of the version that is running") from None
    if response.error:
        raise ApiError(response.error)
    return response


def nobody_answers(path: Path) -> UnreachableError:
    start = f"gatehouse agent --state-dir {path.parent}"
    if path.name == "flows.sock":
        return UnreachableError(f"no flows process answers at {path}: the agent runs it, start one with `{start}`")
    return UnreachableError(f"no agent answers at {path}: start one with `{start}`")


def not_permitted(path: Path) -> UnreachableError:
    return UnreachableError(f"{path} may not be opened by this user: run the command as root")
