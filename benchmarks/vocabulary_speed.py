"""How long vocabularies take: models whose tokens differ, merged, beside the same with equal ones.

A base and two experts with tokenizer.json files of so many tokens. "equal": all have the same.
"added": each expert has 100 tokens more, at the end. "strewn": each expert has its own order, and
lacks a twentieth of the tokens. For each: opening (files read, rows matched), the whole merge to a
folder, and the peak of memory that Python allocated while opening.

    .venv/bin/python -m benchmarks.vocabulary_speed --tokens 150000 --width 64
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import magmerge
from magmerge.engine.resolve import open_models

RESULTS = Path(__file__).parent / "results" / "vocabulary_speed.jsonl"
CASES = ("equal", "added", "strewn")
MORE, LACKING = 100, 20


def main() -> None:
    """Measure, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--width", type=int, default=64)
    chosen = parser.parse_args()
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_models(Path(folder), case, chosen.tokens, chosen.width)
            rows.append({"case": case, **measure(Path(folder))})
    Console(width=100).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"tokens": chosen.tokens, "width": chosen.width, "rows": rows}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def write_models(folder: Path, case: str, count: int, width: int) -> None:
    """A base and two experts."""
    texts = [f"token-{number}" for number in range(count)]
    draw = random.Random(0)
    for seed, name in enumerate(("base", "e1", "e2")):
        own, added = texts, []
        if seed and case == "added":
            added = [f"<|{name}-{number}|>" for number in range(MORE)]
        if seed and case == "strewn":
            own = draw.sample(texts, len(texts) - len(texts) // LACKING)
        write_model(folder / name, own, added, (width, seed))


def write_model(folder: Path, texts: list[str], added: list[str], size: tuple[int, int]) -> None:
    """A model of random rows, with the tokenizer of these texts."""
    (width, seed), count = size, len(texts) + len(added)
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    names = ("model.embed_tokens.weight", "lm_head.weight")
    state = {n: torch.randn((count, width), generator=generator).bfloat16() for n in names}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "vocab_size": count}))
    entries = [{"id": len(texts) + n, "content": text} for n, text in enumerate(added)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    content = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": entries}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of opening and of the whole, and the peak of memory of opening."""
    experts = {name: str(folder / name) for name in ("e1", "e2")}
    recipe = magmerge.Recipe(base=str(folder / "base"), experts=experts, method="task_arithmetic")
    open_models(recipe, {})
    start = time.perf_counter()
    open_models(recipe, {})
    opening = time.perf_counter() - start
    tracemalloc.start()
    open_models(recipe, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    start = time.perf_counter()
    result = magmerge.run(recipe, folder / "out")
    whole = time.perf_counter() - start
    steps = len(result.plan.steps)
    return {"opening": opening, "whole": whole, "peak": peak, "steps": steps}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """One row for each case."""
    table = Table("case", "opening s", "whole s", "peak MB of opening", "steps")
    for row in rows:
        peak = f"{row['peak'] / 1e6:.0f}"
        table.add_row(
            row["case"], f"{row['opening']:.2f}", f"{row['whole']:.2f}", peak, str(row["steps"])
        )
    return table


if __name__ == "__main__":
    main()
