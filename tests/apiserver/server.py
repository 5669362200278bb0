"""An API server in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web
from certificates import Authority

from apiserver import writes
from apiserver.client import Client
from apiserver.faults import Faults, send_reset
from apiserver.handlers import Handler, Seen
from apiserver.resources import TABLE, Resource
from apiserver.store import Collection, Store
from apiserver.watching import Watch, gone

_BIGGEST_BODY = 3 << 20
_WAIT_S = 10.0
_FIRST_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")

Object = dict[str, Any]


class Inside(Protocol):
    """A network namespace (rig.Netns): runs a function inside."""

    def call(self, function: Callable[..., Any], /, *args: Any) -> Any: ...


class ApiServer:
    """Serves from `start` (or `with`) on. See the package for what it can."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        netns: Inside | None = None,
        tls: bool = False,
        token: str | None = None,
        without: Iterable[str] = (),
    ) -> None:
        """`without`: groups or plurals whose definitions are missing. `token`: that which clients must have."""
        missing = frozenset(without)
        self.store = Store([r for r in TABLE if r.group not in missing and r.plural not in missing])
        self.faults = Faults()
        self._handler = Handler(self.store, self.faults)
        self.faults.changed = self._wake
        self.token = token
        if token is not None:
            self._handler.tokens = frozenset({token})
        self._host, self._netns = host, netns
        self._authority = Authority("api") if tls else None
        self._tls = self._authority.pair("localhost", host).server_context() if self._authority else None
        self._held = self._bound(0)  # keeps the port between stop and start
        self.port: int = self._held.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: web.AppRunner | None = None
        for name in _FIRST_NAMESPACES:
            self.load([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])

    # Life

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def client(self) -> Client:
        """With its token, by hand."""
        return Client(self.url, self.token, self._authority.pem if self._authority else None)

    def start(self) -> None:
        """Returns when it answers. After `stop`: on the same port, with the same objects."""
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, ready), name="apiserver", daemon=True)
        self._thread.start()
        if not ready.wait(_WAIT_S):
            raise RuntimeError("the API server did not start")

    def stop(self) -> None:
        """Every connection is reset, as by a crash; from then on they are refused."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(_WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop = self._thread = None

    def close(self) -> None:
        self.stop()
        self._held.close()

    # Objects

    def load(self, objects: Iterable[Object]) -> int:
        """Puts whole objects (with status) there, new or not, without a check; watches see them. How many."""
        count = 0
        for given in objects:
            self.put(given)
            count += 1
        return count

    def put(self, given: Object) -> Object:
        """One of `load`. Returns it as it is now."""
        collection = self.store.of_kind(given["apiVersion"], given["kind"])
        resource, obj = collection.resource, msgspec.json.decode(msgspec.json.encode(given))
        metadata = obj["metadata"]
        namespace = metadata.setdefault("namespace", "default") if resource.namespaced else ""
        with self.store.lock:
            old = collection.entries.get(f"{namespace}/{metadata['name']}" if namespace else metadata["name"])
            if old is not None:
                was = old.read()["metadata"]
                metadata |= {key: was[key] for key in ("uid", "creationTimestamp") if key in was}
                if resource.generation:
                    metadata["generation"] = was.get("generation", 0) + 1
            writes.fresh(resource, obj)
            return self.store.put(collection, namespace, metadata["name"], obj).read()

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        with self.store.lock:
            entry = self._collection(plural).entries.get(f"{namespace}/{name}" if namespace else name)
        return entry.read() if entry is not None else None

    def objects(self, plural: str) -> list[Object]:
        with self.store.lock:
            entries = list(self._collection(plural).entries.values())
        return [entry.read() for entry in entries]

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        """At once, whatever finalizers say. Raises KeyError."""
        collection = self._collection(plural)
        with self.store.lock:
            self.store.remove(collection, collection.entries[f"{namespace}/{name}" if namespace else name])

    def install(self, resource: Resource) -> None:
        """As if its definition came now."""
        self.store.install(resource)

    def uninstall(self, plural: str) -> None:
        """As if its definition went: with its objects and watches."""
        self.store.uninstall(self._collection(plural))
        self._on_watches(Watch.end, plural)

    # What clients did, and what is done to them

    @property
    def requests(self) -> list[Seen]:
        """All so far, the oldest first."""
        return list(self._handler.seen)

    def forget_requests(self) -> None:
        self._handler.seen.clear()

    def watching(self, *plurals: str) -> int:
        """How many watches are open."""
        return self._on_watches(lambda watch: None, *plurals)

    def drop_watches(self, *plurals: str) -> int:
        """Ends them in good order, in the middle of whatever happens. How many."""
        return self._on_watches(Watch.end, *plurals)

    def bookmark(self, *plurals: str) -> int:
        """A bookmark now, to those that asked for bookmarks. By themselves they come every `bookmark_every_s`."""
        return self._on_watches(Watch.bookmark, *plurals)

    def bookmark_every(self, seconds: float) -> None:
        """From the next watch on."""
        self._handler.bookmark_every_s = seconds

    def compact(self, tell: bool = True) -> int:
        """410 for every older version, page token and (with `tell`: at once, as an ERROR event) watch. How many."""
        self.store.compact()
        return self._on_watches(lambda watch: watch.end(gone())) if tell else 0

    def set_token(self, token: str | None) -> None:
        """The former one is refused with 401 from now on."""
        self.token = token
        self._handler.tokens = None if token is None else frozenset({token})

    def kubeconfig(self, path: Path, token_file: Path | None = None) -> Path:
        """Written to `path`. With `token_file` it names that file, and the present token is written there."""
        cluster: Object = {"server": self.url}
        if self._authority is not None:
            authority = path.with_suffix(".ca.pem")
            authority.write_bytes(self._authority.pem)
            cluster["certificate-authority"] = str(authority)
        user: Object = {}
        if self.token is not None and token_file is not None:
            token_file.write_text(self.token)
            user = {"tokenFile": str(token_file)}
        elif self.token is not None:
            user = {"token": self.token}
        write_kubeconfig(path, cluster, user)
        return path

    def _collection(self, plural: str) -> Collection:
        for collection in self.store.collections():
            if collection.resource.plural == plural:
                return collection
        raise KeyError(f"no resource {plural}")

    def _on_watches(self, does: Callable[[Watch], None], *plurals: str) -> int:
        return self._handler.watches.each(does, plurals)

    def _wake(self) -> None:
        self._on_watches(Watch.wake)

    def _bound(self, port: int) -> socket.socket:
        def bind() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((self._host, port))
            return made

        bound: socket.socket = self._netns.call(bind) if self._netns else bind()
        return bound

    def _run(self, loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._open())
        ready.set()
        loop.run_forever()
        loop.close()

    async def _open(self) -> None:
        app = web.Application(client_max_size=_BIGGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._handler.handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listening = sock = self._bound(self.port)
        sock.listen(1024)
        await web.SockSite(self._runner, sock, ssl_context=self._tls, backlog=1024).start()

    async def _shut(self) -> None:
        assert self._runner is not None and self._runner.server is not None
        asyncio.get_running_loop().remove_reader(self._listening)
        for _ in range(5):  # what was accepted just before becomes a connection
            await asyncio.sleep(0)
        for site in list(self._runner.sites):
            await site.stop()
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                send_reset(connection.transport.get_extra_info("socket"))
                connection.transport.abort()
        await self._runner.cleanup()


def write_kubeconfig(path: Path, cluster: Object, user: Object) -> None:
    """With one context, which is the current one."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config))
