"""Servers for the demo's kitchen: `python3 -I kitchen.py http:8080` answers every request with what it was asked,
`python3 -I kitchen.py dns:53 NAME=ADDRESS …` every query for one of these names with that address.

Needs nothing but the standard library, as it runs inside pods.
"""

import socket
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

A, IN = 1, 1
NXDOMAIN = 3
TTL_S = 60


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{self.path}: served\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6  # IPv4 as well


def answer(query: bytes, names: dict[str, str]) -> bytes:
    """To one question, as RFC 1035 writes it."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
        at += 1 + query[at]
    question = query[12 : at + 5]
    address = names.get(".".join(labels))
    is_address = struct.unpack("!HH", query[at + 1 : at + 5]) == (A, IN)
    found = address is not None and is_address
    code = 0 if address is not None else NXDOMAIN
    header = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, int(found), 0, 0)
    if address is None or not found:
        return header + question
    return header + question + struct.pack("!HHHIH", 0xC00C, A, IN, TTL_S, 4) + socket.inet_aton(address)


def serve_dns(port: int, names: dict[str, str]) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        while True:
            query, sender = server.recvfrom(4096)
            try:
                server.sendto(answer(query, names), sender)
            except (IndexError, struct.error, OSError):  # no query, or a client that is gone
                continue


def main(spec: str, names: list[str]) -> None:
    kind, _, port = spec.partition(":")
    if kind == "dns":
        serve_dns(int(port), dict(name.split("=", 1) for name in names))
    Server(("::", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
