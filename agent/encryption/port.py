"""Whether a UDP port is free."""

from __future__ import annotations

import errno
import socket


def port_problem(port: int) -> str:
    """Why the device cannot have a port, in the calling thread's network namespace; empty where it can. A program's
    device does not tell: it makes the attempt when its link comes up, and then is down."""
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - to see who has it
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((anywhere, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"UDP port {port} is another program's, and WireGuard cannot have it: end that one, or give all"
                    " nodes another port by --encryption-port"
                )
    return ""
