"""Every calibration of every merge on the suites of fully fine-tuned experts, with controls.

For each merge: as it is; its task vector times the factor that is best on validation rows (this
alone sees labels); WSC; FSC with 1 and with 8 unlabelled samples a task; DSC with 8; and two
controls of FSC with 8: one global factor, the mean of its factors, and its factors shuffled among
the layers. Draws are repeated with five seeds. Scores are on test rows, samples from training data.

    .venv/bin/python -m benchmarks.suites all
    .venv/bin/python -m benchmarks.calibration text vision-vit vision-efficientnet language

Results that are there already (benchmarks/results/calibration-SUITE.json) are kept and completed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import magmerge
from benchmarks.calibration_table import markdown
from benchmarks.demo_controls import read_all, scaled, scaled_by_layer, shuffle
from magmerge.evaluation import open_suite
from magmerge.evaluation.suite import Suite

SUITES = Path(__file__).parent / ".cache" / "suites"
RESULTS = Path(__file__).parent / "results"
METHODS = ("average", "task_arithmetic", "ties", "dare", "tsv_m", "iso_c", "iso_cts")
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
SEEDS = range(5)
State = Mapping[str, Any]


@dataclass(slots=True)
class Bench:
    """One suite at work: its models, its samples, and scores of the weights seen so far."""

    suite: Suite
    folder: Path
    threads: int
    dtype: str | None
    experts: dict[str, Path] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, threads: int, dtype: str | None) -> Bench:
        """Open a suite that was made."""
        folder = SUITES / name
        found = cls(open_suite(folder / "suite.yaml"), folder, threads, dtype)
        for task, entry in found.suite.entry.tasks.items():
            expert = folder / str(entry.expert)
            if expert not in found.experts.values():
                found.experts[task] = expert
                assert isinstance(entry.data, Mapping)
                found.data[task] = str(folder / entry.data["calibration"])
        return found

    @property
    def base(self) -> Path:
        """The model that the experts were tuned from."""
        assert self.suite.base is not None
        return self.suite.base

    def scores(self, state: State, split: str = "test") -> dict[str, float]:
        """Each task's score; equal weights are measured once."""
        digest = hashlib.sha256(split.encode())
        for name in sorted(state):
            digest.update(name.encode())
            digest.update(state[name].contiguous().reshape(-1).view(-1).numpy().tobytes())
        key = digest.hexdigest()
        if key not in self.known:
            found = self.suite.evaluate(state, split=split, threads=self.threads, dtype=self.dtype)
            self.known[key] = {one.task: one.score for one in found.tasks}
        return self.known[key]

    def calibrated(self, merged: State, method: str, **options: Any) -> magmerge.Result:
        """A merge that exists, calibrated."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", magmerge.MagmergeWarning)
            return magmerge.calibrate(
                merged,
                base=self.base,
                experts=self.experts,
                method=method,
                threads=self.threads,
                memory="8GB",
                **options,
            )

    def sampled(self, merged: State, method: str, samples: int, seed: int) -> magmerge.Result:
        """The same, from samples of the calibration split."""
        entry = self.suite.entry
        return self.calibrated(
            merged,
            method,
            data=self.data,
            samples={"samples": samples, "seed": seed, "max_length": entry.max_length},
            model=entry.model.class_,
            build=entry.model.build,
        )


def main() -> None:
    """Measure the suites that are named, and write their JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default=None, help="of the evaluation's forward passes")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    given = parser.parse_args()
    for name in given.suites:
        measure_suite(name, given.methods, given.threads, given.dtype)


def measure_suite(name: str, methods: list[str], threads: int, dtype: str | None) -> None:
    """All methods of one suite; what is done is written after each."""
    path = RESULTS / f"calibration-{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {"suite": name, "methods": {}}
    bench = Bench.of(name, threads, dtype)
    found["dtype"] = dtype or "float32"
    if "base" not in found:
        found["base"] = bench.scores(read_all(bench.base))
        found["experts"] = expert_scores(bench)
        found["rows"] = test_rows(bench)
    for method in methods:
        if method in found["methods"]:
            continue
        start = time.monotonic()
        found["methods"][method] = measure(bench, method)
        found["methods"][method]["seconds"] = round(time.monotonic() - start)
        print(name, method, found["methods"][method]["seconds"], "s", flush=True)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


def expert_scores(bench: Bench) -> dict[str, float]:
    """Each expert on its own tasks."""
    entries = bench.suite.entry.tasks
    found = {}
    for task, expert in bench.experts.items():
        scores = bench.scores(read_all(expert))
        own = [name for name, e in entries.items() if e.expert == entries[task].expert]
        found |= {name: scores[name] for name in own}
    return {name: found[name] for name in entries}


def test_rows(bench: Bench) -> dict[str, int]:
    """How many test rows each task has."""
    scores = bench.suite.evaluate(bench.base, threads=bench.threads, dtype=bench.dtype)
    return {one.task: one.count for one in scores.tasks}


def measure(bench: Bench, method: str) -> dict[str, Any]:
    """All variants of one merge: a list of scores by task, one for each seed."""
    origin = read_all(bench.base)
    plain = magmerge.merge(
        base=bench.base, experts=bench.experts, method=method, threads=bench.threads, memory="8GB"
    ).state_dict()
    best = max(FACTORS, key=lambda factor: goodness(bench, scaled(origin, plain, factor)))
    wsc = bench.calibrated(plain, "wsc")
    found: dict[str, Any] = {
        "none": [bench.scores(plain)],
        "tuned": [bench.scores(scaled(origin, plain, best))],
        "wsc": [bench.scores(wsc.state_dict())],
    }
    once, eight, dsc = (
        [bench.sampled(plain, kind, samples, seed) for seed in SEEDS]
        for kind, samples in (("fsc", 1), ("fsc", 8), ("dsc", 8))
    )
    for name, results in (("fsc 1", once), ("fsc 8", eight), ("dsc 8", dsc)):
        found[name] = [bench.scores(result.state_dict()) for result in results]
    found["global"], found["shuffled"] = controls(bench, origin, plain, eight)
    means = {"wsc": [wsc], "fsc 1": once, "fsc 8": eight, "dsc 8": dsc}
    return {
        "scores": found,
        "tuned factor": best,
        "mean xi": {name: statistics.mean(map(mean_xi, some)) for name, some in means.items()},
        "mean xi without the gate": {
            name: statistics.mean(map(mean_free, some)) for name, some in means.items()
        },
    }


def controls(
    bench: Bench, origin: State, plain: State, results: list[magmerge.Result]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """One factor for all layers, and the layers' factors at other layers."""
    one, other = [], []
    for seed, result in enumerate(results):
        factors = {r.name: r.xi for r in result.records if r.calibrated_by}
        mean = dict.fromkeys(factors, mean_xi(result))
        one.append(bench.scores(scaled_by_layer(origin, plain, mean)))
        other.append(bench.scores(scaled_by_layer(origin, plain, shuffle(factors, seed))))
    return one, other


def goodness(bench: Bench, state: State) -> float:
    """What tuning looks at: the mean score on validation rows, perplexity by its logarithm."""
    scores = bench.scores(state, "validation")
    return sum(gain(bench.suite.entry.tasks[name].metric, v) for name, v in scores.items())


def gain(metric: str, score: float) -> float:
    """A score as more is better."""
    return -statistics.math.log(score) if metric == "perplexity" else score


def _mean_of(pick: Callable[[Any], float]) -> Callable[[magmerge.Result], float]:
    def mean(result: magmerge.Result) -> float:
        return statistics.mean(pick(r) for r in result.records if r.calibrated_by)

    return mean


mean_xi = _mean_of(lambda record: record.xi)
mean_free = _mean_of(lambda record: record.xi_free)

if __name__ == "__main__":
    main()
