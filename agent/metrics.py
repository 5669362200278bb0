"""What monitoring reads of a node: the figures of `gatehouse status`, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.services.health import Answer
from agent.status import EncryptionView, StatusView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


Values = float | tuple[str, Mapping[str, float]]
"""A number; or the name of a label, and under its values numbers."""


class _Node(Collector):
    def __init__(self, view: StatusView) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        view = self._view
        about = {"version": view.version, "kernel": view.kernel, "node": view.node}
        yield InfoMetricFamily("gatehouse", "The agent that runs", about)
        yield _gauge("ready", "1 where all that is desired is in force and nothing is amiss", view.state == "ready")
        yield _gauge("problems", "Things written that are not in force as they stand there", _wrong(view))
        yield _gauge("revision_desired", "Changes read", view.revision.desired)
        yield _gauge("revision_realized", "Changes in force in the kernel", view.revision.realized)
        yield _gauge("resident_memory_bytes", "Of the agent's own process", view.resident_bytes)
        yield _gauge("endpoints", "Pods the node knows of", ("state", view.endpoints))
        for name in ("namespaces", "policies", "services", "identities"):
            yield _gauge(name, f"{name.capitalize()} the node knows of", getattr(view, name))
        yield from _datapath(view)
        yield from _proxies(view)
        if view.encryption:
            yield from _encryption(view.encryption)


def exposition(view: StatusView) -> Answer:
    """The answer to GET /metrics."""
    registry = CollectorRegistry()
    registry.register(_Node(view))
    return Answer(HTTPStatus.OK, generate_latest(registry), (("Content-Type", CONTENT_TYPE),))


def _datapath(view: StatusView) -> Iterable[Metric]:
    maps = view.datapath.maps
    yield _gauge("map_entries", "Entries of a BPF map", ("map", {m.name: m.entries for m in maps}))
    yield _gauge("map_capacity", "Entries a BPF map has room for", ("map", {m.name: m.capacity for m in maps}))
    yield _counter("map_full", "Writes refused for want of room", ("map", {m.name: m.full for m in maps}))
    yield _counter("dropped_packets", "Packets dropped, by reason", ("reason", view.drops))
    yield _counter("datapath", "What else the datapath counted", ("event", view.tallies))
    yield _counter("flow_events_lost", "Flow events for which the kernel's ring had no room", view.flows.events_lost)


def _proxies(view: StatusView) -> Iterable[Metric]:
    proxies = view.proxies.items()
    running = {name: float(proxy.process.state == "running") for name, proxy in proxies}
    yield _gauge("proxy_running", "Whether a proxy runs", ("proxy", running))
    waiting = {name: proxy.waiting for name, proxy in proxies}
    yield _gauge("proxy_waiting", "Rule sets a proxy has not taken yet", ("proxy", waiting))
    restarts = {name: proxy.process.restarts for name, proxy in proxies}
    yield _counter("proxy_restarts", "How often a proxy was started again", ("proxy", restarts))


def _encryption(view: EncryptionView) -> Iterable[Metric]:
    ready = sum(peer.ready for peer in view.peers)
    states = {"ready": float(ready), "not ready": float(len(view.peers) - ready)}
    yield _gauge("encryption_peers", "Other nodes; ready: what their pods are sent is encrypted", ("state", states))
    ages = {peer.node: peer.last_handshake_s for peer in view.peers if peer.last_handshake_s is not None}
    yield _gauge("encryption_handshake_age_seconds", "Since the last handshake with a node", ("node", ages))
    for name, field in (("received", "received_bytes"), ("sent", "sent_bytes")):
        counts = {peer.node: getattr(peer, field) for peer in view.peers}
        yield _counter(f"encryption_{name}_bytes", f"Encrypted, {name} by this node, by other node", ("node", counts))
    yield _counter(
        "encryption_plaintext_packets", "Packets between pods of different nodes not encrypted", view.plaintext_packets
    )
    yield _gauge("encryption_key_age_seconds", "Of this node's key", view.key_age_s)


def _gauge(name: str, text: str, values: Values) -> Metric:
    return _family(GaugeMetricFamily, name, text, values)


def _counter(name: str, text: str, values: Values) -> Metric:
    return _family(CounterMetricFamily, name, text, values)


def _family(kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, values: Values) -> Metric:
    label, numbers = values if isinstance(values, tuple) else ("", {"": values})
    family = kind(f"gatehouse_{name}", text, labels=[label] if label else [])
    for value, number in numbers.items():
        family.add_metric([value] if label else [], float(number))
    return family


def _wrong(view: StatusView) -> int:
    return sum(1 for problem in view.problems if not problem.warning)
