"""The checker of Kubernetes objects, on objects that are wrong in one thing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kubernetes_schema import problems

GOOD: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "a", "labels": {"a": "b"}},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "hostNetwork": True,
                "containers": [{"name": "x", "image": "y", "resources": {"requests": {"cpu": "1"}}}],
            },
        },
    },
}
REMOVED = "(removed)"

WRONG = [
    ("spec.template.spec.hostnetwork", True, "spec.template.spec.hostnetwork: Extra inputs"),
    ("spec.template.spec.host_network", True, "host_network: the API calls it hostNetwork"),
    ("spec.template.spec.hostNetwork", "true", "spec.template.spec.hostNetwork: Input should be a valid boolean"),
    ("spec.template.spec.containers", REMOVED, "spec.template.spec.containers: Field required"),
    ("spec.template.spec.containers", {}, "spec.template.spec.containers: Input should be a valid list"),
    ("spec.template.spec.containers.0.name", REMOVED, "spec.template.spec.containers.0.name: Field required"),
    ("spec.template.spec.containers.0.env", [{"name": "A", "value": 1}], "env.0.value: Input should be a valid string"),
    ("spec.template.spec.containers.0.image_pull_policy", "Never", "containers.0.image_pull_policy: the API calls it"),
    ("spec.template.spec.containers.0.resources.requests.cpu", 1, "requests.cpu: Input should be a valid string"),
    ("spec.template.spec.terminationGracePeriodSeconds", 1.5, "Input should be a valid integer"),
    ("spec.selector", REMOVED, "spec.selector: Field required"),
    ("metadata.labels.a", True, "metadata.labels.a: Input should be a valid string"),
    ("metadata", [], "metadata: Input should be a valid dictionary"),
    ("kind", "DaemonSett", "there is no schema of apps/v1 DaemonSett"),
    ("apiVersion", "apps/v2", "there is no schema of apps/v2 DaemonSet"),
]


def test_nothing_is_wrong_with_a_good_one() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[f"{path}={value!r}"[:60] for path, value, _ in WRONG])
def test_what_is_wrong_is_found(path: str, value: Any, said: str) -> None:
    wrong: Any = copy.deepcopy(GOOD)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner = wrong
    for part in parents:
        inner = inner[part]
    if value == REMOVED:
        del inner[last]
    else:
        inner[last] = value
    if last == "host_network":
        del inner["hostNetwork"]
    found = problems(wrong)
    assert any(said in one for one in found), found
