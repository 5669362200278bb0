"""What `observe` can ask of a record, names included. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from agent.flows import l7filters
from agent.flows.flow import Endpoint
from agent.flows.l7filters import FlowTest


def _by_pod(text: str) -> FlowTest:
    wanted = _pattern(text)
    return lambda flow: _is_pod(flow.source, wanted) or _is_pod(flow.destination, wanted)


def _by_from_pod(text: str) -> FlowTest:
    wanted = _pattern(text)
    return lambda flow: _is_pod(flow.source, wanted)


def _by_to_pod(text: str) -> FlowTest:
    wanted = _pattern(text)
    return lambda flow: _is_pod(flow.destination, wanted)


def _by_namespace(text: str) -> FlowTest:
    return lambda flow: text in (flow.source.namespace, flow.destination.namespace)


def _by_from_label(text: str) -> FlowTest:
    wanted = _labels(text)
    return lambda flow: wanted(flow.source.labels)


def _by_to_label(text: str) -> FlowTest:
    wanted = _labels(text)
    return lambda flow: wanted(flow.destination.labels)


def _by_policy(text: str) -> FlowTest:
    wanted = _pattern(text)
    return lambda flow: flow.policy is not None and fnmatchcase(f"{flow.policy.namespace}/{flow.policy.name}", wanted)


def _by_service(text: str) -> FlowTest:
    wanted = _pattern(text)
    return lambda flow: (
        flow.service is not None
        and flow.service.name is not None
        and fnmatchcase(f"{flow.service.namespace}/{flow.service.name}", wanted)
    )


FLOW_TESTS: dict[str, Callable[[str], FlowTest]] = {
    "pod": _by_pod,
    "from_pod": _by_from_pod,
    "to_pod": _by_to_pod,
    "namespace": _by_namespace,
    "from_label": _by_from_label,
    "to_label": _by_to_label,
    "policy": _by_policy,
    "service": _by_service,
    "http_method": l7filters.by_method,
    "http_path": l7filters.by_path,
    "http_status": l7filters.by_status,
    "dns_query": l7filters.by_query,
}
"""By option: value → test of a record. The makers raise ValueError."""

OF_L7 = frozenset({"http_method", "http_path", "http_status", "dns_query"})
"""Options that only records of proxies can meet."""


def _is_pod(side: Endpoint, wanted: str) -> bool:
    return side.pod is not None and fnmatchcase(f"{side.namespace}/{side.pod}", wanted)


def _pattern(text: str) -> str:
    """NS/NAME as a wildcard pattern: a name alone is meant in any namespace, NS/ is the whole namespace."""
    if text.count("/") > 1 or not text.strip("/"):
        raise ValueError("give NAME or NAMESPACE/NAME")
    if "/" not in text:
        return f"*/{text}"
    return text + "*" if text.endswith("/") else text


def _labels(text: str) -> Callable[[Iterable[str]], bool]:
    terms = [term.strip() for term in text.split(",")]
    if not all(terms):
        raise ValueError("give KEY=VALUE or KEY")

    def holds(labels: Iterable[str]) -> bool:
        present = tuple(labels)
        return all(
            term in present if "=" in term else any(label.partition("=")[0] == term for label in present)
            for term in terms
        )

    return holds
