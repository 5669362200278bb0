"""Taking a socket path: only where nobody answers at it, and never open to other users."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from agent.api.address import socket_address
from agent.api.protocol import ApiError

BACKLOG = 128


def listen(path: Path) -> socket.socket:
    """A listening, non-blocking socket at `path`, mode 0600. Replaces what a dead process left. Raises ApiError."""
    if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
        raise ApiError(f"{path} is not a socket: remove it, or choose another state directory")
    if answered(path):
        raise ApiError(f"another process answers at {path}: stop it first, or choose another state directory")
    # Made complete under another name first: the path never leads to a socket with the wrong mode or nobody behind it.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with socket_address(fresh) as address:
            listener.bind(address)
        fresh.chmod(0o600)
        listener.listen(BACKLOG)
        fresh.rename(path)
    except OSError as error:
        listener.close()
        fresh.unlink(missing_ok=True)
        raise ApiError(f"{path} cannot be made: {error.strerror}; check the state directory") from error
    return listener


def answered(path: Path) -> bool:
    """Whether a process listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            with socket_address(path) as address:
                probe.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # its backlog is full, so it has one
            return True
        except PermissionError:
            raise ApiError(f"{path} belongs to another user: run as root") from None
    return True
