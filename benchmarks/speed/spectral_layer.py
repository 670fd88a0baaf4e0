"""One merge of a checkpoint by a spectral method: CPU seconds, peak memory stated and measured.

python -m benchmarks.speed.spectral_layer make FOLDER ROWS COLUMNS EXPERTS LAYERS DTYPE
python -m benchmarks.speed.spectral_layer merge FOLDER METHOD MEMORY THREADS [CALIBRATOR]
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK, NOISE, SIZE = 16, 0.3, 0.002
"""Rank of a task vector's main part, how large its noise is beside it, and an entry's size."""


def make(folder: Path, shape: tuple[int, int], experts: int, layers: int, dtype: str) -> None:
    """A base (0) and experts with task vectors of low rank plus noise, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = getattr(torch, dtype)
    for number in range(experts + 1):
        state = {}
        for layer in range(layers):
            base = torch.Generator().manual_seed(layer)
            weight = torch.randn(shape, generator=base).mul_(0.02)
            if number:
                own = torch.Generator().manual_seed(1000 * number + layer)
                up, down = (torch.randn(n, RANK, generator=own) for n in shape)
                weight.addmm_(up, down.T, alpha=SIZE / RANK**0.5)
                weight.add_(torch.randn(shape, generator=own), alpha=SIZE * NOISE)
            state[f"layers.{layer}.mlp.weight"] = weight.to(stored)
        save_file(state, folder / f"{number}.safetensors")


def merge(folder: Path, method: str, memory: str, threads: int, calibrator: str | None) -> None:
    """Merge, and print one JSON line. Peak memory is what the process grew by after its imports."""
    import magmerge.pipeline.merge
    from magmerge.cli import merge_result

    # The plan's figure is that of the command line, which gives large blocks back at once.
    merge_result._return_memory_at_once()
    count = len(list(folder.glob("?.safetensors")))
    models = {
        "base": folder / "0.safetensors",
        "experts": [folder / f"{number}.safetensors" for number in range(1, count)],
    }
    chosen = {"method": method, "calibrate": calibrator, "threads": threads, "memory": memory}
    torch.set_num_threads(1)
    torch.linalg.eigh(torch.eye(300) @ torch.eye(300))
    before = peak()
    stated = magmerge.plan(**models, **chosen).memory
    started, clock = time.process_time(), time.perf_counter()
    out = folder / "merged.safetensors"
    magmerge.merge(**models, **chosen, out=out, overwrite=True)
    line = {
        "method": method,
        "calibrate": calibrator,
        "threads": threads,
        "memory": memory,
        "stated": stated,
        "measured": peak() - before,
        "cpu": time.process_time() - started,
        "seconds": time.perf_counter() - clock,
        "digest": hashlib.sha256(out.read_bytes()).hexdigest()[:16],
    }
    print(json.dumps(line), flush=True)


def peak() -> int:
    """The process's greatest resident size, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "make":
        rows, columns, experts, layers = map(int, rest[:4])
        make(Path(place), (rows, columns), experts, layers, rest[4])
    else:
        merge(Path(place), rest[0], rest[1], int(rest[2]), rest[3] if len(rest) > 3 else None)
