"""Calibrators that solve for layers from samples, from several starts, on a suite of tasks.

For each start as it is, and then with RegMean, RegMean++ and FeatCal from 1, 8 and 64 unlabelled
rows a task, and several draws: the accuracy on the test rows of all tasks, every task counting
alike. Of each line also the difference to its start with a 95 % interval, from the same rows: rows
of a task are drawn anew 2,000 times, the same for both. Draws of samples are taken together.

    .venv/bin/python -m benchmarks.suites text
    .venv/bin/python -m benchmarks.with_samples text lora-text

Lines that benchmarks/results/with_samples-SUITE.jsonl holds already are kept and completed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import magmerge
from benchmarks.demo_controls import read_all
from magmerge.evaluation import open_suite
from magmerge.evaluation.task_scores import class_numbers
from magmerge.evaluation.task_suite import Suite
from magmerge.live.module_weights import load

SUITES = Path(__file__).parent / ".cache" / "suites"
RESULTS = Path(__file__).parent / "results"
STARTS = ("average", "task_arithmetic", "tsv_m")
CALIBRATORS = ("regmean", "regmean_plusplus", "featcal")
DRAWN = ((8, 0), (64, 0), (1, 0), (8, 1), (1, 1))
"""Rows and draw, in the order in which they are measured."""
DRAWS = 2000


class Line(NamedTuple):
    """One model: its start, calibrator, rows a task and draw."""

    start: str
    calibrator: str = "none"
    rows: int = 0
    seed: int = 0


def lines(starts: list[str], calibrators: list[str]) -> Iterator[Line]:
    """All models."""
    yield from (Line(start) for start in starts)
    for rows, seed in DRAWN:
        for calibrator in calibrators:
            yield from (Line(start, calibrator, rows, seed) for start in starts)


class Task(NamedTuple):
    """The test rows of a task as batches of inputs, their classes, and its head."""

    batches: list[dict[str, torch.Tensor]]
    classes: torch.Tensor
    head: dict[str, torch.Tensor]


class Bench:
    """A suite of text tasks with its experts, samples, and lines that are known already."""

    def __init__(self, name: str) -> None:
        folder = SUITES / name
        self.name, self.path = name, RESULTS / f"with_samples-{name}.jsonl"
        texts = self.path.read_text().splitlines() if self.path.exists() else []
        known: list[dict[str, Any]] = [json.loads(text) for text in texts]
        self.suite: Suite = open_suite(folder / "suite.yaml")
        self.base = self.suite.base
        self.experts, self.data = {}, {}
        for task, entry in self.suite.entry.tasks.items():
            assert isinstance(entry.data, Mapping)
            self.experts[task] = folder / str(entry.expert)
            self.data[task] = str(folder / entry.data["calibration"])
        self.model = AutoModel.from_pretrained(self.base).eval()
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        self.tasks = {
            task: task_of(folder, entry, tokenizer, self.suite.entry.max_length)
            for task, entry in self.suite.entry.tasks.items()
        }
        # What was measured while the suite had other tasks is of other merges.
        self.known = [one for one in known if one["right"].keys() == self.tasks.keys()]

    @torch.inference_mode()
    def right(self, state: Mapping[str, Any], tasks: Iterable[str] = ()) -> dict[str, str]:
        """Which test rows of each task are answered rightly, as a row of 0 and 1."""
        load(self.model, state, "the line's model")
        found = {}
        for name in tasks or self.tasks:
            parts, task = [], self.tasks[name]
            for batch in task.batches:
                hidden, kept = self.model(**batch).last_hidden_state, batch["attention_mask"]
                means = (hidden * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True)
                parts.append((means @ task.head["weight"].T + task.head.get("bias", 0)).argmax(1))
            found[name] = "".join(str(int(v)) for v in torch.cat(parts) == task.classes)
        return found

    def keep(self, entry: dict[str, Any]) -> None:
        """Write down what was measured."""
        self.known.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def done(self) -> set[tuple[Any, ...]]:
        """The lines that are known."""
        return {tuple(one["line"]) for one in self.known}

    def limits(self) -> None:
        """Measure the base, and each expert on its own task."""
        if ("base",) not in self.done():
            self.keep({"line": ["base"], "right": self.right(read_all(self.base))})
        if ("experts",) not in self.done():
            right: dict[str, str] = {}
            for task, path in self.experts.items():
                whole = magmerge.merge(
                    base=self.base, experts={task: path}, method="task_arithmetic",
                    params={"lambda": 1.0}, threads=1,
                )  # fmt: skip
                right |= self.right(whole.state_dict(), [task])
            self.keep({"line": ["experts"], "right": right})

    def merged(self, line: Line) -> magmerge.Result:
        """The line's model."""
        entry, options = self.suite.entry, {}
        if line.rows:
            how = {"samples": line.rows, "seed": line.seed, "max_length": entry.max_length}
            options = {"calibrate": line.calibrator, "data": self.data, "samples": how}
            options |= {"model": entry.model.class_, "build": entry.model.build}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            return magmerge.merge(
                base=self.base, experts=self.experts, method=line.start, threads=1, memory="12GB",
                **options,
            )  # fmt: skip


def main() -> None:
    """Measure the suites that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--starts", nargs="*", default=STARTS)
    parser.add_argument("--calibrators", nargs="*", default=CALIBRATORS)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no line is begun")
    told = parser.parse_args()
    end = time.monotonic() + 60 * told.minutes
    benches = [Bench(name) for name in told.suites]
    for line in lines(told.starts, told.calibrators):
        for bench in benches:
            if tuple(line) in bench.done() or time.monotonic() > end:
                continue
            begun = time.process_time()
            state = bench.merged(line).state_dict()
            seconds = round(time.process_time() - begun, 1)
            bench.keep({"line": line, "cpu_s": seconds, "right": bench.right(state)})
    for bench in benches:
        if time.monotonic() < end:
            bench.limits()
        print(table(bench.name, bench.known), flush=True)


def task_of(folder: Path, entry: Any, tokenizer: Any, length: int) -> Task:
    """A task's test rows and head."""
    file = folder / entry.data["test"]
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    head = load_file(folder / entry.head)
    labels = [row[entry.label_field] for row in rows]
    classes = class_numbers(labels, entry.classes, str(file))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][entry.text_field]))
    batches = [
        dict(tokenizer([rows[row][entry.text_field] for row in order[first : first + 32]],
                       truncation=True, max_length=length, padding=True, return_tensors="pt"))
        for first in range(0, len(order), 32)
    ]  # fmt: skip
    return Task(batches, classes[torch.tensor(order)], head)


def table(name: str, known: list[dict[str, Any]]) -> str:
    """Accuracy of each start and calibrator, and what it gains on its start."""
    rights: dict[tuple[Any, ...], list[dict[str, str]]] = {}
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for one in known:
        rights.setdefault(tuple(one["line"][:3]), []).append(one["right"])
        seconds.setdefault(tuple(one["line"][:3]), []).append(one.get("cpu_s", 0.0))
    out = [f"{name:32}  rows  draws      %     on its start, 95 %     CPU s"]
    for key, own in rights.items():
        if len(key) == 1:
            out.append(f"{key[0]:32}{'':13}{100 * mean(own):6.1f}")
            continue
        start, calibrator, rows = key
        cells = f"{start + ' + ' + calibrator:32}{rows:6}{len(own):7}{100 * mean(own):7.1f}"
        if rows and (start, "none", 0) in rights:
            gain, low, high = paired(own, rights[start, "none", 0][0])
            cells += f"   {gain:+6.1f} [{low:+5.1f}, {high:+5.1f}]"
            cells += f"{sum(seconds[key]) / len(own):11.0f}"
        out.append(cells)
    return "\n".join(out)


def mean(rights: list[dict[str, str]]) -> float:
    """The mean accuracy over tasks and draws."""
    return float(np.mean([[r.count("1") / len(r) for r in one.values()] for one in rights]))


def paired(own: list[dict[str, str]], start: dict[str, str]) -> tuple[float, float, float]:
    """The difference in points, and its 95 % interval over draws of each task's rows."""
    generator, totals = np.random.default_rng(0), np.zeros(DRAWS)
    for task, text in start.items():
        before = np.array(list(text), float)
        after = np.mean([np.array(list(one[task]), float) for one in own], axis=0)
        places = generator.integers(len(before), size=(DRAWS, len(before)))
        totals += (after - before)[places].mean(1) / len(start)
    low, high = np.percentile(totals, [2.5, 97.5])
    plain = mean(own) - mean([start])
    return 100 * plain, 100 * float(low), 100 * float(high)


if __name__ == "__main__":
    main()
