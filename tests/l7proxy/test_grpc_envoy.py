"""gRPC through a real Envoy: methods allowed and refused on one connection, trailers, streams."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from envoy_at import SERVER_V4, EnvoyPath

from policies.l7 import L7, HttpRule

PORT = 50051
SERVER = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
def echo(request, context):
    context.set_trailing_metadata((("x-end", "here"),))
    return request
def many(request, context):
    for at in range(3):
        yield request + str(at).encode()
handlers = {{
    "Allowed": grpc.unary_unary_rpc_method_handler(echo),
    "Refused": grpc.unary_unary_rpc_method_handler(echo),
    "Stream": grpc.unary_stream_rpc_method_handler(many),
}}
server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
server.add_insecure_port("{SERVER_V4}:{PORT}")
server.start()
print("ready", flush=True)
server.wait_for_termination()
"""
CLIENT = f"""
import json
import grpc
said = {{}}
with grpc.insecure_channel("{SERVER_V4}:{PORT}") as channel:
    for name in ("Allowed", "Refused", "Allowed"):
        try:
            answer, call = channel.unary_unary(f"/test.Echo/{{name}}").with_call(b"hello", timeout=30)
            said[name] = [call.code().name, answer.decode(), dict(call.trailing_metadata())]
        except grpc.RpcError as error:
            said[name] = [error.code().name, error.details(), dict(error.trailing_metadata() or ())]
    said["Stream"] = [one.decode() for one in channel.unary_stream("/test.Echo/Stream")(b"n", timeout=30)]
print(json.dumps(said))
"""


@pytest.fixture
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath(log=True) as path:
        yield path


def test_grpc_methods(path: EnvoyPath) -> None:
    rules = frozenset({HttpRule("POST", "/test\\.Echo/(?:Allowed|Stream)")})
    path.serve({PORT: frozenset({L7(http=rules)})})
    server = path.server.popen(sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    said = json.loads(path.client.run(sys.executable, "-c", CLIENT).stdout)
    assert said["Allowed"] == ["OK", "hello", {"x-end": "here"}]
    assert said["Refused"][:2] == ["PERMISSION_DENIED", "Access denied\n"]
    assert said["Stream"] == ["n0", "n1", "n2"]
    records = path.log.of_port(PORT, 4)
    assert [record.denied for record in records] == [False, True, False, False]
    assert len({record.source_port for record in records}) == 1, "all on one connection"
