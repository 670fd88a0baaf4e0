"""Time and memory of merging two LoRA adapters, beside PEFT's add_weighted_adapter.

Builds a pair of adapters with the shapes of SDXL's UNet (722 modules with all blocks) in ranks 32
and 128 under benchmarks/.cache, and runs PEFT's svd, ties_svd, dare_linear_svd and dare_ties_svd
and the same merges by magmerge in turn, each in a process of its own on two threads. PEFT's figures
are those of its merging call alone; magmerge's are of the whole process, with starting, reading and
writing. "start" is what a process takes that only imports torch and magmerge's command line.

    .venv/bin/python -m benchmarks.lora_speed                      # all of it: hours, for PEFT
    .venv/bin/python -m benchmarks.lora_speed --blocks 1 --every 5 # 36 of the modules: minutes
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.speed.lora_pair import shapes
from benchmarks.speed.process import CACHE, GB, HERE, Cost, run

RESULTS = HERE / "results" / "lora_speed.jsonl"


class Case(NamedTuple):
    """One merge as both programs are told to do it."""

    rival: str
    method: str
    settings: tuple[str, ...]


HALVES = "weights=[0.5, 0.5]"
CASES = (
    Case("svd", "average", (HALVES,)),
    Case("ties_svd", "ties", ("density=0.2", "scope=tensor")),
    Case("dare_linear_svd", "dare", ("p=0.8",)),
    Case("dare_ties_svd", "dare_ties", ("p=0.8",)),
)


def main() -> None:
    """Build what is missing, run, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="32,128")
    parser.add_argument("--blocks", type=int, default=10, help="transformer blocks an attention")
    parser.add_argument("--every", type=int, default=1, help="5: each fifth attention")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cases", default=",".join(case.rival for case in CASES))
    given = parser.parse_args()
    # Threads that wait for others at full speed would be counted as work, most on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    for rank in map(int, given.ranks.split(",")):
        cut = [str(given.blocks), str(given.every)]
        folder = CACHE / "-".join(["lora", str(rank), *cut])
        build = [sys.executable, "-m", "benchmarks.speed.lora_pair", str(folder), str(rank)]
        subprocess.run([*build, *cut], check=True, cwd=HERE.parent)
        for case in (one for one in CASES if one.rival in given.cases.split(",")):
            rows.append(compare(case, folder, rank, cut, given.repeat))
            sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    Console(width=120).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    line = {"cores": os.cpu_count(), "repeat": given.repeat, "blocks": given.blocks, "rows": rows}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def compare(case: Case, folder: Path, rank: int, cut: list[str], repeat: int) -> dict[str, object]:
    """Both programs in turn; medians."""
    theirs, calls, ours, starts = [], [], [], []
    for _ in range(repeat):
        out = CACHE / "out"
        rival = [sys.executable, "-m", "benchmarks.speed.peft_merge", str(folder), case.rival]
        theirs.append(run([*rival, str(rank), *cut, str(out)]))
        calls.append(json.loads((CACHE / "log.txt").read_text().splitlines()[-1]))
        ours.append(run(magmerge_command(case, folder, rank)))
        starts.append(run([sys.executable, "-c", "import torch, magmerge.cli"]))
    shutil.rmtree(CACHE / "out", ignore_errors=True)
    return {
        "modules": len(shapes(*map(int, cut))),
        "rank": rank,
        "merge": case.rival,
        "peft call s": statistics.median(float(one["merge"]) for one in calls),
        "peft call cpu": statistics.median(float(one["cpu"]) for one in calls),
        "start cpu": statistics.median(one.cpu for one in starts),
        "peft GB": statistics.median(one.memory for one in theirs) / GB,
        "magmerge s": statistics.median(one.wall for one in ours),
        "magmerge GB": statistics.median(one.memory for one in ours) / GB,
        "peft": middle_of(theirs),
        "magmerge": middle_of(ours),
    }


def middle_of(costs: list[Cost]) -> dict[str, float]:
    """The median of each figure of whole processes."""
    columns = zip(*costs, strict=True)
    return Cost(*(statistics.median(column) for column in columns))._asdict()


def magmerge_command(case: Case, folder: Path, rank: int) -> list[str]:
    """The command line of this project's own program."""
    program = [sys.executable, "-m", "magmerge"]
    command = [*program, "merge", "--method", case.method, "--rank", str(rank)]
    for setting in case.settings:
        command += ["--set", setting]
    for number in (1, 2):
        command += ["--expert", str(folder / f"expert-{number}")]
    return [*command, "--threads", "2", str(CACHE / "out")]


def as_table(rows: list[dict[str, object]]) -> Table:
    """PEFT's merging call and magmerge's whole process, and how many times less it takes."""
    names = "merge|rank|modules|PEFT s|CPU|GB|magmerge s|CPU|start|GB|time|CPU|memory"
    table = Table(box=None, pad_edge=False)
    for column in names.split("|"):
        table.add_column(column, justify="left" if column == "merge" else "right")
    for row in rows:
        cpu = row["magmerge"]["cpu"]
        ratios = (
            row["peft call s"] / row["magmerge s"],
            row["peft call cpu"] / cpu,
            row["peft GB"] / row["magmerge GB"],
        )
        table.add_row(
            str(row["merge"]), str(row["rank"]), str(row["modules"]), f"{row['peft call s']:.1f}",
            f"{row['peft call cpu']:.1f}", f"{row['peft GB']:.2f}", f"{row['magmerge s']:.1f}",
            f"{cpu:.1f}", f"{row['start cpu']:.1f}", f"{row['magmerge GB']:.2f}",
            *(f"{ratio:.1f}x" for ratio in ratios),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
