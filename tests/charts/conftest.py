"""The chart and the Helm that renders it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chart_values import CHART, INSTALLATIONS
from helm_process import Helm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/charts/golden anew from what is rendered")


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    helm = Helm(CHART)
    yield helm
    helm.close()


@pytest.fixture(params=INSTALLATIONS)
def installation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def objects(helm: Helm, installation: str) -> list[dict[str, Any]]:
    return helm.objects(INSTALLATIONS[installation])


@pytest.fixture(params=[name for name in INSTALLATIONS if name != "cleanup"])
def working(helm: Helm, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Objects of an installation with an agent."""
    return helm.objects(INSTALLATIONS[request.param])
