"""Whether the verdict of a calibration predicts what labels say.

Merges a suite's experts in several ways, calibrates each by FSC with and without its check and by
RegMean, and holds each verdict (the calibrated model beside the merge on held-out rows) against the
change of accuracy on labelled test rows. Prints every pair, how often the two agree, the Spearman
correlation of the two differences, and each failure: a verdict "better" where accuracy fell by more
than a point, and "worse" where it rose by more.

    .venv/bin/python -m benchmarks.verdict text lora-text
    .venv/bin/python -m benchmarks.verdict text --rows 60 --samples 8
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.calibration import RESULTS, SUITES, Bench
from benchmarks.label_free import label, merged_alone, short_suite, spearman
from magmerge.evaluation import open_suite

MERGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("average", {}), ("task_arithmetic", {"lambda": 0.3}), ("task_arithmetic", {"lambda": 1.0}),
    ("ties", {}), ("tsv_m", {}), ("iso_c", {"lambda": 1.0}),
)  # fmt: skip
CALIBRATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fsc", "fsc", {"check": "off"}), ("fsc, checked", "fsc", {}), ("regmean", "regmean", {}),
)  # fmt: skip
POINT = 0.01
SIGNS = {"perplexity": -1, "kl": -1, "cosine": 1}


def main() -> None:
    """Measure the suites that are named, print, write a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--rows", type=int, default=150, help="test rows of each task")
    parser.add_argument("--samples", type=int, default=8, help="of each task, to calibrate with")
    options = parser.parse_args()
    for name in options.suites:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench.of(name, 1, None)
            suite = open_suite(short_suite(SUITES / name, Path(folder), options.rows))
            rows = measured(bench, suite, options.samples)
        line = {"suite": name, **vars(options), **told(rows), "calibrations": rows}
        show(line)
        with (RESULTS / "verdict.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def measured(bench: Bench, suite: Any, samples: int) -> list[dict[str, Any]]:
    """Of each merge and calibration the verdict, and both accuracies."""
    rows = []
    for method, params in MERGES:
        state = merged_alone(bench, method, params)
        before = suite.evaluate(state, threads=1).mean
        for name, calibrator, options in CALIBRATIONS:
            result = bench.sampled(state, calibrator, samples, 0, params=options)
            verdict = result.account.extra["verdict"]
            after = suite.evaluate(result.state_dict(), threads=1).mean
            judge, models = verdict["judge"], verdict["models"]
            gain = SIGNS[judge] * (models["calibrated"][judge] - models["merge"][judge])
            rows.append(
                {
                    "merge": label(method, params), "calibration": name, "judge": judge,
                    "says": verdict["calibrated_to"]["merge"], "gain": gain,
                    "before": before, "after": after,
                }
            )  # fmt: skip
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often verdict and labels agree, their correlation, and the failures."""
    changes = [row["after"] - row["before"] for row in rows]
    failures = [
        f"{row['merge']} + {row['calibration']}: {row['says']}, {100 * change:+.1f} points"
        for row, change in zip(rows, changes, strict=True)
        if (row["says"] == "better" and change < -POINT)
        or (row["says"] == "worse" and change > POINT)
    ]
    clear = [
        (row["says"], change)
        for row, change in zip(rows, changes, strict=True)
        if row["says"] != "even" and change
    ]
    right = sum((says == "better") == (change > 0) for says, change in clear)
    return {
        "spearman": spearman([row["gain"] for row in rows], changes),
        "says": dict(Counter(row["says"] for row in rows)),
        "right": right, "clear": len(clear), "failures": failures,
    }  # fmt: skip


def show(line: dict[str, Any]) -> None:
    """Every calibration, then the summary."""
    for row in line["calibrations"]:
        change = 100 * (row["after"] - row["before"])
        print(
            f"{row['merge']:22}{row['calibration']:14}{row['judge']:8}{row['gain']:+8.3f} "
            f"{row['says']:8}{change:+6.1f} points"
        )
    print(
        f"{line['suite']}: Spearman {line['spearman']}, right {line['right']} of {line['clear']} "
        f"clear ones; failures: {'; '.join(line['failures']) or 'none'}"
    )


if __name__ == "__main__":
    main()
