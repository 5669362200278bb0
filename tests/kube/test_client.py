"""Requests to a small HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent.kube.client import ApiClient, Timeouts
from agent.kube.credentials import Access, in_cluster
from agent.kube.errors import ApiServerError, ApiUnreachable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATIENT = Timeouts(connect_s=60, read_s=60, whole_s=60, stall_s=60)
QUICK = Timeouts(connect_s=1, read_s=0.3, whole_s=1, stall_s=0.3)  # where nothing comes


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    runner = web.AppRunner(_app(handler), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _app(handler: Handler) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return app


@asynccontextmanager
async def asking(handler: Handler, timeouts: Timeouts = PATIENT) -> AsyncIterator[ApiClient]:
    async with serving(handler) as server:

        async def load(refused: bool) -> Access:
            return Access(server, "Bearer again" if refused else "Bearer first")

        client = ApiClient(load, timeouts=timeouts)
        try:
            yield client
        finally:
            await client.close()


def test_a_request_says_what_is_sent() -> None:
    seen: list[tuple[str, str, str, str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        kind = request.headers.get("Content-Type", "")
        seen.append((request.method, request.path_qs, request.headers["Authorization"], kind, await request.read()))
        return web.Response(body=b"{}")

    async def run() -> None:
        async with asking(handler) as client:
            assert await client.get("/api/v1/nodes", {"fieldSelector": "a=b"}) == b"{}"
            await client.create("/api/v1/nodes", b"1")
            await client.update("/api/v1/nodes/a", b"2")
            await client.patch("/api/v1/nodes/a", b"3", query={"fieldManager": "x"})
            await client.delete("/api/v1/nodes/a", uid="u", resource_version="7")
            await client.delete("/api/v1/nodes/b")

    asyncio.run(run())
    options = {"apiVersion": "v1", "kind": "DeleteOptions"}
    guarded = {**options, "preconditions": {"uid": "u", "resourceVersion": "7"}}
    json_, merge = "application/json", "application/merge-patch+json"
    assert [(m, p, k) for m, p, _, k, _ in seen] == [
        ("GET", "/api/v1/nodes?fieldSelector=a%3Db", ""),
        ("POST", "/api/v1/nodes", json_),
        ("PUT", "/api/v1/nodes/a", json_),
        ("PATCH", "/api/v1/nodes/a?fieldManager=x", merge),
        ("DELETE", "/api/v1/nodes/a", json_),
        ("DELETE", "/api/v1/nodes/b", json_),
    ]
    assert {a for _, _, a, _, _ in seen} == {"Bearer first"}
    assert [b for *_, b in seen[1:4]] == [b"1", b"2", b"3"]
    assert [json.loads(b) for *_, b in seen[4:]] == [guarded, options]


def test_a_refusal_carries_what_the_server_says() -> None:
    async def handler(request: web.Request) -> web.Response:
        body = {"kind": "Status", "reason": "Forbidden", "message": "nodes is forbidden", "code": 403}
        return web.json_response(body, status=403)

    async def run() -> None:
        async with asking(handler) as client:
            with pytest.raises(
                ApiServerError, match="GET /api/v1/nodes: 403: Forbidden: nodes is forbidden: give"
            ) as e:
                await client.get("/api/v1/nodes")
            assert (e.value.status, e.value.reason, e.value.retry_after_s) == (403, "Forbidden", 0)
            assert client.unreachable_since_s is None, "it answers"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "details", "wait_s"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, 0.0),
        ({}, {"retryAfterSeconds": 9}, 9.0),
        ({"Retry-After": "3"}, {"retryAfterSeconds": 9}, 9.0),
    ],
)
def test_how_long_the_server_wants_to_be_left_alone(
    headers: dict[str, str], details: dict[str, int], wait_s: float
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "details": details}, status=429, headers=headers)

    async def run() -> None:
        async with asking(handler) as client:
            with pytest.raises(ApiServerError) as e:
                await client.get("/")
            assert e.value.retry_after_s == wait_s

    asyncio.run(run())


def test_an_answer_that_is_no_json_is_still_a_refusal() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=503, text="upstream connect error")

    async def run() -> None:
        async with asking(handler) as client:
            with pytest.raises(ApiServerError, match="503: upstream connect error"):
                await client.get("/")
            assert client.unreachable_since_s is not None, "a server that answers 5xx does not serve"

    asyncio.run(run())


def test_credentials_that_are_refused_are_read_again() -> None:
    async def handler(request: web.Request) -> web.Response:
        good = request.headers["Authorization"] == "Bearer again"
        return web.Response(status=200 if good else 401, text=await request.text())

    async def run() -> None:
        async with asking(handler) as client:
            assert await client.create("/", b"body") == b"body"

    asyncio.run(run())


def test_credentials_that_stay_refused_are_an_error() -> None:
    asked = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=401)

    async def run() -> None:
        async with asking(handler) as client:
            with pytest.raises(ApiServerError, match="credentials are not accepted"):
                await client.get("/")

    asyncio.run(run())
    assert asked == 2, "once more with what was read again, and no more"


def test_nobody_there() -> None:
    async def load(refused: bool) -> Access:
        return Access("http://127.0.0.1:1")

    async def run() -> None:
        client = ApiClient(load, timeouts=QUICK)
        with pytest.raises(ApiUnreachable, match=r"GET /version: .*127\.0\.0\.1"):
            await client.get("/version")
        since_s = client.unreachable_since_s
        with pytest.raises(ApiUnreachable):
            await client.get("/version")
        assert since_s is not None
        assert client.unreachable_since_s == since_s
        await client.close()

    asyncio.run(run())


async def _hang(request: web.Request) -> web.StreamResponse:
    """Accepts, and never says anything more."""
    await asyncio.sleep(30)
    return web.Response()


async def _break_off(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"items": [')
    assert request.transport is not None
    request.transport.abort()
    return answer


@pytest.mark.parametrize("handler", [_hang, _break_off])
def test_no_whole_answer(handler: Handler) -> None:
    async def run() -> None:
        async with asking(handler, QUICK) as client:
            with pytest.raises(ApiUnreachable):
                await client.get("/api/v1/pods")
            with pytest.raises(ApiUnreachable):
                [line async for line in client.watch("/api/v1/pods")]

    asyncio.run(run())


def test_an_answer_that_trickles_without_end() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(100):
            await answer.write(b" ")
            await asyncio.sleep(0.05)
        return answer

    async def run() -> None:
        async with asking(handler, QUICK) as client:
            with pytest.raises(ApiUnreachable):
                await client.get("/api/v1/pods")

    asyncio.run(run())


def test_the_lines_of_a_watch_however_they_are_cut() -> None:
    text = b'{"a":1}\n{"b":"' + b"x" * 70_000 + b'"}\n\n{"c":3}\n{"broken'

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.query["watch"] == "true"
        assert request.query["resourceVersion"] == "5"
        answer = web.StreamResponse()
        await answer.prepare(request)
        for piece in (text[:3], text[3:9], text[9:50_000], text[50_000:]):
            await answer.write(piece)
        return answer

    async def run() -> None:
        async with asking(handler) as client, aclosing(client.watch("/w", {"resourceVersion": "5"})) as lines:
            found = [line async for line in lines]
        assert found == [b'{"a":1}', text.split(b"\n")[1], b'{"c":3}'], "and half a line is none"

    asyncio.run(run())


def test_pages() -> None:
    asked: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        place = request.query.get("continue", "")
        asked.append((request.query["limit"], place))
        more = {"": "a", "a": "b", "b": ""}[place]
        body = {"metadata": {"resourceVersion": "9", "continue": more}, "items": [{"n": len(asked)}]}
        return web.json_response(body)

    async def run() -> None:
        async with asking(handler) as client:
            pages = [page async for page in client.pages("/api/v1/pods", limit=1)]
        assert [json.loads(bytes(page.items[0])) for page in pages] == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert [page.last for page in pages] == [False, False, True]
        assert {page.resource_version for page in pages} == {"9"}

    asyncio.run(run())
    assert asked == [("1", ""), ("1", "a"), ("1", "b")]


def test_a_page_that_is_none() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text='{"metadata": {}, "ite')

    async def run() -> None:
        async with asking(handler) as client:
            with pytest.raises(ApiUnreachable, match="the answer is no list"):
                [page async for page in client.pages("/api/v1/pods")]

    asyncio.run(run())


def test_the_token_of_the_service_account_is_read_as_it_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.kube.client.REFUSED_S", 3600.0)
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"].partition(" ")[2])
        return web.Response(status=401 if seen[-1] == "old" else 200)

    async def run() -> None:
        async with serving(handler) as server:
            account = in_cluster(tmp_path, {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"})
            found: list[Access] = []

            async def load(refused: bool) -> Access:
                found.append(await account(refused))
                return Access(server, found[-1].authorization)

            client = ApiClient(load, timeouts=PATIENT)
            with pytest.raises(ApiUnreachable, match="give --kubeconfig"):
                await client.get("/")
            (tmp_path / "ca.crt").write_text("some certificate")
            (tmp_path / "token").write_text("old\n")
            with pytest.raises(ApiServerError):
                await client.get("/")
            (tmp_path / "token").write_text("new\n")
            with pytest.raises(ApiServerError):
                await client.get("/")  # it was read again just now
            client._refused_s -= 3601.0
            await client.get("/")
            (tmp_path / "token").write_text("newer\n")
            await client.get("/")
            client._loaded_s -= 61.0
            await client.get("/")
            assert found[-1].server == "https://127.0.0.1:1"
            await client.close()

    asyncio.run(run())
    assert seen == ["old", "old", "old", "new", "new", "newer"]
