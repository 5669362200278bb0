"""Deletions that the plugin left while the agent was not there: files ID@IFNAME, each a request as for the socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import log as logs
from agent.cni.protocol import HEADER, CniError, Request, parse_request, request_lengths

WRITING_S = 300
"""No plugin lives that long."""

log = logs.get("cni")


class Queued(msgspec.Struct, frozen=True):
    path: Path
    request: Request
    left_ns: int  # CLOCK_REALTIME


def queued(folder: Path) -> Iterator[Queued]:
    """What is there, oldest first as far as files' times tell: those of one tick of the clock, some ms, in any order.

    Files that are no deletion are removed, and half-written ones (which have names of their own) once nobody can be
    writing them any more."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return
    found = []
    for path in paths:
        try:
            if path.name.startswith("."):
                if path.stat().st_mtime < time.time() - WRITING_S:
                    path.unlink()
                continue
            found.append(Queued(path, _read(path.read_bytes()), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue  # its plugin found the agent after all
        except CniError as error:
            log.warning("a queued deletion cannot be read and is left out", file=path.name, reason=str(error))
            path.unlink(missing_ok=True)
    yield from sorted(found, key=lambda one: one.left_ns)


def _read(content: bytes) -> Request:
    header, rest = content[: HEADER.size], content[HEADER.size :]
    if len(header) < HEADER.size:
        raise CniError(0, "it is too short")
    environment, config = request_lengths(header)
    if len(rest) != environment + config:
        raise CniError(0, "it is not whole")
    request = parse_request(rest[:environment], rest[environment:])
    if request.command != "DEL":
        raise CniError(0, f"it is a {request.command}")
    return request
