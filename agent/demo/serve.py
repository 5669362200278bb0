"""A server for demo pods: answers every TCP connection and UDP datagram with this pod's name.

Run as `python3 -I serve.py NAME tcp:8080 udp:5353 …`. Needs nothing but the standard library; one process, no threads.
"""

import selectors
import socket
import sys


def listen(spec: str) -> socket.socket:
    """A dual-stack socket for "tcp:PORT" or "udp:PORT"."""
    protocol, _, port = spec.partition(":")
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", int(port)))
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    server.setblocking(False)
    return server


def answer(server: socket.socket, greeting: bytes) -> None:
    """One connection or datagram; a client that is already gone is not our business."""
    try:
        if server.type == socket.SOCK_STREAM:
            client, _ = server.accept()
            with client:
                client.sendall(greeting)
        else:
            _, sender = server.recvfrom(2048)
            server.sendto(greeting, sender)
    except OSError:
        return


def main(name: str, specs: list[str]) -> None:
    with selectors.DefaultSelector() as selector:
        for spec in specs:
            selector.register(listen(spec), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if isinstance(key.fileobj, socket.socket):
                    answer(key.fileobj, f"{name}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
