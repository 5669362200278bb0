"""gRPC between pods of tests. Both ends are processes of their own: gRPC makes its sockets in threads of its own, which
are not inside a namespace.

with GrpcServer(agent.netns("shop/web"), 8080), GrpcClient(agent.netns("shop/client"), ip, 8080) as calls:
    calls.unary("/pkg.Service/Get")     # "OK", "PERMISSION_DENIED", …
    calls.open("/pkg.Service/Chat"); calls.exchange()
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
from rig import Netns

TIMEOUT_S = 30.0
UNARY, STREAM = "Get", "Chat"
"""Methods that the server knows by how they end: an answer to one message, and one to each."""


class _Process:
    def __init__(self, netns: Netns, *arguments: str) -> None:
        self._process = netns.popen(
            sys.executable, __file__, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._read() == "ready"

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()

    def _ask(self, words: str) -> str:
        assert self._process.stdin
        self._process.stdin.write(f"{words}\n".encode())
        return self._read()


class GrpcServer(_Process):
    def __init__(self, netns: Netns, port: int) -> None:
        super().__init__(netns, "server", str(port))


class GrpcClient(_Process):
    """One channel. Answers are names of status codes."""

    def __init__(self, netns: Netns, address: str, port: int) -> None:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        super().__init__(netns, "client", target)

    def unary(self, path: str) -> str:
        return self._ask(f"unary {path}")

    def open(self, path: str) -> str:
        """A stream in both directions, and the first exchange on it."""
        return self._ask(f"open {path}")

    def exchange(self) -> str:
        """One more message there and back on the stream."""
        return self._ask("exchange")


# ---- in the processes


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, call: Any) -> Any:
        if call.method.endswith(STREAM):
            return grpc.stream_stream_rpc_method_handler(lambda messages, _: messages)
        return grpc.unary_unary_rpc_method_handler(lambda message, _: message)


def _serve(port: int) -> None:
    server = grpc.server(ThreadPoolExecutor(8), handlers=(_Service(),))
    assert server.add_insecure_port(f"[::]:{port}") == port
    server.start()
    print("ready", flush=True)
    sys.stdin.read()


class _Calls:
    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._answers: Any = None
        self._more: Any = None

    def unary(self, path: str) -> None:
        self._channel.unary_unary(path)(b"message", timeout=TIMEOUT_S, wait_for_ready=True)

    def open(self, path: str) -> None:
        queue: SimpleQueue[bytes] = SimpleQueue()
        self._more = queue
        self._answers = self._channel.stream_stream(path)(iter(queue.get, None), wait_for_ready=True)
        self.exchange()

    def exchange(self) -> None:
        self._more.put(b"message")
        next(self._answers)


def _call(target: str) -> None:
    calls = _Calls(target)
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        try:
            getattr(calls, name)(*arguments)
            print("OK", flush=True)
        except grpc.RpcError as error:
            print(error.code().name, flush=True)


if __name__ == "__main__":
    kind, where = sys.argv[1:]
    if kind == "server":
        _serve(int(where))
    else:
        _call(where)
