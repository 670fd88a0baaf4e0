"""What FSC costs beside one forward pass of the merged model over the same samples.

In one run and in turn, for a Llama-like model of 81 million parameters with three experts, and for
the demo's encoder with its six adapters, 8 samples an expert: a plain forward pass (the floor), the
measuring (which has a forward pass in it), and the whole `calibrate`. CPU seconds of one thread,
medians; and the bytes that magmerge reads of each source while it measures. "Floor" is a forward
pass in which each linear layer that is measured does its product two times more, and nothing else:
the expert's change and the merge's.

    .venv/bin/python -m benchmarks.fsc_cost
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import magmerge
from magmerge.checkpoints.safetensors import SafetensorsCheckpoint
from magmerge.live import measurement
from magmerge.live.calls import run
from magmerge.live.layers import Layer
from magmerge.studies.demo.demo_tasks import base_folder, demo_experts, load_samples

RESULTS = Path(__file__).parent / "results" / "fsc_cost.jsonl"
SAMPLES, TOKENS, VOCABULARY = 8, 128, 16000
SIZES = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}  # fmt: skip
SHARES = ("added / forward", "floor / forward")
Case = tuple[Path, dict[str, Path], dict[str, Any]]
"""Base, experts and each expert's samples."""


class Account:
    """CPU seconds of forward passes and of measuring, and bytes read of each source meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.read: dict[str, int] = defaultdict(int)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within it what magmerge measures is counted, and a forward pass is run before it."""
        measure, fill = measurement.measure_once, SafetensorsCheckpoint._fill
        self.read.clear()
        measuring = False

        def counted(source: Any, view: Any, *rest: Any) -> None:
            self.read[source.source] += len(view) * measuring
            fill(source, view, *rest)

        def measured(model: Any, layers: Any, inputs: Mapping[int, Any], *rest: Any) -> Any:
            nonlocal measuring
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            with torch.no_grad():
                calls = [call for many in inputs.values() for call in many]
                self.time("forward", lambda: [run(model, call, "an expert") for call in calls])
                with products_twice_more(layers):
                    self.time("floor", lambda: [run(model, call, "an expert") for call in calls])
            torch.set_num_threads(threads)
            measuring = True
            sums = self.time("measuring", lambda: measure(model, layers, inputs, *rest))
            measuring = False
            return sums

        measurement.measure_once, SafetensorsCheckpoint._fill = measured, counted
        try:
            yield
        finally:
            measurement.measure_once, SafetensorsCheckpoint._fill = measure, fill

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns; its CPU seconds are noted."""
        start = time.process_time()
        result = call()
        self.seconds[name].append(time.process_time() - start)
        return result


@contextmanager
def products_twice_more(layers: Sequence[Layer]) -> Iterator[None]:
    """Within it each of these that is a linear layer multiplies what it is fed three times."""

    def again(module: torch.nn.Linear, fed: tuple[torch.Tensor, ...]) -> None:
        tokens = fed[0].reshape(-1, fed[0].shape[-1])
        for _ in range(2):
            tokens @ module.weight.T

    linear = [layer.module for layer in layers if isinstance(layer.module, torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(again) for module in linear]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main() -> None:
    """Measure, print the table, write the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    chosen = parser.parse_args()
    rows = []
    for name in chosen.cases:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"model": name, **cost(*CASES[name](Path(folder)), chosen.rounds)})
        print(json.dumps(rows[-1]), flush=True)
    Console(width=110).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def cost(
    base: Path, experts: Mapping[str, Path], data: Mapping[str, Any], rounds: int
) -> dict[str, Any]:
    """Medians and ratios of one case; the first round, which imports and opens, is left out."""
    account = Account()
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        magmerge.merge(base=base, experts=dict(experts), method="average", out=merged)
        common = {"base": base, "experts": dict(experts), "method": "fsc", "threads": 1}
        for number in range(rounds + 1):
            with account.taken():
                out = Path(folder) / str(number)
                account.time(
                    "calibrate",
                    lambda: magmerge.calibrate(merged, data=data, out=out, **common),  # noqa: B023
                )
    names = ("forward", "floor", "measuring", "calibrate")
    forward, floor, measuring, whole = (median(account.seconds[name][1:]) for name in names)
    size = base / "model.safetensors"
    return {
        "forward": round(forward, 3),
        "measuring": round(measuring, 3),
        # Less the passes that were run beside it.
        "calibrate": round(whole - forward - floor, 3),
        "measuring / forward": round(measuring / forward, 2),
        "added / forward": round(measuring / forward - 1, 2),
        "floor / forward": round(floor / forward - 1, 2),
        "file": size.stat().st_size,
        "read": {Path(source).name: count for source, count in account.read.items() if count},
        "torch": torch.__version__,
    }


def llama(folder: Path) -> Case:
    """A base of random weights, and experts that differ everywhere, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16()
    model.save_pretrained(folder / "base")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts, data = {}, {}
    for number, name in enumerate("abc"):
        for key, tensor in model.state_dict().items():
            tensor.copy_(base[key].float().add_(torch.randn(tensor.shape), alpha=0.003))
        model.save_pretrained(folder / name)
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=generator)
        experts[name], data[name] = folder / name, [{"input_ids": ids}]
    return folder / "base", experts, data


def demo(_: Path) -> Case:
    """The demo's encoder, its adapters and its texts."""
    return base_folder(), demo_experts(), load_samples(SAMPLES)


CASES: dict[str, Callable[[Path], Case]] = {"llama, 81 M": llama, "demo's MiniLM, 23 M": demo}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """The figures of all cases; what was read as multiples of the base's file."""
    table = Table(
        "model", "forward s", "measuring s", "calibrate s", "ratio", "added", "floor", "read"
    )
    for row in rows:
        seconds = (f"{row[name]:.2f}" for name in ("forward", "measuring", "calibrate"))
        ratios = (f"{row[name]:.2f}" for name in ("measuring / forward", *SHARES))
        read = ", ".join(f"{name} {size / row['file']:.2f}" for name, size in row["read"].items())
        table.add_row(row["model"], *seconds, *ratios, read)
    return table


if __name__ == "__main__":
    main()
