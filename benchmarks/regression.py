"""Regression after a merge, without samples and with some, on the first test rows of a suite.

Rows: average, TSV-M, TSV-M + regression, and that + regression_samples from 1,
8 and more unlabelled calibration rows a task, each with several draws. Scores are means over the
tasks; "of the gap" is the share of the way from the average to the experts, "least" the worst draw.

    .venv/bin/python -m benchmarks.suites text
    .venv/bin/python -m benchmarks.regression text lora-text --rows 100 --samples 1 8 64 --seeds 2

Lines that are in benchmarks/results/regression.jsonl already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import magmerge
from benchmarks.calibration import Bench
from magmerge.evaluation import open_suite
from magmerge.evaluation.task_suite import Suite

RESULTS = Path(__file__).parent / "results" / "regression.jsonl"
State = Mapping[str, Any]
Line = dict[str, Any]


def main() -> None:
    """Measure what is missing, print the table of each suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--rows", type=int, default=100, help="test rows of each task")
    parser.add_argument("--samples", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--split", default="test")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", magmerge.MagmergeWarning)
    for name in chosen.suites:
        key = {"suite": name, "rows": chosen.rows, "split": chosen.split}
        measure(key, chosen.samples, range(chosen.seeds))
        print(table(name, [line for line in known() if key.items() <= line.items()]), flush=True)


def known() -> list[Line]:
    """The lines that are there."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def measure(key: Line, samples: list[int], seeds: range) -> None:
    """Append a line for each row of the table that is not there yet."""
    bench = Bench.of(key["suite"], 1, None)
    with tempfile.TemporaryDirectory() as folder:
        suite = shortened(bench, key["rows"], key["split"], Path(folder))
        there = [{k: line.get(k) for k in (*key, "merge", "samples", "seed")} for line in known()]
        for what, state in merges(bench, samples, seeds, lambda what: {**key, **what} in there):
            scores = suite.evaluate(state, split=key["split"], threads=1).tasks
            line = {**key, **what, "scores": {one.task: one.score for one in scores},
                    "experts": {one.task: one.expert for one in scores}}  # fmt: skip
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(what, round(statistics.mean(line["scores"].values()), 4), flush=True)


def merges(
    bench: Bench, samples: list[int], seeds: range, is_there: Any
) -> Iterator[tuple[Line, State]]:
    """What each row of the table is, and its weights; of those that are not there yet."""

    def row(merge: str, count: int = 0, seed: int = 0) -> Line:
        return {"merge": merge, "samples": count, "seed": seed}

    models: dict[str, Any] = {"base": bench.base, "experts": bench.experts, "threads": 1}
    for name in ("average", "tsv_m"):
        if not is_there(row(name)):
            yield row(name), magmerge.merge(**models, method=name).state_dict()
    solved = magmerge.merge(**models, method="tsv_m", calibrate="regression").state_dict()
    if not is_there(row("regression")):
        yield row("regression"), solved
    for count in samples:
        for seed in seeds:
            what = row("regression_samples", count, seed)
            if not is_there(what):
                yield what, bench.sampled(solved, "regression_samples", count, seed).state_dict()


def shortened(bench: Bench, rows: int, split: str, folder: Path) -> Suite:
    """The suite with the first rows of one split alone."""
    path = bench.folder / "suite.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["base"] = str(bench.base)
    for name, task in content["tasks"].items():
        source = bench.folder / task["data"][split]
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        task["data"] = {split: str(folder / f"{name}.jsonl")}
        task |= {part: str(bench.folder / task[part]) for part in ("expert", "head")}
    (folder / "suite.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return open_suite(folder / "suite.yaml")


def table(name: str, lines: list[Line]) -> str:
    """The means of one suite as text."""
    groups: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        score = statistics.mean(line["scores"].values())
        groups.setdefault((line["merge"], line["samples"]), []).append(score)
    top = statistics.mean(lines[0]["experts"].values())
    low = groups[("average", 0)][0]
    text = [f"{name}: average {100 * low:.1f}, experts {100 * top:.1f}"]
    text.append(f"{'merge':<20}{'samples':>8}{'accuracy':>10}{'least':>8}{'of the gap':>12}")
    for (merge, count), scores in groups.items():
        mean = statistics.mean(scores)
        share = f"{100 * (mean - low) / (top - low):.0f}%"
        text.append(f"{merge:<20}{count:>8}{100 * mean:>10.1f}{100 * min(scores):>8.1f}{share:>12}")
    return "\n".join(text)


if __name__ == "__main__":
    main()
