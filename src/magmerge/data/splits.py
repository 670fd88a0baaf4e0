"""The test split is never used in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from magmerge.core.errors import shortened
from magmerge.data.rows import DataError, SampleDraw

TRAIN = "train"
TEST = "test"
COLUMN = "split"
"""The column of a table that tells each row's split."""
NAMES = frozenset({TRAIN, TEST, "validation", "valid", "val", "dev", "calibration"})
"""Folders of these names are splits, not classes."""
TEST_FILES = ("t10k-",)
"""How files of the test split begin that do not say test: those of MNIST and its kin."""
_WORD = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)


def names_test(text: str) -> bool:
    """Whether `test` is in the text as a whole word: reviews.test, X_test, test1, not latest."""
    return _WORD.search(text) is not None


def is_test_path(path: Path) -> bool:
    """Whether a path names the test split: itself by a word, or a folder on its way exactly."""
    if path.name.startswith(TEST_FILES):
        return True
    return names_test(path.name) or any(part.lower() == TEST for part in path.parts[:-1])


def check_split(how: SampleDraw, source: str, name: str | None) -> None:
    """DataError where `name` is a test split and that is not allowed."""
    if name is not None and names_test(name):
        _refuse(how, source, f"the split {name!r}")


def check_path(how: SampleDraw, path: Path) -> None:
    """DataError where the path names a test split and that is not allowed."""
    if is_test_path(path):
        _refuse(how, str(path), "this path")


def among(how: SampleDraw, names: Iterable[str], source: str) -> str:
    """The split to read of those of these names: that of the draw, else `train`."""
    names, own = list(names), how.split if how.split is not None else TRAIN
    if own not in names:
        raise DataError(
            f"it has no split {own!r}",
            source=source,
            remedy=f"choose one with --split (split=): {shortened(list(names))}",
        )
    check_split(how, source, own)
    return own


def _refuse(how: SampleDraw, source: str, what: str) -> None:
    if not how.allow_test:
        raise DataError(
            f"{what} names the test split; what is tuned on it can no longer be measured on it",
            source=source,
            remedy="give training or validation data, or insist with --allow-test "
            "(allow_test=True)",
        )
