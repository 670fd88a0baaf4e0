"""Make suites of fine-tuned experts: `python -m benchmarks.suites NAME`.

A suite whose merges do not behave is an error: see `law`.
"""

import argparse
import importlib
import json
import os
import time

import torch

from . import packages
from .law import hold_to_law
from .storing import write_whole

SUITES = {
    "text": "minilm",
    "text-weak": "weak",
    "lora-text": "lora",
    "vision-efficientnet": "efficientnet",
    "vision-resnet": "resnet",
    "language": "smollm",
    "language-overlap": "overlap",
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
        folder = packages.SUITES / name
        write_whole(folder / "law.json", json.dumps(hold_to_law(folder), indent=2) + "\n")
        print(f"suite {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
