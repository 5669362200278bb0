"""What the chart makes: objects as the API server has them, and golden files."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_values import CHART, INSTALLATIONS
from helm_process import NAMESPACE, RELEASE, Helm
from kubernetes_schema import problems

GOLDEN = Path(__file__).parent / "golden"
ELSEWHERE = ("monitoring.coreos.com/v1", "ServiceMonitor")
"""The Prometheus operator's."""


def test_objects_are_the_apis(objects: list[dict[str, Any]]) -> None:
    found = {
        f"{one['kind']} {one['metadata']['name']}": problems(one)
        for one in objects
        if (one["apiVersion"], one["kind"]) != ELSEWHERE
    }
    assert not any(found.values()), found


def test_custom_resources_are_the_apis() -> None:
    found = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "crds").iterdir())]
    assert [one["spec"]["names"]["plural"] for one in found] == [
        "nodeblocks", "nodeendpoints", "nodestatuses", "securityidentities",
    ]  # fmt: skip
    for one in found:
        assert problems(one) == []


def test_golden(helm: Helm, installation: str, request: pytest.FixtureRequest) -> None:
    """Manifests by default as they are, others as they differ. Write them anew with --write-golden."""
    rendered, default = (_whole(helm, INSTALLATIONS[name]) for name in (installation, "default"))
    if installation == "default":
        path, text = GOLDEN / "default.yaml", rendered
    else:
        lines = difflib.unified_diff(
            default.splitlines(), rendered.splitlines(), "default", installation, "", "", 2, ""
        )
        path, text = GOLDEN / f"{installation}.diff", "".join(f"{line}\n" for line in lines)
    if request.config.getoption("--write-golden", default=False):
        path.write_text(text)
    assert path.read_text() == text, "look at what is different; if it is meant: pytest tests/charts --write-golden"


def test_golden_files_are_of_installations() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(INSTALLATIONS)


def test_everything_is_where_it_belongs(objects: list[dict[str, Any]], installation: str) -> None:
    namespaces = {NAMESPACE, *INSTALLATIONS[installation].get("tlsSecretNamespaces", ())}
    for one in objects:
        meta = one["metadata"]
        cluster_wide = one["kind"] in ("ClusterRole", "ClusterRoleBinding")
        assert ("namespace" in meta) is not cluster_wide, meta
        assert cluster_wide or meta["namespace"] in namespaces
        assert meta["name"] == RELEASE or meta["name"].startswith(f"{RELEASE}-")
        assert meta["labels"]["app.kubernetes.io/name"] == "gatehouse"


def _whole(helm: Helm, values: dict[str, Any]) -> str:
    texts = helm.render(values)
    return "".join(f"---\n# {path}\n{text.strip()}\n" for path, text in sorted(texts.items()) if text.strip())
