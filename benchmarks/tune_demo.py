"""A search over the demo's six experts: the recipe at its defaults against the best that was found.

The search looks at validation rows (or, without labels, at unlabelled ones); test rows are read
once, when it is over. Two recipes are searched: one method with its lambda and density alone, and
three methods with and without a calibration.

    .venv/bin/python -m benchmarks.tune_demo
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import magmerge
from magmerge.studies.demo.demo_tasks import (
    ASSETS,
    base_folder,
    demo_experts,
    demo_suite,
    settings,
)

RESULTS = Path(__file__).parent / "results" / "tune_demo.jsonl"
MARKS = {
    "one method": """
method: task_arithmetic
params:
  lambda: !tune {low: 0.1, high: 2.0, log: true}
""",
    "three methods": """
method: !tune [task_arithmetic, ties, tsv_m]
params:
  lambda: !tune {low: 0.1, high: 2.0, log: true}
  density: !tune [0.05, 1.0]
calibrate: !tune [null, wsc]
""",
}
SEARCHES = (("one method", "suite"), ("three methods", "suite"), ("three methods", "unlabelled"))


def main() -> None:
    """Search, measure default and best on the test rows, print the table, write the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--rows", type=int, default=100, help="of each task's validation rows")
    parser.add_argument("--samples", type=int, default=32, help="unlabelled texts of each task")
    given = parser.parse_args()
    rows = [search(*kind, given) for kind in SEARCHES]
    Console(width=130).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def search(marks: str, measure: str, given: argparse.Namespace) -> dict[str, Any]:
    """One search, and what default and best are worth on rows that it did not look at."""
    start, wall = time.process_time(), time.monotonic()
    keywords: dict[str, Any] = {"suite": demo_suite(), "rows": given.rows}
    if measure == "unlabelled":
        data = {name: ASSETS / "data" / f"{name}.jsonl" for name in settings()["tasks"]}
        keywords = {"unlabelled": data, "split": "calibration", "rows": given.samples}
        keywords["max_length"] = settings()["max_length"]
    found = magmerge.tune(recipe(marks), trials=given.trials, **keywords)
    seconds = {"cpu": time.process_time() - start, "wall": time.monotonic() - wall}
    return {
        "recipe": marks,
        "measure": measure,
        "trials": len(found.trials),
        "failed": sum(trial.score is None for trial in found.trials),
        "rows": found.count,
        "words": found.words,
        "default": found.default.score,
        "best": found.best.score,
        "gain": found.gain,
        "error": found.error,
        "values": dict(found.best.values),
        **on_test(found, recipe(marks)),
        **{name: round(spent) for name, spent in seconds.items()},
    }


def recipe(marks: str) -> str:
    """A recipe of the demo's base and experts with these marks."""
    experts = {name: str(path) for name, path in demo_experts().items()}
    return yaml.safe_dump({"base": str(base_folder()), "experts": experts}) + MARKS[marks]


def on_test(found: magmerge.TuneResult, text: str) -> dict[str, Any]:
    """Mean test accuracies of default and best: all test rows, the first time they are read."""
    from magmerge.studies.tuning.space import read_space

    default = read_space(text, "the default").recipes(found.default.values)
    best = magmerge.Recipe.all_from_yaml(found.recipe)
    models = {"default": magmerge.run(default), "best": magmerge.run(best)}
    scores = demo_suite().evaluate_all(models, split="test")
    return {
        "test_rows": sum(task.count for task in scores["best"].tasks),
        "test_default": scores["default"].mean,
        "test_best": scores["best"].mean,
        "test_relative": scores["best"].relative,
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each search; test accuracies in percent."""
    table = Table(title="the demo's six experts, default and best", title_justify="left", box=None)
    columns = ("recipe", "measured by", "default", "best", "gain", "test default", "test best")
    for column in (*columns, "best values"):
        table.add_column(column)
    for row in rows:
        values = ", ".join(f"{key.rpartition('.')[2]} {v}" for key, v in row["values"].items())
        table.add_row(
            row["recipe"],
            row["words"],
            f"{row['default']:.3f}",
            f"{row['best']:.3f}",
            f"{row['gain']:.3f} ± {row['error']:.3f}",
            f"{100 * row['test_default']:.1f}",
            f"{100 * row['test_best']:.1f}",
            values,
        )
    return table


if __name__ == "__main__":
    main()
