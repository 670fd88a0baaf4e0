"""The C kernels under sanitizers: python -m fuzz.kernels --merges 2000.

They are compiled with -fsanitize=address,undefined into a cache of their own, and called by merges
and calibrations of random shapes, formats, values (subnormal, huge, not finite) and parameters. A
sanitizer that finds something ends the process, and this program with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g"
METHODS = ("average", "task_arithmetic", "ties", "dare", "dare_ties", "breadcrumbs", "della")
ODD = (0.0, -0.0, 1e-45, -1e-39, 60000.0, 1e-8)
HUGE = (3.4e38, -3.4e38, float("inf"), float("nan"))
SHAPES = ((1,), (7,), (3, 5), (1, 4097), (65, 33), (2, 3, 5), (130, 64), (16, 1), (4, 300))


def sanitized(merges: int, seed: int) -> int:
    """Run `work` in a process whose kernels are sanitized; its exit code."""
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory(prefix="magmerge-asan-") as cache:
        environment = {
            **os.environ,
            "CC": f"gcc {FLAGS}",
            "LD_PRELOAD": asan.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "XDG_CACHE_HOME": cache,
        }
        words = ["--merges", str(merges), "--seed", str(seed), "--here"]
        call = [sys.executable, "-W", "ignore", "-m", "fuzz.kernels", *words]
        return subprocess.run(call, env=environment, check=False).returncode


def work(merges: int, seed: int) -> None:
    """Merges in this process, and how they ended."""
    import torch

    import magmerge
    from magmerge.kernels.library import load

    library = load()
    assert library is not None
    assert "-fsanitize" in os.environ["CC"]
    draw, told = random.Random(seed), Counter[str]()
    formats = (torch.float32, torch.bfloat16, torch.float16)
    warnings.simplefilter("ignore")
    for number in range(merges):
        generator = torch.Generator().manual_seed(seed * merges + number)

        def tensor(shape: tuple[int, ...], kind: torch.dtype, scale: float) -> torch.Tensor:
            values = scale * torch.randn(shape, generator=generator)  # noqa: B023
            flat = values.view(-1)
            for _ in range(draw.randrange(4)):
                odd = HUGE if draw.random() < 0.005 else ODD
                flat[draw.randrange(len(flat))] = draw.choice(odd)
            return values.to(kind)

        shapes = draw.sample(SHAPES, 3)
        kind = draw.choice(formats)
        base = {f"layers.{i}.weight": tensor(s, kind, 1.0) for i, s in enumerate(shapes)}
        experts = [
            {
                name: (one.float() + tensor(tuple(one.shape), formats[0], 0.1)).to(
                    draw.choice(formats)
                )
                for name, one in base.items()
            }
            for _ in range(draw.randint(1, 5))
        ]
        calibrate = draw.choice(("wsc", None))
        try:
            magmerge.merge(
                base=base,
                experts=experts,
                method=draw.choice(METHODS),
                calibrate=[] if calibrate is None else calibrate,
                dtype=draw.choice((None, "float32", "bfloat16", "float16")),
                threads=draw.choice((1, 2)),
                memory=draw.choice(("200MB", "2GB")),
                seed=number,
            )
            told["merged"] += 1
        except magmerge.MagmergeError as error:
            told[type(error).__name__] += 1
    print(json.dumps({"level": library.level, "merges": merges, "outcomes": dict(told)}))


def main() -> int:
    parser = argparse.ArgumentParser(description="Call the kernels under sanitizers.")
    parser.add_argument("--merges", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process")
    own = parser.parse_args()
    if own.here:
        work(own.merges, own.seed)
        return 0
    return sanitized(own.merges, own.seed)


if __name__ == "__main__":
    sys.exit(main())
