"""What the rank of a merged adapter costs: the demo's six adapters as one, measured on its tasks.

For each merge and rank, without and with WSC: what was cut off, and mean test accuracy. "whole" is
the same merge written into the base model, where no rank bounds it.

    .venv/bin/python -m benchmarks.lora_ranks
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import magmerge
from benchmarks.demo_controls import scorer
from magmerge.report.adapter_table import whole_error
from magmerge.studies.demo.demo_tasks import base_folder, demo_experts

METHODS = ("average", "task_arithmetic", "ties")
RANKS = (16, 32, 64, 96)
RESULTS = Path(__file__).parent / "results" / "lora_ranks.jsonl"


def main() -> None:
    """Merge, measure, print, write the JSON line."""
    base, experts = base_folder(), demo_experts()
    score = scorer()
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        for rank in (*RANKS, None):
            row: dict[str, Any] = {"method": method, "rank": rank or "whole"}
            for name, calibration in (("none", None), ("wsc", "wsc")):
                wanted = {"experts": experts, "method": method, "calibrate": calibration}
                if rank is None:
                    state = magmerge.merge(base=base, **wanted).state_dict()
                else:
                    merged = magmerge.merge(**wanted, rank=rank)
                    row["cut off"] = whole_error(merged.modules)
                    state = applied(merged, base)
                row[name] = score(state)
            rows.append(row)
    Console(width=100).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"texts": "test", "rows": rows}) + "\n")


def applied(merged: magmerge.Result, base: Path) -> dict[str, Any]:
    """The base with one adapter merged into it."""
    with tempfile.TemporaryDirectory() as folder:
        path = merged.save(Path(folder) / "adapter")
        return magmerge.merge(base=base, experts=[path], method="average").state_dict()


def as_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each merge and rank, accuracy in %."""
    table = Table(box=None, pad_edge=False)
    for column in ("method", "rank", "cut off", "none", "+ wsc"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        cut = "" if "cut off" not in row else f"{100 * row['cut off']:.1f} %"
        scores = [f"{100 * row[name]:.1f}" for name in ("none", "wsc")]
        table.add_row(row["method"], str(row["rank"]), cut, *scores)
    return table


if __name__ == "__main__":
    main()
