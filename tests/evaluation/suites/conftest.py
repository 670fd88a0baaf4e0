"""A tiny CLIP for all tests of the suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.suites.clips import save_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")
