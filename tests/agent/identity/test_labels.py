from __future__ import annotations

import pytest

from agent.identity.labels import LabelFilter, identity_key


@pytest.mark.parametrize(
    "key",
    (
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "controller-uid",
        "job-name",
    ),
)
def test_labels_of_controllers_make_no_identity(key: str) -> None:
    """Lesson 23: each replica or revision would use up an identity."""
    assert LabelFilter().select({key: "x", "app": "web"}) == {"app": "web"}


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    (
        ((), (), {"app", "team/name", "build"}),
        (("app",), (), {"app"}),
        (("team/*",), (), {"team/name"}),
        ((), ("build",), {"app", "team/name"}),
        (("*",), ("*/*",), {"app", "build"}),
        (("job-name",), (), set()),
        (("ap",), (), set()),
    ),
)
def test_patterns_match_whole_keys(include: tuple[str, ...], exclude: tuple[str, ...], kept: set[str]) -> None:
    labels = {"app": "1", "team/name": "2", "build": "3", "job-name": "4"}
    assert LabelFilter(include, exclude).select(labels).keys() == kept


def test_a_key_that_policies_name_counts_whatever_the_patterns_say() -> None:
    labels = {"app": "web", "pod-template-hash": "abc"}
    assert LabelFilter(("app",)).select(labels, {"pod-template-hash"}) == labels


def test_key_does_not_depend_on_the_order_of_labels() -> None:
    assert identity_key("shop", {"b": "1", "a": "2"}, "sa") == identity_key("shop", {"a": "2", "b": "1"}, "sa")


@pytest.mark.parametrize(
    ("one", "other"),
    (
        (("shop", {"app": "web"}, "default"), ("ops", {"app": "web"}, "default")),
        (("shop", {}, "default"), ("shop", {}, "robot")),
        (("shop", {"app": ""}, "default"), ("shop", {}, "default")),
        (("shop", {"namespace": "ops"}, "default"), ("ops", {}, "default")),
        (("shop", {"service-account": "admin"}, "default"), ("shop", {}, "admin")),
        (("shop", {"a=b": "c"}, "default"), ("shop", {"a": "b=c"}, "default")),
        (("shop", {"a": "b\npod:role=admin"}, "default"), ("shop", {"a": "b", "role": "admin"}, "default")),
        (("shop", {"a": "%0A"}, "default"), ("shop", {"a": "\n"}, "default")),
    ),
)
def test_different_pods_have_different_keys(
    one: tuple[str, dict[str, str], str], other: tuple[str, dict[str, str], str]
) -> None:
    """Lesson 7: no label passes for a namespace, a service account or another label. Joined by lines, as numbers are
    allocated by it."""
    assert "\n".join(identity_key(*one)) != "\n".join(identity_key(*other))
