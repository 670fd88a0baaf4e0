"""PEFT's own merge of two adapters: its program for benchmarks/lora_speed.py.

The base model's weights are never touched, so that they take no memory. Prints the seconds and the
CPU seconds of the merging call alone, without loading and saving.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn


class Frame(nn.Module):
    """Modules under the names of a model that is not there."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (out, features) in shapes.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            layer = nn.utils.skip_init(nn.Linear, features, out, bias=False)
            place.add_module(last, layer)


def main() -> None:
    """Merge the adapters in the folder given by the combination and rank given."""
    from peft import PeftModel

    from benchmarks.speed.lora_pair import shapes

    folder, combination, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    modules, out = shapes(int(sys.argv[4]), int(sys.argv[5])), Path(sys.argv[6])
    warnings.simplefilter("ignore")
    model = PeftModel.from_pretrained(Frame(modules), folder / "expert-1", adapter_name="first")
    model.load_adapter(folder / "expert-2", adapter_name="second")
    start, before = time.monotonic(), time.process_time()
    with torch.inference_mode():
        model.add_weighted_adapter(
            ["first", "second"],
            [0.5, 0.5],
            "both",
            combination_type=combination,
            svd_rank=rank,
            density=0.2,
        )
    spent, cpu = time.monotonic() - start, time.process_time() - before
    model.save_pretrained(out, selected_adapters=["both"])
    sys.stdout.write(json.dumps({"merge": spent, "cpu": cpu}) + "\n")


if __name__ == "__main__":
    main()
