"""A NetworkPolicy changes → realized on every pod, with 200 pods, 5,000 identities and 5,000 policies.

Seen from outside by the epoch in its pinned map: a transition raises it when all its entries are written, and only then
live flows are judged anew, so it ends what the issue calls realized. That each pod's rows did change is checked in the
policy map itself, beside the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agents import Document

from agent.datapath import abi, apply
from bench import cluster
from bench.cluster import NAMESPACE
from bench.report import Figure, quantile
from bench.setting import Bench, Site, wait_for

ABI = abi.load()
CHANGES = 200
GOAL_MS = 50.0
CHECKED = 3
"""So many changes are followed into every pod's rows."""


def measure(bench: Bench) -> Iterator[Figure]:
    place = bench.large()
    for what, document, pods in (
        ("of every pod", every_pod, cluster.LOCAL_PODS),
        ("of one application", one_application, 1),
    ):
        took = list(changes(place, document, pods, bench.samples(CHANGES)))
        yield Figure("policies", f"a policy {what} changes, p50", quantile(took, 0.5), "ms", GOAL_MS)
        yield Figure(
            "policies", f"a policy {what} changes, p99", quantile(took, 0.99), "ms", GOAL_MS, f"of {len(took)}"
        )
    place.agent.delete("changing.json")
    place.agent.settle()


def changes(place: Site, document: Callable[[int], Document], pods: int, count: int) -> Iterator[float]:
    """Milliseconds each. The first makes the policy; it is not counted."""
    for number in range(count + 1):
        checked = 0 < number <= CHECKED
        before = rows(place) if checked else {}
        epoch = apply.read_epoch(place.maps)
        started_ns = place.put("changing.json", document(number))
        ended_ns = wait_for(lambda epoch=epoch: apply.read_epoch(place.maps) > epoch, "the epoch has risen")  # type: ignore[misc]
        if number:
            yield (ended_ns - started_ns) / 1e6
        if checked:
            after = rows(place)
            changed = sum(found != before.get(subject) for subject, found in after.items())
            assert changed == pods, f"rows of {changed} pods have changed, not of {pods}"
        place.agent.settle()


def rows(place: Site) -> dict[int, dict[bytes, bytes]]:
    """Policy entries by subject. Each local pod is a subject of its own."""
    key = ABI.records["policy_class_key"]
    found: dict[int, dict[bytes, bytes]] = {}
    for entry, row in place.maps["policy_class"].items():
        found.setdefault(key.unpack(entry).subject, {})[entry] = row
    return found


def every_pod(number: int) -> Document:
    """All pods of a namespace that holds every pod of the node; a rule like any other, about many remote pods."""
    peer = {"namespaceSelector": {"matchLabels": {"team": "team-7"}}, "podSelector": {"matchLabels": {"tier": "front"}}}
    rule = {"from": [peer], "ports": [{"protocol": "TCP", "port": 10_000 + number}]}
    return cluster.policy(NAMESPACE, "changing", {}, policyTypes=["Ingress"], ingress=[rule])


def one_application(number: int) -> Document:
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "local-5"}}}], "ports": [{"port": 20_000 + number}]}
    return cluster.policy(NAMESPACE, "changing", {"app": "local-9"}, policyTypes=["Ingress"], ingress=[rule])
