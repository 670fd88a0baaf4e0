"""Published figures stand only beside runs of their kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magmerge.reproduction.asked import Asked, Wishes, check_wishes
from magmerge.reproduction.measuring import Machine

from magmerge.evaluation.scores import TaskScore
from magmerge.reproduction.ledger import Ledger
from magmerge.reproduction.table import published_means, rows_of


def asked(**wishes: object) -> Asked:
    return check_wishes(
        "clip-b32", Wishes(**wishes), folder=None, inputs=None, data=None, generic=None,
        generic_samples=None, machine=Machine(), tiny=False,
    )  # fmt: skip


def test_published_means_need_all_tasks_and_the_published_parameters() -> None:
    assert published_means(asked(), "average") == {1: 66.5, 2: 66.0}
    assert published_means(asked(), "zero-shot") == {1: 48.2, 2: 48.0}
    assert published_means(asked(), "average+wsc") == {}
    assert 1 not in published_means(asked(), "ties")
    same = asked(methods=["ties"], params={"ties": {"lambda": 0.3, "normalize": False}})
    assert published_means(same, "ties")[1] == 72.2
    assert published_means(asked(tasks=["mnist", "dtd"]), "average") == {}
    assert published_means(replace(asked(), tiny=True), "average") == {}


def test_the_mean_counts_each_expert_once(tmp_path: Path) -> None:
    wanted = replace(
        asked(methods=["average"], spaces=["none"]), tasks=("cola", "rte"), folder=tmp_path
    )
    ledger = Ledger(tmp_path / "results.json", {})
    for task, value in (("cola", 0.2), ("cola-accuracy", 0.8), ("rte", 0.6)):
        ledger.put("average", task, TaskScore(task, task, "x", value, None, None, 9, None, 1.0))
    (row,) = rows_of(wanted, ledger, {"cola": ("cola", "cola-accuracy"), "rte": ("rte",)})
    assert row.mean is not None
    assert abs(row.mean.mean - 0.4) < 1e-12
    assert set(row.scores) == {"cola", "cola-accuracy", "rte"}
