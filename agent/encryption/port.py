"""Whether a UDP port is free."""

from __future__ import annotations

import errno
import socket


def require_free(port: int) -> None:
    """In the calling thread's network namespace. Raises OSError (EADDRINUSE) that says what to do. A program's device
    does not tell: it makes the attempt when its link comes up, and is down again."""
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - to see who has it
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((anywhere, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    errno.EADDRINUSE,
                    f"UDP port {port} is another program's: end that one, or give all nodes another by"
                    " --encryption-port",
                ) from None
            # Anything else (a node without IPv6) is no reason not to try.
