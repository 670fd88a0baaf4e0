"""Where a merge of two adapters by full matrices spends its CPU time, stage by stage.

Takes the pair of `benchmarks.lora_speed` (built if it is missing), merges it in one thread, and
prints each stage's own CPU seconds, without those of the stages within it. Below them the floor:
the products that any way to cut a vote's full matrix to a rank has, alone and by the same library
(each input's B A, the Gram matrix of the smaller side, and one product with `rank` directions), and
what a process takes that only imports torch.

    .venv/bin/python -m benchmarks.lora_stages --rank 128 --method ties
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import magmerge
from benchmarks.speed.process import CACHE, HERE
from magmerge.engine import reader, steps
from magmerge.engine.adapters import module_merge, products
from magmerge.linalg import best_rank, near_space

PARAMETERS = {"ties": {"density": 0.2, "scope": "tensor"}, "dare_ties": {"p": 0.8}}
STAGES: tuple[tuple[Any, str, str], ...] = (
    (reader.Reader, "experts", "products B A"),
    (products, "merged_tile", "vote"),
    (steps, "_sample", "thresholds, from a sample"),
    (steps, "_observe", "thresholds, exact"),
    (best_rank, "gram", "Gram matrices"),
    (near_space, "ritz", "directions: Ritz vectors"),
    (near_space, "filtered", "directions: filters"),
    (best_rank, "near_space", "directions: the rest"),
    (best_rank, "_by_gram", "images of the directions"),
    (module_merge, "norm_of", "norms of the inputs"),
    (module_merge, "_by_products", "the rest"),
)


class Account:
    """CPU seconds of stages, each in whatever thread it is done."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._own = threading.local()

    def watch(self, place: Any, name: str, stage: str) -> None:
        """Count the calls of a function under the name of a stage."""
        setattr(place, name, self._counted(getattr(place, name), stage))

    def _counted(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            within = self._own.__dict__.setdefault("within", [0.0])
            start = time.thread_time()
            within.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                self.seconds[stage] += spent - within.pop()
                within[-1] += spent

        return counted


def products_alone(pair: Path, rank: int) -> float:
    """CPU seconds of the products that cannot be avoided, in one thread."""
    inputs = [load_file(pair / f"expert-{name}" / "adapter_model.safetensors") for name in "12"]
    factors = [{name: factor.float() for name, factor in state.items()} for state in inputs]
    torch.set_num_threads(1)
    start = time.process_time()
    for name in factors[0]:
        if ".lora_B." in name:
            pairs = [(state[name], state[name.replace("lora_B", "lora_A")]) for state in factors]
            first, *others = (up @ down for up, down in pairs)
            whole = first if len(first) <= first.shape[1] else first.T
            assert others
            (whole @ whole.T)[:, :rank].T @ whole
    return time.process_time() - start


def import_alone() -> float:
    """CPU seconds of a process that only imports torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Merge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--method", default="ties", choices=list(PARAMETERS))
    chosen = parser.parse_args()
    pair = CACHE / f"lora-{chosen.rank}-1-5"
    build = [sys.executable, "-m", "benchmarks.speed.lora_pair", str(pair), str(chosen.rank)]
    subprocess.run([*build, "1", "5"], check=True, cwd=HERE.parent)
    account = Account()
    for stage in STAGES:
        account.watch(*stage)
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        magmerge.merge(
            experts={name: pair / f"expert-{name}" for name in "12"},
            method=chosen.method,
            params=PARAMETERS[chosen.method],
            rank=chosen.rank,
            out=Path(folder) / "merged",
            threads=1,
        )
        whole = time.process_time() - before
    table = Table("stage", "CPU s", "share")
    for name, seconds in account.seconds.most_common():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.0%}")
    table.add_row("the whole call", f"{whole:.2f}", "")
    table.add_row("floor: products", f"{products_alone(pair, chosen.rank):.2f}", "")
    table.add_row("floor: import torch", f"{import_alone():.2f}", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
