"""Every calibration of every merge on the suites of experts, with controls.

For each merge: as it is; its task vector times the factor that is best on validation rows (this
alone sees labels); WSC; FSC with 1 and 8 unlabelled samples a task; DSC with 8; two controls of FSC
with 8: the mean of its factors everywhere, and its factors shuffled among layers. WSC, FSC and DSC
once more with the ten most sensitive layers of the average, by drift on samples of all tasks, which
may only shrink. Draws have five seeds. Scores are on test rows, samples from training data. What
benchmarks/results/calibration-SUITE.json has already is kept and completed.

    .venv/bin/python -m benchmarks.suites all
    .venv/bin/python -m benchmarks.calibration text lora-text vision-efficientnet language
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import magmerge
from benchmarks.calibration_table import markdown
from benchmarks.demo_controls import read_all, scaled, scaled_by_layer, shuffle
from magmerge.evaluation import open_suite
from magmerge.evaluation.task_suite import Suite

SUITES = Path(__file__).parent / ".cache" / "suites"
RESULTS = Path(__file__).parent / "results"
METHODS = ("average", "task_arithmetic", "ties", "dare", "tsv_m", "iso_c", "iso_cts")
FACTORS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
SEEDS = 5
ALPHA = 10
DRAWN = ("fsc 1", "fsc 8", "dsc 8", "global", "shuffled", "fsc 8 list", "dsc 8 list")
State = Mapping[str, Any]


@dataclass(slots=True)
class Bench:
    """One suite at work: its models, its samples, and scores of the weights seen so far."""

    suite: Suite
    folder: Path
    threads: int
    dtype: str | None
    seeds: range = range(SEEDS)
    sensitive: tuple[str, ...] = ()
    experts: dict[str, Path] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, threads: int, dtype: str | None, seeds: int = SEEDS) -> Bench:
        """Open a suite that was made."""
        folder = SUITES / name
        found = cls(
            open_suite(folder / "suite.yaml", allow_code=True), folder, threads, dtype, range(seeds)
        )
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

    def sampled(
        self, merged: State, method: str, samples: int, seed: int, **options: Any
    ) -> magmerge.Result:
        """The same, from samples of the calibration split."""
        entry = self.suite.entry
        return self.calibrated(
            merged,
            method,
            data=self.data,
            samples={"samples": samples, "seed": seed, "max_length": entry.max_length},
            model=entry.model.class_,
            build=entry.model.build,
            **options,
        )

    def most_sensitive(self) -> tuple[str, ...]:
        """The layers of the average that move the last features most, on samples of all tasks."""
        entry = self.suite.entry
        with tempfile.TemporaryDirectory() as folder:
            found = magmerge.sensitivity(
                base=self.base,
                experts=self.experts,
                data=pooled([Path(path) for path in self.data.values()], Path(folder)),
                mode="fast",
                alpha=ALPHA,
                samples={"samples": 64, "max_length": entry.max_length},
                model=entry.model.class_,
                build=entry.model.build,
                threads=self.threads,
            )
        return found.sensitive


def pooled(paths: list[Path], folder: Path) -> Path:
    """The rows of all files in one file, without labels."""
    out = folder / f"all{paths[0].suffix}"
    if out.suffix == ".jsonl":
        out.write_text("".join(path.read_text(encoding="utf-8") for path in paths))
        return out
    files = [load_file(path) for path in paths]
    names = [name for name in files[0] if name != "labels"]
    save_file({name: torch.cat([file[name] for file in files]) for name in names}, out)
    return out


def main() -> None:
    """Measure the suites that are named, and write their JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default=None, help="of the evaluation's forward passes")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    for name in given.suites:
        bench = Bench.of(name, given.threads, given.dtype, given.seeds)
        measure_suite(name, bench, given.methods)


def measure_suite(name: str, bench: Bench, methods: list[str]) -> None:
    """All methods of one suite; what is done is written after each draw of samples."""
    path = RESULTS / f"calibration-{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {"suite": name, "methods": {}}
    found["dtype"] = bench.dtype or "float32"
    bench.sensitive = tuple(found.get("sensitive") or bench.most_sensitive())
    found["sensitive"] = list(bench.sensitive)
    if "base" not in found:
        found["base"] = bench.scores(read_all(bench.base))
        found["experts"] = expert_scores(bench)
        found["rows"] = test_rows(bench)
    for method in methods:
        start = time.monotonic()
        for about in measured(bench, method, found["methods"].get(method, {"scores": {}})):
            found["methods"][method] = about
            whole = [m for m in found["methods"].values() if "dsc 8 list" in m["scores"]]
            found["seeds"] = min((len(m["scores"]["dsc 8 list"]) for m in whole), default=0)
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            if len(whole) == len(found["methods"]):
                path.with_suffix(".md").write_text(markdown(found))
        print(name, method, round(time.monotonic() - start), "s", flush=True)
    print(markdown(found))


def expert_scores(bench: Bench) -> dict[str, float]:
    """Each expert, a model or an adapter, on its own tasks."""
    entries, found = bench.suite.entry.tasks, dict[str, float]()
    for task, expert in bench.experts.items():
        own = [name for name, e in entries.items() if e.expert == entries[task].expert]
        scores = bench.suite.evaluate(expert, tasks=own, threads=bench.threads, dtype=bench.dtype)
        found.update((one.task, one.score) for one in scores.tasks)
    return {name: found[name] for name in entries}


def test_rows(bench: Bench) -> dict[str, int]:
    """How many test rows each task has."""
    scores = bench.suite.evaluate(bench.base, threads=bench.threads, dtype=bench.dtype)
    return {one.task: one.count for one in scores.tasks}


def measured(bench: Bench, method: str, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All variants of one merge, after each step: a list of scores by task, one for each draw."""
    scores = about["scores"]
    if all(len(scores.get(name, [])) >= len(bench.seeds) for name in DRAWN):
        return
    origin, plain = read_all(bench.base), merged(bench, method)
    if "tuned factor" not in about:
        best = max(FACTORS, key=lambda factor: goodness(bench, scaled(origin, plain, factor)))
        about["tuned factor"], about["mean xi"], about["mean xi without the gate"] = best, {}, {}
        scores["none"] = [bench.scores(plain)]
        scores["tuned"] = [bench.scores(scaled(origin, plain, best))]
        note(bench, about, "wsc", bench.calibrated(plain, "wsc"))
    if "wsc list" not in scores:
        listed = bench.calibrated(plain, "wsc", sensitive=bench.sensitive)
        scores["wsc list"] = [bench.scores(listed.state_dict())]
        yield about
    for seed in bench.seeds:
        draw(bench, about, origin, plain, seed)
        yield about


def draw(bench: Bench, about: dict[str, Any], origin: State, plain: State, seed: int) -> None:
    """Every variant that needs samples, from one draw of them; what is there is kept."""
    scores, kept = about["scores"], {"sensitive": bench.sensitive}
    missing = [name for name in DRAWN if len(scores.setdefault(name, [])) <= seed]
    for name in ("fsc 1", "fsc 8", "dsc 8"):
        if name in missing:
            kind, samples = name.split()
            found = bench.sampled(plain, kind, int(samples), seed)
            note(bench, about, name, found)
            if name == "fsc 8":
                scores["global"].append(bench.scores(everywhere(origin, plain, found)))
                scores["shuffled"].append(bench.scores(elsewhere(origin, plain, found, seed)))
    for name in ("fsc 8 list", "dsc 8 list"):
        if name in missing:
            found = bench.sampled(plain, name.split()[0], 8, seed, **kept)
            scores[name].append(bench.scores(found.state_dict()))


def note(bench: Bench, about: dict[str, Any], name: str, found: magmerge.Result) -> None:
    """A draw's scores beside the earlier ones, and its factors in their means."""
    scores = about["scores"].setdefault(name, [])
    for means, mean in (("mean xi", mean_xi), ("mean xi without the gate", mean_free)):
        sofar = about[means].get(name, 0.0) * len(scores)
        about[means][name] = (sofar + mean(found)) / (len(scores) + 1)
    scores.append(bench.scores(found.state_dict()))


def merged(bench: Bench, method: str) -> State:
    """The merge as it is."""
    return magmerge.merge(
        base=bench.base, experts=bench.experts, method=method, threads=bench.threads, memory="8GB"
    ).state_dict()


def factors_of(result: magmerge.Result) -> dict[str, float]:
    """The factor of each calibrated layer."""
    return {r.name: r.xi for r in result.records if r.calibrated_by}


def everywhere(origin: State, plain: State, result: magmerge.Result) -> State:
    """The control with one factor for all layers: their mean."""
    return scaled_by_layer(origin, plain, dict.fromkeys(factors_of(result), mean_xi(result)))


def elsewhere(origin: State, plain: State, result: magmerge.Result, seed: int) -> State:
    """The control with the layers' factors at other layers."""
    return scaled_by_layer(origin, plain, shuffle(factors_of(result), seed))


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
