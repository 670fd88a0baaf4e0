"""Results are on disk as soon as they are known, and a run goes on from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError, OutputError
from magmerge.evaluation.scores import TaskScore
from magmerge.studies.reproduction.run_scores import NAME, RunScores

SETTINGS = {"pipeline": "clip-b32", "samples": 8, "tasks": ("a", "b")}


def score(value: float) -> TaskScore:
    return TaskScore("a", "A", "accuracy", value, value, value, 10, None, 0.5)


def test_a_run_goes_on_from_what_was_measured(tmp_path: Path) -> None:
    first = RunScores.open(tmp_path, SETTINGS, anew=False)
    first.results.sensitive = ("layer.0",)
    first.put_all({"ties": {"a": score(0.25)}})
    again = RunScores.open(tmp_path, SETTINGS, anew=False)
    assert again.missing("ties", ["a", "b"]) == ["b"]
    assert again.results.cells["ties"]["a"].score == 0.25
    assert again.results.sensitive == ("layer.0",)
    assert RunScores.open(tmp_path, SETTINGS, anew=True).missing("ties", ["a"])


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    RunScores.open(tmp_path, SETTINGS, anew=False).put_all({"ties": {"a": score(0.5)}})
    with pytest.raises(OutputError, match=r"other settings: samples[\s\S]*--yes"):
        RunScores.open(tmp_path, {**SETTINGS, "samples": 4}, anew=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans())
def test_a_spoilt_file_gives_an_error_of_magmerge(
    tmp_path: Path, place: int, byte: int, cut: bool
) -> None:
    RunScores.open(tmp_path, SETTINGS, anew=True).put_all({"ties": {"a": score(0.5)}})
    content = bytearray((tmp_path / NAME).read_bytes())
    place %= len(content)
    content[place] = byte
    (tmp_path / NAME).write_bytes(content[:place] if cut else content)
    try:
        found = RunScores.open(tmp_path, SETTINGS, anew=False)
    except MagmergeError:
        return
    assert isinstance(found.results.settings, dict)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"settings": 3, "cells": {}, "sensitive": None, "warnings": []},
        {"settings": {}, "cells": 3},
        {"settings": {}, "cells": {}, "sensitive": None, "warnings": 1},
    ],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(OutputError, match="no sound file"):
        RunScores.open(tmp_path, SETTINGS, anew=False)
