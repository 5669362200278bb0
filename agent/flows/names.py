"""What numbers and addresses in events are called. Fed by the agent, one delta a line:

    {"t": "rule", "id": 7, "kind": "NetworkPolicy", "namespace": "shop", "name": "web", "rule": "ingress[0]"}
    {"t": "identity", "id": 4711, "labels": ["app=web"]}
    {"t": "pod", "ip": "10.0.0.3", "namespace": "shop", "name": "web-1"}
    {"t": "service", "address": "10.96.0.9", "port": 80, "protocol": "TCP", "namespace": "shop", "name": "web",
     "port_name": "http"}                            a frontend: a cluster address, a node port, …
    {"t": "node", "name": "worker-1"}
    {"t": "synced"}                                  the end of the snapshot a stream begins with

and with "gone": true for what is no more. Events are named when somebody looks, which may be after that: each table
remembers what is gone, up to a number of entries, and finds the name that held at the time of the event. Pure.
"""

from __future__ import annotations

from collections import deque
from sys import intern
from typing import Any, Generic, TypeVar

import msgspec

from agent.datapath.abi import Abi
from agent.flows.flow import PolicyRule
from policies.address import parse_address
from policies.model import Protocol

PAST_ENTRIES = 8192

BUILT_IN = "Built-in"
"""The kind of a rule nobody wrote: default-deny, not-isolated, node, self. As in policies.model."""

K = TypeVar("K")
V = TypeVar("V")


class Rule(msgspec.Struct, tag_field="t", tag="rule"):
    id: int
    kind: str = ""
    namespace: str = ""
    name: str = ""
    rule: str = ""
    gone: bool = False


class Identity(msgspec.Struct, tag_field="t", tag="identity"):
    id: int
    labels: tuple[str, ...] = ()
    gone: bool = False


class Pod(msgspec.Struct, tag_field="t", tag="pod"):
    ip: str
    namespace: str = ""
    name: str = ""
    gone: bool = False


class Service(msgspec.Struct, tag_field="t", tag="service"):
    address: str
    port: int
    protocol: str
    namespace: str = ""
    name: str = ""
    port_name: str = ""
    gone: bool = False


class Node(msgspec.Struct, tag_field="t", tag="node"):
    name: str


class Synced(msgspec.Struct, tag_field="t", tag="synced"):
    pass


Delta = Rule | Identity | Pod | Service | Node | Synced


class Name(msgspec.Struct, frozen=True):
    namespace: str
    name: str


class FrontendName(msgspec.Struct, frozen=True, gc=False):
    namespace: str
    name: str
    port_name: str


class Table(Generic[K, V]):
    """Values by key and time. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, past_entries: int = PAST_ENTRIES) -> None:
        self._present: dict[K, tuple[int, V]] = {}  # since when
        self._past: dict[K, deque[tuple[int, int, V]]] = {}  # from, until; oldest first
        self._retired: deque[K] = deque()  # one for each past entry, oldest first
        self._past_entries = past_entries
        self._unconfirmed: set[K] = set()

    def set(self, key: K, value: V, now_ns: int) -> None:
        self._unconfirmed.discard(key)
        if key in self._present:
            if self._present[key][1] == value:
                return
            self.remove(key, now_ns)
        self._present[key] = (now_ns, value)

    def remove(self, key: K, now_ns: int) -> None:
        if key not in self._present:
            return
        self._unconfirmed.discard(key)
        since, value = self._present.pop(key)
        self._past.setdefault(key, deque()).append((since, now_ns, value))
        self._retired.append(key)
        if len(self._retired) > self._past_entries:
            oldest = self._retired.popleft()
            self._past[oldest].popleft()
            if not self._past[oldest]:
                del self._past[oldest]

    def at(self, key: K, time_ns: int) -> V | None:
        """The value that held then. Names come a little after what they name, so the one nearest in time will do."""
        present = self._present.get(key)
        if present is not None and (present[0] <= time_ns or key not in self._past):
            return present[1]
        nearest: V | None = None
        distance = -1
        spans = [*self._past.get(key, ()), *([(present[0], present[0], present[1])] if present else ())]
        for since, until, value in reversed(spans):
            away = max(since - time_ns, time_ns - until, 0)
            if distance < 0 or away < distance:
                nearest, distance = value, away
        return nearest

    def begin_snapshot(self) -> None:
        self._unconfirmed = set(self._present)

    def end_snapshot(self, now_ns: int) -> None:
        """What the snapshot did not name is gone."""
        for key in list(self._unconfirmed):
            self.remove(key, now_ns)

    def __len__(self) -> int:
        return len(self._present)

    @property
    def remembered(self) -> int:
        return len(self._retired)


class Names:
    """All tables. Addresses are 16 bytes, ports and protocols numbers in host order."""

    def __init__(self, abi: Abi, node: str = "") -> None:
        self.node = node
        self._rules: Table[int, PolicyRule] = Table()
        self._identities: Table[int, tuple[str, ...]] = Table()
        self._pods: Table[bytes, Name] = Table()
        self._services: Table[tuple[bytes, int, int], FrontendName] = Table()
        self._builtin = builtin_rules(abi)
        self._reserved = reserved_labels(abi)

    def begin_snapshot(self) -> None:
        """A new stream of deltas begins: what it does not name before "synced" is gone."""
        for table in self._tables():
            table.begin_snapshot()

    def apply(self, line: Any, now_ns: int) -> None:
        """One decoded delta line. Raises ValueError (msgspec.ValidationError is one) for what is none."""
        match msgspec.convert(line, Delta):
            case Rule(id=rule) as delta:
                value = PolicyRule(delta.kind, delta.namespace, delta.name, delta.rule)
                _apply(self._rules, rule, value, now_ns, gone=delta.gone)
            case Identity(id=identity, labels=labels, gone=gone):
                _apply(self._identities, identity, labels, now_ns, gone=gone)
            case Pod(ip=ip) as delta:
                _apply(self._pods, parse_address(ip), Name(delta.namespace, delta.name), now_ns, gone=delta.gone)
            case Service(address=address) as delta:
                protocol = Protocol.BY_NAME.get(delta.protocol)
                if protocol is None:
                    raise ValueError(f"{delta.protocol!r} is no protocol of a service")
                key = (parse_address(address), delta.port, protocol)
                # Of 50,000 services many are in one namespace, and most call their port the same.
                name = FrontendName(intern(delta.namespace), delta.name, intern(delta.port_name))
                _apply(self._services, key, name, now_ns, gone=delta.gone)
            case Node() as delta:
                self.node = delta.name
            case Synced():
                for table in self._tables():
                    table.end_snapshot(now_ns)

    def rule(self, number: int, time_ns: int) -> PolicyRule:
        """Always something: a number nobody has named is kind Unknown."""
        builtin = self._builtin.get(number)
        if builtin is not None:
            return builtin
        return self._rules.at(number, time_ns) or PolicyRule("Unknown", "", f"{number:016x}", "")

    def labels(self, identity: int, time_ns: int) -> tuple[str, ...]:
        found = self._identities.at(identity, time_ns)
        return found if found is not None else self._reserved.get(identity, ())

    def pod(self, address: bytes, time_ns: int) -> Name | None:
        return self._pods.at(address, time_ns)

    def service(self, address: bytes, port: int, protocol: int, time_ns: int) -> FrontendName | None:
        return self._services.at((address, port, protocol), time_ns)

    def counts(self) -> dict[str, int]:
        kinds = ("rules", "identities", "pods", "services")
        return {kind: len(table) for kind, table in zip(kinds, self._tables(), strict=True)}

    def _tables(self) -> tuple[Table[Any, Any], ...]:
        return self._rules, self._identities, self._pods, self._services


def _apply(table: Table[K, V], key: K, value: V, now_ns: int, *, gone: bool) -> None:
    if gone:
        table.remove(key, now_ns)
    else:
        table.set(key, value, now_ns)


def builtin_rules(abi: Abi) -> dict[int, PolicyRule]:
    """RULE_… of bpf/abi.h. That no rule decided means: an isolated pod, and none of its rules allows it."""
    names = {"RULE_NONE": "default-deny", "RULE_HOST": "node"}
    return {
        number: PolicyRule(BUILT_IN, "", names.get(name, _label(name, "RULE_")), "")
        for name, number in abi.constants.items()
        if name.startswith("RULE_")
    }


def reserved_labels(abi: Abi) -> dict[int, tuple[str, ...]]:
    """IDENTITY_… of bpf/abi.h below the first cluster identity, in Cilium's spelling."""
    names = {"IDENTITY_APISERVER": "kube-apiserver"}
    return {
        number: ("reserved:" + names.get(name, _label(name, "IDENTITY_")),)
        for name, number in abi.constants.items()
        if name.startswith("IDENTITY_") and number < abi.constants["IDENTITY_CLUSTER_MIN"]
    }


def _label(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", "-")
