"""Policies that are not valid isolate whom they are clearly about."""

from __future__ import annotations

import pytest
from manifest_texts import items

from policies.model import Direction, ObjectRef, Policy

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
"""

BOTH = frozenset(Direction)


@pytest.mark.parametrize(
    "text",
    [
        POLICY + "  - from: [\n",
        POLICY + "  - from:\n\t- podSelector: {}\n",
        POLICY + "  - ports: [{port: 80, port: 81}]\n",
        POLICY + "  - ports: [{port: *x}]\n",
        POLICY + '  - from: [{ipBlock: {cidr: "10.0.0.0/99"}}]\n  policyTypes: [Ingress, Egress]\n',
        POLICY.replace("networking.k8s.io/v1", "networking.k8s.io/v1beta1") + "  - {}\n",
        POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1") + "  - {}\n",
    ],
)
def test_lesson_15_a_policy_that_is_not_understood_isolates(text: str) -> None:
    (item,) = items(text)
    assert item.object is None
    assert item.ref == ObjectRef("NetworkPolicy", "shop", "p")
    assert isinstance(item.isolating, Policy)
    assert item.isolating.rules == ()
    assert item.isolating.problem
    assert item.isolating.isolates == BOTH
    assert item.isolating.subject.namespace == "shop"
    assert item.isolating.subject.pods.matches({"app": "web"})
    assert not item.isolating.subject.pods.matches({"app": "db"})


@pytest.mark.parametrize(
    "text",
    [
        POLICY.replace("{matchLabels: {app: web}}", "{matchLabels: {app: web"),
        POLICY.replace(
            "podSelector: {matchLabels: {app: web}}", "podSelector: {}\n  podSelector: {matchLabels: {app: web}}"
        ),
        POLICY.replace("app: web", "app: yes"),
        POLICY.replace("shop}", "shop"),
        POLICY.replace("name: p", "name: p, name: q") + "  - {}\n",
    ],
)
def test_a_policy_whose_pods_are_not_clear_isolates_nothing(text: str) -> None:
    (item,) = items(text)
    assert item.problems
    assert item.object is None
    assert item.isolating is None


@pytest.mark.parametrize(
    ("text", "unidentified"),
    [
        ("a: [\n", True),
        ("kind: Pod\nmetadata: {name: [\n", True),
        ("kind: Pod\nmetadata: {name: a}\nspec: [\n", False),
        ("kind: Deployment\nmetadata: {name: a}\nspec: [\n", False),
        ("kind: NetworkPolcy\nmetadata: {name: a}\n", True),
        ("kind: List\nitems: [\n", True),
        ("kind: Pod\n  metadata\nspec: [\n", True),
        ("apiVersion: v1\nmetadata: {name: a}\n", True),
        ("apiVersion: v1\nkind: Pod\nmetadata: {generateName: a}\n", True),
        ("just text\n", True),
    ],
)
def test_what_may_be_any_object(text: str, unidentified: bool) -> None:
    (item,) = items(text)
    assert item.problems
    assert item.unidentified is unidentified
