"""What numbers and addresses are called, sent to whoever names flows: a snapshot, then deltas (agent.flows.names).

A delta goes out before the kernel can send an event that needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import islice
from typing import Any

from agent.api.protocol import Batch
from agent.objects import Pod
from agent.plan.ids import rule_id
from agent.world.hostports import KIND as HOST_PORT
from agent.world.hostports import host_port_ref
from agent.world.identities import Identity
from agent.world.world import World
from policies.address import format_address, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef, Policy, Protocol

Line = dict[str, Any]
Key = tuple[str, object]
Lines = dict[Key, Line]

SNAPSHOT_LINES = 32
"""Made at once: half a millisecond, for which all else waits."""
PAUSE_S = 0.001
"""Between two pieces of a snapshot: a change that comes meanwhile takes several turns of the loop."""
BACKLOG_LINES = 65536
"""A reader that is further behind is cut off: it comes back and gets a snapshot."""


class NameFeed:
    """`watch` before a change, `publish` after it; `stream` for each subscriber."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._node = node
        self._readers: set[asyncio.Queue[Line | None]] = set()
        self._before: Lines = {}

    def watch(self, refs: Iterable[ObjectRef]) -> None:
        """These objects are about to change."""
        if self._readers:
            for ref in refs:
                self._before.update(self._lines_of(ref))

    def publish(self, refs: Iterable[ObjectRef]) -> None:
        """These objects have changed, and those watched: send what is named otherwise now."""
        if not self._readers:
            return
        after: Lines = {}
        for ref in refs:
            after.update(self._lines_of(ref))
        after.update(self._heirs(self._before.keys() - after.keys()))
        changed = [line for key, line in after.items() if self._before.get(key) != line]
        gone = [line | {"gone": True} for key, line in self._before.items() if key not in after and self._is_gone(key)]
        self._before = {}
        for reader in list(self._readers):
            if reader.qsize() > BACKLOG_LINES:
                self._readers.discard(reader)
                reader.put_nowait(None)
                continue
            for line in (*gone, *changed):
                reader.put_nowait(line)

    async def stream(self, _arguments: dict[str, Any]) -> AsyncGenerator[Batch, None]:
        """Handler of the socket's "names"."""
        reader: asyncio.Queue[Line | None] = asyncio.Queue()
        self._readers.add(reader)
        try:
            # Each line is as of when it is made. What changes comes by the queue as well, in order, and has the last
            # word; whatever came by it before a line was made is in that line, or names the same key again.
            snapshot = self._snapshot()
            while lines := Batch(islice(snapshot, SNAPSHOT_LINES)):
                yield lines
                await asyncio.sleep(PAUSE_S)
            while True:
                batch = Batch([await reader.get()])
                while not reader.empty():
                    batch.append(reader.get_nowait())
                if None in batch:
                    return
                yield batch
        finally:
            self._readers.discard(reader)

    def _snapshot(self) -> Iterator[Line]:
        """Objects may come and go meanwhile: those that come are in the deltas."""
        world = self._world
        identities, pods = [one.number for one in world.identities], [state.pod.ref for state in world.pods]
        nodes = world.remotes.nodes()
        services, policies = list(world.served()), [policy.ref for policy in world.index.policies()]
        yield {"t": "node", "name": self._node}
        for number in identities:
            if (identity := world.identities.get(number)) is not None:
                yield _identity(identity)
        for ref in pods:
            if (state := world.pods.get(ref)) is not None:
                yield from _pod_lines(state.pod).values()
        for name in nodes:
            yield from list(self._remote_lines(name).values())
        for ref in services:
            yield from self._service_lines(ref).values()
        for ref in policies:
            yield from self._lines_of(ref).values()
        yield {"t": "synced"}

    def _lines_of(self, ref: ObjectRef) -> Lines:
        if ref.kind == "Pod":
            state = self._world.pods.get(ref)
            if state is None:
                return {}
            lines = _pod_lines(state.pod)
            identity = self._world.identities.get(state.identity)
            if identity is not None:
                lines["identity", identity.number] = _identity(identity)
            return lines | self._service_lines(host_port_ref(ref))
        if ref.kind == "NodeEndpoints":
            return self._remote_lines(ref.name)
        if ref.kind == "SecurityIdentity":
            identity = self._world.identities.get(int(ref.name))
            return {} if identity is None else {("identity", identity.number): _identity(identity)}
        if ref.kind in ("Service", HOST_PORT):
            return self._service_lines(ref)
        policy = self._world.index.policy(ref)
        return {} if policy is None else _rule_lines(policy)

    def _remote_lines(self, node: str) -> Lines:
        """Of the pods of another node, at the addresses they have."""
        world = self._world
        lines: Lines = {}
        for remote in world.remotes.of(node):
            for address in remote.addresses:
                if world.addresses.remote(address) is remote:
                    lines |= _pod_line(address, remote.ref)
        return lines

    def _service_lines(self, ref: ObjectRef) -> Lines:
        """Of each of its frontends, of whatever kind."""
        lines: Lines = {}
        for frontend in self._world.frontends(ref, served=False):
            text, protocol = format_address(frontend.address), Protocol.BY_NUMBER[frontend.protocol]
            lines["service", (text, frontend.port, protocol)] = {
                "t": "service",
                "address": text,
                "port": frontend.port,
                "protocol": protocol,
                "namespace": ref.namespace,
                "name": ref.name,
                "port_name": frontend.port_name,
            }
        return lines

    def _heirs(self, keys: Iterable[Key]) -> Lines:
        """Pods of other nodes that have an address now which somebody else gave up."""
        lines: Lines = {}
        for kind, name in keys:
            address = parse_address(str(name)) if kind == "pod" else b""
            if address and (remote := self._world.addresses.remote(address)) is not None:
                lines |= _pod_line(address, remote.ref)
        return lines

    def _is_gone(self, key: Key) -> bool:
        """An identity outlives a pod that had it, as long as another one has it."""
        kind, number = key
        return kind != "identity" or self._world.identities.get(int(str(number))) is None


def _pod_lines(pod: Pod) -> Lines:
    """None for a hostNetwork pod: its addresses are the node's."""
    lines: Lines = {}
    for address in () if pod.host_network else pod.addresses:
        lines |= _pod_line(address, pod.ref)
    return lines


def _pod_line(address: bytes, pod: ObjectRef) -> Lines:
    ip = format_address(address)
    return {("pod", ip): {"t": "pod", "ip": ip, "namespace": pod.namespace, "name": pod.name}}


def _identity(identity: Identity) -> Line:
    """With the labels that pods have themselves."""
    own = identity.workload.labels.items()
    labels = sorted(f"{key}={value}" for key, value in own if key != SERVICE_ACCOUNT)
    return {"t": "identity", "id": identity.number, "labels": labels}


def _rule_lines(policy: Policy) -> Lines:
    ref = policy.ref
    lines: Lines = {}
    for rule in policy.rules:
        number = rule_id(rule.ref)
        text = f"{rule.ref.direction}[{rule.ref.index}]"
        lines["rule", number] = {
            "t": "rule",
            "id": number,
            "kind": ref.kind,
            "namespace": ref.namespace,
            "name": ref.name,
            "rule": text,
        }
    return lines
