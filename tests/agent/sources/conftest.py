"""A folder of manifests for tests of the directory source."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_folder import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
