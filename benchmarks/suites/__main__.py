"""Make suites of fine-tuned experts: `python -m benchmarks.suites NAME`."""

import argparse
import importlib
import os
import time

import torch

SUITES = {
    "text": "minilm",
    "vision-vit": "vit",
    "vision-efficientnet": "efficientnet",
    "language": "smollm",
}
"""The module that makes each suite."""


def main() -> None:
    """Read the command line, make one suite or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites", description=__doc__)
    parser.add_argument("name", choices=[*SUITES, "all"])
    chosen = parser.parse_args().name
    # One thread: sums are taken in one order, so a second run gives the same experts.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in SUITES if chosen == "all" else [chosen]:
        started = time.monotonic()
        print(f"suite {name}", flush=True)
        importlib.import_module(f".{SUITES[name]}", __package__).make()
        print(f"suite {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
