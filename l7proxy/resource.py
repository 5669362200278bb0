"""One xDS resource as it is sent: serialised, named, versioned by its content."""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

import msgspec

_PREFIX = "type.googleapis.com/"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

SHORT = {LISTENER: "listener", ROUTES: "routes", CLUSTER: "cluster", SECRET: "secret"}

Key = tuple[str, str]
"""Type URL and name."""


class Message(Protocol):
    """A protobuf message: their modules are untyped."""

    def SerializeToString(self, *, deterministic: bool) -> bytes: ...  # noqa: N802


class Resource(msgspec.Struct, frozen=True, gc=False):
    """`version`: hash of `value`. `needs`: what must be there for this one to work. `ports`: on which it listens.

    Shown without its value: it may be a private key.
    """

    type_url: str
    name: str
    version: str
    value: bytes
    needs: frozenset[Key] = frozenset()
    ports: frozenset[int] = frozenset()

    @property
    def key(self) -> Key:
        return self.type_url, self.name

    def __repr__(self) -> str:
        return f"Resource({SHORT.get(self.type_url, self.type_url)} {self.name!r} version {self.version})"


def resource(
    type_url: str,
    name: str,
    message: Message,
    needs: frozenset[Key] = frozenset(),
    ports: frozenset[int] = frozenset(),
) -> Resource:
    value = message.SerializeToString(deterministic=True)
    return Resource(type_url, name, content_version(value), value, needs, ports)


def content_version(content: bytes) -> str:
    return blake2b(content, digest_size=8, person=b"xds").hexdigest()
