"""Sensitive layers by trying each and by derivatives: how alike they rank, and what each costs.

On the average of a suite's experts, with samples of its first task as the generic data set.

    .venv/bin/python -m benchmarks.suites text language
    .venv/bin/python -m benchmarks.sensitivity_modes text language
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import magmerge
from benchmarks.bench import Bench

RESULTS = Path(__file__).parent / "results" / "sensitivity_modes.jsonl"
ALPHA = 10


def main() -> None:
    """Measure the suites that are named, print a table, write the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    print("suite                score  layers  rank correlation  same of 10   exact s   fast s")
    for name in given.suites:
        for score in ("drift", *(["loss"] if name == "language" else [])):
            line = compare(name, score, given.samples, given.repeat)
            print(
                f"{name:<20} {score:<6} {line['layers']:>5}  {line['rank correlation']:>15.3f}  "
                f"{line['same of 10']:>10}  {line['exact s']:>8.1f} {line['fast s']:>8.1f}"
            )
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def compare(name: str, score: str, samples: int, repeat: int) -> dict[str, Any]:
    """Both modes in turn; seconds are the medians of the repetitions."""
    bench = Bench(name)
    first = next(iter(bench.data))
    seconds: dict[str, list[float]] = {"exact": [], "fast": []}
    found: dict[str, magmerge.Sensitivity] = {}
    for _ in range(repeat):
        for mode in ("exact", "fast"):
            start = time.monotonic()
            found[mode] = magmerge.sensitivity(
                base=bench.base, experts=bench.experts, data=bench.data[first], score=score,
                mode=mode, alpha=ALPHA, threads=1, build=bench.suite.entry.model.build,
                samples={"samples": samples, "max_length": bench.suite.entry.max_length},
                model=bench.suite.entry.model.class_,
            )  # fmt: skip
            seconds[mode].append(time.monotonic() - start)
    exact, fast = found["exact"], found["fast"]
    shared = [layer for layer in exact.layers if layer in fast.layers]
    return {
        "suite": name,
        "score": score,
        "samples": samples,
        "layers": len(exact.layers),
        "rank correlation": correlation(exact.layers, fast.layers, shared),
        "same of 10": len(set(exact.sensitive) & set(fast.sensitive)),
        "exact s": statistics.median(seconds["exact"]),
        "fast s": statistics.median(seconds["fast"]),
    }


def correlation(one: Mapping[str, float], other: Mapping[str, float], names: list[str]) -> float:
    """Spearman's, of the values of the same names."""
    ranks = [
        {name: place for place, name in enumerate(sorted(names, key=values.__getitem__))}
        for values in (one, other)
    ]
    return statistics.correlation(*([rank[name] for name in names] for rank in ranks))


if __name__ == "__main__":
    main()
