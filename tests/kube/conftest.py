"""An API server per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from apiserver import ApiServer


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """Empty but for the first namespaces; takes any token or none. tests/apiserver says what it can do."""
    with ApiServer() as api:
        yield api
