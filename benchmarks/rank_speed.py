"""What DELLA's choice by rank costs: the function in torch and the compiled kernel, in turn.

Three experts and a base in bfloat16, a piece of rows at a time, one thread, CPU nanoseconds for
each entry of an expert: from stored bytes to stored bytes. Both give the same bytes.

    .venv/bin/python -m benchmarks.rank_speed --columns 1024 4096 14336
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from magmerge.core import registry
from magmerge.engine.kernel_steps import by_rank
from magmerge.engine.stored_pieces import Memory
from magmerge.kernels.arguments import FORMATS, Inputs
from magmerge.kernels.merging import merged

RESULTS = Path(__file__).parent / "results" / "rank_speed.jsonl"
EXPERTS, ENTRIES, SEEDS = 3, 1 << 18, [1, 2, 3]


def main() -> None:
    """Measure each row length, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--columns", type=int, nargs="*", default=[1024, 4096, 14336])
    parser.add_argument("--repeat", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(columns, chosen.repeat) for columns in chosen.columns]
    for row in rows:
        print(json.dumps(row))
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"repeat": chosen.repeat, "rows": rows}) + "\n")


def compare(columns: int, repeat: int) -> dict[str, float]:
    """Medians of both, and how many times less the kernel takes."""
    generator = torch.Generator().manual_seed(0)
    shape = (ENTRIES // columns, columns)
    base = torch.randn(shape, generator=generator).bfloat16()
    experts = [
        (base + 0.1 * torch.randn(shape, generator=generator)).bfloat16() for _ in range(EXPERTS)
    ]
    method = registry.methods.get("della")
    keywords = {one.keyword: one.default for one in method.parameters} | {"seeds": SEEDS}

    def function() -> bytes:
        wide = base.float()
        deltas = torch.stack([expert.float() for expert in experts]).sub_(wide)
        return bytes(stored((wide + method.fn(deltas, **keywords)).bfloat16()))

    assert method.kernel is not None
    fused, memory = method.kernel(experts=EXPERTS, **keywords), Memory()
    code, count = FORMATS["BF16"], base.numel()
    inputs = Inputs(
        count, 0, [stored(one) for one in experts], [code] * EXPERTS, stored(base), code
    )

    def kernel() -> bytes:
        left, out = by_rank(fused, inputs, columns, memory), np.empty(2 * count, np.uint8)
        assert left is not None
        merged(*left, count, code, out)
        return bytes(out)

    assert function() == kernel()
    seconds: dict[str, list[float]] = {"torch": [], "kernel": []}
    for _ in range(repeat):
        for name, call in (("torch", function), ("kernel", kernel)):
            seconds[name].append(cpu(call))
    each = {n: statistics.median(s) / count / EXPERTS * 1e9 for n, s in seconds.items()}
    told = {f"{name} ns": round(spent, 1) for name, spent in each.items()}
    return {"columns": columns, **told, "ratio": round(each["torch"] / each["kernel"], 2)}


def stored(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
