"""Speed and error of the spectral methods against their definition by singular value decomposition.

For K task vectors of each shape: the time of the method and of its definition with
torch.linalg.svd in float32 (as the methods' authors do), both with all threads and in one run, and
both results' relative error (Frobenius) against the definition in float64, where affordable.
Two kinds of task vectors: "flat" has independent normal entries, so that no direction stands out;
"decaying" has singular values j^-0.6. A last table shows the growth with the number of experts.
With --layer one layer of that shape is merged from files instead, each method in a process of its
own: CPU seconds, and the peak memory as the plan states it and as it was measured.

    .venv/bin/python -m benchmarks.spectral_speed
    .venv/bin/python -m benchmarks.spectral_speed --layer 4096 14336 --experts 4 --methods iso_c
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import magmerge
from magmerge.core.journal import listening
from magmerge.linalg.spectral import RANK_CUT
from magmerge.methods.iso import iso_c, iso_cts, shares
from magmerge.methods.tsv import tsv_m

RESULTS = Path(__file__).parent / "results" / "spectral_speed.jsonl"
SHAPES = ((768, 768), (3072, 768), (4096, 4096))
EXACT = 3072 * 768
"""Entries up to which the definition is also computed in float64."""
Merge = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure, print the tables, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=magmerge.Machine().count)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--largest", type=int, default=4096, help="skip shapes with more rows")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--layer", nargs=2, metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--memory", default="2GB", help="what a merge of --layer may take")
    chosen = parser.parse_args()
    if chosen.layer:
        merge_layer(chosen)
        return
    torch.set_num_threads(chosen.threads)
    rows = []
    for shape in SHAPES:
        if shape[0] > chosen.largest:
            continue
        small = shape[0] * shape[1] <= EXACT
        for kind in ("flat", "decaying") if small else ("flat",):
            deltas = task_vectors(chosen.experts, shape, kind)
            for name in chosen.methods:
                rows.append({"kind": kind, **measure(name, deltas)})
                print(json.dumps(rows[-1]), flush=True)
    growth = [
        {"experts": count, "kind": kind, "method": name, "seconds": seconds(METHODS[name][0], d)[1]}
        for kind in ("flat", "decaying")
        for count in (2, 4, 8, 16)
        for d in [task_vectors(count, (3072, 768), kind)]
        for name in chosen.methods
    ]
    console = Console(width=130)
    console.print(as_table(rows))
    console.print(growth_table(growth))
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"threads": chosen.threads, "torch": torch.__version__, "rows": rows, "growth": growth}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def merge_layer(chosen: argparse.Namespace) -> None:
    """Merge one large layer by each method, and write a JSON line of what that took."""
    program = [sys.executable, "-m", "benchmarks.speed.spectral_layer"]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [*chosen.layer, str(chosen.experts), "1", "bfloat16"]
        subprocess.run([*program, "make", folder, *sizes], check=True)
        rows = []
        for name in chosen.methods:
            options = [folder, name, chosen.memory, str(chosen.threads)]
            done = subprocess.run([*program, "merge", *options], check=True, capture_output=True)
            rows.append(
                {"shape": chosen.layer, "experts": chosen.experts, **json.loads(done.stdout)}
            )
            print(json.dumps(rows[-1]), flush=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"torch": torch.__version__, "layer": rows}) + "\n")


def task_vectors(experts: int, shape: tuple[int, int], kind: str) -> Tensor:
    """Random task vectors [K, M, N] of the size that fine-tuning makes."""
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn((experts, *shape), generator=generator) * 1e-3
    if kind == "decaying":
        sizes = torch.arange(1, min(shape) + 1) ** -0.6
        for delta in deltas:
            left, right = (torch.linalg.qr(part)[0] for part in (delta, delta.T))
            delta.copy_((left[:, : len(sizes)] * sizes) @ right[:, : len(sizes)].T)
    return deltas


def measure(name: str, deltas: Tensor) -> dict[str, object]:
    """One row: seconds and errors of the method and of its definition."""
    method, definition = METHODS[name]
    small = deltas[0].numel() <= EXACT
    with listening() as notes:
        found, fast = seconds(method, deltas, 3 if small else 1)
    plain, slow = seconds(definition, deltas, 2 if small else 1)
    exact = definition(deltas.double()) if small else None
    return {
        "method": name,
        "experts": len(deltas),
        "shape": list(deltas.shape[1:]),
        "seconds": fast,
        "definition": slow,
        "ratio": slow / fast,
        "error": None if exact is None else distance(found, exact),
        "definition error": None if exact is None else distance(plain, exact),
        "difference": distance(found, plain),
        "notes": sorted(set(notes)),
    }


def seconds(merge: Merge, deltas: Tensor, times: int = 1) -> tuple[Tensor, float]:
    """The result, and the least time of several runs."""
    least = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        found = merge(deltas)
        least = min(least, time.perf_counter() - start)
    return found, least


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def triplets(matrix: Tensor, count: int, largest: float | None = None) -> tuple[Tensor, ...]:
    """The first singular triplets by definition, those that are not zero."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    cut = RANK_CUT * (float(values[0]) if largest is None else largest)
    count = min(count, int((values > cut).sum()))
    return left[:, :count], values[:count], right[:count].T


def polar_by_definition(matrix: Tensor) -> Tensor:
    left, _, right = triplets(matrix, min(matrix.shape))
    return left @ right.T


def iso_c_by_definition(deltas: Tensor) -> Tensor:
    total = deltas.sum(0)
    left, values, right = triplets(total, min(total.shape))
    return left @ right.T * (values.sum() / min(total.shape))


def tsv_m_by_definition(deltas: Tensor) -> Tensor:
    count = max(1, min(deltas.shape[1:]) // len(deltas))
    left, values, right = (
        torch.cat(parts, -1)
        for parts in zip(*(triplets(delta, count) for delta in deltas), strict=True)
    )
    return (polar_by_definition(left) * values) @ polar_by_definition(right).T


def iso_cts_by_definition(deltas: Tensor) -> Tensor:
    common, own = shares(min(deltas.shape[1:]), len(deltas), 0.8)
    shared = triplets(deltas.sum(0), common)
    parts = [
        triplets(d - shared[0] @ (shared[0].T @ d), own, float(d.double().norm())) for d in deltas
    ]
    left, values, right = (torch.cat(p, -1) for p in zip(*parts, shared, strict=True))
    mean = values.sum() / min(deltas.shape[1:])
    return polar_by_definition(left) @ polar_by_definition(right).T * mean


METHODS: dict[str, tuple[Merge, Merge]] = {
    "iso_c": (iso_c, iso_c_by_definition),
    "tsv_m": (tsv_m, tsv_m_by_definition),
    "iso_cts": (iso_cts, iso_cts_by_definition),
}


def as_table(rows: list[dict[str, object]]) -> Table:
    """Shapes and methods as rows; seconds, ratio and errors as columns."""
    table = Table(title="against the definition by SVD", title_justify="left", box=None)
    heads = ("task vectors", "spectrum", "method", "s", "SVD s", "times faster")
    for column in (*heads, "error", "SVD's error", "difference", "fell back"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [f"{row[key]:.3g}" for key in ("seconds", "definition", "ratio")]
        errors = [row[key] for key in ("error", "definition error", "difference")]
        shown = ["" if error is None else f"{error:.0e}" for error in errors]
        size = f"{row['experts']} x {' x '.join(map(str, row['shape']))}"
        fell = "yes" if row["notes"] else "no"
        table.add_row(size, str(row["kind"]), str(row["method"]), *numbers, *shown, fell)
    return table


def growth_table(rows: list[dict[str, object]]) -> Table:
    """Seconds by number of experts, 3072 x 768."""
    counts = sorted({int(str(row["experts"])) for row in rows})
    table = Table(title="seconds for K x 3072 x 768", title_justify="left", box=None)
    for column in ("spectrum", "method", *(f"K = {count}" for count in counts)):
        table.add_column(column, justify="right")
    for kind, name in dict.fromkeys((row["kind"], row["method"]) for row in rows):
        cells = [r["seconds"] for r in rows if (r["kind"], r["method"]) == (kind, name)]
        table.add_row(str(kind), str(name), *(f"{cell:.3f}" for cell in cells))
    return table


if __name__ == "__main__":
    main()
