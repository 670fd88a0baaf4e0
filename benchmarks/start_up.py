"""What a process costs before any number is merged: CPU seconds of whole processes, in turn.

Builds a base and three experts of a few thousand parameters in a temporary folder, then runs the
interpreter alone, an import of numpy and one of torch, `magmerge --help`, a merge of a path that
there is not, `magmerge plan` and `magmerge merge`, and prints medians. Byte code is cached, as it
is after an installation.

    .venv/bin/python -m benchmarks.start_up --repeat 5
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file

RESULTS = Path(__file__).parent / "results" / "start_up.jsonl"
WRONG = "no-such-model"
SHAPES = {
    "model.embed_tokens.weight": (64, 32),
    **{f"model.layers.{i}.self_attn.{n}_proj.weight": (32, 32) for i in range(2) for n in "qkvo"},
    "model.norm.weight": (32,),
}


def main() -> None:
    """Build, run, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{place}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        programs = _programs(_models(Path(place)), Path(place) / "out")
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(repeat + 1):
            for name, words in programs.items():
                spent = _cpu(words, environment)
                # The first turn writes the byte code.
                if turn:
                    seconds[name].append(spent)
    medians = {name: round(statistics.median(spent), 3) for name, spent in seconds.items()}
    for name, median in medians.items():
        Console().print(f"{name:24} {median:.3f} s")
    line = {"date": time.strftime("%Y-%m-%d"), "repeat": repeat, "cpu": medians}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def _models(place: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    folders = []
    for number in range(4):
        folder = place / f"model{number}"
        folder.mkdir()
        state = {
            name: tensor + 0.01 * number * torch.randn(tensor.shape, generator=generator)
            for name, tensor in base.items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
        folders.append(folder)
    return folders


def _programs(folders: Sequence[Path], out: Path) -> dict[str, list[str]]:
    base, *experts = map(str, folders)
    models = ["--base", base, *(word for path in experts for word in ("--expert", path))]
    magmerge = [sys.executable, "-m", "magmerge"]
    return {
        "python": [sys.executable, "-c", "pass"],
        "import numpy": [sys.executable, "-c", "import numpy"],
        "import torch": [sys.executable, "-c", "import torch"],
        "magmerge --version": [*magmerge, "--version"],
        "magmerge --help": [*magmerge, "--help"],
        "a wrong path": [*magmerge, "merge", *models, "--expert", WRONG, str(out)],
        "magmerge plan": [*magmerge, "plan", *models, "--method", "average", f"{out}-planned"],
        "magmerge merge": [
            *magmerge,
            "merge",
            *models,
            "--method",
            "average",
            "--yes",
            str(out),
        ],
    }


def _cpu(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds of all threads of the process, in user code and in the system's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=WRONG not in words, capture_output=True, env=dict(environment))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
