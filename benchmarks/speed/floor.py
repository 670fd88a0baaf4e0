"""The least that a merge can do, as programs to compare with.

    python -m benchmarks.speed.floor copy OUT BASE EXPERT ...
    python -m benchmarks.speed.floor bandwidth

copy: read every byte of all models in blocks, write as many as the base has, do nothing with them.
Two threads, as the merge has. bandwidth: print how many bytes of memory each of one and of two
threads reads and writes in a second, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 1 << 18
"""Bytes of each model that are at work in a thread."""
LARGE = 1 << 28
"""Bytes that no cache holds."""
ROUNDS = 5


def data_files(folder: Path) -> list[Path]:
    """The shards of a model."""
    return sorted(folder.glob("*.safetensors"))


def copy_part(models: list[list[int]], out: int, file: int, start: int, stop: int) -> None:
    """Read a stretch of all models, write it once."""
    buffer = memoryview(bytearray(BLOCK))
    for offset in range(start, stop, BLOCK):
        part = buffer[: min(BLOCK, stop - offset)]
        for model in models:
            os.preadv(model[file], [part], offset)
        os.pwrite(out, part, offset)


def copy(target: Path, folders: list[Path]) -> None:
    """All shards, in halves."""
    target.mkdir()
    models = [[os.open(file, os.O_RDONLY) for file in data_files(folder)] for folder in folders]
    jobs = []
    for number, file in enumerate(data_files(folders[0])):
        out = os.open(target / file.name, os.O_RDWR | os.O_CREAT)
        size = file.stat().st_size
        half = size // 2 // BLOCK * BLOCK
        jobs += [(models, out, number, 0, half), (models, out, number, half, size)]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(copy_part, *job) for job in jobs]:
            future.result()


def bandwidth(threads: int) -> float:
    """Bytes read and written in a second by threads that copy memory, at best of some rounds."""
    import numpy as np

    pairs = [(np.ones(LARGE, np.uint8), np.zeros(LARGE, np.uint8)) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for future in [pool.submit(np.copyto, into, out) for out, into in pairs]:
                future.result()
            best = max(best, 2 * LARGE * threads / (time.perf_counter() - start))
    return best


def main() -> None:
    """What the first word says."""
    if sys.argv[1] == "copy":
        copy(Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
    else:
        sys.stdout.write(json.dumps([bandwidth(threads) for threads in (1, 2)]) + "\n")


if __name__ == "__main__":
    main()
