"""What `--method auto` chooses on suites of experts, beside the fixed choices.

For each suite and each budget (0, 8 and 64 unlabelled rows a task) auto chooses, and what it chose
is measured on all test rows, every task counting alike; so are base, average, experts, and every
fixed choice, with the budget's rows where it looks at samples. Printed are the choice and its
accuracy, the best fixed choice and its own, and the difference with a 95 % interval over paired
test rows, drawn anew 2,000 times. Test rows are run in bfloat16, alike for all.

    .venv/bin/python -m benchmarks.suites text
    .venv/bin/python -m benchmarks.auto text lora-text vision-efficientnet --minutes 9

Lines that benchmarks/results/auto-SUITE.jsonl holds already are not measured again, and a merge
that was measured is not run once more.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import magmerge
from benchmarks.calibration import RESULTS, Bench
from benchmarks.demo_controls import read_all
from benchmarks.with_samples import mean, paired
from magmerge.evaluation.live_model import Hardware, open_weights
from magmerge.evaluation.runner import Prepared
from magmerge.evaluation.task_scores import prepare_task, scoring_of

BUDGETS = (0, 8, 64)
TIKHONOV = {"filter": "tikhonov", "ridge": 0.1}
SOLVED = ["regression", "regression_samples"]
FIXED: Mapping[str, tuple[str, dict[str, Any], list[str]]] = {
    "tsv_m + regression": ("tsv_m", {}, ["regression"]),
    "wudi tikhonov + regression": ("wudi", TIKHONOV, ["regression"]),
    "wudi tikhonov": ("wudi", TIKHONOV, []),
    "average": ("average", {}, []),
    "tsv_m": ("tsv_m", {}, []),
    "knots": ("knots", {}, []),
    "tsv_m + svc": ("tsv_m", {}, ["svc"]),
    "task_arithmetic + svc": ("task_arithmetic", {}, ["svc"]),
    "tsv_m + regression + samples": ("tsv_m", {}, SOLVED),
    "average + fsc": ("average", {}, ["fsc"]),
}
SAMPLED = ("regression_samples", "fsc")


class Line(NamedTuple):
    """A merge: auto, or a fixed choice, with so many rows a task."""

    merge: str
    rows: int = 0


def lines() -> Iterator[Line]:
    """All merges in the order in which they are measured."""
    yield from (Line("auto", rows) for rows in BUDGETS)
    for merge, (_, _, calibrate) in FIXED.items():
        looks = any(name in SAMPLED for name in calibrate)
        yield from (Line(merge, rows) for rows in (BUDGETS[1:] if looks else BUDGETS[:1]))
    yield from (Line("base"), Line("experts"))


class AutoBench:
    """A suite, and the lines that are known of it."""

    def __init__(self, name: str) -> None:
        self.name, self.path = name, RESULTS / f"auto-{name}.jsonl"
        self.bench = Bench.of(name, 1, None)
        texts = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.known: list[dict[str, Any]] = [json.loads(text) for text in texts]
        self.tasks: dict[str, Prepared] = {}

    def done(self) -> set[Line]:
        """The lines that are known."""
        return {Line(*one["line"]) for one in self.known}

    def keep(self, line: Line, right: dict[str, str], **more: Any) -> None:
        """Write down what was measured."""
        entry = {"line": line, **more, "right": right}
        self.known.append(json.loads(json.dumps(entry)))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def measure(self, line: Line) -> None:
        """Measure a line that is not known yet."""
        begun = time.process_time()
        if line.merge == "base":
            self.keep(line, self.right(read_all(self.bench.base)))
            return
        if line.merge == "experts":
            right: dict[str, str] = {}
            for task, path in self.bench.experts.items():
                whole = self.merged("task_arithmetic", {"lambda": 1.0}, [], 0, {task: path})
                right |= self.right(whole.state_dict(), [task])
            self.keep(line, right)
            return
        chosen = ("auto", {}, []) if line.merge == "auto" else FIXED[line.merge]
        try:
            result = self.merged(*chosen, line.rows, self.bench.experts)
        except magmerge.MagmergeError as error:
            self.keep(line, {}, fault=str(error.problem))
            return
        recipe = result.recipe
        made = json.dumps([recipe.method, recipe.params, [c.method for c in recipe.calibrate],
                           line.rows if recipe.samples else 0])  # fmt: skip
        same = (one["right"] for one in self.known if one.get("made") == made)
        seconds = round(time.process_time() - begun, 1)
        own = next(same, None) or self.right(result.state_dict())
        self.keep(line, own, made=made, cpu_s=seconds, choice=dict(result.job.choice))

    def merged(
        self,
        method: str,
        params: Mapping[str, Any],
        calibrate: list[str],
        rows: int,
        experts: Mapping[str, Path],
    ) -> magmerge.Result:
        """A merge of experts, with so many rows a task."""
        entry, options = self.bench.suite.entry, dict[str, Any]()
        if rows:
            options = {
                "data": self.bench.data,
                "samples": {"samples": rows, "seed": 0, "max_length": entry.max_length},
                "model": entry.model.class_,
                "build": entry.model.build,
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            return magmerge.merge(
                base=self.bench.base, experts=experts, method=method, params=params,
                calibrate=calibrate, threads=1, memory="8GB", **options,
            )  # fmt: skip

    def right(self, state: Mapping[str, Any], tasks: Iterable[str] = ()) -> dict[str, str]:
        """Which test rows of each task are answered rightly, as a row of 0 and 1."""
        suite, machine, found = (
            self.bench.suite,
            Hardware(threads=1, dtype="bfloat16", memory="8GB"),
            {},
        )
        runner = suite.runner(machine, 0)
        for modules in runner.groups([open_weights(state, suite.base)]):
            for name in tasks or suite.tasks:
                if name not in self.tasks:
                    self.tasks[name] = prepare_task(
                        name, suite.entry, suite.path, "test", suite.base
                    )
                task = self.tasks[name]
                scoring = scoring_of("accuracy", task, runner.answers(modules, task)[0])
                found[name] = "".join(str(int(v)) for v in scoring.first == scoring.second)
        return found


def main() -> None:
    """Measure what is missing, print the table of each suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no line is begun")
    told = parser.parse_args()
    end = time.monotonic() + 60 * told.minutes
    benches = [AutoBench(name) for name in told.suites]
    for line in lines():
        for bench in benches:
            if line not in bench.done() and time.monotonic() < end:
                bench.measure(line)
                print(bench.name, *line, bench.known[-1].get("cpu_s", ""), flush=True)
    for bench in benches:
        print(table(bench), flush=True)


def table(bench: AutoBench) -> str:
    """What auto chose with each budget, beside the best fixed choice, base, average and experts."""
    known = {Line(*one["line"]): one for one in bench.known if one["right"]}
    limits = {
        name: 100 * mean([known[Line(name)]["right"]])
        for name in ("base", "average", "experts")
        if Line(name) in known
    }
    out = [f"{bench.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in limits.items())]
    out.append(
        f"{'rows':>4}  {'auto chose':44}{'%':>6}  {'best fixed choice':40}{'%':>6}  auto - best"
    )
    for rows in BUDGETS:
        own = known.get(Line("auto", rows))
        fixed = {
            line: one
            for line, one in known.items()
            if line.merge in FIXED and line.rows in (0, rows)
        }
        if own is None or not fixed:
            continue
        best = max(fixed, key=lambda line: mean([fixed[line]["right"]]))
        gain, low, high = paired([own["right"]], fixed[best]["right"])
        label, accuracy = own["choice"]["chosen"], 100 * mean([own["right"]])
        out.append(
            f"{rows:>4}  {label:44}{accuracy:6.1f}  {best.merge:40}"
            f"{100 * mean([fixed[best]['right']]):6.1f}  {gain:+.1f} [{low:+.1f}, {high:+.1f}]"
        )
    out += [
        f"      {line.merge:44}{100 * mean([one['right']]):6.1f}  {line.rows} rows"
        for line, one in known.items()
        if line.merge in FIXED
    ]
    return "\n".join(out)


if __name__ == "__main__":
    main()
