"""Data-free merges of one suite in one table: magmerge's own, and peers by their formulas.

Every row is a merge, perhaps calibrated, by the front door; nothing is tuned on the suite. Beside
each accuracy stands its difference to the best row with a 95 % interval over the paired test rows.
What a row got right is kept, a bit a test row, in benchmarks/results/peers.jsonl: rows that are
there already are not made again. Forward passes are in bfloat16.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.peers lora text
    .venv/bin/python -m benchmarks.peers --table lora text
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import magmerge
from benchmarks import peer_methods
from benchmarks.demo_controls import read_all
from magmerge.data.rows import SampleDraw
from magmerge.evaluation import open_suite
from magmerge.evaluation.live_model import Hardware, LiveModel, open_weights
from magmerge.evaluation.runner import Prepared, Runner
from magmerge.evaluation.task_scores import prepare_task
from magmerge.evaluation.task_suite import Suite
from magmerge.studies.demo.demo_tasks import demo_suite

SUITES = Path(__file__).parent / ".cache" / "suites"
RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
TEXTS = {"text": 200}
"""Test rows of each task that are drawn by a fixed seed, where not all are read."""
ONE_THREAD = Hardware(threads=1, workers=1, dtype="bfloat16")
"""Of the evaluation: a third of the CPU time of float32 here. The base's mean over 1,750 texts
moved by 0.01 points; all rows of a suite are measured alike."""


class Row(NamedTuple):
    """A merge of the table: its method, the method's parameters, and what follows it."""

    method: str
    params: Mapping[str, Any] = {}
    calibrate: str | None = None
    tiers: bool = False


def rising(first: float, last: float) -> dict[str, Any]:
    """LiNeS: lambda grows with the depth of the layer."""
    return {"lambda": {"gradient": [first, last]}}


def rows_for(experts: int) -> dict[str, Row]:
    """All rows by name; those of LiNeS know the number of experts."""
    mean = 1 / experts
    return {
        "average": Row("average"),
        "task_arithmetic": Row("task_arithmetic", {"lambda": 0.3}),
        "tsv_m": Row("tsv_m"),
        "iso_c": Row("iso_c"),
        "wudi (ASWUDI)": Row("wudi"),
        "wudi exponential 300": Row("wudi", {"filter": "exponential"}),
        "wudi tikhonov 0.01": Row("wudi", {"filter": "tikhonov"}),
        "wudi tikhonov 0.1": Row("wudi", {"filter": "tikhonov", "ridge": 0.1}),
        "tsv_m + svc": Row("tsv_m", {}, "svc"),
        "task_arithmetic + svc": Row("task_arithmetic", {"lambda": 0.3}, "svc"),
        "task_arithmetic + lines": Row("task_arithmetic", rising(mean, mean + 0.3)),
        "iso_c + larv": Row("iso_c", {}, tiers=True),
        "actmat": Row("actmat"),
        "dc_merge": Row("dc_merge"),
        "star": Row("star"),
        "tsv_m + boosting": Row("tsv_m", {}, "subspace_boosting"),
        "knots": Row("knots"),
        "ace": Row("ace"),
        "iso_cts": Row("iso_cts"),
        "ties": Row("ties"),
        "iso_c + lines": Row("iso_c", rising(0.75, 1.25)),
        "tsv_m + lines": Row("tsv_m", rising(0.75, 1.25)),
        "wudi exponential 30": Row("wudi", {"filter": "exponential", "time": 30.0}),
        "actmat ridge 0.1": Row("actmat", {"ridge": 0.1}),
        "star sum": Row("star", {"lambda": float(experts)}),
        "task_arithmetic + lines 1": Row("task_arithmetic", rising(mean, 1.0)),
        "tsv_m + larv": Row("tsv_m", {}, tiers=True),
        "task_arithmetic + boosting": Row("task_arithmetic", {"lambda": 0.3}, "subspace_boosting"),
        "average + svc": Row("average", {}, "svc"),
    }


class Bench:
    """One suite: its tasks prepared once, one live model, its base and experts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.suite: Suite = (
            demo_suite() if name == "lora" else open_suite(SUITES / name / "suite.yaml")
        )
        entry, base = self.suite.entry, self.suite.base
        assert base is not None
        self.base = base
        self.experts = {task: self._folder(str(one.expert)) for task, one in entry.tasks.items()}
        self.tasks: dict[str, Prepared] = {}
        for task in entry.tasks:
            draw = SampleDraw(task, TEXTS.get(name), allow_test=True, fewer=True)
            prepared = prepare_task(task, entry, self.suite.path, "test", base, draw)
            self.tasks[task] = prepared
        self._live = LiveModel(entry.model, base)

    def _folder(self, expert: str) -> Path:
        path = Path(expert)
        return path if path.is_absolute() else self.suite.path.parent / path

    def right(self, model: Any, names: Iterable[str] | None = None) -> dict[str, list[int]]:
        """Of each task, 1 for each test row that the model gets right, else 0."""
        weights = open_weights(model, self.base)
        runner = Runner([self._live], ONE_THREAD, 0)
        answers = {}
        for modules in runner.groups([weights]):
            for task in names or self.tasks:
                prepared = self.tasks[task]
                assert prepared.labels is not None
                found = runner.answers(modules, prepared)[0][:, 0]
                answers[task] = (found == prepared.labels).int().tolist()
        return answers

    def merged(self, row: Row) -> dict[str, Tensor]:
        """The row's merge, all in memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            found = magmerge.merge(
                base=self.base, experts=self.experts, method=row.method, params=dict(row.params),
                calibrate=row.calibrate, threads=1, memory="8GB",
            )  # fmt: skip
        state = dict(found.state_dict())
        return peer_methods.in_tiers(read_all(self.base), state) if row.tiers else state


def packed(right: Mapping[str, list[int]]) -> dict[str, str]:
    """Each task's bits as a hexadecimal number that begins with a 1."""
    return {task: f"{int('1' + ''.join(map(str, bits)), 2):x}" for task, bits in right.items()}


def unpacked(line: Mapping[str, Any]) -> dict[str, Tensor]:
    """The bits again."""
    return {
        task: torch.tensor([int(bit) for bit in f"{int(bits, 16):b}"[1:]], dtype=torch.float64)
        for task, bits in line["right"].items()
    }


def known(suite: str) -> dict[str, dict[str, Any]]:
    """The lines of a suite that are there, by row."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {line["row"]: line for line in lines if line["suite"] == suite}


def keep(suite: str, name: str, right: Mapping[str, list[int]], seconds: float) -> None:
    """Write one row's line."""
    scores = {task: sum(bits) / len(bits) for task, bits in right.items()}
    mean = sum(scores.values()) / len(scores)
    line = {"suite": suite, "row": name, "mean": round(mean, 5), "cpu_s": round(seconds, 1)}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**line, "right": packed(right)}) + "\n")
    print(f"{suite:8} {name:28} {100 * mean:6.2f}  merge {seconds:6.1f} s CPU", flush=True)


def measure(name: str, only: list[str] | None) -> None:
    """All rows of a suite that are not there yet."""
    bench, there = Bench(name), known(name)
    if "base" not in there:
        keep(name, "base", bench.right(bench.base), 0.0)
    if "experts" not in there:
        own: dict[str, list[int]] = {}
        for task, expert in bench.experts.items():
            own |= bench.right(expert, [task])
        keep(name, "experts", own, 0.0)
    for row, about in rows_for(len(bench.experts)).items():
        if row in there or (only and row not in only):
            continue
        start = time.process_time()
        try:
            state = bench.merged(about)
        except magmerge.MagmergeError as error:
            print(row, error, flush=True)
            continue
        seconds = time.process_time() - start
        keep(name, row, bench.right(state), seconds)


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, float]:
    """The mean accuracy of `one` less that of `other`, and half its 95 % interval."""
    parts = [one[task] - other[task] for task in one]
    mean = sum(float(part.mean()) for part in parts) / len(parts)
    spread = sum(float(part.var()) / len(part) for part in parts) ** 0.5 / len(parts)
    return mean, 1.96 * spread


def table(name: str) -> str:
    """The suite's rows, the best first, in Markdown."""
    lines = known(name)
    limits = {"base", "experts"}
    order = sorted(lines, key=lambda row: -lines[row]["mean"])
    best = next(row for row in order if row not in limits)
    bits = {row: unpacked(line) for row, line in lines.items()}
    out = [f"| {name} | % | to the best | CPU s |", "|---|---|---|---|"]
    for row in order:
        mean, half = difference(bits[row], bits[best])
        gap = "" if row in limits or row == best else f"{100 * mean:+.1f} ± {100 * half:.1f}"
        inside = row not in limits and mean + half >= 0
        score = f"{100 * lines[row]['mean']:.1f}"
        out.append(
            f"| {row} | {f'**{score}**' if inside else score} | {gap} | {lines[row]['cpu_s']:.0f} |"
        )
    return "\n".join(out)


def main() -> None:
    """Measure the suites that are named, or print their tables alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.suites:
        if not options.table:
            measure(name, options.rows)
        print(table(name))


if __name__ == "__main__":
    main()
