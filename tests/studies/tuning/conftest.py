"""A suite that all tests of a file share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.studies.tuning.recipes import tuning_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuning_suite(tmp_path_factory.mktemp("tuning"))
