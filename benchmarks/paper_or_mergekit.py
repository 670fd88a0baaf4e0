"""How much it matters whether a method is merged as its paper says or as mergekit 0.1.5 does.

On the six experts of the demo: for each difference the merge by either rule, how far apart the two
merged task vectors are (Frobenius norm of their difference over that of the first, all tensors),
and the mean accuracy of both on the test texts.

    .venv/bin/python -m benchmarks.paper_or_mergekit
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

import magmerge
from benchmarks.demo_controls import scorer
from magmerge.studies.demo.demo_tasks import base_folder, demo_experts

RESULTS = Path(__file__).parent / "results" / "paper_or_mergekit.jsonl"
UNEQUAL = [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]


class Difference(NamedTuple):
    """One thing that is done in two ways."""

    what: str
    method: str
    paper: Mapping[str, Any]
    mergekit: Mapping[str, Any]


DIFFERENCES = [
    Difference("trim within the model, or each tensor", "ties", {}, {"scope": "tensor"}),
    Difference("all weights equal: plain or weighted vote", "ties", {}, {"vote": "weighted"}),
    Difference(
        "weights 2, 1, 1, ...: plain or weighted vote",
        "ties",
        {"weights": UNEQUAL},
        {"weights": UNEQUAL, "vote": "weighted"},
    ),
    Difference("no density given: 0.2, or all kept", "ties", {}, {"density": 1.0}),
    Difference("divide by 1 - p, or match the L1 norm", "dare", {}, {"rescale": "l1"}),
    Difference("divide by 1 - p, or match the L1 norm", "dare_ties", {}, {"rescale": "l1"}),
    Difference("mean of what agrees, or its sum", "dare_ties", {}, {"normalize": False}),
    Difference("each entry by its own chance, or L1", "della", {}, {"rescale": "l1"}),
    Difference("85 to 99.3 % cut, or nothing", "breadcrumbs", {}, {"density": 1.0}),
    Difference("energies weigh, or all alike", "sce", {}, {"energy_floor": 1e-6}),
]


def main() -> None:
    """Merge, measure, print the table, write the JSON line."""
    base, experts = base_folder(), demo_experts()
    score = scorer()
    start = magmerge.open_checkpoint(base)
    rows = []
    for difference in DIFFERENCES:
        states = []
        for params in (difference.paper, difference.mergekit):
            result = magmerge.merge(
                base=base, experts=experts, method=difference.method, params=params
            )
            states.append(result.state_dict())
        rows.append(
            {
                "method": difference.method,
                "what": difference.what,
                "mergekit": dict(difference.mergekit),
                "apart": apart(start, *states),
                "accuracy": [score(state) for state in states],
            }
        )
    Console(width=120).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"rows": rows}) + "\n")


def apart(base: Any, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """|D_1 - D_2| / |D_1| over all floating-point tensors."""
    gap = size = 0.0
    for name, tensor in first.items():
        if tensor.is_floating_point():
            gap += float((tensor.double() - second[name].double()).square().sum())
            size += float((tensor.double() - base.read(name).double()).square().sum())
    return math.sqrt(gap / size)


def as_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each difference."""
    title = "as the paper, or as mergekit 0.1.5: six experts of the demo, accuracy in %"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("method", "paper, or mergekit", "mergekit's way here"):
        table.add_column(name)
    for name in ("apart", "paper", "mergekit"):
        table.add_column(name, justify="right")
    for row in rows:
        ways = ", ".join(f"{key}={value}" for key, value in row["mergekit"].items())
        scores = [f"{100 * value:.1f}" for value in row["accuracy"]]
        ways = ways.replace(f"weights={UNEQUAL}, ", "")
        table.add_row(row["method"], row["what"], ways, f"{row['apart']:.2f}", *scores)
    return table


if __name__ == "__main__":
    main()
