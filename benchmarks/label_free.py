"""How well measures without labels order merges, as accuracy does.

Merges a suite's experts in many ways, with and without calibration, and measures each on labelled
test rows and on unlabelled rows of validation. Prints each merge's accuracy beside its measures,
the Spearman correlation of each measure with accuracy, what it would pick, and where it fails: the
tasks whose merges it orders worse than not at all, and a pick more than a point below the best.

    .venv/bin/python -m benchmarks.label_free text lora-text
    .venv/bin/python -m benchmarks.label_free lora-text --rows 100 --nearness 8
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

import magmerge
from benchmarks.bench import RESULTS, SUITES, Bench
from magmerge.evaluation import metrics, open_suite
from magmerge.evaluation.nearness_table import mean_of
from magmerge.evaluation.scores import Scores, TaskNearness

MERGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("average", {}),
    *(("task_arithmetic", {"lambda": value}) for value in (0.3, 0.6, 1.0)),
    ("ties", {}),
    ("dare", {}),
    *(("tsv_m", {"lambda": value}) for value in (0.5, 1.0, 1.5)),
    *(("iso_c", {"lambda": value}) for value in (0.5, 1.0, 2.0)),
)
CALIBRATED = ("average", "task_arithmetic 0.3", "ties", "tsv_m 1", "iso_c 1")
CALIBRATIONS = ("wsc", "fsc")
FIELDS = ("error", "cosine", "norm_ratio", "kl", "agreement")
GROUP = 4


def main() -> None:
    """Measure the suites that are named, print, write a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--rows", type=int, default=150, help="test rows of each task")
    parser.add_argument("--nearness", type=int, default=16, help="unlabelled rows of each task")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name in options.suites:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name)
            suite = short_suite(SUITES / name, Path(folder), options.rows)
            found = measured(bench, suite, options.nearness)
        line = {"suite": name, **vars(options), **told(found)}
        show(line)
        with (RESULTS / "label_free.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def short_suite(folder: Path, copy: Path, rows: int) -> Path:
    """The suite with only the first test rows of each task, and all else where it is."""
    content = yaml.safe_load((folder / "suite.yaml").read_text(encoding="utf-8"))
    content["base"] = str(folder / content["base"])
    for name, task in content["tasks"].items():
        for key in ("expert", "head"):
            task[key] = str(folder / task[key])
        task["data"] = {split: str(folder / path) for split, path in task["data"].items()}
        lines = Path(task["data"]["test"]).read_text(encoding="utf-8").splitlines(keepends=True)
        short = copy / f"{name}.test.jsonl"
        short.write_text("".join(lines[:rows]), encoding="utf-8")
        task["data"]["test"] = str(short)
    path = copy / "suite.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def label(method: str, params: dict[str, Any]) -> str:
    """What a merge is called in the table."""
    return " ".join([method, *(f"{value:g}" for value in params.values())])


def merged_states(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Every merge by its name, with the base first."""
    yield "base", bench.base
    for method, params in MERGES:
        name, state = label(method, params), merged_alone(bench, method, params)
        yield name, state
        if name in CALIBRATED:
            yield f"{name} + wsc", bench.calibrated(state, "wsc").state_dict()
            yield f"{name} + fsc", bench.sampled(state, "fsc", 8, 0).state_dict()


def merged_alone(bench: Bench, method: str, params: dict[str, Any]) -> Any:
    """The tensors of a merge without calibration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", magmerge.MagmergeWarning)
        return magmerge.merge(
            base=bench.base, experts=bench.experts, method=method, params=params, threads=1
        ).state_dict()


def measured(bench: Bench, suite: Path, rows: int) -> dict[str, Scores]:
    """Each merge on test rows, and beside the experts on unlabelled ones."""
    opened, found = open_suite(suite), dict[str, Scores]()
    waiting: dict[str, Any] = {}

    def settle() -> None:
        scores = magmerge.evaluate([*waiting.values()], suite=opened, nearness=rows, threads=1)
        for name, row in zip(waiting, scores, strict=True):
            found[name] = row
            sys.stderr.write(f"{name}: {row.mean:.4f}\n")
        waiting.clear()

    for name, state in merged_states(bench):
        waiting[name] = state
        if len(waiting) == GROUP:
            settle()
    if waiting:
        settle()
    return found


def goodness(field: str, value: float | None) -> float:
    """A measure as something that is the better the higher."""
    if value is None:
        return -math.inf
    if field == "norm_ratio":
        return -abs(math.log(value)) if value > 0 else -math.inf
    return -value if field in ("error", "kl") else value


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The rank correlation; None where one of the two is the same throughout."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    ranks = [torch.tensor(own, dtype=torch.float64) for own in (first, second)]
    return float(metrics.spearman(*ranks))


def told(found: dict[str, Scores]) -> dict[str, Any]:
    """Correlations, picks and failures; the base takes part only in the picks."""
    merges = {name: row for name, row in found.items() if name != "base"}
    accuracy = {name: row.mean or 0.0 for name, row in found.items()}
    best = max(accuracy.values())
    summary: dict[str, Any] = {}
    for field in FIELDS:
        values = {
            name: goodness(field, mean_of(row.nearness, field)) for name, row in found.items()
        }
        pick = max(values, key=lambda name: values[name])
        tasks = {
            task.task: spearman(
                [goodness(field, getattr(near(row, task.task), field)) for row in merges.values()],
                [row[task.task].score for row in merges.values()],
            )
            for task in next(iter(merges.values())).nearness
        }
        summary[field] = {
            "spearman": spearman([values[n] for n in merges], [accuracy[n] for n in merges]),
            "pick": pick,
            "accuracy of pick": accuracy[pick],
            "below best": best - accuracy[pick],
            "tasks ordered wrongly": {n: v for n, v in tasks.items() if v is not None and v < 0},
        }
    rows = {
        name: {"accuracy": accuracy[name], **{f: mean_of(row.nearness, f) for f in FIELDS}}
        for name, row in found.items()
    }
    return {"merges": rows, "measures": summary}


def near(scores: Scores, task: str) -> TaskNearness:
    """A task's measures."""
    return next(row for row in scores.nearness if row.task == task)


def show(line: dict[str, Any]) -> None:
    """The merges, then the measures."""
    console = Console(width=120)
    grid = Table("merge", "accuracy", *FIELDS, title=f"{line['suite']}, {line['rows']} test rows")
    for name, row in line["merges"].items():
        cells = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("accuracy", *FIELDS))
        grid.add_row(name, *cells)
    console.print(grid)
    grid = Table("measure", "Spearman", "picks", "accuracy", "below best", "tasks ordered wrongly")
    for field, own in line["measures"].items():
        wrong = ", ".join(
            f"{task} {value:.2f}" for task, value in own["tasks ordered wrongly"].items()
        )
        value = own["spearman"]
        grid.add_row(
            field, "" if value is None else f"{value:.2f}", own["pick"],
            f"{own['accuracy of pick']:.3f}", f"{own['below best']:.3f}", wrong,
        )  # fmt: skip
    console.print(grid)


if __name__ == "__main__":
    main()
