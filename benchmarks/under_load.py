"""Large models, many tensors, many merges: memory, time, open files and threads.

    python -m benchmarks.under_load large --parameters 8e9 --memory 2GB
    python -m benchmarks.under_load tensors --count 50000
    python -m benchmarks.under_load again --merges 1000 --calibrations 100

`large` writes sparse files, which take no room, and a result, which does; `tensors` runs the
program, the others call the library. Each prints a JSON line, and appends it to
benchmarks/results/under_load.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "under_load.jsonl"
WIDE, MODELS = 4096, ("base", "one", "two")


def sparse(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> Path:
    """A model of bfloat16 zeros that takes no room on the disk."""
    entries: dict[str, Any] = {}
    place = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        offsets = [place, place + size]
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        place += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + place)
        # Else all models are equal, which is refused: one number of each tensor.
        for number, entry in enumerate(entries.values()):
            stream.seek(8 + len(header) + entry["data_offsets"][0])
            stream.write(bytes([(seed + number) % 128, 0x3C]))
    return folder


def usage() -> dict[str, Any]:
    """Of this process: memory now and at most, CPU time, open files, threads."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mb": round(pages * resource.getpagesize() / 1e6),
        "peak_mb": round(own.ru_maxrss / 1e3),
        "cpu_s": round(own.ru_utime + own.ru_stime, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def stored(folder: Path, shapes: dict[str, tuple[int, ...]], memory: str) -> dict[str, Any]:
    """The average of such models, written; what that took beyond the imports."""
    import magmerge

    paths = [sparse(folder / name, shapes, seed) for seed, name in enumerate(MODELS)]
    before = usage()
    call = {"base": paths[0], "experts": paths[1:], "method": "average", "memory": memory}
    magmerge.merge(**call, threads=2, out=folder / "out")
    after = usage()
    return {
        **after,
        "cpu_s": round(after["cpu_s"] - before["cpu_s"], 1),
        "grown_mb": after["peak_mb"] - before["peak_mb"],
    }


def by_program(folder: Path, shapes: dict[str, tuple[int, ...]], memory: str) -> dict[str, Any]:
    """The average of such models by the command line: CPU time and memory of the whole process."""
    base, *experts = (sparse(folder / name, shapes, seed) for seed, name in enumerate(MODELS))
    words = ["--base", base, *(word for path in experts for word in ("--expert", path))]
    words += ["--method", "average", "--memory", memory, "--threads", "2", folder / "out"]
    program = [sys.executable, "-m", "magmerge", "merge", *map(str, words)]
    subprocess.run(program, check=True, capture_output=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime
    return {"cpu_s": round(cpu, 1), "peak_mb": round(spent.ru_maxrss / 1e3)}


def again(merges: int, calibrations: int) -> dict[str, Any]:
    """Small merges in one process: what grows between the first tenth and the end."""
    import torch

    import magmerge

    base = {f"layers.{i}.weight": torch.randn(64, 64) for i in range(4)}
    experts = [{name: one + 0.1 * torch.randn(64, 64) for name, one in base.items()} for _ in "ab"]
    marks = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(merges + calibrations):
            calibrate = "wsc" if number % ((merges + calibrations) // calibrations) == 0 else []
            call = {"method": "ties", "calibrate": calibrate, "overwrite": True}
            magmerge.merge(base=base, experts=experts, **call, out=Path(folder) / "out")
            if number + 1 in ((merges + calibrations) // 10, merges + calibrations):
                marks.append(usage())
    first, last = marks
    grown = {key: last[key] - first[key] for key in ("resident_mb", "open_files", "threads")}
    share = (merges + calibrations) * 0.9
    told = {"runs": merges + calibrations, "calibrations": calibrations, **last, "grown": grown}
    return {**told, "kb_per_run": round(1e3 * grown["resident_mb"] / share, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Merges of large models, and many of them.")
    parser.add_argument("what", choices=["large", "tensors", "again"])
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--merges", type=int, default=1000)
    parser.add_argument("--calibrations", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    own = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=own.folder) as folder:
        if own.what == "again":
            told = again(own.merges, own.calibrations)
        elif own.what == "large":
            count = max(1, round(own.parameters / WIDE / (4 * WIDE)))
            shapes = {f"layers.{i}.weight": (4 * WIDE, WIDE) for i in range(count)}
            told = {"parameters": count * 4 * WIDE * WIDE, "memory": own.memory}
            told |= stored(Path(folder), shapes, own.memory)
        else:
            shapes = {f"layers.{i}.weight": (4, 4) for i in range(own.count)}
            told = {"tensors": own.count, **by_program(Path(folder), shapes, own.memory)}
    line = {"what": own.what, **told, "wall_s": round(time.monotonic() - start, 1)}
    print(json.dumps(line))
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
