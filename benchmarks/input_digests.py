"""What digests of inputs cost: CPU of whole merges, in turn in one run, and of the hashes alone.

A random bfloat16 model and three experts are merged three ways: from files that are named by their
SHA-256 as in the hub's cache, so that no byte is digested; from plain files, whose tensors are
digested as they are read; and with --sha256, which reads them once more. Each is a process of its
own with an empty cache, so that nothing is remembered. Medians go to results/input_digests.jsonl.

    .venv/bin/python -m benchmarks.input_digests
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from safetensors.torch import save_file

from magmerge.checkpoints.tensor_digests import LEAF, tensor_digest

RESULTS = Path(__file__).parent / "results" / "input_digests.jsonl"
EXPERTS = 3
ROWS, COLUMNS = 4096, 2048


def main() -> None:
    """Build, run, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=16, help="of 8.4 M parameters each")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--method", default="average")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plain, cached = models(Path(name), chosen.layers)
        ways = {
            "nothing digested": (cached, []),
            "by tensors": (plain, []),
            "--sha256": (plain, ["--sha256"]),
        }
        costs: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(chosen.repeat):
            for way, (files, more) in ways.items():
                costs[way].append(cpu(command(files, chosen.method, Path(name), more), Path(name)))
        size = sum(file.stat().st_size for file in plain)
    middle = {way: statistics.median(seconds) for way, seconds in costs.items()}
    floor = middle["nothing digested"]
    beyond = {way: 1e9 * (seconds - floor) / size for way, seconds in middle.items()}
    row = {"method": chosen.method, "bytes": size, "repeat": chosen.repeat, "cpu": middle}
    row |= {"ns_per_byte_of_input": beyond, "hashes_ns_per_byte": hashes()}
    print(json.dumps(row, indent=1))
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def models(folder: Path, layers: int) -> tuple[list[Path], list[Path]]:
    """A base and its experts as plain files, and the same as the hub's cache would have them."""
    plain, cached = [], []
    for number in range(EXPERTS + 1):
        generator = torch.Generator().manual_seed(number)
        file = folder / f"model-{number}.safetensors"
        entries = {
            f"layers.{layer}.weight": torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()
            for layer in range(layers)
        }
        save_file(entries, file)
        blobs = folder / f"models--org--model-{number}" / "blobs"
        blobs.mkdir(parents=True)
        with file.open("rb") as stream:
            blob = blobs / hashlib.file_digest(stream, "sha256").hexdigest()
        os.link(file, blob)
        link = blobs.parent / f"model-{number}.safetensors"
        link.symlink_to(blob)
        plain.append(file)
        cached.append(link)
    return plain, cached


def command(files: list[Path], method: str, folder: Path, more: list[str]) -> list[str]:
    """The command line of a merge."""
    base, *experts = map(str, files)
    named = [word for expert in experts for word in ("--expert", expert)]
    out = str(folder / "out.safetensors")
    start = [sys.executable, "-m", "magmerge", "merge", "--base", base, *named]
    return [*start, "--method", method, "--yes", *more, out]


def cpu(words: list[str], folder: Path) -> float:
    """Seconds of all threads of a process."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        environment = {**os.environ, "XDG_CACHE_HOME": empty}
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def hashes() -> dict[str, float]:
    """ns per byte of each hash on one thread: of 64 MiB, and of a leaf that is in the cache."""
    data = memoryview(np.random.default_rng(0).integers(0, 256, 1 << 26, dtype=np.uint8))
    leaf = data[:LEAF]
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "sha256": (lambda: hashlib.sha256(data).digest(), len(data)),
        "blake3": (lambda: blake3(data).digest(), len(data)),
        "blake3 by leaves": (lambda: tensor_digest(data), len(data)),
        "blake3 of one leaf": (lambda: [blake3(leaf).digest() for _ in range(512)], 512 * LEAF),
    }
    return {name: 1e9 * best(call) / size for name, (call, size) in calls.items()}


def best(call: Callable[[], object], tries: int = 5) -> float:
    """The least CPU time of some calls."""
    times = []
    for _ in range(tries):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
