"""What `make test` leaves to `make test-all`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

QUICK = "MAGMERGE_QUICK_TESTS" in os.environ


def examples(count: int) -> int:
    """How many examples a property is tried on: a fifth of them by `make test`."""
    return count // 5 if QUICK else count


def slow(*values: Any) -> Any:
    """A parameter that is tried by `make test-all` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def quick_ones(values: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """Parameters, all but the quick ones for `make test-all` alone; tuples are rows of them."""
    return [
        value if quick(value) else slow(*value) if isinstance(value, tuple) else slow(value)
        for value in values
    ]
