"""The test split is never used in silence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from magmerge.samples.rows import DataError

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


def check_split(source: str, split: str | None, *, allow_test: bool) -> None:
    """DataError where `split` is a test split and that was not allowed."""
    if split is not None and names_test(split) and not allow_test:
        raise refusal(source, f"the split {split!r}")


def check_path(path: Path, *, allow_test: bool) -> None:
    """DataError where the path names a test split and that was not allowed."""
    if is_test_path(path) and not allow_test:
        raise refusal(str(path), "this path")


def refusal(source: str, what: str) -> DataError:
    """The error for data of the test split."""
    return DataError(
        f"{what} names the test split; what is tuned on it can no longer be measured on it",
        source=source,
        remedy="give training or validation data, or insist with --allow-test (allow_test=True)",
    )


def chosen(split: str | None, known: Iterable[str], source: str, *, allow_test: bool) -> str:
    """The split to read among those `known`: the one asked for, else `train`."""
    known = list(known)
    wanted = TRAIN if split is None else split
    if wanted not in known:
        raise DataError(
            f"it has no split {wanted!r}",
            source=source,
            remedy=f"choose one with --split (split=): {', '.join(known)}",
        )
    check_split(source, wanted, allow_test=allow_test)
    return wanted
