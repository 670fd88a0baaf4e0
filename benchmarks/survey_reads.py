"""What a merge by thresholds reads, and which pages of its files stay in memory behind it.

A base and three experts in bfloat16, of so many million parameters, merged by ties. For each scope:
bytes read beside those of the inputs, sweeps that see the whole model, CPU seconds beside those of
task_arithmetic, which has no threshold to find; in turn, so many times, medians. Then the share of
the files' pages that is in memory after a merge: of inputs that are small for the machine, and of
the same where they are taken to be large.

    .venv/bin/python -m benchmarks.survey_reads --millions 100
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import magmerge
from magmerge.checkpoints import page_cache

RESULTS = Path(__file__).parent / "results" / "survey_reads.jsonl"
CASES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"method": "task_arithmetic"},
    "ties, tensor": {"method": "ties", "params": {"scope": "tensor"}},
    "ties, model": {"method": "ties", "params": {"scope": "model"}},
}
WIDTH, EXPERTS = 2048, 3


def main() -> None:
    """Measure, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--times", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_models(folder, max(1, chosen.millions * 1_000_000 // (2 * WIDTH * WIDTH)))
        # The first merge pays for what is imported late, and digests the inputs.
        measure(folder, files, CASES["ties, model"])
        turns = [{case: measure(folder, files, CASES[case]) for case in CASES}
                 for _ in range(chosen.times)]  # fmt: skip
        rows = [{"case": case, **medians([turn[case] for turn in turns])} for case in CASES]
        pages = {"small": pages_after(folder, files), "large": pages_after(folder, files, large=1)}
    console = Console(width=100)
    console.print(as_table(rows))
    console.print("share of pages in memory afterwards:", pages)
    line = {"millions": chosen.millions, "times": chosen.times, "rows": rows, "pages": pages}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def write_models(folder: Path, layers: int) -> list[Path]:
    """A base, and experts whose rows changed by more or less."""
    files = [folder / f"{number}.safetensors" for number in range(1 + EXPERTS)]
    base: dict[str, torch.Tensor] = {}
    for number, file in enumerate(files):
        generator = torch.Generator().manual_seed(number)
        state = {}
        for layer in range(layers):
            name = f"layers.{layer}.weight"
            drawn = torch.randn(2 * WIDTH, WIDTH, generator=generator)
            sizes = 0.0005 + 0.001 * torch.rand(2 * WIDTH, 1, generator=generator)
            state[name] = drawn * 0.02 if not number else base[name] + drawn * sizes
        base = base or state
        save_file({name: tensor.bfloat16() for name, tensor in state.items()}, file)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return files


def measure(folder: Path, files: list[Path], case: dict[str, Any]) -> dict[str, float]:
    """Bytes read by byte ranges, sweeps over all layers, and CPU seconds of one merge."""
    sweeps: list[str] = []
    start = time.process_time()
    with reads_counted() as count:
        magmerge.merge(
            base=files[0], experts=files[1:], out=folder / "out.safetensors", overwrite=True,
            progress=lambda label, _, total: sweeps.append(f"{label}: {total}"), **case,
        )  # fmt: skip
    cpu = time.process_time() - start
    whole = {line for line in sweeps if line.startswith("merging")}
    most = max(int(line.rpartition(" ")[2]) for line in whole)
    full = {s for s in sweeps if s.startswith("surveying") and s.endswith(f": {most}")}
    inputs = sum(file.stat().st_size for file in files)
    return {"read": count() / inputs, "sweeps": len(full), "cpu": cpu}


@contextmanager
def reads_counted() -> Iterator[Callable[[], int]]:
    """How many bytes are read by ranges meanwhile."""
    sizes: list[int] = []
    real = os.preadv

    def counted(handle: int, buffers: Any, offset: int) -> int:
        sizes.append(real(handle, buffers, offset))
        return sizes[-1]

    with patch.object(os, "preadv", counted):
        yield lambda: sum(sizes)


def pages_after(folder: Path, files: list[Path], large: int = 0) -> dict[str, float]:
    """The share of pages in memory after a merge from a cold start."""
    for file in files:
        with file.open("rb") as stream:
            page_cache.give_back(stream.fileno(), 0, 0)
    size = 1 << 20 if large else page_cache.memory_size()
    with patch.object(page_cache, "memory_size", lambda: size):
        measure(folder, files, CASES["ties, model"])
    out = folder / "out.safetensors"
    inputs = statistics.mean(kept(file) for file in files)
    return {"inputs": round(inputs, 3), "result": round(kept(out), 3)}


def kept(file: Path) -> float:
    """The share of a file's pages that are in the system's memory."""
    size = file.stat().st_size
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        place = np.frombuffer(mapped, np.uint8)
        mincore = ctypes.CDLL(None).mincore
        mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        mincore(place.ctypes.data, size, pages.ctypes.data)
        del place
    return float((pages & 1).mean())


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's median."""
    return {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """One row for each method."""
    table = Table("merge", "read / inputs", "sweeps", "CPU s")
    for row in rows:
        table.add_row(
            row["case"], f"{row['read']:.3f}", f"{row['sweeps']:.0f}", f"{row['cpu']:.2f}"
        )
    return table


if __name__ == "__main__":
    main()
