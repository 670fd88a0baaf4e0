"""The least that a merge can do, as programs to compare with.

    python -m benchmarks.speed.floor copy|pass OUT BASE EXPERT ...

copy: read every byte of all models in blocks, write as many as the base has. pass: besides, widen
every entry to float32, subtract the base, add the task vectors up, and round the sum: one pass of
arithmetic, in blocks that stay in the cache. Two threads, as the merge has.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 1 << 18
"""Bytes of each model that are at work in a thread."""


def data_files(folder: Path) -> list[Path]:
    """The shards of a model."""
    return sorted(folder.glob("*.safetensors"))


def copy(models: list[list[int]], out: int, file: int, start: int, stop: int) -> None:
    """Read a stretch of all models, write it once."""
    buffer = bytearray(BLOCK)
    for offset in range(start, stop, BLOCK):
        for model in models:
            os.preadv(model[file], [buffer], offset)
        os.pwrite(out, buffer, offset)


def one_pass(models: list[list[int]], out: int, file: int, start: int, stop: int) -> None:
    """The same with the arithmetic of a merge."""
    import torch

    torch.set_num_threads(1)
    raw = torch.empty(BLOCK // 2, dtype=torch.bfloat16)
    view = raw.view(torch.uint8).numpy().data
    base, delta, total = (torch.empty(BLOCK // 2) for _ in range(3))
    for offset in range(start, stop, BLOCK):
        total.zero_()
        for number, model in enumerate(models):
            os.preadv(model[file], [view], offset)
            if number == 0:
                base.copy_(raw)
                continue
            delta.copy_(raw)
            total.add_(delta.sub_(base))
        os.pwrite(out, base.add_(total).bfloat16().view(torch.uint8).numpy().data, offset)


def main() -> None:
    """Do it for all shards, in halves."""
    work = {"copy": copy, "pass": one_pass}[sys.argv[1]]
    target, folders = Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]]
    target.mkdir()
    models = [[os.open(file, os.O_RDONLY) for file in data_files(folder)] for folder in folders]
    jobs = []
    for number, file in enumerate(data_files(folders[0])):
        out = os.open(target / file.name, os.O_RDWR | os.O_CREAT)
        size = file.stat().st_size
        middle = size // 2 // BLOCK * BLOCK
        jobs += [(models, out, number, 0, middle), (models, out, number, middle, size)]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, *job) for job in jobs]:
            future.result()


if __name__ == "__main__":
    main()
