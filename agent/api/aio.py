"""The client for processes that run an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
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

CALL_S = 30.0


async def call(path: Path, op: str, /, *, timeout_s: float = CALL_S, **arguments: Any) -> Any:
    """The value `op` answers with. Raises ApiError (UnreachableError where nobody answers)."""
    answer = None
    try:
        async with asyncio.timeout(timeout_s), aclosing(stream(path, op, **arguments)) as values:
            async for value in values:
                answer = value
    except TimeoutError:
        raise ApiError(f"{path} did not answer {op!r} within {timeout_s:g} s: try again, or see its log") from None
    return answer


async def stream(path: Path, op: str, /, **arguments: Any) -> AsyncGenerator[Any, None]:
    """The values of `op` as they come. Raises ApiError. Close it (contextlib.aclosing) to make the server stop."""
    request = encode_request(op, arguments)
    reader, writer = await _connect(path)
    try:
        writer.write(request)
        last = False
        while not last:
            response = decode_response(await reader.readline(), path)
            last = response.last
            if response.value is not None or not last:
                yield response.value
    except (ConnectionResetError, BrokenPipeError):
        raise ApiError(f"the process behind {path} went away while it was asked {op!r}: try again") from None
    finally:
        writer.transport.abort()


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        with socket_address(path) as address:
            return await asyncio.open_unix_connection(address, limit=RESPONSE_BYTES)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise nobody_answers(path) from None
    except PermissionError:
        raise not_permitted(path) from None
    except BlockingIOError:
        raise ApiError(f"the process behind {path} takes no connection: it is overloaded, try again") from None
