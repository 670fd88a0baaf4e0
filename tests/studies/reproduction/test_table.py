"""Published figures stand only beside runs of their kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magmerge.evaluation.scores import TaskScore
from magmerge.studies.reproduction.reproduction_table import published_means, rows_of
from magmerge.studies.reproduction.run_scores import RunScores
from magmerge.studies.reproduction.run_spec import RunOptions, RunSpec, request_of


def asked(**options: object) -> RunSpec:
    return request_of("clip-b32", None, RunOptions(**options))


def test_published_means_need_all_tasks_and_the_published_parameters() -> None:
    assert published_means(asked(), "average") == {1: 66.5, 2: 66.0}
    assert published_means(asked(), "zero-shot") == {1: 48.2, 2: 48.0}
    assert published_means(asked(), "average+wsc") == {}
    assert 1 not in published_means(asked(), "ties")
    same = asked(methods=["ties"], params={"ties": {"lambda": 0.3, "normalize": False}})
    assert published_means(same, "ties")[1] == 72.2
    assert published_means(asked(tasks=["mnist", "dtd"]), "average") == {}
    tiny = replace(asked(), pipeline=asked().pipeline.model_copy(update={"tiny": True}))
    assert published_means(tiny, "average") == {}


def test_the_mean_counts_each_expert_once(tmp_path: Path) -> None:
    wanted = replace(
        asked(methods=["average"], spaces=["none"]), tasks=("cola", "rte"), folder=tmp_path
    )
    ledger = RunScores(tmp_path / "results.json", {})
    for task, value in (("cola", 0.2), ("cola-accuracy", 0.8), ("rte", 0.6)):
        score = TaskScore(task, task, "x", value, None, None, 9, None, 1.0)
        ledger.put_all({"average": {task: score}})
    (row,) = rows_of(wanted, ledger, {"cola": ("cola", "cola-accuracy"), "rte": ("rte",)})
    assert row.mean is not None
    assert abs(row.mean.mean - 0.4) < 1e-12
    assert set(row.scores) == {"cola", "cola-accuracy", "rte"}
