"""Requests, run where the client is: `python3 -I ask.py http ADDRESS PORT SECONDS PATH …` sends them one after the
other on one connection, `python3 -I ask.py dns ADDRESS PORT SECONDS NAME …` asks for IPv4 addresses from one port.

Prints one JSON line: {"source_port": number, "answers": [text]}: a status, a code of DNS, or "dropped". Needs nothing
but the standard library, as it runs inside pods.
"""

import http.client
import json
import socket
import struct
import sys

CODES = {0: "NOERROR", 3: "NXDOMAIN", 5: "REFUSED"}


def ask_http(address: str, port: int, seconds: float, paths: list[str]) -> tuple[int, list[str]]:
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    answers: list[str] = []
    source_port = 0
    for path in paths:
        try:
            if not answers:
                connection.connect()
                source_port = connection.sock.getsockname()[1]
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            answers.append(str(response.status))
        except OSError:
            answers.append("dropped")
    connection.close()
    return source_port, answers


def ask_dns(address: str, port: int, seconds: float, names: list[str]) -> tuple[int, list[str]]:
    answers = []
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        client.connect((address, port))
        for number, name in enumerate(names, 1):
            labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            client.send(struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1))
            try:
                code = client.recv(4096)[3] & 15
                answers.append(CODES.get(code, str(code)))
            except OSError:
                answers.append("dropped")
        return client.getsockname()[1], answers


if __name__ == "__main__":
    ask = ask_http if sys.argv[1] == "http" else ask_dns
    source, found = ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
    print(json.dumps({"source_port": source, "answers": found}))  # noqa: T201
