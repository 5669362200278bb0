"""What one xDS client knows and is owed, apart from how it is talked to: the protocol as values in, values out.

Envoy's ADS (xds_protocol): one stream carries all types. In both variants the client ACKs or NACKs each response by its
nonce. At most one response of a type is on its way: changes meanwhile go into the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from l7proxy.resource import CLUSTER, LISTENER, ROUTES, SECRET, Key, Resource
from l7proxy.snapshot import BREAK_ORDER, MAKE_ORDER, Snapshot

RESPONSE_BYTES = 1 << 20
WILDCARD = "*"
_BY_WILDCARD = (LISTENER, CLUSTER)
"""Types of which a client that names nothing means everything."""
_NAMED_BY_LISTENERS = (CLUSTER, SECRET)


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A NACK: Envoy's words about one version of a resource. What it had before stays in force there."""

    type_url: str
    name: str
    version: str
    message: str


class Stream(Protocol):
    """`acked`: the version of each resource the client said it has. `rejected`: what it refused, until another version
    of that is taken. `heard` is called when either changes."""

    acked: dict[Key, str]
    rejected: dict[Key, Rejected]

    def receive(self, request: Any) -> None: ...

    def responses(self, snapshot: Snapshot) -> Iterator[Any]: ...


class _Sent(msgspec.Struct, gc=False):
    """One response that was not answered yet: versions by name, and names said to be gone."""

    nonce: str
    versions: dict[str, str]
    removed: frozenset[str] = frozenset()


class _Subscription:
    """One type, as delta: what is asked for, and what the client has."""

    def __init__(self) -> None:
        self.wildcard = False
        self.names: set[str] = set()
        self.has: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.missing_said: set[str] = set()
        self.singly: list[str] = []
        self.sent: _Sent | None = None

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class DeltaStream:
    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        self.acked: dict[Key, str] = {}
        self.rejected: dict[Key, Rejected] = {}
        self._heard = heard
        self._types: dict[str, _Subscription] = {}
        self._nonces = itertools.count(1)

    def receive(self, request: Any) -> None:
        """A DeltaDiscoveryRequest: subscriptions, and perhaps an answer to what was sent."""
        type_url = request.type_url
        if (mine := self._types.get(type_url)) is None:
            mine = self._types[type_url] = _Subscription()
            mine.has.update(request.initial_resource_versions)
            self.acked.update({(type_url, name): version for name, version in mine.has.items()})
            mine.wildcard = type_url in _BY_WILDCARD and not request.resource_names_subscribe
        self._subscribe(mine, type_url, request)
        if request.response_nonce and mine.sent and request.response_nonce == mine.sent.nonce:
            sent, mine.sent = mine.sent, None
            if request.HasField("error_detail"):
                self._nack(mine, type_url, sent, request.error_detail.message)
            else:
                self._ack(mine, type_url, sent)
        self._heard()

    def responses(self, snapshot: Snapshot) -> Iterator[Any]:
        """What is to be sent now, in order: first what is new, then what is gone."""
        for type_url in MAKE_ORDER:
            mine = self._types.get(type_url)
            if mine and not mine.sent and (response := self._changed(mine, type_url, snapshot)):
                yield response
        if any(mine.sent and mine.sent.versions for mine in self._types.values()):
            return  # what is new is taken first
        for type_url in BREAK_ORDER:
            mine = self._types.get(type_url)
            if mine and not mine.sent and (response := self._gone(mine, type_url, snapshot)):
                yield response

    # ---- what the client says --------------------------------------------------------------------------------

    def _subscribe(self, mine: _Subscription, type_url: str, request: Any) -> None:
        for name in request.resource_names_subscribe:
            if name == WILDCARD:
                mine.wildcard = True
                continue
            if name in mine.names or name in mine.has:  # asked again: it is sent again
                mine.has.pop(name, None)
                mine.missing_said.discard(name)
            mine.names.add(name)
        for name in request.initial_resource_versions:
            if name in mine.names:  # it has this and says so
                mine.has.setdefault(name, request.initial_resource_versions[name])
        for name in request.resource_names_unsubscribe:
            if name == WILDCARD:
                mine.wildcard = False
                continue
            mine.names.discard(name)
            mine.missing_said.discard(name)
            if not mine.wildcard:
                mine.has.pop(name, None)
                self._forget((type_url, name))

    def _ack(self, mine: _Subscription, type_url: str, sent: _Sent) -> None:
        for name, version in sent.versions.items():
            if mine.wants(name):
                mine.has[name] = version
                self.acked[type_url, name] = version
            mine.refused.pop(name, None)
            self.rejected.pop((type_url, name), None)
        if type_url in _NAMED_BY_LISTENERS and sent.versions and LISTENER in self._types:
            self._types[LISTENER].refused.clear()  # it may have been for their sake: they are sent once more
        for name in sent.removed:
            mine.has.pop(name, None)
            self._forget((type_url, name))

    def _nack(self, mine: _Subscription, type_url: str, sent: _Sent, message: str) -> None:
        """Of several resources, the others may be good: each is sent once more by itself, so each gets its answer."""
        if len(sent.versions) > 1:
            mine.singly.extend(sorted(sent.versions))
            return
        for name, version in sent.versions.items():
            mine.refused[name] = version
            if name in mine.has:
                mine.has[name] = ""  # not sure: Envoy keeps a Secret that it refused
            self.rejected[type_url, name] = Rejected(type_url, name, version, message)
        for name in sent.removed:
            mine.has.pop(name, None)

    def _forget(self, key: Key) -> None:
        self.acked.pop(key, None)
        self.rejected.pop(key, None)

    # ---- what it is told -------------------------------------------------------------------------------------

    def _changed(self, mine: _Subscription, type_url: str, snapshot: Snapshot) -> Any | None:
        current = snapshot.of_type(type_url)
        for name in [name for name, version in mine.refused.items() if _version(current, name) != version]:
            del mine.refused[name]
            self.rejected.pop((type_url, name), None)
        wanted = current.values() if mine.wildcard else [current[name] for name in mine.names if name in current]
        due = [one for one in wanted if one.version not in (mine.has.get(one.name), mine.refused.get(one.name))]
        if mine.singly:
            names = {one.name: one for one in due}
            mine.singly = [name for name in mine.singly if name in names]
            due = [names[mine.singly.pop(0)]] if mine.singly else due
        if not due:
            return None
        chosen = list(_fitting(due))
        return self._send(mine, type_url, snapshot, chosen, frozenset())

    def _gone(self, mine: _Subscription, type_url: str, snapshot: Snapshot) -> Any | None:
        current = snapshot.of_type(type_url)
        gone = {name for name in mine.has if name not in current}
        missing = {name for name in mine.names if name not in current and name not in mine.missing_said}
        mine.missing_said |= missing
        if not gone and not missing:
            return None
        for name in gone:
            del mine.has[name]
        return self._send(mine, type_url, snapshot, [], frozenset(gone | missing))

    def _send(
        self, mine: _Subscription, type_url: str, snapshot: Snapshot, chosen: list[Resource], removed: frozenset[str]
    ) -> Any:
        mine.sent = _Sent(str(next(self._nonces)), {one.name: one.version for one in chosen}, removed)
        mine.missing_said.difference_update(mine.sent.versions)
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=type_url,
            nonce=mine.sent.nonce,
            system_version_info=snapshot.version(type_url),
            resources=map(_wrapped, chosen),
            removed_resources=sorted(removed),
        )


class StateOfTheWorldStream:
    """Each response holds all resources of its type that the client asks for."""

    def __init__(self, heard: Callable[[], None] = lambda: None) -> None:
        self.acked: dict[Key, str] = {}
        self.rejected: dict[Key, Rejected] = {}
        self._heard = heard
        self._names: dict[str, frozenset[str] | None] = {}
        self._sent: dict[str, _Sent] = {}
        self._done: dict[str, dict[str, Resource]] = {}
        self._nonces = itertools.count(1)

    def receive(self, request: Any) -> None:
        """A DiscoveryRequest."""
        type_url = request.type_url
        sent = self._sent.get(type_url)
        if request.response_nonce and (sent is None or request.response_nonce != sent.nonce):
            return  # about a response that another has overtaken
        first = type_url not in self._names
        if not request.resource_names and (first or self._names[type_url] is None) and type_url in _BY_WILDCARD:
            self._names[type_url] = None
        else:
            named = frozenset(request.resource_names)
            self._names[type_url] = None if WILDCARD in named else named
        if sent is not None and request.response_nonce:
            del self._sent[type_url]
            self._answered(type_url, sent, request)
        self._heard()

    def responses(self, snapshot: Snapshot) -> Iterator[Any]:
        for type_url in MAKE_ORDER:
            if type_url not in self._names or type_url in self._sent:
                continue
            resources = {one.name: one for one in self._wanted(type_url, snapshot)}
            versions = {one.name: one.version for one in resources.values()}
            if type_url in _NAMED_BY_LISTENERS and self._listeners_lag(snapshot):
                resources = {**self._done.get(type_url, {}), **resources}
            if self._done.get(type_url) == resources or not (versions or type_url in _BY_WILDCARD):
                continue  # there is no way to say that what is named is missing
            self._done[type_url] = resources
            self._sent[type_url] = _Sent(str(next(self._nonces)), versions)
            yield discovery_pb2.DiscoveryResponse(
                type_url=type_url,
                version_info=snapshot.version(type_url),
                nonce=self._sent[type_url].nonce,
                resources=map(_any, resources.values()),
            )

    def _wanted(self, type_url: str, snapshot: Snapshot) -> Iterator[Resource]:
        names = self._names[type_url]
        for one in snapshot.of_type(type_url).values():
            if names is None or one.name in names:
                yield one

    def _listeners_lag(self, snapshot: Snapshot) -> bool:
        """Whether listeners or routes may still name what is to go."""
        return any(
            type_url in self._sent
            or self._done.get(type_url) != {one.name: one for one in self._wanted(type_url, snapshot)}
            for type_url in (LISTENER, ROUTES)
            if type_url in self._names
        )

    def _answered(self, type_url: str, sent: _Sent, request: Any) -> None:
        mine = [key for key in (*self.acked, *self.rejected) if key[0] == type_url]
        if not request.HasField("error_detail"):
            for key in mine:
                self.acked.pop(key, None)
                self.rejected.pop(key, None)
            self.acked.update({(type_url, name): version for name, version in sent.versions.items()})
            return
        for name, version in sent.versions.items():  # all or nothing: which of them it was, only the words say
            if self.acked.get((type_url, name)) != version:
                self.rejected[type_url, name] = Rejected(type_url, name, version, request.error_detail.message)


def _version(resources: Mapping[str, Resource], name: str) -> str:
    return resources[name].version if name in resources else ""


def _fitting(resources: list[Resource]) -> Iterator[Resource]:
    """As many as go into one response; one at least."""
    size = 0
    for one in resources:
        size += len(one.value)
        if size > RESPONSE_BYTES and size > len(one.value):
            return
        yield one


def _wrapped(one: Resource) -> Any:
    return discovery_pb2.Resource(name=one.name, version=one.version, resource=_any(one))


def _any(one: Resource) -> Any:
    return any_pb2.Any(type_url=one.type_url, value=one.value)
