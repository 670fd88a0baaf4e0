"""A base and a model whose change is of low rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints.adapters.changes import changed
from tests.conftest import State


@pytest.fixture
def model(base: State) -> State:
    return changed(base)


@pytest.fixture
def pair(save: Callable[[str, State], Path], base: State, model: State) -> tuple[Path, Path]:
    return save("base", base), save("model", model)
