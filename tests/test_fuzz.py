"""What once broke a reader, and the honest files that it is made of: each is read, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.mutations import damaged
from fuzz.run import HERE, files_of
from fuzz.targets import TARGETS, prepared, tried

KEPT = sorted(
    (file.parent.name, file)
    for place in ("corpus", "regressions")
    for file in (HERE / place).glob("*/*")
)

REFUSED = ("recipe", "mergekit", "pickle")
"""What these name is not there, or one of them holds no weights."""


@pytest.mark.parametrize(("name", "file"), KEPT, ids=lambda part: getattr(part, "name", part))
def test_files_that_are_kept_are_read_or_refused(name: str, file: Path, tmp_path: Path) -> None:
    target = TARGETS[name]
    outcome = tried(target, prepared(target, tmp_path / "kept"), file.read_bytes())
    honest = file.parent.parent.name == "corpus"
    assert not honest or outcome == "read" or name in REFUSED, outcome


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    import random

    target, files, draw = TARGETS[name], files_of(name), random.Random(5)
    place = prepared(target, tmp_path / "kept")
    assert files
    for _ in range(25):
        tried(target, place, damaged(files, draw))
