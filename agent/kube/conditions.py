"""The conditions of CiliumNetworkPolicies, from what the nodes report. Pure.

    Valid     True: those that have read this generation understand it; False: some refuse it, and the message says why;
              Unknown: none has reported on it yet. (The name is Cilium's.)
    Enforced  True: it is in force on every node; False: not yet, or not everywhere, and the message counts the nodes.

Every change of a condition is an event to every agent of the cluster. So nodes are counted in words only while some are
missing, a node that joins with everything in force changes nothing, and what is not final is written seldom.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from agent.kube.bodies import MESSAGE, Metadata, RefusedPolicy, rfc3339

VALID, ENFORCED = "Valid", "Enforced"
FIRST_S = 15.0
"""A generation is given this long to arrive everywhere before it is said that it has not."""
NEXT_S = 30.0
"""And so long passes between two sayings of that."""


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """Of a policy's status.conditions."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str = ""


class _PolicyStatus(msgspec.Struct):
    conditions: list[dict[str, Any]] | None = None


class PolicyMeta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    resource_version: str = ""
    generation: int = 0


class PolicyHead(msgspec.Struct):
    metadata: PolicyMeta
    status: _PolicyStatus | None = None

    @property
    def conditions(self) -> list[dict[str, Any]]:
        return (self.status.conditions if self.status else None) or []


class _NodeReport(msgspec.Struct):
    enforced: msgspec.Raw = msgspec.Raw(b"{}")
    refused: list[RefusedPolicy] | None = None


class NodeStatusHead(msgspec.Struct):
    metadata: Metadata
    status: _NodeReport | None = None


NOTHING: Mapping[str, int] = {}


class Reports:
    """Which generation of which policy is in force on how many nodes. Most report the same, which is kept once."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[bytes, list[RefusedPolicy]]] = {}  # digest of what is enforced, what is refused
        self._shared: dict[bytes, Mapping[str, int]] = {}
        self._uses: Counter[bytes] = Counter()
        self._refused: defaultdict[str, dict[str, RefusedPolicy]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, node: str, report: NodeStatusHead | None) -> set[str] | None:
        """What a node reports now; None: it is gone. Returns policies of which anything may be different; None: of all,
        as there are more or fewer nodes."""
        count, new, refused = len(self._nodes), NOTHING, list[RefusedPolicy]()
        status = report.status if report is not None else None
        shared = self._share(status.enforced) if status is not None else None
        old_digest, old_refused = self._nodes.pop(node, (b"", []))
        old = self._shared.get(old_digest, NOTHING)
        if status is not None and shared is not None:
            digest, new = shared
            refused = status.refused or []
            self._nodes[node] = digest, refused
        changed = {policy for policy, _ in old.items() ^ new.items()} if old is not new else set()
        changed |= self._refuse(node, old_refused, refused)
        if old_digest:
            self._drop(old_digest)
        return changed if len(self._nodes) == count else None

    def enforcing(self, policy: str, generation: int) -> int:
        """On how many nodes that generation is in force."""
        return sum(self._uses[digest] for digest, said in self._shared.items() if said.get(policy) == generation)

    def refusals(self, policy: str, generation: int) -> list[tuple[str, str]]:
        """Nodes that do not take that generation, and why."""
        refused = self._refused.get(policy, {})
        return sorted((node, one.message) for node, one in refused.items() if one.generation == generation)

    def _share(self, enforced: msgspec.Raw) -> tuple[bytes, Mapping[str, int]]:
        digest = blake2b(bytes(enforced), digest_size=16).digest()
        if digest not in self._shared:
            self._shared[digest] = msgspec.json.decode(enforced, type=dict[str, int])
        self._uses[digest] += 1
        return digest, self._shared[digest]

    def _refuse(self, node: str, old: Iterable[RefusedPolicy], new: Iterable[RefusedPolicy]) -> set[str]:
        for one in old:
            self._refused[one.policy].pop(node, None)
            if not self._refused[one.policy]:
                del self._refused[one.policy]
        for one in new:
            self._refused[one.policy][node] = one
        return {one.policy for one in (*old, *new)}

    def _drop(self, digest: bytes) -> None:
        self._uses[digest] -= 1
        if not self._uses[digest]:
            del self._uses[digest], self._shared[digest]


def wanted(reports: Reports, policy: str, generation: int) -> tuple[Condition, Condition]:
    """Valid and Enforced, without times."""
    total, enforcing = len(reports), reports.enforcing(policy, generation)
    refusals = reports.refusals(policy, generation)
    if refusals:
        node, why = refusals[0]
        others = f" and {len(refusals) - 1} more" if len(refusals) > 1 else ""
        valid = Condition(VALID, "False", "Refused", f"refused by {node}{others}: {why}"[:MESSAGE])
    elif enforcing:
        valid = Condition(VALID, "True", "Accepted", "the policy is understood")
    else:
        valid = Condition(VALID, "Unknown", "Pending", f"no node has reported on generation {generation} yet")
    if enforcing == total:
        return valid, Condition(ENFORCED, "True", "EnforcedOnAllNodes", "in force on all nodes")
    reason = "RefusedByNodes" if refusals else "NotOnAllNodes"
    said = f"generation {generation} is in force on {enforcing} of {total} nodes"
    return valid, Condition(ENFORCED, "False", reason, said)


def patch(head: PolicyHead, conditions: Iterable[Condition], now: datetime) -> dict[str, Any] | None:
    """A merge patch of that version's status; None where it says so already. Conditions of others stay."""
    new = {one.type: one for one in conditions}
    old = {str(one.get("type")): one for one in head.conditions}
    told = []
    for kind, condition in new.items():
        before = old.get(kind, {})
        since = before.get("lastTransitionTime") if before.get("status") == condition.status else None
        full = msgspec.structs.replace(condition, last_transition_time=since or rfc3339(now))
        told.append(msgspec.to_builtins(full))
    if all(old.get(one["type"]) == one for one in told):
        return None
    kept = [one for kind, one in old.items() if kind not in new]
    return {"metadata": {"resourceVersion": head.metadata.resource_version}, "status": {"conditions": kept + told}}


class PolicyBook:
    """Policies by their names in NodeStatus (CiliumNetworkPolicy/shop/web), and which conditions are to be written."""

    def __init__(self) -> None:
        self.reports = Reports()
        self.policies: dict[str, PolicyHead] = {}
        self._not_before: dict[str, float] = {}
        self._dirty: set[str] = set()

    def put_node(self, node: str, report: NodeStatusHead | None) -> None:
        changed = self.reports.put(node, report)
        self._dirty |= self.policies.keys() if changed is None else changed & self.policies.keys()

    def put_policy(self, name: str, head: PolicyHead | None, now_s: float) -> None:
        """`now_s`: of any clock that only goes on."""
        old = self.policies.pop(name, None)
        if head is None:
            self._not_before.pop(name, None)
            self._dirty.discard(name)
            return
        self.policies[name] = head
        if old is None or old.metadata.generation != head.metadata.generation:
            self._not_before[name] = now_s + FIRST_S
        self._dirty.add(name)

    def due(self, now_s: float, now: datetime) -> list[tuple[str, dict[str, Any]]]:
        """Patches to write now. Each is due until the policy is put as it is after that."""
        if not len(self.reports):
            return []
        found: list[tuple[str, dict[str, Any]]] = []
        for name in sorted(self._dirty):
            head = self.policies[name]
            conditions = wanted(self.reports, name, head.metadata.generation)
            body = patch(head, conditions, now)
            final = conditions[1].status == "True" or conditions[0].status == "False"
            if body is None:
                self._dirty.discard(name)
            elif final or now_s >= self._not_before[name]:
                found.append((name, body))
        return found

    def told(self, name: str, now_s: float) -> None:
        """One of them was written, or could not be: not again at once."""
        if name in self.policies:
            self._not_before[name] = now_s + NEXT_S
