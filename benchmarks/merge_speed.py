"""Wall-clock, CPU time and memory of merges, beside mergekit 0.1.5, each as a whole process.

Builds a Llama-shaped bfloat16 base (22 layers: 348 M parameters) and four experts in numbered
shards, and mergekit in an environment of its own, all under benchmarks/.cache. Then it runs
mergekit and magmerge in turn on the same experts, in float32 arithmetic, several times,
page cache warm, and prints medians and ratios; and two floors (benchmarks/speed/floor.py).

    .venv/bin/python -m benchmarks.merge_speed                 # all of it: about an hour
    .venv/bin/python -m benchmarks.merge_speed --methods linear,ties --repeat 3
    .venv/bin/python -m benchmarks.merge_speed --growth        # models and experts of several sizes
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
RESULTS = HERE / "results" / "merge_speed.jsonl"
MERGEKIT = "0.1.5"
LAYERS, EXPERTS = 22, 4
GB = 1e9


class Case(NamedTuple):
    """One merge, as both programs are told to do it."""

    name: str
    method: str
    settings: tuple[str, ...] = ()
    rival: Mapping[str, float | bool] = MappingProxyType({})


THINNED = {"weight": 1.0, "density": 0.2}
CASES = [
    Case("linear", "average", (), {"weight": 1.0}),
    Case("task_arithmetic", "task_arithmetic", ("lambda=0.3",), {"weight": 1.0, "lambda": 0.3}),
    Case("ties", "ties", ("density=0.2", "scope=tensor"), THINNED),
    Case("dare_linear", "dare", ("p=0.8",), THINNED),
    Case("dare_ties", "dare_ties", ("p=0.8",), THINNED),
    Case("breadcrumbs", "breadcrumbs", ("density=0.2", "gamma=0.01"), {**THINNED, "gamma": 0.01}),
    Case("della", "della", ("density=0.5",), {**THINNED, "density": 0.5}),
    Case("sce", "sce", ("select_topk=0.1",), {"select_topk": 0.1}),
    Case("model_stock", "model_stock", (), {}),
    Case("karcher", "karcher", (), {}),
]


class Cost(NamedTuple):
    """What a process took: seconds of wall clock and of all its threads, bytes at its peak."""

    wall: float
    cpu: float
    memory: float


def main() -> None:
    """Build what is missing, run, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", default=",".join(case.name for case in CASES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="cost against parameters and experts")
    parser.add_argument("--without-rival", action="store_true")
    given = parser.parse_args()
    if given.growth:
        rows = growth(given.repeat)
    else:
        wanted = given.methods.split(",")
        rows = compare([c for c in CASES if c.name in wanted], given.repeat, given.without_rival)
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"cores": os.cpu_count(), "repeat": given.repeat, "rows": rows}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def compare(cases: list[Case], repeat: int, alone: bool) -> list[dict[str, object]]:
    """Each method by both programs in turn, and the floors."""
    folder = models(LAYERS, EXPERTS)
    rival = None if alone else mergekit()
    rows: list[dict[str, object]] = []
    for name in ("copy", "pass"):
        floor = [run(floor_command(name, folder)) for _ in range(repeat)]
        rows.append({"method": f"floor: {name}", "magmerge": middle(floor)._asdict()})
    for case in cases:
        ours, theirs = [], []
        for _ in range(repeat):
            if rival is not None:
                theirs.append(run(mergekit_command(rival, case, folder)))
            ours.append(run(magmerge_command(case, folder, EXPERTS)))
        row: dict[str, object] = {"method": case.name, "magmerge": middle(ours)._asdict()}
        if theirs:
            row["mergekit"] = middle(theirs)._asdict()
        rows.append(row)
        sys.stderr.write(f"{json.dumps(row)}\n")
    Console(width=120).print(as_table(rows))
    return rows


def growth(repeat: int) -> list[dict[str, object]]:
    """The cost of TIES at three sizes of the model, and for 2, 4, 8 and 16 experts."""
    case = next(case for case in CASES if case.name == "ties")
    rows: list[dict[str, object]] = []
    plans = [(layers, 4) for layers in (6, 22, 54)] + [(6, experts) for experts in (2, 8, 16)]
    for layers, experts in plans:
        folder = models(layers, experts)
        cost = middle([run(magmerge_command(case, folder, experts)) for _ in range(repeat)])
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors")) // 2
        rows.append({"parameters": size, "experts": experts, **cost._asdict()})
        if layers > LAYERS:
            shutil.rmtree(folder)
    rows.sort(key=lambda row: (row["parameters"], row["experts"]))
    columns = ("parameters", "experts", "s", "CPU s", "CPU ns per entry", "peak GB")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        entries = row["parameters"] * (row["experts"] + 1)
        table.add_row(
            f"{row['parameters'] / 1e6:.0f} M",
            str(row["experts"]),
            f"{row['wall']:.1f}",
            f"{row['cpu']:.1f}",
            f"{row['cpu'] / entries * 1e9:.2f}",
            f"{row['memory'] / GB:.2f}",
        )
    Console(width=120).print(table)
    return rows


def models(layers: int, experts: int) -> Path:
    """The folder with base and experts, made where it is missing."""
    folder = CACHE / f"llama-{layers}"
    arguments = [str(folder), str(experts), str(layers)]
    subprocess.run([sys.executable, "-m", "benchmarks.speed.build", *arguments], check=True)
    return folder


def mergekit() -> Path:
    """mergekit's program, installed where it is missing."""
    folder = CACHE / f"mergekit-{MERGEKIT}"
    program = folder / "bin" / "mergekit-yaml"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch = next(
            line
            for line in (HERE.parent / "constraints.txt").read_text().splitlines()
            if line.startswith("torch==")
        )
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", torch, f"mergekit=={MERGEKIT}"]
        subprocess.run(pip, check=True)
    return program


def magmerge_command(case: Case, folder: Path, experts: int) -> list[str]:
    """The command line of this project's own program."""
    program = Path(sys.executable).with_name("magmerge")
    command = [str(program), "merge", "--base", str(folder / "base"), "--method", case.method]
    for number in range(1, experts + 1):
        command += ["--expert", str(folder / f"expert-{number}")]
    for setting in case.settings:
        command += ["--set", setting]
    return [*command, str(CACHE / "out")]


def mergekit_command(program: Path, case: Case, folder: Path) -> list[str]:
    """The same merge for mergekit, by the numbers of threads that it takes itself."""
    experts = [{"model": str(folder / f"expert-{i}")} for i in range(1, EXPERTS + 1)]
    recipe: dict[str, object] = {
        "merge_method": case.name,
        "models": experts,
        "parameters": dict(case.rival),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if case.name not in ("linear", "karcher"):
        recipe["base_model"] = str(folder / "base")
    # JSON is YAML.
    (CACHE / "recipe.yml").write_text(json.dumps(recipe))
    flags = ["--device", "cpu", "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [str(program), str(CACHE / "recipe.yml"), str(CACHE / "out"), *flags]


def floor_command(name: str, folder: Path) -> list[str]:
    """A floor's program on the same models."""
    folders = [str(folder / "base"), *(str(folder / f"expert-{i}") for i in range(1, EXPERTS + 1))]
    return [sys.executable, "-m", "benchmarks.speed.floor", name, str(CACHE / "out"), *folders]


def run(command: list[str]) -> Cost:
    """One process to its end, with the output removed before. This program stays small, for a
    process begins with the peak of the one that it was made by."""
    shutil.rmtree(CACHE / "out", ignore_errors=True)
    log = CACHE / "log.txt"
    with log.open("wb") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=HERE.parent)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def middle(costs: list[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def as_table(rows: list[dict[str, object]]) -> Table:
    """Both programs' medians, and how many times less magmerge takes."""
    title = "seconds, and GB at the peak, of whole processes"
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("mergekit s", "CPU s", "GB", "magmerge s", "CPU s", "GB", "time ratio", "memory"):
        table.add_column(name, justify="right")
    for row in rows:
        ours, theirs = row["magmerge"], row.get("mergekit")
        cells = [f"{ours['wall']:.1f}", f"{ours['cpu']:.1f}", f"{ours['memory'] / GB:.2f}"]
        if theirs is None:
            table.add_row(str(row["method"]), "", "", "", *cells)
            continue
        other = [f"{theirs['wall']:.1f}", f"{theirs['cpu']:.1f}", f"{theirs['memory'] / GB:.2f}"]
        ratios = [f"{theirs[key] / ours[key]:.1f}x" for key in ("wall", "memory")]
        table.add_row(str(row["method"]), *other, *cells, *ratios)
    return table


if __name__ == "__main__":
    main()
