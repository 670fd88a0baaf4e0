"""What FSC's check on samples kept aside does to merges that FSC helps, and to those it harms.

Merges a suite's experts, calibrates each merge by FSC and DSC with the check and without it, and
measures all on the same test rows. Prints accuracies, the paired 95 % interval of each difference
to the merge as it is, what the check kept, and its measures with none and all of the calibration.

    .venv/bin/python -m benchmarks.checked_calibration text lora-text --seeds 3
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import magmerge
from benchmarks.bench import RESULTS, SUITES, Bench
from benchmarks.label_free import short_suite
from magmerge.evaluation import open_suite
from magmerge.evaluation.live_model import Hardware, open_weights
from magmerge.evaluation.task_scores import prepare_task
from magmerge.evaluation.task_suite import Suite

MERGES = ("average", "task_arithmetic", "tsv_m", "iso_c")
WAYS = ("fsc off", "fsc on", "dsc off", "dsc on")
MEASURES = ("feature error", "cosine", "kl")


def main() -> None:
    """Measure the suites that are named, print, write a JSON line for each merge and seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--rows", type=int, default=100, help="test rows of each task")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--merges", nargs="+", default=list(MERGES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--norm", default="l2")
    options = parser.parse_args()
    for name in options.suites:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name)
            suite = open_suite(short_suite(SUITES / name, Path(folder), options.rows))
            for method in options.merges:
                measure(name, bench, suite, method, options)


def measure(
    name: str, bench: Bench, suite: Suite, method: str, options: argparse.Namespace
) -> None:
    """One merge with all its calibrations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", magmerge.MagmergeWarning)
        state = magmerge.merge(
            base=bench.base, experts=bench.experts, method=method, threads=1
        ).state_dict()
    plain = right(suite, state)
    for seed in range(options.seeds):
        for way in options.ways:
            calibration, check = way.split()
            params = {"check": check, "norm": options.norm}
            result = bench.sampled(state, calibration, options.samples, seed, params=params)
            own = right(suite, result.state_dict())
            line = {
                "suite": name, "rows": options.rows, "samples": options.samples, "merge": method,
                "way": way, "norm": options.norm, "seed": seed, **differences(own, plain),
                **told(result.account.extra.get("check")),
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            with (RESULTS / "checked_calibration.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def right(suite: Suite, state: Any) -> Tensor:
    """Whether each test row of each task is predicted rightly, task after task."""
    tasks = [
        prepare_task(task, suite.entry, suite.path, "test", suite.base) for task in suite.tasks
    ]
    machine = Hardware(threads=1, workers=1)
    runner = suite.runner(machine, sum(len(task.batches) for task in tasks))
    (modules,) = runner.groups([open_weights(state, suite.base)])
    return torch.cat(
        [(runner.answers(modules, task)[0][:, 0] == task.labels).double() for task in tasks]
    )


def differences(own: Tensor, plain: Tensor) -> dict[str, float]:
    """Accuracies, and their paired difference with half of its 95 % interval, in points."""
    apart = 100 * (own - plain)
    return {
        "before": float(plain.mean()),
        "after": float(own.mean()),
        "points": float(apart.mean()),
        "interval": float(1.96 * apart.std() / len(apart) ** 0.5),
    }


def told(check: dict[str, Any] | None) -> dict[str, Any]:
    """What the check found and kept."""
    if check is None:
        return {}
    by_shares = {tuple(one["shares"]): one for one in check["candidates"]}
    count = len(check["groups"])
    return {
        "shares": [group["share"] for group in check["groups"]],
        "measures": {
            str(share): {name: by_shares[(share,) * count][name] for name in MEASURES}
            for share in (0.0, 0.5, 1.0)
        },
    }


if __name__ == "__main__":
    main()
