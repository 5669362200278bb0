"""One probe, run where the client is: `python3 -I probe.py tcp|udp ADDRESS PORT SECONDS [FROM]`.

Prints one JSON line: {"result": "answered" | "refused" | "dropped", "answer": text, "source_port": number}.
Dropped means that nothing came back in time. Needs nothing but the standard library, as it runs inside pods.
"""

import json
import socket
import sys


def probe(protocol: str, address: str, port: int, seconds: float, source: str = "") -> dict[str, object]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    result, answer = "answered", ""
    with socket.socket(family, kind) as client:
        client.settimeout(seconds)
        # Bound first, so that the port is known even if no answer ever comes.
        client.bind((source, 0))
        source_port = client.getsockname()[1]
        try:
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"probe\n")
            answer = client.recv(256).decode(errors="replace").strip()
        except TimeoutError:
            result = "dropped"
        except ConnectionRefusedError:
            result = "refused"
        except OSError as error:
            result, answer = "failed", str(error)
    return {"result": result, "answer": answer, "source_port": source_port}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])))  # noqa: T201
