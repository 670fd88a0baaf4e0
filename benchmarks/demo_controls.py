"""WSC on the demo's experts against the controls that an honest comparison needs.

For each merge: as it is; at its lambda tuned on the validation texts; with WSC; with WSC and no
gate; with one global factor equal to WSC's mean xi; and with the layers' mean xi shuffled among
the layers (five seeds). All scores are on the test texts.

    .venv/bin/python -m benchmarks.demo_controls
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

import magmerge
from magmerge.studies.demo.demo_tasks import base_folder, demo_experts, demo_suite

METHODS = ("average", "task_arithmetic", "ties", "dare")
LAMBDAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Factors on each method's own default merge."""
SHUFFLES = 5
RESULTS = Path(__file__).parent / "results" / "demo_controls.jsonl"
State = Mapping[str, Tensor]


def main() -> None:
    """Measure all methods, print the table, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=magmerge.Machine().count)
    parser.add_argument(
        "--methods", nargs="*", default=METHODS, choices=(*METHODS, "tsv_m", "iso_c", "wudi")
    )
    given = parser.parse_args()
    threads = given.threads
    start = time.monotonic()
    score, tune = scorer(threads=threads), scorer("validation", threads=threads)
    rows = {method: measure(method, base_folder(), score, tune) for method in given.methods}
    Console(width=130).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"seconds": round(time.monotonic() - start), "texts": "test", "methods": rows}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def scorer(split: str = "test", *, threads: int | None = None) -> Callable[[State], float]:
    """A function from weights to the mean accuracy over the demo's tasks."""
    suite = demo_suite()

    def score(state: State) -> float:
        return suite.evaluate(state, split=split, threads=threads).mean or 0.0

    return score


def measure(
    method: str,
    base: Path,
    score: Callable[[State], float],
    tune: Callable[[State], float],
) -> dict[str, object]:
    """All variants of one merge, by name."""
    experts = demo_experts()
    origin = read_all(base)
    plain = magmerge.merge(base=base, experts=experts, method=method).state_dict()
    gated = magmerge.merge(base=base, experts=experts, method=method, calibrate="wsc")
    free = magmerge.merge(base=base, experts=experts, method=method, calibrate="wsc", gate="off")
    layers = {record.name: record.xi for record in gated.records if record.calibrated_by}
    mean = statistics.mean(layers.values())
    best = max(LAMBDAS, key=lambda factor: tune(scaled(origin, plain, factor)))
    shuffled = [
        score(scaled_by_layer(origin, plain, shuffle(layers, seed))) for seed in range(SHUFFLES)
    ]
    return {
        "none": score(plain),
        "tuned lambda": score(scaled(origin, plain, best)),
        "tuned factor": best,
        "wsc": score(gated.state_dict()),
        "wsc, no gate": score(free.state_dict()),
        "global factor": score(scaled_by_layer(origin, plain, dict.fromkeys(layers, mean))),
        "mean xi": mean,
        "shuffled": statistics.mean(shuffled),
        "shuffled spread": max(shuffled) - min(shuffled),
    }


def read_all(model: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    checkpoint = magmerge.open_checkpoint(model)
    return {name: checkpoint.read(name) for name in checkpoint.specs}


def scaled(base: State, merged: State, factor: float) -> dict[str, Tensor]:
    """The merge with its whole task vector times `factor`."""
    return {
        name: base[name] + factor * (tensor - base[name]) if tensor.is_floating_point() else tensor
        for name, tensor in merged.items()
    }


def scaled_by_layer(base: State, merged: State, factors: Mapping[str, float]) -> dict[str, Tensor]:
    """The merge with a factor on the task vector of each layer in `factors`."""
    return {
        name: base[name] + factors[name] * (tensor - base[name]) if name in factors else tensor
        for name, tensor in merged.items()
    }


def shuffle(layers: Mapping[str, float], seed: int) -> dict[str, float]:
    """The same factors, each at another layer."""
    values = list(layers.values())
    random.Random(seed).shuffle(values)
    return dict(zip(layers, values, strict=True))


def as_table(rows: Mapping[str, Mapping[str, object]]) -> Table:
    """Methods as rows, variants as columns, mean accuracy over the tasks in percent."""
    variants = ("none", "tuned lambda", "wsc", "wsc, no gate", "global factor", "shuffled")
    table = Table(title="mean test accuracy in %", title_justify="left", box=None)
    for column in ("merge", *variants, "mean xi", "tuned factor"):
        table.add_column(column, justify="left" if column == "merge" else "right")
    for method, row in rows.items():
        cells = [f"{100 * float(str(row[variant])):.1f}" for variant in variants]
        cells[-1] += f" ± {50 * float(str(row['shuffled spread'])):.1f}"
        table.add_row(method, *cells, f"{row['mean xi']:.2f}", f"{row['tuned factor']}")
    return table


if __name__ == "__main__":
    main()
