"""The xDS server with a real Envoy: refusals, restarts of either side; and with a plain gRPC client, both variants."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy_admin
import grpc
import pytest
import rig
from envoy.service.discovery.v3 import discovery_pb2
from envoy_at import SERVER_V4, EnvoyPath, await_
from http_client import Connection
from http_server import Server

from l7proxy import envoy
from l7proxy.ads import SERVICE, AdsServer
from l7proxy.resource import CLUSTER, LISTENER, ROUTES, Resource
from l7proxy.snapshot import Snapshot
from policies.l7 import L7, Demands, HttpRule


def http(*rules: HttpRule) -> Demands:
    return frozenset({L7(http=frozenset(rules))})


PUBLIC = http(HttpRule("GET", "/public"), HttpRule("GET", "/stream"))
BROKEN = http(HttpRule("GET", "/a("))


@pytest.fixture
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath() as path:
        yield path


def test_refused_resource_is_a_status_and_what_was_stays(path: EnvoyPath) -> None:
    listening = path.serve({80: PUBLIC})[80]
    with Server(path.server, SERVER_V4, 80), Connection(path.connect(80)) as live:
        assert live.get("/public").status == 200
        good = path.ads.snapshot
        assert good is not None
        broken = [
            Resource(one.type_url, one.name, "broken", b"\xff\xff") if one.type_url == ROUTES else one for one in good
        ]
        path.set_snapshot(Snapshot(broken))
        standing = path.standing([listening.name])
        (rejected,) = standing.rejected[listening.name]
        assert rejected.version == "broken"
        assert rejected.message
        assert live.get("/public").status == 200
        path.set_snapshot(good)
        assert path.standing([listening.name]).acked == {listening.name}


def test_listener_that_is_refused_does_not_hold_up_others(path: EnvoyPath) -> None:
    path.serve({80: PUBLIC})
    with pytest.raises(AssertionError, match="missing"):
        path.serve({81: BROKEN, 82: http(HttpRule())})
    standing = path.standing()
    assert len(standing.acked) == 2
    ((name, (rejected,)),) = standing.rejected.items()
    assert (rejected.type_url, rejected.name) == (ROUTES, name)
    assert path.ads.rejected() == [rejected]


def test_envoy_that_starts_anew_gets_everything_again(path: EnvoyPath) -> None:
    path.serve({80: PUBLIC, 81: http()})
    path.kill()
    rig.wait_until(lambda: path.ads.clients == 0)
    assert len(path.standing(timeout_s=0.1).waiting) == 2
    path.start()
    path.serve({})
    with Server(path.server, SERVER_V4, 80), Connection(path.connect(80)) as connection:
        assert connection.get("/public").status == 200
        assert connection.get("/x").status == 403


def test_envoy_does_not_notice_that_the_agent_restarts(path: EnvoyPath) -> None:
    path.serve({80: PUBLIC})
    with (
        Server(path.server, SERVER_V4, 80) as server,
        Connection(path.connect(80)) as live,
        Connection(path.connect(80)) as stream,
    ):
        stream.socket.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.answer(body=False).status == 200
        assert live.get("/public").status == 200
        before = envoy_admin.stats(path.admin)
        path.restart_server()
        standing = path.standing()
        assert len(standing.acked) == 1
        after = envoy_admin.stats(path.admin)
        for name in ("listener_manager.listener_modified", "listener_manager.listener_removed"):
            assert after[name] == before[name] == 0
        assert after["listener_manager.listener_added"] == before["listener_manager.listener_added"]
        assert live.get("/public").status == 200
        server.send_chunk()
        assert stream.chunk() == b"more"
        assert server.accepted == 2


def test_server_without_a_snapshot_takes_nothing_away(path: EnvoyPath) -> None:
    """An agent that has only just started knows nothing yet: that is not the same as knowing there is nothing."""
    path.serve({80: PUBLIC})
    snapshot = path.ads.snapshot
    assert snapshot is not None
    await_(path.ads.stop())
    path.ads = AdsServer(path.dir / "xds.sock")
    await_(path.ads.start())
    rig.wait_until(lambda: path.ads.clients == 1)
    with Server(path.server, SERVER_V4, 80), Connection(path.connect(80)) as connection:
        assert connection.get("/public").status == 200
        path.set_snapshot(snapshot)
        assert len(path.standing().acked) == 1
        assert connection.get("/public").status == 200


def test_removed_listener_is_gone(path: EnvoyPath) -> None:
    path.serve({80: PUBLIC})
    path.set_snapshot(path.compiler.snapshot([]))
    rig.wait_until(lambda: envoy_admin.view(path.admin).listeners == 0)


def test_figures(path: EnvoyPath) -> None:
    path.serve({80: PUBLIC})
    view = envoy_admin.view(path.admin)
    assert (view.listeners, view.warming) == (1, 0)
    assert view.heap_bytes > 1 << 20
    assert view.version.count(".") == 2
    assert stat.S_IMODE(path.admin.stat().st_mode) == 0o600
    with pytest.raises(envoy_admin.Unreachable):
        envoy_admin.ask(path.admin, "/quitquitquit")


def test_nothing_to_ask() -> None:
    with pytest.raises(envoy_admin.Unreachable, match="does not answer"):
        envoy_admin.view(Path("/nowhere/admin.sock"))


def test_no_envoy() -> None:
    assert envoy.binary().name == "envoy"
    with pytest.raises(envoy.NoEnvoy, match="cannot be run"):
        envoy.binary("/nowhere/envoy")


def test_a_path_may_be_longer_than_sockets_take(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100) / "xds.sock"
    path.parent.mkdir()

    async def run() -> None:
        server = AdsServer(path)
        await server.start()
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        await server.stop()

    asyncio.run(run())


# ---- a plain client ------------------------------------------------------------------------------------------


def world(version: str) -> Snapshot:
    return Snapshot([Resource(LISTENER, "a", version, version.encode()), Resource(CLUSTER, "c", "1", b"1")])


def call(channel: Any, method: str, request: Any, response: Any) -> Any:
    return channel.stream_stream(
        f"/{SERVICE}/{method}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )()


async def delta(path: Path) -> None:
    changes = []
    server = AdsServer(path, on_change=lambda: changes.append(1))
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        request, response = discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        stream = call(channel, "DeltaAggregatedResources", request, response)
        await stream.write(request(type_url=LISTENER, node={"id": "one"}))
        server.set(world("1"))
        first = await stream.read()
        assert [(one.name, one.version, one.resource.value) for one in first.resources] == [("a", "1", b"1")]
        assert (await server.acked(timeout_s=0)).waiting == {"a"}
        await stream.write(request(type_url=LISTENER, response_nonce=first.nonce))
        assert (await server.acked()).acked == {"a"}
        server.set(world("2"))
        second = await stream.read()
        nack = request(type_url=LISTENER, response_nonce=second.nonce)
        nack.error_detail.message = "not this"
        await stream.write(nack)
        standing = await server.acked()
        assert [one.message for one in standing.rejected["a"]] == ["not this"]
        assert changes
        stream.cancel()
    while server.clients:
        await asyncio.sleep(0.001)
    assert (await server.acked(timeout_s=0)).waiting == {"a"}
    await server.stop()


async def state_of_the_world(path: Path) -> None:
    server = AdsServer(path)
    await server.start()
    server.set(world("1"))
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        request, response = discovery_pb2.DiscoveryRequest, discovery_pb2.DiscoveryResponse
        stream = call(channel, "StreamAggregatedResources", request, response)
        await stream.write(request(type_url=LISTENER, node={"id": "one"}))
        first = await stream.read()
        assert [one.value for one in first.resources] == [b"1"]
        await stream.write(request(type_url=LISTENER, response_nonce=first.nonce, version_info=first.version_info))
        assert (await server.acked()).acked == {"a"}
        server.set(world("2"))
        second = await stream.read()
        assert second.version_info != first.version_info
        stream.cancel()
    await server.stop()


@pytest.mark.parametrize("variant", [delta, state_of_the_world])
def test_client_of_either_variant(variant: Any, tmp_path: Path) -> None:
    await_(variant(tmp_path / "xds.sock"))


def test_five_hundred_rule_sets_and_one_change(path: EnvoyPath) -> None:
    """One change is one resource on the wire, whatever else there is."""
    path.serve({2000 + at: http(HttpRule("GET", f"/{at}")) for at in range(500)})
    before = envoy_admin.stats(path.admin)
    started = time.monotonic()
    path.serve({3000: http(HttpRule("POST", "/new"))})
    print(f"{time.monotonic() - started:.3f} s")
    after = envoy_admin.stats(path.admin)
    assert after["listener_manager.listener_added"] - before["listener_manager.listener_added"] == 1
    assert after["listener_manager.listener_modified"] == before["listener_manager.listener_modified"] == 0
